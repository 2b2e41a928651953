"""Laws of the stream observer: it agrees with a plain reader of the specification, however a stream is cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.protocol import sse
from proxy.protocol.routes import Dialect, Grammar
from proxy.protocol.sse import SseEvent, SseScanner, make_event
from proxy.protocol.usage import UsageReader

TERMINAL_RESPONSES = ("response.completed", "response.failed", "response.incomplete")
BOM = b"\xef\xbb\xbf"


Case = tuple[Grammar, tuple[bytes, list[bytes], list[bytes]]]


class Reading:
    """What a plain, slow reader of the specification makes of a whole stream."""

    def __init__(self, grammar: Grammar, stream: bytes) -> None:
        self.grammar = grammar
        self.events: list[SseEvent] = []
        self.terminal_at = -1
        self.error: bytes | None = None
        self.seen_events = 0
        self.at_boundary = True
        block: list[bytes] = []
        start = 0
        for line, end in lines_of(stream):
            if end is None:
                self.at_boundary = not (block or line)
            elif line:
                block.append(line if start else line.removeprefix(BOM))
            else:
                self.dispatch([line for line in block if line], end)
                block = []
            start = end or 0

    def dispatch(self, block: list[bytes], end: int) -> None:
        if not block:
            return
        self.seen_events += 1
        name, data = "", []
        for line in block:
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"event":
                name = value.decode("utf-8", "replace")
            elif field == b"data":
                data.append(value)
        if data:
            self.judge(name, b"\n".join(data), end)

    def judge(self, name: str, data: bytes, end: int) -> None:
        if self.grammar is Grammar.DONE and data.startswith(b"[DONE]"):
            return self.keep(SseEvent(name, data, None), end)
        fields: dict[str, Any] | None = None
        try:
            parsed = json.loads(data)
            fields = parsed if isinstance(parsed, dict) else None
        except ValueError:
            pass
        if not name and fields and isinstance(fields.get("type"), str):
            name = fields["type"]
        event = SseEvent(name, data, fields)
        if name == "error" or (fields and (fields.get("error") or fields.get("object") == "error")):
            self.error = data if self.error is None else self.error
            return self.keep(event)
        if self.grammar is Grammar.RESPONSES and name in TERMINAL_RESPONSES:
            if name == "response.failed" and self.error is None:
                self.error = data
            return self.keep(event, end)
        if self.grammar is Grammar.MESSAGES and name in ("message_start", "message_delta"):
            return self.keep(event)
        if self.grammar is Grammar.MESSAGES and name == "message_stop":
            return self.keep(event, end)
        if self.grammar in (Grammar.DONE, Grammar.LOOSE) and fields and isinstance(fields.get("usage"), dict):
            return self.keep(event)
        return None

    def keep(self, event: SseEvent, end: int = -1) -> None:
        self.events.append(event)
        if end >= 0 and self.terminal_at < 0:
            self.terminal_at = end


def lines_of(stream: bytes) -> Iterator[tuple[bytes, int | None]]:
    """Each line with the offset behind its end; the last, unended one with ``None``."""
    start = at = 0
    while at < len(stream):
        if stream[at] in b"\r\n":
            end = at + 2 if stream[at : at + 2] == b"\r\n" else at + 1
            yield stream[start:at], end
            start = at = end
        else:
            at += 1
    yield stream[start:], None


def scan(grammar: Grammar, pieces: list[bytes]) -> tuple[SseScanner, list[SseEvent]]:
    scanner = SseScanner(grammar)
    return scanner, [event for piece in pieces for event in scanner.feed(piece)]


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


CHUNK = '{"id":"c","choices":[{"delta":{"content":"%s"}}]%s}'
COMMON = [
    [": keep-alive"],
    ["event: error", 'data: {"message":"no"}'],
    ["event:error", "data: broken {"],
    ['data: {"error":{"message":"no"}}'],
    ["data:  two spaces", "data:none", "data"],
    ["id: 1", "retry: 10", "eventually: x", "data: {", "data: }"],
    ["event: nothing"],
    ["\ufeffdata: x"],
    ["data: " + CHUNK % ("\u2028é\x85", "")],
    ["data: " + CHUNK % ("say \\\"usage\\\" or \\\"error\\\" [DONE] message_stop complete", "")],
]
CHAT = [
    ["data: " + CHUNK % ("hi", "")],
    ["data: " + CHUNK % ("hi", ',"usage":null')],
    ['data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}'],
    ['data:{"choices":[],"usage" : {"prompt_tokens":5}}'],
    ['data: {"object":"error","message":"no"}'],
    ["data: [DONE]"],
    ["data:[DONE]"],
]
MESSAGES = [
    [
        "event: message_start",
        'data: {"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":1}}}',
    ],
    ["event: content_block_delta", 'data: {"type":"content_block_delta","delta":{"text":"message_stop"}}'],
    ["event: message_delta", 'data: {"type":"message_delta","usage":{"output_tokens":9}}'],
    ['data: {"type":"message_delta","usage":{"output_tokens":7}}'],
    ["event: message_stop", 'data: {"type":"message_stop"}'],
    ["event: message_stop"],
    ["event: ping", "data: {}"],
]
RESPONSES = [
    ["event: response.output_text.delta", 'data: {"delta":"response.completed"}'],
    ["event: response.created", 'data: {"type":"response.created","response":{"error":null,"usage":null}}'],
    [
        "event: response.completed",
        'data: {"type":"response.completed","response":{"usage":{"input_tokens":5,"output_tokens":1}}}',
    ],
    ['data: {"type":"response.incomplete","response":{}}'],
    ["event: response.failed", 'data: {"type":"response.failed","response":{"error":{}}}'],
    ["event: response.completed"],
]
OF_GRAMMAR = {
    Grammar.DONE: CHAT,
    Grammar.LOOSE: CHAT,
    Grammar.MESSAGES: MESSAGES,
    Grammar.RESPONSES: RESPONSES,
}
JUNK = [b"\n", b"\n\n", b"\r", b"\r\n", b":", b" ", b"data: x", b"event", b"error", b"[DONE]", b"a", BOM, b"\0"]


@st.composite
def events_of(draw: st.DrawFn, grammar: Grammar) -> bytes:
    """One to four events with one kind of line end, or with any."""
    kind = draw(st.sampled_from(["\n", "\n", "\r\n", "\r", ""]))
    some = st.sampled_from(OF_GRAMMAR[grammar] * 2 + COMMON)
    text = ""
    for event in draw(st.lists(some, min_size=1, max_size=4)):
        for line in [*event, ""]:
            text += line + (kind or draw(st.sampled_from(["\n", "\r\n", "\r"])))
    return text.encode()


@st.composite
def streams_of(draw: st.DrawFn, grammar: Grammar) -> bytes:
    """Mostly events, sometimes with rubbish between them, sometimes cut off."""
    junk = st.lists(st.sampled_from(JUNK), min_size=1, max_size=3).map(b"".join)
    events = events_of(grammar)
    stream = b"".join(draw(st.lists(st.one_of(events, events, events, junk), max_size=4)))
    stream = draw(st.sampled_from([b"", b"", b"", BOM])) + stream
    return stream[: draw(st.integers(0, len(stream)))] if draw(st.integers(0, 3)) == 0 else stream


@st.composite
def cut_streams(draw: st.DrawFn, grammar: Grammar) -> tuple[bytes, list[bytes], list[bytes]]:
    """A stream and two ways to cut it; cuts prefer the neighbourhood of line ends."""
    stream = draw(streams_of(grammar))
    ends = [at for at, byte in enumerate(stream) if byte in b"\r\n"] or [0]
    near = st.tuples(st.sampled_from(ends), st.integers(-1, 2)).map(sum)
    where = st.lists(st.one_of(near, near, st.integers(0, len(stream))), max_size=8)
    return stream, cut(stream, draw(where)), cut(stream, draw(where))


grammars = st.sampled_from(Grammar)
cases = grammars.flatmap(lambda grammar: st.tuples(st.just(grammar), cut_streams(grammar)))

@settings(deadline=None)
@given(cases)
def test_scanner_agrees_with_a_plain_reader_however_the_stream_is_cut(case: Case) -> None:
    """Same events, same terminal, same error, same count, and the same knowledge of where events end."""
    grammar, (stream, pieces, _) = case
    expected = Reading(grammar, stream)
    scanner, found = scan(grammar, pieces)
    assert found == expected.events
    assert scanner.terminal_at == expected.terminal_at
    assert scanner.terminal == (expected.terminal_at >= 0)
    assert scanner.error == expected.error
    assert scanner.seen_events == expected.seen_events
    assert scanner.at_boundary == expected.at_boundary
    assert scanner.overflows == 0


@settings(deadline=None)
@given(cases)
def test_stream_in_single_bytes_is_the_same_stream(case: Case) -> None:
    """And at each byte the scanner knows whether an event of our own might follow."""
    grammar, (stream, _, _) = case
    stream = stream[:300]
    whole, expected = scan(grammar, [stream])
    scanner = SseScanner(grammar)
    found: list[SseEvent] = []
    for at in range(len(stream)):
        found += scanner.feed(stream[at : at + 1])
        assert scanner.at_boundary == Reading(grammar, stream[: at + 1]).at_boundary
    assert found == expected
    assert (scanner.terminal_at, scanner.error, scanner.seen_events) == (
        whole.terminal_at,
        whole.error,
        whole.seen_events,
    )


@pytest.mark.long
@settings(deadline=None)
@given(cases)
def test_events_too_large_to_keep_do_not_make_the_result_depend_on_the_cuts(case: Case) -> None:
    """With a limit that most events exceed, everything that is known stays the same for any cuts."""
    grammar, (_, one, other) = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "MAX_EVENT_BYTES", 40)
        patch.setattr(sse, "_HEAD_BYTES", 30)
        first, found = scan(grammar, one)
        second, again = scan(grammar, other)
    assert found == again
    names = ("terminal", "terminal_at", "error", "seen_events", "overflows", "at_boundary")
    pending = len(first._block), len(second._block)
    state = [{name: getattr(scanner, name) for name in names} for scanner in (first, second)]
    if max(pending) > 40 or first._skipped is not None or second._skipped is not None:
        # An event that is still open may or may not have been given up on already.
        for known in state:
            known.pop("overflows")
    assert state[0] == state[1]


SPOKEN = {
    Grammar.DONE: (Dialect.OPENAI, "chat.completions"),
    Grammar.MESSAGES: (Dialect.ANTHROPIC, "messages"),
    Grammar.RESPONSES: (Dialect.OPENAI, "responses"),
    Grammar.LOOSE: (Dialect.OPENAI, "images.generations"),
}


@pytest.mark.long
@settings(deadline=None)
@given(cases)
def test_usage_does_not_depend_on_the_cuts(case: Case) -> None:
    """What is charged is the same for every network."""
    grammar, (stream, *cuts) = case
    usages = []
    for pieces in ([stream], *cuts):
        reader = UsageReader(*SPOKEN[grammar])
        for event in scan(grammar, pieces)[1]:
            reader.feed(event)
        usages.append(reader.usage())
    assert usages[0] == usages[1] == usages[2]


@given(st.binary(max_size=60), st.sampled_from(["", "error", "ping"]))
def test_event_that_we_make_is_exactly_one_event(data: bytes, name: str) -> None:
    """Line ends inside the data cannot start an event of their own."""
    stream = make_event(data, name)
    reading = Reading(Grammar.LOOSE, stream)
    scanner, _ = scan(Grammar.LOOSE, [stream])
    assert (reading.seen_events, reading.at_boundary) == (1, True)
    assert (scanner.seen_events, scanner.at_boundary) == (1, True)
    assert stream.count(b"\n\n") == 1
