"""The spool of one process: what is kept where, and what happens when the disk does not play along."""

from __future__ import annotations

import errno
import itertools
import mmap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.accounting.directory import inherit
from proxy.accounting.record import UsageRecord
from proxy.accounting.recovery import Estate
from proxy.accounting.spool import Spool
from proxy.errors import Kind, ProxyError
from tests.fakes.spool import (
    SEGMENT_BYTES,
    FakeStore,
    FaultyDisk,
    ids_of,
    kill,
    make_ledger,
    make_record,
    make_spool,
    open_record,
    settle,
    write_records,
)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = make_spool(tmp_path)
    yield made
    made.close()


async def left_by(spool: Spool, root: Path) -> list[UsageRecord]:
    """The rows that an heir finds after the process was killed."""
    kill(spool)
    home = inherit(root)
    assert home is not None
    estate = Estate(home)
    rows = []
    while batch := await estate.read(100):
        rows += batch
    estate.leave()
    return rows


def files(root: Path, pattern: str = "*.seg") -> list[Path]:
    return list(root.rglob(pattern))


async def test_records_reach_the_store_in_their_order_and_once(tmp_path: Path, spool: Spool) -> None:
    """The plain case, over several segments."""
    store = FakeStore()
    ledger = make_ledger(tmp_path, spool, store)
    records = []
    for part in range(10):
        records += write_records(spool, range(part * 100, part * 100 + 100))
        spool.upkeep.work()
        await settle(ledger)

    assert list(store.rows.values()) == records
    assert (ledger.flushed, ledger.new_rows) == (1000, 1000)
    assert (spool.pending_records, spool.pending_bytes, spool.running) == (0, 0, 0)
    assert len(spool.segments) == 1


async def test_a_killed_process_leaves_its_closed_records_and_its_open_ones(tmp_path: Path) -> None:
    """No call was made that would have told the disk: the kernel has the pages."""
    spool = make_spool(tmp_path)
    closed = write_records(spool, range(5))
    open_record(spool, make_record(99), reserved=4242)

    rows = await left_by(spool, tmp_path)

    assert rows[:5] == closed
    assert [(row.request_id, row.outcome, row.cost_picodollars) for row in rows[5:]] == [
        (make_record(99).request_id, "lost", 4242)
    ]


@pytest.mark.parametrize("ends", [True, False])
async def test_a_request_that_outlives_many_segments_pins_none_and_is_not_forgotten(
    tmp_path: Path, ends: bool
) -> None:
    """A stream of an hour is written again into newer segments, and the old ones go."""
    spool = make_spool(tmp_path)
    store = FakeStore()
    ledger = make_ledger(tmp_path, spool, store)
    stream = make_record(0xFFFF, streams=True)
    open_record(spool, stream)
    for part in range(40):
        write_records(spool, range(part * 100, part * 100 + 100))
        spool.upkeep.work()
        await settle(ledger)

    assert spool.carried > 0
    assert len(spool.segments) <= 5
    if ends:
        spool.close_record(stream)
        await settle(ledger)
        assert store.rows[stream.request_id] == stream
        assert len(store.rows) == 4001
    assert ids_of(await left_by(spool, tmp_path)) == ([] if ends else [stream.request_id])
    spool.close()


async def test_a_record_too_large_or_impossible_to_write_is_brought_within_bounds(
    tmp_path: Path, spool: Spool
) -> None:
    """What a caller calls its model must not cost the row."""
    wild = make_record(1, model="x" * 200_000, tenant="\udfff", cost_picodollars=1 << 70)

    open_record(spool, wild)
    spool.close_record(wild)

    store = FakeStore()
    await settle(make_ledger(tmp_path, spool, store))
    assert store.rows[wild.request_id].model == "x" * 256
    assert spool.running == 0


