"""The length of the loop's turns, on a loop that is turned by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from proxy.pressure.turns import Turns
from tests.fakes.clock import FrozenClock


class Loop:
    """Runs what was ready at the beginning of a turn, and lets the turn last."""

    def __init__(self, clock: FrozenClock) -> None:
        self.clock = clock
        self.ready: deque[Callable[[], object]] = deque()

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.ready.append(callback)

    def turn(self, length_s: float) -> None:
        for _ in range(len(self.ready)):
            self.ready.popleft()()
        self.clock.advance(length_s)


def make() -> tuple[Loop, Turns, list[float]]:
    clock = FrozenClock()
    loop = Loop(clock)
    seen: list[float] = []
    return loop, Turns(loop, clock, lambda now, took_s: seen.append(round(took_s, 6))), seen


def test_a_quiet_loop_is_measured_once_for_each_tick() -> None:
    """And sleeps in between."""
    loop, turns, seen = make()
    turns.tick()
    for _ in range(5):
        loop.turn(0.0001)

    assert (seen, len(loop.ready)) == ([0.0001], 0)


def test_long_turns_are_measured_one_after_another() -> None:
    """Until one is short again."""
    loop, turns, seen = make()
    turns.tick()
    loop.turn(0.003)
    loop.turn(0.2)
    loop.turn(0.05)
    loop.turn(0.0)
    loop.turn(0.0)

    assert (seen, len(loop.ready)) == ([0.003, 0.2, 0.05, 0.0], 0)


def test_a_tick_while_a_turn_is_being_measured_adds_nothing() -> None:
    """The janitor ticks on during a long turn."""
    loop, turns, seen = make()
    turns.tick()
    turns.tick()
    loop.turn(0.01)
    turns.tick()
    loop.turn(0.01)

    assert len(loop.ready) == 1
    assert seen == [0.01]
