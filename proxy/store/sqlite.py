"""The store in a file of the state directory, for one machine: no server, several processes.

Writes go through one thread, reads that somebody waits for through another, reports through a third: none of them
waits for a scan, and the loop waits for no disk. WAL lets readers and the one writer work at the same time.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar

from proxy.errors import StoreError
from proxy.store import schema, sql, steps
from proxy.store.base import Watch
from proxy.store.driven import BATCH, LOOK, REPORT, DrivenStore, Work
from proxy.store.rows import Row, Values
from proxy.store.sqlite_worker import Job, Worker

T = TypeVar("T")

# The interpreter is let go of and taken back for each step of a statement, which the loop's thread feels; so a batch
# takes few of them.
_ROWS_AT_ONCE: Final = 64
_WRITE_MANY: Final = sql.repeat_values(sql.WRITE_USAGE.sqlite, _ROWS_AT_ONCE)
FILE: Final = "sameflight.db"
LOOK_EVERY_S: Final = 0.2
"""Time between two looks whether another connection wrote to the file."""
LOOK_ANYWAY_S: Final = 5.0
_OPEN_S: Final = 30.0
_SETUP: Final = (
    "PRAGMA journal_mode = WAL",
    # A spool segment is thrown away once its rows are here: they must be on the disk.
    "PRAGMA synchronous = FULL",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA temp_store = MEMORY",
)


class SqliteStore(DrivenStore):
    """A ``base.Store`` in one file."""

    # Mutable state: `_ready`, the known schema version and the watches, all of the loop's thread.
    def __init__(
        self, path: Path, *, migrate: bool = True, max_queue: int = 1_000, busy_s: float = 5.0
    ) -> None:
        super().__init__()
        self._path = path
        self._migrate = migrate
        self._busy_s = busy_s
        # Another process that writes is waited for in the driver; a caller's own deadline comes after that.
        self._least_s = 2 * busy_s
        self._writer = Worker("store-writer", self._connect, max_queue)
        self._reader = Worker("store-reader", self._connect, max_queue)
        self._reporter = Worker("store-reports", self._connect, max_queue)
        self._watches: set[SqliteWatch] = set()
        self._ready = False
        self._opening = asyncio.Lock()
        self._closed = False
        self.schema_version = 0

    # -- life ------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        async with self._opening:
            if not self._ready:
                self.schema_version = await self._writer.run(self._prepare, _OPEN_S)
                self._ready = True

    async def close(self) -> None:
        self._closed = True
        for watch in tuple(self._watches):
            await watch.close()
        for worker in (self._reporter, self._reader, self._writer):
            await worker.close()
        self._ready = False

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "sqlite",
            "answers": self._ready,
            "schema_version": self.schema_version,
            "waiting": sum(worker.waiting for worker in (self._writer, self._reader, self._reporter)),
            "refused": sum(worker.refused for worker in (self._writer, self._reader, self._reporter)),
            "watches": len(self._watches),
            **self._counters(),
        }

    def _connect(self) -> sqlite3.Connection:
        """In a thread."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            # Made by us, so that nobody else can read it; the WAL gets the same mode.
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = sqlite3.connect(self._path, timeout=self._busy_s, isolation_level=None, check_same_thread=False)
        try:
            connection.row_factory = sqlite3.Row
            for line in _SETUP:
                _patiently(connection, line, self._busy_s)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection, _job: Job[int]) -> int:
        """In the writer's thread: check the schema, and migrate it where that was asked for."""
        known = schema.migrations("sqlite")
        if self._migrate:
            connection.execute(schema.CREATE_TABLE)
            for migration in known:
                _apply(connection, migration)
        version = read_version(connection)
        schema.check_version(version, len(known))
        return version

    # -- running ---------------------------------------------------------------------------------------------

    async def _drive(self, make_steps: Callable[[], steps.Steps[T]], work: Work) -> T:
        if not self._ready:
            await self._open_late()

        def transact(connection: sqlite3.Connection, job: Job[T]) -> T:
            return _transact(connection, job, lambda: _follow(connection, make_steps()), work.writes)

        worker = self._writer if work.writes else self._reporter if work is REPORT else self._reader
        return await worker.run(transact, work.timeout_s if work is REPORT else max(work.timeout_s, self._least_s))

    async def _open_late(self) -> None:
        if self._closed:
            raise StoreError("closed", transient=False)
        await self.open()

    async def _insert_usage(self, rows: list[Values]) -> int:
        if not self._ready:
            await self._open_late()

        def insert(connection: sqlite3.Connection, job: Job[int]) -> int:
            def write() -> int:
                before = connection.total_changes
                whole = len(rows) // _ROWS_AT_ONCE * _ROWS_AT_ONCE
                for at in range(0, whole, _ROWS_AT_ONCE):
                    connection.execute(_WRITE_MANY, [*chain.from_iterable(rows[at : at + _ROWS_AT_ONCE])])
                connection.executemany(sql.WRITE_USAGE.sqlite, rows[whole:])
                return connection.total_changes - before

            return _transact(connection, job, write, writes=True)

        return await self._writer.run(insert, max(BATCH.timeout_s, self._least_s))

    # -- watching --------------------------------------------------------------------------------------------

    async def watch(self, on_change: Callable[[int], None]) -> Watch:
        version = await self._run(steps.newest_version, LOOK)
        watch = SqliteWatch(self, on_change, version)
        self._watches.add(watch)
        return watch

    async def look(self) -> int:
        """The file's change counter; it differs when another connection has written since."""
        return await self._reader.run(_data_version, self._least_s)

    def forget(self, watch: SqliteWatch) -> None:
        self._watches.discard(watch)


