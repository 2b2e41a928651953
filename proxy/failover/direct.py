"""A first attempt without a task: most flights need no other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.errors import ProxyError
from proxy.failover.attempt import Attempt
from proxy.failover.course import Course
from proxy.failover.upshot import Upshot
from proxy.upstream.base import Call, Over
from proxy.upstream.credentials import KeyChoice
from proxy.upstream.health import Outcome

if TYPE_CHECKING:
    from proxy.failover.failover import Failover


class Leg:
    """A flight on its way to its first target. Implements ``upstream.base.Call``; a task carries it on if the target
    fails."""

    # Mutable state: call, set by who began it; _task, while further attempts are made; _over is None once the flight
    # has landed or was cancelled.
    __slots__ = ("_attempt", "_choice", "_course", "_failover", "_over", "_task", "call")

    def __init__(
        self, failover: Failover, course: Course, attempt: Attempt, choice: KeyChoice | None, over: Over
    ) -> None:
        self._failover = failover
        self._course = course
        self._attempt = attempt
        self._choice = choice
        self._over: Over | None = over
        self._task: asyncio.Task[None] | None = None
        self.call: Call | None = None
        attempt.stop = lambda: asyncio.get_running_loop().call_soon(self._stop)

    def _stop(self) -> None:
        """All is known of the first call that matters."""
        if self.call is not None and self._over is not None and self._task is None:
            call, self.call = self.call, None
            call.cancel()
            self.ended(None)

    def ended(self, error: BaseException | None) -> None:
        """The first call is over; called by the transport."""
        if self._over is None:
            return
        attempt = self._attempt
        if error is not None and not isinstance(error, ProxyError):
            attempt.place.leave(Outcome.NEUTRAL)
            self._land(error)
            return
        attempt.error = error.freed() if error is not None else None
        target = attempt.target
        try:
            upshot = self._failover.conclude(self._course, target, attempt, self._choice)
        except Exception as failure:  # noqa: BLE001 - it is the flight's to tell
            attempt.place.leave(Outcome.NEUTRAL)
            self._land(failure)
            return
        self._failover.note_try(self._course, target, upshot)
        if upshot.why:
            self._task = asyncio.get_running_loop().create_task(self._go_on(upshot))
        else:
            self._land(None)

    async def _go_on(self, upshot: Upshot) -> None:
        try:
            await self._failover.resume(self._course, upshot)
        except Exception as failure:  # noqa: BLE001 - it is the flight's to tell
            self._land(failure)
        else:
            self._land(None)

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        self._over = None
        self._attempt.let_go()
        self._attempt.place.leave(Outcome.NEUTRAL)
        if self._task is not None:
            self._task.cancel()
        elif self.call is not None:
            self.call.cancel()

    def _land(self, error: BaseException | None) -> None:
        over, self._over = self._over, None
        if over is not None:
            over(error)