async def test_a_full_disk_under_available_keeps_records_in_memory_and_then_on_the_disk(tmp_path: Path) -> None:
    """Nobody is refused; what did not fit into the segments goes there once there is room."""
    faulty = FaultyDisk()
    spool = make_spool(tmp_path, disk=faulty.disk)
    faulty.fill_up()
    records = write_records(spool, range(1000))
    spool.upkeep.work()

    assert len(spool.ring) > 0
    assert "No space left" in spool.trouble
    assert spool.upkeep.alloc_errors > 0

    open_record(spool, make_record(5000))
    faulty.make_room()
    for _ in range(20):  # the thread waits a second before it asks the disk again
        spool.upkeep.work()
        spool.tend()

    assert (len(spool.ring), spool.trouble, spool.dropped) == (0, "", 0)
    rows = await left_by(spool, tmp_path)
    assert sorted(ids_of(rows)) == sorted([*ids_of(records), make_record(5000).request_id])
    spool.close()


async def test_a_full_disk_does_not_keep_records_from_the_store(tmp_path: Path) -> None:
    """The ring is emptied into the store as well."""
    faulty = FaultyDisk()
    faulty.fill_up()
    spool = make_spool(tmp_path, disk=faulty.disk)
    records = write_records(spool, range(50))
    store = FakeStore()

    await settle(make_ledger(tmp_path, spool, store))

    assert list(store.rows.values()) == records
    assert spool.pending_records == 0
    spool.close()


async def test_a_ring_that_overflows_loses_the_oldest_and_counts_them(tmp_path: Path) -> None:
    """Memory is bounded even when neither disk nor store is there."""
    faulty = FaultyDisk()
    faulty.fill_up()
    spool = make_spool(tmp_path, disk=faulty.disk, ring_bytes=10_000)
    write_records(spool, range(1000))

    assert spool.ring.size_bytes <= 10_000
    assert spool.dropped == 1000 - len(spool.ring)
    store = FakeStore()
    await settle(make_ledger(tmp_path, spool, store))
    assert ids_of(list(store.rows.values())) == ids_of([make_record(i) for i in range(spool.dropped, 1000)])
    spool.close()


def test_a_full_disk_under_strict_refuses_new_work_and_keeps_room_for_what_runs(tmp_path: Path) -> None:
    """503 for the next one, and a record on the disk for everyone who was let in."""
    faulty = FaultyDisk()
    spool = make_spool(tmp_path, disk=faulty.disk, policy="strict")
    faulty.fill_up()
    admitted = []

    def admit() -> None:
        for number in itertools.count():
            open_record(spool, make_record(number))
            admitted.append(make_record(number))
            spool.upkeep.work()

    with pytest.raises(ProxyError) as refusal:
        admit()
    for record in admitted:
        spool.close_record(record)

    assert refusal.value.kind is Kind.USAGE_UNAVAILABLE
    assert len(admitted) > 50
    assert (len(spool.ring), spool.dropped, spool.refused) == (0, 0, 1)
    spool.close()


def test_strict_admits_again_once_there_is_room(tmp_path: Path) -> None:
    """A refusal is no state."""
    faulty = FaultyDisk()
    faulty.fill_up()
    spool = make_spool(tmp_path, disk=faulty.disk, policy="strict")
    with pytest.raises(ProxyError) as refusal:
        open_record(spool, make_record(1))
    assert "No space left" in refusal.value.detail
    faulty.make_room()
    for _ in range(20):
        spool.upkeep.work()

    open_record(spool, make_record(1))

    assert spool.running == 1
    spool.close()


@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS, errno.ENOSPC])
def test_a_disk_that_is_bad_from_the_start_stops_nobody_under_available(tmp_path: Path, error: int) -> None:
    """The process starts and serves; the trouble has a name."""
    faulty = FaultyDisk()
    faulty.allocate_error = error
    spool = Spool(tmp_path, segment_bytes=SEGMENT_BYTES, disk=faulty.disk)
    spool.start()
    write_records(spool, range(3))

    assert len(spool.ring) == 3
    assert spool.trouble
    spool.close()


