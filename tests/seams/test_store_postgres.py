"""PostgreSQL restarts, hangs, changes its nature, is cut off and full: the store says so in time, and recovers."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from proxy.config.keys import Allowance, Budget
from proxy.errors import StoreError
from proxy.store import schema, sql
from proxy.store.postgres import PostgresStore
from proxy.store.postgres_errors import Fate, verdict_on
from tests.fakes import databases
from tests.fakes.databases import PostgresServer
from tests.fakes.gates import wait_until, within
from tests.fakes.relay import Once, Relay
from tests.fakes.usage import HOLDER, NOON, make_key, make_usage

COMMIT = b"COMMIT\0"
DAY = Budget(1_000, "day")
ALWAYS = {"since": 0.0, "until": 1e12, "by": "all"}

Opener = Callable[..., Awaitable[PostgresStore]]


@pytest.fixture
async def open_postgres() -> AsyncIterator[Opener]:
    """Opens stores at URLs and closes them."""
    opened: list[PostgresStore] = []

    async def open_at(url: str, **options: Any) -> PostgresStore:
        store = PostgresStore(url, **options)
        opened.append(store)
        await store.open()
        return store

    yield open_at
    for store in opened:
        await store.close()


@pytest.fixture
async def relay(postgres: PostgresServer) -> AsyncIterator[Relay]:
    """Between the store and the server of the session."""
    async with Relay(postgres.port) as relay:
        yield relay


def through(relay: Relay, url: str) -> str:
    """The same database by way of the relay."""
    name = url.rpartition("/")[2]
    return f"postgresql://postgres:not-a-secret@127.0.0.1:{relay.port}/{name}?sslmode=disable"


async def fails(awaitable: Awaitable[Any], *whys: str, limit_s: float = 5.0) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await within(awaitable, "the store gave up", limit_s)
    assert caught.value.why in whys, caught.value
    assert caught.value.transient
    return caught.value


async def answers_again(store: PostgresStore) -> None:
    """Until the pause after the last failure is over."""
    for _ in range(10_000):
        try:
            await within(store.get_key("key_x"), "an answer")
        except StoreError:
            await wait_until(lambda: asyncio.get_running_loop().time() >= store.pool._retry_at, "the pause is over")
        else:
            return


# -- the server goes away --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [signal.SIGQUIT, *(pytest.param(how, marks=pytest.mark.long) for how in (signal.SIGKILL, signal.SIGINT))]
)
async def test_a_server_that_restarted_between_two_calls_is_not_noticed(
    private_postgres: PostgresServer, open_postgres: Opener, how: signal.Signals
) -> None:
    """The connections it left behind are replaced, and the call is run on a new one."""
    store = await open_postgres(private_postgres.create_database())
    await store.add_key(make_key(1))

    private_postgres.restart(how)

    assert await store.get_key(make_key(1).id) is not None
    private_postgres.restart(how)
    assert await store.write_usage([make_usage(1)]) == 1


async def test_while_the_server_is_down_every_call_says_so_at_once_and_afterwards_all_is_well(
    private_postgres: PostgresServer, open_postgres: Opener
) -> None:
    """Nobody queues up behind a server that does not answer; connecting is tried by one at a time."""
    store = await open_postgres(private_postgres.create_database())
    await store.add_key(make_key(1))
    private_postgres.stop()

    await asyncio.gather(*(fails(store.get_key("key_x"), "unavailable", limit_s=2.0) for _ in range(50)))
    await fails(store.write_usage([make_usage(1)]), "unavailable")
    assert not store.describe()["answers"]
    assert store.describe()["connect_errors"] < 20

    private_postgres.start()
    await answers_again(store)
    assert store.describe()["answers"]
    assert await store.write_usage([make_usage(1)]) == 1


async def test_a_store_that_could_not_be_opened_opens_itself_later(private_postgres: PostgresServer) -> None:
    """A process that starts before its database is of use once that is there."""
    url = private_postgres.create_database()
    private_postgres.stop()
    store = PostgresStore(url)
    await fails(store.open(), "unavailable")
    await asyncio.gather(*(fails(store.get_key("key_x"), "unavailable", limit_s=2.0) for _ in range(50)))
    assert store.describe()["connect_errors"] <= 2
    private_postgres.start()

    await answers_again(store)

    assert store.describe()["schema_version"] == len(schema.migrations("postgres"))
    await store.close()


async def test_a_server_that_hangs_costs_a_second_and_no_more_than_the_pool(
    private_postgres: PostgresServer, open_postgres: Opener
) -> None:
    """SIGSTOP: connections stay open and new ones are accepted by the kernel, but nobody is there."""
    store = await open_postgres(private_postgres.create_database(), connect_timeout_s=0.5)
    await store.add_key(make_key(1))
    private_postgres.suspend()

    calls = [asyncio.create_task(fails(store.find_key(b"x"), "timeout", "unavailable")) for _ in range(20)]
    await wait_until(lambda: store.pool.in_use, "a call is under way")
    assert store.pool.in_use <= store.pool.size
    began = asyncio.get_running_loop().time()
    await asyncio.gather(*calls)
    assert asyncio.get_running_loop().time() - began < 2.0

    private_postgres.resume()
    await answers_again(store)
    assert await store.find_key(make_key(1).digest) is not None


async def test_a_black_hole_is_given_up_and_a_new_connection_leads_out_of_it(
    relay: Relay, postgres_url: str, open_postgres: Opener
) -> None:
    """Packets vanish on the old connections: their deadline ends them all at once."""
    store = await open_postgres(through(relay, postgres_url))
    await asyncio.gather(*(store.get_key("key_x") for _ in range(3)))
    for link in relay.links:
        link.stalled = True

    await fails(store.find_key(b"x"), "timeout")

    assert store.pool.idle == 0
    assert await store.find_key(b"x") is None
    assert store.describe()["timeouts"] == 1


def test_the_kernel_watches_the_sockets() -> None:
    """TCP_USER_TIMEOUT and keepalives, for what no deadline covers: a connection that idles."""

    class Socket:
        family = databases.socket.AF_INET

        def __init__(self) -> None:
            self.options: dict[int, int] = {}

        def setsockopt(self, _level: int, option: int, value: int) -> None:
            self.options[option] = value

    class Transport:
        socket = Socket()

        def get_extra_info(self, _name: str) -> Socket:
            return self.socket

    from proxy.store.postgres_pool import _guard_socket

    connection = type("Connection", (), {"_transport": Transport()})()
    _guard_socket(connection)

    assert connection._transport.socket.options[databases.socket.TCP_USER_TIMEOUT] <= 10_000
    assert databases.socket.SO_KEEPALIVE in connection._transport.socket.options


# -- the server changes its nature -----------------------------------------------------------------------------


async def test_a_server_that_became_read_only_is_left_and_looked_for_again(
    private_postgres: PostgresServer, open_postgres: Opener
) -> None:
    """After a failover the old primary lives on as a standby: 25006 ends all connections to it."""
    store = await open_postgres(private_postgres.create_database())
    await store.add_key(make_key(1))
    private_postgres.psql("ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()")
    await wait_until(lambda: any("reloading" in line for line in private_postgres.log), "the server took notice")

    failed = await _fails_in_the_end(store)
    assert failed.why == "read_only"
    assert failed.transient
    assert store.pool.idle == 0
    assert store.describe()["errors"]["read_only"] >= 1

    private_postgres.psql(
        "SET default_transaction_read_only = off; ALTER SYSTEM RESET default_transaction_read_only;"
        " SELECT pg_reload_conf()"
    )
    await answers_again(store)
    assert await store.write_usage([make_usage(1)]) in (0, 1)


async def _fails_in_the_end(store: PostgresStore) -> StoreError:
    """A backend reads its settings between two statements, some time after it was told."""
    for number in range(2, 200):
        try:
            await store.add_key(make_key(number))
        except StoreError as error:
            return error
    raise AssertionError("the server never became read-only")


@pytest.mark.long
async def test_writes_resume_on_the_standby_within_ten_seconds_of_its_promotion(
    private_postgres: PostgresServer, open_postgres: Opener
) -> None:
    """The URL names both; the store finds the one that takes writes."""
    primary = private_postgres
    url = primary.create_database()
    standby = PostgresServer(f"primary_conninfo=host=127.0.0.1 port={primary.port} user=postgres")
    standby.clear()
    standby._at.run("pg_basebackup", "-D", str(standby.data), "-d", primary.url("postgres"), "-c", "fast")
    (standby.data / "standby.signal").touch()
    standby.start()
    try:
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        store = await open_postgres(url.replace(f"127.0.0.1:{primary.port}", hosts))
        await store.write_usage([make_usage(1)])
        written = f"SELECT pg_last_wal_replay_lsn() >= '{primary.psql('SELECT pg_current_wal_lsn()')}'"
        await wait_until(lambda: standby.psql(written) == "t", "the standby has the row", 10.0)
        began = asyncio.get_running_loop().time()

        primary.stop(signal.SIGKILL)
        standby.psql("SELECT pg_promote()")
        await answers_again(store)

        assert await store.write_usage([make_usage(1), make_usage(2)]) == 1
        assert asyncio.get_running_loop().time() - began < 10.0
        await store.close()
    finally:
        standby.stop()


async def test_too_many_connections_pass(open_postgres: Opener) -> None:
    """Others have taken them all: a transient failure, and a pause before the next attempt."""
    databases._need_postgres()
    server = PostgresServer("max_connections=4", "superuser_reserved_connections=0", "max_wal_senders=0")
    server.start()
    try:
        url = server.create_database()
        store = await open_postgres(url)
        greedy: list[Any] = []
        with suppress(asyncpg.TooManyConnectionsError):
            while len(greedy) < 10:
                greedy.append(await asyncpg.connect(url))
        assert len(greedy) < 10

        await fails(store.get_key("key_x"), "too_many_connections")
        for each in greedy:
            await each.close()

        await answers_again(store)
        await store.close()
    finally:
        server.stop()


async def fail_inserts(url: str, state: str, times: int) -> None:
    """Let the next statements that write usage fail with an SQLSTATE."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "CREATE SEQUENCE failures;"
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF nextval('failures') <= {times} THEN RAISE EXCEPTION 'told to' USING ERRCODE = '{state}'; END IF;"
        " RETURN NULL; END $$;"
        "CREATE TRIGGER fail BEFORE INSERT ON usage FOR EACH STATEMENT EXECUTE FUNCTION fail()"
    )
    await connection.close()


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_a_batch_that_met_a_deadlock_or_a_conflict_is_run_again(
    postgres_url: str, open_postgres: Opener, state: str
) -> None:
    """The caller hears nothing of it, and every row is written once."""
    store = await open_postgres(postgres_url)
    await fail_inserts(postgres_url, state, 3)

    assert await store.write_usage([make_usage(1), make_usage(2)]) == 2
    assert store.describe()["retries"] == 3


