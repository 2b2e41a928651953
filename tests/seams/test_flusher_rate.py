"""How many usage rows a second the ledger moves from a spool on disk into each real database."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from proxy.accounting.ledger import Ledger
from proxy.accounting.spool import Spool
from proxy.clock import Clock
from proxy.store.base import Store
from tests.fakes.spool import Log, make_record, open_record

ROWS = 100_000
LEAST_PER_S = {"postgres": 7_000, "sqlite": 3_000}
"""A third of what is asked for: the machine may be busy with other things."""


@pytest.mark.long
@pytest.mark.timeout(90)
async def test_the_ledger_keeps_up_with_many_thousand_rows_a_second(
    store: Store, store_kind: str, tmp_path: Path
) -> None:
    """A hundred thousand rows that waited for the database, with everything that belongs to them: reading the disk,
    decoding, writing, acknowledging, removing segments. The figure is printed; 20,000 in a second are the goal."""
    spool = Spool(tmp_path / "spool", fsync="interval")
    spool.start()
    ledger = Ledger(tmp_path / "spool", spool, store, clock=Clock(), log=Log())
    for number in range(ROWS):
        record = make_record(number, request_id=f"req_{number:020x}")
        open_record(spool, record)
        spool.close_record(record)
    assert spool.dropped == 0
    began = time.perf_counter()
    while not ledger.is_empty:
        await ledger.step()
    took_s = time.perf_counter() - began
    print(f"\n{store_kind}: {ROWS / took_s:,.0f} rows/s, of which {ledger.flush_s / took_s:.0%} in the database")
    await ledger.close()
    spool.close()

    assert ledger.new_rows == ROWS
    assert ROWS / took_s >= LEAST_PER_S[store_kind]
