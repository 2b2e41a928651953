"""The one timer behind every periodic duty, driven tick by tick on a clock that stands still in between."""

import asyncio
import heapq
from collections.abc import Callable

import pytest

from proxy.clock import Clock, Deadlines
from proxy.janitor import Duration, Janitor
from tests.fakes.clock import FrozenClock

TICK_S = 0.25  # a power of two, so that sums of ticks are exact


class SteppedTimer:
    def __init__(self, at: float, callback: Callable[[], object]) -> None:
        self.at = at
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def __lt__(self, other: "SteppedTimer") -> bool:
        return self.at < other.at


class SteppedLoop:
    """Timers that fire when a test says so; time moves to each timer, and ``late_s`` beyond it."""

    def __init__(self, clock: FrozenClock) -> None:
        self.clock = clock
        self.timers: list[SteppedTimer] = []
        self.late_s = 0.0

    def call_later(self, delay: float, callback: Callable[[], object]) -> SteppedTimer:
        timer = SteppedTimer(self.clock.now() + delay, callback)
        heapq.heappush(self.timers, timer)
        return timer

    @property
    def armed(self) -> int:
        return sum(not timer.cancelled for timer in self.timers)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            timer = heapq.heappop(self.timers)
            if not timer.cancelled:
                self.clock.advance(max(0.0, timer.at + self.late_s - self.clock.now()))
                timer.callback()


class Lines:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []

    def error(self, event: str, /, **fields: object) -> None:
        self.lines.append({"event": event, **fields})


class House:
    """A janitor with a loop, a clock, deadlines and a log of its own."""

    def __init__(self) -> None:
        self.clock = FrozenClock(now=1000.0)
        self.loop = SteppedLoop(self.clock)
        self.deadlines = Deadlines(self.clock, TICK_S)
        self.log = Lines()
        self.lags: list[float] = []
        self.janitor = Janitor(
            self.clock, self.deadlines, loop=self.loop, log=self.log, observe_lag=self.lags.append
        )

    def times_of(self, name: str, every_s: float) -> list[float]:
        """Add a duty that notes when it runs, in seconds since the start."""
        times: list[float] = []
        self.janitor.add(name, every_s, lambda: times.append(self.clock.now() - 1000.0))
        return times


@pytest.fixture
def house() -> House:
    return House()


def test_duties_run_each_at_its_own_period(house):
    """One every second, one every two and a half; a run that had to wait does not shift those after it."""
    quick, slow = house.times_of("quick", 1.0), house.times_of("slow", 2.5)
    house.janitor.start()
    house.loop.step(30)
    assert quick == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert slow == [2.5, 5.25, 7.5]


def test_duties_due_in_the_same_tick_run_in_ticks_of_their_own(house):
    """So that their times do not add up to one pause; each keeps its period all the same."""
    one, two = house.times_of("one", 1.0), house.times_of("two", 1.0)
    house.janitor.start()
    house.loop.step(9)
    assert (one, two) == ([1.0, 2.0], [1.25, 2.25])


def test_deadlines_fire_with_the_ticks(house):
    """The wheel is swept in each of them."""
    fired = []
    house.deadlines.arm(0.4, lambda: fired.append(house.clock.now() - 1000.0))
    house.janitor.start()
    house.loop.step(4)
    assert fired == [0.5]
    assert house.janitor.durations["deadlines"].runs == 4


def test_duty_that_fails_stops_neither_the_others_nor_itself(house):
    """It is counted and comes round again."""
    house.janitor.add("broken", 1.0, lambda: 1 / 0)
    sound = house.times_of("sound", 1.0)
    house.janitor.start()
    house.loop.step(13)
    assert sound == [1.25, 2.25, 3.25]
    assert house.janitor.durations["broken"].failures == 3
    assert house.janitor.durations["sound"].failures == 0


def test_failures_of_a_duty_are_logged_once_a_minute(house):
    """Each duty on its own account, with the number of failures so far and the error itself."""
    house.janitor.add("one", 1.0, lambda: 1 / 0)
    house.janitor.add("two", 1.0, lambda: int("x"))
    house.janitor.start()
    house.loop.step(4 * 62)
    told = [(line["event"], line["duty"], line["failures"]) for line in house.log.lines]
    assert told == [
        ("duty_failed", "one", 1),
        ("duty_failed", "two", 1),
        ("duty_failed", "one", 61),
        ("duty_failed", "two", 61),
    ]
    assert isinstance(house.log.lines[0]["exc_info"], ZeroDivisionError)


def test_deadline_that_fails_is_counted_and_the_rest_fire_a_tick_later(house):
    """One bad callback does not take the others' time-outs with it."""
    fired = []
    house.deadlines.arm(0.1, lambda: fired.append("first"))
    house.deadlines.arm(0.1, lambda: 1 / 0)
    house.janitor.start()
    house.loop.step(2)
    assert fired == ["first"]
    assert (house.janitor.durations["deadlines"].failures, house.deadlines.armed) == (1, 0)


