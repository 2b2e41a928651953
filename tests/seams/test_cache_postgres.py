"""The shared cache in PostgreSQL: what two processes have, and a database that is away, hung, emptied or poisoned.

Each cache here is what one process would have: connections, a generation and a watch of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from proxy.cache import postgres
from proxy.cache.level import AiocacheShared, Bounds
from proxy.cache.postgres import PostgresBackend
from proxy.cache.recording import Codec, Recording
from proxy.cache.shared import make_shared_cache
from proxy.protocol.usage import Usage
from proxy.store.open import open_cache_database
from tests.fakes.clock import FrozenClock
from tests.fakes.databases import PostgresServer
from tests.fakes.gates import wait_until, within

SECRET = b"a secret of the whole cluster"
KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
GENERATION = "sameflight:1:answers:generation"
PATIENT = Bounds(get_s=5.0, put_s=5.0)
HASTY = Bounds(get_s=0.05, put_s=0.05)

Opener = Callable[..., Awaitable[Any]]
Ask = Callable[..., Awaitable[Any]]


def recording(clock: FrozenClock, body: bytes = b"x", **options: Any) -> Recording:
    values: dict[str, Any] = {"stored_at": clock.now(), "stored_wall": clock.wall(), "ttl_s": 600.0, **options}
    return Recording(200, [(b"content-type", b"text/plain")], (body,), **values)


class Process:
    """A cache and how often it was told to drop what the process holds."""

    def __init__(self, cache: AiocacheShared) -> None:
        self.cache = cache
        self.purges = 0

    @property
    def backend(self) -> PostgresBackend:
        backend = self.cache._backend
        assert isinstance(backend, PostgresBackend)
        return backend

    def purged(self) -> None:
        self.purges += 1

    async def found(self, key: bytes = KEY) -> bytes | None:
        recording = await within(self.cache.get(key), "a look-up ends")
        return None if recording is None else recording.body


@pytest.fixture
async def opened(frozen_clock: FrozenClock) -> AsyncIterator[Opener]:
    """Opens caches as processes would; all are closed at the end."""
    made: list[AiocacheShared] = []

    async def open_one(url: str, *, listens: bool = True, **options: Any) -> Process:
        options = {"bounds": PATIENT, "open_database": open_cache_database, **options}
        cache = make_shared_cache(url, options.pop("secret", SECRET), frozen_clock, **options)
        assert isinstance(cache, AiocacheShared)
        made.append(cache)
        process = Process(cache)
        cache.start(process.purged)
        if listens:
            await wait_until(lambda: cache.up, "the process listens")
        process.purges = 0
        return process

    yield open_one
    for cache in made:
        await within(cache.close(), "a cache closes")


@pytest.fixture
async def ask(postgres_url: str) -> AsyncIterator[Ask]:
    """Asks the database as an operator would."""
    connection = await asyncpg.connect(postgres_url)
    yield connection.fetch
    await connection.close()


async def settled(process: Process) -> None:
    await wait_until(lambda: not process.cache.generation.owes, "the server was told")


async def test_a_second_process_finds_what_the_first_stored(postgres_url: str, opened, ask, frozen_clock) -> None:
    """Whole, with its usage and its age, in an unlogged table under a name that says nothing."""
    first, second = await opened(postgres_url), await opened(postgres_url)
    usage = Usage(100, 20, 30, 0, 5)
    await first.cache.put(KEY, recording(frozen_clock, b"body", report=usage, streams=True), 60.0)
    frozen_clock.advance(20.0)
    found = await second.cache.get(KEY)
    [row] = await ask(
        "SELECT name, expires_at - extract(epoch FROM now())::float8 AS left_s, size_bytes FROM sameflight_cache"
    )
    kinds = await ask("SELECT relpersistence::text AS kind FROM pg_class WHERE relname LIKE 'sameflight_cache%'")

    assert (found.body, found.report, found.streams, found.age_s(frozen_clock.now())) == (b"body", usage, True, 20.0)
    assert (first.cache.stored, second.cache.hits) == (1, 1)
    assert row["name"] == f"sameflight:1:answers:{first.cache.generation.value:x}:{KEY.hex()}"
    assert 50.0 < row["left_s"] <= 60.0
    assert row["size_bytes"] > 4
    assert {each["kind"] for each in kinds} == {"u"}


@pytest.mark.long
async def test_prefixes_and_secrets_keep_apart_what_lies_side_by_side(
    postgres_url: str, opened, frozen_clock
) -> None:
    """Two groups of proxies on one database do not see each other, not even when they share a name."""
    one = await opened(postgres_url, prefix="one")
    others = [
        await opened(postgres_url, prefix="two"),
        await opened(postgres_url, prefix="one", secret=b"another secret of a cluster"),
    ]
    await one.cache.put(KEY, recording(frozen_clock), 60.0)

    assert [await other.found() for other in others] == [None, None]
    assert [other.cache.rejected for other in others] == [0, 1]


async def test_a_purge_in_one_process_reaches_the_others(postgres_url: str, opened, frozen_clock) -> None:
    """By a notification, and what is stored afterwards is found by all again."""
    first, second = await opened(postgres_url), await opened(postgres_url)
    await first.cache.put(KEY, recording(frozen_clock, b"old"), 60.0)
    first.cache.purge()
    await wait_until(lambda: second.purges == 1, "the other was told")
    await settled(first)

    assert first.cache.generation.value == second.cache.generation.value
    assert [await first.found(), await second.found()] == [None, None]
    await second.cache.put(KEY, recording(frozen_clock, b"new"), 60.0)
    assert await first.found() == b"new"


@pytest.mark.long
async def test_a_change_that_everybody_reports_is_one_purge(postgres_url: str, opened) -> None:
    """Ten processes that read the same new configuration at once raise the generation by one step."""
    processes = [await opened(postgres_url) for _ in range(5)]
    before = processes[0].cache.generation.value
    for process in processes:
        process.cache.announce(b"a new configuration")
    for process in processes:
        await settled(process)
    values = {process.cache.generation.value for process in processes}
    await wait_until(lambda: all(process.purges == 1 for process in processes), "everybody purged once")

    assert len(values) == 1
    assert values.pop() > before


@pytest.mark.long
async def test_what_a_deaf_process_holds_is_found_to_be_old_by_the_next_look_up(
    postgres_url: str, opened, ask, frozen_clock
) -> None:
    """A notification that is lost, as behind some poolers, is made up for."""
    one = await opened(postgres_url)
    await one.cache.put(KEY, recording(frozen_clock), 60.0)
    await ask("UPDATE sameflight_cache_generations SET value = value + 1000")

    assert await one.found() is None
    assert one.cache.outdated == 1
    await wait_until(lambda: one.purges == 1, "it asked what the number is")


@pytest.mark.long
async def test_tables_that_were_dropped_are_made_again(postgres_url: str, opened, ask, frozen_clock) -> None:
    """As after a restore of the database; meanwhile every look-up is a miss."""
    one = await opened(postgres_url)
    await one.cache.put(KEY, recording(frozen_clock), 60.0)
    await ask("DROP TABLE sameflight_cache, sameflight_cache_generations")
    assert await one.found() is None
    one.cache.purge()
    await settled_again(one)
    await one.cache.put(KEY, recording(frozen_clock, b"anew"), 60.0)

    assert await one.found() == b"anew"


async def settled_again(process: Process) -> None:
    """The first attempt finds no table; somebody else's wish leads to the next."""

    def told() -> bool:
        process.cache.watch.urge()
        return not process.cache.generation.owes

    await wait_until(told, "the server was told")


