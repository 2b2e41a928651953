"""``SessionTransport``: the same seam over aiohttp's client, for what is not hot, and WebSockets for the relay.

It serves origins behind an outbound HTTP proxy (CONNECT for ``https``, absolute-form for ``http``). Bytes pass as
they are: nothing is decompressed, no cookie is kept, no redirect followed, no header added but framing, ``host`` and
``connection: close``.

Every exchange has a connection of its own. aiohttp 3.14 takes bytes that arrive on an idle connection for the answer
to the next request, so a connection that is never idle is the only safe one.

Together with `websocket` it is
the only module of the room that imports aiohttp.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from proxy.clock import Clock, Deadlines
from proxy.errors import ProxyError
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.upstream import faults
from proxy.upstream.base import BodySource, Call, Origin, Over, Patience, Receiver, UpstreamRequest
from proxy.upstream.body import MeasuredBody
from proxy.upstream.counts import Caps
from proxy.upstream.dns import Resolver
from proxy.upstream.until import Until
from proxy.upstream.websocket import HandshakeRefusedError, UpstreamSocket

_SKIPPED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_FOREVER = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
_MESSAGE_BYTES = 64 * 1024 * 1024
_LARGE_BYTES = 512 * 1024
_FAREWELL_S = 2.0

ProxyFor = Callable[[Origin], str | None]


def _always_direct(origin: Origin) -> str | None:
    return None


class _Try:
    """One attempt: its phase, its deadline, and the receiver's ``Control``."""

    # `begin`, `expect` and `suspend` write the phase, pause and resume the future; failure is a body source's error.
    __slots__ = (
        "_clock",
        "_patience",
        "_receiver",
        "_resumed",
        "_total_at",
        "connected",
        "failure",
        "until",
        "why",
    )

    def __init__(
        self, clock: Clock, deadlines: Deadlines, receiver: Receiver, patience: Patience
    ) -> None:
        self._clock = clock
        self._patience = patience
        self._receiver = receiver
        self._resumed: asyncio.Future[None] | None = None
        now = clock.now()
        self._total_at = now + patience.total_s
        self.why = "connect"
        self.connected = False
        self.failure: BaseException | None = None
        self.until = Until(deadlines, min(now + patience.connect_s, self._total_at))

    def begin(self) -> None:
        """The connection is there."""
        self.connected = True
        self.expect("first_byte", self._patience.first_byte_s)
        self._receiver.on_start(self)

    def expect(self, why: str, seconds: float) -> None:
        at = self._clock.now() + seconds
        self.why = why if at < self._total_at else "total"
        self.until.move(min(at, self._total_at))

    def suspend(self) -> None:
        """Somebody else is waited for: only the total counts."""
        self.why = "total"
        self.until.move(self._total_at)

    def pause(self) -> None:
        if self._resumed is None:
            self._resumed = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None and not resumed.done():
            resumed.set_result(None)

    async def ready(self) -> None:
        """Until the receiver takes more."""
        while self._resumed is not None:
            self.suspend()
            await self._resumed


