"""One HTTP/1.1 connection to an upstream, as an asyncio protocol.

A connection carries one exchange at a time. The request leaves in one write; the response is pushed to the receiver
in the tick in which its bytes came in, one ``on_read`` for each read. There is no task, no timer and no await on
this path; the caller is called at the end, or waits for one future.

The law of this module: bytes of one exchange can never reach another. A connection goes back to its owner only when
its message ended cleanly, nothing came after it, and the request had left completely; in every other case the
connection is closed in the same tick.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Protocol, cast

from proxy.clock import Clock, Deadline, Deadlines
from proxy.errors import ProxyError
from proxy.upstream import faults
from proxy.upstream.base import BodySource, Patience, Receiver, UpstreamRequest
from proxy.upstream.body import MeasuredBody
from proxy.upstream.counts import Caps, Counts
from proxy.upstream.response import ResponseReader

# Up to here head and body are joined and leave in one write; above it the copy costs more than a second buffer.
_JOIN_BYTES = 64 * 1024
# A reused connection that dies silently later than this was not stale: the upstream was at work on the request.
_STALE_WITHIN_S = 1.0


class StaleError(Exception):
    """A reused connection died at once and without a byte: the request may go out again on a fresh one."""


class Owner(Protocol):
    """Who keeps connections between exchanges; ``pool.OriginPool``."""

    def release(self, connection: WireConnection, now: float) -> None:
        """The exchange ended cleanly; the connection is free."""

    def discard(self, connection: WireConnection) -> None:
        """The connection is closed, wherever it was."""


class Hold:
    """One exchange's hold on its connection: the receiver's ``Control``, and the caller's way to hear of the end and
    to leave. Dead (``connection`` is ``None``) once the exchange is over and the connection may serve another."""

    __slots__ = ("connection", "waiter")

    def __init__(self, waiter: asyncio.Future[None] | None) -> None:
        """The end is told to ``waiter``; who needs no future overrides ``end``."""
        self.connection: WireConnection | None = None
        self.waiter = waiter

    def pause(self) -> None:
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        if self.connection is not None:
            self.connection.resume()

    def leave(self) -> None:
        """Nobody wants the answer: close the connection, if it is still this exchange's. Nothing is told."""
        if self.connection is not None:
            self.connection.abort()

    @property
    def left(self) -> bool:
        """The caller was cancelled in this tick, and its task has not run yet."""
        return self.waiter is not None and self.waiter.done()

    def end(self, error: BaseException | None) -> None:
        """The exchange is over; called once, by the connection."""
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)


