"""How long a target takes to its first byte: a moving average, and the 95th percentile of the last answers."""

from __future__ import annotations

from array import array
from math import exp
from typing import Final

_TAU_S: Final = 10.0
_LEAST_WEIGHT: Final = 0.05
_LEAST_IDLE_S: Final = _LEAST_WEIGHT * _TAU_S
_KEEP: Final = 128
_ENOUGH: Final = 20
"""Fewer answers than these have no 95th percentile."""
_REFRESH: Final = 16
_FORGET_S: Final = 60.0


class Latency:
    """One for each target. Seconds."""

    # Mutable state: `average_s` is written by note and forget; `_ring` holds the last times, `_count` how many were
    # ever noted, `_sorted_at` the count at which `_p95_s` was computed. Times of good answers only.
    __slots__ = ("_count", "_noted_at", "_p95_s", "_ring", "_sorted_at", "average_s")

    def __init__(self) -> None:
        self.average_s = 0.0
        """0: unknown."""
        self._noted_at = 0.0
        self._ring = array("d", bytes(8 * _KEEP))
        self._count = 0
        self._sorted_at = 0
        self._p95_s = 0.0

    def note(self, now: float, first_byte_s: float) -> None:
        """A rare answer tells more about now than one of many: its weight grows with the time since the last."""
        average_s = self.average_s
        if average_s:
            idle_s = now - self._noted_at
            weight = 1.0 - exp(-idle_s / _TAU_S) if idle_s > _LEAST_IDLE_S else _LEAST_WEIGHT
            self.average_s = average_s + weight * (first_byte_s - average_s)
        else:
            self.average_s = first_byte_s
        self._noted_at = now
        self._ring[self._count % _KEEP] = first_byte_s
        self._count += 1

    def forget(self, now: float) -> None:
        """After a minute without an answer the average is unknown again, so that a target that was slow once is
        tried again by those who choose the fastest."""
        if self.average_s and now - self._noted_at >= _FORGET_S:
            self.average_s = 0.0

    @property
    def p95_s(self) -> float:
        """Over the last 128 answers; 0: too few to say."""
        count = self._count
        if count < _ENOUGH:
            return 0.0
        if not self._sorted_at or count - self._sorted_at >= _REFRESH:
            times = sorted(self._ring[:count])
            self._p95_s = times[int(len(times) * 0.95)]
            self._sorted_at = count
        return self._p95_s
