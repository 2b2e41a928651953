"""What one flight does with the bytes its upstream sends: watch them, put them on the tape, seal it.

`Intake` is the receiver of an upstream exchange. Each read from the upstream is one call, handled and flushed to the
subscribers within it; nothing here waits. Bytes are passed on as they came; an event stream is watched for its
terminal event and its usage, a whole answer is held until it is complete (up to ``HOLD_BYTES``), because nobody can
use half of it and an error can then still be answered as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from proxy.accounting.report import Report
from proxy.cache.recording import Recording
from proxy.clock import Clock, Deadline, Deadlines
from proxy.errors import ProxyError
from proxy.flight.flight import Ending, Flight, Phase
from proxy.policy.plan import Plan
from proxy.policy.sharing import is_shareable_head
from proxy.protocol.answer import AnswerHead
from proxy.protocol.ask_usage import UsageFilter
from proxy.protocol.faults import error_event
from proxy.protocol.headers import private_response_headers, split_response_headers
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.protocol.missing import names_missing_model
from proxy.protocol.routes import Shape
from proxy.protocol.sse import SseScanner
from proxy.protocol.usage import Usage, UsageReader, estimate_usage, usage_from_body
from proxy.upstream.base import Control

if TYPE_CHECKING:
    from proxy.formation.lead import Lead

HOLD_BYTES: Final = 1 << 20
"""A whole answer longer than this flows as it comes."""

TERMINAL_GRACE_S: Final = 0.05
"""How long the end of the message may follow the terminal event before readers are let go without it. Official SDKs
wait at most 100 ms for the end of the body before they give up a connection."""

MISSING_MODEL_S: Final = 15.0
"""How long a model that the upstream does not know is not asked for again."""

_JSON: Final = (b"application/json", b"text/event-stream")

_FRAMING: Final = frozenset((
    *(b"content-type", b"content-length", b"content-encoding", b"transfer-encoding"),
    *(b"cache-control", b"vary", b"connection"),
))  # fmt: skip
"""What an answer is judged by, and told to other processes for."""


class Shelf(Protocol):
    """Where finished answers go and stale ones come from: production, over the caches."""

    def keep(self, flight: Flight, recording: Recording) -> bool:
        """Store an answer; ``True`` if a slower level still has to be written."""

    def stale(self, plan: Plan) -> Recording | None:
        """An outlived answer that may stand in for a failing upstream."""

    def remember_missing(self, flight: Flight, recording: Recording) -> None:
        """Keep a 404 about an unknown model for a moment, apart from the answers."""


class Intake:
    """The receiver of one flight's upstream exchange."""

    # Mutable state, written by the calls of the transport only: what has been seen of the answer so far.
    __slots__ = (
        "_answer",
        "_clock",
        "_deadlines",
        "_expects",
        "_filter",
        "_grace",
        "_held",
        "_held_bytes",
        "_keeps",
        "_plan",
        "_scanner",
        "_shelf",
        "_told",
        "_usage",
        "flight",
        "lead",
        "of_our_own",
        "recording",
        "report",
    )

    def __init__(self, flight: Flight, report: Report, shelf: Shelf, clock: Clock, deadlines: Deadlines) -> None:
        # For the process.
        self._shelf = shelf
        self._clock = clock
        self._deadlines = deadlines
        # For the flight.
        self.flight = flight
        self.report = report
        self._plan: Plan = flight.work.plan
        self._answer: AnswerHead | None = None
        self._held: list[bytes] | None = None
        self._held_bytes = 0
        self._keeps = False
        self._scanner: SseScanner | None = None
        self._filter: UsageFilter | None = None
        self._usage: UsageReader | None = None
        self._told: Usage | None = None
        self.lead: Lead | None = None
        """Through which other processes are told of the answer."""
        self.of_our_own: HeaderList = []
        """Header lines of the proxy's that every subscriber gets with the answer."""
        self._grace: Deadline | None = None
        self.recording: Recording | None = None
        """What was stored, for the slower level."""

    # -- calls of the transport ------------------------------------------------------------------------------

    def on_start(self, control: Control) -> None:
        self.report.attempts += 1
        self.report.request_sent_at = self._clock.now()
        flight = self.flight
        flight.producer = control
        flight.producer_paused = False

    def on_read(self, head: ResponseHead | None, data: bytes, ended: bool) -> None:
        flight = self.flight
        if flight.phase >= Phase.FILLING:
            return
        if head is not None:
            self._open(head)
        if data:
            self._take(data)
        if ended:
            self._end()
        flight.flush()
        if self.lead is not None:
            self._tell(self.lead, head, data, ended)

    def tell_usage(self, usage: Usage) -> None:
        """What the upstream reported, where the bytes of the answer are a translation and may say less."""
        self._told = usage

    # -- other processes -------------------------------------------------------------------------------------

    def _tell(self, lead: Lead, head: ResponseHead | None, data: bytes, ended: bool) -> None:
        """Pass on what came, as it came, but for what is about this one call."""
        if self.flight.solo:
            lead.abandon("unshareable")
            return
        if head is not None:
            answer, report = self._answer, self.report
            assert answer is not None
            goes = _FRAMING.union([name for name, _ in answer.shared])
            target = report.answered_by.id if report.answered_by is not None else ""
            lead.head(head, goes, self.of_our_own, target)
        lead.append(data)
        if ended:
            lead.end(self._told)

    def follow(self, control: Control) -> None:
        """The answer is another process's: its call is on that one's books."""
        self.report.relayed = True
        self.flight.producer = control
        self.flight.producer_paused = False

    @property
    def has_begun(self) -> bool:
        return self.flight.phase is not Phase.OPENING

    def name_answerer(self, target: str) -> None:
        routed = self._plan.routed
        for each in routed.targets if routed is not None else ():
            if each.id == target:
                self.report.answered_by = each
                self.report.price = routed.prices[target] if routed is not None else None

    def begin_again(self) -> None:
        """What came so far is no answer, and nobody has seen any of it."""
        self.release()
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self._answer = self._scanner = self._filter = self._usage = self._told = None
        self._held_bytes = 0
        self.of_our_own = []
        flight, report = self.flight, self.report
        flight.producer = flight.last_words = None
        report.relayed = False
        report.head = report.answered_by = report.price = None
        report.head_at = 0.0

    # -- the head --------------------------------------------------------------------------------------------

    def _open(self, head: ResponseHead) -> None:
        plan, flight, first = self._plan, self.flight, head.first
        self.report.head_at = self._clock.now()
        content_type = first.get(b"content-type", b"").lower()
        length = _length(head)
        streams = content_type.startswith(b"text/event-stream")
        if streams and plan.asks_usage:
            length = None  # it will be less by what the caller did not ask for
        encoded = b"content-encoding" in first and first[b"content-encoding"].lower() not in (b"", b"identity")
        watched = streams and plan.route.understood and head.status < 400 and not encoded
        shared, leader_only = split_response_headers(head) if plan.key else (private_response_headers(head), None)
        if self.of_our_own:
            shared = shared + self.of_our_own
        answer = AnswerHead(head.status, shared, leader_only, length=length, streams=streams)
        self._answer = self.report.head = answer
        # An end that is only the connection's proves nothing, so such an answer is passed on but not kept.
        framed = b"content-length" in first or b"transfer-encoding" in first
        self._keeps = framed and b"no-store" not in first.get(b"cache-control", b"").lower() and not encoded
        if watched and plan.asks_usage:
            self._filter = UsageFilter()
        if watched:
            self._scanner = SseScanner(plan.route.grammar)
            self._usage = UsageReader(plan.target.dialect, plan.route.name)
            flight.last_words = self._last_words
        shareable = plan.key is None or is_shareable_head(
            head.status,
            content_type,
            first.get(b"vary", b""),
            expects=() if plan.route.shape is Shape.BINARY else _JSON,
            length=length,
            max_bytes=flight.table.limits.max_answer_bytes,
        )
        holds = shareable and plan.route.understood and not streams and (length or 0) <= HOLD_BYTES
        if holds and (plan.route.shape is not Shape.BINARY or head.status >= 400):
            self._held = []
        else:
            flight.begin(answer, shareable)

    # -- the body --------------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        held = self._held
        if held is not None:
            held.append(data)
            self._held_bytes += len(data)
            self.flight.table.retained_bytes += len(data)
            if self._held_bytes > HOLD_BYTES:
                self._let_go()
            return
        scanner = self._scanner
        self.flight.append(data if self._filter is None else self._filter.feed(data))
        if scanner is not None and not self.flight.finishing:
            self._watch(scanner, data)

    def _watch(self, scanner: SseScanner, data: bytes) -> None:
        """Look for what decides something in an event stream; nothing is changed by looking."""
        events = scanner.feed(data)
        if events and self._usage is not None:
            for event in events:
                self._usage.feed(event)
        if scanner.terminal:
            self.flight.finishing = True
            self._grace = self._deadlines.arm(TERMINAL_GRACE_S, self._grace_over)

    def _let_go(self) -> None:
        """What was held begins to flow."""
        held = self._held
        assert held is not None
        self.release()
        assert self._answer is not None
        self.flight.begin(self._answer)
        self.flight.append(b"".join(held))

    # -- the end ---------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """The upstream ended its message properly."""
        held = self._held
        if held is not None:
            self._end_held(held[0] if len(held) == 1 else b"".join(held))
            return
        scanner = self._scanner
        if self._filter is not None:
            self.flight.append(self._filter.rest())
        if scanner is None:
            self._complete(stores=self._keeps)
        elif scanner.error is not None:
            self._cut("inband_error")
        elif scanner.needs_terminal and not scanner.terminal:
            self._cut("no_terminal")
        else:
            self._complete(stores=self._keeps)

    def _end_held(self, body: bytes) -> None:
        answer, plan = self._answer, self._plan
        assert answer is not None
        self.release()
        if answer.status >= 500 and (stale := self._shelf.stale(plan)) is not None:
            self.replay(stale, "stale-if-error")
            return
        if plan.route.reports_usage and answer.status < 300:
            self.report.usage = self._told or usage_from_body(plan.target.dialect, plan.route.name, body)
        self.flight.begin(answer)
        self.flight.append(body)
        if answer.status == 404 and plan.key is not None and names_missing_model(body, plan.model):
            now, wall = self._clock.now(), self._clock.wall()
            missing = Recording(404, answer.shared, (body,), stored_at=now, stored_wall=wall, ttl_s=MISSING_MODEL_S)
            self._shelf.remember_missing(self.flight, missing)
        self._complete(stores=self._keeps)

    def _complete(self, *, stores: bool) -> None:
        """Seal a whole answer; readers are done with it, whatever the caches still do."""
        flight, report = self.flight, self.report
        if flight.phase is not Phase.STREAMING:
            return  # the last bytes went over a bound
        self._close_books()
        filling = False
        answer = self._answer
        caching = self._plan.caching
        if stores and caching.writes and answer is not None and answer.status == 200 and flight.retains:
            self.recording = Recording(
                answer.status,
                answer.shared,
                flight.tape.chunks(),
                stored_at=report.ended_at,
                stored_wall=self._clock.wall(),
                ttl_s=caching.ttl_s,
                swr_s=caching.stale_while_revalidate_s,
                sie_s=caching.stale_if_error_s,
                streams=answer.streams,
                report=report.usage,
            )
            filling = self._shelf.keep(flight, self.recording)
        flight.seal(Ending.OK, filling=filling)

    def _cut(self, remark: str) -> None:
        self.report.remark = remark
        self._close_books()
        self.flight.seal(Ending.CUT)

    def _close_books(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        report, answer = self.report, self._answer
        report.ended_at = self._clock.now()
        if answer is None or answer.status >= 300 or not self._plan.route.reports_usage:
            return
        if self._told is not None:
            report.usage = self._told
        elif self._usage is not None:
            report.usage = self._usage.usage()
        if report.usage is None and self.flight.tape.total_bytes:
            body = self.flight.work.body
            events = self._scanner.seen_events if self._scanner is not None else 0
            sent_bytes = len(body) if isinstance(body, bytes) else 0
            report.usage = estimate_usage(sent_bytes, self.flight.tape.total_bytes, events)

    def _grace_over(self) -> None:
        """The terminal event came but the end of the message did not: the readers have their whole answer."""
        self._grace = None
        if self.flight.phase is Phase.STREAMING:
            self.report.remark = "cut_after_end"
            self._complete(stores=False)
            self.flight.flush()
            self.flight.table.runner.stop(self.flight)  # nothing more is wanted of it, least of all its connection

    # -- other ways to end -----------------------------------------------------------------------------------

    def fail(self, error: ProxyError, ending: Ending = Ending.FAULT) -> None:
        """The upstream failed: answer from what is stale, call it complete if only the framing is missing, or hand
        the failure to everybody present."""
        flight, error = self.flight, error.freed()
        if flight.phase >= Phase.FILLING:
            if not self.report.ended_at:
                self._close_books()  # broken off from our side: what came until then has its price
            return
        if self._scanner is not None and self._scanner.terminal:
            self.report.remark = "cut_after_end"
            self._complete(stores=False)
        elif flight.phase is Phase.OPENING and (stale := self._shelf.stale(self._plan)) is not None:
            self.replay(stale, "stale-if-error")
        else:
            self._close_books()
            flight.seal(ending, error)
        flight.flush()

    def replay(self, recording: Recording, remark: str) -> None:
        """Fill the tape from a recording instead of the upstream."""
        flight = self.flight
        answer = AnswerHead(
            recording.status, recording.headers, length=sum(map(len, recording.chunks)), streams=recording.streams
        )
        self.report.head = answer
        self.report.remark = remark
        if not self.report.attempts and isinstance(recording.report, Usage):
            self.report.usage = recording.report
        self.report.ended_at = self._clock.now()
        flight.begin(answer)
        for chunk in recording.chunks:
            flight.append(chunk)
        flight.seal(Ending.OK)
        flight.flush()

    def release(self) -> None:
        """Nothing is held any more."""
        if self._held is not None:
            self._held = None
            self.flight.table.retained_bytes -= self._held_bytes

    def close(self) -> None:
        """The flight is over, however it went."""
        self.release()

    def _last_words(self, error: ProxyError) -> bytes:
        """The dialect's error event, if the bytes so far end where an event may begin."""
        scanner = self._scanner
        if scanner is None or not scanner.at_boundary or scanner.terminal:
            return b""
        if self._answer is not None and self._answer.length is not None:
            return b""  # there is no room in a body of an announced length
        plan = self._plan
        return error_event(error, plan.target.dialect, plan.route.name, f"flight_{self.flight.id}")


def _length(head: ResponseHead) -> int | None:
    value = head.get(b"content-length")
    return int(value) if value.isdigit() else None

