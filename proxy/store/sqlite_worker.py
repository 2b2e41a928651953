"""A thread with one SQLite connection and a bounded queue of jobs, each awaited no longer than its caller likes."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from proxy.errors import StoreError

T = TypeVar("T")

MAX_QUEUE: Final = 1_000
"""Jobs that may wait for one thread; the next one is refused."""

_PRIMARY: Final = 0xFF
_WHY: Final = {
    sqlite3.SQLITE_BUSY: ("busy", True),
    sqlite3.SQLITE_LOCKED: ("busy", True),
    sqlite3.SQLITE_INTERRUPT: ("timeout", True),
    sqlite3.SQLITE_FULL: ("full", True),
    sqlite3.SQLITE_READONLY: ("read_only", True),
    sqlite3.SQLITE_PERM: ("read_only", True),
    sqlite3.SQLITE_AUTH: ("read_only", True),
    sqlite3.SQLITE_IOERR: ("unavailable", True),
    sqlite3.SQLITE_CANTOPEN: ("unavailable", True),
    sqlite3.SQLITE_NOMEM: ("unavailable", True),
    sqlite3.SQLITE_CORRUPT: ("corrupt", False),
    sqlite3.SQLITE_NOTADB: ("corrupt", False),
    sqlite3.SQLITE_CONSTRAINT: ("conflict", False),
    sqlite3.SQLITE_TOOBIG: ("invalid", False),
    sqlite3.SQLITE_MISMATCH: ("invalid", False),
}


def store_error(error: Exception) -> StoreError:
    """What an exception of the library means to the caller."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, (OverflowError, UnicodeError, sqlite3.InterfaceError, sqlite3.ProgrammingError)):
        return StoreError("invalid", str(error), transient=False)
    if isinstance(error, OSError):
        return StoreError("unavailable", str(error))
    code = getattr(error, "sqlite_errorcode", None)
    why, transient = _WHY.get(code & _PRIMARY, ("failed", False)) if code is not None else ("failed", False)
    return StoreError(why, str(error), transient=transient)


class _State(Enum):
    WAITING = 1
    RUNNING = 2
    COMMITTING = 3
    """The caller has to wait for what comes of it."""
    OVER = 4


class Job(Generic[T]):
    """One piece of work on its way through a thread."""

    # `_state` is written by both threads, under `_lock`; `future` belongs to the loop.
    __slots__ = ("_connection", "_lock", "_state", "future", "loop", "work")

    def __init__(self, work: Callable[[sqlite3.Connection, Job[T]], T], loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.loop = loop
        self.future: asyncio.Future[T] = loop.create_future()
        self._lock = threading.Lock()
        self._state = _State.WAITING
        self._connection: sqlite3.Connection | None = None

    def begin(self, connection: sqlite3.Connection) -> bool:
        """In the thread; false when nobody waits for it any more."""
        with self._lock:
            if self._state is not _State.WAITING:
                return False
            self._state, self._connection = _State.RUNNING, connection
            return True

    def may_commit(self) -> bool:
        """In the thread, before the commit: from here on it can no longer be abandoned."""
        with self._lock:
            if self._state is not _State.RUNNING:
                return False
            self._state = _State.COMMITTING
            return True

    def end(self) -> None:
        """In the thread, when it has done with the connection."""
        with self._lock:
            self._state, self._connection = _State.OVER, None

    def abandon(self) -> bool:
        """On the loop; false when it is being committed or over: then its result is about to come."""
        with self._lock:
            if self._state in (_State.COMMITTING, _State.OVER):
                return False
            if self._connection is not None:
                self._connection.interrupt()
            self._state = _State.OVER
            return True


class Worker:
    """Owns the thread and its connection. The thread begins with the first job and ends with ``close``."""

    # Mutable state: `_thread` and `closed` are written on the loop; `_connection` by the thread alone.
    def __init__(self, name: str, connect: Callable[[], sqlite3.Connection], max_queue: int = MAX_QUEUE) -> None:
        self._name = name
        self._connect = connect
        self._queue: queue.Queue[Job[Any] | None] = queue.Queue(max_queue)
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self.closed = False
        self.refused = 0
        """Jobs that found the queue full."""

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    async def run(self, work: Callable[[sqlite3.Connection, Job[T]], T], timeout_s: float) -> T:
        """Run ``work(connection, job)`` in the thread. A job that was given up is undone: it never commits."""
        if self.closed:
            raise StoreError("closed", transient=False)
        job = Job(work, asyncio.get_running_loop())
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            self.refused += 1
            raise StoreError("busy", f"{self._queue.maxsize} jobs wait for the database") from None
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        try:
            await asyncio.wait((job.future,), timeout=timeout_s)
            if not job.future.done() and job.abandon():
                job.future.cancel()
                raise StoreError("timeout", f"not done within {timeout_s:g} s")
            # A commit is under way, or its result is: the disk decides how long it takes.
            return await job.future
        except asyncio.CancelledError:
            job.abandon()
            job.future.cancel()
            raise

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            self._do(job)
        if self._connection is not None:
            self._connection.close()

    def _do(self, job: Job[Any]) -> None:
        result, failure = None, None
        try:
            if self._connection is None:
                self._connection = self._connect()
            if not job.begin(self._connection):
                return
            result = job.work(self._connection, job)
        except Exception as error:  # noqa: BLE001 - a thread has nobody else to tell
            failure = store_error(error)
            if failure.why in ("unavailable", "corrupt") and self._connection is not None:
                # The next job begins with a new connection: the file may be another one by then.
                self._connection.close()
                self._connection = None
        job.end()
        with suppress(RuntimeError):  # the loop was closed: nobody waits
            job.loop.call_soon_threadsafe(_deliver, job.future, result, failure)

    async def close(self) -> None:
        """Let what waits run, close the connection and join the thread."""
        self.closed = True
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        loop = asyncio.get_running_loop()

        def end() -> None:
            self._queue.put(None)
            thread.join()

        await loop.run_in_executor(None, end)


def _deliver(future: asyncio.Future[Any], result: Any, failure: StoreError | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)
