"""Cuts through conversations of any shape, in all three families: whole units, legal beginnings, bounds, blocks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.pruning import Measure, Summary
from proxy.policy.estimate import estimate
from proxy.policy.pruning import NOTICE, SUMMARY_HEADING, Cut, plan_cut, write_cut
from proxy.policy.turns import CHAT, MESSAGES, RESPONSES, read_turns
from proxy.protocol.call import Call, parse_call
from proxy.protocol.routes import _TABLE, Route
from proxy.providers.anthropic_read import read_messages
from proxy.providers.chat_read import read_chat
from proxy.providers.responses_read import read_response

Fields = dict[str, Any]
ROUTES: dict[str, Route] = {choice.usual.route.name: choice.usual.route for choice in _TABLE.values()}
FAMILIES = (CHAT, MESSAGES, RESPONSES)
READERS = {CHAT: read_chat, MESSAGES: read_messages, RESPONSES: read_response}
SUMMARY = Summary("cheap", max_tokens=40)

# What happens one after the other: someone speaks, the model answers, the model calls tools (so many at once).
steps = st.lists(
    st.tuples(
        st.sampled_from(("user", "assistant", "calls", "thought", "system")), st.integers(1, 3), st.integers(1, 200)
    ),
    min_size=1,
    max_size=30,
)
measures = st.builds(
    Measure,
    messages=st.integers(0, 12),
    tokens=st.sampled_from((0, 0, 120, 300, 1_000)),
    block=st.integers(1, 7),
)


def write(family: str, said: list[tuple[str, int, int]]) -> list[Fields]:
    """The conversation as an SDK of this family sends it."""
    items: list[Fields] = []
    for number, (kind, many, size) in enumerate(said):
        text = f"{number} " + "x" * size
        names = [f"call_{number}_{index}" for index in range(many)]
        if kind == "user" or (kind == "system" and family == MESSAGES):
            items.append({"role": "user", "content": text})
        elif kind == "system":
            items.append({"role": "developer", "content": text})
        elif kind == "assistant" or (kind == "thought" and family != RESPONSES):
            items.append({"role": "assistant", "content": text})
        elif family == CHAT:
            calls = [
                {"id": name, "type": "function", "function": {"name": "look", "arguments": "{}"}} for name in names
            ]
            items.append({"role": "assistant", "content": None, "tool_calls": calls})
            items += [{"role": "tool", "tool_call_id": name, "content": text} for name in names]
        elif family == MESSAGES:
            uses = [{"type": "tool_use", "id": name, "name": "look", "input": {}} for name in names]
            results = [{"type": "tool_result", "tool_use_id": name, "content": text} for name in names]
            items += [{"role": "assistant", "content": uses}, {"role": "user", "content": results}]
        else:
            if kind == "thought":
                items.append({"type": "reasoning", "id": f"rs_{number}", "summary": []})
            items += [{"type": "function_call", "call_id": name, "name": "look", "arguments": "{}"} for name in names]
            items += [{"type": "function_call_output", "call_id": name, "output": text} for name in names]
    return items


def ask(family: str, said: list[tuple[str, int, int]]) -> list[Fields]:
    """The same, ending in a user's question."""
    return [*write(family, said), {"role": "user", "content": "and now?"}]


def make_call(family: str, items: list[Fields]) -> Call:
    fields: Fields = {"model": "m"}
    if family == RESPONSES:
        fields |= {"instructions": "be good", "input": items}
    elif family == MESSAGES:
        fields |= {"max_tokens": 9, "system": "be good", "messages": items}
    else:
        fields |= {"messages": [{"role": "system", "content": "be good"}, *items]}
    return parse_call(ROUTES[family], orjson.dumps(fields))


def cut(family: str, call: Call, measure: Measure, summary: Summary | None = None) -> Cut | None:
    turns = read_turns(call, family)
    assert turns is not None
    return plan_cut(call, turns, measure, summary)


def carry_out(family: str, call: Call, found: Cut, summary: str = "") -> Call:
    """The call that goes out."""
    turns = read_turns(call, family)
    assert turns is not None
    call.edit({turns.member: write_cut(found, family, summary)})
    return parse_call(ROUTES[family], call.body)


def ids_in(family: str, call: Call) -> tuple[list[str], list[str]]:
    """Calls that are made and calls that are answered, in order."""
    turns = read_turns(call, family)
    assert turns is not None
    return [n for turn in turns.items for n in turn.calls], [n for turn in turns.items for n in turn.results]


def tokens_of(family: str, call: Call) -> int:
    """Of the prompt, as limits and budgets count it."""
    answer = 9 if family == MESSAGES else 0  # that many it allows itself
    return estimate(ROUTES[family], call, 0, None, 0).tokens - answer


# -- what holds -----------------------------------------------------------------------------------------------------


