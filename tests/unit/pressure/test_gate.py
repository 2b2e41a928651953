"""Refusing under overload, on a clock that stands still: when it begins, whom it meets, and how it ends."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import pytest

from proxy.errors import Kind
from proxy.pressure.gate import LEAST_SLOTS, Gate, GateLimits, Level

LONG_S = 0.15  # a turn beyond GateLimits.after_s
FINE_S = 0.002  # a turn within GateLimits.target_s
HIGH_S = 0.012  # a turn beyond the target and far below after_s


class House:
    """A gate with a loop whose turns and flights are what the test says."""

    def __init__(self, limits: GateLimits | None = None) -> None:
        self.now = 100.0
        self.in_air = 0
        self.started = 0
        self.began_at = 0.0
        self.gate = Gate(lambda: self.in_air, lambda: self.started, limits or GateLimits())
        self.turn(FINE_S, 60)

    def turn(self, length_s: float, times: int = 1) -> None:
        for _ in range(times):
            self.now += length_s
            self.gate.observe(self.now, length_s)

    def interval(self, length_s: float) -> None:
        """As many turns of this length as the interval that has just begun will have."""
        turns = 0
        while turns < 5 or self.now - self.began_at < 0.1:
            self.turn(length_s)
            turns += 1
        self.began_at = self.now

    def ask(self, times: int = 1, *, leads: bool = True) -> list[bool]:
        """Whether each is let in; who is and ``leads`` begins a flight if it may."""
        answers = []
        for _ in range(times):
            let_in = self.gate.admit(self.now) is None
            if let_in and leads:
                let_in = self.gate.has_slot
                if not let_in:
                    self.gate.refuse_lead()
                self.started += let_in
                self.in_air += let_in
            answers.append(let_in)
        return answers

    def overload(self, *, leads: bool = True, in_air: int = 200) -> None:
        """Two long turns in which requests came, behind one that ends a quiet interval."""
        self.in_air = in_air
        self.turn(LONG_S, 2)
        for _ in range(40):
            self.gate.admit(self.now)
            self.started += leads
        self.turn(LONG_S)
        self.began_at = self.now


def test_one_long_turn_is_a_burst_and_refuses_nobody() -> None:
    """A herd, a collection of garbage, a neighbour on the core: whatever it was, it is over."""
    house = House()
    house.turn(2.0)

    assert house.ask(50) == [True] * 50
    house.turn(FINE_S, 100)
    assert (house.gate.level, house.gate.sheds) == (Level.OPEN, 0)


def test_delay_that_falls_below_the_bound_once_in_an_interval_refuses_nobody() -> None:
    """What stands is a queue, what comes and goes is none."""
    house = House()
    for _ in range(20):
        house.turn(LONG_S)
        house.turn(0.08)

    assert house.gate.level is Level.OPEN


def test_two_long_turns_begin_to_refuse_whoever_finds_no_slot() -> None:
    """Where most requests begin flights, they are refused at the head."""
    house = House()
    house.overload()

    assert house.gate.level is Level.HEADS
    assert house.gate.slots < 200
    assert house.ask(10) == [False] * 10
    assert house.gate.refused["slots"] == 10


def test_the_end_of_a_second_long_turn_is_not_waited_for() -> None:
    """A turn that refuses nobody can be as long as its requests are many."""
    house = House()
    house.in_air = 200
    house.turn(LONG_S)
    house.started += 10
    house.now += 0.05
    early = house.ask(5)
    house.now += 0.06
    house.ask()

    assert early == [True] * 5
    assert house.gate.level is Level.HEADS
    assert house.ask(3) == [False] * 3


def test_followers_and_hits_are_spared_while_flights_are_refused() -> None:
    """A herd that asks the same is one flight; it is let in, and only who would begin another is not."""
    house = House()
    house.overload(leads=False)

    assert house.gate.level is Level.LEADS
    assert house.ask(100, leads=False) == [True] * 100
    assert house.ask(1) == [False]
    assert house.gate.refused["lead"] == 1


def test_a_flood_of_hits_meets_a_quota_when_sparing_them_does_not_help() -> None:
    """They take no slot, so that their number alone can be bounded."""
    house = House()
    house.overload(leads=False, in_air=0)
    for _ in range(3):
        house.ask(300, leads=False)
        house.interval(HIGH_S)
    let_in = house.ask(300, leads=False)

    assert house.gate.level is Level.HEADS
    assert house.gate.quota < inf
    assert 0 < sum(let_in) < 300
    assert house.gate.refused["quota"] > 0


def test_the_quota_grows_while_the_delay_is_on_target() -> None:
    """And lets as many more in."""
    house = House()
    house.overload(leads=False, in_air=0)
    for _ in range(3):
        house.ask(300, leads=False)
        house.interval(HIGH_S)
    quotas = []
    for _ in range(5):
        house.ask(2000, leads=False)
        house.interval(FINE_S)
        quotas.append(house.gate.quota)

    assert quotas == sorted(quotas)
    assert quotas[-1] > 1.5 * quotas[0]


def test_slots_grow_while_they_are_wanted_and_shrink_while_the_delay_is_too_long() -> None:
    """Doubling until they were too many for the first time, carefully afterwards."""
    house = House()
    house.overload()
    house.in_air = 0
    grown = [house.gate.slots]
    for _ in range(3):
        house.ask(1000)
        house.interval(FINE_S)
        grown.append(house.gate.slots)
        house.in_air = 0
    house.ask(1000)
    house.in_air = 5
    house.interval(HIGH_S)
    cut = house.gate.slots
    house.in_air = 0
    house.ask(1000)
    house.interval(FINE_S)

    assert [int(after / before) for before, after in pairwise(grown)] == [2, 2, 2]
    assert cut < grown[-1]
    assert house.gate.slots < 1.5 * cut


def test_slots_are_not_cut_again_while_what_was_let_in_before_runs_on() -> None:
    """Long streams end when they end; cutting meanwhile would leave the loop without work afterwards."""
    house = House()
    house.overload(in_air=500)
    slots = house.gate.slots
    for _ in range(20):
        house.interval(HIGH_S)

    assert house.gate.slots == slots


def test_a_few_flights_are_let_in_however_late_the_loop_is() -> None:
    """Without any work there would be nothing to learn from."""
    house = House()
    house.overload(in_air=1)
    house.in_air = 0
    for _ in range(30):
        house.interval(LONG_S)

    assert house.ask(LEAST_SLOTS) == [True] * LEAST_SLOTS
    assert house.ask(1) == [False]


def test_the_gate_opens_after_a_second_without_a_refusal() -> None:
    """And nothing is bounded from then on."""
    house = House()
    house.overload()
    house.in_air = 0
    for _ in range(9):
        house.interval(FINE_S)
    before = house.gate.level
    house.interval(FINE_S)

    assert before is Level.HEADS
    assert house.gate.level is Level.OPEN
    assert house.ask(1000) == [True] * 1000


def test_a_gate_that_is_switched_off_refuses_nobody() -> None:
    """By the setting of 0."""
    house = House(GateLimits(after_s=0.0))
    house.overload()
    house.turn(1.0, 20)

    assert house.ask(100) == [True] * 100


def test_a_closed_gate_refuses_everybody_until_it_is_opened() -> None:
    """Memory is short."""
    house = House()
    house.gate.closed = True
    refused = house.ask(10)
    house.gate.closed = False

    assert refused == [False] * 10
    assert house.gate.refused["memory"] == 10
    assert house.ask(1) == [True]


def test_the_refused_are_told_different_times_to_come_back() -> None:
    """So that they do not come back together."""
    house = House()
    house.gate.closed = True
    errors = [house.gate.admit(house.now) for _ in range(32)]
    waits = {error.retry_after_s for error in errors if error is not None}

    assert {error.kind for error in errors if error is not None} == {Kind.OVERLOADED}
    assert len(waits) == 16
    assert (min(waits), max(waits) < 2.0) == (1.0, True)  # type: ignore[type-var]


@pytest.mark.parametrize(("gap_s", "held"), [(0.00001, False), (0.0003, True)])
def test_connections_are_held_only_when_refusing_takes_much_of_the_time(gap_s: float, held: bool) -> None:
    """Of two hundred refusals in a row the last ones are held if each takes long."""
    house = House()
    house.overload()
    holds = []
    for _ in range(200):
        error = house.gate.admit(house.now)
        assert error is not None
        holds.append(house.gate.hold_s(error, house.now))
        house.now += gap_s

    assert holds[0] == 0.0
    assert (holds[-1] > 0.0) is held
    assert (house.gate.held > 0) is held


def test_what_the_gate_says_of_itself_is_plain_data() -> None:
    """For the admin port, with no infinity in it."""
    house = House()
    opened = house.gate.describe()
    house.overload()

    assert (opened["level"], opened["slots"], opened["quota"]) == ("OPEN", None, None)
    assert house.gate.describe()["slots"] == int(house.gate.slots)
