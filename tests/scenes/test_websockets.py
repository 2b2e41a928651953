"""WebSockets on the two routes that have them: relayed both ways, message by message, to the code of the farewell."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

import pytest

from tests.fakes.client import RawClient, RawResponse
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks, wait_until
from tests.fakes.sockets import reset
from tests.scenes.stage import KEY, Stage

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
ACCEPT_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PATHS = ["/v1/realtime?model=gpt-realtime", "/v1/responses", "/openai/v1/realtime", "/realtime"]

Frame = tuple[int, bytes]


# -- frames by hand (RFC 6455, 5.2) --------------------------------------------------------------------------


def make_frame(opcode: int, payload: bytes, *, masked: bool, final: bool = True) -> bytes:
    first = bytes([(0x80 if final else 0) | opcode])
    size, bit = len(payload), 0x80 if masked else 0
    if size < 126:
        head = first + bytes([bit | size])
    elif size < 65_536:
        head = first + bytes([bit | 126]) + size.to_bytes(2, "big")
    else:
        head = first + bytes([bit | 127]) + size.to_bytes(8, "big")
    return head + b"\1\2\3\4" + mask(payload) if masked else head + payload


def mask(payload: bytes, key: bytes = b"\1\2\3\4") -> bytes:
    stretched = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stretched, "big")).to_bytes(len(payload), "big")


def take_frame(data: bytes, *, masked: bool) -> tuple[Frame, bytes] | None:
    """The first frame and what follows, or ``None`` while it is not whole."""
    if len(data) < 2:
        return None
    assert bool(data[1] & 0x80) == masked, "a client masks and a server does not"
    assert data[0] & 0x70 == 0, "no extension was agreed on"
    size, at = data[1] & 0x7F, 2
    if size >= 126:
        width = 2 if size == 126 else 8
        if len(data) < 2 + width:
            return None
        size, at = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
    key, at = (data[at : at + 4], at + 4) if masked else (b"", at)
    if len(data) < at + size:
        return None
    payload = data[at : at + size]
    return (data[0] & 0x0F, mask(payload, key) if masked else payload), data[at + size :]


def closing(code: int, reason: str = "") -> bytes:
    return code.to_bytes(2, "big") + reason.encode()


# -- the upstream's end --------------------------------------------------------------------------------------


class Peer(asyncio.Protocol):
    """One connection that an upstream accepted: its handshake, then its frames."""

    def __init__(self, upstream: SocketUpstream) -> None:
        self._upstream = upstream
        self.transport: asyncio.Transport
        self.data = b""
        self.head = b""
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._upstream.open += 1

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.head and b"\r\n\r\n" in self.data:
            self.head, _, self.data = self.data.partition(b"\r\n\r\n")
            self._upstream.peers.put_nowait(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._upstream.open -= 1

    @property
    def target(self) -> str:
        return self.head.split(b" ")[1].decode()

    def header(self, name: str) -> str | None:
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b": ")
            if key.lower() == name.encode():
                return value.decode()
        return None

    def accept(self, *lines: bytes) -> None:
        key = (self.header("sec-websocket-key") or "").encode()
        answer = base64.b64encode(hashlib.sha1(key + ACCEPT_KEY).digest())
        head = [b"HTTP/1.1 101 Switching Protocols", b"upgrade: websocket", b"connection: Upgrade"]
        head += [b"sec-websocket-accept: " + answer, *lines]
        self.transport.write(b"\r\n".join(head) + b"\r\n\r\n")

    def send(self, opcode: int, payload: bytes, *, final: bool = True) -> None:
        self.transport.write(make_frame(opcode, payload, masked=False, final=final))

    async def next_frame(self) -> Frame:
        await wait_until(lambda: take_frame(self.data, masked=True) or self.lost, "a frame reached the upstream")
        taken = take_frame(self.data, masked=True)
        assert taken is not None, "the connection ended without a frame"
        frame, self.data = taken
        return frame

    async def gone(self) -> None:
        await wait_until(lambda: self.lost, "the upstream's connection ended")


class SocketUpstream:
    """Accepts connections and hands each to the test at its handshake."""

    def __init__(self) -> None:
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()
        self.open = 0
        self.url = ""
        self._server: asyncio.Server

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(lambda: Peer(self), "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        await wait_until(lambda: not self.open, f"{self.open} upstream connections ended")
        self._server.close()
        await self._server.wait_closed()

    async def next_peer(self) -> Peer:
        await wait_until(lambda: not self.peers.empty(), "a handshake reached the upstream")
        return self.peers.get_nowait()


# -- the client's end ----------------------------------------------------------------------------------------


class Caller:
    """A client's end of a socket."""

    def __init__(self, client: RawClient, response: RawResponse) -> None:
        self.client = client
        self.response = response
        self._read = 0

    async def send(self, opcode: int, payload: bytes, *, final: bool = True) -> None:
        await self.client.send(make_frame(opcode, payload, masked=True, final=final))

    async def next_frame(self) -> Frame:
        def there() -> Any:
            return take_frame(self.response.body[self._read :], masked=False)

        await wait_until(lambda: there() or self.client.peer_ended, "a frame reached the client")
        taken = there()
        assert taken is not None, "the connection ended without a frame"
        frame, rest = taken
        self._read = len(self.response.body) - len(rest)
        return frame


