"""The reader of responses, without a socket: every split, every framing, every bound."""

from __future__ import annotations

import pytest

from proxy.errors import Kind, ProxyError
from proxy.protocol.message import ResponseHead
from proxy.upstream.counts import Caps
from proxy.upstream.response import ResponseReader
from tests.fakes.wire_server import CHUNKED, LAST_CHUNK, answer, chunk

CAPS = Caps(head_bytes=1000, headers=10, informational=3, body_bytes=5000)


def make_reader(*, is_head: bool = False) -> ResponseReader:
    reader = ResponseReader(CAPS)
    reader.begin(is_head)
    return reader


def read(*reads: bytes, is_head: bool = False) -> tuple[ResponseReader, ResponseHead | None, bytes]:
    """What a response in these reads comes to."""
    reader, body, head = make_reader(is_head=is_head), b"", None
    for data in reads:
        reader.feed(data)
        body += reader.take_body()
        head = reader.head or head
        reader.head = None
    return reader, head, body


def refusal(*reads: bytes, is_head: bool = False) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        read(*reads, is_head=is_head)
    return caught.value


STREAM = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n"
    + chunk(b"data: {}\n\n")
    + b"A;ext=1\r\n0123456789\r\n"
    + b"0\r\nx-trailer: 1\r\n\r\n"
)


@pytest.mark.parametrize("cut", range(1, len(STREAM)))
def test_chunked_answer_split_anywhere_reads_the_same(cut: int) -> None:
    """Wherever a read ends, head and body come out equal and the connection stays fit."""
    reader, head, body = read(STREAM[:cut], STREAM[cut:])
    assert body == b"data: {}\n\n0123456789"
    assert head is not None
    assert (head.status, head.headers) == (200, [(b"transfer-encoding", b"chunked"), (b"x-a", b"1")])
    assert (reader.ended, reader.reusable, reader.surplus) == (True, True, False)


def test_chunked_answer_in_single_bytes_reads_the_same() -> None:
    """One byte at a time is the worst case of the above."""
    reader, _, body = read(*[bytes([byte]) for byte in STREAM])
    assert (body, reader.ended) == (b"data: {}\n\n0123456789", True)


def test_pieces_of_one_read_are_joined() -> None:
    """Many small chunks in one read are one piece of body."""
    reader = make_reader()
    reader.feed(CHUNKED + chunk(b"a") * 50 + LAST_CHUNK)
    assert (reader.take_body(), reader.take_body()) == (b"a" * 50, b"")


def test_reader_reads_one_response_after_the_other() -> None:
    """Nothing of the first is left when the second begins."""
    reader = make_reader()
    for text in (b"one", b"two"):
        reader.begin(False)
        reader.feed(answer(text))
        assert (reader.take_body(), reader.ended, reader.reusable) == (text, True, True)


@pytest.mark.parametrize("extra", [b"H", b"x", b"HTTP/1.1 200 OK\r\n", answer(b"poison")])
def test_surplus_after_the_message_is_noticed(extra: bytes) -> None:
    """The message counts, the connection does not, and not a byte of the surplus shows."""
    reader, head, body = read(answer(b"one") + extra)
    assert (body, reader.ended, reader.surplus, reader.reusable) == (b"one", True, True, False)
    assert head is not None
    assert head.headers == [(b"content-length", b"3")]


def test_surplus_after_a_last_message_is_noticed() -> None:
    """Also where the connection would have been closed anyway."""
    reader, _, body = read(answer(b"one", headers=[b"connection: close"]) + b"x")
    assert (body, reader.ended, reader.surplus) == (b"one", True, True)


