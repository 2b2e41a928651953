"""Requests, retries and upstreams that fail, all in simulated time: how much load retries add, and what they save."""

from __future__ import annotations

import heapq
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from proxy.upstream.retries import COSTS, RetryGates, RetryRules, Why, pause_s
from tests.fakes.clock import FrozenClock

ATTEMPTS = 3
_EJECT_AFTER, _EJECT_S = 5, 30.0


@dataclass
class FailingTarget:
    """An upstream. ``fails`` is a probability at a time; a failure is known after ``failure_s``."""

    name: str
    fails: Callable[[float], float] = lambda now: 0.0
    why: Why = "failed"
    answer_s: float = 0.2
    failure_s: float = 0.05
    ejects: bool = True
    """Whether a breaker takes it out after five failures in a row, for 30 s, and lets one request try then."""
    most: int = 1_000_000
    """Calls at once; whoever finds it full goes elsewhere."""
    running: int = 0
    in_row: int = 0
    out_until: float = 0.0
    calls: int = 0

    def is_in(self, now: float) -> bool:
        return self.running < self.most and (not self.ejects or self.in_row < _EJECT_AFTER or now >= self.out_until)

    def call(self, now: float, draw: float) -> tuple[bool, float]:
        """Whether it will answer, and after how long. A call after the ejection is the only one until it ends."""
        self.calls += 1
        self.running += 1
        if self.in_row >= _EJECT_AFTER:
            self.out_until = now + _EJECT_S
        fine = draw >= self.fails(now)
        return fine, self.answer_s if fine else self.failure_s

    def learn(self, fine: bool, now: float) -> None:
        self.running -= 1
        self.in_row = 0 if fine else self.in_row + 1
        if self.in_row == _EJECT_AFTER:
            self.out_until = now + _EJECT_S


@dataclass
class Flight:
    """One request on its way."""

    started: float
    order: list[FailingTarget]
    attempt: int = 1
    owed: tuple[str, Why] | None = None
    """The retry that the gates are to be told about when it is over."""


@dataclass
class Scene:
    """What happened. Times in seconds since the start."""

    requests: list[float] = field(default_factory=list)
    retries: list[float] = field(default_factory=list)
    """Those that reached an upstream a further time."""
    free: int = 0
    succeeded: list[float] = field(default_factory=list)
    """When the flights began that were answered."""
    failed: list[float] = field(default_factory=list)

    @property
    def success_rate(self) -> float:
        return len(self.succeeded) / (len(self.succeeded) + len(self.failed))

    @property
    def extra(self) -> float:
        """Over the whole time."""
        return len(self.retries) / len(self.requests)

    def most_extra(self, window_s: float = 10.0) -> float:
        """The greatest share of retries over any window that is full of requests."""
        most = 0.0
        for index, at in enumerate(self.retries):
            if at >= window_s:
                retries = index + 1 - bisect_right(self.retries, at - window_s)
                requests = bisect_right(self.requests, at) - bisect_right(self.requests, at - window_s)
                most = max(most, retries / requests)
        return most

    def most_retries(self, window_s: float = 10.0) -> int:
        """The greatest number of retries in any window."""
        return max(
            (index + 1 - bisect_right(self.retries, at - window_s) for index, at in enumerate(self.retries)),
            default=0,
        )


def simulate(
    targets: Sequence[FailingTarget],
    *,
    per_s: float,
    for_s: float,
    seed: int,
    rules: RetryRules | None = None,
    within_s: float = 60.0,
) -> Scene:
    """Evenly spaced requests that begin at the targets in turn and go on to the next one when one fails."""
    clock, rng, scene = FrozenClock(), random.Random(seed), Scene()
    start_s = clock.now()
    gates = RetryGates(clock, rules)
    events: list[tuple[float, int, Callable[[], None]]] = []
    serial = 0

    def later(delay_s: float, act: Callable[[], None]) -> None:
        nonlocal serial
        serial += 1
        heapq.heappush(events, (clock.now() - start_s + delay_s, serial, act))

    def attempt(flight: Flight) -> None:
        now = clock.now() - start_s
        standing = [target for target in flight.order if target.is_in(now)] or flight.order
        target = standing[0]
        fine, delay_s = target.call(now, rng.random())
        later(delay_s, lambda: conclude(flight, target, fine))

    def conclude(flight: Flight, target: FailingTarget, fine: bool) -> None:
        now = clock.now() - start_s
        target.learn(fine, now)
        if flight.owed is not None:
            gates.finished(*flight.owed, helped=fine)
        elif fine:
            gates.succeeded(target.name)
        flight.owed = None
        if fine or not again(flight, target, now):
            (scene.succeeded if fine else scene.failed).append(flight.started)

    def again(flight: Flight, target: FailingTarget, now: float) -> bool:
        wait_s = pause_s(
            attempt=flight.attempt,
            throttled=target.why == "throttled",
            retry_after_s=None,
            remaining_s=flight.started + within_s - now,
            elsewhere=len(flight.order) > 1,
            draw=rng.random(),
        )
        if flight.attempt == ATTEMPTS or wait_s is None or not gates.take(target.name, target.why):
            return False
        flight.attempt += 1
        flight.owed = (target.name, target.why)
        if target.why in COSTS:
            scene.retries.append(now)
        else:
            scene.free += 1
        flight.order = [each for each in flight.order if each is not target] + [target]
        later(wait_s, lambda: attempt(flight))
        return True

    def begin(index: int) -> None:
        turn = index % len(targets)
        gates.began()
        scene.requests.append(clock.now() - start_s)
        attempt(Flight(clock.now() - start_s, [*targets[turn:], *targets[:turn]]))
        if (index + 1) / per_s < for_s:
            heapq.heappush(events, ((index + 1) / per_s, -1, lambda: begin(index + 1)))

    later(0.0, lambda: begin(0))
    while events:
        at, _, act = heapq.heappop(events)
        clock.advance(max(0.0, start_s + at - clock.now()))
        act()
    assert gates.under_way == 0
    return scene
