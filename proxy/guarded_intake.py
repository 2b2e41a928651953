"""The receiver of a guarded flight's answer: an `Intake` that lets nothing through before the guards did.

    upstream ──▶ gate (`during`: the request is still being judged) ──▶ stage (`after`: the answer is) ──▶ Intake

Both are bounded in bytes; what comes beyond waits at the upstream. An answer of another process was guarded there, so
it passes as it comes until `screen` or `hold` is called. Everything that the tape, the caches and other processes get
is what the guards left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from proxy.accounting.report import Report
from proxy.clock import Clock, Deadlines
from proxy.errors import Kind, ProxyError
from proxy.flight.flight import Ending, Flight, Phase, Producer
from proxy.intake import Intake, Shelf
from proxy.protocol.message import ResponseHead
from proxy.protocol.routes import Route, Shape
from proxy.protocol.usage import estimate_usage, usage_from_body

GATE_BYTES: Final = 256 << 10
"""Held until the request was judged; the upstream is paused beyond."""
WHOLE_BYTES: Final = 8 << 20
"""Of a whole answer that is to be judged; a longer one could not be checked."""

_REFUSALS: Final = (Kind.GUARD_BLOCKED, Kind.GUARD_FAILED)
_FLAGGED: Final = b"x-sameflight-flagged"
_LENGTHS: Final = (b"content-length", b"transfer-encoding")


class Passed(NamedTuple):
    """What came out of a stage."""

    data: bytes
    error: ProxyError | None = None
    """The answer is broken off with this, behind ``data``."""


class Stage(Protocol):
    """Looks at a stream of events; the bytes it returns are whole events."""

    later: bool
    """What it lets through it puts on by itself, by `GuardedIntake.put`, and so the end."""

    def feed(self, data: bytes) -> Passed: ...

    def end(self, *, whole: bool) -> Passed:
        """Nothing more will come; ``whole`` if the answer ended as it should."""


class Stages(Protocol):
    """What judges this flight's answer; `screening` makes it."""

    def stream(self, intake: GuardedIntake) -> Stage:
        """For an event stream that begins."""

    def unreadable(self, why: str) -> ProxyError | None:
        """Whether an answer that cannot be looked at is refused."""


class HeldBytes:
    """What all gates and stages of the process hold."""

    # Mutable: written by the intakes.
    __slots__ = ("bytes", "paused")

    def __init__(self) -> None:
        self.bytes = 0
        self.paused = 0
        """Times that an upstream was made to wait."""


_Piece = tuple[ResponseHead | None, bytes, bool]


