"""The scripted upstream, driven by the raw client: each proves that the other does what it says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from tests.fakes.client import RawClient
from tests.fakes.gates import Gate, run_ticks, wait_until
from tests.fakes.upstream import Call, ScriptedUpstream


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
async def client(upstream: ScriptedUpstream) -> AsyncIterator[RawClient]:
    async with await RawClient.connect_url(upstream.url) as client:
        yield client


async def test_request_reaches_the_test_as_it_was_sent(upstream: ScriptedUpstream, client: RawClient) -> None:
    """Method, target, header names, their order and the body are those of the wire."""
    response = await client.start("POST", "/v1/x?q=1", [("X-Two", "2"), ("x-one", "1")], b'{"a": 1}')
    call = await upstream.next_call()
    assert (call.method, call.target, call.path) == ("POST", "/v1/x?q=1", "/v1/x")
    assert [name for name, _ in call.headers] == [b"host", b"X-Two", b"x-one", b"content-length"]
    assert (call.header("x-two"), call.header("absent"), call.json()) == ("2", None, {"a": 1})
    await call.answer_json({"ok": True}, 201, [("x-seen", "yes")])
    await response.read_end()
    assert (response.status, response.json(), response.header("X-Seen")) == (201, {"ok": True}, "yes")
    assert (response.ended, response.truncated) == (True, False)


async def test_head_is_handed_over_before_the_body_when_asked_for(
    upstream: ScriptedUpstream, client: RawClient
) -> None:
    """A test may act between a request's head and the end of its body."""
    response = client.expect("POST")
    await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\nabc")
    call = await upstream.next_call(whole=False)
    assert (call.received, upstream.calls) == (False, 0)
    await client.send(b"def")
    assert await call.read_body() == b"abcdef"
    await call.answer_json({})
    await response.read_end()
    assert upstream.calls == 1


async def test_gated_stream_arrives_event_by_event(upstream: ScriptedUpstream, client: RawClient) -> None:
    """The client has exactly those events whose gates are open."""
    gates = [Gate("first", opened=True), Gate("second"), Gate("end")]
    response = await client.start("GET", "/stream")
    call = await upstream.next_call()
    answering = asyncio.ensure_future(call.answer_sse([{"n": 1}, "[DONE]"], gates=gates))
    assert await response.read_until(b"\n\n") == b'data: {"n":1}\n\n'
    await gates[1].reached()
    assert response.events() == [b'data: {"n":1}']
    gates[1].open()
    assert await response.read_until(b"\n\n") == b"data: [DONE]\n\n"
    await gates[2].reached()
    assert not response.ended
    gates[2].open()
    await response.read_end()
    await answering
    assert (response.ended, response.chunks) == (True, [b'data: {"n":1}\n\n', b"data: [DONE]\n\n"])


async def test_reset_before_the_head_truncates_the_response(upstream: ScriptedUpstream, client: RawClient) -> None:
    """RST in place of a head is seen as RST and as no response."""
    response = await client.start("GET", "/")
    (await upstream.next_call()).reset()
    await response.read_end()
    assert (response.status, response.truncated, client.was_reset) == (0, True, True)
    assert upstream.aborted == 0


async def test_fin_inside_a_chunked_body_is_a_truncation(upstream: ScriptedUpstream, client: RawClient) -> None:
    """A body without its last chunk did not end, whatever the connection did."""
    response = await client.start("GET", "/")
    call = await upstream.next_call()
    await call.send_head(200, chunked=True)
    await call.send(b"half")
    call.close()
    await response.read_end()
    assert (response.body, response.ended, response.truncated, client.was_reset) == (b"half", False, True, False)


async def test_fin_inside_a_counted_body_is_a_truncation(upstream: ScriptedUpstream, client: RawClient) -> None:
    """Fewer bytes than the length says is no clean end."""
    response = await client.start("GET", "/")
    call = await upstream.next_call()
    await call.send_head(200, content_length=10)
    await call.send(b"12345")
    call.close()
    await response.read_end()
    assert (response.body, response.truncated) == (b"12345", True)


async def test_answer_without_framing_ends_with_its_connection(
    upstream: ScriptedUpstream, client: RawClient
) -> None:
    """A body that is delimited by FIN is whole when FIN comes."""
    response = await client.start("GET", "/")
    call = await upstream.next_call()
    await call.send_head(200)
    await call.send(b"all of it")
    await call.end()
    await response.read_end()
    assert (response.body, response.ended, client.peer_ended) == (b"all of it", True, True)


async def test_answer_that_breaks_its_own_promise_fails_the_test(
    upstream: ScriptedUpstream, client: RawClient
) -> None:
    """Sending too much or ending too soon is a mistake of the script unless it says so."""
    await client.start("GET", "/")
    call = await upstream.next_call()
    await call.send_head(200, content_length=3)
    with pytest.raises(AssertionError, match="owes 3 bytes"):
        await call.end()
    with pytest.raises(AssertionError, match="more than its content-length"):
        await call.send(b"1234")
    call.close()


async def test_client_that_leaves_is_noticed_and_counted(upstream: ScriptedUpstream, client: RawClient) -> None:
    """A call whose client closes before the end counts as aborted."""
    response = await client.start("GET", "/")
    call = await upstream.next_call()
    await call.send_head(200, chunked=True)
    await response.read_head()
    assert (upstream.open_connections, upstream.aborted) == (1, 0)
    await client.close()
    await call.client_gone()
    assert (call.gone, upstream.aborted, upstream.open_connections) == (True, 1, 0)


