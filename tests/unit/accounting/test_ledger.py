"""The ledger before stores that are away, slow, forgetful or particular."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.accounting import ledger as ledgers
from proxy.accounting.record import UsageRecord
from proxy.accounting.segment import Segment
from proxy.accounting.spool import Spool
from proxy.clock import Clock
from proxy.errors import StoreError
from tests.fakes.spool import (
    FakeStore,
    FaultyDisk,
    Log,
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


class StuckStore(FakeStore):
    """Answers nobody until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def write_usage(self, records: Sequence[UsageRecord]) -> int:
        self.asked.set()
        await self.answers.wait()
        return await super().write_usage(records)


async def test_a_store_that_is_away_is_asked_again_and_gets_every_row_once(tmp_path: Path, spool: Spool) -> None:
    """The pause grows, the rows wait, and the log says it once."""
    log, store = Log(), FakeStore()
    ledger = make_ledger(tmp_path, spool, store, log=log)
    store.fail = [StoreError("unavailable")] * 8
    records = write_records(spool, range(100))
    pauses = []
    for _ in range(8):
        assert not await ledger.step()
        pauses.append(ledger.retry_in_s)

    assert ledger.errors == {"unavailable": 8}
    assert ledger.last_error == "unavailable"
    assert pauses[0] <= 0.2
    assert 2.5 <= pauses[-1] <= 5.0
    assert [name for name, _ in log.events] == ["usage_not_flushed"]
    assert spool.pending_records == 100
    await settle(ledger)
    assert list(store.rows.values()) == records
    assert (ledger.last_error, ledger.retry_in_s, spool.pending_records) == ("", 0.0, 0)


async def test_a_commit_whose_answer_was_lost_is_offered_again_and_doubles_nothing(
    tmp_path: Path, spool: Spool
) -> None:
    """The store knows a row by its id."""
    store = FakeStore()
    ledger = make_ledger(tmp_path, spool, store)
    store.loses_answer, store.fail = True, [StoreError("timeout"), StoreError("unknown_outcome")]
    records = write_records(spool, range(10))
    await ledger.step()
    write_records(spool, range(10, 20))
    await ledger.step()
    await settle(ledger)

    assert store.calls == [10, 10, 10, 10]
    assert list(store.rows)[:10] == ids_of(records)
    assert len(store.rows) == 20
    assert (ledger.flushed, ledger.new_rows) == (20, 10)


