"""Where a conversation is cut, case by case; `tests/property/test_pruning.py` tries conversations of any shape."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.config.pruning import Measure, Slimming, Summary
from proxy.policy.pruning import NOTICE, Cut, digest_prefixes, plan_cut, split_block, write_cut
from proxy.policy.slimming import plan_slimming
from proxy.policy.turns import CHAT, MESSAGES, RESPONSES, read_turns
from proxy.protocol.call import parse_call
from proxy.protocol.dialogue import transcribe
from proxy.protocol.routes import _TABLE

ROUTES = {choice.usual.route.name: choice.usual.route for choice in _TABLE.values()}
USER = {"role": "user", "content": "q"}
SAID = {"role": "assistant", "content": "a"}
THOUGHT = {"type": "reasoning", "id": "r", "summary": []}


def use(*names: str) -> dict[str, Any]:
    calls = [{"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}} for name in names]
    return {"role": "assistant", "tool_calls": calls}


def result(name: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "content": "r"}


def call(name: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": name, "name": "f", "arguments": "{}"}


def output(name: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": name, "output": "r"}


def cut(route: str, items: list[Any], measure: Measure, summary: Summary | None = None, **fields: Any) -> Cut | None:
    member = "input" if route == RESPONSES else "messages"
    made = parse_call(ROUTES[route], orjson.dumps({"model": "m", member: items, **fields}))
    turns = read_turns(made, route)
    return None if turns is None else plan_cut(made, turns, measure, summary)


def places(route: str, items: list[Any]) -> list[int]:
    """Everywhere that the conversation may be cut."""
    found = [cut(route, items, Measure(keep, 0, 1)) for keep in range(1, len(items))]
    return sorted({each.at for each in found if each is not None})


@pytest.mark.parametrize(
    ("route", "items", "allowed"),
    [
        pytest.param(CHAT, [USER, SAID, USER, SAID, USER], [2, 3, 4], id="plain turns, but not for nothing"),
        pytest.param(CHAT, [USER, use("a"), result("a"), SAID, USER], [3, 4], id="a call and its result"),
        pytest.param(
            CHAT, [USER, SAID, use("a", "b"), result("a"), result("b"), SAID, USER], [2, 5, 6], id="calls at once"
        ),
        pytest.param(
            CHAT,
            [USER, SAID, use("a"), result("a"), use("a"), result("a"), USER],
            [2, 4, 6],
            id="the same id again",
        ),
        pytest.param(
            MESSAGES,
            [
                USER,
                SAID,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "r"}]},
                SAID,
                USER,
            ],
            [2, 4, 5],
            id="a result in a user's turn",
        ),
        pytest.param(
            RESPONSES,
            [USER, SAID, call("a"), call("b"), output("a"), output("b"), SAID, USER],
            [2, 6, 7],
            id="items of calls at once",
        ),
        pytest.param(
            RESPONSES,
            [USER, SAID, call("a"), {**USER}, output("a"), USER],
            [2, 5],
            id="somebody speaks before the result",
        ),
        pytest.param(
            RESPONSES,
            [USER, THOUGHT, THOUGHT, call("a"), output("a"), SAID, THOUGHT, SAID, USER],
            [6, 8],
            id="a thought and all that may have come of it",
        ),
    ],
)
def test_a_cut_lies_where_nothing_is_torn_apart(route: str, items: list[Any], allowed: list[int]) -> None:
    """And nowhere else."""
    assert places(route, items) == allowed


@pytest.mark.parametrize(
    ("items", "fields"),
    [
        ([USER, SAID] * 5, {"previous_response_id": "resp_1"}),
        ([USER, SAID] * 5, {"conversation": "conv_1"}),
        ([USER, {"type": "item_reference", "id": "x"}] * 5, {}),
        ([USER, SAID, "?"] * 5, {}),
        ("only a question", {}),
    ],
)
def test_what_lies_elsewhere_or_cannot_be_read_is_left_alone(items: Any, fields: dict[str, Any]) -> None:
    """What hangs together there is not known here."""
    assert cut(RESPONSES, items, Measure(1, 0, 1), **fields) is None
    assert cut(RESPONSES, [USER, SAID] * 5, Measure(1, 0, 1)) is not None


def test_the_users_task_stays_with_the_work_on_it() -> None:
    """However many calls it has taken; what was done is summed up behind it."""
    items = [USER, {"role": "user", "content": "the task"}]
    for name in "abcdefgh":
        items += [use(name), result(name)]
    found = cut(CHAT, [{"role": "system", "content": "s"}, *items], Measure(4, 0, 2))
    assert found is not None
    assert (found.at, found.anchor, found.messages) == (14, 1, 13)
    assert write_cut(found, CHAT, "so far")[1:3] == [
        {"role": "user", "content": "Summary of the conversation so far:\nso far"},
        {"role": "user", "content": "the task"},
    ]
    assert write_cut(found, CHAT) == [{"role": "system", "content": "s"}, items[1], *items[14:]]


def test_a_summary_that_would_be_longer_than_what_it_stands_for_is_not_made() -> None:
    """Where only messages are counted; a cap is kept in any case."""
    items = [USER, SAID] * 10 + [USER]
    summary = Summary("m", max_tokens=400)
    assert cut(CHAT, items, Measure(4, 0, 2)) is not None
    assert cut(CHAT, items, Measure(4, 0, 2), summary) is None
    long = [{"role": each["role"], "content": "x" * 200} for each in items]
    assert cut(CHAT, long, Measure(4, 0, 2), summary) is not None


def test_a_cap_is_kept_by_steps_that_leave_most_of_the_room_used() -> None:
    """Each message has a hundred tokens; where not even the last one fits, it alone is left."""
    items = [{"role": "assistant" if at % 2 else "user", "content": "x" * 359} for at in range(40)] + [USER]
    kept: dict[int, set[int]] = {}
    moves: dict[int, int] = {}
    for most in (3_000, 1_200, 400, 130):
        found = [cut(CHAT, items[:length], Measure(0, most, 8)) for length in range(31, 41)]
        cuts = [0 if each is None else each.at for each in found]
        kept[most] = {length - at for length, at in zip(range(31, 41), cuts, strict=True) if at}
        moves[most] = len(set(cuts))
    assert all(5 <= many <= 11 for many in kept[1_200])
    assert all(12 <= many <= 29 for many in kept[3_000])
    assert kept[400] <= {1, 2, 3}
    assert kept[130] == {1}
    assert moves[3_000] <= 2
    assert moves[1_200] <= 3


def test_a_last_message_that_is_too_long_is_all_that_is_left() -> None:
    """It is what is asked; whether it is too much is the upstream's to say."""
    found = cut(CHAT, [USER, SAID, USER, SAID, {"role": "user", "content": "x" * 9_000}], Measure(0, 200, 8))
    assert found is not None
    assert (found.at, found.anchor) == (4, -1)


