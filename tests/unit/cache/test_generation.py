"""What a process knows of a namespace's generation, and what it owes the server."""

import pytest

from proxy.cache.generation import Generation
from tests.fakes.clock import FrozenClock


class Heard(list[int]):
    """The numbers at which the process was told to drop what it holds."""


@pytest.fixture
def clock(frozen_clock: FrozenClock) -> FrozenClock:
    return frozen_clock


def known(clock: FrozenClock, value: int) -> tuple[Generation, Heard]:
    generation, heard = Generation(clock, value), Heard()
    generation.on_change = lambda: heard.append(generation.value)
    return generation, heard


def test_a_purge_raises_the_number_at_once_and_is_owed(clock):
    """Whoever purges needs no server to be rid of what it has; dropping the rest is its own matter."""
    generation, heard = known(clock, 7)
    generation.advance()
    assert generation.value == int(clock.wall() * 1e6)
    assert (generation.owes, heard) == (True, [])
    debt = generation.debt()
    generation.settle(debt, debt.known)
    assert (generation.owes, heard, generation.changes) == (False, [], 0)


def test_purges_within_one_microsecond_raise_the_number_each(clock):
    """A clock that stands or went back makes no difference."""
    generation, _ = known(clock, 0)
    generation.advance()
    first = generation.value
    clock.set_wall(clock.wall() - 1000.0)
    generation.advance()
    assert generation.value == first + 1


def test_a_greater_number_is_taken_over_in_one_step_with_the_purge(clock):
    """Between them nobody can look anything up."""
    generation, heard = known(clock, 7)
    generation.settle(generation.debt(), 9)
    assert (generation.value, heard, generation.changes) == (9, [9], 1)
    generation.settle(generation.debt(), 9)
    assert heard == [9]


def test_the_first_number_purges_as_well_but_is_no_change(clock):
    """What was held before may be older than a purge that nobody could tell us of."""
    generation, heard = known(clock, 0)
    assert not generation.agrees(b"0")
    generation.settle(generation.debt(), 9)
    assert (heard, generation.changes) == ([9], 0)


def test_a_purge_while_the_server_is_being_told_is_owed_still(clock):
    """And the number does not go back to what the server said to the one before."""
    generation, heard = known(clock, 7)
    generation.advance()
    debt = generation.debt()
    generation.advance()
    last = generation.value
    generation.settle(debt, debt.known)
    assert (generation.value, generation.owes, heard) == (last, True, [])
    generation.settle(generation.debt(), last)
    assert not generation.owes


def test_a_purge_is_owed_until_the_server_was_told(clock):
    """Asking for what is owed pays nothing."""
    generation, _ = known(clock, 7)
    generation.announce("cause")
    generation.advance()
    assert generation.debt() == generation.debt()
    assert (generation.debt().is_purge, generation.debt().cause) == (True, "cause")
    assert generation.owes


def test_a_cause_that_came_meanwhile_is_owed_still(clock):
    """The one that was told is not."""
    generation, _ = known(clock, 7)
    generation.announce("first")
    debt = generation.debt()
    generation.announce("second")
    generation.settle(debt, 8)
    assert (generation.owes, generation.debt().cause) == (True, "second")


@pytest.mark.parametrize("held", [None, b"", b"8", b"07", b" 7", b"7\n", "7", 7])
def test_only_the_very_same_number_agrees(clock, held):
    """In the one way it is written."""
    generation, _ = known(clock, 7)
    assert generation.agrees(b"7")
    assert not generation.agrees(held)
