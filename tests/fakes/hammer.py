"""A process that leases from one budget as fast as it can: ``python -m tests.fakes.hammer URL DIRECTORY HOLDER LEASES
NEED LIMIT``. Says ``ready``, waits for a line, and ends with what it was granted and has spent."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from proxy.config.keys import Budget
from proxy.errors import StoreError
from proxy.store.base import Store
from proxy.store.open import open_store

_AT_ONCE = 10


async def lease(store: Store, budget: Budget, holder: str, need: int) -> int:
    """One lease, asked for again after a failure that passes."""
    while True:
        try:
            lease = await store.lease("key:k", budget, holder, need=need, want=need, lasts_s=60.0)
        except StoreError as error:
            if not error.transient:
                raise
        else:
            return lease.picodollars


async def main(url: str, directory: str, holder: str, leases: int, need: int, limit: int) -> None:
    store = open_store(url, Path(directory))
    await store.open()
    print("ready", flush=True)
    sys.stdin.readline()
    budget, granted, spent = Budget(limit, "total"), 0, 0
    for _ in range(leases // _AT_ONCE):
        granted += sum(await asyncio.gather(*(lease(store, budget, holder, need) for _ in range(_AT_ONCE))))
        spent = granted // 2
        await store.settle("key:k", "total", holder, spent_total=spent, returned_total=0)
    await store.close()
    print(granted, spent, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], *map(int, sys.argv[4:7])))
