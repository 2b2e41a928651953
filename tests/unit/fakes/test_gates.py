"""Waiting: what passes, what fails, and what the failure says."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.gates import Gate, wait_until, within


async def test_gate_opened_by_another_task_lets_everybody_pass() -> None:
    """Whoever waits at a gate goes on once it is open, and was counted on arrival."""
    gate = Gate("runway")
    passed: list[int] = []

    async def pass_by(number: int) -> None:
        await gate.wait()
        passed.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(pass_by(number))
        await gate.reached(3)
        assert passed == []
        gate.open()
    assert sorted(passed) == [0, 1, 2]


async def test_gate_closed_again_holds_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that nobody opens fails the test by its name."""
    monkeypatch.setattr("tests.fakes.gates.LIMIT_S", 0.02)
    gate = Gate("runway", opened=True)
    await gate.wait()
    gate.close()
    with pytest.raises(AssertionError, match="runway was opened"):
        await gate.wait()


async def test_wait_until_returns_at_once_for_what_is_true() -> None:
    """A predicate that holds is asked once."""
    answers = iter([True])
    await wait_until(lambda: next(answers), "never shown")
    assert list(answers) == []


async def test_wait_until_sees_what_a_timer_changes() -> None:
    """The wait lets timers fire, not only ready tasks."""
    seen: list[str] = []
    asyncio.get_running_loop().call_later(0.005, seen.append, "fired")
    await wait_until(lambda: seen, "the timer fired")
    assert seen == ["fired"]


async def test_wait_until_for_what_never_happens_fails_with_its_name() -> None:
    """The message says what was awaited and for how long."""
    with pytest.raises(AssertionError, match=r"within 0\.02 s: pigs fly"):
        await wait_until(lambda: False, "pigs fly", limit_s=0.02)


async def test_within_names_what_did_not_happen() -> None:
    """A plain awaitable gets the same limit and the same message."""
    with pytest.raises(AssertionError, match="the future was set"):
        await within(asyncio.get_running_loop().create_future(), "the future was set", limit_s=0.02)


async def test_within_passes_on_a_time_out_that_is_not_its_own() -> None:
    """A TimeoutError of what is awaited stays a TimeoutError."""

    async def fail() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await within(fail(), "never shown")
