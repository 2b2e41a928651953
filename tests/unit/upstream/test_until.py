"""Deadlines of the wheel around awaits."""

from __future__ import annotations

import asyncio

import pytest

from proxy.clock import Deadlines
from proxy.upstream.until import Until
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, run_ticks


async def wait_at(gate: Gate, until: Until) -> None:
    async with until:
        await gate.wait()


async def test_block_ends_with_a_time_out_at_its_deadline(frozen_clock: FrozenClock) -> None:
    """Not before, and no later than the sweep after it."""
    deadlines, gate = Deadlines(frozen_clock), Gate()
    until = Until(deadlines, frozen_clock.now() + 5.0)
    waiting = asyncio.ensure_future(wait_at(gate, until))
    await gate.reached()
    frozen_clock.advance(4.9)
    deadlines.sweep()
    await run_ticks()
    assert not waiting.done()
    frozen_clock.advance(0.2)
    deadlines.sweep()
    with pytest.raises(TimeoutError):
        await waiting
    assert (until.expired, deadlines.armed) == (True, 0)


async def test_block_that_ends_in_time_leaves_the_wheel(frozen_clock: FrozenClock) -> None:
    """Nothing fires later."""
    deadlines, gate = Deadlines(frozen_clock), Gate(opened=True)
    until = Until(deadlines, frozen_clock.now() + 5.0)
    await wait_at(gate, until)
    assert (until.expired, deadlines.armed) == (False, 0)


async def test_cancellation_of_the_task_stays_a_cancellation(frozen_clock: FrozenClock) -> None:
    """Only the wheel's own becomes a time-out."""
    deadlines, gate = Deadlines(frozen_clock), Gate()
    waiting = asyncio.ensure_future(wait_at(gate, Until(deadlines, frozen_clock.now() + 5.0)))
    await gate.reached()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert deadlines.armed == 0


@pytest.mark.parametrize(("moved_s", "fires_s"), [(2.0, 2.1), (9.0, 9.1)])
async def test_deadline_can_be_moved_both_ways(frozen_clock: FrozenClock, moved_s: float, fires_s: float) -> None:
    """The new one counts, whichever comes first."""
    deadlines, gate = Deadlines(frozen_clock), Gate()
    until = Until(deadlines, frozen_clock.now() + 5.0)
    waiting = asyncio.ensure_future(wait_at(gate, until))
    await gate.reached()
    until.move(frozen_clock.now() + moved_s)
    for _ in range(int(moved_s * 2) - 1):
        frozen_clock.advance(0.5)
        deadlines.sweep()
    await run_ticks()
    assert not waiting.done()
    frozen_clock.advance(fires_s - (moved_s - 0.5))
    deadlines.sweep()
    with pytest.raises(TimeoutError):
        await waiting


async def test_time_out_of_the_body_itself_is_not_ours(frozen_clock: FrozenClock) -> None:
    """A kernel's ETIMEDOUT is a TimeoutError too."""
    until = Until(Deadlines(frozen_clock), frozen_clock.now() + 5.0)
    with pytest.raises(TimeoutError):
        async with until:
            raise TimeoutError(110, "connection timed out")
    assert not until.expired
