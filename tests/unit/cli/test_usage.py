"""`sameflight usage` on each database."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from proxy.accounting.record import UsageRecord
from proxy.cli.main import make_parser
from proxy.config.keys import KeyRecord
from proxy.store.open import open_store
from tests.fakes.clock import FrozenClock
from tests.fakes.usage import make_usage

NOW = datetime(2026, 11, 21, 15, 0, tzinfo=UTC).timestamp()
DAY_S = 86_400.0
KEY = KeyRecord("key_00000000000000aa", b"d" * 32, "search", created_at=NOW)


def usage(env: dict[str, str], *words: str) -> tuple[int, str, str]:
    arguments = make_parser("usage").parse_args(["usage", *words])
    out, err = io.StringIO(), io.StringIO()
    code = arguments.run(arguments, out, err, env, clock=FrozenClock(wall=NOW))
    return code, out.getvalue(), err.getvalue()


def made(numbers: range, at: float, **changes: Any) -> list[UsageRecord]:
    return [make_usage(number, at=at, total_ms=100.0 * (number % 20 + 1), **changes) for number in numbers]


def records() -> list[UsageRecord]:
    """Today 10 requests of which 5 were saved and one failed, yesterday 4, a week ago 20; two keys, two models."""
    return [
        *made(range(4), NOW - 60, cost_picodollars=10**12, key_id=KEY.id, model="large"),
        *made(range(4, 5), NOW - 60, outcome="upstream_error", status=502, cost_picodollars=0),
        *made(range(5, 10), NOW - 60, role="follower", upstream_tokens=0, upstream_picodollars=0, cost_picodollars=0,
              saved_picodollars=10**12, key_id=KEY.id, model="large"),
        *made(range(10, 14), NOW - 60 - DAY_S, cost_picodollars=5 * 10**11),
        *made(range(14, 34), NOW - 60 - 7 * DAY_S, cost_picodollars=10**11, key_id=KEY.id, model="large"),
    ]  # fmt: skip


@pytest.fixture
def env(database_url: str, tmp_path: Path) -> dict[str, str]:
    """A database with the records of above and one key."""

    async def fill(rows: Sequence[UsageRecord]) -> None:
        store = open_store(database_url, tmp_path)
        await store.open()
        await store.add_key(KEY)
        await store.write_usage(rows)
        await store.close()

    asyncio.run(fill(records()))
    return {"SAMEFLIGHT_DATABASE_URL": database_url, "SAMEFLIGHT_STATE_DIR": str(tmp_path)}


def test_days_are_reported_with_yesterday_and_last_week(env: dict[str, str]) -> None:
    """Requests, the share of calls saved, tokens, cost, cost saved, errors, percentiles, comparisons."""
    code, out, err = usage(env)

    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][:4] == ["day", "requests", "calls", "saved"]
    assert [line[0] for line in lines[1:4]] == ["2026-11-20", "2026-11-21", "total"]
    yesterday, today, total = lines[1:4]
    assert today[1:9] == ["10", "50.0%", "100", "50", "$4.00", "$5.00", "10.0%", "500"]
    assert today[-2:] == ["+100%", "+100%"]
    assert yesterday[1] == "4"
    assert yesterday[-2:] == ["-", "-"]
    assert total[1] == "14"
    assert out.splitlines()[-1] == "from 2026-11-15T00:00:00Z to 2026-11-21T15:00:00Z"


def test_keys_are_reported_by_name_and_compared_with_themselves(env: dict[str, str]) -> None:
    """The same hours of the day and of the week before."""
    code, out, _ = usage(env, "--by", "key", "--last", "1d", "--format", "json")

    report = json.loads(out)
    assert code == 0
    assert [(line["label"], line.get("name"), line["requests"]) for line in report["lines"]] == [
        (KEY.id, "search", 9),
        ("key_0000000000000001", None, 1),
    ]
    assert report["lines"][0]["day_before"] is None
    assert report["lines"][0]["week_before"]["requests"] == 20
    assert report["lines"][0]["week_before"]["cost_change"] == 1.0
    assert report["lines"][0]["saved_share"] == pytest.approx(5 / 9, abs=1e-6)
    assert report["lines"][0]["cost_usd"] == 4.0
    assert report["total"]["error_rate"] == 0.1
    assert report["lines"][1]["day_before"]["requests"] == 4


@pytest.mark.parametrize("by", ["team", "tenant", "model", "provider", "route", "class", "tier", "role"])
def test_every_grouping_adds_up(env: dict[str, str], by: str) -> None:
    """Whatever the lines are about."""
    report = json.loads(usage(env, "--by", by, "--last", "30d", "--format", "json")[1])

    assert report["by"] == by
    assert sum(line["requests"] for line in report["lines"]) == report["total"]["requests"] == 34


def test_what_policies_saved_has_columns_of_its_own_where_there_is_any(env: dict[str, str]) -> None:
    """Rules' answers count as calls saved, hits are told by class, money is not mixed with what sharing saved."""
    before = usage(env, "--by", "class", "--last", "1h")[1]
    add(env, [
        make_usage(90, at=NOW - 5, role="pattern", policy_saved_picodollars=2 * 10**12, saved_tokens=9),
        make_usage(91, at=NOW - 5, role="hit", cache_class="exact", saved_picodollars=10**12),
        make_usage(92, at=NOW - 5, cache_class="exact", tier="simple", shadow_saved_picodollars=3 * 10**12,
                   policy_saved_picodollars=-(10**12), pruned_tokens=1_500),
    ])  # fmt: skip

    lines = [line.split() for line in usage(env, "--by", "class", "--last", "1h")[1].splitlines()]
    report = json.loads(usage(env, "--by", "class", "--last", "1h", "--format", "json")[1])

    assert "policies" not in before
    titles = "cost cost saved policies saved shadow saved patterns hits pruned errors p50"
    assert " ".join(lines[0][8:]).startswith(titles)
    unclassed, exact, total = lines[1:4]
    assert unclassed[:3] == ["-", "11", "54.5%"]
    assert exact[:3] == ["exact", "2", "50.0%"]
    assert exact[6:11] == ["$1.00", "-$1.00", "$3.00", "0.0%", "50.0%"]
    assert total[7] == "$1.00"
    classes = {line["label"]: line for line in report["lines"]}
    assert classes["exact"]["hit_share"] == 0.5
    assert classes["exact"]["pruned_tokens"] == 1_500
    assert classes[""]["policy_saved_usd"] == 2.0
    assert classes["exact"]["shadow_saved_usd"] == 3.0