def test_cancellation_raised_in_a_duty_does_not_end_the_ticks(house):
    """Without the next tick no deadline would ever fire again."""
    times = []

    def cancel() -> None:
        times.append(house.clock.now() - 1000.0)
        raise asyncio.CancelledError

    house.janitor.add("cancels", 1.0, cancel)
    house.janitor.start()
    house.loop.step(3)
    with pytest.raises(asyncio.CancelledError):
        house.loop.step()
    house.loop.step(3)
    assert (times, house.loop.armed) == ([1.0], 1)


def test_lag_is_how_late_the_loop_woke_the_janitor(house):
    """Intended against actual time, told to the observer in each tick."""
    house.janitor.start()
    house.loop.step()
    house.loop.late_s = 0.125
    house.loop.step()
    assert house.lags == [0.0, 0.125]
    assert house.janitor.lag_s == 0.125


def test_lag_fades_by_half_in_fifteen_seconds(house):
    """A short stall can still be seen at the next scrape, and not for ever."""
    house.janitor.start()
    house.loop.late_s = 2.0
    house.loop.step()
    house.loop.late_s = 0.0
    house.loop.step(60)
    assert house.janitor.lag_s == pytest.approx(1.0)
    house.loop.step(60 * 10)
    assert house.janitor.lag_s < 0.001


def test_ticks_and_periods_missed_in_a_stall_are_not_made_up_for(house):
    """After ten seconds without the loop there is one tick, not forty, and one run of each duty."""
    times = house.times_of("duty", 1.0)
    house.janitor.start()
    house.loop.late_s = 10.0
    house.loop.step()
    house.loop.late_s = 0.0
    house.loop.step(8)
    assert times == [10.25, 11.25, 12.25]
    assert house.lags == [10.0, *[0.0] * 8]


def test_time_a_duty_takes_is_on_its_books_and_does_not_delay_the_next_tick(house):
    """The ticks stay on their grid as long as a tick is not skipped."""
    seconds = iter((0.125, 0.0625))
    house.janitor.add("slow", 1.0, lambda: house.clock.advance(next(seconds)))
    house.janitor.start()
    house.loop.step(8)
    assert house.janitor.durations["slow"] == Duration(0.0625, 0.125, 0.1875, 2, 0)
    assert house.clock.now() == 1002.0 + 0.0625
    assert set(house.lags) == {0.0}


def test_janitor_arms_one_timer_and_no_more(house):
    """Also when it is started twice, or stopped and started within a duty."""
    house.janitor.add("restarts", 1.0, lambda: (house.janitor.stop(), house.janitor.start()))
    house.janitor.start()
    house.janitor.start()
    for _ in range(10):
        assert house.loop.armed == 1
        house.loop.step()


def test_stopped_janitor_does_nothing_more_until_it_is_started(house):
    """Stopping twice is as good as once; time that passed meanwhile is no lag."""
    times = house.times_of("duty", 1.0)
    house.janitor.start()
    house.loop.step(4)
    house.janitor.stop()
    house.janitor.stop()
    assert house.loop.armed == 0
    house.clock.advance(100.0)
    house.loop.timers.clear()
    house.janitor.start()
    house.loop.step(1)
    assert (times, house.janitor.lag_s) == ([1.0, 101.25], 0.0)


def test_janitor_stopped_by_a_deadline_runs_no_duty_in_that_tick(house):
    """What was closed behind it must not be swept."""
    times = house.times_of("duty", 0.5)
    house.deadlines.arm(0.3, house.janitor.stop)
    house.janitor.start()
    house.loop.step(2)
    assert (times, house.loop.armed) == ([], 0)


@pytest.mark.parametrize(("name", "every_s"), [("taken", 1.0), ("deadlines", 1.0), ("new", 0.0), ("new", -1.0)])
def test_duty_without_a_name_or_period_of_its_own_is_refused(house, name, every_s):
    """Books are kept by name, and a period of nothing would be a busy loop."""
    house.janitor.add("taken", 1.0, list)
    with pytest.raises(ValueError, match="a new name and a positive period"):
        house.janitor.add(name, every_s, list)


async def test_janitor_on_a_real_loop_runs_a_duty_and_leaves_nothing_behind():
    """The running loop is the one it uses."""
    clock = Clock()
    ran = asyncio.Event()
    janitor = Janitor(clock, Deadlines(clock, 0.001))
    janitor.add("duty", 0.001, ran.set)
    janitor.start()
    await ran.wait()
    janitor.stop()
    assert all(handle.cancelled() for handle in asyncio.get_running_loop()._scheduled)
    assert janitor.durations["duty"].runs >= 1
