"""What the admin page makes of the store's sums."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from proxy.accounting.figures import HOURS, Periods, Readings, Rows, Targets, make_figures, make_periods

NOON = datetime(2025, 11, 21, 12, tzinfo=UTC).timestamp()
HOUR = 3_600
USD = 10**12
SUMS = (
    *("requests", "calls", "saved_calls", "errors", "refused", "estimated", "tokens", "upstream_tokens"),
    *("pruned_tokens", "billed_picodollars", "upstream_picodollars", "saved_picodollars"),
    *("policy_saved_picodollars", "shadow_saved_picodollars"),
)


def row(label: object, kind: str = "call", **sums: Any) -> dict[str, Any]:
    return {"label": label, "kind": kind, **dict.fromkeys(SUMS, 0), "sum_ms": 0.0, "requests": 1, **sums}


def figures(
    hours: Rows | None = None, *, targets: Targets | None = None, at: Periods | None = None, **more: Any
) -> Any:
    empty: dict[str, Any] = {
        "times": [], "today_times": [], "days": [], "yesterday": [], "last_week": [], "outcomes": [],
        "by": {"key": [], "model": [], "provider": []},
    }  # fmt: skip
    readings = Readings(hours=hours or [], **{**empty, **more})
    return make_figures(at or make_periods(NOON), readings, targets or Targets())


@pytest.mark.parametrize(
    ("moment", "month", "month_end", "first_day"),
    [
        ((2025, 11, 21, 12, 30), (2025, 11, 1), (2025, 12, 1), (2025, 11, 1)),
        ((2025, 12, 31, 23, 59), (2025, 12, 1), (2026, 1, 1), (2025, 12, 1)),
        ((2024, 2, 3, 0, 0), (2024, 2, 1), (2024, 3, 1), (2024, 1, 27)),
        ((2025, 11, 1, 0, 0), (2025, 11, 1), (2025, 12, 1), (2025, 10, 25)),
    ],
)
def test_a_moment_is_in_a_day_a_month_and_a_week(
    moment: tuple[int, ...], month: tuple[int, ...], month_end: tuple[int, ...], first_day: tuple[int, ...]
) -> None:
    """Leap years, ends of years and the first days of a month included."""

    def unix(*parts: int) -> float:
        return datetime(*parts, tzinfo=UTC).timestamp()  # type: ignore[arg-type, misc]

    periods = make_periods(unix(*moment))

    assert periods.today == unix(*moment[:3])
    assert (periods.month, periods.month_end) == (unix(*month), unix(*month_end))
    assert periods.first_day == unix(*first_day)
    assert periods.first_hour <= periods.today
    assert periods.now - periods.first_hour < HOURS * HOUR


def test_today_is_what_began_today_however_much_the_charts_show() -> None:
    """The hours of yesterday on the charts count in no sum of today."""
    made = figures([
        row(NOON - 13 * HOUR, requests=100, upstream_picodollars=9 * USD),
        row(NOON - HOUR, "call", requests=3, calls=3, upstream_picodollars=USD, sum_ms=300.0, errors=1),
        row(NOON, "hit", requests=1, saved_calls=1, saved_picodollars=USD // 2, policy_saved_picodollars=-USD // 4),
    ])

    today = made["today"]
    assert (today["requests"], today["calls"], today["saved_calls"], today["errors"]) == (4, 3, 1, 1)
    assert (today["hit_rate"], today["error_rate"]) == (0.25, 0.25)
    assert today["cost_usd"] == pytest.approx(1.0)
    assert today["saved_usd"] == pytest.approx(0.25)
    assert today["mean_ms"] == 75.0
    assert today["usd_per_1000"] == pytest.approx(250.0)
    assert sum(made["hours"]["requests"]) == 104


def test_kinds_come_free_ones_first_then_tiers_by_name() -> None:
    """Every kind that can be is there, with its share of the whole."""
    rows = [row(NOON, kind) for kind in ("other", "tier:simple", "hit", "tier:complex")]
    made = figures(rows)

    assert [each["kind"] for each in made["kinds"]] == [
        "pattern", "hit", "joined", "tier:complex", "tier:simple", "call", "other",
    ]  # fmt: skip
    assert sum(each["share"] for each in made["kinds"]) == pytest.approx(1.0)


def test_hours_without_requests_are_zeros_and_have_no_time() -> None:
    """All series are of one length, in order of time, and the last is the hour that runs."""
    made = figures([row(NOON - 2 * HOUR, requests=5)], times=[{"label": NOON, "p50_ms": 1.0, "p95_ms": 2.0}])["hours"]

    assert made["at"][-1] == NOON
    assert [len(made[name]) for name in ("at", "requests", "cost_usd", "p95_ms")] == [HOURS] * 4
    assert made["requests"][-3:] == [5, 0, 0]
    assert made["p95_ms"][-2:] == [None, 2.0]


def test_the_month_ends_at_the_pace_of_its_last_full_days() -> None:
    """Two days of a tenant that came then: four dollars a day for the nine and a half days that are left."""
    days = [row("2025-11-19", upstream_picodollars=3 * USD), row("2025-11-20", upstream_picodollars=5 * USD)]
    month = figures([row(NOON, upstream_picodollars=USD)], days=days)["month"]

    assert month["so_far_usd"] == pytest.approx(9.0)
    assert (month["a_day_usd"], month["pace_days"]) == (pytest.approx(4.0), 2)
    assert month["projected_usd"] == pytest.approx(9.0 + 4.0 * 9.5)


def test_days_of_the_month_before_are_part_of_the_pace_and_not_of_the_month() -> None:
    """On the second of a month the week before it says what a day costs."""
    at = make_periods(datetime(2025, 12, 2, tzinfo=UTC).timestamp())
    days = [row(f"2025-11-{day}", upstream_picodollars=USD) for day in range(25, 31)]
    month = figures(days=[*days, row("2025-12-01", upstream_picodollars=USD)], at=at)["month"]

    assert month["so_far_usd"] == pytest.approx(1.0)
    assert month["projected_usd"] == pytest.approx(1.0 + 30.0)


def test_the_first_day_of_all_is_projected_by_itself() -> None:
    """Half a day cost a dollar; nothing is known but that."""
    month = figures([row(NOON, upstream_picodollars=USD)])["month"]

    assert (month["a_day_usd"], month["pace_days"]) == (pytest.approx(2.0), 0)


def test_a_comparison_with_nothing_is_none() -> None:
    """Yesterday there was nobody; last week half as much."""
    made = figures(
        [row(NOON, requests=10, upstream_picodollars=USD)],
        last_week=[row("all", requests=5, upstream_picodollars=2 * USD)],
    )["before"]

    assert made["yesterday"]["changes"] == {"requests": None, "cost_usd": None, "saved_usd": None}
    assert made["last_week"]["changes"] == {"requests": 1.0, "cost_usd": pytest.approx(-0.5), "saved_usd": None}


def test_targets_are_met_missed_or_not_to_be_judged() -> None:
    """Without requests nothing was missed; a target of 0 is none."""
    targets = Targets(error_percent=1.0, hit_percent=30.0, p95_ms=100.0)
    rows = [row(NOON, "hit", requests=3, saved_calls=3), row(NOON, requests=7, errors=1)]
    times = [{"label": "all", "p50_ms": 10.0, "p95_ms": 100.0}]

    judged = {each["name"]: each["met"] for each in figures(rows, targets=targets, today_times=times)["targets"]}
    assert judged == {"error_rate": False, "hit_rate": True, "p95_ms": True}
    assert {each["met"] for each in figures(targets=targets)["targets"]} == {None}


def test_what_went_well_is_no_error() -> None:
    """Only outcomes with failures or refusals are listed."""
    outcomes = [
        row("upstream_failed", status=502, errors=1),
        row("ok", status=200),
        row("no_key", status=401, refused=1),
    ]
    made = figures(outcomes=outcomes)["errors"]

    assert [each["label"] for each in made] == ["upstream_failed", "no_key"]
