"""What every store promises, held against each of them; PostgreSQL's own troubles are in ``test_store_postgres``."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from proxy.accounting.record import UsageRecord
from proxy.config.flag_changes import FlagEdit
from proxy.config.keys import MAX_BUDGET_PICODOLLARS, Allowance, Budget, Limits
from proxy.errors import StoreError
from proxy.store import driven, schema, sql, steps
from proxy.store.base import Store
from proxy.store.open import open_store
from tests.fakes.databases import PostgresServer, StoreMaker
from tests.fakes.gates import wait_until, within
from tests.fakes.usage import HOLDER, NOON, make_key, make_usage

ACCOUNT = "key:key_0000000000000001"
OTHER_HOLDER = "req_ba9876543210"
DAY = Budget(1_000, "day")
ALWAYS = {"since": 0.0, "until": 1e12}
TODAY = "2025-11-21"

Execute = Callable[[str], Any]


@pytest.fixture
def execute(store_kind: str, database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Execute:
    """Run SQL as somebody else than the store, with the database's own tool."""
    if store_kind == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        return lambda statements: server.psql(statements, database_url.rpartition("/")[2])

    def run(statements: str) -> str:
        with sqlite3.connect(tmp_path / "sameflight.db", timeout=5.0) as connection:
            *before, last = [each for each in statements.split(";") if each.strip()]
            for each in before:
                connection.execute(each)
            rows = connection.execute(last).fetchall()
        connection.close()
        return "\n".join("|".join(str(value) for value in row) for row in rows)

    return run


@pytest.fixture
def set_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The database's clock shows this from now on."""

    def set_to(at: float) -> None:
        text = f"SELECT {at!r}::float8 AS now"
        monkeypatch.setattr(sql, "NOW", sql.Statement("now", text, f"SELECT {at!r} AS now", ("Result",)))

    return set_to


async def refuses(why: str, awaitable: Any, *, transient: bool = False) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await within(awaitable, "the store refused")
    assert (caught.value.why, caught.value.transient) == (why, transient), caught.value
    return caught.value


# -- keys ------------------------------------------------------------------------------------------------------


async def test_a_key_comes_back_as_it_was_added(store: Store) -> None:
    """Every field of a record survives, and the store gives it a version."""
    record = make_key(
        1,
        name="Zoë's 'key'; DROP TABLE api_keys",
        tenant="acme",
        team="red",
        models=("gpt-*", "small"),
        routes=("chat", "embeddings"),
        limits=Limits(60, 100_000, 5),
        budget=Budget(MAX_BUDGET_PICODOLLARS, "day"),
        scope="team",
        cache="off",
        charge="split",
        expires_at=NOON + 0.5,
        tags=("a", "b,c"),
    )

    added = await store.add_key(record)

    assert added.version > 0
    assert added == await store.get_key(record.id) == await store.find_key(record.digest)
    assert {**_fields(added), "version": 0} == _fields(record)


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


async def test_unknown_keys_are_nothing(store: Store) -> None:
    """Not an error: the caller decides what an unknown key means."""
    assert await store.find_key(b"\0" * 32) is None
    assert await store.get_key("key_ffffffffffffffff") is None
    assert await store.change_key("key_ffffffffffffffff", {"name": "x"}) is None
    assert await store.rotate_key("key_ffffffffffffffff", make_key(1), NOON) is None
    assert await store.get_key(make_key(1).id) is None


async def test_a_known_id_or_digest_or_the_name_of_a_valid_key_conflicts(store: Store) -> None:
    """Two keys never share what they are found by; equal names of two tenants are two names."""
    first = await store.add_key(make_key(1, name="ci", tenant="acme"))

    await refuses("conflict", store.add_key(make_key(1, name="other")))
    await refuses("conflict", store.add_key(make_key(2, name="other", digest=first.digest)))
    await refuses("conflict", store.add_key(make_key(3, name="ci", tenant="acme")))
    await store.add_key(make_key(4, name="ci", tenant="globex"))

    assert [key.id for key in await store.list_keys()] == [make_key(1).id, make_key(4).id]


async def test_the_name_of_a_revoked_or_expired_key_is_free(store: Store) -> None:
    """Only a valid key holds its name; one that expires later is valid until then."""
    await store.add_key(make_key(1, name="revoked"))
    await store.change_key(make_key(1).id, {"revoked_at": NOON})
    await store.add_key(make_key(2, name="expired", expires_at=NOON))
    await store.add_key(make_key(3, name="expires", expires_at=NOON + 1e9))

    await store.add_key(make_key(4, name="revoked"))
    await store.add_key(make_key(5, name="expired"))
    await refuses("conflict", store.add_key(make_key(6, name="expires")))


