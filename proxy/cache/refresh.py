"""Who may refresh a stale entry, and when again after a refresh failed.

One refresh of a key runs at a time, a fixed number in all, and a failed one is held off for a while that doubles with
each failure in a row: a refresh that fails is neither hammered nor forgotten, because the entry it belongs to stays
until its own end and every later look-up asks again.
"""

from __future__ import annotations

from collections.abc import Callable


class Refreshes:
    """Running refreshes and hold-offs, by key. Times in seconds of the monotonic clock.

    ``random`` gives numbers in [0, 1) and spreads hold-offs by ±10 %, so that keys which failed together come back
    apart.
    """

    # Mutable: _running (key -> when it counts as lost; at most max_running) and _held (key -> failures in a row, not
    # before; one at most for each entry of the cache, which calls `forget` when the entry goes). All methods write.
    __slots__ = (
        "_held",
        "_hold_first_s",
        "_hold_most_s",
        "_lost_after_s",
        "_random",
        "_running",
        "deferred",
        "failed",
        "max_running",
    )

    def __init__(
        self,
        random: Callable[[], float],
        *,
        max_running: int = 64,
        hold_first_s: float = 1.0,
        hold_most_s: float = 60.0,
        lost_after_s: float = 600.0,
    ) -> None:
        self._random = random
        self._hold_first_s = hold_first_s
        self._hold_most_s = hold_most_s
        self._lost_after_s = lost_after_s
        self.max_running = max_running
        self._running: dict[bytes, float] = {}
        self._held: dict[bytes, tuple[int, float]] = {}
        self.deferred = 0
        """Refreshes not begun because ``max_running`` were under way."""
        self.failed = 0

    @property
    def running(self) -> int:
        return len(self._running)

    def begin(self, key: bytes, now: float) -> bool:
        """Whether the caller is to refresh ``key`` now; if so it must call ``end`` or replace the entry."""
        lost_at = self._running.get(key)
        if lost_at is not None and now < lost_at:
            return False
        held = self._held.get(key)
        if held is not None and now < held[1]:
            return False
        if lost_at is None and len(self._running) >= self.max_running:
            self.deferred += 1
            return False
        self._running[key] = now + self._lost_after_s
        return True

    def end(self, key: bytes, now: float, *, ok: bool) -> None:
        """The refresh of ``key`` is over; a failure sets the hold-off."""
        if self._running.pop(key, None) is None:
            return
        if ok:
            self._held.pop(key, None)
            return
        self.failed += 1
        failures = self._held.get(key, (0, 0.0))[0] + 1
        # The exponent is capped because a float is: 2.0 ** 1024 overflows.
        hold_s = min(self._hold_first_s * 2.0 ** min(failures - 1, 64), self._hold_most_s)
        self._held[key] = (failures, now + hold_s * (0.9 + 0.2 * self._random()))

    def forget(self, key: bytes) -> None:
        """The entry is gone or new: nothing is known of its refresh any more."""
        self._running.pop(key, None)
        self._held.pop(key, None)

    def sweep(self, now: float) -> None:
        """Give back the places of refreshes that never ended."""
        for key in [key for key, lost_at in self._running.items() if now >= lost_at]:
            del self._running[key]