def test_a_long_question_that_was_answered_need_not_stay() -> None:
    """The answer to it would fit, but not together with it; so the cut goes on to the next question."""
    long = {"role": "user", "content": "x" * 2_400}
    found = cut(CHAT, [USER, SAID, long, SAID, USER], Measure(0, 400, 8))
    assert found is not None
    assert (found.at, found.anchor) == (4, -1)


def test_a_conversation_without_users_begins_with_a_notice() -> None:
    """And so does one in Messages that would begin with instructions."""
    monologue = [{"role": "assistant", "content": str(at)} for at in range(6)]
    found = cut(CHAT, monologue, Measure(2, 0, 2))
    assert found is not None
    assert write_cut(found, CHAT) == [{"role": "user", "content": NOTICE}, *monologue[4:]]
    told = [USER, {"role": "system", "content": "s"}, SAID, USER, SAID, USER]
    found = cut(MESSAGES, told, Measure(2, 0, 1))
    assert found is not None
    assert write_cut(found, MESSAGES)[:2] == [{"role": "user", "content": NOTICE}, told[1]]


@pytest.mark.parametrize("wrong", [None, 1, "x", [], {}, [[]], {"type": []}, [{"type": {}, "text": 1}], True])
def test_what_a_stranger_gets_wrong_stops_nobody(wrong: Any) -> None:
    """Cut or not, slimmed and told: the upstream will say what is wrong."""
    slimming = Slimming(squeeze=True, everywhere=True, markers=(("<", ">"),))
    item = dict.fromkeys(("role", "content", "type", "tool_calls", "function_call", "call_id", "output"), wrong)
    for route in (CHAT, MESSAGES, RESPONSES):
        for odd in (
            item,
            {**USER, "content": wrong},
            {**SAID, "tool_calls": wrong},
            {**call("a"), "arguments": wrong},
        ):
            made = parse_call(
                ROUTES[route], orjson.dumps({"messages": [odd] * 9, "input": [odd] * 9, "system": wrong})
            )
            turns = read_turns(made, route)
            assert turns is not None
            plan_slimming(made, turns, slimming)
            found = plan_cut(made, turns, Measure(1, 10, 2))
            if found is not None:
                assert write_cut(found, route, "s")
            assert isinstance(transcribe(odd, 50), str)


def test_pictures_weigh_what_limits_say_that_they_weigh() -> None:
    """Their bytes do not count; they do, though they are short where they are given by reference."""
    data = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 40_000}}
    link = {"type": "image_url", "image_url": {"url": "https://example.org/i.png"}}
    for picture in (data, link):
        items = [{"role": "user", "content": [picture]}, SAID] * 4 + [USER]
        assert cut(CHAT, items, Measure(0, 20_000, 2)) is None
        found = cut(CHAT, items, Measure(0, 5_000, 2))
        assert found is not None
        assert 4 <= found.at <= 7


def test_the_digest_of_a_beginning_depends_on_all_of_it_and_on_nothing_else() -> None:
    """So a summary is found again however the conversation goes on."""
    items = [{"role": "user", "content": str(number)} for number in range(12)]
    first = cut(CHAT, items[:9], Measure(2, 0, 3))
    later = cut(CHAT, items, Measure(2, 0, 3))
    other = cut(CHAT, [{"role": "user", "content": "other"}, *items[1:]], Measure(2, 0, 3))
    assert first is not None
    assert later is not None
    assert other is not None
    assert digest_prefixes(later, b"s")[: first.at + 1] == digest_prefixes(first, b"s")
    assert not set(digest_prefixes(other, b"s")[1:]) & set(digest_prefixes(later, b"s"))
    assert not set(digest_prefixes(first, b"t")) & set(digest_prefixes(first, b"s"))


def test_a_block_is_divided_into_pieces_that_fit_or_hold_one_message() -> None:
    """Each message is in one piece."""
    assert list(split_block([3, 3, 3, 9, 1, 1], 6)) == [2, 3, 4, 6]
    assert list(split_block([], 6)) == []