async def test_keys_are_listed_in_pages_by_tenant_and_team(store: Store) -> None:
    """In the order of ids, without the revoked ones unless they are wanted."""
    for number in range(1, 9):
        tenant, team = "acme" if number % 2 else "globex", "red" if number < 5 else ""
        await store.add_key(make_key(number, tenant=tenant, team=team))
    await store.change_key(make_key(3).id, {"revoked_at": NOON})

    async def numbers(**chosen: Any) -> list[int]:
        return [int(key.id[4:], 16) for key in await store.list_keys(**chosen)]

    assert await numbers() == [1, 2, 4, 5, 6, 7, 8]
    assert await numbers(revoked=True, limit=3) == [1, 2, 3]
    assert await numbers(revoked=True, limit=3, after=make_key(3).id) == [4, 5, 6]
    assert await numbers(tenant="acme") == [1, 5, 7]
    assert await numbers(team="red") == [1, 2, 4]
    assert await numbers(tenant="acme", team="red", revoked=True) == [1, 3]
    assert await numbers(tenant="acme", team="") == [5, 7]
    assert await numbers(tenant="") == []


async def test_a_change_sets_its_fields_and_no_others(store: Store) -> None:
    """What is fixed stays, and a name is not taken from another key by renaming."""
    before = await store.add_key(make_key(1, tenant="acme", budget=DAY))
    await store.add_key(make_key(2, name="taken", tenant="acme"))

    after = await store.change_key(before.id, {"limits": Limits(1, 2, 3), "budget": None, "models": ("x",)})

    assert after is not None
    assert after.version > before.version
    assert (after.limits, after.budget, after.models, after.name) == (Limits(1, 2, 3), None, ("x",), before.name)
    assert after == await store.get_key(before.id)
    await refuses("conflict", store.change_key(before.id, {"name": "taken"}))
    for wrong in ("id", "created_at", "version", "secret"):
        await refuses("invalid", store.change_key(before.id, {wrong: "x"}))


async def test_a_rotation_adds_the_new_key_and_expires_the_old_one_or_does_neither(store: Store) -> None:
    """Both keys are valid for a while, under one name."""
    old = await store.add_key(make_key(1, name="ci"))
    await refuses("conflict", store.rotate_key(old.id, make_key(2, name="ci", digest=old.digest), NOON))
    assert await store.get_key(old.id) == old

    new = await store.rotate_key(old.id, make_key(2, name="ci"), 4e9)

    assert new is not None
    assert new.name == "ci"
    assert (await store.get_key(old.id)).expires_at == 4e9
    assert (await store.rotate_key(old.id, make_key(3, name="other"), 5e9)) is not None
    assert (await store.get_key(old.id)).expires_at == 4e9


async def test_what_a_database_cannot_hold_is_refused_as_invalid(store: Store) -> None:
    """The caller made a mistake: nothing will help but another value."""
    await refuses("invalid", store.add_key(make_key(1, name="\ud800")))
    await refuses("invalid", store.set_allowance(Allowance("team", "a/b", Limits(1 << 70))))


async def test_allowances_are_set_and_listed(store: Store) -> None:
    """One for each team or tenant; the last word counts."""
    await store.set_allowance(Allowance("team", "acme/red", Limits(1, 2, 3), DAY))
    tenant = await store.set_allowance(Allowance("tenant", "acme", budget=Budget(5)))
    team = await store.set_allowance(Allowance("team", "acme/red", Limits(4)))

    assert team.version > tenant.version > 0
    assert (team.limits, team.budget) == (Limits(4), None)
    assert await store.list_allowances() == [team, tenant]


async def test_changes_come_in_pages_oldest_first_and_complete(store: Store) -> None:
    """Whoever asks from where the last answer ended sees every record that changed, whatever the page size."""
    for number in range(1, 8):
        await store.add_key(make_key(number))
        if number % 2:
            await store.set_allowance(Allowance("team", f"acme/{number}"))
    await store.change_key(make_key(2).id, {"revoked_at": NOON})

    for limit in (1, 2, 3, 100):
        seen: list[tuple[int, str]] = []
        version = 0
        while True:
            changes = await store.changes_since(version, limit)
            if changes.version == version:
                break
            page = [(key.version, key.id) for key in changes.keys]
            page += [(each.version, each.name) for each in changes.allowances]
            assert 0 < len(page) <= limit
            assert all(version < at <= changes.version for at, _ in page)
            seen += sorted(page)
            version = changes.version
        assert all(one < two for (one, _), (two, _) in pairwise(seen))
        assert {name for _, name in seen} == {
            *(make_key(number).id for number in range(1, 8)),
            *(f"acme/{number}" for number in (1, 3, 5, 7)),
        }
        assert seen[-1][1] == make_key(2).id


