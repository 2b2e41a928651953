"""The trace of savings, and what a short replay of it shows."""

from __future__ import annotations

from collections import Counter

import pytest

from loadtests.savings.replay import POLICIES, replay
from loadtests.savings.report import name_of, render_table
from loadtests.savings.trace import CONVERSATIONS, DIGEST, MESSAGES, TURNS, digest, make_trace


def test_the_trace_is_the_same_on_every_machine() -> None:
    """Figures of two runs are figures of the same messages."""
    trace = make_trace()

    assert len(trace) == MESSAGES
    assert digest(trace) == DIGEST
    assert Counter(each.kind for each in trace)["conversation"] == CONVERSATIONS * TURNS


def test_the_turns_of_a_conversation_come_in_their_order() -> None:
    """Each says what was said before, and no call stands without its result."""
    threads: dict[int, int] = {}
    for message in make_trace(1_000):
        if message.thread >= 0:
            assert threads.get(message.thread, 0) < len(message.messages)
            threads[message.thread] = len(message.messages)
            calls = [call["id"] for each in message.messages for call in each.get("tool_calls") or ()]
            assert calls == [each["tool_call_id"] for each in message.messages if each["role"] == "tool"]
    assert threads


@pytest.mark.long
async def test_a_short_replay_costs_less_with_everything_on() -> None:
    """Every request is answered, and rules and caches answer their share."""
    trace = make_trace(400)
    off, on = await replay(trace, ()), await replay(trace, POLICIES)

    assert off.failed == on.failed == 0
    assert off.pattern == off.hits == off.cheap == off.summaries == 0
    assert on.pattern > 40
    assert on.cheap > on.strong
    assert on.cost_usd < 0.5 * off.cost_usd
    assert on.most_prompt_tokens < off.most_prompt_tokens
    assert "| everything on |" in render_table([off, on])
    assert name_of(on) == "everything on"
