"""A process that records usage until it is killed: ``python -m tests.fakes.spool_writer STATE_DIR TOKEN FLUSH``.

For each request it opens and closes a record and then says its number on standard output, as a client that has got
its answer would know it. With ``flush`` a ledger moves the records into the SQLite store of the directory meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from proxy.accounting import ledger as ledgers
from proxy.accounting.ledger import Ledger
from proxy.accounting.spool import Spool
from proxy.clock import Clock
from proxy.store.open import open_store
from tests.fakes.spool import SEGMENT_BYTES, Log, make_record, open_record

BATCH = 50


async def write(state_dir: Path, token: str, *, flushes: bool) -> None:
    root = state_dir / "spool"
    spool = Spool(root, token=token, segment_bytes=SEGMENT_BYTES)
    spool.start()
    if flushes:
        store = open_store("", state_dir)
        await store.open()
        ledgers.FLUSH_EVERY_S = 0.001  # type: ignore[misc]
        Ledger(root, spool, store, clock=Clock(), log=Log()).start()
    number = 0
    while True:
        for _ in range(BATCH):
            number += 1
            record = msgspec.structs.replace(make_record(number), request_id=f"req_{token}{number:08x}")
            open_record(spool, record)
            spool.close_record(record)
            os.write(1, b"%d\n" % number)
        await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), sys.argv[2], flushes=sys.argv[3] == "flush"))