async def test_a_database_that_was_set_back_is_read_from_its_beginning(store: Store) -> None:
    """After a restore the versions begin lower than what a process has seen."""
    key = await store.add_key(make_key(1))

    changes = await store.changes_since(10**9)

    assert (changes.keys, changes.version) == ([key], key.version)


async def test_a_change_reaches_the_watchers_of_other_processes(make_store: StoreMaker) -> None:
    """Within the second in which revocations have to be known."""
    one, two = await make_store(), await make_store()
    heard: list[int] = []
    watch = await one.watch(heard.append)
    await wait_until(lambda: watch.alive, "the watch hears")

    key = await two.add_key(make_key(1))
    await wait_until(lambda: heard[-1:] == [key.version], "the new key was heard of", 2.0)
    revoked = await two.change_key(key.id, {"revoked_at": NOON})
    assert revoked is not None
    await wait_until(lambda: heard[-1:] == [revoked.version], "the revocation was heard of", 2.0)

    await watch.close()
    assert one.describe()["watches"] == 0


async def test_a_change_by_hand_has_a_version_and_is_heard_of(store: Store, execute: Execute) -> None:
    """An operator with a shell revokes a key like anybody else."""
    heard: list[int] = []
    watch = await store.watch(heard.append)
    key = await store.add_key(make_key(1))
    await wait_until(lambda: heard[-1:] == [key.version], "the new key was heard of")

    await asyncio.to_thread(execute, "UPDATE api_keys SET revoked_at = 5")

    await wait_until(lambda: heard[-1] > key.version, "the change was heard of", 2.0)
    assert [each.revoked_at for each in (await store.changes_since(key.version)).keys] == [5.0]
    await watch.close()


# -- budgets ---------------------------------------------------------------------------------------------------


async def take(
    store: Store, need: int, want: int = 0, *, budget: Budget = DAY, holder: str = HOLDER, lasts_s: float = 60.0
) -> Any:
    return await store.lease(ACCOUNT, budget, holder, need=need, want=max(need, want), lasts_s=lasts_s)


async def settle(store: Store, spent: int, returned: int = 0, window: str = TODAY, holder: str = HOLDER) -> None:
    await store.settle(ACCOUNT, window, holder, spent_total=spent, returned_total=returned)


@pytest.mark.usefixtures("set_noon")
async def test_a_lease_gives_what_is_wanted_or_left_and_nothing_below_what_is_needed(store: Store) -> None:
    """Spent, leased and granted together never exceed the limit."""
    first = await take(store, 100, 600)
    assert first[:5] == (600, 400, 600, 600, TODAY)
    assert (await take(store, 401, 900, holder=OTHER_HOLDER))[:4] == (0, 400, 600, 0)
    assert (await take(store, 400, 900, holder=OTHER_HOLDER))[:4] == (400, 0, 1_000, 400)
    assert (await take(store, 1))[:4] == (0, 0, 1_000, 600)
    assert (await take(store, 0, 50))[:4] == (0, 0, 1_000, 600)
    assert await store.spent(ACCOUNT, DAY) == (0, 1_000)


@pytest.fixture
def set_noon(set_time: Callable[[float], None]) -> None:
    set_time(NOON)


@pytest.mark.usefixtures("set_noon")
async def test_totals_may_be_told_again_and_never_shrink(store: Store) -> None:
    """A call whose answer was lost is repeated without harm, and so is an older one."""
    await take(store, 600)
    for spent, returned in ((200, 100), (200, 100), (150, 50), (0, 0)):
        await settle(store, spent, returned)

    assert await store.spent(ACCOUNT, DAY) == (200, 300)
    lease = await take(store, 0)
    assert lease[:4] == (0, 500, 300, 300)
    assert (lease.spent_total, lease.returned_total) == (200, 100)


@pytest.mark.usefixtures("set_noon")
async def test_what_was_spent_beyond_a_lease_comes_out_of_the_next_grants(store: Store) -> None:
    """The answer has to be paid; the limit holds for what comes after, and to the last picodollar."""
    await take(store, 100)
    await settle(store, 300)
    assert await store.spent(ACCOUNT, DAY) == (300, 0)

    lease = await take(store, 900)

    assert lease[:4] == (900, 0, 700, 700)
    await settle(store, 1_200)
    assert (await take(store, 0, 10))[:4] == (0, 0, 0, 0)
    assert await store.spent(ACCOUNT, DAY) == (1_200, 0)


