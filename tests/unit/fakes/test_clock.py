"""The clock that a test moves."""

from __future__ import annotations

import pytest

from proxy.clock import Deadlines
from tests.fakes.clock import FrozenClock


def test_frozen_clock_moves_both_times_by_the_same_amount(frozen_clock: FrozenClock) -> None:
    """Monotonic and wall time advance together."""
    now, wall = frozen_clock.now(), frozen_clock.wall()
    frozen_clock.advance(2.5)
    assert (frozen_clock.now() - now, frozen_clock.wall() - wall) == (2.5, 2.5)


def test_frozen_clock_asked_to_go_back_refuses(frozen_clock: FrozenClock) -> None:
    """Monotonic time is monotonic in tests too."""
    with pytest.raises(ValueError, match="cannot go back"):
        frozen_clock.advance(-1)


def test_wall_clock_jump_leaves_monotonic_time_alone(frozen_clock: FrozenClock) -> None:
    """A time server may move the wall clock and nothing else."""
    now = frozen_clock.now()
    frozen_clock.set_wall(5.0)
    assert (frozen_clock.wall(), frozen_clock.now()) == (5.0, now)


def test_deadline_on_a_frozen_clock_fires_when_the_clock_has_passed_it(frozen_clock: FrozenClock) -> None:
    """The wheel of deadlines can be driven by hand."""
    wheel = Deadlines(frozen_clock, tick_s=0.5)
    fired: list[float] = []
    wheel.arm(10.0, lambda: fired.append(frozen_clock.now()))
    frozen_clock.advance(9.0)
    assert wheel.sweep() == 0
    frozen_clock.advance(2.0)
    assert (wheel.sweep(), fired) == (1, [1011.0])