class SqliteWatch:
    """Looks at the file five times a second and at the versions when it was written to."""

    # Mutable state, written by its task alone: `alive`, `_version` and what the file looked like.
    def __init__(self, store: SqliteStore, on_change: Callable[[int], None], version: int) -> None:
        self._store = store
        self._on_change = on_change
        self._version = version
        self.alive = True
        self._task = asyncio.get_running_loop().create_task(self._look_on(), name="store-watch")

    async def close(self) -> None:
        self._store.forget(self)
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _look_on(self) -> None:
        loop = asyncio.get_running_loop()
        seen, looked_at = -1, 0.0
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                now = await self._store.look()
                if now == seen and loop.time() - looked_at < LOOK_ANYWAY_S:
                    continue
                version = await self._store._run(steps.newest_version, LOOK)
            except StoreError:
                self.alive = False
                continue
            seen, looked_at = now, loop.time()
            if version != self._version or not self.alive:
                self.alive, self._version = True, version
                self._on_change(version)


def _transact(connection: sqlite3.Connection, job: Job[T], work: Callable[[], T], writes: bool) -> T:
    connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
    try:
        result = work()
        if not job.may_commit():
            raise StoreError("timeout", "given up")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return result


def _follow(connection: sqlite3.Connection, run: steps.Steps[T]) -> T:
    try:
        statement, values = next(run)
        while True:
            named = {str(number): value for number, value in enumerate(values, 1)}
            rows: list[Row] = connection.execute(statement.sqlite, named).fetchall()
            statement, values = run.send(rows)
    except StopIteration as done:
        result: T = done.value
        return result


def _apply(connection: sqlite3.Connection, migration: schema.Migration) -> None:
    connection.execute("BEGIN EXCLUSIVE")
    try:
        if read_version(connection) < migration.number:
            for statement in schema.statements_of(migration.script):
                connection.execute(statement)
            row = {"1": migration.number, "2": migration.name, "3": time.time()}
            connection.execute(schema.RECORD_VERSION, row)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def read_version(connection: sqlite3.Connection) -> int:
    """0 where there is no schema yet."""
    if not _first(connection, "SELECT count(*) FROM sqlite_master WHERE name = 'sameflight_schema'"):
        return 0
    return int(_first(connection, schema.READ_VERSION))


def _data_version(connection: sqlite3.Connection, _job: Job[int]) -> int:
    return int(_first(connection, "PRAGMA data_version"))


def _first(connection: sqlite3.Connection, statement: str) -> Any:
    return connection.execute(statement).fetchone()[0]


def _patiently(connection: sqlite3.Connection, statement: str, busy_s: float) -> None:
    """In a thread. The change to WAL does not wait for others by itself."""
    gives_up_at = time.monotonic() + busy_s
    while True:
        try:
            connection.execute(statement).fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > gives_up_at:
                raise
            time.sleep(0.01)
        else:
            return