class WireConnection(asyncio.Protocol):
    """One connection. Idle, it waits in its owner; busy, it belongs to one exchange."""

    # The loop's callbacks and `send`, `abort`, `pause`, `resume` write everything below; nobody else does, but for
    # `adopted`, `idle_since` and `opened_at`, which the owner keeps. While idle, _receiver and _hold are None; they
    # are set by `send` and cleared by `_detach`, together. A hold knows whether the connection is still its own:
    # a cancelled one may wake when it already serves another.
    __slots__ = (
        "_clock",
        "_counts",
        "_deadline",
        "_deadlines",
        "_drained",
        "_heard_at",
        "_hold",
        "_loop",
        "_mute",
        "_owner",
        "_patience",
        "_paused",
        "_reader",
        "_receiver",
        "_sent_at",
        "_total_at",
        "_transport",
        "_unsent_bytes",
        "_uploading",
        "_write_paused",
        "adopted",
        "closed",
        "connected",
        "idle_since",
        "keep_session",
        "opened_at",
        "served",
    )

    def __init__(
        self,
        owner: Owner,
        clock: Clock,
        deadlines: Deadlines,
        counts: Counts,
        caps: Caps,
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._owner = owner
        self._clock = clock
        self._deadlines = deadlines
        self._counts = counts
        self._loop = loop
        self._reader = ResponseReader(caps)
        self.closed = False
        """Final, and known in the tick in which the connection ended, before the loop reports it."""
        self.connected = self.adopted = False
        self.served = 0
        """Exchanges begun; the current one included."""
        self.opened_at = 0.0
        self.idle_since = 0.0
        """When it was put aside last; 0.0 for one that was not yet, which cannot be stale."""
        self.keep_session: Callable[[], None] | None = None
        """Called once, after the first clean answer: by then a TLS 1.3 server has sent its tickets."""
        self._receiver: Receiver | None = None
        self._hold: Hold | None = None
        self._deadline: Deadline | None = None
        self._drained: asyncio.Future[None] | None = None
        self._paused = self._write_paused = self._uploading = False
        self._unsent_bytes = 0

    # -- the exchange ------------------------------------------------------------------------------------------

    def send(  # noqa: PLR0917 - by position, for each request
        self,
        request: UpstreamRequest,
        head: bytes,
        receiver: Receiver,
        patience: Patience,
        hold: Hold,
        started_at: float,
        now: float,
    ) -> None:
        """Write ``head`` and the body; ``hold`` holds this connection until it is told the end: ``None``, a
        ``ProxyError`` or a ``StaleError``. A streamed body is sent by ``upload``. The exchange began at
        ``started_at``, which is earlier than ``now`` if a connection had to be opened for it.
        """
        self.served += 1
        self._receiver = receiver
        self._patience = patience
        self._total_at = total_at = started_at + patience.total_s
        self._sent_at = now
        self._mute = True
        self._unsent_bytes = 0
        self._reader.begin(request.method == "HEAD")
        self._hold = hold
        hold.connection = self
        body = request.body
        if type(body) is not bytes:
            self._uploading = True
            self._transport.write(head)
        elif len(body) <= _JOIN_BYTES:
            self._transport.write(head + body)
        else:
            self._unsent_bytes = len(body)
            self._transport.writelines((head, body))
        at = now + patience.first_byte_s
        self._watch(min(total_at, at))
        receiver.on_start(hold)

    def upload(self, source: BodySource) -> asyncio.Task[None]:
        """Send the body of the request that ``send`` began; what the source raises ends the exchange."""
        task = self._loop.create_task(self._upload(source))
        task.add_done_callback(self._on_upload_done)
        return task

    async def _upload(self, source: BodySource) -> None:
        hold, body = self._hold, MeasuredBody(source)
        while piece := await body.read():
            if self._hold is not hold:
                return
            if body.length is None:
                self._transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
            else:
                self._transport.write(piece)
            if self._write_paused:
                self._drained = self._loop.create_future()
                await self._drained
        if self._hold is not hold:
            return
        if body.length is None:
            self._transport.write(b"0\r\n\r\n")
        self._uploading = False
        self._sent_at = self._clock.now()
        self._watch(min(self._sent_at + self._patience.first_byte_s, self._total_at))

    def _on_upload_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self._uploading:
            self._fail(error)

    def pause(self) -> None:
        if not self._paused and not self.closed:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self.closed:
            self._paused = False
            # Time spent paused is the receiver's, not the upstream's.
            self._heard_at = self._sent_at = now = self._clock.now()
            patience = self._patience
            self._watch(now + (patience.idle_s if self._reader.head_seen else patience.first_byte_s))
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once, whatever is going on. Idempotent; the future of a running exchange is left alone."""
        self._detach()
        self._shut()

    # -- endings -----------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The message ended cleanly: hand the connection back or close it, then wake the caller."""
        hold = self._hold
        if hold is None:
            return  # the receiver let go of it with the last byte
        reader = self._reader
        reusable = reader.reusable
        if reader.surplus:
            self._counts.poison_averted += 1
        if self._uploading or self._write_paused or self._unsent_bytes:
            reusable = not self._is_early() and reusable
        self._detach()
        if self.keep_session is not None:
            self.keep_session()
            self.keep_session = None
        if reusable:
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._owner.release(self, self._clock.now())
        else:
            self._shut()
        hold.end(None)

    def _is_early(self) -> bool:
        """Whether part of the request is still here. Small ones leave in one write; nobody asks about them."""
        early = self._uploading or self._write_paused or self._transport.get_write_buffer_size() > 0
        self._counts.early_answers += early
        return early

    def _fail(self, error: BaseException) -> None:
        hold = self._hold
        self._detach()
        self._shut()
        if hold is not None:
            hold.end(error)

    def _detach(self) -> None:
        if self._hold is not None:
            self._hold.connection = None
        self._hold = self._receiver = None
        self._uploading = False
        if self._drained is not None:
            self._on_drained()

    def _shut(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._transport.abort()
        self._owner.discard(self)

    # -- deadlines ---------------------------------------------------------------------------------------------

    def _watch(self, at: float) -> None:
        """See to it that ``_on_due`` is asked at ``at`` or earlier.

        The handle outlives the exchange: the next one nearly always ends later than the last was due, so a
        connection in use touches the wheel once in many requests.
        """
        deadline = self._deadline
        if deadline is not None:
            if deadline.at <= at:
                return
            deadline.cancel()
        self._deadline = self._deadlines.arm_at(at, self._on_due)

    def _on_due(self) -> float | None:
        if self._hold is None:
            self._deadline = None
            return None
        now = self._clock.now()
        at, why = self._due(now)
        if at > now:
            return at
        self._deadline = None
        self._fail(faults.timed_out(why))
        return None

    def _due(self, now: float) -> tuple[float, str]:
        """When the present phase ends, and its name."""
        patience = self._patience
        if self._paused:
            at, why = inf, "idle"
        elif self._reader.head_seen:
            at, why = self._heard_at + patience.idle_s, "idle"
        elif self._write_paused:
            # Progress shows only in the transport's buffer; looked at here, so that no write pays for it.
            unsent_bytes = self._transport.get_write_buffer_size()
            if unsent_bytes < self._unsent_bytes:
                self._unsent_bytes, self._sent_at = unsent_bytes, now
            at, why = self._sent_at + patience.idle_s, "idle"
        elif self._uploading:
            at, why = inf, "idle"  # the body's source has its own deadline
        else:
            at, why = self._sent_at + patience.first_byte_s, "first_byte"
        return (at, why) if at < self._total_at else (self._total_at, "total")

    # -- the loop calls ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.connected = True

    def data_received(self, data: bytes) -> None:
        receiver, hold, reader = self._receiver, self._hold, self._reader
        if receiver is None or hold is None:
            self._on_stray()
            return
        if hold.waiter is not None and hold.left:
            self.abort()
            return
        self._mute = False
        try:
            reader.feed(data)
            body = reader.take_body()
        except ProxyError as error:
            self._fail(error)
            return
        head = reader.head
        if reader.ended:
            receiver.on_read(head, body, True)
            self._finish()
            return
        self._heard_at = self._clock.now()
        if head is not None:
            reader.head = None
            self._watch(min(self._heard_at + self._patience.idle_s, self._total_at))
        elif not body:
            return
        receiver.on_read(head, body, False)

    def _on_stray(self) -> None:
        """Bytes while idle: the next request must not take them for its answer."""
        if not self.closed:
            self._counts.poison_averted += 1
            self._shut()

    def eof_received(self) -> None:
        self._on_gone(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_gone(exc)
        self._reader.drop()
        self.keep_session = None

    def _on_gone(self, exc: Exception | None) -> None:
        """The peer closed (``None``), or the connection broke."""
        if self.closed:
            return
        receiver, hold, reader = self._receiver, self._hold, self._reader
        if receiver is None or hold is None:
            self._shut()
        elif hold.left:
            self.abort()
        elif reader.head_seen and reader.close_delimited and exc is None:
            reader.reusable = False
            receiver.on_read(None, b"", True)
            self._finish()
        elif self._mute and self.idle_since and self._clock.now() - self._sent_at <= _STALE_WITHIN_S:
            self._fail(StaleError())
        else:
            self._fail(faults.reset("truncated" if reader.head_seen else "reset", repr(exc)))

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._hold is not None:
            self._unsent_bytes = self._transport.get_write_buffer_size()
            self._sent_at = now = self._clock.now()
            self._watch(now + self._patience.idle_s)

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._hold is not None:
            self._sent_at = now = self._clock.now()
            self._watch(now + self._patience.first_byte_s)
        self._on_drained()

    def _on_drained(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)
