"""A limit per minute as one number: the generic cell rate algorithm.

A bucket holds what was taken and not yet drained; it drains evenly, a whole minute's allowance in a minute, and takes
no more than its capacity. All its state is the moment at which it will be empty. So for any span of time, what is
admitted in it is at most the capacity and what drains in it, and whatever would not break that is admitted.
"""

from __future__ import annotations

from typing import Final

_MINUTE_S: Final = 60.0
_ROUNDING_S: Final = 1e-6


class Bucket:
    """One limit of one account: requests or tokens a minute."""

    # Mutable: empty_at (monotonic seconds) and idle_turn, the last turn that found the bucket empty; written by take
    # and amend. The rest is written by configure.
    __slots__ = ("brim_s", "capacity_s", "empty_at", "idle_turn", "interval_s", "per_minute")

    def __init__(self, per_minute: int, burst_s: float = _MINUTE_S, parts: int = 1) -> None:
        self.empty_at = 0.0
        self.idle_turn = 0
        self.configure(per_minute, burst_s, parts)

    def configure(self, per_minute: int, burst_s: float = _MINUTE_S, parts: int = 1) -> None:
        """``burst_s``: how many seconds' worth fit at once, at least one unit; ``parts``: into how many processes the
        limit is divided."""
        self.per_minute = per_minute
        self.interval_s = _MINUTE_S * parts / per_minute
        """In which one unit drains."""
        self.capacity_s = max(burst_s, self.interval_s)
        self.brim_s = self.capacity_s + _ROUNDING_S
        """What is above this at a taking does not fit, or is more than the capacity."""

    def change(self, now: float, per_minute: int, burst_s: float, parts: int) -> None:
        """As `configure`, while units are in it: those stay in."""
        before_s = self.interval_s
        self.configure(per_minute, burst_s, parts)
        if self.empty_at > now:
            self.empty_at = now + (self.empty_at - now) * self.interval_s / before_s

    def wait_s(self, now: float, units: int) -> float:
        """Seconds until ``units`` fit; 0.0 if they do. More than the capacity fit when the bucket is empty."""
        level_s = self.empty_at - now
        if level_s <= 0.0:
            return 0.0
        over_s = level_s + units * self.interval_s - self.capacity_s
        if over_s <= _ROUNDING_S:
            return 0.0
        return min(level_s, over_s)

    def take(self, now: float, units: int, turn: int) -> None:
        """Put ``units`` in. ``turn`` numbers all takings in their order."""
        empty_at = self.empty_at
        if empty_at <= now:
            empty_at = now
            self.idle_turn = turn
        self.empty_at = empty_at + units * self.interval_s

    def amend(self, now: float, turn: int, units: int) -> None:
        """What was taken in ``turn`` was ``units`` too much, or too little if negative.

        No more is given back than there is, and nothing if the bucket has been empty since: what was taken has
        drained then, and giving it back would let a later taking be forgotten.
        """
        if units < 0:
            self.empty_at = max(self.empty_at, now) - units * self.interval_s
        elif turn >= self.idle_turn:
            level_s = self.empty_at - now
            if level_s > 0.0:
                self.empty_at -= min(units * self.interval_s, level_s)

    def remaining(self, now: float) -> int:
        """Units that fit now."""
        level_s = self.empty_at - now
        free_s = self.capacity_s - (max(0.0, level_s))
        return max(0, int((free_s + _ROUNDING_S) / self.interval_s))

    def reset_s(self, now: float) -> float:
        """Seconds until it is empty."""
        return max(0.0, self.empty_at - now)

    def is_idle(self, now: float) -> bool:
        """Whether forgetting it would change anything."""
        return self.empty_at <= now
