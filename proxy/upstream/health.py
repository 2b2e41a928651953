"""Whether a target may be asked now: its breaker, its limit of concurrency and the line of those who wait for it.

`Health` knows every target of the catalog. Whoever makes an attempt takes a `Place` first, at once (`try_enter`) or
after a wait in line (`enter`), and leaves it with what came of the attempt. What all of them say together is the
`snapshot` by which targets are chosen.

**Never eject the last target.** Whoever has no other target left says ``last``: for them an open breaker and the
share that a degrading target is spared do not count, the limit does. They are not let through one at a time, as a
model with one target would stand still for the length of an ejection; what bounds them is the limit and the budget of
retries. A good answer to one of them closes the breaker as that to a probe does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

from proxy.clock import Clock, Deadlines
from proxy.policy.routing import HealthSnapshot, TargetView
from proxy.upstream.concurrency import Waiter
from proxy.upstream.outcomes import Outcome
from proxy.upstream.target import HealthRules, Place, TargetHealth, TargetLimits

__all__ = ["Health", "HealthRules", "Outcome", "Place", "TargetHealth", "TargetLimits"]

_NO_LIMITS = TargetLimits()


class Health:
    """One for the process. All of it happens in the loop's thread; only `enter` waits."""

    # Mutable state: `_targets` by ModelTarget.id, written by keep, `_add` and `_forget`; `_watched` are those that a
    # sweep has to look at, filled by targets and emptied by sweep; `snapshot` and `_views`, the dictionary behind it,
    # are replaced by `_publish` and never written to; `_second` is the one of the last sweep.
    __slots__ = (
        "_clock",
        "_deadlines",
        "_on_change",
        "_rng",
        "_rules",
        "_second",
        "_targets",
        "_views",
        "_watched",
        "snapshot",
    )

    def __init__(
        self,
        clock: Clock,
        deadlines: Deadlines,
        rules: HealthRules = HealthRules(),  # noqa: B008
        rng: Callable[[], float] = random.random,
        on_change: Callable[[TargetHealth], None] = lambda _: None,
    ) -> None:
        """``rng`` returns numbers from 0 to 1; ``on_change`` is told of a target whose breaker changed."""
        self._clock = clock
        self._deadlines = deadlines
        self._rules = rules
        self._rng = rng
        self._on_change = on_change
        self._targets: dict[str, TargetHealth] = {}
        self._watched: dict[TargetHealth, None] = {}
        self._second = 0
        self._views: dict[str, TargetView] = {}
        self.snapshot = HealthSnapshot(0, MappingProxyType(self._views))
        """Immutable; another one as soon as a breaker changed, and with a sweep if anything else did."""

    def keep(self, targets: Mapping[str, TargetLimits]) -> None:
        """These are the catalog's targets from now on. What is known of them survives; others are forgotten once
        nothing is under way there, as requests with the former catalog may still ask them."""
        for target, limits in targets.items():
            known = self._targets.get(target) or self._add(target)
            known.kept = True
            known.bound(limits)
        for name, known in list(self._targets.items()):
            if name not in targets:
                known.kept = False
                if not known.in_flight:
                    self._forget(known)

    def try_enter(self, target: str, scope: bytes, *, last: bool = False) -> Place | None:
        """A place now; ``None`` if there is no room (nobody waits while there is), the breaker is open and no probe
        is welcome, or the target degrades: then `enter` decides, once for each attempt. ``last``: see above."""
        known = self._targets.get(target)
        if known is None:
            known = self._add(target)
        return known.try_enter(last)

    async def enter(self, target: str, scope: bytes, deadline_at: float, *, last: bool = False) -> Place:
        """A place, after a wait in line where there is no room; scopes take turns. ``deadline_at`` is the caller's.

        Raises ``ProxyError``: ``OVERLOADED`` with retry ``OTHER`` and ``why`` ``target_open`` or
        ``target_throttled`` (at once, or when the breaker opens), ``queue_full`` (at once, or when another scope
        claims its share of a full line) or ``queue_timeout``; ``UPSTREAM_TIMEOUT`` where ``deadline_at`` came first.
        """
        known = self._targets.get(target) or self._add(target)
        why = known.find_refusal(last)
        if why:
            raise known.make_error(why)
        return known.find_place() or await self._wait(known, Waiter(scope, last=last), deadline_at)

    async def _wait(self, known: TargetHealth, waiter: Waiter, deadline_at: float) -> Place:
        known.join(waiter)
        queue_until = self._clock.now() + known.limits.queue_s
        late = deadline_at < queue_until
        deadline = self._deadlines.arm_at(min(queue_until, deadline_at), lambda: known.expire(waiter, late=late))
        future = waiter.future
        try:
            return cast("Place", await future)
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                # Cancelled between being handed the place and its turn: the next in line gets it.
                cast("Place", future.result()).withdraw()
            raise
        finally:
            deadline.cancel()
            known.line.leave(waiter)

    def p95_first_byte_s(self, target: str) -> float:
        """Over the last 128 good answers; 0: too few to say."""
        known = self._targets.get(target)
        return known.latency.p95_s if known is not None else 0.0

    def sweep(self, now: float) -> None:
        """The janitor's duty, every 100 ms: ends ejections, brings shares and averages up to date, and publishes what
        moved. Its cost is that of the targets which were asked within the last minute."""
        windows = int(now) != self._second
        self._second = int(now)
        moved: dict[str, TargetView] = {}
        for known in list(self._watched):
            if known.refresh(now, windows=windows):
                moved[known.id] = known.view
            if windows and known.is_quiet:
                known.watched = False
                del self._watched[known]
        if moved:
            self._publish(self._views | moved)

    @property
    def targets(self) -> Mapping[str, TargetHealth]:
        """For metrics and tests: to be read."""
        return self._targets

    def describe(self) -> list[dict[str, Any]]:
        """For the admin port, by name."""
        now = self._clock.now()
        return [self._targets[name].describe(now) for name in sorted(self._targets)]

    def _add(self, target: str) -> TargetHealth:
        """Also for a target that the catalog does not know any more: it is forgotten when it is idle."""
        known = self._targets[target] = TargetHealth(
            target,
            _NO_LIMITS,
            self._clock,
            self._rules,
            self._rng,
            on_change=self._publish_one,
            on_idle=self._forget,
            watch=self._watch,
        )
        return known

    def _watch(self, known: TargetHealth) -> None:
        known.watched = True
        self._watched[known] = None

    def _forget(self, known: TargetHealth) -> None:
        del self._targets[known.id]
        self._watched.pop(known, None)
        known.watched = False
        if known.id in self._views:
            self._publish({name: view for name, view in self._views.items() if name != known.id})

    def _publish_one(self, known: TargetHealth) -> None:
        self._publish(self._views | {known.id: known.view})
        self._on_change(known)

    def _publish(self, views: dict[str, TargetView]) -> None:
        self._views = views
        self.snapshot = HealthSnapshot(self.snapshot.version + 1, MappingProxyType(views))