async def test_a_full_disk_is_a_failure_that_passes(postgres_url: str, open_postgres: Opener) -> None:
    """The spool keeps the rows until somebody made room."""
    store = await open_postgres(postgres_url)
    await fail_inserts(postgres_url, "53100", 1)

    await fails(store.write_usage([make_usage(1)]), "full")
    assert await store.write_usage([make_usage(1)]) == 1
    assert store.describe()["retries"] == 0


@pytest.mark.parametrize(
    ("error", "why", "transient", "fate"),
    [
        (asyncpg.ReadOnlySQLTransactionError("x"), "read_only", True, Fate.DROP_ALL),
        (asyncpg.AdminShutdownError("x"), "unavailable", True, Fate.DROP_ALL),
        (asyncpg.CannotConnectNowError("x"), "unavailable", True, Fate.DROP_ALL),
        (asyncpg.TooManyConnectionsError("x"), "too_many_connections", True, Fate.DROP),
        (asyncpg.DiskFullError("x"), "full", True, Fate.KEEP),
        (asyncpg.DeadlockDetectedError("x"), "serialization", True, Fate.KEEP),
        (asyncpg.SerializationError("x"), "serialization", True, Fate.KEEP),
        (asyncpg.QueryCanceledError("x"), "timeout", True, Fate.KEEP),
        (asyncpg.UniqueViolationError("x"), "conflict", False, Fate.KEEP),
        (asyncpg.InvalidPasswordError("x"), "refused", False, Fate.DROP),
        (asyncpg.UndefinedTableError("x"), "schema", False, Fate.KEEP),
        (asyncpg.InterfaceError("connection is closed"), "unavailable", True, Fate.DROP_ALL),
        (ConnectionResetError(), "unavailable", True, Fate.DROP_ALL),
        (TimeoutError(), "timeout", True, Fate.DROP_ALL),
        (OverflowError(), "invalid", False, Fate.KEEP),
        (RuntimeError(), "failed", False, Fate.DROP),
    ],
)
def test_each_failure_has_its_verdict(error: Exception, why: str, transient: bool, fate: Fate) -> None:
    """What it means to the caller and what becomes of the connection."""
    verdict = verdict_on(error)

    assert (verdict.why, verdict.transient, verdict.fate) == (why, transient, fate)


