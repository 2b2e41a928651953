"""Whether another attempt is made, at which target, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.clock import Clock, Deadlines
from proxy.config.models import ModelTarget
from proxy.failover.course import Course
from proxy.failover.upshot import Upshot
from proxy.flight.flight import Phase
from proxy.protocol.events import Cause
from proxy.upstream.health import Outcome
from proxy.upstream.retries import RetryGates, Why, pause_s


class Onward:
    """Leads flights from a failed attempt to the next. One for the process."""

    # Mutable state: _batches remembers until when the gates' last word holds for the callers of a batch at a target.
    __slots__ = ("_batches", "_clock", "_deadlines", "_draw", "_gates")

    def __init__(self, clock: Clock, deadlines: Deadlines, gates: RetryGates, draw: Callable[[], float]) -> None:
        """``draw`` gives numbers from 0 to 1, for the jitter of pauses."""
        self._clock = clock
        self._deadlines = deadlines
        self._gates = gates
        self._draw = draw
        self._batches: dict[tuple[str, Why], tuple[float, bool]] = {}

    def forget(self) -> None:
        self._batches.clear()

    async def move_on(self, course: Course, upshot: Upshot) -> bool:
        """Choose the next target, ask the gates, and wait as long as it takes. ``False``: there is nothing to try."""
        target = course.target
        if course.flight.phase is not Phase.OPENING:
            return False
        if upshot.free:
            if upshot.why == "crowded":
                self._gates.take(target.id, "crowded")
            course.position += 1
            return course.position < len(course.order)
        if course.made >= course.routed.attempts:
            return False
        now = self._clock.now()
        if upshot.retry_after_s:
            course.not_before[target.id] = now + upshot.retry_after_s
        elsewhere = self._turn(course, target, upshot)
        if elsewhere is None:
            return False
        remaining_s = self._remaining_s(course, now)
        # What a target said about one of its keys does not bind the next.
        rotates = elsewhere and course.target is target
        told_s = 0.0 if rotates else course.not_before.get(course.target.id, 0.0) - now
        wait_s = pause_s(
            attempt=course.made,
            throttled=upshot.outcome is Outcome.THROTTLED,
            retry_after_s=told_s if told_s > 0.0 else None,
            remaining_s=remaining_s,
            elsewhere=elsewhere and told_s <= 0.0,
            draw=self._draw(),
        )
        why = upshot.retry_why
        if wait_s is None or why is None:
            return False
        self.end_retry(course, helped=False)
        if wait_s > 0.0:  # who waits has not begun, and holds up nobody's retry
            await self._pause(wait_s)
        # A model that is not there costs an upstream nothing to say so, and is remembered.
        is_unknown = upshot.fault is not None and upshot.fault.cause is Cause.NOT_FOUND
        return is_unknown or self._may_retry(course, target, why, ejected=upshot.ejected)

    def _remaining_s(self, course: Course, now: float) -> float:
        """How long may be waited: until the flight's deadline, and as long as its first caller has patience."""
        flight = course.flight
        until = course.deadline_at
        if flight.work.patience_s is not None:
            until = min(until, flight.born_at + flight.work.patience_s)
        return until - now

    def _may_retry(self, course: Course, target: ModelTarget, why: Why, *, ejected: bool) -> bool:
        """Ask the gates; once for all callers of a batch, whose next attempts become one call again."""
        batching = course.routed.model.batching
        if batching is None:
            if not self._gates.take(target.id, why, ejected=ejected):
                return False
            course.retrying = target.id, why, ejected
            return True
        now = self._clock.now()
        until, allowed = self._batches.get((target.id, why), (0.0, False))
        if now >= until:
            allowed = self._gates.take(target.id, why)
            if allowed:
                self._gates.finished(target.id, why, helped=False)
            self._batches[target.id, why] = now + batching.window_s, allowed
        return allowed

    def end_retry(self, course: Course, *, helped: bool) -> None:
        if course.retrying is not None:
            (target, why, ejected), course.retrying = course.retrying, None
            self._gates.finished(target, why, helped=helped, ejected=ejected)

    def _turn(self, course: Course, target: ModelTarget, upshot: Upshot) -> bool | None:
        """Point the course at whoever is next: another key, another target, or the same again. ``True`` where it is
        not the same, ``None`` where there is nobody."""
        fault, name = upshot.fault, target.provider.name
        blames_key = fault is not None and fault.cause.value.blames_key and not course.routed.own
        if blames_key and upshot.attempt is not None:
            tried = course.tried_keys.get(name, ())
            used = upshot.attempt.key_name
            course.tried_keys[name] = tried = (*tried, used) if used else tried
            if any(key.name not in tried for key in target.provider.keys):
                return True
        if not course.is_last:
            course.position += 1
            return True
        if fault is not None and fault.cause in (Cause.DEAD_KEY, Cause.FORBIDDEN, Cause.SPENT, Cause.NOT_FOUND):
            return None
        course.position = 0
        course.tried_keys.clear()
        return len(course.order) > 1

    async def _pause(self, seconds: float) -> None:
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not over.done():
                over.set_result(None)

        alarm = self._deadlines.arm(seconds, end)
        try:
            await over
        finally:
            alarm.cancel()
