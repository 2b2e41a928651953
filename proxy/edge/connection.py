"""A client's connection: aiohttp's request handler with the deadlines and bounds it lacks.

aiohttp parses, keeps alive and pipelines; this subclass adds a deadline and a size for the head of each request, a
deadline for a client that stops reading, errors as JSON instead of HTML, and tells the relay of the running exchange
at once when the client's buffer fills up, drains, or the client is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import RequestHandler

from proxy.clock import Deadline
from proxy.edge import web
from proxy.edge.heads import Extent
from proxy.edge.relay import Relay
from proxy.edge.respond import STATUS_LINES
from proxy.edge.sockets import PARTING_S, has_hung_up, reset
from proxy.errors import Kind, ProxyError
from proxy.exchange import make_request_id
from proxy.protocol.answer import AnswerHead, render_headers
from proxy.protocol.faults import error_body, error_headers
from proxy.protocol.routes import MAX_TARGET_BYTES, Dialect

if TYPE_CHECKING:
    from proxy.edge.server import DataServer

MAX_LINE_BYTES: Final = 2 * MAX_TARGET_BYTES
"""Longer targets are not even parsed; between this and ``MAX_TARGET_BYTES`` the refusal knows the dialect."""


class Written:
    """What a handler returns to aiohttp when the relay has written the response itself."""

    __slots__ = ("keep_alive",)

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing left to prepare."""

    async def write_eof(self) -> None:
        """Nothing left to write."""


