"""Token counts read from answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.protocol.routes import Dialect, grammar_of
from proxy.protocol.sse import SseEvent, SseScanner
from proxy.protocol.usage import MAX_BODY_BYTES, Usage, UsageReader, estimate_usage, usage_from_body

OPENAI = {
    "prompt_tokens": 100,
    "completion_tokens": 40,
    "total_tokens": 140,
    "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 30},
}
RESPONSES = {
    "input_tokens": 100,
    "output_tokens": 40,
    "total_tokens": 140,
    "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 8},
    "output_tokens_details": {"reasoning_tokens": 30},
}
ANTHROPIC = {
    "input_tokens": 28,
    "cache_read_input_tokens": 64,
    "cache_creation_input_tokens": 8,
    "output_tokens": 40,
    "output_tokens_details": {"thinking_tokens": 30},
}
FULL = Usage(100, 40, cached_input_tokens=64, cache_write_tokens=8, reasoning_tokens=30)


def body_of(report: Any, **members: Any) -> bytes:
    return json.dumps({"id": "x", "usage": report, **members}).encode()


@pytest.mark.parametrize(
    ("dialect", "route_name", "report"),
    [
        (Dialect.OPENAI, "chat.completions", OPENAI),
        (Dialect.MISTRAL, "chat.completions", OPENAI),
        (Dialect.OPENAI, "responses", RESPONSES),
        (Dialect.ANTHROPIC, "messages", ANTHROPIC),
    ],
)
@pytest.mark.parametrize("behind", [{}, {"system_fingerprint": "fp"}])
def test_all_dialects_are_read_into_one_shape(
    dialect: Dialect, route_name: str, report: dict[str, Any], behind: dict[str, Any]
) -> None:
    """Anthropic counts cached input apart, OpenAI within; the sum of all input is the same here."""
    usage = usage_from_body(dialect, route_name, body_of(report, **behind))
    assert usage == FULL
    assert usage is not None
    assert (usage.total_tokens, usage.source) == (140, "upstream")


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({"prompt_tokens": 8, "total_tokens": 8}, Usage(8, 0)),
        ({"total_tokens": 8}, Usage(8, 0)),
        ({"prompt_tokens": 8, "completion_tokens": None, "prompt_tokens_details": None}, Usage(8, 0)),
        ({"input_tokens": 5, "output_tokens": 6, "input_tokens_details": {"image_tokens": 1}}, Usage(5, 6)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage(0, 0)),
        ({"prompt_tokens": 2**53 - 1}, Usage(2**53 - 1, 0)),
        ({"type": "duration", "seconds": 12}, None),
        ({"pages_processed": 3}, None),
        ({}, None),
        (None, None),
        ([], None),
        ("12", None),
    ],
)
def test_report_is_read_as_far_as_it_goes(report: Any, expected: Usage | None) -> None:
    """Absent and null counts are zero; a report without token counts is none."""
    assert usage_from_body(Dialect.OPENAI, "embeddings", body_of(report)) == expected
    assert usage_from_body(Dialect.OPENAI, "embeddings", body_of(report, more=1)) == expected


@pytest.mark.parametrize("absurd", [-1, 2**53, 2**63, 1.5, 12.0, "12", True, False, [], {}, 1e308])
@pytest.mark.parametrize("where", ["prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"])
def test_absurd_number_makes_the_whole_report_unusable(where: str, absurd: Any) -> None:
    """It is estimated then, never credited."""
    report: dict[str, Any] = {"prompt_tokens": 5, "completion_tokens": 6}
    details = {"cached_tokens": "prompt_tokens_details", "reasoning_tokens": "completion_tokens_details"}
    if where in details:
        report[details[where]] = {where: absurd}
    else:
        report[where] = absurd
    assert usage_from_body(Dialect.OPENAI, "chat.completions", body_of(report)) is None
    reader = UsageReader(Dialect.OPENAI, "chat.completions")
    reader.feed(SseEvent("", b"", {"usage": {"prompt_tokens": 1}}))
    reader.feed(SseEvent("", b"", {"usage": report}))
    assert (reader.usage(), reader.refused) == (None, 1)


def test_more_cached_input_than_input_is_refused() -> None:
    """The uncached rest would be negative and so would its price."""
    report = {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6}}
    assert usage_from_body(Dialect.OPENAI, "chat.completions", body_of(report)) is None


def test_more_reasoning_than_output_is_believed() -> None:
    """Some servers count the reasoning apart from the output."""
    report = {"prompt_tokens": 5, "completion_tokens": 6, "completion_tokens_details": {"reasoning_tokens": 300}}
    usage = usage_from_body(Dialect.OPENAI, "chat.completions", body_of(report))
    assert usage == Usage(5, 6, reasoning_tokens=300)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'{"usage":',
        b'["usage"]',
        b'{"a":{"usage":{"prompt_tokens":1}}}',
        b'{"a":{"usage":{"prompt_tokens":1}} }',
        b'{"a":{"usage":{"prompt_tokens":1}},"b":{}}',
        b'{"a":{"b":1,"usage":{"prompt_tokens":1},"c":2},"d":3}',
        b'{"usage":null,"a":{"usage":{"prompt_tokens":1}}}',
        b'[{"usage":{"prompt_tokens":1}}]',
        b'{"a\\"usage":{"prompt_tokens":1}}',
        b'{"text":"\\"usage\\":{\\"prompt_tokens\\":1}"}',
        b'{"text":"usage"}',
    ],
)
def test_answer_without_a_usage_of_its_own_reports_none(body: bytes) -> None:
    """Not a nested one, not one quoted in a text, not half of one."""
    assert usage_from_body(Dialect.OPENAI, "chat.completions", body) is None


def test_usage_at_the_end_of_a_large_answer_is_read_without_the_answer() -> None:
    """The front of this embedding list is no JSON, so it cannot have been parsed."""
    for back in (b"}\n", b',"x":{"a":[1]},"y":"}"}'):
        body = b'{"data":[' + b"1," * 100_000 + b'],"usage":{"prompt_tokens":8,"total_tokens":8}' + back
        assert usage_from_body(Dialect.OPENAI, "embeddings", body) == Usage(8, 0)


def test_answer_beyond_the_limit_is_not_read() -> None:
    """At the limit it is."""
    front, back = b'{"usage":{"total_tokens":8},"x":"', b'"}'
    at_limit = front + b"x" * (MAX_BODY_BYTES - len(front) - len(back)) + back
    assert usage_from_body(Dialect.OPENAI, "embeddings", at_limit) == Usage(8, 0)
    assert usage_from_body(Dialect.OPENAI, "embeddings", at_limit + b" ") is None


def read_stream(dialect: Dialect, route_name: str, *events: str) -> Usage | None:
    scanner, reader = SseScanner(grammar_of(route_name)), UsageReader(dialect, route_name)
    for event in scanner.feed("".join(f"{event}\n\n" for event in events).encode()):
        reader.feed(event)
    return reader.usage()


def test_openai_stream_reports_in_its_last_chunk() -> None:
    """All chunks before say null."""
    last = json.dumps({"choices": [], "usage": OPENAI})
    chunk = 'data: {"choices":[{}],"usage":null}'
    assert read_stream(Dialect.OPENAI, "chat.completions", chunk, f"data: {last}", "data: [DONE]") == FULL


def test_stream_that_reports_in_each_chunk_is_not_added_up() -> None:
    """Some servers send running totals; the last one counts."""
    events = [f'data: {{"usage":{{"prompt_tokens":5,"completion_tokens":{count}}}}}' for count in (1, 2, 3)]
    assert read_stream(Dialect.OPENAI, "chat.completions", *events) == Usage(5, 3)


def test_responses_stream_reports_inside_its_response() -> None:
    """In the terminal event."""
    data = json.dumps({"type": "response.completed", "response": {"usage": RESPONSES}})
    assert read_stream(Dialect.OPENAI, "responses", f"event: response.completed\ndata: {data}") == FULL


def test_anthropic_stream_reports_input_first_and_output_cumulatively() -> None:
    """``message_delta`` overrides what it repeats, and its nulls override nothing."""
    start = json.dumps({"type": "message_start", "message": {"usage": {**ANTHROPIC, "output_tokens": 1}}})
    delta = json.dumps({"type": "message_delta", "usage": {"output_tokens": 20, "input_tokens": None}})
    last = json.dumps({"type": "message_delta", "usage": {"output_tokens": 40}})
    events = [f"event: message_start\ndata: {start}", *(f"event: message_delta\ndata: {d}" for d in (delta, last))]
    assert read_stream(Dialect.ANTHROPIC, "messages", *events) == FULL


def test_stream_that_was_cut_off_reports_what_was_seen() -> None:
    """The input at least is known."""
    start = 'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":9}}}'
    assert read_stream(Dialect.ANTHROPIC, "messages", start) == Usage(9, 0)
    assert read_stream(Dialect.OPENAI, "chat.completions", 'data: {"choices":[]}') is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((400, 100), (100, 25)),
        ((401, 1), (101, 1)),
        ((0, 0), (0, 0)),
        ((400, 30_000, 95), (100, 95)),
    ],
)
def test_estimate_takes_four_bytes_a_token_and_one_token_an_event(
    arguments: tuple[int, ...], expected: tuple[int, int]
) -> None:
    """Rounded up, so that something is never free."""
    assert estimate_usage(*arguments) == Usage(*expected, source="estimated")