class _Names(AbstractResolver):
    """Our resolver, as aiohttp asks for it."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port)
        return [
            ResolveResult(
                hostname=host, host=address[0], port=port, family=family_, proto=proto, flags=socket.AI_NUMERICHOST
            )
            for family_, _, proto, _, address in found
            if family in (socket.AF_UNSPEC, family_)
        ]

    async def close(self) -> None:
        pass


async def _on_connected(_session: aiohttp.ClientSession, context: Any, _: object) -> None:
    if context.trace_request_ctx is not None:  # a WebSocket's handshake has none
        context.trace_request_ctx.begin()


class SessionTransport:
    """Carries requests over ``aiohttp.ClientSession``, through ``proxy_for(origin)`` where that names a proxy."""

    # running is written by `exchange`, `connect_websocket` and `_leave`, _refusing by `close`.
    __slots__ = ("_caps", "_clock", "_deadlines", "_limit", "_proxy_for", "_refusing", "_session", "running")

    def __init__(
        self,
        clock: Clock,
        deadlines: Deadlines,
        resolver: Resolver,
        tls: ssl.SSLContext,
        proxy_for: ProxyFor = _always_direct,
        *,
        limit: int = 1000,
        caps: Caps | None = None,
    ) -> None:
        """``limit`` bounds exchanges under way; the next one is refused, there is no queue."""
        self._clock = clock
        self._deadlines = deadlines
        self._proxy_for = proxy_for
        self._limit = limit
        self._caps = caps or Caps()
        self._refusing = False
        self.running = 0
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_on_connected)
        connector = aiohttp.TCPConnector(
            limit=0, ssl=tls, resolver=_Names(resolver), use_dns_cache=False, force_close=True
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_SKIPPED,
            auto_decompress=False,
            timeout=_FOREVER,
            trace_configs=[trace],
            max_line_size=self._caps.head_bytes,
            max_field_size=self._caps.head_bytes,
            max_headers=self._caps.headers,
        )

    def start(self, request: UpstreamRequest, receiver: Receiver, patience: Patience, over: Over) -> Call | None:
        """Never: a session has no way to send without waiting."""
        return None

    async def exchange(self, request: UpstreamRequest, receiver: Receiver, patience: Patience) -> None:
        """See ``base.Transport``."""
        self._admit()
        self.running += 1
        attempt = _Try(self._clock, self._deadlines, receiver, patience)
        try:
            await self._carry(request, receiver, patience, attempt)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise self._explain(attempt, error) from None
        finally:
            await self._leave()

    def _admit(self) -> None:
        if self._refusing:
            raise faults.draining()
        if self.running >= self._limit:
            raise faults.overloaded("pool_full")

    async def _carry(
        self, request: UpstreamRequest, receiver: Receiver, patience: Patience, attempt: _Try
    ) -> None:
        async with attempt.until:
            response = await self._session.request(
                request.method,
                _url(request.origin, request.target),
                headers=_headers(request),
                data=_data(request, attempt, patience),
                allow_redirects=False,
                proxy=self._proxy_for(request.origin),
                trace_request_ctx=attempt,
            )
            try:
                await self._receive(response, receiver, patience, attempt)
            finally:
                response.close()

    async def _receive(
        self, response: aiohttp.ClientResponse, receiver: Receiver, patience: Patience, attempt: _Try
    ) -> None:
        head = self._accept(response)
        content = response.content
        body = content.read_nowait()
        ended = content.at_eof()
        received_bytes = len(body)
        receiver.on_read(head, body, ended)
        while not ended:
            await attempt.ready()
            attempt.expect("idle", patience.idle_s)
            body = await content.readany()
            ended = content.at_eof()
            received_bytes += len(body)
            if received_bytes > self._caps.body_bytes:
                raise faults.too_large(self._caps.body_bytes)
            if body or ended:
                receiver.on_read(None, body, ended)

    def _accept(self, response: aiohttp.ClientResponse) -> ResponseHead:
        """The head, or ``ProxyError`` if it is one that this proxy does not accept."""
        if response.status < 200:
            raise faults.bad_response("switching_protocols")
        headers = [(name.lower(), value) for name, value in response.raw_headers]
        if len(headers) > self._caps.headers:
            raise faults.bad_response("too_many_headers", str(len(headers)))
        if sum(len(name) + len(value) + 4 for name, value in headers) > self._caps.head_bytes:
            raise faults.bad_response("head_too_large")
        if (response.content_length or 0) > self._caps.body_bytes:
            raise faults.too_large(self._caps.body_bytes)
        return ResponseHead(response.status, headers)

    def _explain(self, attempt: _Try, error: BaseException) -> BaseException:
        """What the failure means in our own terms."""
        if attempt.failure is not None:
            return attempt.failure  # the body's source broke off; aiohttp only reports that sending failed
        if attempt.until.expired:
            return faults.timed_out(attempt.why)
        return _explain(error, connected=attempt.connected)

    async def connect_websocket(
        self, origin: Origin, target: str, headers: HeaderList, protocols: Sequence[str], patience: Patience
    ) -> UpstreamSocket:
        """Open a WebSocket; ``connect_s`` and ``first_byte_s`` bound the handshake.

        Raises ``HandshakeRefusedError`` with the upstream's head, or ``ProxyError`` as ``exchange`` does.
        """
        self._admit()
        self.running += 1
        until = Until(self._deadlines, self._clock.now() + patience.connect_s + patience.first_byte_s)
        try:
            async with until:
                opened = await self._session.ws_connect(
                    _url(origin, target),
                    headers=_fields(headers),
                    protocols=protocols,
                    proxy=self._proxy_for(origin),
                    compress=0,
                    max_msg_size=_MESSAGE_BYTES,
                    autoclose=False,  # the relay answers a farewell, once the client has heard of it
                    timeout=aiohttp.ClientWSTimeout(ws_close=_FAREWELL_S),
                )
        except BaseException as error:
            await self._leave()
            if isinstance(error, aiohttp.WSServerHandshakeError):
                fields = [
                    (name.lower().encode(), value.encode("utf-8", "surrogateescape"))
                    for name, value in (error.headers or {}).items()
                ]
                raise HandshakeRefusedError(ResponseHead(error.status, fields)) from None
            if until.expired:
                raise faults.timed_out("connect") from None
            if isinstance(error, (aiohttp.ClientError, OSError, ValueError)):
                raise _explain(error, connected=False) from None
            raise
        return UpstreamSocket(opened, self._leave)

    async def _leave(self) -> None:
        """One fewer is under way; the last one out closes the session of a closed transport."""
        self.running -= 1
        if self._refusing and self.running == 0:
            await self._session.close()

    async def close(self) -> None:
        """Refuse new exchanges; running ones and open WebSockets go on, and the last of them closes the session."""
        self._refusing = True
        if self.running == 0:
            await self._session.close()


def _url(origin: Origin, target: str) -> URL:
    return URL(f"{origin}{target}", encoded=True)


def _fields(headers: HeaderList) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), _text(value)) for name, value in headers]


def _text(value: bytes) -> str:
    """aiohttp writes text as UTF-8, so that is what turns back into the same bytes."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _headers(request: UpstreamRequest) -> list[tuple[str, str]]:
    fields = _fields(request.headers)
    body = request.body
    length = (len(body) or None) if isinstance(body, bytes) else body.length
    if length is not None:
        fields.append(("content-length", str(length)))
    return fields


