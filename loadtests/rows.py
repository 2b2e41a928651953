"""Medians, spreads and slopes of what several rounds found."""

from __future__ import annotations

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
