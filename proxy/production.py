"""The life of one flight: from a plan to a sealed tape.

shared-cache look-up → the upstream call, or attempts over the model's targets, whose bytes `Intake` puts on the tape
→ store.

Production never sees a client. Where an upstream connection is idle the request leaves in the tick that asks for it,
and the transport calls back at the end (`launch`); otherwise a task waits for a connection, a shared cache, and the
end of the message, never for its bytes (`run`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from proxy.accounting.report import Report
from proxy.cache.hot import HotCache
from proxy.cache.recording import Recording
from proxy.cache.shared import SharedCache
from proxy.clock import Clock, Deadlines
from proxy.errors import Kind, ProxyError
from proxy.failover.failover import Failover
from proxy.flight.flight import Ending, Flight, Phase
from proxy.formation.landing import Landing
from proxy.guarded_intake import GuardedIntake
from proxy.intake import Intake
from proxy.policy.plan import Plan
from proxy.upstream.base import Call, Origin, Over, Patience, Transport, UpstreamRequest
from proxy.work import Work

if TYPE_CHECKING:
    from proxy.formation.formation import Formation
    from proxy.formation.lead import Lead
    from proxy.screening import Screening

_PATIENCE_S: Final = 0.03
"""A look at the shared cache that took longer leaves no time to ask the same server for anything else."""


class FlightBooks(Protocol):
    """Where a finished flight is booked."""

    def flown(self, flight: Flight, report: Report) -> None: ...

    def bug(self, where: str, error: BaseException) -> None: ...


class Production:
    """Fills flights. One for the process; everything about a flight is on the flight."""

    # Mutable state: _origins and _patiences remember records made from the catalog's, a few for each provider.
    __slots__ = (
        "_books",
        "_clock",
        "_connect_s",
        "_deadlines",
        "_failover",
        "_formation",
        "_hot",
        "_origins",
        "_patiences",
        "_screening",
        "_shared",
        "_transport",
        "finished",
    )

    def __init__(
        self,
        *,
        clock: Clock,
        deadlines: Deadlines,
        transport: Transport,
        hot: HotCache,
        shared: SharedCache,
        books: FlightBooks,
        finished: Callable[[Flight], None],
        failover: Failover | None = None,
        formation: Formation | None = None,
        screening: Screening | None = None,
        connect_s: float = 5.0,
    ) -> None:
        """``failover`` carries what the catalog routes; with a ``formation`` flights are shared with other processes;
        ``screening`` guards those that have guards. ``finished`` is told of the end of each flight that `launch`
        began."""
        self._clock = clock
        self._deadlines = deadlines
        self._transport = transport
        self._failover = failover
        self._formation = formation
        self._screening = screening
        self._hot = hot
        self._shared = shared
        self._books = books
        self._connect_s = connect_s
        self._origins: dict[str, Origin] = {}
        self._patiences: dict[tuple[float, float, float], Patience] = {}
        self.finished = finished

    def launch(self, flight: Flight) -> DirectFlight | None:
        """Begin to fill ``flight`` without a task, where nothing has to be waited for: its first await would be the
        upstream's answer. ``None`` if that is not so."""
        work: Work = flight.work
        if work.plan.guards is not None:
            return None
        if self._shared.enabled and (work.plan.caching.reads or work.plan.caching.writes):
            return None
        if self._formation is not None and flight.mapped:
            return None
        report = flight.report = Report(flight.born_at)
        intake = Intake(flight, report, self, self._clock, self._deadlines)
        direct = DirectFlight(self, flight, intake)
        try:
            direct.call = self._start(work, flight, intake, direct.over)
        except ProxyError:
            pass  # `run` meets the same and has somebody to tell
        except Exception as bug:  # noqa: BLE001 - whoever joins meanwhile must not wait for nothing
            self._books.bug("production", bug)
        if direct.call is not None:
            return direct
        flight.report = None  # it has not begun, and may be stopped before it has: no account can wait for its end
        return None

    def _start(self, work: Work, flight: Flight, intake: Intake, over: Over) -> Call | None:
        if work.plan.routed is None:
            return self._transport.start(self._request(work), intake, self._patience(work.plan), over)
        assert self._failover is not None
        assert isinstance(work.body, bytes)
        return self._failover.start(flight, intake, work.body, over)

    async def run(self, flight: Flight) -> None:
        """Fill ``flight``. It is sealed when this returns, however it went."""
        report = flight.report = Report(self._clock.now())
        intake = self._receive(flight, report)
        try:
            await self._fill(flight, intake)
        except BaseException as error:
            self.conclude(flight, intake, error)
            if not isinstance(error, Exception):
                raise
        else:
            self.conclude(flight, intake, None)

    def _receive(self, flight: Flight, report: Report) -> Intake:
        if flight.work.plan.guards is None:
            return Intake(flight, report, self, self._clock, self._deadlines)
        assert self._screening is not None
        held = self._screening.held
        return GuardedIntake(flight, report, self, self._clock, self._deadlines, held)

    def conclude(self, flight: Flight, intake: Intake, error: BaseException | None) -> None:
        """The upstream's part is over: see to it that the flight is sealed, and book it."""
        try:
            if error is None:
                pass
            elif isinstance(error, ProxyError):
                intake.fail(error)
            elif isinstance(error, Exception):  # nobody must hang on a bug
                self._books.bug("production", error)
                intake.fail(ProxyError(Kind.BUG, "Internal error.", detail=repr(error)), Ending.BUG)
            else:
                # The table stops a flight that it has sealed itself; anything else that cancels is the loop's end.
                intake.fail(ProxyError(Kind.DRAINING, "The proxy is shutting down."), Ending.SHUTDOWN)
        finally:
            intake.close()
            if intake.lead is not None:
                _tell_end(intake, error)
            flight.filled()
            if flight.work.renews:
                self._settle_refresh(flight)
            self._books.flown(flight, intake.report)

    async def _fill(self, flight: Flight, intake: Intake) -> None:
        work: Work = flight.work
        plan = work.plan
        if plan.caching.reads and plan.key is not None and self._shared.enabled:
            recording = None if work.renews else await self._shared.get(plan.key)
            if recording is not None:
                self._hot.put(plan.key, plan.scope, recording, work.generation, plan.user)
                if self._is_fresh(recording, plan):  # an outlived one only stands in for a failing upstream
                    intake.replay(recording, "shared")
                    return
        if self._formation is not None and flight.mapped and await self._follow(self._formation, flight, intake):
            return
        if isinstance(intake, GuardedIntake):
            assert self._screening is not None
            await self._screening.fly(intake, lambda: self._ask(flight, intake))
        else:
            await self._ask(flight, intake)
        current = work.generation == self._hot.generation  # no purge was learnt since the answer was kept
        if flight.phase is Phase.FILLING and intake.recording is not None and plan.key is not None and current:
            await self._shared.put(plan.key, intake.recording, plan.caching.keeps_s)

    async def _ask(self, flight: Flight, intake: Intake) -> None:
        """Make the call, or as many as it takes."""
        work: Work = flight.work
        if work.plan.routed is None:
            await self._transport.exchange(self._request(work), intake, self._patience(work.plan))
        else:
            assert isinstance(work.body, bytes)
            assert self._failover is not None
            await self._failover.fly(flight, intake, work.body)

    async def _follow(self, formation: Formation, flight: Flight, intake: Intake) -> bool:
        """Whether another process's answer filled the flight. If not the call is to be made here, and others may be
        told of it."""
        plan: Plan = flight.work.plan
        if plan.key is None or self._clock.now() - intake.report.started_at > _PATIENCE_S:
            return False
        follows, after = plan.sharing.joins or plan.sharing.retry, None
        for _ in range(formation.bounds.tries):
            part = await formation.join(plan.key, follows=follows, after=after)
            if part is None:
                return False
            if part.leads:
                _lead(flight, intake, part)
                return False
            landing = await part.fly(intake, plan.total_s)
            if landing is Landing.DONE:
                return True
            intake.begin_again()
            if landing is Landing.ALONE:
                return False
            after = part
        return False

    def _is_fresh(self, recording: Recording, plan: Plan) -> bool:
        age_s, most_s = recording.age_s(self._clock.now()), plan.caching.max_age_s
        return age_s < recording.ttl_s and (most_s is None or age_s <= most_s)

    def _patience(self, plan: Plan) -> Patience:
        times = plan.first_byte_s, plan.idle_s, plan.total_s
        patience = self._patiences.get(times)
        if patience is None:
            patience = self._patiences[times] = Patience(self._connect_s, *times)
        return patience

    def _request(self, work: Work) -> UpstreamRequest:
        plan = work.plan
        target = plan.target
        origin = self._origins.get(target.origin)
        if origin is None:
            origin = self._origins[target.origin] = Origin(target.scheme, target.host, target.port)
        return UpstreamRequest(origin, plan.method, plan.upstream_path, plan.headers, work.body)

    # -- intake.Shelf ----------------------------------------------------------------------------------------

    def keep(self, flight: Flight, recording: Recording) -> bool:
        """Into the hot cache now, before the flight is unmapped; ``True`` if the shared level is to follow."""
        work: Work = flight.work
        plan = work.plan
        if plan.key is None:
            return False
        stored = self._hot.put(plan.key, plan.scope, recording, work.generation, plan.user)
        flight.report.stored = stored
        return stored and self._shared.enabled

    def stale(self, plan: Plan) -> Recording | None:
        """What the hot cache still has for a request whose upstream fails."""
        if plan.caching.stale_if_error_s <= 0 or plan.key is None:
            return None
        hit = self._hot.lookup(plan.key, self._clock.now())
        return hit.recording if hit is not None and hit.may_mask_error else None

    def remember_missing(self, flight: Flight, recording: Recording) -> None:
        """The marker makes the pipeline look; the answer itself is an entry like any other, bounded by its scope."""
        work: Work = flight.work
        plan = work.plan
        if plan.key is not None and self._hot.put(plan.key, plan.scope, recording, work.generation, plan.user):
            self._hot.remember_missing(plan.key, recording.ttl_s, recording.stored_at)

    def _settle_refresh(self, flight: Flight) -> None:
        """Tell the cache that a renewal brought nothing, so that it is neither hammered nor forgotten."""
        work: Work = flight.work
        if work.renews and work.plan.key is not None and not flight.report.stored:
            self._hot.end_refresh(work.plan.key, self._clock.now())


