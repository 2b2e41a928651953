"""The store of summaries: bounded for all and for each, and forgotten in time."""

from __future__ import annotations

from typing import Any

from proxy.clock import Deadlines
from proxy.protocol.dialogue import make_request, read_answer, shorten, transcribe
from proxy.summaries import Summaries
from tests.fakes.clock import FrozenClock

DESK: Any = None  # nothing is made here


def make(max_bytes: int = 100_000) -> tuple[Summaries, FrozenClock]:
    clock = FrozenClock()
    return Summaries(clock, Deadlines(clock), DESK, max_bytes=max_bytes), clock


def put(summaries: Summaries, scope: bytes, name: int, size: int = 600) -> None:
    summaries._put((scope, b"%d" % name), "x" * size, 60.0)


def has(summaries: Summaries, scope: bytes, name: int) -> bool:
    return bool(summaries._get((scope, b"%d" % name), 60.0))


def test_one_scope_can_not_drive_out_the_others() -> None:
    """It has a quarter at most; its own oldest go."""
    summaries, _ = make(40_000)
    put(summaries, b"quiet", 0)
    for name in range(100):
        put(summaries, b"loud", name)
    assert has(summaries, b"quiet", 0)
    assert [name for name in range(100) if has(summaries, b"loud", name)] == list(range(90, 100))
    assert summaries.size_bytes == 11 * 1_000
    assert summaries.evictions == 90


def test_together_they_stay_within_the_bound() -> None:
    """What has not been used for longest goes first."""
    summaries, _ = make(10_000)
    for scope in range(20):
        put(summaries, b"%d" % scope, 0)
        assert has(summaries, b"0", 0), "it is used all the time"
    assert summaries.size_bytes == 10_000
    assert [scope for scope in range(20) if has(summaries, b"%d" % scope, 0)] == [0, *range(11, 20)]


def test_one_that_is_too_long_for_a_share_is_not_kept() -> None:
    """It would drive out all others for one."""
    summaries, _ = make(10_000)
    put(summaries, b"a", 0, 2_200)
    assert (has(summaries, b"a", 0), summaries.size_bytes) == (False, 0)


def test_a_summary_that_is_not_used_is_forgotten() -> None:
    """Counted from its last use; and nothing is left of its scope."""
    summaries, clock = make()
    put(summaries, b"a", 0)
    clock.advance(59)
    assert has(summaries, b"a", 0)
    clock.advance(59)
    assert has(summaries, b"a", 0)
    clock.advance(60)
    assert not has(summaries, b"a", 0)
    assert (summaries.size_bytes, summaries._kept, summaries._sizes) == (0, {}, {})


def test_every_family_of_dialects_says_and_reads_the_same() -> None:
    """A question in each, and the texts of answers, with whatever else is in them."""
    asked = [
        make_request(route, "m", "be short", "what?", 7) for route in ("chat.completions", "messages", "responses")
    ]
    assert all(b'"what?"' in each and b'"be short"' in each and b":7" in each for each in asked)
    answers = {
        "chat.completions": b'{"choices":[{"message":{"content":"so"}}]}',
        "messages": b'{"content":[{"type":"thinking","thinking":"hm"},{"type":"text","text":"so"}]}',
        "responses": b'{"output":[{"type":"reasoning"},{"type":"message","content":'
        b'[{"type":"output_text","text":"so"}]}]}',
    }
    assert {route: read_answer(route, body) for route, body in answers.items()} == dict.fromkeys(answers, "so")
    for body in (b"", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[1]}', b'{"content":1,"output":[1]}'):
        assert [read_answer(route, body) for route in answers] == ["", "", ""]


def test_messages_are_told_with_their_calls_and_without_their_thoughts() -> None:
    """In each family's way; nothing that is not understood stops it."""
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}
    told = {
        "User: hi": {"role": "user", "content": "hi"},
        'Assistant calls look: {"a":1}': {"role": "assistant", "content": None, "tool_calls": [call, 5]},
        "Tool: found": {"role": "tool", "content": "found"},
        'Assistant: so\nAssistant calls look: {"b":2}': {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "secret"},
                {"type": "text", "text": "so"},
                {"type": "tool_use", "name": "look", "input": {"b": 2}},
                7,
            ],
        },
        "Tool: there\nUser: [image]": {
            "role": "user",
            "content": [{"type": "tool_result", "content": [{"type": "text", "text": "there"}]}, {"type": "image"}],
        },
        "Assistant calls look: {}": {"type": "function_call", "name": "look", "arguments": "{}"},
        "Tool: out": {"type": "function_call_output", "call_id": "c", "output": "out"},
        "": {"type": "reasoning", "summary": []},
    }
    assert [transcribe(item, 1_000) for item in told.values()] == list(told)
    assert len(transcribe({"role": "user", "content": "x" * 900}, 100)) == 99
    assert shorten("abc", 3) == "abc"
