"""One timer for all waiting calls: a turn of the loop each millisecond, however many streams are paced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_TICK_S = 0.001

Beat = Callable[[], float]
"""Called when due; returns the milliseconds until it wants to be called again, 0 for never."""


class Metronome:
    """Calls back within a tick of the time asked for; behind, it makes up for lost ticks in their order."""

    # The mutable state: beats by tick, the last tick that was served, and the pending timer while anything waits.
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[int, list[Beat]] = {}
        self._tick = 0
        self._timer: asyncio.TimerHandle | None = None

    def arm(self, after_ms: float, beat: Beat) -> None:
        now = int(self._loop.time() / _TICK_S)
        if self._timer is None:
            self._tick = now
            self._timer = self._loop.call_later(_TICK_S, self._turn)
        self._due.setdefault(max(now + max(1, round(after_ms)), self._tick + 1), []).append(beat)

    def _turn(self) -> None:
        now = int(self._loop.time() / _TICK_S)
        due = self._due
        for tick in range(self._tick + 1, now + 1):
            self._tick = tick
            for beat in due.pop(tick, ()):
                after_ms = beat()
                if after_ms:
                    # From when it was due, so that a late turn does not slow a stream down.
                    due.setdefault(max(tick + max(1, round(after_ms)), self._tick + 1), []).append(beat)
        self._timer = self._loop.call_later(_TICK_S, self._turn) if due else None
