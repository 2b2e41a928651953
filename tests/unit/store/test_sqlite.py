"""What belongs to a file alone: other writers, bad files, threads that end."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.errors import StoreError
from proxy.store.sqlite import FILE, SqliteStore
from proxy.store.sqlite_worker import Worker, store_error
from tests.fakes.gates import wait_until, within
from tests.fakes.usage import make_key, make_usage


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """A store that waits for other writers for a moment only."""
    store = SqliteStore(tmp_path / "state" / FILE, busy_s=0.05)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    """A thread with a queue of two."""
    worker = Worker("test", lambda: sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False), 2)
    yield worker
    await worker.close()


async def test_the_file_and_its_directory_are_for_their_owner_alone(store: SqliteStore, tmp_path: Path) -> None:
    """Digests of keys and what was spent are nobody else's business."""
    await store.add_key(make_key(1))

    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()} == {0o600}


async def test_a_writer_that_does_not_end_is_a_failure_that_passes(store: SqliteStore, tmp_path: Path) -> None:
    """Another program holds the file; reading goes on meanwhile."""
    await store.add_key(make_key(1))
    other = sqlite3.connect(tmp_path / "state" / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreError) as caught:
        await store.write_usage([make_usage(1)])
    assert (caught.value.why, caught.value.transient) == ("busy", True)
    assert await store.get_key(make_key(1).id) is not None

    other.execute("ROLLBACK")
    other.close()
    assert await store.write_usage([make_usage(1)]) == 1


async def test_a_file_that_is_no_database_needs_somebody_to_act(tmp_path: Path) -> None:
    """It is neither used nor overwritten."""
    (tmp_path / FILE).write_bytes(b"not a database, and long enough to be looked at" * 100)
    store = SqliteStore(tmp_path / FILE)

    with pytest.raises(StoreError) as caught:
        await store.open()

    assert (caught.value.why, caught.value.transient) == ("corrupt", False)
    await store.close()
    assert (tmp_path / FILE).read_bytes().startswith(b"not a database")


async def test_a_directory_that_cannot_be_made_is_a_failure_that_passes(tmp_path: Path) -> None:
    """A volume that is not mounted yet, for one."""
    (tmp_path / "taken").write_text("a file")
    store = SqliteStore(tmp_path / "taken" / "below" / FILE)

    with pytest.raises(StoreError) as caught:
        await store.open()

    assert (caught.value.why, caught.value.transient) == ("unavailable", True)
    await store.close()


async def test_no_thread_is_left_behind(store: SqliteStore) -> None:
    """Closing joins every thread that was needed, twice if somebody likes."""
    await store.get_key("x")
    await store.report("usage", {"since": 0, "until": 1})
    assert {"store-writer", "store-reader", "store-reports"} <= {each.name for each in threading.enumerate()}

    await store.close()
    await store.close()

    assert not [each for each in threading.enumerate() if each.name.startswith("store-")]


async def test_a_full_queue_refuses_the_next_job(worker: Worker) -> None:
    """Nothing piles up behind a disk that hangs."""
    entered, hold = threading.Event(), threading.Event()

    def work(_connection: object, _job: object) -> int:
        entered.set()
        hold.wait(5)
        return 1

    jobs = [asyncio.create_task(worker.run(work, 5.0))]
    await wait_until(entered.is_set, "the first job runs")
    jobs += [asyncio.create_task(worker.run(work, 5.0)) for _ in range(2)]
    await wait_until(lambda: worker.waiting == 2, "two wait")

    with pytest.raises(StoreError) as caught:
        await worker.run(work, 5.0)
    hold.set()

    assert (caught.value.why, worker.refused) == ("busy", 1)
    assert await asyncio.gather(*jobs) == [1, 1, 1]


async def test_a_job_that_is_given_up_is_interrupted_or_never_begins(worker: Worker) -> None:
    """Its caller heard that it failed: it must not take place later."""
    begun: list[str] = []
    entered = threading.Event()

    def forever(connection: sqlite3.Connection, _job: object) -> None:
        entered.set()
        connection.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")

    running = asyncio.create_task(worker.run(forever, 60.0))
    await wait_until(entered.is_set, "the scan runs")
    with pytest.raises(StoreError) as caught:
        await worker.run(lambda _, job: begun.append("late"), 0.0)
    running.cancel()
    await asyncio.wait((running,))

    assert caught.value.why == "timeout"
    assert await within(worker.run(lambda _, job: "next", 5.0), "the next job") == "next"
    assert begun == []


async def test_a_job_that_is_committing_is_waited_for(worker: Worker) -> None:
    """From there on it takes place, and its caller must hear of it, however late it is."""
    entered, hold = threading.Event(), threading.Event()

    def commit(_connection: sqlite3.Connection, job: object) -> str:
        assert job.may_commit()
        entered.set()
        hold.wait(5)
        return "done"

    call = asyncio.create_task(worker.run(commit, 0.01))
    await wait_until(entered.is_set, "it commits")
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.02
    await wait_until(lambda: loop.time() > until, "its time is up")
    hold.set()

    assert await call == "done"


@pytest.mark.parametrize(
    ("code", "why", "transient"),
    [
        (sqlite3.SQLITE_FULL, "full", True),
        (sqlite3.SQLITE_READONLY_DBMOVED, "read_only", True),
        (sqlite3.SQLITE_IOERR_WRITE, "unavailable", True),
        (sqlite3.SQLITE_CORRUPT, "corrupt", False),
        (sqlite3.SQLITE_ERROR, "failed", False),
    ],
)
def test_each_failure_of_the_library_has_its_word(code: int, why: str, transient: bool) -> None:
    """Extended codes mean what their families mean."""
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = code

    judged = store_error(error)

    assert (judged.why, judged.transient) == (why, transient)
