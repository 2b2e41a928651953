"""One client's end of an exchange: the sink that turns heads, bytes and endings into HTTP/1.1 on a connection.

Both lanes use it. Its laws: what goes out is a prefix of the answer, framed once; an answer that is not whole never
looks whole (the connection ends without the last chunk, or short of its length); and the exchange is accounted
exactly once, whoever ends it, before the last bytes of its answer leave: a process that dies after them has its usage
on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from proxy.clock import Clock, Deadline, Deadlines
from proxy.edge.body import Upload
from proxy.edge.outcome import broken_outcome, dialect_of, failed_outcome
from proxy.edge.respond import DateLine, answer_head, is_bodyless
from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from proxy.flight.subscription import Subscription
from proxy.protocol.answer import AnswerHead
from proxy.protocol.faults import error_body, error_headers, upstream_error_event
from proxy.protocol.sse import heartbeat

_LAST_CHUNK: Final = b"0\r\n\r\n"
_CLOSE: Final = b"connection: close\r\n"
_KEEP: Final = b"connection: keep-alive\r\n"
_MAX_CONVERTED_BYTES: Final = 64 * 1024
_COPIED_BYTES: Final = 8 * 1024
"""Up to this size bytes are copied into one write. Longer ones are written as they are, beside their framing: so a
thousand stalled readers hold one chunk and not a thousand copies of it (19 KiB instead of 226 KiB each)."""


class Wire(Protocol):
    """The connection under a relay; both lanes have one."""

    def write(self, data: bytes) -> None: ...

    def abort(self) -> None:
        """Close without another byte, as a reset where the framing could not show that something is missing."""

    def close_now(self) -> None:
        """Flush what was written and close, whatever the client still sends."""

    @property
    def full(self) -> bool:
        """More was written than the client has taken."""


class Desk(Protocol):
    """What a relay needs of the pipeline."""

    def rejoin(self, exchange: Exchange, relay: Relay) -> None:
        """The flight was not shareable: start a call of one's own."""

    def account(self, exchange: Exchange) -> None: ...

    def bug(self, where: str, error: BaseException) -> None: ...


class EdgeTools:
    """What every relay of a listener shares."""

    __slots__ = (
        "clock",
        "date",
        "deadlines",
        "framed",
        "framed_of",
        "heartbeat_after_s",
        "heartbeat_every_s",
        "heeds_patience",
    )

    def __init__(
        self,
        clock: Clock,
        deadlines: Deadlines,
        *,
        heartbeat_after_s: float,
        heartbeat_every_s: float,
        heeds_patience: bool = True,
    ) -> None:
        self.clock = clock
        self.deadlines = deadlines
        self.date = DateLine(clock)
        self.heartbeat_after_s = heartbeat_after_s
        self.heartbeat_every_s = heartbeat_every_s
        self.heeds_patience = heeds_patience
        # The last chunk that was framed: followers at the live edge are handed the very same bytes object one after
        # the other, so a thousand of them cost one framing.
        self.framed_of: bytes = b""
        self.framed: bytes = b""

    def frame(self, data: bytes) -> bytes:
        """``data`` as one HTTP/1.1 chunk."""
        if data is not self.framed_of:
            self.framed = b"%x\r\n%b\r\n" % (len(data), data)
            self.framed_of = data
        return self.framed