@pytest.mark.usefixtures("set_noon")
async def test_spending_without_a_lease_is_booked_too(store: Store) -> None:
    """A window of which nothing is known begins with it."""
    await settle(store, 30, window="2025-11-20")
    await settle(store, 7)

    assert await store.spent(ACCOUNT, DAY) == (7, 0)


async def test_windows_are_named_by_the_database_and_begin_once(
    make_store: StoreMaker, set_time: Callable[[float], None]
) -> None:
    """Midnight resets a budget once, however many processes meet it, and late answers go where they belong."""
    stores = [await make_store() for _ in range(4)]
    set_time(NOON)
    old = await take(stores[0], 1_000)
    assert old.ends_at == NOON + 12 * 3600
    set_time(NOON + 12 * 3600)

    leases = await asyncio.gather(*(take(stores[n % 4], 60, holder=f"req_{n:012x}") for n in range(20)))

    assert {lease.window for lease in leases} == {"2025-11-22"}
    assert sorted(lease.picodollars for lease in leases) == [0] * 4 + [60] * 16
    await settle(stores[0], 1_000, window=old.window)
    assert await stores[1].spent(ACCOUNT, DAY) == (0, 960)


async def test_months_and_totals_have_windows_of_their_own(store: Store, set_time: Callable[[float], None]) -> None:
    """December is January's neighbour, and a total never ends."""
    set_time(1_767_225_599.0)
    december = await take(store, 1, budget=Budget(10, "month"))
    total = await take(store, 1, budget=Budget(10, "total"))
    set_time(1_767_225_600.0)
    january = await take(store, 1, budget=Budget(10, "month"))
    again = await take(store, 1, budget=Budget(10, "total"))

    assert (december.window, december.ends_at) == ("2025-12", 1_767_225_600.0)
    assert (january.window, january.ends_at, january.leased_picodollars) == ("2026-01", 1_769_904_000.0, 1)
    assert (total.window, total.ends_at, again.leased_picodollars) == ("total", math.inf, 2)


async def test_leases_that_nobody_extends_expire(store: Store, set_time: Callable[[float], None]) -> None:
    """A call extends all that a holder has of an account; what is settled in full is no lease any more."""
    set_time(NOON - 86_400)
    await take(store, 100)
    set_time(NOON)
    await take(store, 100, lasts_s=10.0)
    await take(store, 100, lasts_s=5.0, holder=OTHER_HOLDER)
    set_time(NOON + 7)
    assert await store.expired_leases() == [(ACCOUNT, TODAY, OTHER_HOLDER)]
    assert [holder for *_, holder in await store.expired_leases(60.0)] == [OTHER_HOLDER, HOLDER, HOLDER]

    await take(store, 0, lasts_s=10.0)
    set_time(NOON + 12)
    assert await store.expired_leases() == [(ACCOUNT, TODAY, OTHER_HOLDER)]
    set_time(NOON + 20)
    assert len(await store.expired_leases()) == 3
    await settle(store, 40, 60)
    assert sorted(await store.expired_leases()) == [(ACCOUNT, "2025-11-20", HOLDER), (ACCOUNT, TODAY, OTHER_HOLDER)]


@pytest.mark.parametrize(
    ("account", "row"),
    [
        (ACCOUNT, {"key_id": "key_0000000000000001"}),
        ("team:acme/red", {"tenant": "acme", "team": "red"}),
        ("tenant:acme", {"tenant": "acme"}),
    ],
)
@pytest.mark.usefixtures("set_noon")
async def test_a_dead_holder_has_spent_what_its_usage_says_and_leases_no_more(
    store: Store, account: str, row: dict[str, str]
) -> None:
    """Nobody else's usage counts, nor another window's, and it is told once however often it is asked for."""
    elsewhere = {"key_id": "key_2", "tenant": "globex", "team": "blue"}
    await store.write_usage(
        [
            make_usage(1, cost_picodollars=100, **row),
            make_usage(2, cost_picodollars=50, **row),
            make_usage(3, cost_picodollars=1, **elsewhere),
            make_usage(4, cost_picodollars=1, at=NOON - 86_400, **row),
            make_usage(5, cost_picodollars=1, at=NOON + 12 * 3600, **row),
            make_usage(6, cost_picodollars=1, request_id=f"{OTHER_HOLDER}00000001", **row),
            make_usage(7, cost_picodollars=1, request_id=f"{HOLDER[:-1]}c00000001", **row),
        ]
    )
    await store.lease(account, DAY, HOLDER, need=600, want=600, lasts_s=-1.0)
    await store.settle(account, TODAY, HOLDER, spent_total=100, returned_total=0)
    assert await store.expired_leases() == [(account, TODAY, HOLDER)]

    for _ in range(2):
        await store.settle_dead(account, HOLDER)

    assert await store.spent(account, DAY) == (150, 0)
    assert await store.expired_leases() == []