async def test_what_has_ended_is_swept_in_batches(postgres_url: str, opened, ask, monkeypatch) -> None:
    """By one process at a time, and nothing else goes."""
    monkeypatch.setattr(postgres, "SWEEP_ROWS", 10)
    one = await opened(postgres_url)
    await ask(
        "INSERT INTO sameflight_cache SELECT 'old' || n, 1.0, 1, 'x'::bytea FROM generate_series(1, 35) AS n"
        " UNION ALL SELECT 'new' || n, 1e12, 1, 'x'::bytea FROM generate_series(1, 5) AS n"
    )
    await one.backend.sweep()
    rows = await ask("SELECT count(*) AS rows FROM sameflight_cache WHERE name LIKE 'new%'")

    assert (one.backend.swept, one.backend.evicted, one.backend.size_bytes) == (35, 0, 5)
    assert rows[0]["rows"] == 5


async def test_a_table_that_is_too_large_loses_what_ends_soonest(postgres_url: str, opened, ask) -> None:
    """As much as there is too much of."""
    one = await opened(postgres_url, table_bytes=10_000)
    await ask(
        "INSERT INTO sameflight_cache SELECT 'a' || n, 1e12 + n, 1000, 'x' FROM generate_series(1, 25) AS n"
    )
    await one.backend.sweep()
    rows = await ask("SELECT name FROM sameflight_cache ORDER BY expires_at")

    assert [row["name"] for row in rows] == [f"a{n}" for n in range(16, 26)]
    assert (one.backend.evicted, one.cache.evictions, one.cache.size_bytes) == (15, 15, 10_000)


@pytest.mark.long
async def test_no_more_of_a_value_crosses_the_wire_than_one_may_have(
    postgres_url: str, opened, ask, frozen_clock
) -> None:
    """Somebody wrote something huge under our name: cut off by the server, and no answer."""
    one = await opened(postgres_url, codec=Codec(SECRET, max_bytes=1_000))
    await one.cache.put(KEY, recording(frozen_clock), 60.0)
    await ask("UPDATE sameflight_cache SET value = convert_to(repeat('x', 100000), 'UTF8')")
    [name] = [row["name"] for row in await ask("SELECT name FROM sameflight_cache")]

    assert len(await one.backend.get(name, timeout=0)) == 1_001
    assert await one.found() is None
    assert one.cache.rejected == 1


