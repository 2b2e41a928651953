"""The last cent of a budget: processes that fight for it, and die, over each of the real stores.

Nothing is believed but the histories that the processes wrote: what they admitted, what they billed.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.accounting.record import UsageRecord
from proxy.config.keys import Budget
from tests.fakes.budget_worker import LASTS_S
from tests.fakes.databases import StoreMaker

CENT = 10**10
ACCOUNT = "key:key_hammer"
REPO = Path(__file__).parents[2]


class Process:
    """A worker with its history."""

    def __init__(self, number: int, url: str, directory: Path, limit: int, estimate: int, bill: int) -> None:
        self.holder = f"req_{number:012x}"
        self.path = directory / f"history-{number}"
        words = [url, str(directory), self.holder, str(self.path), str(limit), str(estimate), str(bill)]
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.budget_worker", *words],
            cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait(self) -> None:
        """Until it has done what it was told last."""
        assert self.child.stdout is not None
        assert self.child.stdout.readline(), f"{self.holder} has died"

    def say(self, line: str) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()

    def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def history(self) -> list[list[str]]:
        return [line.split() for line in self.path.read_text("ascii").splitlines()] if self.path.exists() else []

    def count(self, letter: str) -> int:
        return sum(words[0] == letter for words in self.history())

    def end(self) -> None:
        if self.child.poll() is None:
            self.say("quit")
            self.child.wait(20)

    def close(self) -> None:
        if self.child.poll() is None:
            self.kill()
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue


class Crew:
    """All processes of a test, the dead ones too."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.all: list[Process] = []
        self.living: list[Process] = []
        self.terms = (0, 0, 0)

    def start(self, count: int, *terms: int) -> list[Process]:
        self.terms = terms or self.terms  # type: ignore[assignment]
        first = len(self.all)
        begun = [Process(first + at, self.url, self.directory, *self.terms) for at in range(count)]
        self.all += begun
        self.living += begun
        for process in begun:
            process.wait()
        return begun

    def ask(self, requests: int) -> None:
        for process in self.living:
            process.say(f"ask {requests}")

    def wait(self) -> None:
        for process in self.living:
            process.wait()

    def bury(self, process: Process) -> None:
        process.kill()
        self.living.remove(process)

    def count(self, letter: str) -> int:
        return sum(process.count(letter) for process in self.all)

    def reasons(self) -> Counter[str]:
        return Counter(words[2] for process in self.all for words in process.history() if words[0] == "R")


@pytest.fixture
def crew(database_url: str, tmp_path: Path) -> Iterator[Crew]:
    crew = Crew(database_url, tmp_path)
    yield crew
    for process in crew.all:
        process.close()


def usage_of(process: Process, estimate: int, bill: int) -> list[UsageRecord]:
    """What recovery writes for a dead process: the bills it knows, and the estimate of what was in the air."""
    known = process.history()
    billed = {words[1] for words in known if words[0] == "B"}
    return [
        UsageRecord(
            f"{process.holder}{int(words[1]):08x}", time.time(), "key_hammer", "", "", "openai", "chat.completions",
            "m", "leader", "ok" if words[1] in billed else "lost", 200, False, words[1] not in billed,
            1, 1, 0, 2, 0, bill if words[1] in billed else estimate, 0, 0, 0.0, 0.0, 0.0, 0,
        )
        for words in known
        if words[0] == "A"
    ]  # fmt: skip


async def books(make_store: StoreMaker, limit: int) -> tuple[int, int]:
    return await (await make_store()).spent(ACCOUNT, Budget(limit, "total"))


async def rush(crew: Crew, make_store: StoreMaker, requests: int, estimate: int, bill: int) -> None:
    """Everybody asks at once for more than there is."""
    crew.start(4, CENT, estimate, bill)
    crew.ask(requests)
    crew.wait()
    for process in crew.all:
        process.end()
    admitted, refused = crew.count("A"), crew.count("R")
    assert admitted + refused == 4 * requests
    assert crew.count("B") == admitted
    assert set(crew.reasons()) <= {"key_budget_total"}
    assert admitted * bill <= CENT
    if refused:
        assert CENT - admitted * bill < estimate, "somebody was refused what could be afforded"
    if estimate == bill:
        assert admitted == min(4 * requests, CENT // estimate)
    assert await books(make_store, CENT) == (admitted * bill, 0)


@pytest.mark.timeout(90)
async def test_four_processes_on_the_last_cent_admit_exactly_what_it_bears(
    crew: Crew, make_store: StoreMaker
) -> None:
    """Sixty requests in each of four processes for a cent that bears thirty-three: those and no more."""
    await rush(crew, make_store, 60, 3 * 10**8, 3 * 10**8)


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("estimate", "bill"), [(3 * 10**8, 3 * 10**8), (10**7, 10**7), (10**9, 10**6), (7 * 10**7, 10**7)]
)
async def test_five_hundred_requests_in_each_of_four_processes_neither_overspend_nor_miss_a_cent(
    crew: Crew, make_store: StoreMaker, estimate: int, bill: int
) -> None:
    """Dear and cheap requests, estimates that are right and far too high."""
    await rush(crew, make_store, 500, estimate, bill)


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(3))
async def test_processes_killed_at_random_cost_nobody_a_cent(crew: Crew, make_store: StoreMaker, seed: int) -> None:
    """TC: SIGKILL in the middle of it, again and again. What the dead admitted counts, what they only held comes
    back, and in the end the budget has been spent to the last request that it bears."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    price = 2 * 10**7
    store: Any = await make_store()
    crew.start(4, CENT, price, price)
    for _ in range(4):
        crew.ask(60)
        victim = chance.choice(crew.living)
        least = chance.randrange(60)
        while victim.count("A") + victim.count("R") < least:
            if victim.child.poll() is not None:
                break
        crew.bury(victim)
        crew.wait()
        await store.write_usage(usage_of(victim, price, price))
        crew.start(1)
        for process in crew.living:
            process.say(f"recovered {victim.holder}")
            process.wait()
    assert crew.count("A") * price <= CENT
    # The leases of the dead lapse by the store's clock; then what they held is there for others.
    began = time.monotonic()
    while (await store.spent(ACCOUNT, Budget(CENT, "total")))[1] and time.monotonic() - began < 4 * LASTS_S:
        crew.ask(0)
        crew.wait()
    crew.ask(200)
    crew.wait()
    for process in crew.all:
        process.end()
    admitted = crew.count("A")
    assert set(crew.reasons()) <= {"key_budget_total"}
    assert admitted == CENT // price, "neither overspent nor refused what could be afforded"
    assert await books(make_store, CENT) == (CENT, 0)