# -- a commit whose answer is lost -----------------------------------------------------------------------------


async def test_a_batch_whose_commit_was_not_answered_is_written_once(
    relay: Relay, postgres_url: str, open_postgres: Opener
) -> None:
    """It took place; running it again is a no-op."""
    store = await open_postgres(through(relay, postgres_url))
    relay.rule = cut = Once(COMMIT, "swallow")

    await store.write_usage([make_usage(number) for number in range(10)])

    assert cut.hits == 1
    [row] = await store.report("usage", ALWAYS)
    assert row["requests"] == 10
    assert store.describe()["rows_replayed"] == 10


@pytest.mark.parametrize("what", ["swallow", "cut"])
async def test_a_key_whose_commit_was_not_answered_is_added_once_and_its_record_returned(
    relay: Relay, postgres_url: str, open_postgres: Opener, what: str
) -> None:
    """Whether it took place or not is looked up by the transaction's id; no conflict with itself."""
    store = await open_postgres(through(relay, postgres_url))
    relay.rule = cut = Once(COMMIT, what)

    added = await store.add_key(make_key(1))

    assert cut.hits == 1
    assert added == await store.get_key(added.id)
    about = store.describe()
    assert (about["commits_looked_up"], about["retries"]) == (1, 0 if what == "swallow" else 1)