async def test_client_that_resets_while_its_body_is_awaited_fails_the_read(
    upstream: ScriptedUpstream, client: RawClient
) -> None:
    """A body that will never come is said to be one."""
    await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\nabc")
    call = await upstream.next_call(whole=False)
    await client.reset()
    with pytest.raises(AssertionError, match="left before the body"):
        await call.read_body()
    assert upstream.aborted == 1


async def test_connection_kept_alive_carries_numbered_calls(upstream: ScriptedUpstream, client: RawClient) -> None:
    """Two requests on one connection know their place on it."""
    upstream.respond_with(lambda call: call.answer_json({"nth": call.nth}))
    answers = [(await client.request("GET", "/")).json() for _ in range(2)]
    assert answers == [{"nth": 1}, {"nth": 2}]
    assert ([call.connection_id for call in upstream.history], upstream.connections_made) == ([1, 1], 1)


async def test_pipelined_requests_are_answered_in_order(upstream: ScriptedUpstream, client: RawClient) -> None:
    """Responses that arrive in one read are told apart."""
    first, second = client.expect(), client.expect()
    await client.send(client.make_request("GET", "/1") + client.make_request("GET", "/2"))
    for name in ("one", "two"):
        await (await upstream.next_call()).answer_json(name)
    await second.read_end()
    assert (first.json(), second.json(), client.unread) == ("one", "two", b"")


async def test_script_that_fails_fails_the_test() -> None:
    """An exception in an automatic answer is not lost."""

    async def fail(call: Call) -> None:
        call.close()
        raise KeyError("script")

    upstream = ScriptedUpstream()
    await upstream.start()
    upstream.respond_with(fail)
    client = await RawClient.connect_url(upstream.url)
    response = await client.start("GET", "/")
    await response.read_end()
    with pytest.raises(AssertionError, match="KeyError"):
        await upstream.close()
    await client.close()


async def test_bytes_that_are_no_http_are_reported(upstream: ScriptedUpstream, client: RawClient) -> None:
    """A client that speaks something else is closed, and the test may look at why."""
    await client.send(b"\x16\x03\x01 hello\r\n\r\n")
    await client.peer_closed()
    assert len(upstream.failures) == 1
    upstream.failures.clear()


async def test_idle_connections_can_be_closed_and_reset(upstream: ScriptedUpstream) -> None:
    """Only connections without an open call are idle."""
    idle = await RawClient.connect_url(upstream.url)
    busy = await RawClient.connect_url(upstream.url)
    await busy.start("GET", "/")
    call = await upstream.next_call()
    await wait_until(lambda: upstream.open_connections == 2, "both connections were accepted")
    assert upstream.close_idle() == 1
    await idle.peer_closed()
    assert (idle.was_reset, busy.peer_ended) == (False, False)
    await call.answer_json({})
    assert upstream.reset_idle() == 1
    await busy.peer_closed()
    assert busy.was_reset
    await idle.close()


async def test_refused_connections_are_reset_at_once(upstream: ScriptedUpstream) -> None:
    """An upstream that accepts and resets looks like one that is down behind its balancer."""
    upstream.refuse_connections()
    client = await RawClient.connect_url(upstream.url)
    await client.peer_closed()
    assert upstream.calls == 0


async def test_client_that_stops_reading_holds_the_sender(upstream: ScriptedUpstream) -> None:
    """With small buffers a paused reader stops the upstream; once it reads again everything arrives."""
    client = await RawClient.connect_url(upstream.url, receive_buffer_bytes=4096)
    response = await client.start("GET", "/")
    call = await upstream.next_call()
    client.pause()
    await call.send_head(200, content_length=8 << 20)
    sending = asyncio.ensure_future(call.send(b"x" * (8 << 20)))
    await wait_until(lambda: call.is_paused, "the sender was held")
    await run_ticks()
    assert not sending.done()
    client.resume()
    await sending
    await call.end()
    await response.read_end()
    assert (len(response.body), response.ended) == (8 << 20, True)
    await client.close()


async def test_unix_socket_serves_like_tcp(tmp_path: Path) -> None:
    """A path instead of a port makes no other difference."""
    path = str(tmp_path / "u.sock")
    async with ScriptedUpstream() as unused:
        assert unused.calls == 0
    upstream = ScriptedUpstream()
    await upstream.start(unix_path=path)
    upstream.respond_with(lambda call: call.answer_json(call.target))
    client = await RawClient.connect(unix_path=path)
    assert (await client.request("GET", "/over/unix")).json() == "/over/unix"
    await client.close()
    await upstream.close()


async def test_tls_upstream_serves_like_a_plain_one() -> None:
    """Client and upstream speak TLS when they are given contexts."""
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    upstream = ScriptedUpstream()
    await upstream.start(ssl_context=server_context)
    upstream.respond_with(lambda call: call.answer_json("sealed"))
    client = await RawClient.connect_url(upstream.url, ssl_context=client_context)
    assert (await client.request("GET", "/")).json() == "sealed"
    await client.close()
    await upstream.close()


async def test_call_that_nobody_sends_fails_with_the_count(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for a request that never comes says how many came."""
    monkeypatch.setattr("tests.fakes.gates.LIMIT_S", 0.02)
    with pytest.raises(AssertionError, match=r"a request reached the upstream \(so far 0\)"):
        await upstream.next_call()
