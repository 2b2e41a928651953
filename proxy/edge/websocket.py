"""Relay a WebSocket between a client and an upstream: messages both ways, the close code of whoever closes first.

Only two routes may be upgraded (`/v1/realtime`, `/v1/responses`). The upstream is connected before the client is
answered, so that a refusal reaches the client as an ordinary HTTP error. Nothing is shared and nothing is kept: a
message is held only while it is passed on, and a side that does not read holds up the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, Protocol

from aiohttp import WSMsgType, web

from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from proxy.policy.plan import Plan
from proxy.protocol.message import HeaderList
from proxy.upstream.base import Origin, Patience

MAX_MESSAGE_BYTES: Final = 64 << 20
_CLOSE_S: Final = 5.0
_ABNORMAL: Final = 1006
_GOING_AWAY: Final = 1001
_INTERNAL: Final = 1011

# Fields of the client's handshake; the upstream gets a handshake of its own.
_HANDSHAKE: Final = frozenset(
    (
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"sec-websocket-accept",
    )
)


class UpstreamSocket(Protocol):
    """The upstream's end."""

    @property
    def close_code(self) -> int | None: ...

    @property
    def close_reason(self) -> str: ...

    @property
    def protocol(self) -> str | None:
        """The subprotocol the upstream chose."""

    async def receive(self) -> str | bytes | None:
        """The next message, ``None`` once the socket is closed."""

    async def send_text(self, text: str) -> None: ...

    async def send_bytes(self, data: bytes) -> None: ...

    async def close(self, code: int, reason: str) -> None: ...


class Dial(Protocol):
    """Opens the upstream's end. Raises ``ProxyError`` when that fails."""

    def __call__(
        self, origin: Origin, target: str, headers: HeaderList, protocols: tuple[str, ...], patience: Patience
    ) -> Awaitable[UpstreamSocket]: ...


class SocketRelay:
    """Relays one upgraded request at a time; knows how many are open."""

    # Mutable state: open, written by `run` only.
    __slots__ = ("_dial", "_open")

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._open: dict[asyncio.Task[object], web.WebSocketResponse] = {}

    @property
    def open(self) -> int:
        return len(self._open)

    async def run(self, request: web.BaseRequest, exchange: Exchange, plan: Plan) -> None:
        """Carry the socket to its end. Raises ``ProxyError``, with the client still to be answered, if that fails."""
        offered = exchange.head.get(b"sec-websocket-protocol").decode("latin-1")
        protocols = tuple(word.strip() for word in offered.split(",") if word.strip())
        headers = [header for header in plan.headers if header[0] not in _HANDSHAKE]
        target = plan.target
        upstream = await self._dial(
            Origin(target.scheme, target.host, target.port), plan.upstream_path, headers, protocols, _patience(plan)
        )
        chosen = (upstream.protocol,) if upstream.protocol else ()
        client = web.WebSocketResponse(
            protocols=chosen, max_msg_size=MAX_MESSAGE_BYTES, compress=False, autoping=True, timeout=_CLOSE_S
        )
        client.headers["x-sameflight-request-id"] = exchange.request_id
        try:
            await client.prepare(request)
        except Exception as refused:
            await upstream.close(_GOING_AWAY, "")
            raise ProxyError(
                Kind.BAD_REQUEST, "The WebSocket handshake is not valid.", detail=repr(refused), why="handshake"
            ) from refused
        exchange.status = 101
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = client
        try:
            exchange.outcome = await _relay(client, upstream, exchange)
        finally:
            del self._open[task]

    async def close(self) -> None:
        """End every open socket, as the end of a drain."""
        for client in tuple(self._open.values()):
            await client.close(code=_GOING_AWAY, message=b"proxy shutting down")


async def _relay(client: web.WebSocketResponse, upstream: UpstreamSocket, exchange: Exchange) -> str:
    """Pass messages until one side closes; then close the other with the same code. Returns the outcome."""
    down = asyncio.ensure_future(_downwards(client, upstream, exchange))
    up = asyncio.ensure_future(_upwards(client, upstream, exchange))
    try:
        done, _ = await asyncio.wait((down, up), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (down, up):
            task.cancel()
        await asyncio.gather(down, up, return_exceptions=True)
    if down in done:
        code = _sendable(upstream.close_code, _INTERNAL)
        await client.close(code=code, message=upstream.close_reason.encode())
        await upstream.close(code, "")
        return "ok" if code < _INTERNAL else "stream_broken"
    await upstream.close(_sendable(client.close_code, _GOING_AWAY), "")
    await client.close()
    return "ok" if client.close_code not in (None, _ABNORMAL) else "client_gone"


async def _downwards(client: web.WebSocketResponse, upstream: UpstreamSocket, exchange: Exchange) -> None:
    while (message := await upstream.receive()) is not None:
        exchange.bytes_out += len(message)
        if isinstance(message, str):
            await client.send_str(message)
        else:
            await client.send_bytes(message)


async def _upwards(client: web.WebSocketResponse, upstream: UpstreamSocket, exchange: Exchange) -> None:
    while True:
        message = await client.receive()
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            return
        exchange.bytes_in += len(message.data)
        if message.type is WSMsgType.TEXT:
            await upstream.send_text(message.data)
        else:
            await upstream.send_bytes(message.data)


def _sendable(code: int | None, otherwise: int) -> int:
    """A code that may stand in a close frame (RFC 6455, 7.4): the side's own, or ``otherwise`` if it gave none."""
    if code is None or code in (1004, 1005, _ABNORMAL, 1015) or not 1000 <= code < 5000:
        return otherwise
    return code


def _patience(plan: Plan) -> Patience:
    return Patience(first_byte_s=plan.first_byte_s, idle_s=plan.idle_s, total_s=plan.total_s)
