"""Reads ``budgets.toml`` and judges what a run found by it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from loadtests.rows import Row, Summary, gather, summarize

FILE = Path(__file__).parent / "budgets.toml"


class Verdict(Enum):
    """How a figure stands to its budget."""

    GOAL = "goal met"
    MET = "met"
    MISSED = "missed"
    UNMEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Budget:
    """One row of the budget table."""

    name: str
    scenario: str
    variant: str
    figure: str
    first: float
    goal: float
    how: str = "value"
    """``value``; ``ratio`` to or ``difference`` from what ``against`` has in the same round."""
    against: str = ""
    against_variant: str = ""
    """Empty: the same."""
    peer: str = "sameflight"
    unit: str = ""
    at_least: bool = False
    """The budget is a floor and no ceiling."""

    def __post_init__(self) -> None:
        if self.how not in ("value", "ratio", "difference"):
            raise ValueError(f"{self.name}: how is value, ratio or difference, not {self.how}")
        if (self.how == "value") == bool(self.against):
            raise ValueError(f"{self.name}: {self.how} with against = {self.against!r}")


class Judged(NamedTuple):
    """A budget and what became of it; ``found`` is missing if it was not measured."""

    budget: Budget
    found: Summary | None
    verdict: Verdict


def load_budgets(path: Path = FILE) -> list[Budget]:
    """Raises ``ValueError`` and ``TypeError`` for a file that makes no sense."""
    return [Budget(**row) for row in tomllib.loads(path.read_text("utf-8"))["budget"]]


def judge(budgets: Iterable[Budget], rows: Iterable[Row]) -> list[Judged]:
    """One verdict for each budget, by the median of the rounds."""
    found = gather(rows)

    def values(peer: str, variant: str, budget: Budget) -> dict[int, float]:
        return found.get((budget.scenario, variant, peer), {}).get(budget.figure, {})

    judged = []
    for budget in budgets:
        ours = values(budget.peer, budget.variant, budget)
        if budget.how != "value":
            theirs = values(budget.against, budget.against_variant or budget.variant, budget)
            both = ours.keys() & theirs.keys()
            ours = {number: _relate(budget.how, ours[number], theirs[number]) for number in both}
        summary = summarize(list(ours.values())) if ours else None
        judged.append(Judged(budget, summary, _decide(budget, summary)))
    return judged


def _relate(how: str, ours: float, theirs: float) -> float:
    if how == "difference":
        return ours - theirs
    return ours / theirs if theirs else float("inf")


def _decide(budget: Budget, found: Summary | None) -> Verdict:
    if found is None:
        return Verdict.UNMEASURED
    sign = -1.0 if budget.at_least else 1.0
    if sign * found.median <= sign * budget.goal:
        return Verdict.GOAL
    return Verdict.MET if sign * found.median <= sign * budget.first else Verdict.MISSED
