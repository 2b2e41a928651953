"""Relay a WebSocket between a client and an upstream: messages both ways, the close code of whoever closes first.

Only two routes may be upgraded (`/v1/realtime`, `/v1/responses`). The upstream is connected before the client is
answered, so that a refusal reaches the client as an ordinary HTTP error. Nothing is shared and nothing is kept: a
message is held only while it is passed on, and a side that does not read holds up the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, NamedTuple, Protocol

from aiohttp import WSMsgType

from proxy.access.identity import VIRTUAL_PREFIX
from proxy.edge import web
from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from proxy.policy.plan import Plan
from proxy.protocol.answer import AnswerHead
from proxy.protocol.faults import error_body
from proxy.protocol.headers import private_response_headers
from proxy.protocol.message import HeaderList, RequestHead, ResponseHead
from proxy.protocol.routes import Dialect
from proxy.upstream.base import Origin, Patience

MAX_MESSAGE_BYTES: Final = 64 << 20
_CLOSE_S: Final = 5.0
_NORMAL: Final = 1000
_GOING_AWAY: Final = 1001
_NONE_GIVEN: Final = (0, 1005)
_INTERNAL: Final = 1011
_FIRST_APPLICATION_CODE: Final = 3000

# How browsers, which can set no header, send a credential.
_KEY_PROTOCOL: Final = "openai-insecure-api-key."
_VIRTUAL: Final = VIRTUAL_PREFIX.decode()

_REFUSALS: Final = {
    401: Kind.INVALID_KEY,
    403: Kind.FORBIDDEN,
    404: Kind.NOT_FOUND,
    429: Kind.RATE_LIMITED,
}

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
        principal = exchange.principal
        protocols = _offered(exchange.head, known=principal is not None and principal.key is not None)
        if not web.WebSocketResponse(protocols=protocols).can_prepare(request):
            raise ProxyError(Kind.BAD_REQUEST, "The WebSocket handshake is not valid.", why="handshake")
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
        except ConnectionError as gone:
            await upstream.close(_GOING_AWAY, "")
            raise ProxyError(Kind.CLIENT_GONE, "The client went away.", detail=repr(gone)) from gone
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
        farewells = [
            client.close(code=_GOING_AWAY, message=b"proxy shutting down") for client in self._open.values()
        ]
        await asyncio.gather(*farewells, return_exceptions=True)


class _Farewell(NamedTuple):
    """What a close frame said."""

    code: int
    reason: str


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
    # A side that cannot be written to has gone, just as one that has nothing more to say.
    if (down in done and down.exception() is None) or (up in done and up.exception() is not None):
        code = _sendable(upstream.close_code, _INTERNAL)
        await client.close(code=code, message=upstream.close_reason.encode())
        await upstream.close(code, "")
        return "ok" if code < _INTERNAL or code >= _FIRST_APPLICATION_CODE else "stream_broken"
    farewell = up.result() if up in done else None
    if farewell is None:
        await upstream.close(_GOING_AWAY, "")
    else:
        await upstream.close(_sendable(farewell.code, _GOING_AWAY), farewell.reason)
    await client.close()
    return "ok" if farewell is not None else "client_gone"


async def _downwards(client: web.WebSocketResponse, upstream: UpstreamSocket, exchange: Exchange) -> None:
    while (message := await upstream.receive()) is not None:
        exchange.bytes_out += len(message)
        if isinstance(message, str):
            await client.send_str(message)
        else:
            await client.send_bytes(message)


async def _upwards(
    client: web.WebSocketResponse, upstream: UpstreamSocket, exchange: Exchange
) -> _Farewell | None:
    """Returns how the socket was closed, by the client or by a drain; ``None`` if the client just went away."""
    while True:
        message = await client.receive()
        if message.type is WSMsgType.CLOSE:
            return _Farewell(message.data, message.extra or "")
        if message.type is WSMsgType.CLOSING:
            return _Farewell(_GOING_AWAY, "")
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            return None
        exchange.bytes_in += len(message.data)
        if message.type is WSMsgType.TEXT:
            await upstream.send_text(message.data)
        else:
            await upstream.send_bytes(message.data)


def _sendable(code: int | None, otherwise: int) -> int:
    """A code that may stand in a close frame (RFC 6455, 7.4): the side's own, ``otherwise`` if it broke off."""
    if code in _NONE_GIVEN:
        return _NORMAL
    if code is None or code in (1004, 1006, 1015) or not 1000 <= code < 5000:
        return otherwise
    return code


def _offered(head: RequestHead, *, known: bool) -> tuple[str, ...]:
    """The subprotocols the client offers, less a key of ours: they go upstream. Raises ``ProxyError`` for such a key
    if it is not ``known`` to be the caller's."""
    words = [word.strip() for word in head.get(b"sec-websocket-protocol").decode("latin-1").split(",")]
    ours = [word for word in words if word.removeprefix(_KEY_PROTOCOL).startswith(_VIRTUAL)]
    if ours and not known:
        raise ProxyError(Kind.INVALID_KEY, "This Sameflight key is not known here.")
    return tuple(word for word in words if word and word not in ours)


def refusal_of(head: ResponseHead, dialect: Dialect, request_id: str) -> tuple[AnswerHead, bytes]:
    """The answer for a client whose handshake the upstream refused: the upstream's status and headers. Its body was
    not read, so ours says what happened."""
    headers = [
        header for header in private_response_headers(head) if header[0] not in (b"content-type", b"content-encoding")
    ]
    headers += [(b"content-type", b"application/json"), (b"x-sameflight-request-id", request_id.encode())]
    kind = _REFUSALS.get(head.status, Kind.UPSTREAM_BAD_RESPONSE)
    error = ProxyError(kind, f"The upstream refused the WebSocket with status {head.status}.")
    return AnswerHead(head.status, headers), error_body(error, dialect, request_id)


def _patience(plan: Plan) -> Patience:
    return Patience(first_byte_s=plan.first_byte_s, idle_s=plan.idle_s, total_s=plan.total_s)
