"""When a target is asked no more, when one attempt may try whether it is back, and how much less it is asked before.

After five failures in a row, or when most of many recent attempts failed, the breaker **opens**: the target is
ejected for a time that grows with each ejection and shrinks again while the target is well. Then it is **half open**:
one attempt is let through as a probe. A good answer closes the breaker, a failure ejects the target anew, longer.
The rules and their numbers are those of Envoy's outlier detection and admission control.

Only attempts that began after the breaker last changed have a say: those that hung through an outage and time out
after it would eject a target that is back.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from math import inf
from typing import NamedTuple

from proxy.upstream.outcomes import LONG_S, Recent


class State(IntEnum):
    """Of a breaker; the numbers are what the metric shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class BreakerRules(NamedTuple):
    """When targets are ejected, and for how long."""

    in_a_row: int = 5
    share: float = 0.85
    """Of the attempts of the last 10 s that failed …"""
    least: int = 50
    """… if there were at least so many."""
    eject_s: float = 30.0
    """For the first time; the n-th lasts n times as long."""
    most_eject_s: float = 300.0
    jitter: float = 0.2
    heal_s: float = 60.0
    """Each such time without an ejection takes one off their count."""


class ThrottleRules(NamedTuple):
    """How much of the load a target that degrades is spared, over the last 30 s."""

    threshold: float = 0.95
    """The share of good answers from which on nothing is spared."""
    aggression: float = 1.0
    least_per_s: float = 5.0
    most: float = 0.8


class Breaker:
    """One for each target. Synchronous; time is monotonic seconds and is handed in."""

    # Mutable state: `state`, `epoch`, `until`, `ejections` and `_closed_at` change in `_open` and `_close`, `state`
    # in `ripen` as well; `in_a_row` and `recent` are written by the notes; `probing` says whether the one probe of
    # the half-open state is under way, and is written by who admits it (`begin_probe`), its result and `withdraw`.
    __slots__ = (
        "_closed_at",
        "_rng",
        "_rules",
        "ejections",
        "epoch",
        "in_a_row",
        "opened",
        "probing",
        "recent",
        "state",
        "until",
    )

    def __init__(self, now: float, rules: BreakerRules, rng: Callable[[], float]) -> None:
        self._rules = rules
        self._rng = rng
        self._closed_at = now
        self.state = State.CLOSED
        self.epoch = 0
        """Changes when the breaker opens and when it closes; results of attempts of another epoch do not count."""
        self.until = 0.0
        """When the ejection ends."""
        self.ejections = 0
        """How many, less those that were healed: the factor of the next one's length, less one."""
        self.opened = 0
        """How often in all."""
        self.in_a_row = 0
        self.probing = False
        self.recent = Recent(now)

    @property
    def wants_probe(self) -> bool:
        return self.state is State.HALF_OPEN and not self.probing

    def ripen(self, now: float) -> bool:
        """End the ejection if it is over; whether it ended just now."""
        if self.state is State.OPEN and now >= self.until:
            self.state = State.HALF_OPEN
            self.probing = False
            return True
        return False

    def begin_probe(self) -> None:
        self.probing = True

    def withdraw(self) -> None:
        """The probe ended without telling anything; another one may try."""
        self.probing = False

    def note_good(self, now: float) -> bool:
        """A good answer began, to an attempt of this epoch; whether that closed the breaker."""
        if self.state is State.CLOSED:
            self.in_a_row = 0
            self.recent.note_good(now)
            return False
        self._close(now)
        return True

    def note_alive(self, now: float) -> bool:
        """It answered, if only that it was asked too much; whether that closed the breaker."""
        self.in_a_row = 0
        if self.state is State.CLOSED:
            return False
        self._close(now)
        return True

    def note_failure(self, now: float, *, probe: bool, midway: bool) -> bool:
        """An attempt of this epoch failed: the probe, or one whose good answer had begun (``midway``), which is no
        reason for an ejection unless it is the rule. Returns whether it opened the breaker."""
        if self.state is not State.CLOSED:
            if probe:
                self._open(now)
            return probe
        recent = self.recent
        recent.note_failure(now)
        self.in_a_row += not midway
        failed = recent.failed_short
        total = failed + recent.good_short
        rules = self._rules
        if self.in_a_row >= rules.in_a_row or (total >= rules.least and failed >= rules.share * total):
            self._open(now)
            return True
        return False

    def _open(self, now: float) -> None:
        rules = self._rules
        if self.state is State.CLOSED:
            healed = int((now - self._closed_at) / rules.heal_s)
            self.ejections = max(0, self.ejections - healed)
        self.ejections += 1
        length_s = min(rules.eject_s * self.ejections, rules.most_eject_s)
        length_s *= 1.0 + rules.jitter * (2.0 * self._rng() - 1.0)
        self.until = now + min(length_s, rules.most_eject_s)
        self.state = State.OPEN
        self.opened += 1
        self._begin_epoch()

    def _close(self, now: float) -> None:
        self.state = State.CLOSED
        self._closed_at = now
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.epoch += 1
        self.in_a_row = 0
        self.probing = False
        self.recent.clear()


def find_spared_share(recent: Recent, rules: ThrottleRules) -> float:
    """The share of attempts that a degrading target is spared: ``((n - s/threshold) / (n + 1)) ** (1/aggression)``
    for n attempts of which s went well."""
    good = recent.good_long
    total = good + recent.failed_long
    if total < rules.least_per_s * LONG_S or rules.aggression <= 0.0:
        return 0.0
    excess = (total - (good / rules.threshold if rules.threshold > 0.0 else inf)) / (total + 1)
    return min(rules.most, excess ** (1.0 / rules.aggression)) if excess > 0.0 else 0.0
