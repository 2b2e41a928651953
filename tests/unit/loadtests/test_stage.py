"""The stage without processes: numbers, rounds and rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.drive.spec import Result, Spec
from loadtests.peers import Running, direct
from loadtests.stage import QUICK, Scale, Stage


def make_stage(folder: Path, scale: Scale = QUICK) -> Stage:
    stage = Stage(scale, folder, (0, 0), (), lambda _: None)
    assert stage.enter("distinct", 1.0)
    return stage


def test_no_two_runs_ask_the_same_question_unless_they_are_to(tmp_path: Path) -> None:
    """An answer that a cache still has would be no miss."""
    stage, peer = make_stage(tmp_path), direct(80)
    first, second = (stage.aim(Spec("closed", 0, requests=100), peer) for _ in range(2))
    again, repeated = (stage.aim(Spec("closed", 0, requests=100, distinct=5), peer) for _ in range(2))

    assert second.first_number > first.first_number + 100
    assert again == repeated


def test_a_spec_is_aimed_with_what_the_peer_wants_to_hear(tmp_path: Path) -> None:
    """Its port, and its headers behind those of the load."""
    peer = Running("sameflight", 81, headers=("x-sameflight-cache: on",))
    aimed = make_stage(tmp_path).aim(Spec("closed", 0, headers=("a: b",)), peer)

    assert (aimed.port, aimed.headers) == (81, ("a: b", "x-sameflight-cache: on"))


@pytest.mark.parametrize(("limit_s", "rounds"), [(math.inf, [0, 1, 2]), (0.0, [0])])
def test_a_late_run_does_one_round_of_what_it_has_begun(tmp_path: Path, limit_s: float, rounds: list[int]) -> None:
    """A short run ends in time on a slow machine, too."""
    stage = make_stage(tmp_path, replace(QUICK, rounds=3))
    stage.scale = replace(stage.scale, limit_s=limit_s)
    stage.enter("herd", 0.5)

    assert list(stage.rounds()) == rounds
    assert bool(stage.notes) == (rounds == [0])


def test_cpu_is_divided_by_answers_and_by_events(tmp_path: Path) -> None:
    """Two seconds for a thousand answers with ten events each."""
    result = Result({"answered": 1000.0, "events": 10_000.0}, {}, [(5.0, 1000)])
    stage = make_stage(tmp_path)
    row = stage.add("closed", direct(80), 0, result, 2.0, {"calls": 7})

    assert (row.figures["cpu_us_per_request"], row.figures["cpu_us_per_event"]) == (2000.0, 200.0)
    assert row.figures["upstream_calls"] == 7.0
    assert stage.latencies == {("distinct", "closed", "direct"): [(5.0, 1000)]}


def test_failures_are_noted(tmp_path: Path) -> None:
    """A figure of a run with failures is read with care."""
    stage = make_stage(tmp_path)
    stage.add("closed", direct(80), 0, Result({"failed": 2.0}, {"500": 2}), None, {"calls": 0})

    assert stage.notes == ["distinct: closed, direct, round 0: failures {'500': 2}"]
