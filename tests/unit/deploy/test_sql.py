"""The questions in deploy/sql, asked of a real PostgreSQL with requests of yesterday and today in it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from proxy.accounting.record import UsageRecord
from proxy.store.open import open_store
from tests.fakes.databases import PostgresServer
from tests.fakes.usage import make_usage

SQL = Path(__file__).parents[3] / "deploy/sql"
QUESTIONS = sorted(path.name for path in SQL.glob("*.sql") if path.name != "reader.sql")
DAY_S = 86_400
PARAMETERS = {"since": "'2020-01-01'", "key_id": "'key_0000000000000001'"}


def with_parameters(name: str, **parameters: str) -> str:
    """The file's text, with the variables of psql in it as psql would put them."""
    text = (SQL / name).read_text("utf-8")
    return re.sub(r"(?<!:):([a-z_]+)", lambda found: {**PARAMETERS, **parameters}[found[1]], text)


@pytest.fixture(scope="module")
def filled_url(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database with five requests today and two yesterday: a flight of two, a hit, one that failed, one of another
    tenant."""
    now = time.time()
    dear = {"cost_picodollars": 2 * 10**12, "upstream_picodollars": 2 * 10**12}
    free = {"cost_picodollars": 0, "upstream_picodollars": 0, "upstream_tokens": 0}
    saved = {**free, "saved_tokens": 15, "saved_picodollars": 2 * 10**12}
    records = [
        make_usage(1, at=now, **dear),
        make_usage(2, at=now, role="follower", **saved),
        make_usage(3, at=now, role="hit", **saved),
        make_usage(4, at=now, role="alone", status=502, outcome="upstream_failed", **free),
        make_usage(5, at=now, tenant="other", team="", key_id="key_0000000000000002", model="large", **dear),
        make_usage(6, at=now - DAY_S, **dear),
        make_usage(7, at=now - DAY_S, role="follower", **saved),
    ]
    url = postgres.take_database()
    asyncio.run(fill(url, tmp_path_factory.mktemp("state"), records))
    yield url
    postgres.give_back(url)


async def fill(url: str, state_dir: Path, records: list[UsageRecord]) -> None:
    """Make the schema and write the records."""
    store = open_store(url, state_dir)
    await store.open()
    if records:
        await store.write_usage(records)
    await store.close()


@pytest.fixture
async def database(filled_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to it."""
    connection = await asyncpg.connect(filled_url)
    yield connection
    await connection.close()


async def ask(database: asyncpg.Connection, name: str, **parameters: str) -> list[dict[str, Any]]:
    return [dict(row) for row in await database.fetch(with_parameters(name, **parameters))]


async def test_every_question_has_an_answer_where_nobody_asked_anything_yet(
    postgres_url: str, tmp_path: Path
) -> None:
    """No division by nothing; a fresh database is no error."""
    await fill(postgres_url, tmp_path, [])
    connection = await asyncpg.connect(postgres_url)
    try:
        answers = [await ask(connection, name, since=f"'{today()}'") for name in QUESTIONS]
    finally:
        await connection.close()

    assert all(not row.get("requests") for rows in answers for row in rows)


def today(offset_s: float = 0) -> str:
    return datetime.fromtimestamp(time.time() + offset_s, UTC).strftime("%Y-%m-%d")


async def test_costs_add_up_over_keys_teams_tenants_and_all(database: asyncpg.Connection) -> None:
    """The first row is the sum of everything, the rows of keys are its parts."""
    rows = await ask(database, "cost_by_key.sql")

    assert float(rows[0]["cost_usd"]) == 6
    assert rows[0]["tenant"] is None
    assert rows[0]["requests"] == 7
    keys = {row["key_id"]: float(row["cost_usd"]) for row in rows if row["key_id"] is not None}
    assert keys == {"key_0000000000000001": 4, "key_0000000000000002": 2}


async def test_a_model_costs_what_its_calls_did(database: asyncpg.Connection) -> None:
    """Per million tokens too: two dollars for fifteen tokens."""
    rows = {row["model"]: row for row in await ask(database, "cost_by_model.sql")}

    assert float(rows["small"]["upstream_usd"]) == 4
    assert rows["small"]["calls"] == 3
    assert float(rows["large"]["usd_per_million_tokens"]) == pytest.approx(2 / 15 * 1e6)
    assert float(rows["large"]["cached_input_percent"]) == 20


async def test_a_day_without_requests_is_a_row_as_well(database: asyncpg.Connection) -> None:
    """Nothing spent is something to see, and counts in the mean."""
    rows = await ask(database, "cost_by_day.sql", since=f"'{today(-3 * DAY_S)}'")

    assert [float(row["upstream_usd"]) for row in rows] == [0, 0, 2, 4]
    assert float(rows[-1]["mean_of_seven_days_usd"]) == 1.5


async def test_savings_are_calls_tokens_and_dollars(database: asyncpg.Connection) -> None:
    """Three of the six requests of the model needed no call."""
    rows = {row["model"]: row for row in await ask(database, "savings.sql")}

    assert rows["small"]["saved_calls"] == 3
    assert float(rows["small"]["saved_calls_percent"]) == 50
    assert rows["small"]["saved_tokens"] == 45
    assert float(rows["small"]["saved_usd"]) == 6
    assert float(rows["small"]["saved_usd_percent"]) == 60
    assert rows["large"]["saved_calls"] == 0


async def test_hit_rates_of_a_day_are_all_its_requests(database: asyncpg.Connection) -> None:
    """Percentages of a day add up to a hundred."""
    rows = await ask(database, "hit_rates.sql")

    assert [row["requests"] for row in rows] == [2, 5]
    for row in rows:
        parts = [float(value) for name, value in row.items() if name.endswith("_percent")]
        assert sum(parts) == pytest.approx(100)
    assert float(rows[1]["led_percent"]) == 40


async def test_a_projection_is_what_was_spent_and_the_pace_until_the_month_ends(
    database: asyncpg.Connection,
) -> None:
    """Yesterday's two dollars a day are the pace of a tenant that came yesterday; a newer one has none yet."""
    rows = {row["tenant"]: row for row in await ask(database, "projection.sql")}

    acme = rows["acme"]
    assert float(acme["a_day_usd"]) == 2
    left = await database.fetchval(
        "SELECT extract(epoch FROM date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month'"
        " - now() AT TIME ZONE 'UTC') / 86400"
    )
    assert float(acme["month_usd"]) == pytest.approx(float(acme["so_far_usd"]) + 2 * float(left), abs=0.02)
    assert float(rows["other"]["a_day_usd"]) == 0
    assert float(rows["other"]["month_usd"]) == 2


async def test_the_admin_pages_split_of_today_is_all_of_today(database: asyncpg.Connection) -> None:
    """By how requests were answered; the first row is the sum of the others."""
    rows = {row["answered_by"]: row for row in await ask(database, "dashboard_today.sql")}

    assert {kind: row["requests"] for kind, row in rows.items()} == {"(all)": 5, "call": 3, "joined": 1, "hit": 1}
    assert float(rows["call"]["share_percent"]) == 60
    assert float(rows["(all)"]["share_percent"]) == 100
    assert (float(rows["(all)"]["cost_usd"]), float(rows["(all)"]["saved_usd"])) == (4, 4)
    assert rows["(all)"]["errors"] == 1


async def test_the_admin_pages_hours_have_the_requests_of_a_day(database: asyncpg.Connection) -> None:
    """Those of the hour that runs are its last row."""
    rows = await ask(database, "dashboard_hours.sql")

    assert rows[-1]["requests"] == 5
    assert (rows[-1]["hits"], rows[-1]["joined"], rows[-1]["calls"], rows[-1]["errors"]) == (1, 1, 3, 1)
    assert float(rows[-1]["cost_usd"]) == 4


async def test_today_is_held_against_the_same_time_of_other_days(database: asyncpg.Connection) -> None:
    """Twice as dear as yesterday; a week ago there was nothing to compare with."""
    rows = {row["period"]: row for row in await ask(database, "dashboard_compare.sql")}

    assert list(rows) == ["today", "yesterday", "a week ago"]
    assert [row["requests"] for row in rows.values()] == [5, 2, 0]
    assert float(rows["today"]["without_a_call_percent"]) == 40
    assert float(rows["today"]["error_percent"]) == 20
    assert float(rows["today"]["usd_per_1000"]) == 800
    assert float(rows["yesterday"]["today_costs_more_percent"]) == 100
    assert rows["a week ago"]["today_costs_more_percent"] is None


async def test_what_failed_comes_first(database: asyncpg.Connection) -> None:
    """With its outcome and status."""
    rows = await ask(database, "errors.sql")

    assert (rows[0]["outcome"], rows[0]["status"], rows[0]["requests"]) == ("upstream_failed", 502, 1)


async def test_budgets_are_windows_that_have_not_ended(database: asyncpg.Connection) -> None:
    """One without an end is among them."""
    await database.execute(
        "INSERT INTO budgets (account, period, spent, leased, ends_at) VALUES"
        " ('key:a', 'total', 1500000000000, 250000000000, 'infinity'), ('key:b', '2020-01', 1, 0, 1580515200)"
    )
    rows = await ask(database, "budgets.sql")

    assert [(row["account"], float(row["spent_usd"]), float(row["leased_usd"])) for row in rows] == [
        ("key:a", 1.5, 0.25)
    ]


async def test_the_last_requests_of_a_key_are_its_own(database: asyncpg.Connection) -> None:
    """The newest first."""
    rows = await ask(database, "last_requests.sql")

    assert len(rows) == 6
    assert rows[-1]["at"] < rows[0]["at"]


async def test_the_reader_reads_the_views_and_nothing_else(postgres: PostgresServer, filled_url: str) -> None:
    """As psql runs the file, twice; then every question can be asked, and no key be seen or changed."""
    name = filled_url.rpartition("/")[2]
    text = with_parameters("reader.sql", password="'x'")
    try:
        for _ in range(2):
            postgres.psql(text, name)
        reader = await asyncpg.connect(filled_url.replace("postgres:not-a-secret@", "sameflight_reader:x@"))
        try:
            for question in QUESTIONS:
                await ask(reader, question)
            for table in ("api_keys", "usage", "budgets", "leases", "allowances"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await reader.fetch(f"SELECT * FROM {table}")
            with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.ReadOnlySQLTransactionError)):
                await reader.execute("CREATE TABLE mine (x int)")
        finally:
            await reader.close()
    finally:
        postgres.psql("DROP OWNED BY sameflight_reader; DROP ROLE sameflight_reader;", name)


def test_every_question_is_in_the_list_with_its_parameters() -> None:
    """The table of the README beside them."""
    table = dict(re.findall(r"^\| `(\w+\.sql)` \| [^|]+ \|([^|]*)\|$", (SQL / "README.md").read_text(), re.MULTILINE))
    asked = {path.name: set(re.findall(r"(?<!:):([a-z_]+)", path.read_text("utf-8"))) for path in SQL.glob("*.sql")}

    assert {name: set(re.findall(r"`(\w+)`", words)) for name, words in table.items()} == asked
