"""The transport over aiohttp where it differs: outbound proxies, its own bound, WebSockets; on both loops."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trustme
from aiohttp import WSMsgType, web

from proxy.errors import Kind, ProxyError, Retry
from proxy.upstream.base import Origin
from proxy.upstream.connect import ResumingContext, make_tls_context
from proxy.upstream.websocket import HandshakeRefusedError
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, wait_until, within
from tests.fakes.outbound_proxy import OutboundProxy
from tests.fakes.transports import PATIENCE, SessionRig, cancel, served
from tests.fakes.wire_server import READ, RESET, Wait, WireServer, Write, answer

MakeRig = Callable[..., SessionRig]
CREDENTIAL = b"Basic " + base64.b64encode(b"user:secret")


@pytest.fixture
async def make_rig(frozen_clock: FrozenClock) -> AsyncIterator[MakeRig]:
    rigs: list[SessionRig] = []

    def make(**options: object) -> SessionRig:
        rigs.append(SessionRig(frozen_clock, **options))  # type: ignore[arg-type]
        return rigs[-1]

    yield make
    for rig in rigs:
        await rig.session.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def trusting(authority: trustme.CA) -> ResumingContext:
    context = make_tls_context()
    authority.configure_trust(context)
    return context


def serving(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


# -- outbound proxies ----------------------------------------------------------------------------------------------


async def test_https_origin_is_reached_through_a_tunnel(make_rig: MakeRig, authority: trustme.CA) -> None:
    """CONNECT with the proxy's credential; the request itself is between us and the origin."""
    async with OutboundProxy() as proxy, WireServer(ssl=serving(authority)) as server:
        rig = make_rig(tls=trusting(authority), proxy_for=lambda _: proxy.url)
        assert (await rig.ask(server.origin)).body == b"ok"
        (head,) = proxy.seen
        assert head.startswith(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n" % server.port)
        assert CREDENTIAL in head
        assert b"x-one" not in head
        assert server.requests[0].line == b"POST /v1/things?q=%2F HTTP/1.1"
        assert server.requests[0].header(b"proxy-authorization") == []


async def test_http_origin_is_asked_for_in_absolute_form(make_rig: MakeRig) -> None:
    """Plain HTTP goes through the proxy as a whole request."""
    async with OutboundProxy() as proxy, WireServer() as server:
        rig = make_rig(proxy_for=lambda _: proxy.url)
        assert (await rig.ask(server.origin)).body == b"ok"
        assert proxy.seen[0].startswith(b"POST http://127.0.0.1:%d/v1/things?q=%%2F HTTP/1.1\r\n" % server.port)
        assert CREDENTIAL in proxy.seen[0]


async def test_origin_without_a_proxy_is_reached_directly(make_rig: MakeRig) -> None:
    """The question is asked for each origin."""
    async with OutboundProxy() as proxy, WireServer() as direct, WireServer() as other:
        rig = make_rig(proxy_for=lambda origin: None if origin == direct.origin else proxy.url)
        await rig.ask(direct.origin)
        assert proxy.seen == []
        await rig.ask(other.origin)
        assert len(proxy.seen) == 1


async def test_proxy_that_refuses_the_tunnel_is_an_unreachable_upstream(
    make_rig: MakeRig, authority: trustme.CA
) -> None:
    """Its status is not the upstream's, so it is not passed on."""
    async with OutboundProxy("407 Proxy Authentication Required") as proxy:
        rig = make_rig(tls=trusting(authority), proxy_for=lambda _: proxy.url)
        error = await rig.fails(Origin("https", "127.0.0.1", 1))
        assert (error.kind, error.why) == (Kind.UPSTREAM_UNREACHABLE, "proxy")
        assert "secret" not in str(error)


async def test_proxy_that_is_not_there_is_an_unreachable_upstream(make_rig: MakeRig) -> None:
    """Nothing was sent, so it may be tried again; and nobody goes around the proxy."""
    async with OutboundProxy() as proxy:
        url = proxy.url
    async with WireServer() as server:
        error = await make_rig(proxy_for=lambda _: url).fails(server.origin)
        assert (error.kind, error.retry) == (Kind.UPSTREAM_UNREACHABLE, Retry.SAME)
        assert "secret" not in str(error)
        assert server.opened == 0


async def test_tunnel_does_not_weaken_trust(make_rig: MakeRig, authority: trustme.CA) -> None:
    """A certificate nobody vouches for is refused behind a proxy too."""
    async with OutboundProxy() as proxy, WireServer(ssl=serving(trustme.CA())) as server:
        error = await make_rig(tls=trusting(authority), proxy_for=lambda _: proxy.url).fails(server.origin)
        assert (error.kind, error.retry) == (Kind.UPSTREAM_TLS, Retry.NO)
        assert server.requests == []


async def test_exchange_through_a_tunnel_that_is_cancelled_is_cut(make_rig: MakeRig, authority: trustme.CA) -> None:
    """The origin sees the end of the connection."""
    never = Gate("never")
    async with OutboundProxy() as proxy, WireServer(served(Wait(never)), ssl=serving(authority)) as server:
        rig = make_rig(tls=trusting(authority), proxy_for=lambda _: proxy.url)
        exchange = rig.begin(server.origin)
        await never.reached()
        await cancel(exchange)
        await server.cut(1)


# -- its own -------------------------------------------------------------------------------------------------------


async def test_every_exchange_has_a_connection_of_its_own(make_rig: MakeRig) -> None:
    """A connection that is never idle cannot carry anybody else's bytes."""
    async with WireServer() as server:
        rig = make_rig()
        for _ in range(3):
            await rig.ask(server.origin)
        await server.all_cut()
        assert server.opened == 3


async def test_exchanges_under_way_are_bounded(make_rig: MakeRig) -> None:
    """The one too many is refused at once; there is no queue."""
    goes = Gate("goes")
    async with WireServer([READ, Wait(goes), Write(answer())]) as server:
        rig = make_rig(limit=2)
        running = [rig.begin(server.origin) for _ in range(2)]
        await server.seen(2)
        error = await rig.fails(server.origin)
        assert (error.kind, error.why, rig.session.running) == (Kind.OVERLOADED, "pool_full", 2)
        goes.open()
        await asyncio.gather(*running)
        assert rig.session.running == 0


async def test_unknown_name_fails_as_it_does_everywhere(make_rig: MakeRig) -> None:
    """The resolver is ours here too."""

    def nowhere(_: str) -> tuple[str, ...]:
        return ()

    error = await make_rig(lookup=nowhere).fails(Origin("http", "nowhere.example", 80))
    assert (error.kind, error.why) == (Kind.UPSTREAM_UNREACHABLE, "dns")


async def test_connecting_has_a_deadline(make_rig: MakeRig, authority: trustme.CA) -> None:
    """A server that never answers the TLS handshake is dropped after connect_s."""
    async with WireServer([]) as server:
        rig = make_rig(tls=trusting(authority))
        exchange = rig.begin(Origin("https", "127.0.0.1", server.port))
        await wait_until(lambda: server.wires and server.wires[0].buffer, "the handshake began")
        rig.advance(5.1)
        with pytest.raises(ProxyError) as caught:
            await exchange
        assert (caught.value.kind, caught.value.why) == (Kind.UPSTREAM_TIMEOUT, "connect")
        assert caught.value.retry is Retry.SAME
        await server.cut(1)


# -- WebSockets ----------------------------------------------------------------------------------------------------

Talk = Callable[[web.WebSocketResponse], Awaitable[None]]


class SocketServer:
    """A WebSocket server that talks as the test says."""

    def __init__(self, talk: Talk, protocols: tuple[str, ...] = ()) -> None:
        self._talk = talk
        self._protocols = protocols
        self.headers: list[dict[str, str]] = []
        self.close_codes: list[int | None] = []
        self.closed = asyncio.Event()

    async def __aenter__(self) -> SocketServer:
        self._runner = web.ServerRunner(web.Server(self._handle))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.origin = Origin("http", "127.0.0.1", self._runner.addresses[0][1])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        socket = web.WebSocketResponse(protocols=self._protocols, max_msg_size=0)
        await socket.prepare(request)
        await self._talk(socket)
        self.close_codes.append(socket.close_code)
        await socket.close()
        self.closed.set()
        return socket


async def echo(socket: web.WebSocketResponse) -> None:
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        else:
            await socket.send_bytes(message.data)


async def test_messages_pass_both_ways_as_they_are(make_rig: MakeRig) -> None:
    """Text stays text and bytes stay bytes; the handshake carries our headers and no compression."""
    async with SocketServer(echo, ("realtime",)) as server:
        rig = make_rig()
        socket = await rig.session.connect_websocket(
            server.origin, "/v1/realtime?model=m", [(b"authorization", b"Bearer x")], ["realtime"], PATIENCE
        )
        assert socket.protocol == "realtime"
        await socket.send_text("häh")
        await socket.send_bytes(b"\x00\xff")
        assert [await socket.receive(), await socket.receive()] == ["häh", b"\x00\xff"]
        assert (socket.close_code, rig.session.running) == (None, 1)
        await socket.close(1001, "bye")
        await within(server.closed.wait(), "the server saw the end")
        assert (server.close_codes, rig.session.running) == ([1001], 0)
        (headers,) = server.headers
        assert headers["authorization"] == "Bearer x"
        assert {"sec-websocket-extensions", "user-agent", "accept", "accept-encoding"}.isdisjoint(headers)


async def test_upstreams_close_is_told_with_its_code_and_reason(make_rig: MakeRig) -> None:
    """``receive`` returns ``None``, and goes on doing so."""

    async def leave(socket: web.WebSocketResponse) -> None:
        await socket.close(code=4001, message=b"expired")

    async with SocketServer(leave) as server:
        rig = make_rig()
        socket = await rig.session.connect_websocket(server.origin, "/", [], [], PATIENCE)
        assert [await socket.receive(), await socket.receive()] == [None, None]
        assert (socket.close_code, socket.close_reason, rig.session.running) == (4001, "expired", 0)


async def test_message_above_the_cap_ends_the_socket(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """1009, and nothing of the message is held."""
    monkeypatch.setattr("proxy.upstream.session._MESSAGE_BYTES", 1000)

    async def flood(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(b"x" * 1001)
        await socket.receive()

    async with SocketServer(flood) as server:
        socket = await make_rig().session.connect_websocket(server.origin, "/", [], [], PATIENCE)
        assert await socket.receive() is None
        assert socket.close_code == 1009


async def test_upstream_that_dies_under_a_socket_is_noticed(make_rig: MakeRig) -> None:
    """The relay learns of it by ``receive``, and sending fails in our own terms."""
    gone = Gate("gone")
    async with WireServer([READ, Wait(gone), RESET]) as server:
        rig = make_rig()
        opening = asyncio.ensure_future(rig.session.connect_websocket(server.origin, "/", [], [], PATIENCE))
        await server.seen(1)
        (key,) = server.requests[0].header(b"sec-websocket-key")
        server.wires[0].transport.write(_accept(key))
        socket = await opening
        gone.open()
        assert await within(socket.receive(), "the end was noticed") is None
        assert (socket.close_code, rig.session.running) == (1006, 0)
        with pytest.raises(ProxyError) as caught:
            await socket.send_text("anybody there?")
        assert caught.value.kind is Kind.UPSTREAM_RESET


def _accept(key: bytes) -> bytes:
    digest = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-accept: %b\r\n\r\n" % digest
    )


async def test_refused_handshake_tells_the_upstreams_status_and_headers(make_rig: MakeRig) -> None:
    """The relay can answer its own client alike."""
    raw = answer(b"{}", "401 Unauthorized", [b"x-request-id: r1"])
    async with WireServer(served(Write(raw))) as server:
        rig = make_rig()
        with pytest.raises(HandshakeRefusedError) as caught:
            await rig.session.connect_websocket(server.origin, "/", [], [], PATIENCE)
        assert (caught.value.head.status, caught.value.head.get(b"x-request-id")) == (401, b"r1")
        assert rig.session.running == 0


async def test_handshake_has_a_deadline(make_rig: MakeRig) -> None:
    """``connect_s`` and ``first_byte_s`` together."""
    never = Gate("never")
    async with WireServer(served(Wait(never))) as server:
        rig = make_rig()
        patience = PATIENCE._replace(connect_s=1.0, first_byte_s=2.0)
        opening = asyncio.ensure_future(rig.session.connect_websocket(server.origin, "/", [], [], patience))
        await never.reached()
        rig.advance(3.1)
        with pytest.raises(ProxyError) as caught:
            await opening
        assert (caught.value.kind, rig.session.running) == (Kind.UPSTREAM_TIMEOUT, 0)


async def test_handshake_that_is_cancelled_leaves_nothing(make_rig: MakeRig) -> None:
    """The upstream sees the end of the connection."""
    never = Gate("never")
    async with WireServer(served(Wait(never))) as server:
        rig = make_rig()
        opening = asyncio.ensure_future(rig.session.connect_websocket(server.origin, "/", [], [], PATIENCE))
        await never.reached()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await server.cut(1)
        assert rig.session.running == 0


async def test_handshake_that_cannot_connect_may_be_tried_again(make_rig: MakeRig) -> None:
    """As for any exchange."""
    async with WireServer() as server:
        origin = server.origin
    with pytest.raises(ProxyError) as caught:
        await make_rig().session.connect_websocket(origin, "/", [], [], PATIENCE)
    assert (caught.value.kind, caught.value.retry) == (Kind.UPSTREAM_UNREACHABLE, Retry.SAME)


async def test_open_sockets_survive_the_close_of_the_transport(make_rig: MakeRig) -> None:
    """Draining refuses new ones and lets the old ones talk to their end."""
    async with SocketServer(echo) as server:
        rig = make_rig()
        socket = await rig.session.connect_websocket(server.origin, "/", [], [], PATIENCE)
        await rig.session.close()
        with pytest.raises(ProxyError) as caught:
            await rig.session.connect_websocket(server.origin, "/", [], [], PATIENCE)
        assert caught.value.kind is Kind.DRAINING
        await socket.send_text("still here")
        assert await socket.receive() == "still here"
        await socket.close()
        assert rig.session.running == 0


async def test_websocket_goes_through_the_proxy(make_rig: MakeRig, authority: trustme.CA) -> None:
    """With a tunnel, as any https origin."""
    refusing = served(Write(answer(b"", "403 Forbidden")))
    async with OutboundProxy() as proxy, WireServer(refusing, ssl=serving(authority)) as server:
        rig = make_rig(tls=trusting(authority), proxy_for=lambda _: proxy.url)
        with pytest.raises(HandshakeRefusedError):
            await rig.session.connect_websocket(server.origin, "/", [], [], PATIENCE)
        assert proxy.seen[0].startswith(b"CONNECT ")
        assert server.requests[0].header(b"upgrade") == [b"websocket"]
