"""Deadlines on a clock that stands still: never early, at most one tick late, and free to be cancelled."""

import random
import time

import pytest

from proxy.clock import Clock, Deadlines
from tests.fakes.clock import FrozenClock

TICK_S = 0.02


@pytest.fixture
def clock():
    return FrozenClock()


@pytest.fixture
def deadlines(clock):
    return Deadlines(clock, TICK_S)


def test_system_clock_reads_the_system_clocks():
    """``now`` is the monotonic clock, ``wall`` the Unix epoch."""
    clock = Clock()
    before, wall_before = time.monotonic(), time.time()
    now, wall = clock.now(), clock.wall()
    assert before <= now <= time.monotonic()
    assert wall_before <= wall <= time.time()


def test_deadline_fires_once_when_its_time_has_come(clock, deadlines):
    """Not before, and not a second time."""
    fired = []
    deadlines.arm(1.0, lambda: fired.append("x"))
    clock.advance(0.99)
    assert (deadlines.sweep(), fired) == (0, [])
    clock.advance(0.03)
    assert (deadlines.sweep(), fired) == (1, ["x"])
    clock.advance(10)
    assert (deadlines.sweep(), deadlines.armed) == (0, 0)


def test_no_deadline_is_early_and_none_later_than_one_tick(clock, deadlines):
    """Whatever the fraction of a tick at which it was armed and the steps in which time moves."""
    order = random.Random(7)
    late = []
    for _ in range(500):
        clock.advance(order.random() * 0.05)
        at = clock.now() + order.random()
        deadlines.arm_at(at, lambda at=at: late.append(clock.now() - at))
        deadlines.sweep()
    while deadlines.armed:
        clock.advance(TICK_S / 7)
        deadlines.sweep()
    assert len(late) == 500
    assert min(late) >= 0
    # A sweep comes at the latest one step of the clock after the tick did, and 0.05 s in the first half.
    assert max(late) <= TICK_S + 0.05


def test_delay_of_zero_fires_at_the_next_tick(clock, deadlines):
    """A deadline in the past or present waits for the next slot instead of getting lost behind the sweep."""
    fired = []
    deadlines.arm(0.0, lambda: fired.append("now"))
    deadlines.arm_at(clock.now() - 5, lambda: fired.append("past"))
    assert deadlines.sweep() == 0
    clock.advance(TICK_S)
    assert deadlines.sweep() == 2
    assert sorted(fired) == ["now", "past"]


def test_cancelled_deadline_never_fires_and_leaves_nothing(clock, deadlines):
    """Cancelling twice is the same as once, and the slot goes with its last deadline."""
    deadline = deadlines.arm(1.0, lambda: pytest.fail("fired"))
    other = deadlines.arm(1.0, lambda: None)
    deadline.cancel()
    deadline.cancel()
    assert deadlines.armed == 1
    other.cancel()
    assert (deadlines.armed, deadlines._slots) == (0, {})
    clock.advance(2)
    assert deadlines.sweep() == 0


def test_cancel_after_it_fired_changes_nothing(clock, deadlines):
    """The owner need not know whether its deadline has fired."""
    deadline = deadlines.arm(0.1, lambda: None)
    clock.advance(1)
    deadlines.sweep()
    deadlines.arm(0.1, lambda: None)
    deadline.cancel()
    assert deadlines.armed == 1


def test_callback_that_answers_with_a_time_is_armed_again_for_it(clock, deadlines):
    """An idle time-out follows the last byte without touching the wheel for each byte."""
    last_byte, asked = [clock.now()], []

    def idle():
        asked.append(clock.now())
        due = last_byte[0] + 1.0
        return due if due > clock.now() else None

    deadlines.arm(1.0, idle)
    start = clock.now()
    for _ in range(80):
        clock.advance(TICK_S)
        if clock.now() - start < 0.5:
            last_byte[0] = clock.now()
        deadlines.sweep()
    assert len(asked) == 2
    assert asked[-1] - last_byte[0] == pytest.approx(1.0, abs=2 * TICK_S)
    assert deadlines.armed == 0