def test_a_spreadsheet_gets_flat_columns_and_no_formulas(env: dict[str, str]) -> None:
    """CSV for programs; a model's name is a caller's choice."""
    add(env, [make_usage(99, at=NOW - 5, model='=HYPERLINK("http://x")')])
    code, out, _ = usage(env, "--by", "model", "--since", "2026-11-21", "--format", "csv")

    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [row["label"] for row in rows] == ["large", "'=HYPERLINK(\"http://x\")", "small"]
    assert rows[0]["requests"] == "9"
    assert rows[0]["week_before_cost_change"] == "1.0"
    assert rows[1]["week_before_cost_change"] == ""


def add(env: dict[str, str], rows: Sequence[UsageRecord]) -> None:
    async def write() -> None:
        store = open_store(env["SAMEFLIGHT_DATABASE_URL"], Path(env["SAMEFLIGHT_STATE_DIR"]))
        await store.open()
        await store.write_usage(rows)
        await store.close()

    asyncio.run(write())


@pytest.mark.parametrize(
    ("words", "requests"),
    [
        (("--key", "search"), 9),
        (("--key", KEY.id), 9),
        (("--model", "small"), 1),
        (("--tenant", "nobody"), 0),
        (("--since", "2026-11-20", "--until", "2026-11-21"), 4),
        (("--since", "2026-11-20T15:00+01:00", "--until", "2026-11-21"), 4),
        (("--since", "8d"), 34),
        (("--last", "1h"), 10),
    ],
)
def test_a_report_is_narrowed_to_what_is_asked_for(
    env: dict[str, str], words: tuple[str, ...], requests: int
) -> None:
    """A key by id or name, a model, a period."""
    default = () if {"--since", "--last"} & set(words) else ("--last", "20h")
    report = json.loads(usage(env, "--by", "provider", *words, *default, "--format", "json")[1])

    assert sum(line["requests"] for line in report["lines"]) == requests


def test_a_report_of_nothing_says_so(env: dict[str, str]) -> None:
    """In each form."""
    code, out, _ = usage(env, "--tenant", "nobody")
    assert (code, out) == (0, "no requests from 2026-11-15T00:00:00Z to 2026-11-21T15:00:00Z\n")
    assert usage(env, "--tenant", "nobody", "--format", "csv")[:2] == (0, "name,label\n")
    assert json.loads(usage(env, "--tenant", "nobody", "--format", "json")[1])["lines"] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--last", "soon"), "--last: expected a time such as"),
        (("--since", "tomorrow"), "--since: expected a time such as"),
        (("--until", "2026-13-01"), "--until: expected a time such as"),
        (("--since", "2026-11-21", "--until", "2026-11-20"), "the period ends before it begins"),
        (("--limit", "0"), "--limit: expected 1 or more"),
    ],
)
def test_a_period_that_is_none_is_wrong_use(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    """Told without asking the database."""
    code, out, err = usage({"SAMEFLIGHT_STATE_DIR": str(tmp_path)}, *words)

    assert (code, out) == (2, "")
    assert told in err


def test_a_database_that_cannot_be_read_is_a_failure() -> None:
    """In one line, without the password."""
    code, out, err = usage({"SAMEFLIGHT_DATABASE_URL": "postgresql://me:pass-word@127.0.0.1:1/x"})

    assert (code, out) == (1, "")
    assert err.startswith("sameflight usage: ")
    assert "pass-word" not in err