def handshake(client: RawClient, path: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    fields = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", key),
    ]
    return client.make_request("GET", path, [*fields, *headers])


class Sockets:
    """A stage whose upstream speaks WebSocket."""

    def __init__(self, upstream: SocketUpstream, stage: Stage) -> None:
        self.upstream = upstream
        self.stage = stage

    async def ask(
        self, path: str = PATHS[0], headers: Iterable[tuple[str, str]] = (), *, key: str | None = KEY
    ) -> Caller:
        client = await self.stage.client()
        response = client.expect("GET")
        credential = [("authorization", f"Bearer {key}")] if key is not None else []
        await client.send(handshake(client, path, [*credential, *headers]))
        return Caller(client, response)

    async def open(self, path: str = PATHS[0]) -> tuple[Caller, Peer]:
        """A socket that is open from end to end."""
        caller = await self.ask(path)
        peer = await self.upstream.next_peer()
        peer.accept()
        await caller.response.read_head()
        assert caller.response.status == 101
        return caller, peer

    async def ended(self) -> dict[str, Any]:
        """At rest; the only access line."""
        await self.stage.at_rest()
        assert self.stage.app.sockets.open == 0
        [line] = await self.stage.access_lines(1)
        return line


@pytest.fixture
async def sockets() -> AsyncIterator[Sockets]:
    """A proxy in front of an upstream for WebSockets; nothing is open when the scene is over."""
    upstream = SocketUpstream()
    await upstream.start()
    async with Stage(openai_upstream=upstream.url) as stage:
        yield Sockets(upstream, stage)
        await stage.at_rest()
    await upstream.close()


# -- messages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_messages_pass_both_ways_as_they_are(sockets: Sockets, path: str) -> None:
    """Text stays text and bytes stay bytes, in order, on both routes."""
    caller, peer = await sockets.open(path)
    down: list[Frame] = [(TEXT, "h\u00e9llo \u2713".encode()), (BINARY, bytes(range(256))), (TEXT, b"")]
    down.append((TEXT, b"x" * 70_000))
    up: list[Frame] = [(BINARY, b""), (TEXT, b'{"type":"session.update"}'), (BINARY, b"\0" * 200)]
    for opcode, payload in down:
        peer.send(opcode, payload)
    for opcode, payload in up:
        await caller.send(opcode, payload)

    assert [await caller.next_frame() for _ in down] == down
    assert [await peer.next_frame() for _ in up] == up
    await caller.send(CLOSE, closing(1000))
    assert (await peer.next_frame())[0] == CLOSE
    peer.send(CLOSE, closing(1000))