async def test_a_lease_whose_commit_was_not_answered_is_not_lost(
    relay: Relay, postgres_url: str, open_postgres: Opener
) -> None:
    """What the holder has by the store's books says what was granted in all."""
    store = await open_postgres(through(relay, postgres_url))
    relay.rule = Once(COMMIT, "swallow")

    lease = await store.lease("key:k", DAY, HOLDER, need=100, want=100, lasts_s=60.0)

    assert (lease.picodollars, lease.held_picodollars) == (100, 200)
    assert await store.spent("key:k", DAY) == (0, 200)


# -- the pool --------------------------------------------------------------------------------------------------


async def test_no_more_than_a_bounded_number_waits(postgres_url: str, open_postgres: Opener) -> None:
    """The one connection is held up by a lock; two may wait for it, the next is refused."""
    store = await open_postgres(postgres_url, pool_size=1, max_waiting=2)
    await store.lease("key:k", DAY, HOLDER, need=1, want=1, lasts_s=60.0)
    other = await asyncpg.connect(postgres_url)
    blocking = other.transaction()
    await blocking.start()
    await other.execute("SELECT 1 FROM budgets FOR UPDATE")

    held_up = asyncio.create_task(store.lease("key:k", DAY, HOLDER, need=1, want=1, lasts_s=60.0))
    await wait_until(lambda: store.pool.in_use == 1, "the connection is in use")
    waiting = [asyncio.create_task(store.get_key("key_x")) for _ in range(2)]
    await wait_until(lambda: store.pool.waiting == 2, "two wait")
    await fails(store.get_key("key_x"), "busy")
    assert store.describe()["refused"] == 1

    await blocking.rollback()
    await other.close()
    assert (await within(held_up, "the lease")).held_picodollars == 2
    assert await asyncio.gather(*waiting) == [None, None]


async def test_versions_are_committed_in_their_order(postgres_url: str, open_postgres: Opener) -> None:
    """A change that began earlier and ends later has the higher version: nobody who asked in between misses it."""
    store = await open_postgres(postgres_url)
    first, second = await store.add_key(make_key(1)), await store.add_key(make_key(2))
    other = await asyncpg.connect(postgres_url)
    slow = other.transaction()
    await slow.start()
    await other.execute("UPDATE api_keys SET name = 'slow' WHERE id = $1", first.id)

    quick = asyncio.create_task(store.change_key(second.id, {"name": "quick"}))
    await wait_until(lambda: store.pool.in_use == 1, "the other change is under way")
    seen = await store.changes_since(second.version)
    await slow.commit()
    await other.close()
    await within(quick, "the quick change")
    after = await store.changes_since(seen.version)

    assert seen.keys == []
    assert [key.name for key in after.keys] == ["slow", "quick"]


