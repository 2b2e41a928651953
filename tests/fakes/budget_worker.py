"""One proxy process's access room over a real store, for the hammer: run as ``python -m tests.fakes.budget_worker``.

Words on its command line: the database's URL, the state directory, its holder, the file of its history, the limit,
the estimate and the bill of a request (picodollars). It obeys lines on its standard input (``ask N``, ``recovered
HOLDER``, ``quit``) and answers each with a line once it is done. The history is written before anything follows from
it, one ``write`` a line, so that a killed process has told all that it did:

    A number      admitted: the estimate is promised, the upstream is called
    B number      billed
    R number why  refused
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from proxy.access.budgets_leases import TICK_S, BudgetLeases
from proxy.access.limits import Limiter, Shortage
from proxy.clock import Clock, Deadlines
from proxy.config.keys import Budget, KeyRecord
from proxy.errors import ProxyError
from proxy.janitor import Janitor
from proxy.store.open import open_store

LASTS_S = 4.0


class Worker:
    """The process."""

    def __init__(self, words: list[str]) -> None:
        url, state_dir, self.holder, history, limit, estimate, bill = words
        self.store = open_store(url, Path(state_dir))
        self.estimate, self.bill = int(estimate), int(bill)
        clock = Clock()
        deadlines = Deadlines(clock)
        self.leases = BudgetLeases(self.store, self.holder, clock, deadlines, wait_s=5.0, lasts_s=LASTS_S)
        self.limiter = Limiter(clock, self.leases)
        self.record = KeyRecord(id="key_hammer", digest=b"h" * 32, name="hammer", budget=Budget(int(limit), "total"))
        self.history = os.open(history, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.janitor = Janitor(clock, deadlines)
        self.janitor.add("budgets", TICK_S, self.leases.tick)
        self.number = 0

    def tell(self, line: str) -> None:
        os.write(self.history, line.encode() + b"\n")

    async def request(self, number: int) -> None:
        """Reserve, call the upstream, settle."""
        try:
            taken = self.limiter.reserve(self.limiter.ties(self.record), 10, self.estimate)
            if isinstance(taken, Shortage):
                taken = await self.limiter.obtain(taken)
        except ProxyError as error:
            self.tell(f"R {number} {error.why}")
            return
        self.tell(f"A {number}")
        for _ in range(number * 37 % 200):
            await asyncio.sleep(0)  # the upstream
        self.tell(f"B {number}")
        taken.settle(10, self.bill)

    async def run(self) -> None:
        await self.store.open()
        self.janitor.start()
        loop = asyncio.get_running_loop()
        lines = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        print("ready", flush=True)
        while words := (await lines.readline()).split():
            if words[0] == b"ask":
                numbers = range(self.number, self.number + int(words[1]))
                self.number = numbers.stop
                await asyncio.gather(*(self.request(number) for number in numbers))
            elif words[0] == b"recovered":
                self.leases.recovered(words[1].decode())
            else:
                break
            print("done", flush=True)
        await self.leases.close()
        self.janitor.stop()
        await self.store.close()


if __name__ == "__main__":
    asyncio.run(Worker(sys.argv[1:]).run())
