"""The store in PostgreSQL, through asyncpg: transactions that are run anew where that is safe, and never twice.

When the answer to a commit is lost, the transaction's own id tells on another connection whether it took place.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

import asyncpg

from proxy.errors import StoreError
from proxy.store import schema, sql, steps
from proxy.store.base import Watch
from proxy.store.driven import BATCH, LOOK, REPORT, DrivenStore, Work
from proxy.store.postgres_errors import Fate, store_error, verdict_on
from proxy.store.postgres_listen import Listener
from proxy.store.postgres_pool import Pool
from proxy.store.rows import Values

T = TypeVar("T")

_TRIES: Final = 6
_ROLLBACK_S: Final = 1.0
_MIGRATE_S: Final = 600.0
_OUTCOME_S: Final = 10.0
"""Time to learn whether a commit took place whose answer was lost: longer than a restart of the server."""
_OUTCOME_EVERY_S: Final = 0.1
# Behind a lost connection the server would hold locks; it gives up before anybody has to wait for them long.
_IDLE_IN_TRANSACTION_MS: Final = 5_000
_LOCK_SCHEMA: Final = "SELECT pg_advisory_xact_lock(6013409, 1)"
_HAS_SCHEMA: Final = "SELECT to_regclass('sameflight_schema') IS NOT NULL"


class _Transaction(Generic[T]):
    """How far one attempt came."""

    __slots__ = ("asked_to_commit", "id", "result")

    def __init__(self) -> None:
        self.id: int | None = None
        self.asked_to_commit = False
        self.result: T


class PostgresStore(DrivenStore):
    """A ``base.Store`` on a server."""

    # Mutable state, all of the loop's thread: `_ready`, the schema's version, the watches and counters.
    def __init__(
        self,
        url: str,
        *,
        migrate: bool = True,
        pool_size: int = 4,
        max_waiting: int = 64,
        connect_timeout_s: float = 2.0,
        beat_every_s: float = 5.0,
    ) -> None:
        super().__init__()
        self.pool = Pool(url, size=pool_size, max_waiting=max_waiting, connect_timeout_s=connect_timeout_s)
        self._migrate = migrate
        self._connect_timeout_s = connect_timeout_s
        self._beat_every_s = beat_every_s
        self._opening = asyncio.Lock()
        self._ready = False
        self._closed = False
        self._watches: set[Listener] = set()
        self.schema_version = 0
        self.retries = 0
        """Transactions that were run anew."""
        self.timeouts = 0
        self.reconnects = 0
        """Connections that were lost in use."""
        self.read_only_seen = 0
        self.commits_looked_up = 0
        """Commits whose answer was lost and whose outcome was found out."""

    # -- life ------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        async with self._opening:
            if not self._ready:
                self.schema_version = await self._prepare()
                self._ready = True

    async def _open_late(self) -> None:
        """For the first caller after a failed opening; the others do not queue up behind it."""
        if self._opening.locked():
            raise StoreError("unavailable", "the database is being opened")
        self.pool.check_pause()
        await self.open()

    async def _prepare(self) -> int:
        known = schema.migrations("postgres")
        connection = await self.pool.connect(self._connect_timeout_s)
        try:
            async with asyncio.timeout(_MIGRATE_S if self._migrate else self._connect_timeout_s):
                if self._migrate:
                    for migration in known:
                        await _apply(connection, migration)
                version = await _read_version(connection)
        except Exception as error:
            raise store_error(error, verdict_on(error)) from error
        finally:
            connection.terminate()
        schema.check_version(version, len(known))
        return version

    async def close(self) -> None:
        self._closed = True
        for watch in tuple(self._watches):
            await watch.close()
        await self.pool.close()
        self._ready = False

    def describe(self) -> dict[str, Any]:
        pool = self.pool
        return {
            "kind": "postgres",
            "answers": self._ready and pool.answers,
            "schema_version": self.schema_version,
            "pool_size": pool.size,
            "in_use": pool.in_use,
            "idle": pool.idle,
            "waiting": pool.waiting,
            "refused": pool.refused,
            "connects": pool.connects,
            "connect_errors": pool.connect_errors,
            "reconnects": self.reconnects,
            "retries": self.retries,
            "timeouts": self.timeouts,
            "read_only_seen": self.read_only_seen,
            "commits_looked_up": self.commits_looked_up,
            "watches": len(self._watches),
            "watches_alive": sum(watch.alive for watch in self._watches),
            "watch_losses": sum(watch.losses for watch in self._watches),
            **self._counters(),
        }

    # -- running ---------------------------------------------------------------------------------------------

    async def _drive(self, make_steps: Callable[[], steps.Steps[T]], work: Work) -> T:
        async def transact(connection: Any) -> T:
            return await _follow(connection, make_steps())

        return await self._attempts(transact, work)

    async def _insert_usage(self, rows: list[Values]) -> int:
        columns = [list(column) for column in zip(*rows, strict=True)]

        async def insert(connection: Any) -> int:
            status = await connection.execute(sql.WRITE_USAGE.postgres, *columns)
            return int(status.rpartition(" ")[2])

        return await self._attempts(insert, BATCH)

    async def _attempts(self, transact: Callable[[Any], Awaitable[T]], work: Work) -> T:
        """Run a transaction until it succeeds, may not be tried again, or the time is up."""
        if self._closed:
            raise StoreError("closed", transient=False)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + work.timeout_s
        if not self._ready:
            await self._open_late()
        for attempt in range(1, _TRIES + 1):
            transaction: _Transaction[T] = _Transaction()
            connection = await self.pool.acquire(deadline)
            fate = Fate.DROP
            try:
                async with asyncio.timeout_at(deadline):
                    await self._transact(connection, transact, work, transaction)
                fate = Fate.KEEP
            except Exception as error:  # noqa: BLE001 - judged below
                fate, failure, again = self._judge(error)
                if fate is Fate.KEEP:
                    fate = await _roll_back(connection)
            else:
                return transaction.result
            finally:
                self.pool.release(connection, fate)
            if transaction.asked_to_commit and not work.repeatable and fate is not Fate.KEEP:
                if await self._committed(transaction):
                    return transaction.result
                again = True
            if not again or attempt == _TRIES or loop.time() >= deadline:
                raise failure
            self.retries += 1
            if failure.why == "serialization":
                await asyncio.sleep(random.uniform(0.0, 0.005 * 2**attempt))  # noqa: S311
        raise AssertionError("every attempt returns, raises or is followed by another")

    async def _transact(
        self, connection: Any, transact: Callable[[Any], Awaitable[T]], work: Work, transaction: _Transaction[T]
    ) -> None:
        if not work.writes and work is not REPORT:
            transaction.result = await transact(connection)
            return
        await connection.execute(
            "BEGIN ISOLATION LEVEL READ COMMITTED;"
            f" SET LOCAL statement_timeout = {int(work.timeout_s * 1e3)};"
            f" SET LOCAL idle_in_transaction_session_timeout = {_IDLE_IN_TRANSACTION_MS}"
        )
        transaction.result = await transact(connection)
        if not work.repeatable:
            transaction.id = await connection.fetchval("SELECT txid_current()")
        transaction.asked_to_commit = True
        await connection.execute("COMMIT")

    def _judge(self, error: Exception) -> tuple[Fate, StoreError, bool]:
        verdict = verdict_on(error)
        if verdict.why == "timeout":
            self.timeouts += 1
        elif verdict.why == "read_only":
            self.read_only_seen += 1
        elif verdict.why == "unavailable":
            self.reconnects += 1
        return verdict.fate, store_error(error, verdict), verdict.again

    async def _committed(self, transaction: _Transaction[T]) -> bool:
        """Whether a transaction took place whose commit was not answered; waits for a server that restarts."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _OUTCOME_S
        while loop.time() < until:
            status = ""
            with suppress(StoreError):
                status = await self._status_of(transaction, until)
            if status in ("committed", "aborted"):
                self.commits_looked_up += 1
                return status == "committed"
            await asyncio.sleep(_OUTCOME_EVERY_S)
        raise StoreError("unknown_outcome", "the commit was not answered and nobody can tell whether it took place")

    async def _status_of(self, transaction: _Transaction[T], until: float) -> str:
        connection = await self.pool.acquire(until)
        fate = Fate.DROP
        try:
            async with asyncio.timeout_at(until):
                status = await connection.fetchval("SELECT txid_status($1)", transaction.id)
            fate = Fate.KEEP
        except asyncpg.InvalidParameterValueError:
            # A standby took over that never heard of it.
            fate, status = Fate.KEEP, "aborted"
        except Exception as error:
            raise store_error(error, verdict_on(error)) from error
        finally:
            self.pool.release(connection, fate)
        return status or ""

    # -- watching --------------------------------------------------------------------------------------------

    async def watch(self, on_change: Callable[[int], None]) -> Watch:
        async def read_version() -> int:
            return await self._run(steps.newest_version, LOOK)

        if not self._ready:
            await self._open_late()
        watch = Listener(self.pool, read_version, on_change, self._watches.discard, beat_every_s=self._beat_every_s)
        self._watches.add(watch)
        return watch