def test_a_state_directory_that_cannot_be_made_is_the_policys_business(tmp_path: Path) -> None:
    """A file lies where the directory should be."""
    (tmp_path / "spool").write_text("in the way")
    spool = Spool(tmp_path / "spool", segment_bytes=SEGMENT_BYTES)
    spool.start()
    write_records(spool, range(3))

    assert len(spool.ring) == 3
    spool.close()


def test_the_bound_of_the_spool_holds_while_the_store_is_away(tmp_path: Path) -> None:
    """Disk space is a promise to the operator."""
    spool = make_spool(tmp_path, bound_bytes=4 * SEGMENT_BYTES)
    for number in range(3000):
        write_records(spool, [number])
        spool.upkeep.work()

    assert spool.size_bytes == 4 * SEGMENT_BYTES
    assert len(files(tmp_path)) == 4
    assert spool.trouble == "full"
    assert len(spool.ring) > 0
    spool.close()


async def test_what_a_failed_sync_left_in_doubt_is_written_again_elsewhere(tmp_path: Path) -> None:
    """After a failed sync the kernel may have dropped the pages and will say that all is well: ask no second time."""
    faulty = FaultyDisk()
    spool = make_spool(tmp_path, disk=faulty.disk)
    store = FakeStore()
    safe = write_records(spool, range(10))
    spool.upkeep.work()
    doubtful = write_records(spool, range(10, 20))
    open_record(spool, make_record(77))
    faulty.sync_errors = iter([errno.EIO])
    spool.upkeep.work()
    later = write_records(spool, range(20, 25))
    suspect = spool.segments[0]
    asked = faulty.syncs
    spool.tend()
    spool.upkeep.work()

    assert spool.upkeep.sync_errors == 1
    assert spool.rewritten == 15
    assert spool.segments[-1] is not suspect
    assert faulty.syncs == asked + 1  # the new segment; the suspect one is never synced again
    await settle(make_ledger(tmp_path, spool, store))
    assert list(store.rows.values()) == [*safe, *doubtful, *later]
    assert store.calls == [25]
    assert ids_of(await left_by(spool, tmp_path)) == [make_record(77).request_id]
    spool.close()


async def test_after_a_failed_sync_and_a_kill_everything_is_found_once(tmp_path: Path) -> None:
    """The suspect segment is cut where its good part ends."""
    faulty = FaultyDisk()
    spool = make_spool(tmp_path, disk=faulty.disk)
    records = write_records(spool, range(10))
    spool.upkeep.work()
    records += write_records(spool, range(10, 20))
    open_record(spool, make_record(77))
    faulty.sync_errors = iter([errno.EIO])
    spool.upkeep.work()
    spool.tend()

    rows = await left_by(spool, tmp_path)

    assert rows[:20] == records
    assert ids_of(rows[20:]) == [make_record(77).request_id]
    spool.close()


async def test_every_close_is_on_the_disk_before_it_returns_where_that_is_wished(tmp_path: Path) -> None:
    """``always`` asks the disk once for each close."""
    faulty = FaultyDisk()
    spool = make_spool(tmp_path, disk=faulty.disk, fsync="always")
    write_records(spool, range(7))

    assert faulty.syncs == 7
    assert spool.segments[0].synced == spool.segments[0].written
    spool.close()


async def test_nothing_is_synced_where_that_is_wished(tmp_path: Path) -> None:
    """``never`` leaves it to the system, and records survive the process all the same."""
    faulty = FaultyDisk()
    spool = make_spool(tmp_path, disk=faulty.disk, fsync="never")
    write_records(spool, range(7))
    spool.upkeep.work()

    assert faulty.syncs == 0
    assert len(await left_by(spool, tmp_path)) == 7
    spool.close()


async def test_a_file_system_that_keeps_no_word_is_written_by_calls(tmp_path: Path) -> None:
    """The same records without a mapping."""
    spool = make_spool(tmp_path, disk=FaultyDisk(mapped=False).disk)
    assert not isinstance(spool._memory, mmap.mmap)
    records = write_records(spool, range(300))
    spool.upkeep.work()
    records += write_records(spool, range(300, 500))

    assert await left_by(spool, tmp_path) == records
    spool.close()


