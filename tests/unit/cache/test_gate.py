"""The bound on callers inside and before."""

import asyncio

import pytest

from proxy.cache.gate import Gate
from tests.fakes.gates import run_ticks


async def test_callers_beyond_the_places_enter_in_turn():
    """One leaves, one enters; the order is that of coming."""
    gate, order, leave = Gate(1, 5), [], asyncio.Event()

    async def pass_through(number: int) -> None:
        async with gate:
            order.append(number)
            await leave.wait()

    tasks = [asyncio.create_task(pass_through(number)) for number in range(3)]
    await run_ticks()
    assert (order, gate.waiting, gate.full) == ([0], 2, False)
    leave.set()
    await asyncio.wait(tasks)
    assert (order, gate.waiting) == ([0, 1, 2], 0)


async def test_a_gate_is_full_only_while_somebody_would_have_to_wait():
    """Without room to wait, a free place is still a place."""
    gate = Gate(1, 0)
    assert not gate.full
    async with gate:
        assert gate.full
    assert not gate.full


async def test_a_caller_that_fails_or_is_cancelled_leaves_its_place():
    """Inside as well as before the gate."""
    gate = Gate(1, 5)
    with pytest.raises(ValueError, match="inside"):
        async with gate:
            raise ValueError("inside")

    async def stay() -> None:
        async with gate:
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(stay()) for _ in range(2)]
    await run_ticks()
    for task in reversed(tasks):
        task.cancel()
    await asyncio.wait(tasks)
    assert gate.waiting == 0
    async with gate:
        assert gate.waiting == 0
