"""How much load retries add and how many requests they save, simulated over failure rates and kinds of outage."""

from __future__ import annotations

import pytest

from proxy.upstream.retries import RetryRules, Why
from tests.fakes.failing_targets import FailingTarget, Scene, simulate


def even(percent: float, *, failure_s: float = 0.05, why: Why = "failed") -> list[FailingTarget]:
    """Three targets that fail alike and are never taken out."""
    return [
        FailingTarget(name, lambda now: percent / 100, why=why, failure_s=failure_s, ejects=False) for name in "abc"
    ]


def three(dead: FailingTarget) -> list[FailingTarget]:
    """One that fails every tenth time, one slow, one dead."""
    return [FailingTarget("flaky", lambda now: 0.1), FailingTarget("slow", answer_s=3.0), dead]


@pytest.mark.parametrize("percent", range(0, 101, 5))
def test_retries_add_ten_percent_at_most_at_any_failure_rate(percent: int) -> None:
    """In every window of 10 s at 100 requests a second, and they save more requests than they fail to."""
    scene = simulate(even(percent), per_s=100, for_s=30, seed=percent)

    assert scene.most_extra() <= 0.10
    assert scene.success_rate >= 1 - percent / 100 - 0.02
    assert percent == 0 or scene.retries


@pytest.mark.parametrize("percent", [10, 50, 100])
@pytest.mark.parametrize("failure_s", [0.001, 5.0])
def test_how_fast_failures_are_makes_no_difference(percent: int, failure_s: float) -> None:
    """Neither at once, where three retries under way are thousands a second, nor after seconds."""
    scene = simulate(even(percent, failure_s=failure_s), per_s=100, for_s=30, seed=percent)

    assert scene.most_extra() <= 0.10


@pytest.mark.parametrize("per_s", [15, 20, 30, 300])
@pytest.mark.parametrize("percent", [20, 60, 100])
def test_retries_add_twenty_percent_at_most_from_fifteen_requests_a_second_on(per_s: int, percent: int) -> None:
    """Where the floor is more than the share, it is three a second; from 30 requests on the share is more."""
    scene = simulate(even(percent, failure_s=0.001), per_s=per_s, for_s=30, seed=percent)

    assert scene.most_extra() <= (0.20 if per_s < 30 else 0.10)


@pytest.mark.parametrize("per_s", [0.5, 1, 5])
def test_with_little_traffic_retries_are_three_a_second_at_most(per_s: float) -> None:
    """That is no load, and lets every request have its three attempts while there are tokens."""
    scene = simulate(even(100, failure_s=0.001), per_s=per_s, for_s=60, seed=1)

    assert scene.most_retries() <= 30
    assert len(scene.retries) >= min(2 * len(scene.requests), 100) - 2


def test_retries_end_in_an_outage_and_begin_again_after_it() -> None:
    """With every target down, tokens end what the share would allow for ever; a minute of answers restores them."""
    targets = [FailingTarget(name, lambda now: 1.0 if 20 <= now < 80 else 0.03, ejects=False) for name in "abc"]
    scene = simulate(targets, per_s=100, for_s=140, seed=5)

    late = [at for at in scene.retries if 60 <= at < 80]
    saved = [at for at in scene.succeeded if at >= 110]
    assert late == []
    assert len(saved) / 3000 >= 0.999


@pytest.mark.parametrize(
    ("why", "failure_s", "ejects"),
    [("connect", 0.001, True), ("connect", 5.0, True), ("connect", 0.001, False), ("failed", 0.05, True)],
    ids=["refuses", "black hole", "refuses and is never taken out", "answers 500"],
)
def test_of_three_targets_one_flaky_one_slow_and_one_dead_answer_999_of_1000(
    why: Why, failure_s: float, ejects: bool
) -> None:
    """With the default of ten percent: what never connected passes freely, and a breaker does the rest."""
    dead = FailingTarget("dead", lambda now: 1.0, why=why, failure_s=failure_s, ejects=ejects)
    scene = simulate(three(dead), per_s=100, for_s=60, seed=11)

    assert scene.success_rate >= 0.999
    assert scene.most_extra() <= 0.10


def hanging(rules: RetryRules | None) -> Scene:
    """A target that takes requests and falls silent, 64 at once; whoever is there when that shows needs a retry."""
    dead = FailingTarget("dead", lambda now: 1.0, why="timeout", failure_s=10.0, most=64)
    return simulate(three(dead), per_s=100, for_s=90, seed=11, rules=rules)


def test_a_target_that_hangs_costs_its_places_once_and_the_default_saves_most_of_them() -> None:
    """Those who hang are retried as far as the share has room; 20 % have room for all."""
    usual, generous = hanging(None), hanging(RetryRules(ratio=0.2))

    assert len(usual.failed) <= 64
    assert usual.most_extra() <= 0.10
    assert generous.success_rate >= 0.999
    assert generous.most_extra() <= 0.20


def test_with_all_three_targets_flaky_twenty_percent_are_needed_for_999_of_1000() -> None:
    """Every tenth attempt fails: three attempts each are 11 % more calls, which the default does not allow."""
    usual = simulate(even(10), per_s=100, for_s=60, seed=3)
    generous = simulate(even(10), per_s=100, for_s=60, seed=3, rules=RetryRules(ratio=0.2))

    assert usual.success_rate >= 0.98
    assert usual.most_extra() <= 0.10
    assert generous.success_rate >= 0.9985  # 0.1³ fail three times, and the simulation is short
    assert generous.most_extra() <= 0.15


def test_all_targets_throttled_are_not_asked_more_than_ten_percent_more_often() -> None:
    """Retries after 429 cost fewer tokens, and the share is the same."""
    scene = simulate(even(60, why="throttled"), per_s=100, for_s=30, seed=2)

    assert scene.most_extra() <= 0.10