async def test_a_write_that_is_refused_goes_to_the_next_segment(tmp_path: Path) -> None:
    """A copy-on-write file system that is full says so in the middle of a record."""
    spool = make_spool(tmp_path, disk=FaultyDisk(mapped=False).disk)
    first = write_records(spool, range(3))

    class Refusal:
        def __setitem__(self, where: slice, frame: bytes) -> None:
            raise OSError(errno.ENOSPC, "no space")

        def close(self) -> None: ...

    spool._memory = Refusal()
    later = write_records(spool, range(3, 6))

    assert spool.write_errors == 1
    assert await left_by(spool, tmp_path) == [*first, *later]
    spool.close()


async def test_shutting_down_leaves_what_the_store_has_not_and_no_more_space_than_needed(tmp_path: Path) -> None:
    """The next process finds it, and the unused rest of the segments is given back."""
    spool = make_spool(tmp_path)
    records = write_records(spool, range(5))
    spool.close()

    assert sum(path.stat().st_size for path in files(tmp_path)) < 5000
    heir = make_spool(tmp_path)
    store = FakeStore()
    await settle(make_ledger(tmp_path, heir, store))
    assert list(store.rows.values()) == records
    heir.close()


async def test_shutting_down_with_everything_stored_leaves_nothing(tmp_path: Path) -> None:
    """An orderly end leaves an empty directory of spools."""
    spool = make_spool(tmp_path)
    write_records(spool, range(5))
    ledger = make_ledger(tmp_path, spool, FakeStore())

    assert await ledger.close()
    spool.close()

    assert files(tmp_path, "*") == []


def test_the_thread_makes_segments_and_syncs_by_itself(tmp_path: Path) -> None:
    """The one test in which it runs: more records than two segments hold, none of them in the ring."""
    faulty = FaultyDisk()
    spool = Spool(tmp_path, segment_bytes=SEGMENT_BYTES, disk=faulty.disk)
    spool.start()
    for number in range(2000):
        write_records(spool, [number])
        while spool.upkeep.spare is None:
            spool.upkeep.work()  # waits for the round that runs

    assert (len(spool.ring), spool.dropped) == (0, 0)
    assert len(spool.segments) > 5
    spool.close()
    assert spool.segments[-1].synced == spool.segments[-1].written


def test_a_disk_that_hangs_is_waited_for_once_and_not_for_every_request(tmp_path: Path) -> None:
    """The thread is stuck in the middle of making a segment: the ring takes over after one short wait."""
    spool = make_spool(tmp_path)
    waits = []

    class Held:
        def acquire(self, timeout: float) -> bool:
            waits.append(timeout)
            return False

    spool.upkeep._making = Held()  # type: ignore[assignment]
    write_records(spool, range(1000))

    assert len(waits) == 1
    assert waits[0] <= 0.05
    assert spool.trouble == "slow disk"
    assert len(spool.ring) > 0
    spool.upkeep._making = threading.Lock()
    spool.close()


def test_a_spool_whose_segments_are_too_small_is_refused(tmp_path: Path) -> None:
    """Else the largest record would fit into none."""
    with pytest.raises(ValueError, match="two of the largest"):
        Spool(tmp_path, segment_bytes=16_384)


def test_a_tear_in_our_own_file_is_counted_and_skipped(tmp_path: Path, spool: Spool) -> None:
    """A disk that changes bytes does not stop the ledger."""
    assert spool.segments
    write_records(spool, range(3))
    spool._memory[100] = 0xFF  # type: ignore[index]

    async def flush() -> Any:
        store = FakeStore()
        ledger = make_ledger(tmp_path, spool, store)
        await settle(ledger)
        write_records(spool, range(10, 12))
        await settle(ledger)
        return ledger.torn, ids_of(list(store.rows.values()))

    import asyncio

    torn, rows = asyncio.run(flush())
    assert torn == 1
    assert rows == ids_of([make_record(10), make_record(11)])
    assert spool.pending_records == 0