@pytest.mark.usefixtures("set_noon")
async def test_a_holder_that_was_declared_dead_and_lives_goes_on_from_what_is_remembered(store: Store) -> None:
    """It learns that it holds nothing, and nothing that it spent is counted twice."""
    await take(store, 600)
    await settle(store, 100)
    await store.write_usage([make_usage(1, cost_picodollars=250)])
    await store.settle_dead(ACCOUNT, HOLDER)

    await settle(store, 250)
    assert await store.spent(ACCOUNT, DAY) == (250, 0)
    await settle(store, 300)
    assert await store.spent(ACCOUNT, DAY) == (300, 0)
    assert (await take(store, 100)).held_picodollars <= 100
    assert sum(await store.spent(ACCOUNT, DAY)) <= 400


async def hammer(
    database_url: str, tmp_path: Path, processes: int, leases: int, need: int, limit: int
) -> tuple[int, int]:
    """Processes that each ask for so many leases of ``key:k`` at once; what they were granted and spent in all."""
    words = [database_url, str(tmp_path)]
    running = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.fakes.hammer", *words, f"req_{number:012x}", str(leases), str(need),
            str(limit),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
        )
        for number in range(processes)
    ]  # fmt: skip
    for process in running:
        assert (await within(process.stdout.readline(), "a process came up", 20.0)) == b"ready\n"
    for process in running:
        process.stdin.write(b"\n")
    said = [await within(process.communicate(), "a process ended", 60.0) for process in running]
    granted, spent = zip(*((int(word) for word in out.split()) for out, _ in said), strict=True)
    return sum(granted), sum(spent)


@pytest.mark.parametrize(("processes", "leases"), [(2, 80), pytest.param(4, 500, marks=pytest.mark.long)])
async def test_several_processes_on_the_last_cent_get_exactly_what_there_is(
    store: Store, database_url: str, tmp_path: Path, processes: int, leases: int
) -> None:
    """They ask for more than there is: every affordable lease is granted, and not one more."""
    need = 7
    limit = processes * leases * need // 2

    granted, spent = await hammer(database_url, tmp_path, processes, leases, need, limit)

    assert granted == limit // need * need
    assert await store.spent("key:k", Budget(limit, "total")) == (spent, granted - spent)


# -- usage -----------------------------------------------------------------------------------------------------


async def test_a_usage_record_is_written_once_however_often_it_is_offered(make_store: StoreMaker) -> None:
    """By its request id: again, in another batch, by another process at the same time, or twice in one batch."""
    one, two = await make_store(), await make_store()
    records = [make_usage(number) for number in range(200)]

    assert await one.write_usage(records[:50]) == 50
    assert await one.write_usage(records[:100]) == 50
    assert await one.write_usage([records[100], records[100]]) == 1
    together = await asyncio.gather(one.write_usage(records), two.write_usage(records[::-1]))

    assert sum(together) == 99
    assert await one.write_usage([]) == 0
    [row] = await one.report("usage", {**ALWAYS, "by": "all"})
    assert row["requests"] == 200
    assert one.describe()["rows_written"] + two.describe()["rows_written"] == 200


async def test_every_field_of_a_usage_record_is_a_column(store: Store, execute: Execute) -> None:
    """And none of them has to do with authorisation."""
    record = make_usage(1, streams=True, tags="a,b", flight_id=1 << 62, status=499, outcome="client_gone")
    await store.write_usage([record])

    columns = ", ".join(UsageRecord.__struct_fields__)
    values = (await asyncio.to_thread(execute, f"SELECT {columns} FROM usage")).split("|")

    assert tuple(sql.USAGE_COLUMNS) == UsageRecord.__struct_fields__
    for name, value in zip(UsageRecord.__struct_fields__, values, strict=True):
        held = getattr(record, name)
        expected = {"t": "1", "f": "0"}.get(value, value) if isinstance(held, bool) else value
        assert type(held)(int(expected) if isinstance(held, bool) else expected) == held, name
    assert not [name for name in sql.USAGE_COLUMNS if "auth" in name or "secret" in name or "credential" in name]


