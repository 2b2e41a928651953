"""Which tier a request belongs to, which model answers, and which requests lose their functions."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.config.tiers import Rules, Tier, Tiered
from proxy.policy.tiers import Choice, Cut, choose, cut_functions
from proxy.policy.turns import Turns, read_turns
from proxy.protocol.call import Call

THREE = Tiered(
    "auto",
    (Tier("simple", "small", 0), Tier("usual", "medium", 20, drops_tools=True), Tier("complex", "large", 40)),
    baseline="large",
    rules=Rules(newcomer_messages=2, newcomer_points=40),
)
UNIT = bytes(16)
OLD = 99
FUNCTION = {"type": "function", "function": {"name": "f"}}
SEARCH = {"type": "web_search"}


def turns_of(text: str, **fields: Any) -> Turns:
    body = {"messages": [{"role": "user", "content": text}], **fields}
    found = read_turns(Call(b"", body, "auto", False, False), "chat.completions")
    assert found is not None
    return found


def chosen(text: str, **options: Any) -> Choice:
    found = choose(THREE, turns_of(text), UNIT, **{"seen": OLD, **options})
    assert found is not None
    return found


def test_the_strongest_tier_whose_points_are_reached_is_chosen() -> None:
    """Each tier ends where the next begins."""
    assert chosen("hi") == Choice(0, "simple", "small", (), 0, drops_tools=False, lasts=0)
    assert chosen("why?") == Choice(1, "usual", "medium", ("reasoning",), 20, drops_tools=True, lasts=1)
    assert chosen("why? compare!") == Choice(2, "complex", "large", ("reasoning",), 40, drops_tools=False, lasts=2)


def test_a_conversation_does_not_fall_below_the_tier_it_had() -> None:
    """It may rise."""
    assert chosen("hi", least=1)[:4] == (1, "usual", "medium", ("held",))
    assert chosen("why? compare!", least=1)[:4] == (2, "complex", "large", ("reasoning",))
    assert chosen("why?", least=1).why == ("reasoning",)


def test_a_tier_that_is_no_more_is_not_held() -> None:
    """The catalog had more of them a moment ago."""
    assert chosen("hi", least=3).tier == "simple"


def test_a_conversation_does_not_keep_the_tier_that_its_user_had_for_being_new() -> None:
    """A hundred turns would cost the strong model's price for one greeting."""
    first = chosen("hi", seen=0)
    assert (first.tier, first.lasts) == ("complex", 0)
    assert chosen("why?", seen=0).lasts == 1
    assert chosen("hi", seen=0, least=1).lasts == 0
    assert chosen("hi", least=1).lasts == 1


def test_the_first_messages_of_a_user_count_more() -> None:
    """Until there were as many as the operator said."""
    assert [chosen("hi", seen=seen).tier for seen in range(4)] == ["complex", "complex", "simple", "simple"]


def test_a_caller_may_name_the_tier() -> None:
    """Whatever is asked, and whatever the conversation had; one that does not exist is none."""
    assert chosen("why? compare!", asked="simple", least=2)[:4] == (0, "simple", "small", ("header",))
    assert choose(THREE, turns_of("hi"), UNIT, asked="best") is None


def test_a_share_is_what_it_says_within_two_in_a_hundred() -> None:
    """Over ten thousand users."""
    share = 0.3
    tiered = Tiered("auto", (Tier("simple", "small", 0, (("tuned", share),)),), baseline="small")
    turns = turns_of("hi")
    choices = [choose(tiered, turns, number.to_bytes(16, "big")) for number in range(10_000)]
    tuned = [choice for choice in choices if choice is not None and choice.model == "tuned"]

    assert abs(len(tuned) / 10_000 - share) <= 0.02
    assert {choice.why for choice in tuned} == {("share",)}


def test_several_shares_lie_beside_each_other_and_grow_in_place() -> None:
    """Who is with the tuned model stays there while its share grows; what is left is the tier's own."""
    turns = turns_of("hi")

    def models(first: float) -> list[str]:
        shares = (("tuned", first), ("other", 0.3))
        tiered = Tiered("auto", (Tier("simple", "small", 0, shares),), baseline="small")
        units = [number.to_bytes(16, "big") for number in range(1_000)]
        found = [choose(tiered, turns, unit) for unit in units]
        return [choice.model for choice in found if choice is not None]

    fewer, more = models(0.2), models(0.4)
    assert all(after == "tuned" for before, after in zip(fewer, more, strict=True) if before == "tuned")
    assert abs(more.count("small") - 300) < 60


def test_two_virtual_models_share_out_independently() -> None:
    """Else one half of the users would get all that is new."""
    turns = turns_of("hi")
    tier = Tier("simple", "small", 0, (("tuned", 0.5),))
    pairs = []
    for number in range(1_000):
        found = [choose(Tiered(name, (tier,), baseline="x"), turns, number.to_bytes(16, "big")) for name in "ab"]
        pairs.append(tuple(choice.model for choice in found if choice is not None))

    assert all(200 < pairs.count((one, two)) < 300 for one in ("small", "tuned") for two in ("small", "tuned"))


# -- functions ------------------------------------------------------------------------------------------------


def cut(**fields: Any) -> Cut | None:
    return cut_functions(fields, turns_of("hi", **fields))


def test_functions_go_and_what_is_said_of_them_goes_along() -> None:
    """Nothing may speak of tools where there are none."""
    said = {"tools": [FUNCTION, {"name": "anthropics"}], "tool_choice": "auto", "parallel_tool_calls": True}

    assert cut(**said) == Cut({}, ("tools", "tool_choice", "parallel_tool_calls"))
    assert cut(functions=[{"name": "f"}], function_call="auto") == Cut({}, ("functions", "function_call"))
    assert cut(tools=[FUNCTION], tool_choice={"type": "auto"}) == Cut({}, ("tools", "tool_choice"))


def test_what_runs_at_the_provider_stays() -> None:
    """A search is no definition of the caller's."""
    assert cut(tools=[FUNCTION, SEARCH], tool_choice="auto") == Cut({"tools": [SEARCH]}, ())
    assert cut(tools=[SEARCH]) is None


@pytest.mark.parametrize(
    "forced",
    [
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tool_choice": {"type": "any"}},
        {"tool_choice": {"type": "tool", "name": "f"}},
        {"tool_choice": {"type": "allowed_tools", "mode": "required", "tools": []}},
        {"tool_choice": 7},
        {"function_call": {"name": "f"}},
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
    ],
)
def test_functions_that_must_be_called_or_may_have_been_stay(forced: dict[str, Any]) -> None:
    """Without them the request would be wrong."""
    assert cut(tools=[FUNCTION], **forced) is None


def test_functions_of_a_conversation_with_calls_stay() -> None:
    """Providers refuse calls of functions that nobody defined."""
    call = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}
    fields = {"tools": [FUNCTION], "messages": [{"role": "user", "content": "hi"}, call]}

    assert cut_functions(fields, turns_of("", **fields)) is None


def test_a_request_without_functions_has_none_to_lose() -> None:
    """Not even if it speaks of them."""
    assert cut(tool_choice="auto") is None
    assert cut(tools=[]) is None
