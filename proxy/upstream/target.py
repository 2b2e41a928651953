"""The health of one target: breaker, limit of concurrency, line and latency, and the places that attempts take there.

Nothing here waits. What changes its view is told at once if the breaker changed, else with the next `refresh`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from proxy.clock import Clock
from proxy.errors import Kind, ProxyError, Retry
from proxy.policy.routing import TargetView
from proxy.upstream.breaker import Breaker, BreakerRules, State, ThrottleRules, find_spared_share
from proxy.upstream.concurrency import FairLine, Limit, LimitRules, Waiter
from proxy.upstream.faults import timed_out
from proxy.upstream.latency import Latency
from proxy.upstream.outcomes import WORDS, Outcome

_OK, _NEUTRAL, _THROTTLED, _FAILED = Outcome.OK, Outcome.NEUTRAL, Outcome.THROTTLED, Outcome.FAILED

OPEN, SPARED, FULL, QUEUED = "target_open", "target_throttled", "queue_full", "queue_timeout"
_PUBLIC: Final = {
    OPEN: "The upstream is out of service at the moment.",
    SPARED: "The upstream fails too often to take every request.",
    FULL: "Too many requests wait for the upstream.",
    QUEUED: "The upstream had no room for the request in time.",
}


class TargetLimits(NamedTuple):
    """What the operator allows at one target."""

    max_in_flight: int = 0
    """0: as many as it bears, up to the rules' 2,000."""
    max_queue: int = 100
    """How many may wait for a place."""
    queue_s: float = 1.0
    """How long each may wait."""


class HealthRules(NamedTuple):
    """The same for all targets."""

    breaker: BreakerRules = BreakerRules()
    throttle: ThrottleRules = ThrottleRules()
    limit: LimitRules = LimitRules()


class Place:
    """One attempt under way at a target. It ends with exactly one `leave`; further ones do nothing."""

    # `_target` is None once it was left. Written by the place's holder through its two methods.
    __slots__ = ("_target", "epoch", "outlived", "probe", "was_answered")

    def __init__(self, target: TargetHealth, epoch: int, probe: bool) -> None:
        self._target: TargetHealth | None = target
        self.epoch = epoch
        """Of the breaker, when the attempt began."""
        self.probe = probe
        """Whether this attempt decides if the target is back."""
        self.was_answered = False
        self.outlived = False
        """The target was ejected while this attempt was under way: written by `leave`."""

    def answered(self, first_byte_s: float) -> None:
        """The head of a good answer came, or the first content where a stream may still fail before it. From here on
        the target counts as working, however long the answer takes."""
        target = self._target
        if target is not None and not self.was_answered:
            self.was_answered = True
            target.note_answer(self, first_byte_s)

    def leave(self, outcome: Outcome) -> None:
        """The attempt is over; the next in line gets the place."""
        target = self._target
        if target is not None:
            self._target = None
            breaker = target.breaker
            self.outlived = self.epoch != breaker.epoch and breaker.state is not State.CLOSED
            target.end(self, outcome)

    def withdraw(self) -> None:
        """The attempt was never made."""
        target = self._target
        if target is not None:
            self._target = None
            target.take_back(self)


