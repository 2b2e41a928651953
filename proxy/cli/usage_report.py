"""What a usage report says: rows of the store's report ``usage`` with shares, dollars and how they compare with a day
and a week before. No printing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, NamedTuple

from proxy.store.base import Store

DAY_S: Final = 86_400.0
_PICODOLLARS: Final = 10**12
_BEFORE: Final = {"day_before": 1, "week_before": 7}
"""What a line is compared with, and how many days that is earlier."""


class Asked(NamedTuple):
    """What the report is about. Times are Unix seconds."""

    by: str
    since: float
    until: float
    filters: Mapping[str, str]
    """``key_id``, ``tenant``, ``team``, ``model``; empty for all."""
    limit: int


class Line(NamedTuple):
    """One line: the store's row, and those it is compared with where they exist."""

    label: str
    row: Mapping[str, Any]
    before: Mapping[str, Mapping[str, Any]]


class Report(NamedTuple):
    asked: Asked
    lines: list[Line]
    total: Line


async def make_report(store: Store, asked: Asked) -> Report:
    """Ask the store. Raises ``StoreError``."""
    rows = await _ask(store, asked)
    if asked.by == "day":
        # A day's yesterday may lie before the report's beginning.
        earlier = {row["label"]: row for row in await _ask(store, asked, shift_days=7, longer_days=7)}
        lines = [Line(row["label"], row, _days_before(row["label"], earlier)) for row in rows]
    else:
        then = {
            name: {row["label"]: row for row in await _ask(store, asked, shift_days=days)}
            for name, days in _BEFORE.items()
        }
        lines = [
            Line(row["label"], row, {name: by[row["label"]] for name, by in then.items() if row["label"] in by})
            for row in rows
        ]
    return Report(asked, lines, await _total(store, asked))


async def _total(store: Store, asked: Asked) -> Line:
    whole = asked._replace(by="all", limit=1)
    rows = await _ask(store, whole)
    before = {name: await _ask(store, whole, shift_days=days) for name, days in _BEFORE.items()}
    return Line("all", rows[0] if rows else {}, {name: found[0] for name, found in before.items() if found})


async def _ask(store: Store, asked: Asked, *, shift_days: int = 0, longer_days: int = 0) -> list[dict[str, Any]]:
    """The rows of a period so many days earlier, which ends so many days later than that."""
    since = asked.since - shift_days * DAY_S
    until = asked.until - shift_days * DAY_S + longer_days * DAY_S
    filters = {name: value for name, value in asked.filters.items() if value}
    limit = asked.limit + shift_days if asked.by == "day" else asked.limit
    return await store.report(
        "usage", {"by": asked.by, "since": since, "until": until, "limit": limit, **filters}
    )


def _days_before(label: str, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    day = date.fromisoformat(label)
    labels = {name: (day - timedelta(days=days)).isoformat() for name, days in _BEFORE.items()}
    return {name: rows[earlier] for name, earlier in labels.items() if earlier in rows}


# -- figures ---------------------------------------------------------------------------------------------------


def usd(picodollars: int) -> float:
    return picodollars / _PICODOLLARS


def share(part: int, whole: int) -> float:
    """0 to 1; 0 of nothing."""
    return part / whole if whole else 0.0


def change(now: int, before: int) -> float | None:
    """How much more it is, as a part of what it was: 0.5 for half as much again; ``None`` after nothing."""
    return (now - before) / before if before else None


def figures(line: Line) -> dict[str, Any]:
    """One line for programs: everything that the store said, dollars and shares, and both comparisons."""
    found: dict[str, Any] = {"label": line.label, **_figures_of(line.row)}
    for name in _BEFORE:
        row = line.before.get(name)
        found[name] = None if row is None else {**_figures_of(row), **_changes(line.row, row)}
    return found


def _figures_of(row: Mapping[str, Any]) -> dict[str, Any]:
    count = row.get
    found: dict[str, Any] = {
        name: value for name, value in row.items() if name != "label" and not name.endswith("picodollars")
    }
    found["saved_share"] = round(share(count("saved_calls", 0), count("saved_calls", 0) + count("calls", 0)), 6)
    found["error_rate"] = round(share(count("errors", 0), count("requests", 0)), 6)
    found["hit_share"] = round(share(count("hits", 0), count("requests", 0)), 6)
    for name in ("cost", "upstream", "saved", "policy_saved", "shadow_saved"):
        found[f"{name}_usd"] = usd(count(f"{name}_picodollars", 0))
    return found


def _changes(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float | None]:
    def of(name: str) -> float | None:
        more = change(now.get(name, 0), before.get(name, 0))
        return None if more is None else round(more, 6)

    return {"requests_change": of("requests"), "cost_change": of("cost_picodollars")}


def period_of(asked: Asked) -> tuple[str, str]:
    """Beginning and end as ISO 8601 in UTC."""
    return _iso(asked.since), _iso(asked.until)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
