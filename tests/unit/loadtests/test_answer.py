"""The response reader of the load drivers, under every split of what comes."""

from __future__ import annotations

import pytest

from proxy.cli.bench.answer import AnswerReader, BadAnswerError, is_shared

WHOLE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"a":"b\n"} '
EVENTS = b"data: 1\n\ndata: 2\n\n", b"data: 3\n", b"\n"
STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in EVENTS)
    + b"0\r\nx-trailer: 1\r\n\r\n"
)


def read(*pieces: bytes) -> AnswerReader:
    """The reader after ``pieces``, of which only the last may complete the response."""
    reader = AnswerReader()
    whole = [reader.feed(piece) for piece in pieces]

    assert whole == [False] * (len(pieces) - 1) + [True]
    return reader


@pytest.mark.parametrize("cut", range(1, len(WHOLE)))
def test_a_counted_answer_is_whole_with_its_last_byte(cut: int) -> None:
    """Wherever it is cut in two."""
    reader = read(WHOLE[:cut], WHOLE[cut:])

    assert (reader.status, reader.body_bytes, reader.events, reader.keeps_alive) == (200, 11, 0, True)


@pytest.mark.parametrize("cut", range(1, len(STREAM)))
def test_a_chunked_stream_is_whole_with_its_trailer_and_its_events_are_counted(cut: int) -> None:
    """Also an event whose end lies in another chunk than its text."""
    reader = read(STREAM[:cut], STREAM[cut:])

    assert (reader.status, reader.body_bytes, reader.events) == (200, 27, 3)


def test_a_stream_that_comes_byte_by_byte_is_the_same_stream() -> None:
    """The finest split there is."""
    reader = read(*[STREAM[place : place + 1] for place in range(len(STREAM))])

    assert (reader.body_bytes, reader.events) == (27, 3)


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    """And the connection is not used again."""
    reader = AnswerReader()

    assert reader.feed(b"HTTP/1.0 200 OK\r\n\r\nabc") is False
    assert (reader.close(), reader.keeps_alive, reader.body_bytes) == (True, False, 3)


def test_an_interim_answer_is_passed_over() -> None:
    """100 Continue is not the answer."""
    assert read(b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE).status == 200


def test_a_close_is_announced_by_its_header() -> None:
    """Whatever its case."""
    assert read(WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: Close\r\n\r\n", 1)).keeps_alive is False


@pytest.mark.parametrize("data", [b"hello\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"x" * 70_000])
def test_what_is_no_response_is_refused(data: bytes) -> None:
    """A load that talks to the wrong port says so."""
    with pytest.raises(BadAnswerError):
        AnswerReader().feed(data)


def test_a_chunk_without_a_size_is_refused() -> None:
    """Broken framing is a failure of the gateway."""
    reader = AnswerReader()
    with pytest.raises(BadAnswerError, match="chunk size"):
        reader.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")


@pytest.mark.parametrize(
    ("header", "shared"),
    [
        (b"cache-status: sameflight; fwd=miss; collapsed", True),
        (b"cache-status: sameflight; hit; ttl=3", True),
        (b"x-cache: HIT", True),
        (b"cache-status: sameflight; fwd=miss", False),
        (b"x-cache: MISS", False),
    ],
)
def test_a_cache_says_whether_a_call_was_spared(header: bytes, shared: bool) -> None:
    """RFC 9211, and what came before it."""
    assert is_shared(read(WHOLE.replace(b"\r\n\r\n", b"\r\n" + header + b"\r\n\r\n", 1))) is shared
