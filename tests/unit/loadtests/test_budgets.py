"""Budgets: what is compared with what, and the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.budgets import FILE, Budget, Verdict, judge, load_budgets
from loadtests.peers import PEERS
from loadtests.rows import Row
from loadtests.scenarios import SCENARIOS


def row(peer: str, value: float, number: int = 0, figure: str = "cpu") -> Row:
    return Row("distinct", "closed", peer, number, {figure: value})


def budget(**changes: object) -> Budget:
    given = {"name": "b", "scenario": "distinct", "variant": "closed", "figure": "cpu", "first": 2.0, "goal": 1.0}
    return Budget(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.9, Verdict.GOAL), (1.0, Verdict.GOAL), (1.1, Verdict.MET), (2.1, Verdict.MISSED)]
)
def test_a_ceiling_is_met_below_it(value: float, verdict: Verdict) -> None:
    """The goal is the lower of two ceilings."""
    assert judge([budget()], [row("sameflight", value)])[0].verdict is verdict


@pytest.mark.parametrize(("value", "verdict"), [(120.0, Verdict.GOAL), (80.0, Verdict.MET), (79.0, Verdict.MISSED)])
def test_a_floor_is_met_above_it(value: float, verdict: Verdict) -> None:
    """The goal is the higher of two floors."""
    floor = budget(first=80.0, goal=120.0, at_least=True)

    assert judge([floor], [row("sameflight", value)])[0].verdict is verdict


def test_a_ratio_is_taken_within_each_round() -> None:
    """A round in which the whole machine was slow says nothing about the ratio."""
    rows = [row("sameflight", 10.0), row("envoy", 5.0), row("sameflight", 100.0, 1), row("envoy", 40.0, 1)]
    found = judge([budget(how="ratio", against="envoy")], rows)[0].found

    assert found == (2.25, 2.0, 2.5, 2)


def test_a_difference_is_what_the_proxy_adds() -> None:
    """Latency has no ratio to the direct way."""
    rows = [row("sameflight", 7.5), row("direct", 5.0)]
    found = judge([budget(how="difference", against="direct")], rows)[0].found

    assert found == (2.5, 2.5, 2.5, 1)


@pytest.mark.parametrize("rows", [[], [row("sameflight", 1.0)], [row("envoy", 1.0)]])
def test_a_ratio_without_both_sides_is_not_measured(rows: list[Row]) -> None:
    """A peer that is not installed misses no budget."""
    judged = judge([budget(how="ratio", against="envoy")], rows)[0]

    assert (judged.found, judged.verdict) == (None, Verdict.UNMEASURED)


def test_a_ratio_to_nothing_is_missed() -> None:
    """Nobody spends nothing; whoever seems to was not measured long enough."""
    rows = [row("sameflight", 1.0), row("envoy", 0.0)]

    assert judge([budget(how="ratio", against="envoy")], rows)[0].verdict is Verdict.MISSED


@pytest.mark.parametrize("changes", [{"how": "guess"}, {"how": "ratio"}, {"against": "nginx"}])
def test_a_budget_that_makes_no_sense_is_refused(changes: dict[str, str]) -> None:
    """A ratio needs somebody to relate to, a value does not."""
    with pytest.raises(ValueError, match="b: "):
        budget(**changes)


def test_the_file_speaks_of_scenarios_and_peers_that_exist() -> None:
    """A budget of a scenario that was renamed would never be judged again."""
    budgets = load_budgets()

    assert {each.scenario for each in budgets} <= set(SCENARIOS)
    assert {each.against for each in budgets} <= {"", "direct", *PEERS}
    assert len({each.name for each in budgets}) == len(budgets)


def test_every_goal_of_the_file_is_at_least_as_strict_as_its_first_budget() -> None:
    """Otherwise meeting the goal would miss the budget."""
    signs = {each.name: -1 if each.at_least else 1 for each in load_budgets()}

    assert [each.name for each in load_budgets() if signs[each.name] * (each.goal - each.first) > 0] == []


def test_an_unknown_word_in_the_file_is_refused(tmp_path: Path) -> None:
    """A misspelt limit must not be no limit."""
    file = tmp_path / "budgets.toml"
    file.write_text(FILE.read_text("utf-8").replace("first =", "frist =", 1), "utf-8")
    with pytest.raises(TypeError, match="frist"):
        load_budgets(file)