async def _follow(connection: Any, run: steps.Steps[T]) -> T:
    try:
        statement, values = next(run)
        while True:
            rows = await connection.fetch(statement.postgres, *values)
            statement, values = run.send(rows)
    except StopIteration as done:
        result: T = done.value
        return result


async def _roll_back(connection: Any) -> Fate:
    """Leave a failed transaction; a connection that cannot even do that is dropped."""
    try:
        async with asyncio.timeout(_ROLLBACK_S):
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
    except Exception:  # noqa: BLE001 - the failure that led here is the one that is told
        return Fate.DROP
    return Fate.KEEP


async def _apply(connection: Any, migration: schema.Migration) -> None:
    """One transaction and one lock that ends with it: poolers and crashes leave nothing half done."""
    async with connection.transaction():
        await connection.execute(_LOCK_SCHEMA)
        await connection.execute(schema.CREATE_TABLE)
        if await connection.fetchval(schema.READ_VERSION) < migration.number:
            await connection.execute(migration.script)
            await connection.execute(schema.RECORD_VERSION, migration.number, migration.name, time.time())


async def _read_version(connection: Any) -> int:
    """0 where there is no schema yet."""
    if not await connection.fetchval(_HAS_SCHEMA):
        return 0
    return int(await connection.fetchval(schema.READ_VERSION))