async def test_the_handshake_carries_who_asks_for_what_and_nothing_of_the_clients_own_handshake(
    sockets: Sockets,
) -> None:
    """The upstream gets a handshake of its own."""
    own = [("openai-beta", "realtime=v1"), ("x-own", "1"), ("sec-websocket-extensions", "permessage-deflate")]
    caller = await sockets.ask("/v1/realtime?model=m&a=%2F", [*own, ("x-sameflight-variant", "a")])
    peer = await sockets.upstream.next_peer()
    peer.accept()
    await caller.response.read_head()

    assert peer.target == "/v1/realtime?model=m&a=%2F"
    assert (peer.header("openai-beta"), peer.header("x-own")) == ("realtime=v1", "1")
    assert peer.header("authorization") == f"Bearer {KEY}"
    assert peer.header("sec-websocket-extensions") is None
    assert peer.header("x-sameflight-variant") is None
    assert (peer.header("via") or "").startswith("1.1 sameflight-")
    assert peer.head.count(b"sec-websocket-key") + peer.head.count(b"Sec-WebSocket-Key") == 1
    assert (caller.response.header("x-sameflight-request-id") or "").startswith("req_")
    assert caller.response.header("sec-websocket-extensions") is None
    await caller.client.close()


@pytest.mark.parametrize(("chosen", "expected"), [(b"realtime", "realtime"), (b"other", "other"), (None, None)])
async def test_the_upstream_chooses_the_subprotocol(
    sockets: Sockets, chosen: bytes | None, expected: str | None
) -> None:
    """All that the client offers is offered; what the upstream takes is taken."""
    offer = "sec-websocket-protocol"
    caller = await sockets.ask(headers=[(offer, "realtime, other"), (offer, "third")])
    peer = await sockets.upstream.next_peer()
    peer.accept(*([b"sec-websocket-protocol: " + chosen] if chosen else []))
    await caller.response.read_head()

    offered = [word.strip() for word in (peer.header("sec-websocket-protocol") or "").split(",")]
    assert offered == ["realtime", "other", "third"]
    assert (caller.response.status, caller.response.header("sec-websocket-protocol")) == (101, expected)
    await caller.client.close()


async def test_a_message_of_ten_megabytes_passes_both_ways(sockets: Sockets) -> None:
    """Sound and images come in one piece."""
    caller, peer = await sockets.open()
    payload = os.urandom(10 << 20)
    await caller.client.send(make_frame(BINARY, payload, masked=True))
    await wait_until(lambda: len(peer.data) > len(payload), "it reached the upstream", 20.0)
    assert await peer.next_frame() == (BINARY, payload)
    peer.send(BINARY, payload)
    await wait_until(lambda: len(caller.response._body) > len(payload), "it reached the client", 20.0)
    assert await caller.next_frame() == (BINARY, payload)
    await caller.client.close()


async def test_a_message_in_pieces_arrives_as_one(sockets: Sockets) -> None:
    """Fragments are framing, and a ping between them is answered on the spot."""
    caller, peer = await sockets.open()
    await caller.send(TEXT, b"one ", final=False)
    await caller.send(PING, b"here?")
    await caller.send(0, b"two ", final=False)
    await caller.send(0, b"three")

    assert await caller.next_frame() == (PONG, b"here?")
    assert await peer.next_frame() == (TEXT, b"one two three")
    peer.send(PING, b"there?")
    assert await peer.next_frame() == (PONG, b"there?")
    await caller.client.close()


@pytest.mark.parametrize("frame", [b"\xc1\x80\1\2\3\4", b"\x83\x80\1\2\3\4", b"\x81\x81\1\2\3\4\xfe"])
async def test_a_frame_that_is_none_ends_the_socket_on_both_sides(sockets: Sockets, frame: bytes) -> None:
    """Reserved bits, an unknown opcode, text that is no UTF-8: told to the client, gone for the upstream."""
    caller, peer = await sockets.open()
    await caller.client.send(frame)
    opcode, payload = await caller.next_frame()

    assert opcode == CLOSE
    assert int.from_bytes(payload[:2], "big") in (1002, 1007)
    assert await peer.next_frame() == (CLOSE, closing(1001))
    peer.send(CLOSE, closing(1001))