class Relay:
    """Carries one answer to one client. Created with its exchange, done when `on_done` was called."""

    # Mutable state: _begun, _chunked, _bodyless and _converting say what went out; written by the methods here only.
    __slots__ = (
        "_begun",
        "_bodyless",
        "_chunked",
        "_converting",
        "_desk",
        "_heartbeat",
        "_last",
        "_on_done",
        "_owed_bytes",
        "_patience",
        "_tools",
        "_wire",
        "close_after",
        "done",
        "exchange",
        "http10",
        "subscription",
    )

    def __init__(
        self,
        exchange: Exchange,
        wire: Wire,
        desk: Desk,
        tools: EdgeTools,
        *,
        http10: bool,
        close_after: bool,
        on_done: Callable[[], None],
    ) -> None:
        # For the process.
        self._desk = desk
        self._tools = tools
        # For the connection.
        self._wire = wire
        self.http10 = http10
        self.close_after = close_after
        """The connection ends with this answer; also read by the lane afterwards."""
        self._on_done = on_done
        # For this exchange.
        self.exchange = exchange
        self.subscription: Subscription | None = None
        self.done = False
        self._begun = False
        self._chunked = False
        self._bodyless = False
        self._owed_bytes: int | None = None
        self._converting: bytearray | None = None
        self._last: list[bytes] | None = None
        self._patience: Deadline | None = None
        self._heartbeat: Deadline | None = None

    # -- before the head -------------------------------------------------------------------------------------

    def attach(self, subscription: Subscription, patience_s: float | None, streams: bool) -> None:
        """Wait for ``subscription``: not quite as long as ``patience_s``, and not in silence where a stream was asked
        for."""
        self.subscription = subscription
        if self._wire.full:
            subscription.pause()
        if patience_s is not None and self._tools.heeds_patience and self._patience is None and not self._begun:
            # The caller hangs up at patience_s; an answer must be there a moment earlier.
            margin_s = min(1.0, max(0.05, 0.05 * patience_s))
            self._patience = self._tools.deadlines.arm(max(0.0, patience_s - margin_s), self._out_of_patience)
        after_s = self._tools.heartbeat_after_s
        if streams and after_s and self._heartbeat is None and not self.http10:
            self._heartbeat = self._tools.deadlines.arm(after_s, self._beat)

    def released(self) -> None:
        self.exchange.released = True
        self._desk.rejoin(self.exchange, self)

    def _out_of_patience(self) -> None:
        self._patience = None
        if not self._begun and self.subscription is not None:
            self.subscription.eject(
                ProxyError(Kind.PATIENCE, "No answer came within the time the caller is willing to wait.")
            )

    def _beat(self) -> float | None:
        """Nothing came for a while: begin the stream and keep it warm until its first byte. The true status is lost
        by this, so a failure that comes later is told in the stream."""
        if self.done or self.exchange.first_byte_at:
            return None
        dialect = dialect_of(self.exchange)
        if not self._begun:
            early = AnswerHead(200, [(b"content-type", b"text/event-stream; charset=utf-8")], streams=True)
            self.exchange.detail = "early"
            self._send(self._open(early, b"transfer-encoding: chunked\r\n"))
            self._chunked = True
        self._send(self._tools.frame(heartbeat(dialect)))
        return self._tools.clock.now() + self._tools.heartbeat_every_s

    # -- the sink --------------------------------------------------------------------------------------------

    def take(self, head: AnswerHead | None, data: bytes, ended: bool) -> None:
        if self.done:
            return
        try:
            self._take(head, data, ended)
        except Exception as bug:  # noqa: BLE001 - the flight and its other readers must not feel it
            self._desk.bug("relay", bug)
            self._break_off()

    def _break_off(self) -> None:
        if self.subscription is not None:
            self.subscription.leave()
        self._last = None
        self._wire.abort()
        if not self.done:
            self.close_after = True
            self._finish("internal_error")

    def _take(self, head: AnswerHead | None, data: bytes, ended: bool) -> None:
        error = None
        if ended:
            self._last = []
            error = self.subscription.error if self.subscription is not None else None
        if head is not None:
            if self._begun:  # a heartbeat began the stream already
                if not (head.streams and head.status == 200):
                    self._converting = bytearray()
                    self.exchange.status = head.status
            else:
                self._begin(head, data, whole=ended and error is None)
                data = b""
        elif error is not None and not (self._begun and self.subscription and self.subscription.head_taken):
            self.fail(error)  # no head came, though a heartbeat may have begun the stream
            return
        if self._converting is not None:
            self._convert(data, ended)
            return
        if data:
            self._body(data)
        if ended:
            self._end(error)

    def _begin(self, head: AnswerHead, data: bytes, *, whole: bool) -> None:
        """Write the head and the bytes that came with it in one go."""
        length = len(data) if whole else head.length
        if is_bodyless(self.exchange.head.method, head.status):
            self._bodyless = True
            # It says how long a body would have been (RFC 9110, 8.6), which is not known unless somebody said so.
            length = len(data) if data else head.length
            framing = b"content-length: %d\r\n" % length if length is not None and head.status != 204 else b""
        elif length is not None:
            self._owed_bytes = length
            framing = b"content-length: %d\r\n" % length
        elif self.http10:
            framing = b""
            self.close_after = True
        else:
            framing = b"transfer-encoding: chunked\r\n"
            self._chunked = True
        if self._heartbeat is not None and not (self._chunked and head.streams):
            self._disarm_heartbeat()  # a heartbeat would be taken for a part of the body
        opening = self._open(head, framing)
        if data and not self._bodyless:
            self._count(data, self.exchange.head_out_at)
            self._send_body(data, opening)
        else:
            self._send(opening)

    def _open(self, head: AnswerHead, framing: bytes) -> bytes:
        self._begun = True
        if self._patience is not None:
            self._disarm_patience()
        exchange = self.exchange
        exchange.status = head.status
        body = exchange.body
        if type(body) is Upload and body.unread:
            self.close_after = True
        if self.close_after:
            framing += _CLOSE
        elif self.http10:
            framing += _KEEP
        leads = self.subscription is None or self.subscription.leads
        if exchange.role == "leader" and exchange.facts is not None and exchange.facts.relayed:
            exchange.role = "follower"  # of another process's flight
        now = exchange.head_out_at = self._tools.clock.now()
        return answer_head(exchange, head, framing, date=self._tools.date.get(now), leads=leads, now=now)

    def _body(self, data: bytes) -> None:
        if self._bodyless:
            return
        self._count(data)
        self._send_body(data)

    def _send_body(self, data: bytes, opening: bytes = b"") -> None:
        if len(data) <= _COPIED_BYTES:
            framed = self._tools.frame(data) if self._chunked else data
            self._send(opening + framed if opening else framed)
        elif self._chunked:
            self._send(b"%b%x\r\n" % (opening, len(data)))
            self._send(data)
            self._send(b"\r\n")
        else:
            if opening:
                self._send(opening)
            self._send(data)

    def _count(self, data: bytes, now: float = 0.0) -> None:
        """``now`` if somebody has just looked."""
        exchange = self.exchange
        if not exchange.first_byte_at:
            exchange.first_byte_at = now or self._tools.clock.now()
            if self._heartbeat is not None:
                self._disarm_heartbeat()
        exchange.bytes_out += len(data)

    def _end(self, error: ProxyError | None) -> None:
        if error is not None:
            self.exchange.error = error
            self._finish(broken_outcome(error), cut=True)
            return
        if self._chunked and not self._bodyless:
            self._send(_LAST_CHUNK)
        # An event stream may be let go short of its announced length, after its terminal event.
        short = self._owed_bytes is not None and self.exchange.bytes_out != self._owed_bytes
        self._finish("ok" if self.exchange.status < 400 else "upstream_error", cut=short)

    def _convert(self, data: bytes, ended: bool) -> None:
        """Tell an answer that is no stream to a caller whose stream was begun already: as an error event."""
        body = self._converting
        assert body is not None
        if len(body) < _MAX_CONVERTED_BYTES:
            body += data
        if ended:
            route = self.exchange.located.route.name if self.exchange.located else ""
            event = upstream_error_event(dialect_of(self.exchange), route, self.exchange.status, bytes(body))
            self._send(self._tools.frame(event))
            self._finish("upstream_error", cut=True)

    # -- answers without a flight ----------------------------------------------------------------------------

    def answer(self, head: AnswerHead, body: bytes) -> None:
        """Send a whole answer that is there already: a cache hit."""
        self._last = []
        self._begin(head, body, whole=True)
        self._finish("ok" if head.status < 400 else "upstream_error")

    def fail(self, error: ProxyError) -> None:
        """Answer with an error of ours in the dialect of the route; in a stream that has begun, as its last event."""
        if self.done:
            return
        self._last = []
        exchange = self.exchange
        exchange.error = error.freed()
        dialect = dialect_of(exchange)
        outcome = failed_outcome(error)
        if self._begun or exchange.status == 101:
            if self._chunked and not exchange.bytes_out:
                route = exchange.located.route.name if exchange.located else ""
                body = error_body(error, dialect, exchange.request_id)
                self._send(self._tools.frame(upstream_error_event(dialect, route, error.kind.status, body)))
            self._finish(outcome, cut=True)
            return
        body = error_body(error, dialect, exchange.request_id)
        head = AnswerHead(error.kind.status, error_headers(error, exchange.request_id, dialect))
        self._begin(head, body, whole=True)
        self._finish(outcome)

    def hand_over(self) -> None:
        """The connection was upgraded and somebody else has carried it to its end."""
        if not self.done:
            self._finish(self.exchange.outcome or "client_gone")

    # -- the client and its connection -----------------------------------------------------------------------

    def pause(self) -> None:
        """The connection's buffer is full."""
        if self.subscription is not None:
            self.subscription.pause()

    def resume(self) -> None:
        if self.subscription is not None:
            self.subscription.resume()

    def lost(self) -> None:
        """The client went away, in whatever phase. After the answer's last event that is a success."""
        if self.done or self.exchange.status == 101:  # an upgraded connection is handed over when it is over
            return
        subscription = self.subscription
        if subscription is not None:
            flight = subscription.flight
            whole = flight.finishing and subscription.position == flight.tape.end and self._begun
            subscription.leave()
            if whole:
                self._finish("ok")
                return
        self.exchange.error = ProxyError(Kind.CLIENT_GONE, "The client went away.")
        self._finish("client_gone")

    def _send(self, data: bytes) -> None:
        if self._last is None:
            self._wire.write(data)
        else:
            self._last.append(data)

    def _send_last(self) -> None:
        """What was kept back until the books knew of it: in one write, but for bytes that are shared."""
        last, self._last = self._last, None
        if not last:
            return
        if len(last) == 1 or sum(map(len, last)) <= _COPIED_BYTES:
            self._wire.write(b"".join(last))
        else:
            for data in last:
                self._wire.write(data)

    def _finish(self, outcome: str, *, cut: bool = False) -> None:
        self.done = True
        if self._patience is not None:
            self._disarm_patience()
        if self._heartbeat is not None:
            self._disarm_heartbeat()
        self.exchange.outcome = outcome
        self._desk.account(self.exchange)
        try:
            self._send_last()
        except Exception as bug:  # noqa: BLE001 - as in `take`; and the connection must be told in any case
            self._desk.bug("relay", bug)
            self.close_after = True
            self._wire.abort()
        if cut:
            self.close_after = True
            # Without chunks a close would pass for the end of the answer, and a full buffer would never drain.
            if self.http10 or self._wire.full:
                self._wire.abort()
            else:
                self._wire.close_now()
        self._on_done()

    def _disarm_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _disarm_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
