"""Limits that processes keep together: over a real server, and over a level that obeys the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy.access.limits import Limiter, Shortage
from proxy.access.limits_account import LimitOptions
from proxy.access.limits_reservation import Reservation
from proxy.access.limits_shared import SharedLimits, SlotsWish, UnitsGrant, UnitsWish
from proxy.access.limits_valkey import make_rate_level
from proxy.clock import Clock
from proxy.config.keys import KeyRecord, Limits
from proxy.errors import ProxyError, StoreError
from tests.fakes.clock import FrozenClock
from tests.fakes.valkey import ValkeyServer


class Level:
    """A bucket that never drains and slots, in memory; ``away`` while the test wants that."""

    def __init__(self, units: int = 10**9) -> None:
        self.units = units
        self.held: dict[str, int] = {}
        self.away = False
        self.asked = 0

    async def ask(self, units: list[UnitsWish], slots: list[SlotsWish]) -> tuple[list[UnitsGrant], list[int]]:
        await asyncio.sleep(0)
        if self.away:
            raise StoreError("unavailable")
        self.asked += 1
        grants = []
        for wish in units:
            self.units += wish.back
            granted = min(wish.want, self.units) if wish.need <= self.units else 0
            self.units -= granted
            grants.append(UnitsGrant(granted, self.units, 0, 0 if granted >= wish.want else 1_000_000))
        return grants, [min(wish.want, wish.limit) for wish in slots]

    async def close(self) -> None:
        """Nothing is open."""


def key(**limits: int) -> KeyRecord:
    return KeyRecord(id="key_1", digest=b"k" * 32, name="n", limits=Limits(**limits))


async def ask(limiter: Limiter, record: KeyRecord, tokens: int = 0) -> Reservation | None:
    """A reservation, or ``None`` if it was refused."""
    try:
        taken = limiter.reserve(limiter.ties(record), tokens)
        return await limiter.obtain(taken) if isinstance(taken, Shortage) else taken
    except ProxyError:
        return None


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_steady_request_does_not_wait_for_the_level(frozen_clock: FrozenClock) -> None:
    """After the first one its process has taken units out ahead."""
    level = Level()
    shared = SharedLimits(level, frozen_clock)
    limiter = Limiter(frozen_clock, None, shared)
    record = key(requests_per_minute=60_000, tokens_per_minute=10**7)
    await ask(limiter, record, 100)
    for _ in range(20):
        await ask(limiter, record, 100)
        await turns()
    before = shared.waits
    for _ in range(200):
        assert isinstance(limiter.reserve(limiter.ties(record), 100), Reservation)
        await turns()
    assert shared.waits == before
    await shared.close()


async def test_units_that_nobody_used_go_back(frozen_clock: FrozenClock) -> None:
    """Within a second or so, and at the end."""
    level = Level(1_000)
    shared = SharedLimits(level, frozen_clock)
    limiter = Limiter(frozen_clock, None, shared)
    for _ in range(10):
        await ask(limiter, key(requests_per_minute=1_000))
    await turns()
    assert level.units < 990
    frozen_clock.advance(1.1)
    shared.tick()
    await turns()
    assert level.units == 990
    await shared.close()


async def test_without_the_level_each_process_keeps_its_part(frozen_clock: FrozenClock) -> None:
    """Sixty a minute and six at once among three processes, until the level is back."""
    level = Level()
    level.away = True
    shared = SharedLimits(level, frozen_clock)
    limiter = Limiter(frozen_clock, None, shared, LimitOptions(parts=3))
    record = key(requests_per_minute=60, concurrent=6)
    taken = [await ask(limiter, record) for _ in range(10)]
    assert sum(each is not None for each in taken) == 2
    for each in taken:
        if each is not None:
            each.refund()
    for _ in range(40):
        if (each := await ask(limiter, record)) is not None:
            each.refund()
    assert limiter.reserved == 20
    level.away = False
    frozen_clock.advance(1.1)
    shared.tick()
    assert (await ask(limiter, record)) is not None
    assert shared.up
    await shared.close()


async def test_tokens_that_were_not_used_serve_the_next_request(frozen_clock: FrozenClock) -> None:
    """They need not go round by the level."""
    shared = SharedLimits(Level(500), frozen_clock)
    limiter = Limiter(frozen_clock, None, shared)
    record = key(tokens_per_minute=500)
    first = await ask(limiter, record, 400)
    assert first is not None
    assert await ask(limiter, record, 300) is None
    first.settle(150, 0)
    assert isinstance(limiter.reserve(limiter.ties(record), 250), Reservation)
    await shared.close()


# -- over a real server -----------------------------------------------------------------------------------------


class Process:
    """One process's part."""

    def __init__(self, url: str, **options: float) -> None:
        level = make_rate_level(url)
        assert level is not None
        self.shared = SharedLimits(level, Clock(), timeout_s=5.0)
        self.limiter = Limiter(Clock(), None, self.shared)


