"""A clock that stands still until a test moves it."""

from __future__ import annotations

from proxy.clock import Clock


class FrozenClock(Clock):
    """``now`` and ``wall`` move together, by ``advance`` only."""

    __slots__ = ("_now", "_wall")

    def __init__(self, now: float = 1000.0, wall: float = 1_767_225_600.0) -> None:
        self._now = now
        self._wall = wall

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        """Move both clocks on. Time never goes back: raises ``ValueError`` for negative seconds."""
        if seconds < 0:
            raise ValueError("a monotonic clock cannot go back; use set_wall for the other one")
        self._now += seconds
        self._wall += seconds

    def set_wall(self, wall: float) -> None:
        """Make the wall clock jump, as administrators and time servers do."""
        self._wall = wall