@pytest.mark.long
@pytest.mark.parametrize("poison", ["-5", "9223372036854775807"])
async def test_a_poisoned_generation_is_put_right(poison: str, postgres_url: str, opened, ask, frozen_clock) -> None:
    """A number from nowhere counts as none, and does not keep purges from working."""
    one = await opened(postgres_url)
    value = one.cache.generation.value
    await ask(f"UPDATE sameflight_cache_generations SET value = {poison}")
    assert await one.found() is None
    await wait_until(lambda: one.cache.watch.settled > 1, "it asked what the number is")
    await one.cache.put(KEY, recording(frozen_clock), 60.0)

    assert one.cache.generation.value == value
    assert await one.found() == b"x"


@pytest.mark.long
async def test_aiocaches_other_operations_work_as_its_own_backends_do(postgres_url: str, opened) -> None:
    """Whoever knows aiocache finds what is expected."""
    backend = (await opened(postgres_url)).backend
    assert await backend.add("a", b"1", ttl=50.0) is True
    with pytest.raises(ValueError, match="already exists"):
        await backend.add("a", b"2")
    assert await backend.exists("a")
    assert await backend.multi_set([("b", b"2"), ("c", b"3")]) is True
    assert await backend.multi_get(["a", "b", "x"]) == [b"1", b"2", None]
    assert await backend.expire("b", 0.0001) is True
    assert await backend.expire("x", 1.0) is False
    await within(ends(lambda: backend.exists("b")), "it has ended")
    assert await backend.add("b", b"4") is True
    assert (await backend.delete("a"), await backend.delete("a")) == (1, 0)
    assert await backend.clear() is True
    assert await backend.get("c") is None


async def ends(is_there: Callable[[], Awaitable[object]]) -> None:
    """Ask until the answer is no; each question is a round trip to the server."""
    for _ in range(10_000):
        if not await is_there():
            return


@pytest.mark.long
async def test_cancelled_look_ups_never_leave_their_answers_to_others(
    postgres_url: str, opened, frozen_clock
) -> None:
    """A connection whose call was given up is given up as well."""
    one = await opened(postgres_url)
    await one.cache.put(KEY, recording(frozen_clock, b"mine"), 60.0)
    await one.cache.put(OTHER, recording(frozen_clock, b"other"), 60.0)
    for ticks in range(12):
        task = asyncio.create_task(one.cache.get(OTHER))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        assert await one.found() == b"mine"


async def test_closing_leaves_neither_connection_nor_task(postgres_url: str, opened, ask) -> None:
    """In the process and at the server."""
    one = await opened(postgres_url)
    await one.cache.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("cache-")]

    mine = "SELECT pid FROM pg_stat_activity WHERE application_name = 'sameflight' AND datname = current_database()"
    await within(ends(lambda: ask(mine)), "the server has closed its side")
    assert not await ask(mine)


@pytest.mark.long
async def test_a_database_that_is_away_costs_a_few_refusals_and_comes_back(
    private_postgres: PostgresServer, opened, frozen_clock
) -> None:
    """Never an error and never a wait; a purge meanwhile is made up for, and the tables are empty after a crash."""
    one = await opened(private_postgres.create_database(), bounds=HASTY)
    await one.cache.put(KEY, recording(frozen_clock), 60.0)
    private_postgres.stop()
    for _ in range(10):
        assert await one.found() is None
    one.cache.purge()
    assert one.cache.skipped >= 5
    assert not one.cache.up
    private_postgres.start()

    async def back() -> None:
        while not one.cache.up or one.cache.generation.owes:
            frozen_clock.advance(5.0)
            await one.cache.put(KEY, recording(frozen_clock, b"again"), 60.0)
            await asyncio.sleep(0)

    await within(back(), "it is used again", limit_s=30.0)
    await one.cache.put(KEY, recording(frozen_clock, b"again"), 60.0)
    assert await one.found() == b"again"


@pytest.mark.long
async def test_a_database_that_hangs_costs_the_time_out_and_then_nothing(
    private_postgres: PostgresServer, opened, frozen_clock
) -> None:
    """Three calls wait, all others are told at once."""
    one = await opened(private_postgres.create_database(), bounds=HASTY)
    await one.cache.put(KEY, recording(frozen_clock), 60.0)
    private_postgres.suspend()
    try:
        for _ in range(20):
            assert await one.found() is None
        assert one.cache.timeouts + one.cache.errors == 3
        assert one.cache.skipped == 17
    finally:
        private_postgres.resume()