def _data(request: UpstreamRequest, attempt: _Try, patience: Patience) -> bytes | AsyncIterator[bytes] | None:
    body = request.body
    if isinstance(body, bytes):
        if len(body) > _LARGE_BYTES:
            return _slices(body)
        return body or None
    return _pieces(body, attempt, patience)


async def _slices(body: bytes) -> AsyncIterator[bytes]:
    """A large body in parts: aiohttp warns when it is handed a megabyte at once."""
    for start in range(0, len(body), _LARGE_BYTES):
        yield body[start : start + _LARGE_BYTES]


async def _pieces(source: BodySource, attempt: _Try, patience: Patience) -> AsyncIterator[bytes]:
    """The streamed body, with a deadline on sending a piece and none on waiting for the next."""
    body = MeasuredBody(source)
    attempt.suspend()
    try:
        while piece := await body.read():
            attempt.expect("idle", patience.idle_s)
            yield piece
            attempt.suspend()
    except Exception as error:
        attempt.failure = error
        raise
    attempt.expect("first_byte", patience.first_byte_s)


def _explain(error: BaseException, *, connected: bool) -> ProxyError:
    """One of aiohttp's exceptions in our own terms."""
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
        return faults.untrusted(repr(error))
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return faults.unreachable("proxy", f"the outbound proxy answered {error.status}")
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError):
        return faults.unreachable("refused", repr(error))
    if not connected and isinstance(error, (aiohttp.ClientConnectionError, OSError)):
        return faults.unreachable("unreachable", repr(error))
    if isinstance(error, aiohttp.ClientPayloadError):
        return faults.reset("truncated", repr(error))
    if isinstance(error, aiohttp.ClientResponseError):
        return faults.bad_response("garbage", error.message)
    if isinstance(error, (aiohttp.ClientConnectionError, OSError)):
        return faults.reset("reset", repr(error))
    return faults.malformed_request(repr(error))