# -- farewells -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "arrives", "outcome"),
    [
        (closing(1000, "bye"), closing(1000, "bye"), "ok"),
        (closing(1001), closing(1001), "ok"),
        (closing(4004, "no such session"), closing(4004, "no such session"), "ok"),
        (closing(1011, "oops"), closing(1011, "oops"), "stream_broken"),
        (b"", closing(1000), "ok"),
    ],
)
async def test_the_upstreams_farewell_reaches_the_client(
    sockets: Sockets, sent: bytes, arrives: bytes, outcome: str
) -> None:
    """Code and reason."""
    caller, peer = await sockets.open()
    peer.send(TEXT, b"last")
    peer.send(CLOSE, sent)

    assert await caller.next_frame() == (TEXT, b"last")
    assert await caller.next_frame() == (CLOSE, arrives)
    await caller.send(CLOSE, arrives)
    await caller.client.peer_closed()
    assert await peer.next_frame() == (CLOSE, arrives[:2])
    peer.transport.close()
    line = await sockets.ended()
    assert (line["status"], line["outcome"], line["route"]) == (101, outcome, "realtime")


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (closing(1000, "done"), closing(1000, "done")),
        (closing(3999, "why"), closing(3999, "why")),
        (closing(1001), closing(1001)),
        (b"", closing(1000)),
    ],
)
async def test_the_clients_farewell_reaches_the_upstream(sockets: Sockets, sent: bytes, arrives: bytes) -> None:
    """The other direction; and an orderly end is a success."""
    caller, peer = await sockets.open()
    await caller.send(TEXT, b"last")
    await caller.send(CLOSE, sent)

    assert await peer.next_frame() == (TEXT, b"last")
    assert await peer.next_frame() == (CLOSE, arrives)
    peer.send(CLOSE, arrives)
    assert (await caller.next_frame())[0] == CLOSE
    await caller.client.close()
    line = await sockets.ended()
    assert (line["status"], line["outcome"]) == (101, "ok")
    assert (line["bytes_in"], line["bytes_out"]) == (4, 0)


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_an_upstream_that_dies_is_an_internal_error_for_the_client(sockets: Sockets, how: str) -> None:
    """No farewell from there: 1011, and never a fake 1000."""
    caller, peer = await sockets.open()
    peer.send(TEXT, b"half a sen")
    assert await caller.next_frame() == (TEXT, b"half a sen")
    if how == "rst":
        reset(peer.transport)
    else:
        peer.transport.close()
    assert await caller.next_frame() == (CLOSE, closing(1011))
    await caller.send(CLOSE, closing(1011))
    await caller.client.peer_closed()

    assert (await sockets.ended())["outcome"] == "stream_broken"


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_dies_is_going_away_for_the_upstream(sockets: Sockets, how: str) -> None:
    """It is told at once, and the account says who left."""
    caller, peer = await sockets.open()
    await (caller.client.reset() if how == "reset" else caller.client.close())
    assert await peer.next_frame() == (CLOSE, closing(1001))
    peer.send(CLOSE, closing(1001))
    await peer.gone()

    assert (await sockets.ended())["outcome"] == "client_gone"


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_before_the_upstream_accepted_is_forgotten(sockets: Sockets, how: str) -> None:
    """A handshake for nobody is broken off."""
    caller = await sockets.ask()
    peer = await sockets.upstream.next_peer()
    await (caller.client.reset() if how == "reset" else caller.client.close())
    await peer.gone()

    assert (await sockets.ended())["outcome"] == "client_gone"


async def test_a_drain_sends_everybody_away_at_the_end_of_its_grace(sockets: Sockets) -> None:
    """1001 in both directions, and an orderly end in the log."""
    pairs = [await sockets.open() for _ in range(3)]
    draining = asyncio.get_running_loop().create_task(sockets.stage.app.drain(0.05))
    for caller, peer in pairs:
        assert await caller.next_frame() == (CLOSE, closing(1001, "proxy shutting down"))
        assert await peer.next_frame() == (CLOSE, closing(1001))
        peer.send(CLOSE, closing(1001))
    await draining
    await sockets.stage.at_rest()
    lines = await sockets.stage.access_lines(3)

    assert [line["outcome"] for line in lines] == ["ok"] * 3