class Connection(RequestHandler):
    """One client connection. Implements `relay.Wire` for the exchange that runs on it."""

    # Mutable state: relay (set by the server for the running exchange), _head_deadline and _head_bytes (of a head
    # that has begun and is not complete), long_head (once a head may have been too large, to be looked at), _stall
    # (while the client takes nothing), _full, _parting (while what comes after the last answer is thrown away),
    # _extent (of the last request, on a connection that was the fast lane's).
    def __init__(self, server: DataServer, **options: Any) -> None:
        super().__init__(server, **options)
        self.server = server
        self.relay: Relay | None = None
        self._head_deadline: Deadline | None = None
        self._head_bytes = 0
        self.long_head = False
        self._stall: Deadline | None = None
        self._full = False
        self._parting: Deadline | None = None
        self._extent: Extent | None = None

    # -- the transport's calls -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.server.opened += 1
        self._expect_head()

    def adopt(self, transport: asyncio.Transport, reads: list[bytes]) -> None:
        """Take over from the fast lane, with what it has read and did not heed."""
        transport.set_protocol(self)
        super().connection_made(transport)
        self._expect_head()
        self._extent = Extent()
        for data in reads:  # one by one: aiohttp drops what comes in one read with an error
            self._extent.feed(data)
            self._receive(data)

    def data_received(self, data: bytes) -> None:
        extent = self._extent
        if extent is not None and data:  # aiohttp calls this without any to parse on
            if extent.whole:
                if self._is_at_rest() and self.server.heads.read(data) is not None:
                    self._give_back(data)
                    return
                extent = self._extent = Extent()
            extent.feed(data)
        self._receive(data)

    def _is_at_rest(self) -> bool:
        """aiohttp's task waits for the next request, and nothing is on its way in either direction."""
        waits = self._waiter is not None and not self._waiter.done()
        return waits and self.relay is None and not self._messages and not self._full and not self._force_close

    def _give_back(self, data: bytes) -> None:
        """The request is plain, and the last one ended where it begins: the connection is the fast lane's again."""
        transport = self.transport
        assert transport is not None
        self.transport = None  # else it would be closed
        self.connection_lost(None)
        self.server.forget(self)
        self.server.make_lane().adopt(transport, data)

    def _receive(self, data: bytes) -> None:
        if self._force_close:
            return
        if self._parting is not None:
            return  # thrown away
        # Only while no request is under way: bytes of a body, or of one that is being discarded, are no head.
        # A parsed head waits in `_messages` until aiohttp's task takes it, and its body may come before that.
        waits = self._waiter is not None or not self._request_count
        idle = waits and self.relay is None and not self._messages
        before = self._request_count
        if not idle or self._head_bytes + len(data) > self.server.max_header_bytes:
            self.long_head = True  # or came behind another request, uncounted
        super().data_received(data)
        if self._request_count != before:
            self._head_bytes = 0
            self._forget_head()
        elif idle:
            self._head_bytes += len(data)
            if self._head_bytes > self.server.max_header_bytes:
                self.refuse(ProxyError(Kind.HEADERS_TOO_LARGE, "The request head is too large."))
            elif self._head_deadline is None:
                self._expect_head()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio heeds the answer, aiohttp gives none
        # FIN counts as gone: a client that hung up and one that only closed its half look the same, and an upstream
        # call must not be paid for the former. The setting serves clients that really do the latter.
        if self.server.abort_on_half_close or self.relay is None:
            return False
        self.relay.close_after = True
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget_head()
        self._forget_stall()
        if self._parting is not None:
            self._parting.cancel()
            self._parting = None
        self.server.deaf.pop(self, None)
        relay = self.relay
        if relay is not None:
            relay.lost()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._full = True
        self._stall = self.server.tools.deadlines.arm(self.server.write_stall_s, self._stalled)
        if self.relay is not None:
            self.relay.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._full = False
        self._forget_stall()
        if self.relay is not None:
            self.relay.resume()

    def _pause_transport_reading(self) -> None:
        super()._pause_transport_reading()
        self.server.deaf[self] = None

    def _resume_transport_reading(self) -> None:
        super()._resume_transport_reading()
        self.server.deaf.pop(self, None)

    def has_hung_up(self) -> bool:
        return has_hung_up(self.transport)

    # -- deadlines -------------------------------------------------------------------------------------------

    def _expect_head(self) -> None:
        self._head_deadline = self.server.tools.deadlines.arm(self.server.head_timeout_s, self._head_overdue)

    def _forget_head(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _head_overdue(self) -> None:
        self._head_deadline = None
        if self._head_bytes:
            self.refuse(ProxyError(Kind.REQUEST_TIMEOUT, "The request head came too slowly.", why="head_timeout"))
        else:
            self.server.count_closed("idle")
            self.close_now()

    def _forget_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _stalled(self) -> None:
        self._stall = None
        self.server.count_closed("write_stall")
        self.abort()

    def part(self) -> None:
        """Close after an answer that the client did not wait for: what it still sends is thrown away for a moment,
        because a close upon unread bytes is a reset, and a reset takes the answer with it."""
        transport = self.transport
        if transport is None or transport.is_closing() or self._parting is not None:
            return
        self._force_close = True  # aiohttp parses nothing any more, and leaves the transport alone
        if self._waiter is not None:
            self._waiter.cancel()
        self._forget_head()
        self._parting = self.server.tools.deadlines.arm(PARTING_S, self._parted)
        try:
            transport.write_eof()
            transport.resume_reading()
        except OSError:  # the client is gone, and the loop has not said so yet
            transport.abort()

    def _parted(self) -> None:
        self._parting = None
        if self.transport is not None:
            self.transport.close()

    # -- relay.Wire ------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def abort(self) -> None:
        if self.transport is not None:
            reset(self.transport)

    def close_now(self) -> None:
        self.force_close()

    async def drained(self) -> None:
        """Until the client took what was written, stalled for too long, or left."""
        with contextlib.suppress(ConnectionError):
            await self._drain_helper()

    @property
    def full(self) -> bool:
        return self._full

    # -- errors before there is an exchange ------------------------------------------------------------------

    def refuse(self, error: ProxyError) -> None:
        """Answer a request that never became one, and close."""
        self.server.reject(error)
        self.write(refusal(error))
        self.part()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> Any:
        """aiohttp's hook for bytes that are no request, and for exceptions that a handler let out."""
        if status == 400:
            error = _unreadable(exc)
        else:
            error = ProxyError(Kind.BUG, "Internal error.", detail=repr(exc))
            self.server.pipeline.books.bug("edge", exc or error)
        self.refuse(error)
        return Written(keep_alive=False)


def refusal(error: ProxyError) -> bytes:
    """A whole response for ``error`` where no route, hence no dialect, is known."""
    request_id = make_request_id()
    body = error_body(error, Dialect.OPENAI, request_id)
    head = AnswerHead(error.kind.status, error_headers(error, request_id))
    return b"%b%bx-sameflight-request-id: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
        STATUS_LINES[head.status],
        render_headers(head.shared),
        request_id.encode(),
        len(body),
        body,
    )


def _unreadable(exc: BaseException | None) -> ProxyError:
    if isinstance(exc, LineTooLong):
        if exc.args[1] == MAX_LINE_BYTES:
            return ProxyError(Kind.URI_TOO_LONG, "The request target is too long.")
        return ProxyError(Kind.HEADERS_TOO_LARGE, "The request head has a line that is too long.")
    if isinstance(exc, BadHttpMessage) and exc.message == "Too many headers received":
        return ProxyError(Kind.HEADERS_TOO_LARGE, "The request has too many headers.")
    return ProxyError(Kind.BAD_REQUEST, "The request is not valid HTTP/1.1.", detail=repr(exc), why="not_http")
