"""Counts of durations in bounded memory, with the quantiles that reports need."""

from __future__ import annotations

from typing import Final

_EXACT: Final = 512
"""Values below are counted exactly, larger ones in buckets at most 1/256 wide."""


class Histogram:
    """Counts of whole numbers with a relative error under 0.4 %, in bounded memory; made for microseconds."""

    # The mutable state: the counts, grown by `record` and `merge`.
    __slots__ = ("_counts", "count", "maximum", "total")

    def __init__(self) -> None:
        self._counts: list[int] = []
        self.count = 0
        self.total = 0
        self.maximum = 0

    def record(self, value: int) -> None:
        """Count ``value``; a negative one counts as 0."""
        value = max(value, 0)
        shift = max(value.bit_length() - 9, 0)
        index = (shift << 8) + (value >> shift)
        try:
            self._counts[index] += 1
        except IndexError:
            self._counts.extend([0] * (index + 64 - len(self._counts)))
            self._counts[index] += 1
        self.count += 1
        self.total += value
        self.maximum = max(self.maximum, value)

    def merge(self, other: Histogram) -> None:
        """Add all that ``other`` counted."""
        missing = len(other._counts) - len(self._counts)
        self._counts.extend([0] * max(missing, 0))
        for index, count in enumerate(other._counts):
            self._counts[index] += count
        self.count += other.count
        self.total += other.total
        self.maximum = max(self.maximum, other.maximum)

    def quantile(self, share: float) -> float:
        """The value that ``share`` of the counted ones do not exceed; 0 if nothing was counted."""
        wanted = max(1, -(-int(share * self.count * 1e6) // 1_000_000))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(_middle(index), float(self.maximum))
        return 0.0

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def buckets(self) -> list[tuple[float, int]]:
        """Middle and count of each bucket that has one, in ascending order."""
        return [(_middle(index), count) for index, count in enumerate(self._counts) if count]


def _middle(index: int) -> float:
    if index < _EXACT:
        return float(index)
    shift = (index >> 8) - 1
    return float(((index - (shift << 8)) << shift) + ((1 << shift) - 1) / 2)
