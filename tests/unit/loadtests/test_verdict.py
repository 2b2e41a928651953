"""Table and verdict of ``sameflight bench``."""

from __future__ import annotations

import pytest

from proxy.cli.bench.load import Outcome
from proxy.cli.bench.verdict import Findings, Herds, Targets, as_data, judge, render, tabulate


def outcome(latency_us: int = 1000, *, asked: int = 100, failed: int = 0, shared: int = 0) -> Outcome:
    found = Outcome(asked=asked, answered=asked - failed, seconds=2.0, shared=shared)
    if failed:
        found.failures["500"] = failed
    for _ in range(asked - failed):
        found.latency.record(latency_us)
    return found


def findings(through_us: int = 3000, *, failed: int = 0, calls: int | None = 5, shared: int = 0) -> Findings:
    found = Findings()
    for load in ("whole", "busy"):
        found.outcomes[("direct", load)] = outcome()
        found.outcomes[("through", load)] = outcome(through_us, failed=failed)
    found.herds = Herds(5, 20, outcome(shared=shared), calls)
    return found


def verdicts(found: Findings) -> dict[str, bool | None]:
    return {verdict.name: verdict.met for verdict in judge(found, Targets())}


def test_the_difference_of_both_ways_is_what_the_gateway_adds() -> None:
    """Three milliseconds through, one direct."""
    line = tabulate(findings())[0]

    assert (line.name, line.direct, line.through, line.added) == ("answer, P50", 1.0, pytest.approx(3.0, 0.01), 2.0)


def test_a_gateway_within_its_targets_meets_all() -> None:
    """Two milliseconds, no failure, every spare call spared."""
    assert set(verdicts(findings()).values()) == {True}


def test_each_target_can_be_missed_alone() -> None:
    """Time, failures and shared calls are separate promises."""
    assert verdicts(findings(through_us=40_000)) == {
        "added at P50": False, "added at P99": False, "failures": True, "hit rate": True,
    }  # fmt: skip
    assert verdicts(findings(failed=1))["failures"] is False
    assert verdicts(findings(calls=60))["hit rate"] is False


def test_the_hit_rate_is_measured_by_what_was_possible() -> None:
    """Of a hundred requests in five groups ninety-five could be spared; none was."""
    found = findings(calls=100)

    assert found.herds is not None
    assert found.herds.hit_rate == 0.0
    assert Herds(5, 20, outcome(), 5).hit_rate == 1.0


def test_an_upstream_that_does_not_count_leaves_it_to_the_gateways_headers() -> None:
    """Cache-Status tells as much."""
    found = findings(calls=None, shared=95)

    assert found.herds is not None
    assert found.herds.hit_rate == 1.0


def test_without_a_possible_hit_the_rate_is_unknown_and_no_failure() -> None:
    """Herds of one share nothing."""
    found = findings()
    found.herds = Herds(5, 1, outcome(asked=5), 5)

    assert verdicts(found)["hit rate"] is None


def test_the_table_for_people_has_both_ways_and_every_verdict() -> None:
    """One screen."""
    text = render(findings(through_us=40_000), Targets())

    assert "answer, P50" in text
    assert "MISSED  added at P50: 39.00 ms, at most 5.00 ms" in text
    assert "met     hit rate: 100.00 %, at least 90.00 %" in text


def test_the_data_for_programs_is_the_same() -> None:
    """Names and numbers of the table, and what went wrong."""
    data = as_data(findings(failed=2), Targets())

    assert data["failures"] == {
        "direct whole": {}, "through whole": {"500": 2}, "direct busy": {}, "through busy": {"500": 2},
    }  # fmt: skip
