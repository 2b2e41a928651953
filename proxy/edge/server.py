"""The data listener: accepts connections and carries each request into the pipeline.

aiohttp's low-level server, without an application, a router or middleware, and the fast lane in front of it. For each
request: head → admit → body → serve → wait for the relay; everything that is decided is decided in the pipeline.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from proxy.admission import Intent
from proxy.clock import Clock
from proxy.edge import web
from proxy.edge.body import BodyLimits, Upload, read_whole, too_large
from proxy.edge.connection import MAX_LINE_BYTES, Connection, Written
from proxy.edge.heads import PlainHeads
from proxy.edge.lane import Lane
from proxy.edge.relay import EdgeTools, Relay
from proxy.edge.sockets import PARTING_S, has_sent, say_goodbye
from proxy.edge.websocket import SocketRelay, refusal_of
from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from proxy.pipeline import Pipeline
from proxy.protocol.answer import AnswerHead
from proxy.protocol.message import RequestHead, make_request_head
from proxy.protocol.routes import Located, locate
from proxy.upstream.websocket import HandshakeRefusedError

_LOOK_EVERY_S: Final = 5.0
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEALTH: Final = AnswerHead(200, [(b"content-type", b"application/json"), (b"cache-control", b"no-store")])


class DataServer(web.Server):
    """Makes a `Lane` or a `Connection` for each client and handles the requests of the latter."""

    def __init__(
        self,
        pipeline: Pipeline,
        tools: EdgeTools,
        limits: BodyLimits,
        *,
        max_header_bytes: int,
        head_timeout_s: float,
        write_stall_s: float,
        keepalive_s: float,
        abort_on_half_close: bool,
        sockets: SocketRelay,
        fast_lane: bool = True,
    ) -> None:
        super().__init__(
            self.handle,
            access_log=None,
            keepalive_timeout=keepalive_s,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=max_header_bytes,
            max_headers=256,
            auto_decompress=False,
            lingering_time=5.0,
        )
        # For the process.
        self.clock: Clock = tools.clock
        self.pipeline = pipeline
        self.tools = tools
        self.limits = limits
        self.max_header_bytes = max_header_bytes
        self.head_timeout_s = head_timeout_s
        self.write_stall_s = write_stall_s
        self.abort_on_half_close = abort_on_half_close
        self.sockets = sockets
        self.fast_lane = fast_lane
        self.heads = PlainHeads(max_header_bytes)
        self.loop = self._loop
        self.keepalive_s = keepalive_s
        # No shorter than this is anything that a fast lane waits for.
        self.look_every_s = min(
            _LOOK_EVERY_S, PARTING_S, head_timeout_s, keepalive_s, write_stall_s, limits.timeout_s
        )
        # Mutable state: counters, and the switch that a drain throws.
        self.draining = False
        self.opened = 0
        self.closed_why: dict[str, int] = {}
        self.running = 0
        self.deaf: dict[Connection | Lane, None] = {}
        """Connections that are not read at the moment, because what they sent is not taken; kept by them."""
        self.idle: asyncio.Future[None] | None = None
        """Set by a drain: resolved when no exchange runs any more."""

    def __call__(self) -> Connection | Lane:  # type: ignore[override]  # what a transport needs of a protocol
        return self.make_lane() if self.fast_lane else self.make_connection()

    def make_lane(self) -> Lane:
        return Lane(self)

    def make_connection(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)

    @property
    def clients(self) -> list[Connection | Lane]:
        """Every open connection, on either lane."""
        return cast("list[Connection | Lane]", self.connections)

    def enter(self, lane: Lane, transport: asyncio.Transport) -> None:
        self._connections[cast("RequestHandler", lane)] = transport

    def leave(self, lane: Lane) -> None:
        self._connections.pop(cast("RequestHandler", lane), None)
        self.deaf.pop(lane, None)

    def forget(self, connection: Connection) -> None:
        self._connections.pop(connection, None)

    def end_exchange(self) -> None:
        self.running -= 1
        if not self.running and self.idle is not None:
            _resolve(self.idle)

    def announce(self) -> None:
        """From now on each connection ends with the next answer whose head can say so."""
        self.draining = True
        for connection in self.clients:
            relay = connection.relay
            if relay is not None and not relay.exchange.head_out_at:
                relay.close_after = True

    def part_idle(self, idle_since: dict[Connection | Lane, float], now: float, quiet_s: float) -> int:
        """Close connections that have been idle for ``quiet_s``; returns how many there are of any kind. A stream
        that had begun before `announce` could not say that it was the last answer, so its client may send another
        request on the connection, and gets an answer that does say so. ``idle_since`` is kept for the next call."""
        clients = self.clients
        for connection in clients:
            if connection.relay is not None:
                idle_since.pop(connection, None)
            elif now - idle_since.setdefault(connection, now) >= quiet_s:
                _part(connection)
        return len(clients)

    def hush(self) -> None:
        """From now on connections end with the answer they are at; idle ones end at once, but for those whose next
        request has come already."""
        self.draining = True
        for connection in self.clients:
            if connection.relay is None:
                _part(connection)
            else:
                connection.relay.close_after = True

    def find_gone(self) -> None:
        """Notice clients that left while nobody read from them (an upload that the upstream does not take, more
        pipelined requests than are served); a duty of the janitor."""
        if self.abort_on_half_close:
            for connection in [each for each in self.deaf if each.relay is not None and each.has_hung_up()]:
                connection.abort()

    def count_closed(self, why: str) -> None:
        self.closed_why[why] = self.closed_why.get(why, 0) + 1

    def reject(self, error: ProxyError) -> None:
        """Count a request that was refused before it was one."""
        self.count_closed(error.why)
        self.pipeline.count_rejection(error)

    async def handle(self, request: web.BaseRequest) -> Any:
        """Carry one request from its head to the end of its answer."""
        connection: Connection = request.protocol  # type: ignore[assignment]
        message = request._message
        now = self.clock.now()
        refused: ProxyError | None = None
        try:
            head = self._read_head(message, connection)
        except ProxyError as error:
            refused = error
            head = RequestHead(message.method, message.path, "", {}, [])
        exchange = Exchange(head, now)
        if refused is not None:
            exchange.located = _locate_anyhow(head)
        done = self._loop.create_future()
        relay = Relay(
            exchange,
            connection,
            self.pipeline,
            self.tools,
            http10=message.version[1] == 0,
            close_after=bool(message.should_close) or self.draining,
            on_done=lambda: _resolve(done),
        )
        connection.relay = relay
        self.running += 1
        try:
            if refused is not None:
                relay.close_after = True
                relay.fail(refused)
            elif head.path == "/health" and head.method in ("GET", "HEAD"):
                exchange.accounted = True  # probes are no traffic
                relay.answer(_HEALTH, b'{"status":"ok"}')
            else:
                await self._serve(request, exchange, relay, connection, done)
            if not relay.done:
                await done
        except Exception as bug:  # noqa: BLE001 - whatever it is, the client gets an answer and the books get a line
            self.pipeline.books.bug("edge", bug)
            relay.close_after = True
            relay.fail(ProxyError(Kind.BUG, "Internal error.", detail=repr(bug)))
        finally:
            if isinstance(exchange.body, Upload):
                exchange.body.close()
            connection.relay = None
            self.end_exchange()
        if connection.full and not relay.close_after:
            await connection.drained()  # else whoever pipelines and does not read makes us hold every answer
        if not request.content.is_eof():
            # An unread body is in the way of the next request on this connection.
            connection.part()
        return Written(keep_alive=not relay.close_after)

    def _read_head(self, message: RawRequestMessage, connection: Connection) -> RequestHead:
        """The head in our own terms. Raises ``ProxyError`` for one that the parser takes and we do not."""
        head = make_request_head(message.method, message.path, message.raw_headers)
        if message.version[0] != 1:
            raise ProxyError(Kind.BAD_REQUEST, "The request is not valid HTTP/1.1.", why="not_http")
        if message.chunked and message.version[1] == 0:
            raise ProxyError(Kind.BAD_REQUEST, "HTTP/1.0 knows no chunks.", why="framing")
        if connection.long_head:
            # The parser bounds each line of a head, and this all of them together.
            size = len(message.path) + sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
            if size > self.max_header_bytes:
                raise ProxyError(Kind.HEADERS_TOO_LARGE, "The request head is too large.")
        return head

    async def _serve(
        self,
        request: web.BaseRequest,
        exchange: Exchange,
        relay: Relay,
        connection: Connection,
        done: asyncio.Future[None],
    ) -> None:
        """Admit the head, read the body as the pipeline wants it, hand over."""
        head = exchange.head
        try:
            intent = self.pipeline.admit(exchange)
            if exchange.wait is not None:
                await exchange.wait
            if b"upgrade" in head.headers:
                await self._upgrade(request, exchange, relay, done)
                return
            declared = head.get(b"content-length")
            length = int(declared) if declared.isdigit() else None
            if intent is Intent.HOLD and length is not None and length > self.limits.max_bytes:
                raise too_large(self.limits.max_bytes)
            if head.get(b"expect").lower() == b"100-continue" and not relay.http10:
                connection.write(_CONTINUE)
            if intent is Intent.HOLD:
                if length != 0 and request.body_exists:
                    exchange.body = await read_whole(
                        request.content, length, self.limits, self.clock, self.tools.deadlines
                    )
                exchange.bytes_in = len(exchange.body)  # type: ignore[arg-type]  # bytes, as asked for
            else:
                exchange.body = Upload(
                    request.content,
                    length,
                    self.limits,
                    self.clock,
                    self.tools.deadlines,
                    count=exchange.count_in,
                )
        except ProxyError as error:
            # What follows a CONNECT is no request, and an unread body is in the way of one.
            unsafe = error.kind is Kind.METHOD_NOT_ALLOWED or not request.content.is_eof()
            relay.close_after = relay.close_after or unsafe
            relay.fail(error)
            return
        if not relay.done:
            self.pipeline.serve(exchange, relay)

    async def _upgrade(
        self, request: web.BaseRequest, exchange: Exchange, relay: Relay, done: asyncio.Future[None]
    ) -> None:
        head, located = exchange.head, exchange.located
        wanted = head.get(b"upgrade").lower() == b"websocket" and head.method == "GET"
        relay.close_after = True
        if not wanted or located is None or not located.route.websocket:
            raise ProxyError(Kind.UPGRADE_REFUSED, "Upgrading the connection is not possible here.")
        exchange.role = "alone"
        exchange.plan = self.pipeline.plan(exchange)
        await self.pipeline.clear(exchange)
        if relay.done:
            return  # the client left while its limits were asked for
        carrying = self._loop.create_task(self.sockets.run(request, exchange, exchange.plan))
        try:
            await asyncio.wait((carrying, done), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not carrying.done():  # the client left before it was answered, or the process ends
                carrying.cancel()
                await asyncio.wait((carrying,))
        if carrying.cancelled():
            return
        try:
            carrying.result()
        except HandshakeRefusedError as refused:
            if refused.head.status < 300:
                raise
            relay.answer(*refusal_of(refused.head, located.dialect, exchange.request_id))
        else:
            relay.hand_over()


def _part(connection: Connection | Lane) -> None:
    if not has_sent(connection.transport):
        say_goodbye(connection.transport)
        connection.close_now()


def _locate_anyhow(head: RequestHead) -> Located | None:
    """Where a refused request would have gone, for the dialect of its refusal."""
    try:
        return locate(RequestHead(head.method, head.path.partition("?")[0], "", {}, []))
    except ProxyError:
        return None


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