async def test_a_record_that_no_database_holds_is_mended_and_keeps_no_other_from_being_written(store: Store) -> None:
    """Names that clients chose and numbers that upstreams made up must not stop the flusher for ever."""
    odd = [
        make_usage(1, model="a\0b"),
        make_usage(2, model="\ud800"),
        make_usage(3, input_tokens=1 << 70, status=1 << 40),
        make_usage(4, total_ms=math.nan, first_byte_ms=math.inf),
    ]

    assert await store.write_usage([*odd, make_usage(5)]) == 5
    [row] = await store.report("usage", {**ALWAYS, "by": "all"})

    assert row["requests"] == 5
    assert row["input_tokens"] >= 1 << 63
    assert 2 <= store.describe()["rows_mended"] <= 4


async def test_a_batch_has_a_bound(store: Store) -> None:
    """One transaction of any size would hold up everybody else."""
    await refuses("invalid", store.write_usage([make_usage(1)] * (driven.MAX_BATCH + 1)))


async def test_reports_count_and_sum_by_whatever_is_asked(store: Store) -> None:
    """The same numbers from each database, percentiles included."""
    records = [make_usage(number, total_ms=float(number), model=f"m{number % 2}") for number in range(1, 101)]
    records += [
        make_usage(
            200, role="follower", upstream_tokens=0, saved_tokens=15, cost_picodollars=0, saved_picodollars=700
        ),
        make_usage(201, role="hit", key_id="key_2", team="blue", estimated=True),
        make_usage(202, role="none", status=429, outcome="rate_limit_exceeded", tenant="globex", team=""),
        make_usage(203, role="alone", status=502, outcome="upstream_failed", provider="anthropic", route="messages"),
        make_usage(204, status=200, outcome="stream_broken", at=NOON + 86_400),
    ]
    await store.write_usage(records)

    [everything] = await store.report("usage", {**ALWAYS, "by": "all"})
    assert everything == {
        "label": "all",
        "requests": 105,
        "calls": 102,
        "saved_calls": 2,
        "hits": 1,
        "patterns": 0,
        "input_tokens": 1_050,
        "output_tokens": 525,
        "cached_input_tokens": 210,
        "upstream_tokens": 1_560,
        "saved_tokens": 15,
        "cost_picodollars": 72_800,
        "upstream_picodollars": 73_500,
        "saved_picodollars": 700,
        "pruned_tokens": 0,
        "policy_saved_picodollars": 0,
        "shadow_saved_picodollars": 0,
        "errors": 2,
        "refused": 1,
        "estimated": 1,
        "p50_ms": 53.0,
        "p95_ms": 100.0,
        "first_byte_p50_ms": 3.5,
        "overhead_p95_ms": 0.25,
    }

    async def counts(by: str, **more: Any) -> dict[str, int]:
        rows = await store.report("usage", {**ALWAYS, "by": by, **more})
        return {row["label"]: row["requests"] for row in rows}

    assert await counts("day") == {TODAY: 104, "2025-11-22": 1}
    assert list(await counts("day")) == [TODAY, "2025-11-22"]
    assert await counts("key") == {"key_0000000000000001": 104, "key_2": 1}
    assert await counts("team") == {"acme/red": 103, "acme/blue": 1, "": 1}
    assert await counts("tenant") == {"acme": 104, "globex": 1}
    assert await counts("model") == {"small": 5, "m0": 50, "m1": 50}
    assert list(await counts("model", limit=2)) == ["m0", "m1"]
    assert await counts("provider") == {"openai": 104, "anthropic": 1}
    assert await counts("route") == {"chat": 104, "messages": 1}
    assert await counts("all", since=NOON + 86_400) == {"all": 1}
    assert await counts("all", until=NOON + 50) == {"all": 49}
    assert await counts("all", key_id="key_2") == {"all": 1}
    assert await counts("all", tenant="acme", team="blue", model="small") == {"all": 1}
    assert await counts("model", tenant="nobody") == {}


async def test_an_unknown_report_is_refused(store: Store) -> None:
    """By name, by what it is by, and by its parameters."""
    await refuses("unknown_report", store.report("secrets", ALWAYS))
    await refuses("invalid", store.report("usage", {**ALWAYS, "by": "1; DROP TABLE usage"}))
    await refuses("invalid", store.report("usage", {**ALWAYS, "where": "x"}))


