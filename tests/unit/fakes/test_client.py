"""The raw client's parser and its rude manners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.fakes.client import BadResponseError, RawClient
from tests.fakes.upstream import ScriptedUpstream

_SPLIT_RESPONSES = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 200 Very Fine\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nx-a: 2\r\n\r\n"
    b"5;note=x\r\nhello\r\n1\r\n \r\n6\r\nw\xc3\xb6rld\r\n0\r\nx-trailer: t\r\n\r\n"
    b"HTTP/1.1 204 No Content\r\n\r\n"
)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
async def client(upstream: ScriptedUpstream) -> AsyncIterator[RawClient]:
    async with await RawClient.connect_url(upstream.url) as client:
        yield client


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_responses_cut_anywhere_are_read_the_same(size: int) -> None:
    """Interim responses, chunks with extensions, trailers and empty responses survive every cut."""
    client = RawClient()
    first, second = client.expect(), client.expect()
    for at in range(0, len(_SPLIT_RESPONSES), size):
        client.data_received(_SPLIT_RESPONSES[at : at + size])
    assert client.failure is None
    assert (first.status, first.reason, first.informational) == (200, "Very Fine", [100])
    assert (first.body, first.chunks, first.header_values("x-a")) == (
        "hello wörld".encode(),
        [b"hello", b" ", "wörld".encode()],
        ["1", "2"],
    )
    assert (first.ended, second.status, second.ended, client.unread) == (True, 204, True, b"")


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (b"SSH-2.0-x\r\n\r\n", "no HTTP response"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "no status line"),
        (b"HTTP/1.1 200 OK\r\nbad header : x\r\n\r\n", "no header line"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "both"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "no single number"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "no chunk size"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabcd\r\n", "longer than it says"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", "unknown transfer coding"),
    ],
)
async def test_response_that_breaks_the_rules_fails_the_reader(
    upstream: ScriptedUpstream, client: RawClient, sent: bytes, complaint: str
) -> None:
    """What no client should have to guess about is an error here, never a guess."""
    response = await client.start("GET", "/")
    call = await upstream.next_call()
    call.raw(sent)
    call.done()
    with pytest.raises(BadResponseError, match=complaint):
        await response.read_end()


async def test_bytes_beyond_the_response_are_kept_apart(upstream: ScriptedUpstream, client: RawClient) -> None:
    """Surplus bytes after a body do not become part of it."""
    response = await client.start("GET", "/")
    call = await upstream.next_call()
    call.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 surplus")
    call.done()
    await response.read_end()
    await client.wait_for(lambda: client.unread, "the surplus arrived")
    assert (response.body, client.unread) == (b"ok", b"HTTP/1.1 200 surplus")


async def test_body_of_a_head_response_is_not_awaited(upstream: ScriptedUpstream, client: RawClient) -> None:
    """HEAD has a length and no body."""
    response = await client.start("HEAD", "/")
    call = await upstream.next_call()
    call.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n")
    call.done()
    await response.read_end()
    assert (response.ended, response.body) == (True, b"")


async def test_dribbled_request_arrives_in_many_reads(upstream: ScriptedUpstream, client: RawClient) -> None:
    """A request sent byte by byte is whole in the end."""
    response = client.expect("POST")
    await client.dribble(client.make_request("POST", "/slow", body={"a": "é"}))
    call = await upstream.next_call()
    assert (call.json(), call.header("content-type")) == ({"a": "é"}, "application/json")
    await call.answer_json({})
    await response.read_end()
    assert response.ended


async def test_half_closed_client_tells_the_peer(upstream: ScriptedUpstream, client: RawClient) -> None:
    """FIN in one direction reaches the peer as the end of input."""
    await client.start("GET", "/")
    call = await upstream.next_call()
    client.shutdown_write()
    await call.client_gone()
    assert call.gone


async def test_marker_that_never_comes_shows_what_did(upstream: ScriptedUpstream, client: RawClient) -> None:
    """The failure carries the bytes that arrived in its place."""
    response = await client.start("GET", "/")
    call = await upstream.next_call()
    await call.answer(200, [], b"first second")
    assert await response.read_until(b"first ") == b"first "
    with pytest.raises(AssertionError, match="ended cleanly without b'third': b'second'"):
        await response.read_until(b"third")


async def test_response_expected_after_the_end_is_truncated(upstream: ScriptedUpstream, client: RawClient) -> None:
    """Nothing can come on a connection that is over."""
    response = await client.start("GET", "/")
    (await upstream.next_call()).close()
    await response.read_end()
    late = client.expect()
    assert (late.truncated, late.status) == (True, 0)
    with pytest.raises(AssertionError, match="before a response's head"):
        await late.read_head()


async def test_connection_outside_the_loopback_interface_is_refused() -> None:
    """The guard of the whole suite: no test reaches a network."""
    with pytest.raises(RuntimeError, match="loopback"):
        await RawClient.connect("192.0.2.1", 80)


async def test_address_where_nobody_listens_leaves_no_socket_behind() -> None:
    """A refused connection raises, and its socket is closed."""
    probe = ScriptedUpstream()
    await probe.start()
    await probe.close()
    with pytest.raises(ConnectionRefusedError):
        await RawClient.connect(probe.host, probe.port)
    assert len(asyncio.all_tasks()) == 1