# -- a client that does not read -----------------------------------------------------------------------------


async def test_a_client_that_does_not_read_holds_the_upstream_back_and_is_cut_off(frozen_clock: FrozenClock) -> None:
    """Nothing piles up, and the write stall counts here as well."""
    upstream = SocketUpstream()
    await upstream.start()
    async with Stage(clock=frozen_clock, openai_upstream=upstream.url) as stage:
        sockets = Sockets(upstream, stage)
        caller, peer = await sockets.open()
        caller.client.pause()
        sent = 0
        payload = b"x" * 60_000
        peer.transport.set_write_buffer_limits(high=1 << 20)
        while peer.transport.get_write_buffer_size() < 1 << 20:
            peer.send(BINARY, payload)
            sent += len(payload)
            await run_ticks(5)
            assert sent < 64 << 20
        [connection] = stage.app.server.connections
        assert connection.transport is not None
        assert connection.transport.get_write_buffer_size() < 1 << 20
        frozen_clock.advance(60.1)
        assert await peer.next_frame() == (CLOSE, closing(1001))
        peer.transport.abort()
        caller.client.resume()
        await stage.at_rest()
    await upstream.close()


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
async def test_a_refusal_of_the_upstream_reaches_the_client_with_its_status(sockets: Sockets, status: int) -> None:
    """A wrong key is the caller's to know, and no failure of the way."""
    caller = await sockets.ask()
    peer = await sockets.upstream.next_peer()
    peer.transport.write(
        b"HTTP/1.1 %d No\r\nx-request-id: req-up\r\nretry-after: 3\r\nset-cookie: a=1\r\nx-bad: a\x01b\r\n"
        b"content-type: text/plain\r\ncontent-length: 4\r\n\r\nnope" % status
    )
    await caller.response.read_end()

    assert caller.response.status == status
    assert caller.response.header("content-type") == "application/json"
    assert str(status) in caller.response.json()["error"]["message"]
    assert (caller.response.header("x-request-id"), caller.response.header("retry-after")) == ("req-up", "3")
    assert caller.response.header("x-bad") is None
    assert (caller.response.header("x-sameflight-request-id") or "").startswith("req_")
    assert caller.response.header("connection") == "close"
    await caller.client.peer_closed()
    line = await sockets.ended()
    assert (line["status"], line["outcome"]) == (status, "upstream_error")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: x\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"",
    ],
    ids=["no_upgrade", "a_wrong_proof", "no_http", "silence"],
)
async def test_an_upstream_that_does_not_know_how_is_a_502(sockets: Sockets, answer: bytes) -> None:
    """Whatever it says, the client gets an HTTP error and no half-open socket."""
    caller = await sockets.ask()
    for _ in range(1 if answer else 2):  # a silent end is worth a second attempt
        peer = await sockets.upstream.next_peer()
        peer.transport.write(answer)
        peer.transport.close()
    await caller.response.read_end()

    assert caller.response.status == 502
    assert "error" in caller.response.json()
    await caller.client.peer_closed()


async def test_an_upstream_that_cannot_be_reached_is_a_502() -> None:
    """As for any other request."""
    upstream = SocketUpstream()
    await upstream.start()
    await upstream.close()
    async with Stage(openai_upstream=upstream.url) as stage:
        caller = await Sockets(upstream, stage).ask()
        await caller.response.read_end()

        assert (caller.response.status, caller.response.json()["error"]["code"]) == (502, "upstream_unreachable")
        await stage.at_rest()