def test_callback_that_answers_with_a_past_time_fires_at_the_next_tick_only(clock, deadlines):
    """One sweep can not be kept busy for ever."""
    asked = []
    due = clock.now() + 0.1

    def impatient():
        asked.append(clock.now())
        return due if len(asked) < 3 else None

    deadlines.arm_at(due, impatient)
    clock.advance(1)
    assert [deadlines.sweep() for _ in range(3)] == [1, 0, 0]
    for _ in range(4):
        clock.advance(TICK_S)
        deadlines.sweep()
    assert len(asked) == 3


def test_deadline_cancelled_by_its_own_callback_is_not_armed_again(clock, deadlines):
    """Whatever the callback answers: whoever cancelled has let go of it."""
    asked = []

    def cancels_itself():
        asked.append(1)
        deadline.cancel()
        return clock.now() + 1

    deadline = deadlines.arm(0.1, cancels_itself)
    for _ in range(5):
        clock.advance(2)
        deadlines.sweep()
    assert (len(asked), deadlines.armed) == (1, 0)


def test_re_armed_deadline_can_be_cancelled(clock, deadlines):
    """The handle stays valid through every round."""
    deadline = deadlines.arm(0.1, lambda: clock.now() + 1)
    clock.advance(1)
    deadlines.sweep()
    deadline.cancel()
    assert (deadlines.armed, deadlines._slots) == (0, {})


def test_callback_may_cancel_another_that_is_due_in_the_same_sweep(clock, deadlines):
    """Of two deadlines in one slot each of which cancels the other exactly one fires."""
    fired = []
    handles = {}

    def one_of(name, other):
        def fire():
            fired.append(name)
            handles[other].cancel()

        return fire

    handles["a"] = deadlines.arm(0.1, one_of("a", "b"))
    handles["b"] = deadlines.arm(0.1, one_of("b", "a"))
    clock.advance(1)
    assert deadlines.sweep() == 1
    assert len(fired) == 1
    assert (deadlines.armed, deadlines._slots) == (0, {})


def test_callback_may_arm_new_deadlines(clock, deadlines):
    """They wait for a later sweep, even when they are due at once."""
    fired = []
    deadlines.arm(0.1, lambda: deadlines.arm(0.0, lambda: fired.append("second")) and None)
    clock.advance(1)
    assert (deadlines.sweep(), fired) == (1, [])
    clock.advance(TICK_S)
    assert (deadlines.sweep(), fired) == (1, ["second"])


def test_long_pause_fires_everything_in_the_order_of_its_time(clock, deadlines):
    """A suspended machine wakes up: one sweep visits the armed slots alone."""
    fired = []
    for delay_s in (5.0, 1.0, 86_400.0, 3.0):
        deadlines.arm(delay_s, lambda delay_s=delay_s: fired.append(delay_s))
    clock.advance(1_000_000)
    assert deadlines.sweep() == 4
    assert fired == [1.0, 3.0, 5.0, 86_400.0]


def test_failing_callback_does_not_lose_the_others(clock, deadlines):
    """Its error comes out of this sweep, and what was due behind it fires with the next."""
    fired = []
    deadlines.arm(0.1, lambda: 1 / 0)
    deadlines.arm(0.5, lambda: fired.append("later"))
    clock.advance(1)
    with pytest.raises(ZeroDivisionError):
        deadlines.sweep()
    assert deadlines.armed == 1
    clock.advance(TICK_S)
    deadlines.sweep()
    assert (fired, deadlines.armed, deadlines._slots) == (["later"], 0, {})


def test_many_deadlines_leave_no_trace(clock, deadlines):
    """10,000 armed, half of them cancelled, the others fired: the wheel is as it was."""
    handles = [deadlines.arm(number % 97 / 10, lambda: None) for number in range(10_000)]
    for handle in handles[::2]:
        handle.cancel()
    assert deadlines.armed == 5_000
    clock.advance(100)
    assert deadlines.sweep() == 5_000
    assert (deadlines.armed, deadlines._slots) == (0, {})
