"""One origin's pool alone: slots, and who gets them in the rare orders of events."""

from __future__ import annotations

import asyncio

import pytest

from proxy.clock import Deadlines
from proxy.errors import Kind, ProxyError
from proxy.upstream.base import Origin
from proxy.upstream.counts import Counts
from proxy.upstream.pool import Limits, OriginPool
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks

NEVER = 1e9


class FakeConnection:
    """As much of a connection as its pool sees."""

    def __init__(self, pool: OriginPool) -> None:
        self._pool = pool
        self.closed = self.adopted = False
        self.opened_at = self.idle_since = 0.0

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            self._pool.discard(self)  # type: ignore[arg-type]


class Rig:
    def __init__(self, clock: FrozenClock, **limits: float) -> None:
        self.clock = clock
        self.deadlines = Deadlines(clock)
        self.counts = Counts()
        bounds = Limits()._replace(**limits)  # type: ignore[arg-type]
        self.pool = OriginPool(Origin("http", "h", 80), bounds, self.counts, self.deadlines)

    async def reserve(self, *, fresh: bool = False) -> object:
        return await self.pool.reserve(self.clock.now(), NEVER, fresh=fresh)

    async def open(self) -> FakeConnection:
        """A busy connection in a slot of its own."""
        assert await self.reserve() is None
        connection = FakeConnection(self.pool)
        connection.opened_at = self.clock.now()
        self.pool.adopt(connection)  # type: ignore[arg-type]
        return connection

    def release(self, connection: FakeConnection) -> None:
        self.pool.release(connection, self.clock.now())  # type: ignore[arg-type]

    async def in_line(self, *, fresh: bool = False) -> asyncio.Task[object]:
        task = asyncio.ensure_future(self.reserve(fresh=fresh))
        await run_ticks(2)
        assert not task.done()
        return task

    @property
    def state(self) -> tuple[int, int, int, int]:
        """Idle, busy, opening, waiting."""
        seen = self.pool.describe()
        return seen["idle"], seen["busy"], seen["opening"], seen["waiting"]


async def test_slot_of_a_failed_attempt_goes_to_the_next_in_line(frozen_clock: FrozenClock) -> None:
    """Who waits gets the slot, not whoever comes next."""
    rig = Rig(frozen_clock, max_connections=1)
    await rig.reserve()
    waiting = await rig.in_line()
    rig.pool.abandon()
    assert (await waiting, rig.state) == (None, (0, 0, 1, 0))


async def test_slot_of_a_closed_connection_goes_to_the_next_in_line(frozen_clock: FrozenClock) -> None:
    """The same for a connection that broke."""
    rig = Rig(frozen_clock, max_connections=1)
    connection = await rig.open()
    waiting = await rig.in_line()
    connection.abort()
    assert (await waiting, rig.state) == (None, (0, 0, 1, 0))


async def test_connection_that_dies_on_its_way_to_a_waiter_is_not_handed_out(frozen_clock: FrozenClock) -> None:
    """Its slot is free again, so the waiter opens one of its own."""
    rig = Rig(frozen_clock, max_connections=1)
    connection = await rig.open()
    waiting = await rig.in_line()
    rig.release(connection)
    connection.abort()
    assert (await waiting, rig.state) == (None, (0, 0, 1, 0))


async def test_waiter_for_a_fresh_connection_swaps_the_used_one_it_is_handed(frozen_clock: FrozenClock) -> None:
    """The connection goes, the slot stays, and nobody behind in the line gets it."""
    rig = Rig(frozen_clock, max_connections=1)
    connection = await rig.open()
    fresh = await rig.in_line(fresh=True)
    behind = await rig.in_line()
    rig.release(connection)
    assert (await fresh, connection.closed, behind.done()) == (None, True, False)
    assert rig.state == (0, 0, 1, 1)
    rig.pool.abandon()
    assert (await behind, rig.state) == (None, (0, 0, 1, 0))


async def test_fresh_connection_at_the_bound_evicts_the_oldest_idle_one(frozen_clock: FrozenClock) -> None:
    """A retry needs a slot, not one more stale connection."""
    rig = Rig(frozen_clock, max_connections=2)
    oldest, newest = await rig.open(), await rig.open()
    rig.release(oldest)
    rig.release(newest)
    assert await rig.reserve(fresh=True) is None
    assert (oldest.closed, newest.closed, rig.state) == (True, False, (1, 0, 1, 0))


async def test_newcomer_does_not_overtake_the_line(frozen_clock: FrozenClock) -> None:
    """First come, first served."""
    rig = Rig(frozen_clock, max_connections=1)
    connection = await rig.open()
    first, second = await rig.in_line(), await rig.in_line()
    rig.release(connection)
    assert await first is connection
    assert not second.done()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert rig.state == (0, 1, 0, 0)


async def test_waiter_cancelled_with_a_slot_in_its_hand_passes_it_on(frozen_clock: FrozenClock) -> None:
    """Promised, then cancelled before it woke."""
    rig = Rig(frozen_clock, max_connections=1)
    connection = await rig.open()
    first, second = await rig.in_line(), await rig.in_line()
    connection.abort()
    first.cancel()
    assert (await second, rig.state) == (None, (0, 0, 1, 0))
    assert first.cancelled()


async def test_waiter_cancelled_with_its_refusal_on_the_way_is_cancelled(frozen_clock: FrozenClock) -> None:
    """Its deadline passed in the same tick; nothing is given back, as nothing was given."""
    rig = Rig(frozen_clock, max_connections=1)
    await rig.open()
    waiting = await rig.in_line()
    frozen_clock.advance(1.1)
    rig.deadlines.sweep()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert rig.state == (0, 1, 0, 0)


async def test_line_is_left_at_the_deadline(frozen_clock: FrozenClock) -> None:
    """With a refusal that names the queue."""
    rig = Rig(frozen_clock, max_connections=1)
    await rig.open()
    waiting = await rig.in_line()
    frozen_clock.advance(1.1)
    rig.deadlines.sweep()
    with pytest.raises(ProxyError) as caught:
        await waiting
    assert (caught.value.kind, caught.value.why) == (Kind.OVERLOADED, "pool_queue")
    assert (rig.state, rig.deadlines.armed, rig.counts.waiting) == ((0, 1, 0, 0), 0, 0)


async def test_pool_without_slots_in_use_is_empty(frozen_clock: FrozenClock) -> None:
    """That is when its origin may be forgotten."""
    rig = Rig(frozen_clock)
    assert rig.pool.is_empty
    connection = await rig.open()
    assert not rig.pool.is_empty
    connection.abort()
    assert rig.pool.is_empty