class TargetHealth:
    """One for each target. Synchronous."""

    # Mutable state: `in_flight` counts the places that were taken and not left; `spared` is computed once a second by
    # refresh; `plain` says that neither breaker nor throttle has a word to say, which is nearly always; `view` is
    # what others may see, as of the last refresh or change; `kept` is written by Health. Counters only grow.
    # Invariant: nobody waits while there is room, as whatever makes room calls `pump`; so nobody is overtaken.
    __slots__ = (
        "_clock",
        "_on_change",
        "_on_idle",
        "_rng",
        "_rules",
        "_watch",
        "breaker",
        "counts",
        "id",
        "in_flight",
        "kept",
        "latency",
        "limit",
        "limits",
        "line",
        "plain",
        "refused",
        "spared",
        "throttles",
        "view",
        "watched",
    )

    def __init__(
        self,
        name: str,
        limits: TargetLimits,
        clock: Clock,
        rules: HealthRules,
        rng: Callable[[], float],
        *,
        on_change: Callable[[TargetHealth], None],
        on_idle: Callable[[TargetHealth], None],
        watch: Callable[[TargetHealth], None],
    ) -> None:
        """``on_change``: the breaker changed; ``on_idle``: nothing is under way at a target that is not kept;
        ``watch``: from now on there is something to refresh."""
        self.id = name
        self.limits = limits
        self._clock = clock
        self._rules = rules
        self._rng = rng
        self._on_change = on_change
        self._on_idle = on_idle
        self._watch = watch
        self.breaker = Breaker(clock.now(), rules.breaker, rng)
        self.limit = Limit(rules.limit, limits.max_in_flight)
        self.line = FairLine()
        self.latency = Latency()
        self.in_flight = 0
        self.spared = 0.0
        """The share of attempts that a degrading target is spared."""
        self.plain = True
        self.kept = False
        self.watched = False
        self.counts = [0] * len(WORDS)
        """Ended attempts by outcome."""
        self.throttles = 0
        """Attempts that were answered with 429, 503 or 529."""
        self.refused = dict.fromkeys(_PUBLIC, 0)
        """Attempts that got no place, by why."""
        self.view = self._make_view()

    # -- places ----------------------------------------------------------------------------------------------

    def try_enter(self, last: bool) -> Place | None:
        """A place at once, or nothing."""
        if not self.plain:
            # Whether this attempt is one of those that a degrading target is spared, is decided by who asks again and
            # would wait: drawn twice the share would be another one.
            return self.find_place() if last or not (self.spared or self._is_closed_to_all()) else None
        if self.in_flight >= self.limit.most:
            return None
        self.in_flight += 1
        if not self.watched:
            self._watch(self)
        return Place(self, self.breaker.epoch, False)

    def find_refusal(self, last: bool) -> str:
        """Why an attempt must not even wait here; empty if it may. Counted."""
        if self.plain or last:
            return ""
        if self._is_closed_to_all():
            why = OPEN
        elif self._rng() < self.spared:
            why = SPARED
        else:
            return ""
        self.refused[why] += 1
        return why

    def _is_closed_to_all(self) -> bool:
        """Ejected, and no probe may be made now."""
        breaker = self.breaker
        if breaker.state is State.CLOSED:
            return False
        if breaker.ripen(self._clock.now()):
            self._tell()
        return not (breaker.wants_probe and self.in_flight < self.limit.cap)

    def find_place(self) -> Place | None:
        """For somebody who was not refused."""
        if self.breaker.wants_probe and self.in_flight < self.limit.cap:
            # Streams that outlived the ejection may fill a limit that was cut before it: the probe does not wait.
            return self.take()
        return self.take() if self.in_flight < self.limit.most else None

    def take(self) -> Place:
        """The caller has seen that there is room."""
        self.in_flight += 1
        if not self.watched:
            self._watch(self)
        if not self.plain and self.breaker.wants_probe:
            self.breaker.begin_probe()
            self._tell()
            return Place(self, self.breaker.epoch, True)
        return Place(self, self.breaker.epoch, False)

    def note_answer(self, place: Place, first_byte_s: float) -> None:
        now = self._clock.now()
        self.latency.note(now, first_byte_s)
        self._note_good(place, now)
        if self.line.size:  # the limit may have grown
            self.pump()

    def end(self, place: Place, outcome: Outcome) -> None:
        self.counts[outcome] += 1
        if outcome is _OK:
            if not place.was_answered:
                self._note_good(place, self._clock.now())
        elif outcome is not _NEUTRAL:
            self._note_bad(place, outcome, self._clock.now())
        elif place.probe:
            self._withdraw_probe(place)
        self._free()

    def take_back(self, place: Place) -> None:
        if place.probe:
            self._withdraw_probe(place)
        self._free()

    def _free(self) -> None:
        self.in_flight -= 1
        if self.line.size:
            self.pump()
        if not (self.kept or self.in_flight):
            self._on_idle(self)

    # -- what attempts tell ----------------------------------------------------------------------------------

    def _note_good(self, place: Place, now: float) -> None:
        if place.epoch == self.breaker.epoch:
            if self.breaker.note_good(now):
                self._tell()
            self.limit.grow(self.in_flight)

    def _note_bad(self, place: Place, outcome: Outcome, now: float) -> None:
        breaker = self.breaker
        if outcome >= Outcome.BUSY:
            self.throttles += 1
        if place.epoch != breaker.epoch:
            return
        if outcome is not _FAILED:
            self.limit.cut(now)
        if outcome is _THROTTLED:
            changed = breaker.note_alive(now)
        else:
            changed = breaker.note_failure(now, probe=place.probe, midway=place.was_answered)
        if changed:
            self._tell()
            if breaker.state is State.OPEN:
                self._send_away()

    def _withdraw_probe(self, place: Place) -> None:
        if place.epoch == self.breaker.epoch:
            self.breaker.withdraw()
            self._tell()

    # -- the line --------------------------------------------------------------------------------------------

    def join(self, waiter: Waiter) -> None:
        """Raises ``ProxyError`` if the line is full and the waiter's scope has its share of it; else somebody else
        is refused in its place."""
        if self.line.size >= self.limits.max_queue:
            loser = self.line.make_room(waiter.scope)
            if loser is None:
                self.refused[FULL] += 1
                raise self.make_error(FULL)
            self._refuse(loser, FULL)
        self.line.join(waiter)

    def pump(self) -> None:
        """Give places to those in line while there are any."""
        while self.in_flight < self.limit.most:
            waiter = self.line.take()
            if waiter is None:
                return
            waiter.future.set_result(self.take())

    def expire(self, waiter: Waiter, *, late: bool) -> None:
        """Its time in line is over; ``late``: so is its caller's."""
        if self.line.leave(waiter):
            self._refuse(waiter, QUEUED, timed_out("total", self.id) if late else None)

    def _send_away(self) -> None:
        """The breaker opened: who has other targets goes there."""
        for waiter in [each for each in self.line if not each.last]:
            self.line.leave(waiter)
            self._refuse(waiter, OPEN)

    def _refuse(self, waiter: Waiter, why: str, error: ProxyError | None = None) -> None:
        if not waiter.future.done():
            self.refused[why] += 1
            waiter.future.set_exception(error or self.make_error(why))

    def make_error(self, why: str) -> ProxyError:
        """Another target may well have room."""
        after_s = max(1.0, self.breaker.until - self._clock.now()) if why == OPEN else 1.0
        return ProxyError(
            Kind.OVERLOADED, _PUBLIC[why], why=why, detail=self.id, retry=Retry.OTHER, retry_after_s=after_s
        )

    # -- what others see -------------------------------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """Nothing about it can change before the next attempt."""
        return (
            not (self.in_flight or self.line.size or self.latency.average_s or self.spared)
            and self.breaker.state is State.CLOSED
            and self.breaker.recent.is_empty
        )

    def refresh(self, now: float, *, windows: bool) -> bool:
        """Bring up to date what time alone changes, with ``windows`` those too; whether the view changed."""
        turned = not self.plain and self.breaker.ripen(now)
        if windows:
            self._turn_windows(now)
        view = self.view
        if (
            view.in_flight == self.in_flight
            and view.limit == self.limit.most
            and view.first_byte_s == self.latency.average_s
            and not turned
        ):
            return False
        self.view = self._make_view()
        return True

    def _turn_windows(self, now: float) -> None:
        recent = self.breaker.recent
        recent.turn(now)
        self.latency.forget(now)
        if recent.failed_long or self.spared:
            self.spared = find_spared_share(recent, self._rules.throttle)
            self.plain = self.breaker.state is State.CLOSED and not self.spared

    def bound(self, limits: TargetLimits) -> None:
        """The operator allows something else now; those who wait already stay."""
        if limits.max_in_flight != self.limits.max_in_flight:
            self.limit.bound(limits.max_in_flight)
        self.limits = limits

    def _tell(self) -> None:
        self.spared = 0.0  # what was counted before the change says nothing about what comes after it
        self.plain = self.breaker.state is State.CLOSED
        self.view = self._make_view()
        self._on_change(self)

    def _make_view(self) -> TargetView:
        breaker = self.breaker
        return TargetView(
            open=breaker.state is State.OPEN or (breaker.state is State.HALF_OPEN and breaker.probing),
            probe=breaker.wants_probe,
            in_flight=self.in_flight,
            limit=self.limit.most,
            first_byte_s=self.latency.average_s,
        )

    def describe(self, now: float) -> dict[str, Any]:
        """For the admin port."""
        breaker, latency = self.breaker, self.latency
        return {
            "target": self.id,
            "state": breaker.state.name.lower(),
            "in_flight": self.in_flight,
            "limit": self.limit.most,
            "max_in_flight": self.limit.cap,
            "queued": self.line.size,
            "max_queue": self.limits.max_queue,
            "first_byte_ms": round(latency.average_s * 1e3, 3),
            "p95_first_byte_ms": round(latency.p95_s * 1e3, 3),
            "failures_in_a_row": breaker.in_a_row,
            "failed_10s": breaker.recent.failed_short,
            "good_10s": breaker.recent.good_short,
            "ejected_for_s": round(max(0.0, breaker.until - now), 3) if breaker.state is State.OPEN else 0.0,
            "ejections": breaker.opened,
            "spared_share": round(self.spared, 4),
            "attempts": dict(zip(WORDS, self.counts, strict=True)),
            "throttles": self.throttles,
            "limit_cuts": self.limit.cuts,
            "refused": dict(self.refused),
        }