@pytest.fixture
async def processes(valkey: ValkeyServer) -> AsyncIterator[list[Process]]:
    """Four of them on one server."""
    made = [Process(valkey.url) for _ in range(4)]
    yield made
    for process in made:
        await process.shared.close()


async def test_four_processes_admit_together_what_the_limit_says(processes: list[Process]) -> None:
    """Two hundred an hour's worth at once, asked for eight hundred times: two hundred pass, whoever asks."""
    record = key(requests_per_minute=200)
    began = Clock().now()
    taken = await asyncio.gather(*(ask(process.limiter, record) for process in processes for _ in range(200)))
    drained = (Clock().now() - began) * 200 / 60
    admitted = sum(each is not None for each in taken)
    assert 200 <= admitted <= 200 + drained + 1


async def test_four_processes_run_together_as_many_requests_as_may_run_at_once(processes: list[Process]) -> None:
    """Ten slots: never more, and all of them are used; what is free is there for another process."""
    record = key(concurrent=10)
    taken = await asyncio.gather(*(ask(process.limiter, record) for process in processes for _ in range(10)))
    running = [each for each in taken if each is not None]
    assert len(running) == 10
    for each in running:
        each.refund()
    for process in processes[1:]:
        for account in process.limiter._accounts.values():
            account.renewed_at = -1e9
        process.shared.tick()
        while process.shared._task is not None and not process.shared._task.done():
            await process.shared._task
    for account in processes[0].limiter._accounts.values():
        account.barred_until = -1e9
    again = [await ask(processes[0].limiter, record) for _ in range(12)]
    assert sum(each is not None for each in again) == 10


async def test_a_server_that_lost_its_scripts_is_told_them_again(
    processes: list[Process], valkey: ValkeyServer
) -> None:
    """As after its restart."""
    record = key(requests_per_minute=100)
    assert await ask(processes[0].limiter, record) is not None
    valkey.ask("SCRIPT", "FLUSH")
    valkey.ask("FLUSHALL")
    assert await ask(processes[1].limiter, record) is not None
    assert processes[1].shared.errors == 0


async def test_the_server_forgets_what_has_drained(processes: list[Process], valkey: ValkeyServer) -> None:
    """Everything there has an end."""
    record = key(requests_per_minute=60_000, concurrent=3)
    await ask(processes[0].limiter, record)
    names = valkey.names("sameflight:limit:*")
    assert names
    assert all(0 < int(str(valkey.ask("PTTL", name))) < 61_000 for name in names)


async def test_a_server_that_hangs_costs_its_time_out_once(private_valkey: ValkeyServer) -> None:
    """Then everybody is for himself, without waiting."""
    process = Process(private_valkey.url)
    process.shared._timeout_s = 0.05
    record = key(requests_per_minute=100)
    private_valkey.suspend()
    try:
        taken = [await ask(process.limiter, record) for _ in range(20)]
    finally:
        private_valkey.resume()
    assert None not in taken
    assert process.shared.errors == 1
    assert not process.shared.up
    await process.shared.close()


@pytest.mark.parametrize("url", ["", "memory://"])
def test_without_a_server_nothing_is_shared(url: str) -> None:
    """Limits are each process's own then."""
    assert make_rate_level(url) is None
