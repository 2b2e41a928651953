"""Medians, spreads and slopes of what several rounds found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple


class Row(NamedTuple):
    """One load on one peer in one round."""

    scenario: str
    variant: str
    peer: str
    round: int
    figures: dict[str, float]
    failures: dict[str, int] = {}  # noqa: RUF012 - never written


class Summary(NamedTuple):
    """One figure over the rounds."""

    median: float
    low: float
    high: float
    rounds: int


def summarize(values: Sequence[float]) -> Summary:
    """Raises ``ValueError`` for none."""
    return Summary(median(values), min(values), max(values), len(values))


Place = tuple[str, str, str]
"""Scenario, variant, peer."""


def gather(rows: Iterable[Row]) -> dict[Place, dict[str, dict[int, float]]]:
    """Figures by place and name; each maps rounds to values."""
    found: dict[Place, dict[str, dict[int, float]]] = {}
    for row in rows:
        figures = found.setdefault((row.scenario, row.variant, row.peer), {})
        for name, value in row.figures.items():
            figures.setdefault(name, {})[row.round] = value
    return found


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line of least squares through ``points``; 0 for fewer than two."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


class Trend(NamedTuple):
    """Growth by the unit of x, and half the width of its 95 % interval."""

    slope: float
    error: float

    @property
    def grows(self) -> bool:
        """Whether growth is more than chance would show."""
        return self.slope > self.error


def trend(points: Sequence[tuple[float, float]], batches: int = 24) -> Trend:
    """The slope of ``points`` with its error, from the means of up to ``batches`` stretches: neighbouring samples of
    a process are alike, and taking each for news would make chance look like certainty. The error of fewer than four
    is infinite."""
    size = max(1, len(points) // batches)
    stretches = [points[at : at + size] for at in range(0, len(points) - size + 1, size)]
    means = [(sum(x for x, _ in each) / len(each), sum(y for _, y in each) / len(each)) for each in stretches]
    rise = slope(means)
    if len(means) < 4:
        return Trend(rise, math.inf)
    mean_x = sum(x for x, _ in means) / len(means)
    mean_y = sum(y for _, y in means) / len(means)
    spread = sum((x - mean_x) ** 2 for x, _ in means)
    rest = sum((y - mean_y - rise * (x - mean_x)) ** 2 for x, y in means)
    return Trend(rise, 2.07 * math.sqrt(rest / (len(means) - 2) / spread) if spread else math.inf)