def _lead(flight: Flight, intake: Intake, lead: Lead) -> None:
    """Other processes are told of the flight from now on, and it flies on for them if everybody leaves here."""
    intake.lead = lead
    flight.beyond = lambda unwanted: lead.part(lambda: not flight.subscribers, unwanted)


def _tell_end(intake: Intake, error: BaseException | None) -> None:
    """Other processes are told how it went, unless they were."""
    lead, flight = intake.lead, intake.flight
    assert lead is not None
    flight.beyond = None  # it knows the flight
    failure = error if isinstance(error, ProxyError) else flight.error
    if failure is not None and intake.report.remark != "cut_after_end":
        lead.fail(failure)
    elif flight.ending in (Ending.OK, Ending.CUT):
        lead.end()
    else:
        lead.abandon(flight.ending.value if flight.ending is not None else "bug")


class DirectFlight:
    """A flight on its way without a task: what the transport calls at the end. Implements ``runner.Errand``."""

    # Mutable state: _flight is None once the flight was concluded or cancelled.
    __slots__ = ("_flight", "_intake", "_production", "call")

    def __init__(self, production: Production, flight: Flight, intake: Intake) -> None:
        self._production = production
        self._flight: Flight | None = flight
        self._intake = intake
        self.call: Call | None = None

    def over(self, error: BaseException | None) -> None:
        """The upstream exchange ended."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._conclude(flight, error)

    def cancel(self) -> None:
        """The flight was stopped. Its end is booked on the next turn: whoever stops it is in the middle of a step."""
        flight, self._flight = self._flight, None
        if flight is not None:
            assert self.call is not None
            self.call.cancel()
            flight.table.runner.defer(lambda: self._conclude(flight, asyncio.CancelledError()))

    def _conclude(self, flight: Flight, error: BaseException | None) -> None:
        try:
            self._production.conclude(flight, self._intake, error)
        finally:
            self._production.finished(flight)