# -- news ------------------------------------------------------------------------------------------------------


async def test_thousands_of_changes_in_one_transaction_are_one_piece_of_news(
    postgres: PostgresServer, postgres_url: str, open_postgres: Opener
) -> None:
    """A storm of revocations must not become a storm of notifications."""
    store = await open_postgres(postgres_url)
    await store.add_key(make_key(1))
    heard: list[int] = []
    watch = await store.watch(heard.append)
    await wait_until(lambda: len(heard) == 1, "the watch began")
    copy = ", ".join(name for name in sql.KEY_COLUMNS if name not in ("id", "digest"))
    statements = (
        f"BEGIN; INSERT INTO api_keys (id, digest, {copy}) SELECT 'key_s' || n, decode(md5(n::text), 'hex'), {copy}"
        " FROM api_keys, generate_series(1, 3000) n;"
        "UPDATE api_keys SET revoked_at = 1 WHERE id < 'key_s5'; UPDATE api_keys SET revoked_at = 2; COMMIT"
    )

    await asyncio.to_thread(postgres.psql, statements, postgres_url.rpartition("/")[2])
    last = await store.add_key(make_key(2))
    await wait_until(lambda: heard[-1] == last.version, "the last change was heard of")

    assert len(heard) == 3
    assert len((await store.changes_since(heard[0], 10_000)).keys) == 3_002
    await watch.close()


async def test_a_dead_listening_connection_is_noticed_and_replaced_with_a_full_look(
    relay: Relay, postgres_url: str, open_postgres: Opener
) -> None:
    """It is open and silent: no echo of the listener's own call, so it is given up; what was missed is told."""
    direct = await open_postgres(postgres_url)
    store = await open_postgres(through(relay, postgres_url), beat_every_s=0.05)
    heard: list[int] = []
    watch = await store.watch(heard.append)
    watch._echo_within_s = 0.5
    await wait_until(lambda: watch.alive, "the watch hears")

    relay.link_that_said(b"LISTEN").stalled = True
    missed = await direct.add_key(make_key(1))
    await wait_until(lambda: heard[-1:] == [missed.version], "what was missed was told")

    assert watch.losses >= 1
    later = await direct.change_key(missed.id, {"name": "x"})
    await wait_until(lambda: heard[-1:] == [later.version], "news arrive again")
    await watch.close()


async def test_a_listener_outlives_a_restart(private_postgres: PostgresServer, open_postgres: Opener) -> None:
    """It says that it hears nothing, connects again and tells what it finds."""
    store = await open_postgres(private_postgres.create_database())
    heard: list[int] = []
    watch = await store.watch(heard.append)
    await wait_until(lambda: watch.alive, "the watch hears")
    heard.clear()

    private_postgres.stop()
    await wait_until(lambda: not watch.alive, "the loss was noticed")
    private_postgres.start()

    await wait_until(lambda: watch.alive and heard, "the watch hears again")
    await watch.close()


# -- a pooler in between ---------------------------------------------------------------------------------------


