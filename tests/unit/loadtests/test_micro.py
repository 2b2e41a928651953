"""The micro-benchmarks: what is compared, and the tables that are made of it. No figure is judged here."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from loadtests.micro import __main__ as micro
from loadtests.micro.flat import Line, make_lines
from loadtests.micro.parts import PARTS, Part
from loadtests.micro.timing import compare


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_each_part_can_be_put_together_and_called_again_and_again(part: Part) -> None:
    """A part that has changed is noticed here and not in a report."""
    with ExitStack() as stack:
        call = part.make(stack)
        for _ in range(3):
            call()


@pytest.mark.parametrize("line", make_lines(quick=True), ids=lambda line: line.name)
def test_each_line_can_be_drawn_with_few_of_what_it_counts(line: Line) -> None:
    """The same call, however many there are."""
    call = line.make(20)
    for _ in range(50):
        call()


def test_a_call_that_does_four_times_as_much_costs_more() -> None:
    """Not how much more: that depends on the machine."""
    found = compare(lambda: sum(range(4000)), lambda: sum(range(1000)), 0.0005)

    assert found.low <= found.median <= found.high
    assert found.median > 1.5


def test_a_part_that_fails_is_told_and_does_not_hide_the_others() -> None:
    """Its row says why."""

    def fail() -> dict[str, object]:
        raise LookupError("moved")

    found = micro._attempt("lost", fail)
    text = micro.render([found, {"name": "there", "median": 2.0, "low": 1.0, "high": 3.0}], [])

    assert "| lost | – | – | not measured: LookupError: moved |" in text
    assert "| there | 2.00 | 1.00 | 3.00 |" in text


@pytest.mark.parametrize(("many", "verdict"), [(1, "flat"), (60, "grows")])
def test_a_line_that_grows_is_called_so(many: int, verdict: str) -> None:
    """By the ratio of its ends."""
    line = Line("work", 1, many, lambda count: lambda: sum(range(300 * count)))

    assert micro._judge(line, 0.0005)["verdict"] == verdict


def test_the_table_of_lines_says_few_many_and_the_verdict() -> None:
    """With separators in large numbers."""
    row = {"name": "x", "few": 10, "many": 10_000, "median": 1.0, "low": 0.9, "high": 1.1, "verdict": "flat"}

    assert "| x | 10 | 10,000 | 1.00 | 0.90 | 1.10 | flat |" in micro.render([], [row])
