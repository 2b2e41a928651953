"""The life of one flight: from a plan to a sealed tape.

shared-cache look-up → the upstream call, whose bytes `Intake` puts on the tape → store.

Production never sees a client. The task that runs here wakes up when the upstream's message is over, not for its
bytes.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from proxy.accounting.report import Report
from proxy.cache.hot import HotCache
from proxy.cache.recording import Recording
from proxy.cache.shared import SharedCache
from proxy.clock import Clock, Deadlines
from proxy.errors import Kind, ProxyError
from proxy.flight.flight import Ending, Flight, Phase
from proxy.intake import Intake
from proxy.policy.plan import Plan
from proxy.upstream.base import Origin, Patience, Transport, UpstreamRequest
from proxy.work import Work


class FlightBooks(Protocol):
    """Where a finished flight is booked."""

    def flown(self, flight: Flight, report: Report) -> None: ...

    def bug(self, where: str, error: BaseException) -> None: ...


class Production:
    """Fills flights. One for the process; everything about a flight is on the flight."""

    __slots__ = ("_books", "_clock", "_connect_s", "_deadlines", "_hot", "_shared", "_transport")

    def __init__(
        self,
        *,
        clock: Clock,
        deadlines: Deadlines,
        transport: Transport,
        hot: HotCache,
        shared: SharedCache,
        books: FlightBooks,
        connect_s: float = 5.0,
    ) -> None:
        self._clock = clock
        self._deadlines = deadlines
        self._transport = transport
        self._hot = hot
        self._shared = shared
        self._books = books
        self._connect_s = connect_s

    async def run(self, flight: Flight) -> None:
        """Fill ``flight``. It is sealed when this returns, however it went."""
        report = flight.report = Report(self._clock.now())
        intake = Intake(flight, report, self, self._clock, self._deadlines)
        try:
            await self._fill(flight, intake)
        except ProxyError as error:
            intake.fail(error)
        except asyncio.CancelledError:
            # The table stops a flight that it has sealed itself; anything else that cancels is the end of the loop.
            intake.fail(ProxyError(Kind.DRAINING, "The proxy is shutting down."), Ending.SHUTDOWN)
            raise
        except Exception as bug:  # noqa: BLE001 - one of the two places that may: nobody must hang on a bug
            self._books.bug("production", bug)
            intake.fail(ProxyError(Kind.BUG, "Internal error.", detail=repr(bug)), Ending.BUG)
        finally:
            intake.release()
            flight.filled()
            self._settle_refresh(flight)
            self._books.flown(flight, report)

    async def _fill(self, flight: Flight, intake: Intake) -> None:
        work: Work = flight.work
        plan = work.plan
        if plan.caching.reads and plan.key is not None and self._shared.enabled:
            recording = None if work.renews else await self._shared.get(plan.key)
            if recording is not None:
                self._hot.put(plan.key, plan.scope, recording, work.generation)
                if self._is_fresh(recording, plan):  # an outlived one only stands in for a failing upstream
                    intake.replay(recording, "shared")
                    return
        await self._transport.exchange(_request(work), intake, self._patience(plan))
        if flight.phase is Phase.FILLING and intake.recording is not None and plan.key is not None:
            await self._shared.put(plan.key, intake.recording, plan.caching.keeps_s)

    def _is_fresh(self, recording: Recording, plan: Plan) -> bool:
        age_s, most_s = recording.age_s(self._clock.now()), plan.caching.max_age_s
        return age_s < recording.ttl_s and (most_s is None or age_s <= most_s)

    def _patience(self, plan: Plan) -> Patience:
        return Patience(self._connect_s, plan.first_byte_s, plan.idle_s, plan.total_s)

    # -- intake.Shelf ----------------------------------------------------------------------------------------

    def keep(self, flight: Flight, recording: Recording) -> bool:
        """Into the hot cache now, before the flight is unmapped; ``True`` if the shared level is to follow."""
        work: Work = flight.work
        plan = work.plan
        if plan.key is None:
            return False
        stored = self._hot.put(plan.key, plan.scope, recording, work.generation)
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
        if plan.key is not None and self._hot.put(plan.key, plan.scope, recording, work.generation):
            self._hot.remember_missing(plan.key, recording.ttl_s, recording.stored_at)

    def _settle_refresh(self, flight: Flight) -> None:
        """Tell the cache that a renewal brought nothing, so that it is neither hammered nor forgotten."""
        work: Work = flight.work
        if work.renews and work.plan.key is not None and not flight.report.stored:
            self._hot.end_refresh(work.plan.key, self._clock.now())


def _request(work: Work) -> UpstreamRequest:
    plan, target = work.plan, work.plan.target
    return UpstreamRequest(
        Origin(target.scheme, target.host, target.port), plan.method, plan.upstream_path, plan.headers, work.body
    )