def test_answer_to_head_ends_with_its_head() -> None:
    """Framing headers announce what a GET would have got."""
    reader, head, body = read(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", is_head=True)
    assert (head is not None, body, reader.ended, reader.reusable) == (True, b"", True, True)
    reader.begin(False)
    reader.feed(answer(b"next"))
    assert reader.take_body() == b"next"


@pytest.mark.parametrize("tail", [b"surplus!!", b"s", answer()])
def test_answer_to_head_with_a_body_makes_the_connection_unfit(tail: bytes) -> None:
    """A server that sends the body anyway has broken the connection for everybody after."""
    reader, _, body = read(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n" + tail, is_head=True)
    assert (body, reader.ended, reader.surplus, reader.reusable) == (b"", True, True, False)


@pytest.mark.parametrize("tail", [chunk(b"abc"), b"3"])
def test_chunked_answer_to_head_with_a_chunk_makes_the_connection_unfit(tail: bytes) -> None:
    """The same, where the surplus looks like a chunk or the beginning of one."""
    reader, _, body = read(CHUNKED + tail, is_head=True)
    assert (body, reader.surplus, reader.reusable) == (b"", True, False)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_status_without_body_ends_with_its_head(status: str) -> None:
    """RFC 9112, section 6.3, rule 1."""
    reader, _, body = read(b"HTTP/1.1 %b\r\n\r\n" % status.encode())
    assert (body, reader.ended, reader.reusable, reader.close_delimited) == (b"", True, True, False)


def test_answer_without_framing_ends_with_the_connection() -> None:
    """RFC 9112, section 6.3, rule 8."""
    reader, _, body = read(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert (body, reader.ended, reader.reusable, reader.close_delimited) == (b"abc", False, False, True)


@pytest.mark.parametrize("header", [b"connection: close", b"Connection: CLOSE, x"])
def test_connection_close_makes_the_connection_unfit(header: bytes) -> None:
    """The upstream says so, and the message ends by its length all the same."""
    reader, _, _ = read(answer(headers=[header]))
    assert (reader.ended, reader.reusable, reader.close_delimited) == (True, False, False)


def test_http_1_0_is_not_kept() -> None:
    """Unless it asks to be."""
    assert not read(b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n")[0].reusable
    assert read(b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n")[0].reusable


DOUBTFUL = {
    "length then chunks": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks then length": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
    "list of lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nab",
    "signed length": b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nab",
    "unknown coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nab",
    "coding before chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding twice": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks in 1.0": b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n0\r\n\r\n",
    "http 2": b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    "folded header": b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n",
    "space before colon": b"HTTP/1.1 200 OK\r\ncontent-length : 0\r\n\r\n",
    "control byte": b"HTTP/1.1 200 OK\r\nx: a\x01b\r\ncontent-length: 0\r\n\r\n",
    "hexadecimal prefix": CHUNKED + b"0x1\r\na\r\n0\r\n\r\n",
    "chunk too long for its size": CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
    "not http": b"\x16\x03\x01\x00",
    "switching protocols": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    "switching without upgrade": b"HTTP/1.1 101 Switching\r\n\r\n",
}


@pytest.mark.parametrize("raw", DOUBTFUL.values(), ids=DOUBTFUL)
def test_doubtful_response_is_refused_however_it_is_split(raw: bytes) -> None:
    """No guess is made about a message with more than one meaning."""
    assert refusal(raw).kind is Kind.UPSTREAM_BAD_RESPONSE
    assert refusal(*[bytes([byte]) for byte in raw]).kind is Kind.UPSTREAM_BAD_RESPONSE


@pytest.mark.parametrize("name", ["switching protocols", "switching without upgrade"])
def test_switching_protocols_is_named(name: str) -> None:
    """Nobody asked for it, so somebody will want to know who did it."""
    assert refusal(DOUBTFUL[name]).why == "switching_protocols"


BOMBS = {
    "one value": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 2000 + b"\r\ncontent-length: 0\r\n\r\n",
    "one endless value": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 2000,
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 11 + b"content-length: 0\r\n\r\n",
    "informational": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 4,
    "informational bytes": b"HTTP/1.1 103 Early Hints\r\nlink: " + b"a" * 990 + b"\r\n\r\n",
    "chunk extension": CHUNKED + b"1;" + b"e" * 2000,
    "trailer": CHUNKED + chunk(b"a") + b"0\r\nx: " + b"a" * 2000,
}


@pytest.mark.parametrize("raw", BOMBS.values(), ids=BOMBS)
def test_bytes_that_bring_no_body_are_bounded_however_they_are_split(raw: bytes) -> None:
    """Heads, 1xx, chunk extensions and trailers end at the cap."""
    assert refusal(*[raw[i : i + 100] for i in range(0, len(raw), 100)]).kind is Kind.UPSTREAM_BAD_RESPONSE
    if raw != BOMBS["trailer"]:  # came with body bytes in one read, which has a bound of its own
        assert refusal(raw).kind is Kind.UPSTREAM_BAD_RESPONSE


def test_small_head_with_a_large_body_in_one_read_is_fine() -> None:
    """The cap on heads does not count the body that came with them."""
    assert read(answer(b"x" * 4000))[2] == b"x" * 4000


def test_body_is_counted_where_its_length_is_unknown() -> None:
    """Chunks that add up to more than the cap are refused in the read that passes it."""
    assert refusal(CHUNKED, chunk(b"x" * 3000), chunk(b"x" * 3000)).kind is Kind.UPSTREAM_TOO_LARGE


def test_announced_body_above_the_cap_is_refused_with_its_head() -> None:
    """Before a byte of it was read; the answer to HEAD only talks about it."""
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: 5001\r\n\r\n"
    assert refusal(raw).kind is Kind.UPSTREAM_TOO_LARGE
    assert read(raw, is_head=True)[0].ended


def test_values_are_kept_as_they_are() -> None:
    """Bytes above 127 and spaces inside pass; names become lower case."""
    _, head, _ = read(b"HTTP/1.1 200 OK\r\nX-Name: caf\xc3\xa9  \xff\r\ncontent-length: 0\r\n\r\n")
    assert head is not None
    assert head.headers[0] == (b"x-name", b"caf\xc3\xa9  \xff")