def leaves_a_conversation(family: str, said: list[tuple[str, int, int]], measure: Measure, summarised: bool) -> None:
    """No call is parted from its results, instructions stay, a user speaks first, order is kept, and the family's own
    reader takes it."""
    items = ask(family, said)
    call = make_call(family, items)
    before = call.fields
    found = cut(family, call, measure, SUMMARY if summarised else None)
    if found is None:
        return
    left = carry_out(family, call, found, "what was said" if summarised else "")
    calls, results = ids_in(family, left)
    turns = read_turns(left, family)
    original = read_turns(make_call(family, items), family)
    assert turns is not None
    assert original is not None
    listed = left.fields[turns.member]

    assert sorted(calls) == sorted(results)
    assert [turn.text for turn in turns.items if turn.role == "system"] == [
        turn.text for turn in original.items if turn.role == "system"
    ]
    assert turns.spoken[0].role == "user"
    assert turns.items[-1].text == "and now?"
    kept = [item for item in listed if item in before[turns.member]]
    assert kept == [item for item in before[turns.member] if item in kept]
    instead = [item["content"] for item in listed if item not in kept]
    assert instead in ([[SUMMARY_HEADING + "what was said"]] if summarised else [[], [NOTICE]])
    assert len(listed) == len(before[turns.member]) - found.messages + len(instead)
    for item, behind in pairwise(listed):
        assert item.get("type") != "reasoning" or behind.get("type") == "function_call"
    READERS[family](left.fields, "m", False)


def keeps_the_cap(family: str, said: list[tuple[str, int, int]], most: int, block: int, summarised: bool) -> None:
    """A prompt is no longer than its cap, by the very estimate that limits use; unless what hangs together at the end
    is, and then nothing but that is left."""
    summary = SUMMARY if summarised else None
    call = make_call(family, ask(family, said))
    found = cut(family, call, Measure(0, most, block), summary)
    shortest = cut(family, call, Measure(0, 1, block), summary)
    text = "y" * (4 * SUMMARY.max_tokens) if summarised else ""
    left = call if found is None else carry_out(family, call, found, text)

    if tokens_of(family, left) > most:
        assert (found is None) == (shortest is None)
        assert found is None or (shortest is not None and found.at == shortest.at)


def moves_forward(family: str, said: list[tuple[str, int, int]], measure: Measure) -> None:
    """As a conversation goes on, the cut never goes back; and while it stays, the prompt only grows at its end."""
    if measure.tokens:  # later instructions leave less room
        said = [step for step in said if step[0] != "system"]
    place = 0
    prefix: list[Fields] = []
    for length in range(1, len(said) + 1):
        items = write(family, said[:length])
        if said[length - 1][0] in ("assistant", "system"):
            continue  # nobody asks for anything there
        call = make_call(family, items)
        found = cut(family, call, measure)
        at = 0 if found is None else found.at
        assert at >= place
        turns = read_turns(call, family)
        assert turns is not None
        left = call.fields[turns.member] if found is None else write_cut(found, family)
        assert at > place or left[: len(prefix)] == prefix
        place, prefix = at, left


def moves_by_blocks(family: str, messages: int, block: int, length: int) -> None:
    """Of plain questions and answers at least so many messages are kept and less than a block more, apart from one
    that the tail answers; and what is left is not cut again."""
    measure = Measure(messages, 0, block)
    places = []
    for many in range(length):
        call = make_call(family, ask(family, [("assistant" if at % 2 else "user", 1, 5) for at in range(many)]))
        found = cut(family, call, measure)
        places.append(0 if found is None else found.at)
        if found is not None:
            assert messages <= many + 1 - found.at < messages + block
            assert found.at % block == 0
            if found.anchor < 0:
                assert cut(family, carry_out(family, call, found), measure) is None
    cuts = list(dict.fromkeys(places))[1:]
    assert {later - earlier for earlier, later in pairwise(cuts)} <= {block}


CAPS = st.sampled_from((120, 300, 1_000))
CHECKS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "what is left of a conversation is one": (leaves_a_conversation, (steps, measures, st.booleans())),
    "a prompt keeps to its cap": (keeps_the_cap, (steps, CAPS, st.integers(1, 7), st.booleans())),
    "the cut never goes back": (moves_forward, (steps, measures)),
    "the cut moves by blocks": (moves_by_blocks, (st.integers(1, 12), st.integers(1, 8), st.integers(20, 40))),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("check", CHECKS)
def test_a_cut_through_any_conversation_is_right(check: str, family: str) -> None:
    """Each of the laws for each of the families; what they say is with them."""
    _try(check, family, 8)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("check", CHECKS)
def test_a_cut_through_any_of_many_conversations_is_right(check: str, family: str) -> None:
    """The same, for long."""
    _try(check, family, 500)


def _try(check: str, family: str, examples: int) -> None:
    law, strategies = CHECKS[check]

    @settings(max_examples=examples, deadline=None, database=None)
    @given(st.tuples(*strategies))
    def holds(drawn: tuple[Any, ...]) -> None:
        law(family, *drawn)

    holds()