async def test_a_store_that_hangs_holds_up_nobody_and_is_given_up_in_time(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests go on being recorded meanwhile, on the disk."""
    monkeypatch.setattr(ledgers, "WRITE_TIMEOUT_S", 0.02)
    store = StuckStore()
    ledger = make_ledger(tmp_path, spool, store)
    write_records(spool, range(10))
    step = asyncio.create_task(ledger.step())
    await store.asked.wait()
    write_records(spool, range(10, 30))
    assert not await step

    assert ledger.errors == {"timeout": 1}
    assert (spool.pending_records, len(spool.ring)) == (30, 0)
    store.answers.set()
    await settle(ledger)
    assert len(store.rows) == 30


async def test_ten_minutes_without_a_store_under_load_lose_nothing(tmp_path: Path) -> None:
    """Fifteen thousand requests wait on the disk in a few segments, memory does not grow, and all arrive in order."""
    spool = make_spool(tmp_path, segment_bytes=1 << 20)
    store = FakeStore()
    ledger = make_ledger(tmp_path, spool, store)
    store.fail = [StoreError("unavailable")] * 60
    for minute in range(60):
        write_records(spool, range(minute * 250, minute * 250 + 250))
        spool.upkeep.work()
        await ledger.step()

    assert len(spool.ring) == 0
    assert spool.pending_records == 15_000
    await settle(ledger)
    assert list(store.rows) == ids_of([make_record(n) for n in range(15_000)])
    assert len(spool.segments) == 1
    spool.close()


async def test_one_record_that_the_store_refuses_is_set_aside_and_the_others_go_on(
    tmp_path: Path, spool: Spool
) -> None:
    """It is kept in a file for somebody to look at."""
    log, store = Log(), FakeStore()
    ledger = make_ledger(tmp_path, spool, store, log=log)
    bad = make_record(50).request_id
    store.refuses = lambda record: record.request_id == bad
    write_records(spool, range(100))
    for _ in range(4):
        await ledger.step()

    assert len(store.rows) == 99
    assert bad not in store.rows
    assert ledger.refused == 1
    assert spool.pending_records == 0
    line = (tmp_path / "refused.jsonl").read_bytes()
    assert msgspec.json.decode(line)["request_id"] == bad
    assert ("usage_refused", {"records": 1, "kept_in": str(tmp_path / "refused.jsonl")}) in log.events


async def test_a_store_that_refuses_everything_is_not_believed(tmp_path: Path, spool: Spool) -> None:
    """Then it is the store that is wrong: nothing is set aside."""
    store = FakeStore()
    ledger = make_ledger(tmp_path, spool, store)
    store.refuses = lambda _: True
    write_records(spool, range(10))
    for _ in range(8):
        await ledger.step()

    assert ledger.refused == 0
    assert spool.pending_records == 10
    store.refuses = lambda _: False
    await settle(ledger)
    assert len(store.rows) == 10


@pytest.mark.parametrize("why", ["schema", "closed", "read_only", "full"])
async def test_a_store_that_needs_somebody_to_act_is_waited_for(tmp_path: Path, spool: Spool, why: str) -> None:
    """However long: no record is to blame."""
    store = FakeStore()
    ledger = make_ledger(tmp_path, spool, store)
    store.fail = [StoreError(why, transient=False)] * 10
    write_records(spool, range(10))
    for _ in range(10):
        await ledger.step()

    assert (ledger.refused, ledger.errors) == (0, {why: 10})
    await settle(ledger)
    assert len(store.rows) == 10


async def test_a_defect_of_the_store_stops_no_ledger(tmp_path: Path, spool: Spool) -> None:
    """Whatever it raises, the next step tries again."""
    store = FakeStore()
    ledger = make_ledger(tmp_path, spool, store)
    store.fail = [RuntimeError("oops"), None]
    write_records(spool, range(10))
    await ledger.step()
    assert ledger.errors == {"bug": 1}
    await settle(ledger)

    assert len(store.rows) == 10


async def test_a_segment_that_cannot_be_read_for_a_while_is_read_later(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of a batch before the error is in the next batch again."""
    monkeypatch.setattr(ledgers, "BATCH_RECORDS", 1000)
    store = FakeStore()
    ledger = make_ledger(tmp_path, spool, store)
    records = write_records(spool, range(300))
    read, answers = Segment.read, iter([None, OSError(errno.EIO, "bad sector")])

    def faulty(self: Segment, start: int, stop: int) -> bytes:
        error = next(answers, None)
        if error is not None:
            raise error
        return read(self, start, stop)

    monkeypatch.setattr(Segment, "read", faulty)
    await ledger.step()
    assert ledger.errors == {"disk": 1}
    await settle(ledger)

    assert list(store.rows.values()) == records
    assert store.calls == [300]


async def test_an_inheritance_that_cannot_be_read_is_left_and_holds_up_no_other(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays on the disk; the own records and those of other dead go on."""
    for token in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        dead = make_spool(tmp_path, token=token)
        write_records(dead, range(5) if token[0] == "a" else range(5, 10))
        kill(dead)
    read = Segment.read

    def faulty(self: Segment, start: int, stop: int) -> bytes:
        if "aaaa" in self.path.parent.name and start:
            raise OSError(errno.EIO, "bad sector")
        return read(self, start, stop)

    monkeypatch.setattr(Segment, "read", faulty)
    store = FakeStore()
    clock = Clock()
    ledger = make_ledger(tmp_path, spool, store, clock=clock)
    write_records(spool, range(20, 25))
    for _ in range(20):
        ledger._adopt_at = 0.0
        await ledger.step()

    assert sorted(store.rows) == ids_of([make_record(n) for n in (*range(5, 10), *range(20, 25))])
    left = os.listdir(tmp_path)
    assert any("aaaaaaaaaaaa" in name for name in left)
    assert not any("bbbbbbbbbbbb" in name for name in left)


async def test_the_dead_get_their_turn_while_the_living_are_busy(tmp_path: Path, spool: Spool) -> None:
    """A spool that never runs dry starves nobody."""
    dead = make_spool(tmp_path, token="aaaaaaaaaaaa")
    write_records(dead, range(5))
    kill(dead)
    store = FakeStore()
    ledger = make_ledger(tmp_path, spool, store)
    for number in range(100, 104):
        write_records(spool, [number])
        await ledger.step()

    assert set(ids_of([make_record(n) for n in range(5)])) <= set(store.rows)


async def test_the_task_flushes_by_itself_and_closing_flushes_the_rest(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From start to the orderly end."""
    monkeypatch.setattr(ledgers, "FLUSH_EVERY_S", 0.005)
    arrived = asyncio.Event()

    class Telling(FakeStore):
        async def write_usage(self, records: Sequence[UsageRecord]) -> int:
            new = await super().write_usage(records)
            arrived.set()
            return new

    store = Telling()
    ledger = make_ledger(tmp_path, spool, store)
    ledger.start()
    write_records(spool, range(10))
    await arrived.wait()
    write_records(spool, range(10, 20))

    assert await ledger.close()
    assert len(store.rows) == 20
    assert ledger.is_empty


async def test_closing_before_a_store_that_hangs_ends_in_time_and_leaves_all_on_the_disk(tmp_path: Path) -> None:
    """What is left is the next process's."""
    spool, store = make_spool(tmp_path), StuckStore()
    ledger = make_ledger(tmp_path, spool, store)
    records = write_records(spool, range(10))
    ledger.start()
    await store.asked.wait()

    assert not await ledger.close(0.02)
    spool.close()
    heir, working = make_spool(tmp_path), FakeStore()
    await settle(make_ledger(tmp_path, heir, working))
    assert list(working.rows.values()) == records
    heir.close()


async def test_closing_before_a_store_that_is_away_does_not_wait_for_it(tmp_path: Path, spool: Spool) -> None:
    """One refusal is enough of an answer at the end."""
    store = FakeStore()
    store.fail = [StoreError("unavailable")] * 1000
    ledger = make_ledger(tmp_path, spool, store)
    write_records(spool, range(10))

    assert not await ledger.close(10.0)
    assert len(store.calls) <= 2


async def test_records_in_the_ring_come_back_when_the_store_will_not_have_them(tmp_path: Path) -> None:
    """At the end they go to the disk if it is there by then."""
    faulty = FaultyDisk()
    faulty.fill_up()
    spool = make_spool(tmp_path, disk=faulty.disk)
    records = write_records(spool, range(5))
    assert len(spool.ring) == 5
    store = StuckStore()
    ledger = make_ledger(tmp_path, spool, store)
    ledger.start()
    await store.asked.wait()
    await ledger.close(0.02)

    assert len(spool.ring) == 5
    faulty.make_room()
    for _ in range(20):
        spool.upkeep.work()
    spool.close()
    heir, working = make_spool(tmp_path), FakeStore()
    await settle(make_ledger(tmp_path, heir, working))
    assert list(working.rows.values()) == records
    heir.close()


async def test_a_request_that_is_only_open_keeps_the_ledger_from_nothing(tmp_path: Path, spool: Spool) -> None:
    """Open records are passed over; the spool counts as drained."""
    for number in range(20):
        open_record(spool, make_record(number))
    store = FakeStore()
    ledger: Any = make_ledger(tmp_path, spool, store)

    assert await ledger.close()
    assert (store.calls, spool.running, spool.pending_records) == ([], 20, 0)
