"""Every periodic duty of the process, run by one timer.

The timer wakes the janitor once in each tick of the deadlines. It then fires what is due among them and runs at most
one duty, the longest overdue, so that duties of one period do not add up to a pause. A duty that fails is counted,
named in the log once a minute, and stops neither the others nor itself. The janitor does not know what duties do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from proxy.clock import Clock, Deadlines
from proxy.telemetry.log import get_logger

_TELL_EVERY_S: Final = 60.0
# An observed lag counts half after this time, so that a scrape every 15 s still sees most of a short stall.
_LAG_HALF_LIFE_S: Final = 15.0


class Timer(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """What the janitor needs of an event loop."""

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer: ...


class Log(Protocol):
    """What the janitor needs of a logger."""

    def error(self, event: str, /, **fields: Any) -> object: ...


class Duration(NamedTuple):
    """How a duty has done so far, in seconds."""

    last_s: float
    longest_s: float
    total_s: float
    runs: int
    failures: int


class _Duty:
    """One duty and its books; written by Janitor only."""

    __slots__ = ("call", "due_at", "every_s", "failures", "last_s", "longest_s", "name", "runs", "tell_at", "total_s")

    def __init__(self, name: str, every_s: float, call: Callable[[], object], due_at: float) -> None:
        self.name = name
        self.every_s = every_s
        self.call = call
        self.due_at = due_at
        self.tell_at = 0.0
        self.last_s = 0.0
        self.longest_s = 0.0
        self.total_s = 0.0
        self.runs = 0
        self.failures = 0


class Janitor:
    """Runs duties from ``start`` to ``stop``, on the loop it was given or the one that runs at ``start``.

    ``observe_lag`` is told in each tick how many seconds late the loop was.
    """

    # Mutable: _timer is the armed timer, None while stopped or within a tick; _running says whether a tick arms the
    # next; _intended is when the next tick should come, _woke_at when the last one did. Written by start, stop and
    # _tick. _duties is written by add, the books of a duty by _run.
    __slots__ = (
        "_clock",
        "_deadlines",
        "_duties",
        "_intended",
        "_log",
        "_loop",
        "_observe_lag",
        "_running",
        "_sweep",
        "_timer",
        "_woke_at",
        "lag_s",
    )

    def __init__(
        self,
        clock: Clock,
        deadlines: Deadlines,
        *,
        loop: Loop | None = None,
        log: Log | None = None,
        observe_lag: Callable[[float], object] | None = None,
    ) -> None:
        self._clock = clock
        self._deadlines = deadlines
        self._loop = loop
        self._log: Log = get_logger() if log is None else log
        self._observe_lag = observe_lag
        self._sweep = _Duty("deadlines", deadlines.tick_s, deadlines.sweep, 0.0)
        self._duties: list[_Duty] = []
        self._running = False
        self._timer: Timer | None = None
        self._intended = 0.0
        self._woke_at = 0.0
        self.lag_s = 0.0
        """How late the loop woke the janitor at worst, lately."""

    def add(self, name: str, every_s: float, duty: Callable[[], object]) -> None:
        """Run ``duty`` every ``every_s`` seconds, for the first time after as long. It is called on the loop, so it
        must be short; what takes long starts a task. Raises ``ValueError`` for a name or a period that cannot be."""
        if every_s <= 0.0 or name in self.durations:
            raise ValueError(f"duty {name!r} every {every_s} s: a new name and a positive period are needed")
        self._duties.append(_Duty(name, every_s, duty, self._clock.now() + every_s))

    @property
    def durations(self) -> dict[str, Duration]:
        """How long each duty took, by its name; the firing of deadlines is ``deadlines``."""
        return {
            duty.name: Duration(duty.last_s, duty.longest_s, duty.total_s, duty.runs, duty.failures)
            for duty in (self._sweep, *self._duties)
        }

    def start(self) -> None:
        """Begin; does nothing if it has begun."""
        if self._running:
            return
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._running = True
        self._intended = self._woke_at = self._clock.now()
        self._arm()

    def stop(self) -> None:
        """No tick comes after this call; it can be started again."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        assert self._loop is not None
        now, tick_s = self._clock.now(), self._deadlines.tick_s
        self._intended += tick_s
        if self._intended <= now:
            # Ticks that could not be kept are not made up for.
            self._intended = now + tick_s
        self._timer = self._loop.call_later(self._intended - now, self._tick)

    def _tick(self) -> None:
        self._timer = None
        try:
            now = self._clock.now()
            self._measure_lag(now)
            self._run(self._sweep)
            duty = min(self._duties, key=_due_at, default=None)
            if duty is not None and now >= duty.due_at and self._running:
                duty.due_at += duty.every_s
                if duty.due_at <= now:
                    # Periods that could not be kept are not made up for either.
                    duty.due_at = now + duty.every_s
                self._run(duty)
        finally:
            # Whatever happens in a tick, and be it a cancellation: without the next one no deadline ever fires again.
            if self._running and self._timer is None:
                self._arm()

    def _measure_lag(self, now: float) -> None:
        lag_s = max(0.0, now - self._intended)
        faded_s = self.lag_s * 0.5 ** ((now - self._woke_at) / _LAG_HALF_LIFE_S)
        self.lag_s = max(lag_s, faded_s)
        self._woke_at = now
        if self._observe_lag is not None:
            self._observe_lag(lag_s)

    def _run(self, duty: _Duty) -> None:
        began = self._clock.now()
        try:
            duty.call()
        except Exception as error:  # noqa: BLE001 - duties have nobody else to fail to
            duty.failures += 1
            self._tell(duty, error, began)
        took_s = self._clock.now() - began
        duty.runs += 1
        duty.last_s = took_s
        duty.total_s += took_s
        duty.longest_s = max(duty.longest_s, took_s)

    def _tell(self, duty: _Duty, error: Exception, now: float) -> None:
        if now >= duty.tell_at:
            duty.tell_at = now + _TELL_EVERY_S
            self._log.error("duty_failed", duty=duty.name, failures=duty.failures, exc_info=error)


def _due_at(duty: _Duty) -> float:
    return duty.due_at
