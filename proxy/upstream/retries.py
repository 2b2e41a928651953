"""Whether a failed attempt may be followed by another one, and how long to wait before it.

Retries multiply load exactly when there is too much of it. So two gates must both open (design: RELIABILITY 5.3):

* the share of retries, over all targets: at most 10 % of the requests of the last 10 s. Where that is next to
  nothing a floor holds: up to 3 retries at once, and no more than 3 a second. Finagle and Envoy allow 20 %.
* tokens, by target that failed, after the SDKs of AWS: retries use them up, so that they end in an outage although
  the share has room. Each clean success adds one, and a retry that helps gets back twice what it took: a target whose
  requests are mostly saved elsewhere never runs out, though it have no success of its own.

What never reached an upstream, or rotates away from a key that is marked with it, adds no load and passes freely.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from proxy.clock import Clock
from proxy.errors import Kind, ProxyError
from proxy.protocol.events import Cause, Fault

Why = Literal["throttled", "timeout", "failed", "forbidden", "connect", "crowded", "key"]

COSTS: Final[dict[Why, int]] = {"throttled": 5, "forbidden": 5, "timeout": 14, "failed": 14}
"""Tokens for one retry; whatever is not listed here passes freely. Throttling costs an upstream little."""
FREE: Final[tuple[Why, ...]] = ("connect", "crowded", "key")
"""``connect`` and ``crowded`` (no place or connection came free): nothing was sent. ``key``: dead or without money,
and marked so by the first who saw it; no caller can bring that about, which is why ``forbidden`` is not free."""
GATES: Final = ("share", "tokens")
MAX_TARGETS: Final = 10_000
"""Targets with spent tokens that are remembered; retries after failures of further ones are refused."""

TRANSPORT_BASE_S: Final = 0.05
THROTTLED_BASE_S: Final = 1.0
MAX_PAUSE_S: Final = 20.0

_SLOTS: Final = 20


@dataclass(frozen=True, slots=True)
class RetryRules:
    """How many retries there may be."""

    ratio: float = 0.10
    """Retries to requests, over any ``window_s``."""
    window_s: float = 10.0
    floor: int = 3
    """Retries under way at once that are allowed beyond ``ratio`` …"""
    floor_per_s: float = 3.0
    """… as long as there are no more than these a second, over ``window_s``."""
    tokens: int = 500
    """Of each target."""
    forget_s: float = 600.0
    """A target whose tokens nobody asked for that long has all of them again."""


class Verdict(NamedTuple):
    """What a failure means for a further attempt."""

    why: Why
    unsafe: bool = False
    """The upstream may have answered, and may charge for it; only what the operator allows twice is tried again."""


_CAUSES: Final[dict[Cause, Verdict]] = {
    Cause.DEAD_KEY: Verdict("key"),
    Cause.SPENT: Verdict("key"),
    Cause.FORBIDDEN: Verdict("forbidden"),
    Cause.THROTTLED: Verdict("throttled"),
    Cause.OVERLOADED: Verdict("throttled"),
    Cause.FAILED: Verdict("failed"),
    Cause.NOT_FOUND: Verdict("failed"),
    Cause.CONFLICT: Verdict("failed"),
    Cause.TIMED_OUT: Verdict("timeout"),
    Cause.CUT_OFF: Verdict("failed", unsafe=True),
}
_KINDS: Final[dict[Kind, Verdict]] = {
    Kind.OVERLOADED: Verdict("crowded"),
    Kind.UPSTREAM_UNREACHABLE: Verdict("connect"),
    Kind.UPSTREAM_TLS: Verdict("connect"),
    Kind.UPSTREAM_TIMEOUT: Verdict("timeout", unsafe=True),
    Kind.UPSTREAM_RESET: Verdict("failed", unsafe=True),
    Kind.UPSTREAM_BAD_RESPONSE: Verdict("failed", unsafe=True),
}
_NOT_CONNECTED: Final = Verdict("connect")


def judge(failure: Fault | ProxyError) -> Verdict | None:
    """What a refusal of an upstream, or a failure on the way to it, allows; ``None``: another attempt cannot help."""
    if isinstance(failure, Fault):
        return _CAUSES.get(failure.cause)
    if failure.kind is Kind.UPSTREAM_TIMEOUT and failure.why == "connect":
        return _NOT_CONNECTED
    return _KINDS.get(failure.kind)


def pause_s(
    *, attempt: int, throttled: bool, retry_after_s: float | None, remaining_s: float, elsewhere: bool, draw: float
) -> float | None:
    """Seconds to wait after the ``attempt``-th attempt (1 for the first) failed; ``None``: no time is left for it.

    Full jitter: ``draw`` (0.0 to 1.0) of 50 ms, after throttling of 1 s, doubled with each attempt, 20 s at most. The
    first move ``elsewhere``, to another target or key, is made at once; a later one waits like a transport error.
    ``retry_after_s`` binds who stays: then a draw is added to it as far as there is time, so that not all come back
    in the same moment.
    """
    if remaining_s <= 0.0:
        return None
    if not elsewhere and retry_after_s is not None and retry_after_s > MAX_PAUSE_S:
        return None
    if elsewhere and attempt <= 1:
        return 0.0
    base_s = THROTTLED_BASE_S if throttled and not elsewhere else TRANSPORT_BASE_S
    wait_s = draw * min(MAX_PAUSE_S, base_s * 2.0 ** min(attempt - 1, 16))
    if retry_after_s is not None and retry_after_s > 0.0 and not elsewhere:
        wait_s = retry_after_s + min(wait_s, max(0.0, remaining_s - retry_after_s) / 2)
    return wait_s if wait_s < remaining_s else None


class RetryGates:
    """Both gates; one for the process."""

    # Mutable: the ring (_slot is the newest slot's number since the clock's zero, _began and _retried count by slot)
    # and its sums, written by _roll, began and take; _spent maps a target to [tokens spent, last asked for], a target
    # that is not in it has all of its tokens: written by take, finished, succeeded, keep. The counters made (by
    # reason), denied (by gate and reason) and under_way (retries that are not free) are written by take and finished.
    __slots__ = (
        *("_began", "_clock", "_floor", "_per_s", "_requests", "_retried", "_retries", "_rules", "_slot", "_spent"),
        *("denied", "made", "under_way"),
    )

    def __init__(self, clock: Clock, rules: RetryRules | None = None) -> None:
        self._clock = clock
        self._rules = rules = rules or RetryRules()
        self._per_s = _SLOTS / rules.window_s
        self._floor = rules.floor_per_s * rules.window_s
        self._slot = int(clock.now() * self._per_s)
        # One slot more than the window has: retries are counted over a little more than it and requests over a
        # little less, so that the share holds in every window, wherever it begins.
        self._began = [0] * (_SLOTS + 1)
        self._retried = [0] * (_SLOTS + 1)
        self._requests = 0
        self._retries = 0
        self._spent: dict[str, list[float]] = {}
        self.under_way = 0
        self.made: dict[Why, int] = dict.fromkeys((*COSTS, *FREE), 0)
        self.denied: dict[tuple[str, Why], int] = {(gate, why): 0 for gate in GATES for why in COSTS}

    def began(self) -> None:
        """The first attempt of a flight was sent."""
        slot = int(self._clock.now() * self._per_s)
        if slot != self._slot:
            self._roll(slot)
        self._began[slot % (_SLOTS + 1)] += 1
        self._requests += 1

    def take(self, target: str, why: Why, *, ejected: bool = False) -> bool:
        """Whether a further attempt may be made after ``target`` failed. Whoever gets ``True`` calls ``finished``
        with the same words, whatever happens.

        ``ejected``: the target was ejected while it was asked. There are only so many of those and no more come, so
        they are not what the share is there for; tokens they cost all the same.
        """
        cost = COSTS.get(why)
        if cost is not None:
            now = self._clock.now()
            if not self._has_tokens(target, cost, now):
                self.denied["tokens", why] += 1
                return False
            if not ejected and not self._has_share(now):
                self.denied["share", why] += 1
                return False
            self._spend(target, cost, now, counts=not ejected)
        self.made[why] += 1
        return True

    def finished(self, target: str, why: Why, *, helped: bool, ejected: bool = False) -> None:
        """The retry that was allowed by ``take(target, why)`` is over, as its answer began (``helped``) or it did not
        work out. What helped costs nothing, and pays for one that did not."""
        cost = COSTS.get(why)
        if cost is None:
            return
        self.under_way -= not ejected
        if helped:
            self._restore(target, 2 * cost)

    def succeeded(self, target: str) -> None:
        """The first attempt of a flight was answered by ``target``."""
        if self._spent:
            self._restore(target, 1)

    def keep(self, targets: Iterable[str]) -> None:
        """Forget all targets but these."""
        names = frozenset(targets)
        self._spent = {target: entry for target, entry in self._spent.items() if target in names}

    @property
    def share(self) -> float:
        """Retries to requests in the last seconds; what passed freely is not counted."""
        self._roll(int(self._clock.now() * self._per_s))
        return self._retries / max(1, self._requests)

    def describe(self) -> dict[str, Any]:
        """For the admin API. ``targets``: tokens of those that do not have all of them."""
        share, tokens = self.share, self._rules.tokens
        return {
            "ratio": self._rules.ratio,
            "share": round(share, 4),
            "requests": self._requests,
            "retries": self._retries,
            "under_way": self.under_way,
            "made": dict(self.made),
            "denied": {gate: sum(self.denied[gate, why] for why in COSTS) for gate in GATES},
            "targets": {target: max(0, int(tokens - entry[0])) for target, entry in sorted(self._spent.items())},
        }

    def _has_share(self, now: float) -> bool:
        slot = int(now * self._per_s)
        if slot != self._slot:
            self._roll(slot)
        if self._retries + 1 <= self._rules.ratio * self._requests + 1e-9:
            return True
        return self.under_way < self._rules.floor and self._retries < self._floor

    def _has_tokens(self, target: str, cost: int, now: float) -> bool:
        entry = self._spent.get(target)
        if entry is None:
            return len(self._spent) < MAX_TARGETS
        if now - entry[1] >= self._rules.forget_s:
            del self._spent[target]
            return True
        return entry[0] + cost <= self._rules.tokens

    def _spend(self, target: str, cost: int, now: float, *, counts: bool) -> None:
        entry = self._spent.setdefault(target, [0.0, now])
        entry[0] += cost
        entry[1] = now
        if counts:
            self._retried[self._slot % (_SLOTS + 1)] += 1
            self._retries += 1
            self.under_way += 1

    def _restore(self, target: str, tokens: int) -> None:
        entry = self._spent.get(target)
        if entry is not None:
            entry[0] -= tokens
            if entry[0] <= 0:
                del self._spent[target]

    def _roll(self, slot: int) -> None:
        """Empty the slots that time has left behind."""
        size = _SLOTS + 1
        for each in range(max(self._slot + 1, slot - _SLOTS), slot + 1):
            oldest, leaving = each % size, (each - _SLOTS) % size
            self._retries -= self._retried[oldest]
            self._retried[oldest] = 0
            self._requests -= self._began[leaving]
            self._began[leaving] = 0
        self._slot = slot