@pytest.mark.parametrize("silent_s", [10.0, 700.0])
async def test_an_upstream_that_never_answers_the_handshake_is_a_504(
    frozen_clock: FrozenClock, silent_s: float
) -> None:
    """Within the patience for a first byte, and not before."""
    upstream = SocketUpstream()
    await upstream.start()
    async with Stage(clock=frozen_clock, openai_upstream=upstream.url) as stage:
        caller = await Sockets(upstream, stage).ask()
        peer = await upstream.next_peer()
        frozen_clock.advance(silent_s)
        if silent_s > 600:
            await caller.response.read_end()
            assert caller.response.status == 504
        else:
            peer.accept()
            await caller.response.read_head()
            assert caller.response.status == 101
            await caller.client.close()
        await peer.gone()
        await stage.at_rest()
    await upstream.close()


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("sec-websocket-version", "8.5"),
        ("sec-websocket-version", ""),
        ("sec-websocket-key", "short"),
        ("sec-websocket-key", ""),
        ("connection", "keep-alive"),
        ("upgrade", "h2c"),
    ],
)
async def test_a_handshake_that_is_none_is_refused_before_anybody_is_asked(
    sockets: Sockets, header: str, value: str
) -> None:
    """RFC 6455, 4.2.1: nothing is opened upstream for it."""
    fields = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": base64.b64encode(b"0" * 16).decode(),
        header: value,
        "authorization": f"Bearer {KEY}",
    }
    client = await sockets.stage.client()
    response = await client.request("GET", PATHS[0], fields.items())
    await client.peer_closed()

    assert response.status == 400
    assert sockets.upstream.open == 0
    assert sockets.upstream.peers.empty()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/realtime/sessions"),
        ("POST", "/v1/realtime"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/v1/responses/resp_1"),
        ("GET", "/"),
    ],
)
async def test_an_upgrade_anywhere_else_is_refused(sockets: Sockets, method: str, path: str) -> None:
    """RELIABILITY row 22."""
    client = await sockets.stage.client()
    request = handshake(client, path, [("authorization", f"Bearer {KEY}"), ("content-length", "0")])
    response = client.expect(method)
    await client.send(request.replace(b"GET", method.encode(), 1) + make_frame(TEXT, b"early", masked=True))
    await response.read_end()
    await client.peer_closed()

    assert (response.status, response.json()["error"]["code"]) == (400, "upgrade_refused")
    assert sockets.upstream.peers.empty()


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer sf-0123456789")],
        [("sec-websocket-protocol", "realtime, openai-insecure-api-key.sf-0123456789, openai-beta.realtime-v1")],
        [("sec-websocket-protocol", "sf-0123456789")],
    ],
    ids=["header", "subprotocol", "bare_subprotocol"],
)
async def test_a_virtual_key_is_refused_and_never_reaches_an_upstream(
    sockets: Sockets, headers: list[tuple[str, str]]
) -> None:
    """Browsers send their key as a subprotocol; that is a key all the same."""
    caller = await sockets.ask(headers=headers, key=None)
    await caller.response.read_end()

    assert (caller.response.status, caller.response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert sockets.upstream.peers.empty()
    assert b"0123456789" not in sockets.stage.log_output.getvalue()


async def test_a_socket_without_upgrade_is_an_ordinary_request(sockets: Sockets) -> None:
    """GET on a route for sockets passes through."""
    response = await sockets.stage.ask(None, method="GET", path="/v1/realtime")
    peer = await sockets.upstream.next_peer()
    peer.transport.write(b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\n\r\n")
    await response.read_end()

    assert response.status == 426
    peer.transport.close()


async def test_bytes_behind_the_handshake_reach_the_upstream_only_as_messages(sockets: Sockets) -> None:
    """CVE-2026-2833: what comes early waits until the upstream has agreed."""
    client = await sockets.stage.client()
    response = client.expect("GET")
    request = handshake(client, PATHS[0], [("authorization", f"Bearer {KEY}")])
    await client.send(request + make_frame(TEXT, b"early", masked=True))
    peer = await sockets.upstream.next_peer()
    await run_ticks(20)
    assert peer.data == b""
    peer.accept()
    await response.read_head()

    assert response.status == 101
    assert await peer.next_frame() == (TEXT, b"early")
    await client.close()
