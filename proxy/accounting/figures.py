"""What the admin page shows of usage, made of the store's sums: today beside yesterday and last week, the month, the
hours, who and what, and the targets. Pure: rows in, figures out.

Days and months are UTC. ``cost`` is what providers charge, ``billed`` what keys are billed, ``saved`` what neither
had to pay: answers that were shared or kept, and what policies spared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

DAY_S: Final = 86_400.0
HOUR_S: Final = 3_600
HOURS: Final = 24
"""On the charts."""
PACE_DAYS: Final = 7
FREE: Final = ("pattern", "hit", "joined")
"""Kinds that needed no call of their own."""
TIER: Final = "tier:"
_TO_USD: Final = 1e-12
_LEAST_PACE_S: Final = HOUR_S
"""A day's pace is not told from less of it."""

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]


class Targets(NamedTuple):
    """What the figures are held against; 0 for none."""

    error_percent: float = 0.0
    hit_percent: float = 0.0
    p95_ms: float = 0.0
    usd_per_1000: float = 0.0


class Periods(NamedTuple):
    """Moments around now, Unix seconds."""

    now: float
    today: float
    """Begin of the day."""
    first_hour: float
    """Begin of the first hour on the charts; not after ``today``."""
    month: float
    month_end: float
    first_day: float
    """Begin of the first full day that the month or its projection needs."""


def make_periods(now: float) -> Periods:
    """The periods that a moment is in."""
    today = now - now % DAY_S
    day = datetime.fromtimestamp(today, UTC)
    month = day.replace(day=1)
    following = (month + timedelta(days=32)).replace(day=1)
    first_hour = now - now % HOUR_S - (HOURS - 1) * HOUR_S
    first_day = min(month.timestamp(), today - PACE_DAYS * DAY_S)
    return Periods(now, today, first_hour, month.timestamp(), following.timestamp(), first_day)


class Readings(NamedTuple):
    """What the store said, each as `figures_sql.FIGURES` names it."""

    hours: Rows
    """``hour`` since the first hour."""
    times: Rows
    """``times`` since the first hour."""
    today_times: Rows
    """``time`` since the day began: one row, or none."""
    days: Rows
    """``day`` from the first day until today, without it."""
    yesterday: Rows
    """``all`` of yesterday until the same time of day."""
    last_week: Rows
    """The same a week ago."""
    by: Mapping[str, Rows]
    """``key``, ``model`` and ``provider`` today."""
    outcomes: Rows


def make_figures(periods: Periods, readings: Readings, targets: Targets) -> dict[str, Any]:
    """Everything for the page."""
    today_rows = [row for row in readings.hours if row["label"] >= periods.today]
    today = _sum_up(today_rows)
    whole = readings.today_times[0] if readings.today_times else {}
    today |= {"p50_ms": whole.get("p50_ms", 0.0), "p95_ms": whole.get("p95_ms", 0.0)}
    before = {"yesterday": _sum_up(readings.yesterday), "last_week": _sum_up(readings.last_week)}
    return {
        "as_of": periods.now,
        "day": datetime.fromtimestamp(periods.today, UTC).strftime("%Y-%m-%d"),
        "today": today,
        "kinds": _split(today_rows),
        "before": {name: {**sums, "changes": _changes(today, sums)} for name, sums in before.items()},
        "month": _project(periods, readings.days, today),
        "hours": _chart(periods, readings.hours, readings.times),
        "by": {
            name: [{"label": row["label"], **_sum_up([row])} for row in rows] for name, rows in readings.by.items()
        },
        "errors": [
            {name: row[name] for name in ("label", "status", "requests", "errors", "refused")}
            for row in readings.outcomes
            if row["errors"] or row["refused"]
        ],
        "targets": _judge(today, targets),
    }


def _sum_up(rows: Iterable[Row]) -> dict[str, Any]:
    """One row of everything that adds up, and the shares that follow from it."""
    rows = list(rows)

    def total(name: str) -> int:
        return sum(row[name] for row in rows)

    requests, cost = total("requests"), total("upstream_picodollars") * _TO_USD
    shared, spared = total("saved_picodollars") * _TO_USD, total("policy_saved_picodollars") * _TO_USD
    return {
        "requests": requests,
        **{name: total(name) for name in ("calls", "saved_calls", "errors", "refused", "estimated", "tokens")},
        "pruned_tokens": total("pruned_tokens"),
        "cost_usd": cost,
        "billed_usd": total("billed_picodollars") * _TO_USD,
        "shared_usd": shared,
        "policy_usd": spared,
        "saved_usd": shared + spared,
        "shadow_usd": total("shadow_saved_picodollars") * _TO_USD,
        "hit_rate": _share(total("saved_calls"), requests),
        "error_rate": _share(total("errors"), requests),
        "mean_ms": sum(row["sum_ms"] for row in rows) / requests if requests else 0.0,
        "usd_per_1000": cost * 1_000 / requests if requests else 0.0,
    }