class GuardedIntake(Intake):
    """The receiver of one guarded flight's upstream exchange."""

    # Mutable state: _gate, what came while the request was being judged, None once it passed; _pausing, whom that
    # made wait; _stages, who judges the answer; _stage, who judges its events; _gathers, the head of an answer that
    # is judged as a whole, and _whole, what came of it; `answer`, that answer once it is complete; _own_bytes and
    # _seen_bytes, what is held and what came in all. Written by the transport's calls, by hold and let_go, and by
    # `screening` at the end.
    __slots__ = (
        "_gate",
        "_gathers",
        "_own_bytes",
        "_pausing",
        "_seen_bytes",
        "_stage",
        "_stages",
        "_totals",
        "_whole",
        "answer",
    )

    def __init__(  # noqa: PLR0917 - as its base, and what is counted
        self,
        flight: Flight,
        report: Report,
        shelf: Shelf,
        clock: Clock,
        deadlines: Deadlines,
        totals: HeldBytes,
    ) -> None:
        super().__init__(flight, report, shelf, clock, deadlines)
        self._totals = totals
        self._gate: list[_Piece] | None = None
        self._pausing: Producer | None = None
        self._stages: Stages | None = None
        self._stage: Stage | None = None
        self._gathers: ResponseHead | None = None
        self._whole: list[bytes] = []
        self._own_bytes = 0
        self._seen_bytes = 0
        self.answer: tuple[ResponseHead, bytes] | None = None
        """A whole answer that waits to be judged."""

    @property
    def route(self) -> Route:
        return self._plan.route

    # -- before the call -------------------------------------------------------------------------------------

    def screen(self, stages: Stages) -> None:
        """The answer is to be judged by ``stages``."""
        self._stages = stages

    def hold(self) -> None:
        """Let nothing through until `let_go`."""
        self._gate = []

    # -- calls of the transport ------------------------------------------------------------------------------

    def on_read(self, head: ResponseHead | None, data: bytes, ended: bool) -> None:
        if self.flight.phase >= Phase.FILLING:
            return
        self._seen_bytes += len(data)
        gate = self._gate
        if gate is None:
            self._pass(head, data, ended)
            return
        gate.append((head, data, ended))
        self._count(len(data))
        if self._own_bytes > GATE_BYTES and not ended:
            self.pause()

    def pause(self) -> None:
        """Make the upstream wait. Asked for with each read beyond a bound, as the flight may have let it go on."""
        producer = self.flight.producer
        if producer is not None:
            self._totals.paused += self._pausing is None
            self._pausing = producer
            producer.pause()

    def resume(self) -> None:
        pausing, self._pausing = self._pausing, None
        if pausing is not None and not self.flight.producer_paused:
            pausing.resume()

    def let_go(self) -> None:
        """The request may be answered: what came of the answer passes, and what will."""
        gate, self._gate = self._gate, None
        for head, data, ended in gate or ():
            self._count(-len(data))
            if self.flight.phase < Phase.FILLING:
                self._pass(head, data, ended)
        self.resume()

    @property
    def holds(self) -> bool:
        """Something that came has not been let through."""
        return bool(self._gate) or self._stage is not None or self.answer is not None

    def _open(self, head: ResponseHead) -> None:
        """The head goes out: what was flagged is said with it, here and to other processes."""
        report = self.report
        told = next((value for name, value in self.of_our_own if name == _FLAGGED), b"")
        if report.relayed:
            report.flagged = tuple(told.decode("latin-1").split(", ")) if told else ()
        elif report.flagged and not told:
            self.of_our_own = [*self.of_our_own, (_FLAGGED, ", ".join(report.flagged).encode())]
        super()._open(head)

    # -- the answer ------------------------------------------------------------------------------------------

    def _pass(self, head: ResponseHead | None, data: bytes, ended: bool) -> None:
        if head is not None and self._stages is not None:
            head = self._choose(self._stages, head)
            if head is None and self._gathers is None:
                return  # it was refused
        if self._gathers is not None:
            self._gather(data, ended)
        elif self._stage is not None:
            self._step(self._stage, head, data, ended)
        else:
            super().on_read(head, data, ended)

    def _choose(self, stages: Stages, head: ResponseHead) -> ResponseHead | None:
        """How this answer is judged; the head that is to be let through now."""
        route, kind = self._plan.route, head.get(b"content-type").lower()
        if head.status >= 300 or head.status == 204:
            return head  # the upstream's refusal, or nothing: no answer
        encoded = head.get(b"content-encoding").lower() not in (b"", b"identity")
        streams = kind.startswith(b"text/event-stream")
        if (route.shape is Shape.BINARY and not streams and b"json" not in kind) or route.name == "embeddings":
            return head  # sound, pictures, vectors: guards read text
        if encoded or not (streams or b"json" in kind):
            error = stages.unreadable("encoding" if encoded else "content_type")
            if error is None:
                return head
            self.block(error)
            return None
        if streams:
            self._stage = stages.stream(self)
            return _without_length(head)
        self._gathers = head
        return None

    def _step(self, stage: Stage, head: ResponseHead | None, data: bytes, ended: bool) -> None:
        out = stage.feed(data) if data else Passed(b"")
        pieces, error = out.data, out.error
        if ended and error is None:
            rest = stage.end(whole=True)
            pieces, error = pieces + rest.data, rest.error
        self.put(head, pieces, ended=ended and error is None and not stage.later, error=error)

    def put(
        self, head: ResponseHead | None, data: bytes, *, ended: bool = False, error: ProxyError | None = None
    ) -> None:
        """What was judged goes on; ``error`` breaks the answer off behind it."""
        if head is not None or data or ended:
            super().on_read(head, data, ended)
        if error is not None:
            self.block(error)

    def _gather(self, data: bytes, ended: bool) -> None:
        head, stages = self._gathers, self._stages
        assert head is not None
        assert stages is not None
        self._whole.append(data)
        self._count(len(data))
        if ended:
            self.answer = head, b"".join(self._whole)
        elif self._own_bytes > WHOLE_BYTES:
            error = stages.unreadable("too_large")
            if error is not None:
                self.block(error)
                return
            whole = b"".join(self._whole)
            self._drop()
            self._gathers = self._stages = None
            super().on_read(head, whole, False)

    def finish(self, body: bytes) -> None:
        """The whole answer was judged: this is left of it."""
        assert self.answer is not None
        head, whole = self.answer
        self._drop()
        self._gathers = None
        if body is not whole:
            head = _with_length(head, len(body))
        super().on_read(head, body, True)

    def break_off(self) -> None:
        """The upstream failed in the middle of a stream: what was held of it belongs to what came."""
        stage, self._stage = self._stage, None
        if stage is not None and self.flight.phase < Phase.FILLING:
            rest = stage.end(whole=False)
            self.put(None, rest.data, error=rest.error)

    # -- other ways to end -----------------------------------------------------------------------------------

    def block(self, error: ProxyError) -> None:
        """End the flight with ``error``, and its call with it. What was asked for has its price all the same, and
        nothing outlived may stand in for it."""
        self._refuse(error)
        self.flight.table.runner.stop(self.flight)

    def fail(self, error: ProxyError, ending: Ending = Ending.FAULT) -> None:
        if error.kind in _REFUSALS and self.flight.phase < Phase.FILLING:
            self._refuse(error)
        else:
            super().fail(error, ending)

    def _refuse(self, error: ProxyError) -> None:
        flight, report = self.flight, self.report
        if flight.phase >= Phase.FILLING:
            return
        self._close_books()
        if self._seen_bytes and not report.relayed and self._plan.route.reports_usage:
            if report.usage is None:
                self._book_unseen()
            if not flight.is_paid:
                flight.charge_earliest()  # who asked for it pays for it, seen or not
        flight.seal(Ending.BLOCKED, error)
        flight.flush()

    def _book_unseen(self) -> None:
        """The usage of an answer of which nobody gets anything."""
        plan, body = self._plan, self.flight.work.body
        came = self.answer[1] if self.answer is not None else b"".join([data for _, data, _ in self._gate or ()])
        if came:
            self.report.usage = self._told or usage_from_body(plan.target.dialect, plan.route.name, came)
        if self.report.usage is None:
            self.report.usage = estimate_usage(len(body) if isinstance(body, bytes) else 0, self._seen_bytes, 0)

    def begin_again(self) -> None:
        self._drop()
        self._gate = self._stages = self._stage = self._gathers = None
        self._seen_bytes = 0
        super().begin_again()

    def release(self) -> None:
        self._drop()
        self._gate = None
        self._pausing = None
        super().release()

    def close(self) -> None:
        super().close()
        self._stages = self._stage = self._gathers = None  # they know this one

    # -- what is held ----------------------------------------------------------------------------------------

    def _count(self, size: int) -> None:
        self._own_bytes += size
        self._totals.bytes += size
        self.flight.table.retained_bytes += size

    def keep_back(self, size: int) -> None:
        """A stage holds so many bytes more, or fewer."""
        self._count(size)

    def _drop(self) -> None:
        self._count(-self._own_bytes)
        self._whole.clear()
        self.answer = None


def _without_length(head: ResponseHead) -> ResponseHead:
    """What is left of a stream may be shorter or longer than was announced."""
    if b"content-length" not in head.first:
        return head
    lines = [line for line in head.headers if line[0] not in _LENGTHS]
    return ResponseHead(head.status, [*lines, (b"transfer-encoding", b"chunked")])


def _with_length(head: ResponseHead, size: int) -> ResponseHead:
    lines = [line for line in head.headers if line[0] not in _LENGTHS]
    return ResponseHead(head.status, [*lines, (b"content-length", b"%d" % size)])


def note_flags(intake: GuardedIntake, names: Sequence[str]) -> None:
    """Tell the log, and everybody who is on the flight if its head is still to come."""
    if not names:
        return
    report = intake.report
    report.flagged = tuple(dict.fromkeys((*report.flagged, *names)))
