"""Migrations, windows and statements as they lie in the package."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from proxy.store import schema, sql
from proxy.store.windows import bounds_of, window_at


@pytest.mark.parametrize("kind", sql.KINDS)
def test_migrations_are_numbered_without_a_gap(kind: str) -> None:
    """What was released is never renumbered: the next one goes on from here."""
    found = schema.migrations(kind)

    assert [each.number for each in found] == list(range(1, len(found) + 1))
    names = [each.name.partition(".")[0] for each in found]
    assert names[:4] == ["0001_keys", "0002_versions", "0003_usage", "0004_views"]


def test_a_script_is_split_where_its_statements_end() -> None:
    """The body of a trigger has semicolons of its own."""
    scripts = [each.script for each in schema.migrations("sqlite")]

    for script in scripts:
        assert "".join(schema.statements_of(script)) == script
    triggers = [each for each in schema.statements_of(scripts[1]) if "CREATE TRIGGER" in each]
    assert len(triggers) == 4
    assert all(each.rstrip().endswith("END;") for each in triggers)


def test_every_statement_has_a_plan() -> None:
    """The index that serves it, or the node that does."""
    assert all(each.plan and all(each.plan) for each in sql.ALL.values())
    assert {name for name, each in sql.ALL.items() if each.name != name} == set()


@pytest.mark.parametrize(
    ("day", "period", "name", "ends"),
    [
        (datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC), "day", "2024-02-29", datetime(2024, 3, 1, tzinfo=UTC)),
        (datetime(2024, 2, 1, tzinfo=UTC), "month", "2024-02", datetime(2024, 3, 1, tzinfo=UTC)),
        (datetime(2025, 12, 31, 12, tzinfo=UTC), "month", "2025-12", datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_window_has_a_name_and_an_end(day: datetime, period: str, name: str, ends: datetime) -> None:
    """In UTC, leap days included; the name alone tells the bounds."""
    window = window_at(day.timestamp(), period)

    assert window == (name, ends.timestamp())
    assert bounds_of(name)[0] <= day.timestamp() < bounds_of(name)[1] == ends.timestamp()


def test_a_total_never_ends() -> None:
    """It has one window."""
    assert window_at(0.0, "total") == ("total", math.inf)
    assert bounds_of("total") == (0.0, math.inf)
    with pytest.raises(ValueError, match="fortnight"):
        window_at(0.0, "fortnight")