def _share(part: float, whole: float) -> float:
    """0 to 1; 0 of nothing."""
    return part / whole if whole else 0.0


def _order(kind: str) -> tuple[int, str]:
    """Free ones first, then tiers by name, other calls, and the rest."""
    if kind in FREE:
        return FREE.index(kind), ""
    return (len(FREE), kind) if kind.startswith(TIER) else (len(FREE) + (1 if kind == "call" else 2), "")


def _split(rows: Rows) -> list[dict[str, Any]]:
    """Requests by kind; the kinds that need no configuration are there even where nothing was of them."""
    kinds = sorted({*FREE, "call", "other", *(row["kind"] for row in rows)}, key=_order)
    whole = sum(row["requests"] for row in rows)
    split = []
    for kind in kinds:
        mine = [row for row in rows if row["kind"] == kind]
        requests = sum(row["requests"] for row in mine)
        cost = sum(row["upstream_picodollars"] for row in mine) * _TO_USD
        split.append({"kind": kind, "requests": requests, "share": _share(requests, whole), "cost_usd": cost})
    return split


def _changes(now: Row, before: Row) -> dict[str, float | None]:
    """How much more it is, as a part of what it was; ``None`` after nothing."""
    return {
        name: (now[name] - before[name]) / before[name] if before[name] else None
        for name in ("requests", "cost_usd", "saved_usd")
    }


def _project(periods: Periods, days: Rows, today: Row) -> dict[str, Any]:
    """What the month has cost, and the pace of the last seven full days until its end; of as many as there are, and
    of today alone where there is none."""
    month = datetime.fromtimestamp(periods.month, UTC)
    first = month.strftime("%Y-%m-%d")
    since = datetime.fromtimestamp(periods.today - PACE_DAYS * DAY_S, UTC).strftime("%Y-%m-%d")
    so_far = sum(row["upstream_picodollars"] for row in days if row["label"] >= first) * _TO_USD + today["cost_usd"]
    recent = {row["label"]: row["upstream_picodollars"] * _TO_USD for row in days if row["label"] >= since}
    if recent:
        began = datetime.fromisoformat(min(recent)).replace(tzinfo=UTC).timestamp()
        there = round((periods.today - began) / DAY_S)
        a_day, basis = sum(recent.values()) / there, there
    else:
        a_day, basis = today["cost_usd"] * DAY_S / max(periods.now - periods.today, _LEAST_PACE_S), 0
    return {
        "month": month.strftime("%Y-%m"),
        "so_far_usd": so_far,
        "a_day_usd": a_day,
        "pace_days": basis,
        "projected_usd": so_far + a_day * (periods.month_end - periods.now) / DAY_S,
    }


def _chart(periods: Periods, hours: Rows, times: Rows) -> dict[str, Any]:
    """Series by hour, all of the same length: hours without requests are zeros, and have no time."""
    at = [int(periods.first_hour) + place * HOUR_S for place in range(HOURS)]
    place_of = {hour: place for place, hour in enumerate(at)}
    kinds: dict[str, list[int]] = {}
    sums: dict[str, list[float]] = {name: [0.0] * HOURS for name in ("requests", "errors", "cost_usd", "saved_usd")}
    for row in hours:
        place = place_of.get(row["label"])
        if place is None:
            continue
        kinds.setdefault(row["kind"], [0] * HOURS)[place] += row["requests"]
        sums["requests"][place] += row["requests"]
        sums["errors"][place] += row["errors"]
        sums["cost_usd"][place] += row["upstream_picodollars"] * _TO_USD
        sums["saved_usd"][place] += (row["saved_picodollars"] + row["policy_saved_picodollars"]) * _TO_USD
    p50: list[float | None] = [None] * HOURS
    p95: list[float | None] = [None] * HOURS
    for row in times:
        if (place := place_of.get(row["label"])) is not None:
            p50[place], p95[place] = row["p50_ms"], row["p95_ms"]
    named = [{"kind": kind, "requests": kinds[kind]} for kind in sorted(kinds, key=_order)]
    return {"at": at, "kinds": named, **sums, "p50_ms": p50, "p95_ms": p95}


def _judge(today: Row, targets: Targets) -> list[dict[str, Any]]:
    """Each target beside its actual; ``met`` is ``None`` where there was nothing to judge."""
    lines = (
        ("error_rate", today["error_rate"], targets.error_percent / 100, False),
        ("hit_rate", today["hit_rate"], targets.hit_percent / 100, True),
        ("p95_ms", today["p95_ms"], targets.p95_ms, False),
        ("usd_per_1000", today["usd_per_1000"], targets.usd_per_1000, False),
    )
    return [
        {
            "name": name,
            "actual": actual,
            "target": target,
            "at_least": at_least,
            "met": None if not today["requests"] else actual >= target if at_least else actual <= target,
        }
        for name, actual, target, at_least in lines
        if target > 0
    ]