async def test_the_views_for_other_tools_are_there(store: Store, execute: Execute) -> None:
    """They are a part of the schema that people build on."""
    hit = make_usage(2, role="hit", cost_picodollars=0, saved_picodollars=5 * 10**11)
    await store.write_usage([make_usage(1), hit])

    daily = await asyncio.to_thread(execute, "SELECT day, requests, calls, saved_calls, saved_usd FROM usage_daily")
    monthly = await asyncio.to_thread(execute, "SELECT month, requests FROM usage_monthly")
    rows = await asyncio.to_thread(execute, "SELECT count(*) FROM usage_requests")

    assert daily == f"{TODAY}|2|1|1|0.5"
    assert (monthly, rows) == ("2025-11|2", "2")
    assert await asyncio.to_thread(execute, "SELECT count(*) FROM budget_windows") == "0"


async def test_what_policies_did_is_kept_and_counted(store: Store, execute: Execute) -> None:
    """A column for each; losses are below nothing, and a rule's answer is a call saved."""
    await store.write_usage([
        make_usage(1, role="pattern", policy_saved_picodollars=3 * 10**12, saved_tokens=9, flagged="pii,words"),
        make_usage(2, tier="simple", cache_class="exact", pruned_tokens=70, policy_saved_picodollars=-(10**12)),
        make_usage(3, role="hit", cache_class="exact", shadow_saved_picodollars=5 * 10**11),
    ])  # fmt: skip

    [everything] = await store.report("usage", {**ALWAYS, "by": "all"})
    by_class = {row["label"]: row["hits"] for row in await store.report("usage", {**ALWAYS, "by": "class"})}
    by_tier = {row["label"]: row["requests"] for row in await store.report("usage", {**ALWAYS, "by": "tier"})}
    by_role = {row["label"]: row["requests"] for row in await store.report("usage", {**ALWAYS, "by": "role"})}
    view = "calls, saved_calls, hits, patterns, pruned_tokens, policy_saved_usd, shadow_saved_usd"
    daily = await asyncio.to_thread(execute, f"SELECT {view} FROM usage_daily")
    flagged = await asyncio.to_thread(execute, "SELECT flagged FROM usage_requests WHERE flagged <> ''")
    monthly = await asyncio.to_thread(execute, "SELECT patterns, policy_saved_usd FROM usage_monthly")

    counts = "calls", "saved_calls", "patterns", "hits"
    assert [everything[name] for name in counts] == [1, 2, 1, 1]
    assert everything["policy_saved_picodollars"] == 2 * 10**12
    assert everything["shadow_saved_picodollars"] == 5 * 10**11
    assert everything["pruned_tokens"] == 70
    assert (by_class, by_tier) == ({"exact": 1, "": 0}, {"simple": 1, "": 2})
    assert by_role == {"pattern": 1, "leader": 1, "hit": 1}
    assert [float(each) for each in daily.split("|")] == [1, 2, 1, 1, 70, 2.0, 0.5]
    assert flagged == "pii,words"
    assert [float(each) for each in monthly.split("|")] == [1, 2.0]