@pytest.fixture
def pgbouncer(postgres: PostgresServer, tmp_path: Path) -> Iterator[int]:
    """PgBouncer in transaction mode with one connection to the server; its port."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if program is None:
        pytest.skip("needs pgbouncer")
    home = databases._install().directory("pgbouncer")
    port = databases._free_port()
    users, settings = home / "users.txt", home / "pgbouncer.ini"
    users.write_text('"postgres" "not-a-secret"\n')
    settings.write_text(
        f"[databases]\n* = host=127.0.0.1 port={postgres.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {users}\npool_mode = transaction\n"
        "default_pool_size = 2\n"
    )
    for path in (users, settings):
        path.chmod(0o644)
    identity = databases._as_server_user()
    process = subprocess.Popen([program, str(settings)], stderr=subprocess.PIPE, text=True, cwd=home, **identity)
    assert process.stderr is not None
    for line in process.stderr:
        if "process up" in line:
            break
    yield port
    process.terminate()
    process.wait(10)
    process.stderr.close()


async def test_everything_but_listening_works_through_a_pooler_in_transaction_mode(
    pgbouncer: int, postgres_url: str, open_postgres: Opener
) -> None:
    """No statement leans on a session; the watch finds out that it hears nothing and says so."""
    url = f"postgresql://postgres:not-a-secret@127.0.0.1:{pgbouncer}/{postgres_url.rpartition('/')[2]}"
    one, two = await open_postgres(url), await open_postgres(url)
    heard: list[int] = []
    watch = await one.watch(heard.append)
    watch._echo_within_s = 0.1

    async def work(store: PostgresStore, number: int) -> None:
        key = await store.add_key(make_key(number))
        assert await store.change_key(key.id, {"name": f"new {number}"})
        assert await store.find_key(key.digest)
        await store.set_allowance(Allowance("team", f"acme/{number}"))
        lease = await store.lease("key:k", DAY, HOLDER, need=10, want=10, lasts_s=60.0)
        await store.settle("key:k", lease.window, HOLDER, spent_total=number, returned_total=0)
        assert await store.write_usage([make_usage(number)]) == 1
        assert await store.report("usage", ALWAYS)

    await asyncio.gather(*(work((one, two)[number % 2], number) for number in range(20)))

    assert await one.spent("key:k", DAY) == (19, 181)
    assert len(await two.list_keys()) == 20
    await wait_until(lambda: watch.deaf, "the watch gave up")
    assert (watch.alive, heard) == (False, [])
    assert one.describe()["errors"] == {}
    await watch.close()


# -- plans -----------------------------------------------------------------------------------------------------

_DUMMY = {"text": "x", "float8": 1.0, "int8": 1, "int4": 1, "bytea": b"x", "bool": True}
_BATCH = {"text": ["x"], "float8": [1.0], "int8": [1], "int4": [1], "bool": [True]}


# What a statement is run with, where its plan depends on it.
_DAY: dict[int, Any] = {1: NOON + 86_400, 2: NOON + 2 * 86_400, 3: "", 4: "", 5: "", 6: "", 7: 100}
_VALUES: dict[str, dict[int, Any]] = {
    **{each.name: _DAY for each in sql.USAGE_BY.values()},
    "changed_keys": {1: 99_000, 2: 100_000, 3: 1_000},
    "changed_allowances": {1: 19_000, 2: 20_000, 3: 1_000},
    "list_keys": {1: "key_0", 2: 0, 3: 100},
    "list_keys_of_tenant": {1: "", 2: 0, 3: 100, 4: "tenant 5"},
    "list_keys_of_team": {1: "", 2: 0, 3: 100, 4: "team 5"},
    "list_keys_of_tenants_team": {1: "", 2: 0, 3: 100, 4: "tenant 5", 5: "team 5"},
    "valid_name": {1: "tenant 5", 2: "name 5", 3: 1.0, 4: ""},
    "billed": {1: "req_000000000005", 2: "req_000000000005g", 3: 0.0, 4: 1e12, 5: "tenant", 6: "acme"},
    "expired_leases": {1: 1_000.0, 2: 100},
    "was_after": {1: 19_900},
    "last_change": {1: 19_900},
    "list_changes": {1: 19_900, 2: 20},
    "list_changes_of": {1: 19_900, 2: 20, 3: "guard:7"},
}


async def plan_of(connection: Any, statement: sql.Statement, values: dict[int, Any] | None = None) -> str:
    prepared = await connection.prepare(statement.postgres)
    arguments = [
        (values or {}).get(number, _BATCH[kind.name[:-2]] if kind.name.endswith("[]") else _DUMMY[kind.name])
        for number, kind in enumerate(prepared.get_parameters(), 1)
    ]
    return "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {statement.postgres}", *arguments))


def has_its_plan(statement: sql.Statement, plan: str) -> bool:
    return all(any(choice in plan for choice in each.split("|")) for each in statement.plan)


async def test_every_statement_can_be_served_by_its_index(postgres_url: str, open_postgres: Opener) -> None:
    """Where scanning a table costs too much, as it will once there is something in it."""
    await open_postgres(postgres_url)
    connection = await asyncpg.connect(postgres_url, statement_cache_size=0)
    await connection.execute(f"{_MANY_KEYS.format(keys=5_000)}; {_MANY_ROWS.format(noon=NOON, rows=5_000)}; ANALYZE")
    await connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off")

    wrong = {}
    for statement in sql.ALL.values():
        plan = await plan_of(connection, statement, _VALUES.get(statement.name))
        if not has_its_plan(statement, plan) or "Seq Scan" in plan:
            wrong[statement.name] = plan

    await connection.close()
    assert wrong == {}


_MANY_KEYS = (
    "INSERT INTO api_keys SELECT 'key_' || lpad(to_hex(n), 16, '0'), sha256(n::text::bytea), 'name ' || n,"
    " 'tenant ' || n % 500, 'team ' || n % 2000, '[]', '[]', 0, 0, 0, NULL, NULL, 'key', 'default', 'first', 0, '[]',"
    " 0, 0, n FROM generate_series(1, {keys}) n"
)
_MANY_ROWS = (
    "INSERT INTO usage SELECT 'req_' || lpad(to_hex(n / 10000), 12, '0') || to_hex(n), {noon} + n * 2.592,"
    " 'key_' || lpad(to_hex(n % 1000), 16, '0'), 'acme', 'red', 'openai', 'chat', 'm' || n % 20, 'leader', 'ok', 200,"
    " false, false, 10, 10, 0, 20, 0, 700, 700, 0, 1, n % 1000, 1, n, '' FROM generate_series(1, {rows}) n"
)
_MANY_BUDGETS = (
    "INSERT INTO budgets SELECT 'key:' || n, '2025-11', 0, 0, 1 FROM generate_series(1, 50000) n;"
    "INSERT INTO leases SELECT 'key:' || n, 'req_' || n % 7, '2025-11', 10, n % 2 * 10, 0, n"
    " FROM generate_series(1, 50000) n;"
    "INSERT INTO allowances SELECT 'team', 'acme/' || n, 0, 0, 0, NULL, NULL, n FROM generate_series(1, 20000) n;"
    "INSERT INTO flags SELECT 'tiers', 'tenant', 'tenant ' || n, 0 FROM generate_series(1, 5000) n;"
    "INSERT INTO flag_audit SELECT n, 'guard:' || n % 100, 'tenant', 'tenant ' || n % 1000, 0, 100, n, 'x', '', NULL"
    " FROM generate_series(1, 20000) n"
)


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_with_a_million_rows_every_statement_uses_its_index(
    postgres: PostgresServer, postgres_url: str, open_postgres: Opener
) -> None:
    """As the planner chooses by itself: a month of usage, a report over a day, a hundred thousand keys."""
    store = await open_postgres(postgres_url)
    keys, rows = _MANY_KEYS.format(keys=100_000), _MANY_ROWS.format(noon=NOON, rows=1_000_000)
    fill = f"{keys}; {rows}; {_MANY_BUDGETS}; ANALYZE"
    await asyncio.to_thread(postgres.psql, fill, postgres_url.rpartition("/")[2])
    connection = await asyncpg.connect(postgres_url, statement_cache_size=0)
    whole = {"list_allowances", "list_flags"}  # read all there is

    wrong = {}
    for statement in sql.ALL.values():
        plan = await plan_of(connection, statement, _VALUES.get(statement.name))
        if statement.name not in whole and (not has_its_plan(statement, plan) or "Seq Scan" in plan):
            wrong[statement.name] = plan
    await connection.close()

    assert wrong == {}
    report = await store.report("usage", {"since": _DAY[1], "until": _DAY[2], "by": "model", "key_id": ""})
    assert sum(row["requests"] for row in report) == pytest.approx(86_400 / 2.592, abs=2)


@pytest.mark.long
async def test_usage_is_written_at_twenty_thousand_rows_a_second(postgres_url: str, open_postgres: Opener) -> None:
    """The best of ten batches: the machine may have other things to do."""
    store = await open_postgres(postgres_url)
    loop = asyncio.get_running_loop()
    rates = [0.0]
    for batch in range(10):
        if max(rates) >= 20_000:
            break
        records = [make_usage(batch * 20_000 + number) for number in range(20_000)]
        began = loop.time()
        assert await store.write_usage(records) == 20_000
        rates.append(20_000 / (loop.time() - began))

    assert max(rates) >= 20_000, rates
