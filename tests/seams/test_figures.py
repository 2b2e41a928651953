"""The statements behind the admin page, on both databases: they agree with the usage report and use the index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import pytest

from proxy.errors import StoreError
from proxy.store.base import Store
from proxy.store.figures_sql import FIGURES
from proxy.store.open import open_store
from tests.fakes.usage import NOON, make_usage
from tests.seams.test_store_postgres import has_its_plan

HOUR = 3_600
PERIOD = {"since": NOON, "until": NOON + 4 * HOUR}


@pytest.fixture
async def filled(store: Store) -> Store:
    """Requests of all kinds in three hours; the last of them is beyond the period."""
    paid = {"upstream_picodollars": 900, "cost_picodollars": 600}
    free = {"upstream_picodollars": 0, "cost_picodollars": 0, "saved_picodollars": 500}
    records = [
        make_usage(0, role="pattern", policy_saved_picodollars=300, **{**free, "saved_picodollars": 0}),
        make_usage(1, role="hit", model="large", **free),
        make_usage(2, role="follower", **free),
        make_usage(3, tier="simple", policy_saved_picodollars=-40, pruned_tokens=9, **paid),
        make_usage(HOUR, tier="complex", model="large", key_id="key_2", **paid),
        make_usage(HOUR + 1, role="alone", status=502, outcome="upstream_failed", **paid),
        make_usage(HOUR + 2, role="local", status=401, outcome="invalid_key", provider="none", **free),
        make_usage(2 * HOUR, role="refresh", **paid),
        make_usage(4 * HOUR, **paid),
    ]
    await store.write_usage(records)
    return store


@pytest.fixture
async def schema_url(postgres_url: str, tmp_path: Path) -> str:
    """A PostgreSQL with the tables and nothing in them."""
    store = open_store(postgres_url, tmp_path)
    await store.open()
    await store.close()
    return postgres_url


async def ask(store: Store, by: str, **more: Any) -> list[dict[str, Any]]:
    return await store.report("figures", {"by": by, **PERIOD, **more})


async def test_requests_are_split_by_hour_and_by_how_they_were_answered(filled: Store) -> None:
    """Each request is of one kind, and tiers are told apart."""
    rows = {(row["label"] - NOON, row["kind"]): row["requests"] for row in await ask(filled, "hour")}

    assert rows == {
        (0, "pattern"): 1, (0, "hit"): 1, (0, "joined"): 1, (0, "tier:simple"): 1,
        (HOUR, "tier:complex"): 1, (HOUR, "call"): 1, (HOUR, "other"): 1,
        (2 * HOUR, "other"): 1,
    }  # fmt: skip


@pytest.mark.parametrize("by", ["day", "key", "model", "provider", "all"])
async def test_sums_are_those_of_the_usage_report(filled: Store, by: str) -> None:
    """What the page shows is what `sameflight usage` says, label by label."""
    names = ("requests", "calls", "saved_calls", "errors", "refused", "upstream_picodollars", "saved_picodollars")
    expected = {row["label"]: row for row in await filled.report("usage", {"by": by, **PERIOD})}

    found = {row["label"]: row for row in await ask(filled, by)}

    assert len(found) == len(expected) > 0
    for label, row in found.items():
        assert {name: row[name] for name in names} == {name: expected[label][name] for name in names}
        assert row["billed_picodollars"] == expected[label]["cost_picodollars"]


async def test_what_policies_saved_may_be_less_than_nothing(filled: Store) -> None:
    """Sums go below zero as well, in every database."""
    rows = {row["kind"]: row for row in await ask(filled, "hour")}

    assert rows["tier:simple"]["policy_saved_picodollars"] == -40
    assert rows["tier:simple"]["pruned_tokens"] == 9
    assert (await ask(filled, "all"))[0]["policy_saved_picodollars"] == 260


async def test_percentiles_are_those_of_each_hour_and_of_the_whole(filled: Store) -> None:
    """A request's time is its number in milliseconds here."""
    asked = [*await ask(filled, "time"), *await ask(filled, "times")]
    rows = {row["label"]: (row["requests"], row["p50_ms"], row["p95_ms"]) for row in asked}

    assert rows == {
        "all": (8, 3.0, 2.0 * HOUR),
        NOON: (4, 1.0, 3.0),
        NOON + HOUR: (3, HOUR + 1.0, HOUR + 2.0),
        NOON + 2 * HOUR: (1, 2.0 * HOUR, 2.0 * HOUR),
    }


async def test_what_failed_comes_first(filled: Store) -> None:
    """With its outcome and status."""
    rows = [(row["label"], row["status"], row["errors"], row["refused"]) for row in await ask(filled, "outcome")]

    assert rows[:2] == [("upstream_failed", 502, 1, 0), ("invalid_key", 401, 0, 1)]


async def test_a_period_without_requests_has_no_row_but_perhaps_an_empty_whole(store: Store) -> None:
    """Nothing is divided by nothing."""
    for by in FIGURES:
        rows = await ask(store, by)
        assert [row["requests"] for row in rows if row["requests"]] == [], by


async def test_absurd_numbers_do_not_break_the_sums(store: Store) -> None:
    """Two of the largest that a database holds are more than one can hold."""
    most = (1 << 63) - 1
    await store.write_usage([make_usage(number, upstream_picodollars=most) for number in range(3)])

    assert (await ask(store, "all"))[0]["upstream_picodollars"] == pytest.approx(3 * most)


@pytest.mark.parametrize("wrong", [{"by": "mood"}, {"by": "all", "key_id": "x"}])
async def test_a_question_that_there_is_not_is_refused(store: Store, wrong: dict[str, str]) -> None:
    """Nobody gets figures that leave out less than was asked."""
    with pytest.raises(StoreError, match="figures are by one of"):
        await store.report("figures", {**PERIOD, **wrong})


async def test_rows_are_bounded(filled: Store) -> None:
    """The dearest first."""
    rows = await ask(filled, "model", limit=1)

    assert [row["label"] for row in rows] == ["small"]


async def test_every_statement_reads_its_period_over_the_index(schema_url: str) -> None:
    """On PostgreSQL, as the planner says."""
    connection = await asyncpg.connect(schema_url, statement_cache_size=0)
    try:
        await connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        for statement in FIGURES.values():
            plan = await connection.fetch(f"EXPLAIN {statement.postgres}", NOON, NOON + HOUR, 100)
            text = "\n".join(row[0] for row in plan)
            assert has_its_plan(statement, text), (statement.name, text)
            assert "Seq Scan" not in text, (statement.name, text)
    finally:
        await connection.close()