async def test_rows_of_an_older_schema_are_there_after_it_was_brought_up_to_date(
    make_store: StoreMaker, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the new columns empty; who may read the views before may read them then."""
    kinds = {kind: schema.migrations(kind) for kind in sql.KINDS}
    columns = ", ".join(list(sql.USAGE_COLUMNS)[:26])
    values = "'r1', 1000, 'k', 't', 'm', 'p', 'c', 'x', 'leader', 'ok', 200, true, false"
    values += ", 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", lambda kind: kinds[kind][:4])
        older = await make_store()
        insert = f"INSERT INTO usage ({columns}) VALUES ({values}, 12, ''); SELECT 1"
        await asyncio.to_thread(execute, insert)
        await older.close()

    newer = await make_store()
    [row] = await newer.report("usage", {**ALWAYS, "since": 0.0, "by": "class"})
    view = "SELECT role, cost_picodollars, day, tier, pruned_tokens FROM usage_requests"
    kept = await asyncio.to_thread(execute, view)

    assert (row["label"], row["requests"], row["cost_picodollars"], row["policy_saved_picodollars"]) == ("", 1, 6, 0)
    assert kept == "leader|6|1970-01-01||0"


# -- schema and life -------------------------------------------------------------------------------------------


async def test_processes_that_start_at_once_migrate_once(make_store: StoreMaker, execute: Execute) -> None:
    """Each migration is applied by one of them; the others wait and go on."""
    stores = await asyncio.gather(*(make_store() for _ in range(4)))

    known = len(schema.migrations("postgres"))
    assert {store.describe()["schema_version"] for store in stores} == {known}
    applied = await asyncio.to_thread(execute, "SELECT count(*), max(version) FROM sameflight_schema")
    assert applied == f"{known}|{known}"


async def test_a_newer_schema_is_refused(make_store: StoreMaker, execute: Execute) -> None:
    """An old version must not write into what it does not understand."""
    await make_store()
    await asyncio.to_thread(execute, "INSERT INTO sameflight_schema VALUES (9999, 'future', 0)")

    await refuses("schema", make_store())


async def test_an_older_schema_is_refused_where_migrating_is_not_allowed(make_store: StoreMaker) -> None:
    """It says what to do, and leaves the database as it was."""
    error = await refuses("schema", make_store(migrate=False))
    assert "sameflight migrate" in str(error)

    await make_store()
    await make_store(migrate=False)


async def test_a_migration_that_fails_leaves_nothing_behind(
    make_store: StoreMaker, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The schema stays at the version before it, and the next attempt begins there."""
    script = "CREATE TABLE half (x integer);\nCREATE TABLE api_keys (x integer);\n"
    kinds = {kind: schema.migrations(kind) for kind in sql.KINDS}
    broken = schema.Migration(len(kinds["sqlite"]) + 1, "9999_broken.sql", script)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", lambda kind: (*kinds[kind], broken))
        with pytest.raises(StoreError):
            await make_store()

    store = await make_store()

    assert store.describe()["schema_version"] == len(kinds["postgres"])
    await asyncio.to_thread(execute, "CREATE TABLE half (x integer); SELECT 1")


async def test_a_closed_store_says_so(store: Store) -> None:
    """Nobody waits for what will never come."""
    await store.close()

    await refuses("closed", store.get_key("x"))
    await refuses("closed", store.write_usage([make_usage(1)]))


async def test_a_call_that_was_cancelled_leaves_the_store_in_order(store: Store) -> None:
    """Callers go away at any moment; the next one gets its own answer."""
    key = await store.add_key(make_key(1))
    for ticks in range(12):
        task = asyncio.create_task(store.change_key(key.id, {"tags": (str(ticks),)}))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        found = await store.find_key(key.digest)
        assert found is not None
        assert found.id == key.id

    # What was cancelled may still be written, but not behind this.
    last = await store.change_key(key.id, {"tags": ("last",)})
    assert await store.list_keys() == [await store.get_key(key.id)] == [last]


async def test_a_store_tells_about_itself_and_no_secret(store: Store, database_url: str) -> None:
    """For the admin port."""
    about = store.describe()

    assert (about["answers"], about["schema_version"]) == (True, len(schema.migrations("postgres")))
    assert "not-a-secret" not in repr(about)


def test_a_url_of_another_kind_is_refused(tmp_path: Path) -> None:
    """There are two kinds of databases."""
    with pytest.raises(ValueError, match="postgresql://"):
        open_store("mysql://localhost/x", tmp_path)


async def test_the_conformance_suite_runs_every_statement(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that nothing runs has no business in the list, and one that is not listed has no plan."""
    run: set[str] = set()
    drive = type(store)._drive

    async def watch_drive(self: Any, make_steps: Callable[[], steps.Steps[Any]], work: driven.Work) -> Any:
        return await drive(self, lambda: _listed(make_steps(), run), work)

    monkeypatch.setattr(type(store), "_drive", watch_drive)
    await store.add_key(make_key(1, tenant="a", team="b"))
    await store.change_key(make_key(1).id, {"name": "new"})
    await store.find_key(make_key(1).digest)
    for chosen in ({}, {"tenant": "a"}, {"team": "b"}, {"tenant": "a", "team": "b"}):
        assert len(await store.list_keys(**chosen)) == 1
    await store.set_allowance(Allowance("team", "a/b"))
    await store.list_allowances()
    await store.changes_since(0)
    await take(store, 1, lasts_s=-1.0)
    await store.expired_leases()
    await store.settle_dead(ACCOUNT, HOLDER)
    await store.spent(ACCOUNT, DAY)
    await store.change_flags([FlagEdit("tiers", "global", "", 0.0)], who="x")
    await store.roll_back_flags(who="x")
    await store.list_flag_changes()
    await store.list_flag_changes(name="tiers")
    await store.write_usage([make_usage(1)])
    for by in sql.LABELS:
        await store.report("usage", {**ALWAYS, "by": by})

    assert set(sql.ALL) - run == {"write_usage"}


def _listed(run: Any, names: set[str]) -> Any:
    try:
        statement, values = next(run)
        while True:
            assert statement is sql.ALL[statement.name]
            names.add(statement.name)
            statement, values = run.send((yield statement, values))
    except StopIteration as done:
        return done.value
