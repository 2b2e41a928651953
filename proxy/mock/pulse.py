"""The mock's one timer: a wheel of deadlines, swept by the loop only while something is armed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.clock import Clock, Deadline, Deadlines

_TICK_S = 0.001


class Pulse:
    """Latency and pace of every answer. A load of ten thousand streams costs one loop timer, not ten thousand."""

    # The mutable state: _beat_at is the pending loop timer or None; only `arm_at`, `_beat` and `stop` write it.
    __slots__ = ("_beat_at", "_clock", "_loop", "_wheel")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._loop = loop
        self._clock = clock
        self._wheel = Deadlines(clock, _TICK_S)
        self._beat_at: asyncio.TimerHandle | None = None

    def now(self) -> float:
        return self._clock.now()

    def arm_at(self, at: float, callback: Callable[[], float | None]) -> Deadline:
        """Call back at ``at`` or up to a tick later; the callback may return its next time."""
        if self._beat_at is None:
            # Nothing was armed, so nothing is due: this moves the wheel on to the present.
            self._wheel.sweep()
            self._beat_at = self._loop.call_later(_TICK_S, self._beat)
        return self._wheel.arm_at(at, callback)

    def _beat(self) -> None:
        self._wheel.sweep()
        self._beat_at = self._loop.call_later(_TICK_S, self._beat) if self._wheel.armed else None

    def stop(self) -> None:
        if self._beat_at is not None:
            self._beat_at.cancel()
            self._beat_at = None
