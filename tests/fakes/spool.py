"""Usage records on their way through a spool: stores that misbehave on command, disks that refuse, deaths."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from proxy.accounting.ledger import Ledger
from proxy.accounting.record import UsageRecord
from proxy.accounting.segment import allocate_blocks, sync_data
from proxy.accounting.spool import Spool
from proxy.accounting.upkeep import Disk
from proxy.errors import StoreError
from tests.fakes.clock import FrozenClock

SEGMENT_BYTES = 64 * 1024


def make_record(number: int = 1, **changes: Any) -> UsageRecord:
    """A record whose id ends in ``number``."""
    record = UsageRecord(
        request_id=f"req_000000000000{number:08x}",
        at=1_767_225_600.5,
        key_id="key_0123456789abcdef",
        tenant="acme",
        team="blue",
        provider="openai",
        route="chat.completions",
        model="gpt-4o-mini",
        role="leader",
        outcome="ok",
        status=200,
        streams=False,
        estimated=False,
        input_tokens=1200,
        output_tokens=300,
        cached_input_tokens=0,
        upstream_tokens=1500,
        saved_tokens=0,
        cost_picodollars=360_000_000,
        upstream_picodollars=360_000_000,
        saved_picodollars=0,
        first_byte_ms=312.25,
        total_ms=1203.5,
        overhead_ms=0.045,
        flight_id=number,
    )
    return msgspec.structs.replace(record, **changes)


def ids_of(records: Sequence[UsageRecord]) -> list[str]:
    return [record.request_id for record in records]


def open_record(spool: Spool, record: UsageRecord, reserved: int = 777) -> None:
    """What the pipeline does when the request of ``record`` is admitted."""
    spool.open_record(
        record.request_id, record.at, record.key_id, record.tenant, record.team, record.provider, record.route,
        record.model, record.input_tokens, reserved, record.streams,
    )  # fmt: skip


def write_records(spool: Spool, numbers: Sequence[int]) -> list[UsageRecord]:
    """Admit and end a request for each number."""
    records = [make_record(number) for number in numbers]
    for record in records:
        open_record(spool, record)
        spool.close_record(record)
    return records


class FakeStore:
    """Keeps rows by id, as the real ones do. ``fail`` is what each of the next calls raises (``None``: it works);
    ``loses_answer`` makes a failing call commit first."""

    def __init__(self) -> None:
        self.rows: dict[str, UsageRecord] = {}
        self.fail: list[Exception | None] = []
        self.loses_answer = False
        self.refuses: Callable[[UsageRecord], bool] = lambda _: False
        self.calls: list[int] = []

    async def write_usage(self, records: Sequence[UsageRecord]) -> int:
        self.calls.append(len(records))
        error = self.fail.pop(0) if self.fail else None
        if error is not None and not self.loses_answer:
            raise error
        if any(self.refuses(record) for record in records):
            raise StoreError("invalid", "a value that no column takes", transient=False)
        before = len(self.rows)
        for record in records:
            self.rows.setdefault(record.request_id, record)
        if error is not None:
            raise error
        return len(self.rows) - before


class FaultyDisk:
    """A disk of which each part can be made to refuse."""

    def __init__(self, *, mapped: bool = True) -> None:
        self.allocate_error = 0
        self.sync_errors: Iterator[int] = iter(())
        self.syncs = 0
        self.disk = Disk(allocate=self._allocate, sync=self._sync, mapped=mapped)

    def _allocate(self, fd: int, size_bytes: int) -> None:
        if self.allocate_error:
            raise OSError(self.allocate_error, os.strerror(self.allocate_error))
        allocate_blocks(fd, size_bytes)

    def _sync(self, fd: int) -> None:
        self.syncs += 1
        error = next(self.sync_errors, 0)
        if error:
            raise OSError(error, os.strerror(error))
        sync_data(fd)

    def fill_up(self) -> None:
        self.allocate_error = errno.ENOSPC

    def make_room(self) -> None:
        self.allocate_error = 0


class Log:
    """Remembers events by name."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def _note(self, event: str, /, **fields: Any) -> None:
        self.events.append((event, fields))

    info = warning = error = _note


def make_spool(root: Path, **options: Any) -> Spool:
    """A started spool of small segments whose thread does nothing by itself: call ``upkeep.work``."""
    spool = Spool(root, **{"segment_bytes": SEGMENT_BYTES, **options})
    spool.upkeep.work()
    spool._rotate()
    spool.upkeep.work()
    return spool


def make_ledger(root: Path, spool: Spool, store: Any, **options: Any) -> Ledger:
    """A ledger on a clock that stands."""
    return Ledger(root, spool, store, **{"clock": FrozenClock(), "log": Log(), **options})


def kill(spool: Spool) -> None:
    """What is left of a spool whose process was killed: its files, and a lock that nobody holds."""
    home = spool.upkeep.home
    assert home is not None
    home.leave()


async def settle(ledger: Ledger, most: int = 1000) -> None:
    """Step until nothing moves."""
    for _ in range(most):
        before = (ledger.flushed, ledger.adopted, ledger.batches)
        await ledger.step()
        if (ledger.flushed, ledger.adopted, ledger.batches) == before and ledger._estate is None:
            return
    raise AssertionError("the ledger never came to rest")
