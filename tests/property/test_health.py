"""Places at a target under any interleaving of entering, answering, leaving, cancelling, time and reloads."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proxy.clock import Deadlines
from proxy.errors import ProxyError
from proxy.upstream.breaker import BreakerRules, State
from proxy.upstream.concurrency import LimitRules
from proxy.upstream.health import Health, HealthRules, Outcome, Place, TargetLimits
from tests.fakes.clock import FrozenClock

T = "provider/model"
RULES = HealthRules(
    breaker=BreakerRules(in_a_row=3, least=8, eject_s=3.0, most_eject_s=9.0),
    limit=LimitRules(start=3, floor=1, most=8),
)

steps = st.lists(
    st.one_of(
        st.tuples(st.just("try"), st.booleans()),
        st.tuples(st.just("enter"), st.integers(0, 2), st.booleans(), st.sampled_from((0.0, 0.4, 50.0))),
        st.tuples(st.just("enter"), st.integers(0, 2), st.booleans(), st.just(50.0)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("answer"), st.integers(0, 9)),
        st.tuples(st.just("leave"), st.integers(0, 9), st.sampled_from(Outcome)),
        st.tuples(st.just("leave"), st.integers(0, 9), st.sampled_from((Outcome.OK, Outcome.FAILED))),
        st.tuples(st.just("advance"), st.sampled_from((0.1, 0.5, 1.5, 4.0))),
        st.tuples(st.just("sweep")),
        st.tuples(st.just("turn")),
        st.tuples(st.just("keep"), st.sampled_from((0, 1, 4)), st.integers(0, 4)),
        st.tuples(st.just("forget")),
    ),
    min_size=20,
    max_size=90,
)


class Ward:
    """One target, those who hold places there and those who wait."""

    def __init__(self) -> None:
        self.clock = FrozenClock()
        self.deadlines = Deadlines(self.clock)
        self.health = Health(self.clock, self.deadlines, RULES, lambda: 0.5)
        self.health.keep({T: TargetLimits(max_queue=3)})
        self.kept = True
        self.held: list[Place] = []
        self.tasks: list[asyncio.Task[Place]] = []
        self.ended: Counter[str] = Counter()
        self.asked = 0

    @property
    def target(self):
        return self.health.targets.get(T)

    async def settle(self) -> None:
        """Let everybody run who can, and collect what came of it."""
        for _ in range(4):
            await asyncio.sleep(0)
        for task in [each for each in self.tasks if each.done()]:
            self.tasks.remove(task)
            if task.cancelled():
                self.ended["cancelled"] += 1
            elif (error := task.exception()) is not None:
                assert isinstance(error, ProxyError)
                self.ended[error.why] += 1
            else:
                self.ended["placed"] += 1
                self.held.append(task.result())

    async def step(self, what: str, *args) -> None:
        getattr(self, f"on_{what}")(*args)
        if what == "turn":
            await self.settle()

    def on_try(self, last: bool) -> None:
        target = self.target
        room = target is None or (target.in_flight < target.limit.most and not target.line.size)
        place = self.health.try_enter(T, b"0", last=last)
        if place is not None:
            assert room or place.probe
            self.held.append(place)
        else:
            assert not room or not last

    def on_enter(self, scope: int, last: bool, patience_s: float) -> None:
        deadline_at = self.clock.now() + patience_s
        self.asked += 1
        self.tasks.append(asyncio.ensure_future(self.health.enter(T, b"%d" % scope, deadline_at, last=last)))

    def on_cancel(self, which: int) -> None:
        if self.tasks:
            self.tasks[which % len(self.tasks)].cancel()

    def on_answer(self, which: int) -> None:
        if self.held:
            self.held[which % len(self.held)].answered(0.1)

    def on_leave(self, which: int, outcome: Outcome) -> None:
        if self.held:
            place = self.held.pop(which % len(self.held))
            place.leave(outcome)
            place.leave(Outcome.FAILED)

    def on_advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.deadlines.sweep()

    def on_sweep(self) -> None:
        self.health.sweep(self.clock.now())

    def on_turn(self) -> None:
        """The loop goes round."""

    def on_keep(self, most: int, queue: int) -> None:
        self.health.keep({T: TargetLimits(most, queue)})
        self.kept = True

    def on_forget(self) -> None:
        self.health.keep({})
        self.kept = False

    def measure(self) -> tuple[int, int]:
        """Under way, in line."""
        target = self.target
        return (target.in_flight, target.line.size) if target is not None else (0, 0)

    def check(self, before: tuple[int, int]) -> None:
        """After each step; ``before`` is what was measured before it."""
        target = self.target
        if target is None:
            assert not self.kept
            assert not self.held
            return
        assert target.in_flight >= len(self.held)
        under_way, queued = before
        # Above the limit after a cut or a lower bound only, and it takes a probe to go further, up to the bound.
        probe = under_way + 1 if target.breaker.probing else 0
        assert target.in_flight <= max(target.limit.most, under_way, probe)
        assert target.in_flight <= max(target.limit.cap, under_way)
        assert target.line.size <= max(target.limits.max_queue, queued)
        waiting = [each for each in target.line if not each.future.done()]
        assert not waiting or target.in_flight >= target.limit.most
        assert target.breaker.state is not State.OPEN or all(each.last for each in waiting)
        probes = [place for place in self.held if place.probe and place.epoch == target.breaker.epoch]
        assert len(probes) <= 1
        assert not probes or target.breaker.probing
        view = self.health.snapshot.views.get(T)
        if view is not None and target.breaker.state is not State.HALF_OPEN:
            assert view.open == (target.breaker.state is State.OPEN)

    def check_settled(self) -> None:
        """Once everybody has run: who holds a place is under way, who waits is in line, and nobody else."""
        in_flight, queued = self.measure()
        assert in_flight == len(self.held)
        assert queued == len(self.tasks) == self.deadlines.armed
        assert sum(self.ended.values()) + len(self.tasks) == self.asked


async def play(given_steps) -> None:
    ward = Ward()
    for step in given_steps:
        before = ward.measure()
        await ward.step(*step)
        ward.check(before)
        if step[0] == "turn":
            ward.check_settled()
    await ward.settle()
    while ward.held:
        ward.on_leave(0, Outcome.NEUTRAL)
        await ward.settle()
    ward.on_advance(60.0)
    await ward.settle()
    assert ward.tasks == []
    ward.check_settled()
    ward.on_forget()
    assert ward.health.targets == {}
    assert ward.health.snapshot.views == {}


_FAIL = [("try", False), ("leave", 0, Outcome.FAILED)]


@pytest.mark.long
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
@example([*_FAIL * 3, ("advance", 4.0), ("try", False), ("try", True), ("leave", 0, Outcome.FAILED), ("sweep",)])
def test_no_place_is_lost_or_made_up_and_every_wait_ends(given_steps) -> None:
    """What is under way is what was taken and not left, within the limit but after a cut; a line is bounded and never
    waits for room that is there; nobody is left behind."""
    asyncio.run(play(given_steps))
