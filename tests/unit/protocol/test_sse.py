"""The observer of event streams, and the events that we make."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.protocol import sse
from proxy.protocol.routes import Dialect, Grammar
from proxy.protocol.sse import MAX_EVENT_BYTES, SseScanner, error_event, heartbeat, make_event

CHAT = (
    b'data: {"id":"c1","choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}\n\n'
    b'data: {"id":"c1","choices":[{"delta":{"content":"Gr\xc3\xbc\xc3\x9f \xe2\x80\xa8 \xf0\x9f\x98\x80"}}]}\n\n'
    b": keep-alive\n\n"
    b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}\n\n'
    b"data: [DONE]\n\n"
)
MESSAGES = (
    b"event: message_start\n"
    b'data: {"type":"message_start","message":{"id":"m1","usage":{"input_tokens":9,"output_tokens":1}}}\n\n'
    b'event: ping\ndata: {"type": "ping"}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"message_stop [DONE]"}}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":4}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
RESPONSES = (
    b'event: response.created\ndata: {"type":"response.created","response":{"error":null,"usage":null}}\n\n'
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"response.completed"}\n\n'
    b"event: response.completed\n"
    b'data: {"type":"response.completed","response":{"usage":{"input_tokens":9,"output_tokens":4}}}\n\n'
)
CORPUS = {
    "chat": (Grammar.DONE, CHAT, ["", ""], 5),
    "messages": (Grammar.MESSAGES, MESSAGES, ["message_start", "message_delta", "message_stop"], 5),
    "responses": (Grammar.RESPONSES, RESPONSES, ["response.completed"], 3),
}
ENDS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


def splits(stream: bytes) -> Iterator[list[bytes]]:
    """The whole, every cut in two, and every size of equal pieces up to 17 bytes."""
    yield [stream]
    for at in range(1, len(stream)):
        yield [stream[:at], stream[at:]]
    for size in range(1, 18):
        yield [stream[at : at + size] for at in range(0, len(stream), size)]


@pytest.mark.parametrize("front", [b"", b"\xef\xbb\xbf", b"\n\n", b": hello\n\n"])
@pytest.mark.parametrize("end", sorted(ENDS))
@pytest.mark.parametrize("name", sorted(CORPUS))
def test_every_split_of_a_stream_gives_the_same_findings(name: str, end: str, front: bytes) -> None:
    """Inside characters, inside names, between CR and LF: the cut never matters."""
    grammar, corpus, names, blocks = CORPUS[name]
    stream = (front + corpus).replace(b"\n", ENDS[end])
    for pieces in splits(stream):
        scanner = SseScanner(grammar)
        found = [event for piece in pieces for event in scanner.feed(piece)]
        assert [event.name for event in found] == names
        assert scanner.terminal
        assert scanner.terminal_at == len(stream)
        assert scanner.error is None
        assert scanner.seen_events == blocks + (b"hello" in front)
        assert scanner.at_boundary


@pytest.mark.parametrize("end", sorted(ENDS))
def test_terminal_is_behind_its_own_blank_line_and_not_behind_the_next(end: str) -> None:
    """More blank lines, or more events, may follow; the offset stays, and the first terminal counts."""
    line_end = ENDS[end]
    stream = b"data: x" + line_end * 2 + b"data: [DONE]" + line_end * 2
    rest = line_end * 3 + b"data: [DONE]" + line_end * 2
    for at in range(len(stream) + 1):
        scanner = SseScanner(Grammar.DONE)
        scanner.feed(stream[:at])
        scanner.feed(stream[at:])
        for byte in range(len(rest)):
            scanner.feed(rest[byte : byte + 1])
        assert scanner.terminal_at == len(stream)
        assert scanner.seen_events == 3


def test_dull_reads_are_counted_and_offsets_go_on() -> None:
    """The quick way through keeps the same books as the careful one."""
    scanner = SseScanner(Grammar.DONE)
    chunk = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
    reads = [chunk, chunk, chunk * 5, chunk + b"\n" + chunk, chunk + b"\n\n" + chunk, b"\n" + chunk, b"\n\n", chunk]
    assert [scanner.feed(read) for read in reads] == [[]] * len(reads)
    assert scanner.seen_events == 13
    scanner.feed(b"data: [DONE]\n\n")
    assert scanner.terminal_at == sum(map(len, reads)) + len(b"data: [DONE]\n\n")


def test_boundary_is_known_at_each_byte() -> None:
    """An event of our own may only follow a blank line, or start the stream."""
    scanner = SseScanner(Grammar.DONE)
    assert scanner.at_boundary
    known = []
    for byte in b"data: x\n\n\ndata: y\r\n\r\n":
        scanner.feed(bytes([byte]))
        known.append(scanner.at_boundary)
    assert known == [False] * 8 + [True] * 2 + [False] * 9 + [True] * 2


@pytest.mark.parametrize(
    ("grammar", "stream"),
    [
        (Grammar.DONE, b'data: {"choices":[{"delta":{"content":"[DONE]"}}]}\n\n'),
        (Grammar.DONE, b"data: [DONE]\n"),
        (Grammar.DONE, b"data: [DONE]"),
        (Grammar.DONE, b": [DONE]\n\n"),
        (Grammar.DONE, b"event: [DONE]\n\n"),
        (Grammar.MESSAGES, b"data: [DONE]\n\n"),
        (Grammar.MESSAGES, b"event: message_stop\n\n"),
        (Grammar.MESSAGES, b'event: content_block_delta\ndata: {"type":"message_stop"}\n\n'),
        (Grammar.RESPONSES, b"data: [DONE]\n\n"),
        (Grammar.RESPONSES, b'event: response.output_text.done\ndata: {"text":"response.completed"}\n\n'),
        (Grammar.LOOSE, b"data: [DONE]\n\n"),
    ],
)
def test_what_only_looks_like_a_terminal_event_is_none(grammar: Grammar, stream: bytes) -> None:
    """A stream cut off behind it must not count as complete."""
    scanner = SseScanner(grammar)
    assert scanner.feed(stream) == []
    assert (scanner.terminal, scanner.terminal_at) == (False, -1)


@pytest.mark.parametrize(
    ("grammar", "stream"),
    [
        (Grammar.DONE, b"data:[DONE]\n\n"),
        (Grammar.MESSAGES, b'data: {"type": "message_stop"}\n\n'),
        (Grammar.RESPONSES, b'data: {"type":"response.completed"}\n\n'),
        (Grammar.RESPONSES, b"event:response.incomplete\ndata: {}\n\n"),
        (Grammar.RESPONSES, b"event: response.failed\ndata: {}\n\n"),
    ],
)
def test_terminal_event_is_known_in_each_spelling(grammar: Grammar, stream: bytes) -> None:
    """By its name, or by the type in its data when a server sends no names."""
    scanner = SseScanner(grammar)
    assert len(scanner.feed(stream)) == 1
    assert scanner.terminal


@pytest.mark.parametrize(
    ("grammar", "stream", "data"),
    [
        (Grammar.DONE, b'data: {"error":{"message":"x"}}\n\n', b'{"error":{"message":"x"}}'),
        (Grammar.DONE, b'data: {"object": "error","message":"x"}\n\n', b'{"object": "error","message":"x"}'),
        (Grammar.DONE, b"event: error\ndata: plain words\n\n", b"plain words"),
        (Grammar.MESSAGES, b'event: error\ndata: {"type":"error","error":{}}\n\n', b'{"type":"error","error":{}}'),
        (Grammar.RESPONSES, b'event: error\ndata: {"type":"error"}\n\n', b'{"type":"error"}'),
        (Grammar.RESPONSES, b'event: response.failed\ndata: {"a":1}\n\n', b'{"a":1}'),
        (Grammar.LOOSE, b'data: {"error":"x"}\n\n', b'{"error":"x"}'),
    ],
)
def test_error_inside_a_stream_is_kept_and_the_first_one_stays(grammar: Grammar, stream: bytes, data: bytes) -> None:
    """The later ones follow from it."""
    scanner = SseScanner(grammar)
    scanner.feed(stream)
    scanner.feed(b'event: error\ndata: {"error":"later"}\n\n')
    assert scanner.error == data


@pytest.mark.parametrize("grammar", list(Grammar))
def test_empty_or_nested_error_is_no_error(grammar: Grammar) -> None:
    """Null is what most servers send in every event; a word in a text is a word."""
    scanner = SseScanner(grammar)
    scanner.feed(b'data: {"error":null,"response":{"error":{"message":"inner"}},"text":"an error"}\n\n')
    assert scanner.error is None


def test_only_the_grammars_with_a_terminal_event_need_one() -> None:
    """Audio and images end when the body ends."""
    needing = {grammar for grammar in Grammar if SseScanner(grammar).needs_terminal}
    assert needing == set(Grammar) - {Grammar.LOOSE}


def test_event_beyond_the_limit_is_skipped_and_what_follows_is_seen() -> None:
    """Its bytes are not kept, it is counted once, and the stream goes on."""
    scanner = SseScanner(Grammar.DONE)
    piece = b"x" * 65_536
    scanner.feed(b"data: ")
    for _ in range(40):
        assert scanner.feed(piece) == []
        assert not scanner.at_boundary
        assert len(scanner._block) <= MAX_EVENT_BYTES + len(piece)
    assert scanner.feed(b"\n\ndata: [DONE]\n\n")[0].data == b"[DONE]"
    assert (scanner.overflows, scanner.seen_events, scanner.terminal) == (1, 2, True)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("at_once", [True, False])
def test_terminal_event_beyond_the_limit_is_known_by_its_name(bom: bytes, at_once: bool) -> None:
    """``response.completed`` holds the whole answer and may be large; its usage is then unknown."""
    scanner = SseScanner(Grammar.RESPONSES)
    stream = bom + b'event: response.completed\ndata: {"x":"' + b"x" * MAX_EVENT_BYTES + b'"}\n\n'
    pieces = [stream] if at_once else [stream[:600_000], stream[600_000:]]
    found = [event for piece in pieces for event in scanner.feed(piece)]
    assert [(event.name, event.data, event.fields) for event in found] == [("response.completed", b"", None)]
    assert (scanner.terminal_at, scanner.overflows) == (len(stream), 1)


@pytest.mark.parametrize(("size", "overflows"), [(MAX_EVENT_BYTES, 0), (MAX_EVENT_BYTES + 1, 1)])
@pytest.mark.parametrize("cut", [None, 10, MAX_EVENT_BYTES, MAX_EVENT_BYTES + 1, MAX_EVENT_BYTES + 2])
def test_limit_of_an_event_is_exact_for_every_cut(size: int, overflows: int, cut: int | None) -> None:
    """At the limit it is read, one byte more is not, whether it came at once or in two."""
    front, back = b'data: {"usage":{"total_tokens":1},"x":"', b'"}'
    stream = front + b"x" * (size - len(front) - len(back)) + back + b"\n\n"
    scanner = SseScanner(Grammar.LOOSE)
    scanner.feed(b": first\n\n")
    found = scanner.feed(stream) if cut is None else scanner.feed(stream[:cut]) + scanner.feed(stream[cut:])
    assert (len(found), scanner.overflows) == (1 - overflows, overflows)


def test_limit_counts_each_event_and_not_the_read() -> None:
    """A read may hold more than the limit in many dull events."""
    scanner = SseScanner(Grammar.DONE)
    scanner.feed(b"data: x\n\n" * (MAX_EVENT_BYTES // 9 + 10))
    assert (scanner.overflows, scanner.seen_events) == (0, MAX_EVENT_BYTES // 9 + 10)


def test_data_lines_are_joined_and_other_fields_are_ignored() -> None:
    """One space behind the colon belongs to the framing, a second one to the data."""
    scanner = SseScanner(Grammar.LOOSE)
    stream = b'id: 7\ndata: {"usage":\nretry: 5\ndata:{}, "a":"error"\ndata:  }\ndatabase: x\n:data: y\nevent: a: b'
    [event] = scanner.feed(stream + b"\n\n")
    assert (event.name, event.data) == ("a: b", b'{"usage":\n{}, "a":"error"\n }')
    assert event.fields == {"usage": {}, "a": "error"}


def test_events_of_one_read_come_in_their_order() -> None:
    """Dull ones between them are left out."""
    scanner = SseScanner(Grammar.MESSAGES)
    assert [event.name for event in scanner.feed(MESSAGES)] == ["message_start", "message_delta", "message_stop"]


def test_made_event_keeps_its_data_whole() -> None:
    """A line end inside the data becomes another data line."""
    assert make_event(b"a\nb\r\nc\rd", "x") == b"event: x\ndata: a\ndata: b\ndata: c\ndata: d\n\n"
    assert make_event(b"") == b"data: \n\n"


@pytest.mark.parametrize(
    ("dialect", "route_name", "expected"),
    [
        (Dialect.OPENAI, "chat.completions", b"data: {}\n\n"),
        (Dialect.OPENAI, "images.generations", b"data: {}\n\n"),
        (Dialect.OPENAI, "responses", b"event: error\ndata: {}\n\n"),
        (Dialect.ANTHROPIC, "messages", b"event: error\ndata: {}\n\n"),
        (Dialect.ANTHROPIC, "sessions", b"event: error\ndata: {}\n\n"),
        (Dialect.MISTRAL, "fim.completions", b"data: {}\n\n"),
        (Dialect.MISTRAL, "responses", b"event: error\ndata: {}\n\n"),
    ],
)
def test_error_event_has_a_name_where_streams_have_names(dialect: Dialect, route_name: str, expected: bytes) -> None:
    """Anthropic's SDKs drop events without one."""
    assert error_event(dialect, route_name, b"{}") == expected


@pytest.mark.parametrize("dialect", list(Dialect))
def test_heartbeat_decides_nothing(dialect: Dialect) -> None:
    """It is one whole block, and no scanner takes it for anything."""
    for grammar in Grammar:
        scanner = SseScanner(grammar)
        assert scanner.feed(heartbeat(dialect)) == []
        assert (scanner.at_boundary, scanner.seen_events, scanner.terminal, scanner.error) == (True, 1, False, None)


def test_first_bytes_of_a_skipped_event_are_few() -> None:
    """What is kept of it is its name."""
    scanner = SseScanner(Grammar.DONE)
    scanner.feed(b"data: " + b"x" * (MAX_EVENT_BYTES + 100))
    assert scanner._skipped is not None
    assert len(scanner._skipped) == sse._HEAD_BYTES
    assert len(scanner._block) == 2
