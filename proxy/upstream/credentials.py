"""The operator's keys of all providers: which one goes next, and how each of them fares.

Keys take turns. A key that an upstream refuses is marked, and left out while the mark stands:

* dead (401): for 5 minutes, then one request tries it, and 5 minutes become 10, 20 … up to an hour. It is never used
  meanwhile. Where all keys of a provider are dead, one request each 30 s tries the one that died first, as nothing is
  lost by that and an account may be put right at any time.
* spent (402, no money or quota): for 10 minutes, then one request tries it.
* throttled (429): at that target, for as long as the upstream said, else 1, 2, 4 … 60 s with jitter.
* forbidden (403): at that target, for times as for a dead key. One odd request may be what is forbidden, so that any
  success there takes the mark away, and the mark alone never makes a request fail.

Marks of the last three kinds give way where no other key is left, for the first pick of a flight.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from random import Random
from typing import Any, Final, NamedTuple, Protocol

from proxy.clock import Clock
from proxy.protocol.events import Cause

USABLE: Final = 0
THROTTLED: Final = 1
SPENT: Final = 2
DEAD: Final = 3
FORBIDDEN: Final = 4
STATES: Final = ("usable", "throttled", "spent", "dead", "forbidden")

DEAD_S: Final = 300.0
MAX_DEAD_S: Final = 3600.0
SPENT_S: Final = 600.0
THROTTLED_S: Final = 1.0
MAX_THROTTLED_S: Final = 60.0
MAX_RETRY_AFTER_S: Final = 3600.0
"""Upstreams that name a longer wait are asked again after this."""
PROBE_S: Final = 30.0
"""How long a request that tries a marked key may be without a verdict until another one may try."""
MAX_PLACES: Final = 256
"""Targets for which one key remembers marks; the oldest one is forgotten for a further one."""

_STATE_OF: Final = {
    Cause.DEAD_KEY: DEAD,
    Cause.SPENT: SPENT,
    Cause.THROTTLED: THROTTLED,
    Cause.FORBIDDEN: FORBIDDEN,
}


class ProviderKey(Protocol):
    """What the catalog says about a key."""

    @property
    def name(self) -> str:
        """For the log, metrics and the admin API; unique within its provider."""

    @property
    def value(self) -> str:
        """The secret."""


class KeyChoice(NamedTuple):
    """A key to be used for one attempt."""

    name: str
    value: str

    def __repr__(self) -> str:
        return f"KeyChoice({self.name!r})"


class _Mark:
    """Why a key is left out, and until when."""

    # Mutable: all of it, written by `Credentials`.
    __slots__ = ("probing", "ready_at", "since", "state", "wait_s")

    def __init__(self, state: int, now: float) -> None:
        self.state = state
        self.since = now
        """When it was last put off."""
        self.ready_at = now
        self.wait_s = 0.0
        """What `ready_at` was last put off by, before jitter; 0.0 at first."""
        self.probing = False
        """A request was let through to see, and there is no verdict yet."""


class _Key:
    """One key. No representation shows its value."""

    # Mutable: whole (its mark everywhere) and places (its marks by target) are written by `Credentials`, as are the
    # counters: uses, and refusals by cause.
    __slots__ = ("choice", "name", "places", "refusals", "uses", "whole")

    def __init__(self, name: str, value: str) -> None:
        self.name = name
        self.choice = KeyChoice(name, value)
        self.whole: _Mark | None = None
        self.places: dict[str, _Mark] = {}
        self.uses = 0
        self.refusals: dict[Cause, int] = {}

    def state(self, now: float) -> int:
        """One of ``STATES``, for people. What is marked at a target alone counts as throttled, if it is that."""
        if self.whole is not None and (self.whole.state >= SPENT or now < self.whole.ready_at):
            return self.whole.state
        throttled = any(mark.state == THROTTLED and now < mark.ready_at for mark in self.places.values())
        return THROTTLED if throttled else USABLE


class _Ring:
    """The keys of one provider."""

    # Mutable: turn (the key that goes next) is written by pick, clean (no key has any mark) by refused and tidy.
    __slots__ = ("clean", "keys", "turn")

    def __init__(self, keys: tuple[_Key, ...], turn: int) -> None:
        self.keys = keys
        self.turn = turn
        self.clean = False
        self.tidy()

    def tidy(self) -> None:
        self.clean = bool(self.keys) and all(key.whole is None and not key.places for key in self.keys)

    def find(self, choice: KeyChoice) -> _Key | None:
        """The key that was chosen; ``None`` if a reload took it away or gave its name another value."""
        return next((key for key in self.keys if key.choice == choice), None)


class Credentials:
    """All of them; one for the process."""

    # Mutable: _rings, replaced as a whole by keep. What is in the rings is written by pick, refused and accepted.
    __slots__ = ("_clock", "_rings", "_rng")

    def __init__(self, clock: Clock, rng: Random) -> None:
        self._clock = clock
        self._rng = rng
        self._rings: dict[str, _Ring] = {}

    def keep(self, providers: Mapping[str, Sequence[ProviderKey]]) -> None:
        """These are all keys from now on. Those with the name and the value of before keep their marks, those with
        the name alone their counters."""
        rings = {}
        for provider, given in providers.items():
            ring = self._rings.get(provider)
            old = {key.name: key for key in ring.keys} if ring is not None else {}
            keys = tuple(_renew(old.get(key.name), key) for key in given)
            # Processes that start together need not begin with the same key.
            rings[provider] = _Ring(keys, self._rng.randrange(len(keys)) if keys else 0)
        self._rings = rings

    def holds(self, provider: str, keys: Sequence[ProviderKey]) -> bool:
        """Whether these are the provider's keys of now; a flight under another catalog has others."""
        ring = self._rings.get(provider)
        return ring is not None and [(key.name, key.choice.value) for key in ring.keys] == [
            (key.name, key.value) for key in keys
        ]

    def put_back(self, provider: str, choice: KeyChoice, target: str = "") -> None:
        """The attempt for which it was picked was not made: whose turn it was has it still, and so has a probe."""
        ring = self._rings.get(provider)
        found = ring.find(choice) if ring is not None else None
        if ring is None or found is None:
            return
        found.uses -= 1
        ring.turn = ring.keys.index(found)
        now = self._clock.now()
        for mark in (found.whole, found.places.get(target)):
            if mark is not None and mark.probing:
                mark.probing, mark.ready_at = False, now

    def pick(
        self, provider: str, tried: Collection[str] = (), target: str = "", *, last: bool = True
    ) -> KeyChoice | None:
        """The key for the next attempt at ``target``, none of those ``tried`` (names) by this flight.

        Without ``tried``, one that is marked is picked where no other is left: the one whose mark ends first, or a
        dead one that is due to be tried. ``None``: there is none, or none that is worth an attempt; with ``tried``
        that means to stay or to go to another target.
        """
        ring = self._rings.get(provider)
        if ring is None:
            return None
        turn = ring.turn
        if not ring.clean or tried:
            found = self._find(ring, tried, target, last)
            if found is None:
                return None
            turn = found
        key = ring.keys[turn]
        turn += 1
        ring.turn = turn if turn < len(ring.keys) else 0
        key.uses += 1
        return key.choice

    def refused(
        self, provider: str, key: KeyChoice, cause: Cause, retry_after_s: float | None = None, target: str = ""
    ) -> None:
        """The upstream refused an attempt with ``key`` at ``target``; a ``cause`` that does not blame the key is
        ignored, and so is a key that a reload has replaced since."""
        state, ring = _STATE_OF.get(cause), self._rings.get(provider)
        found = ring.find(key) if ring is not None else None
        if state is None or ring is None or found is None:
            return
        found.refusals[cause] = found.refusals.get(cause, 0) + 1
        now = self._clock.now()
        mark = _mark_of(found, state, target, now)
        if mark is not None:
            self._put_off(mark, now, retry_after_s)
        ring.clean = False

    def accepted(self, provider: str, key: KeyChoice, target: str = "") -> None:
        """The upstream accepted ``key`` at ``target``. Takes away marks whose time is over or that were being tried.

        Others stay: the attempt began before they were made. But a success shows that the key is not forbidden there.
        """
        ring = self._rings.get(provider)
        if ring is None or ring.clean:
            return
        found = ring.find(key)
        if found is None:
            return
        now = self._clock.now()
        if found.whole is not None and _is_over(found.whole, now):
            found.whole = None
        place = found.places.get(target)
        if place is not None and (place.state == FORBIDDEN or _is_over(place, now)):
            del found.places[target]
        ring.tidy()

    def states(self) -> Iterator[tuple[str, str, int]]:
        """(provider, name of the key, index into ``STATES``) of each key."""
        now = self._clock.now()
        for provider, ring in self._rings.items():
            for key in ring.keys:
                yield provider, key.name, key.state(now)

    def uses(self) -> Iterator[tuple[str, str, int]]:
        """(provider, name of the key, attempts made with it)."""
        return ((provider, key.name, key.uses) for provider, ring in self._rings.items() for key in ring.keys)

    def refusals(self) -> Iterator[tuple[str, str, str, int]]:
        """(provider, name of the key, state that the refusal led to, how many)."""
        for provider, ring in self._rings.items():
            for key in ring.keys:
                for cause, count in key.refusals.items():
                    yield provider, key.name, STATES[_STATE_OF[cause]], count

    def describe(self) -> dict[str, list[dict[str, Any]]]:
        """For the admin API: names and states by provider, never values. Times in seconds from now."""
        now = self._clock.now()
        return {
            provider: [_describe(key, now) for key in ring.keys] for provider, ring in sorted(self._rings.items())
        }

    def _find(self, ring: _Ring, tried: Collection[str], target: str, last: bool) -> int | None:
        """The place of the next usable key; otherwise see `pick`."""
        now, keys, at = self._clock.now(), ring.keys, ring.turn
        soonest_at, soonest_s = None, math.inf
        for key in keys[at:] + keys[:at] if at else keys:
            whole, place, ready_at = key.whole, None, 0.0
            if key.places and (place := key.places.get(target)) is not None:
                ready_at = place.ready_at
            if whole is not None and whole.ready_at > ready_at:
                ready_at = whole.ready_at
            if not tried or key.name not in tried:
                if ready_at <= now:
                    _begin_probes(whole, place, now)
                    return at
                if ready_at < soonest_s and (whole is None or whole.state != DEAD):
                    soonest_at, soonest_s = at, ready_at
            at += 1
            if at == len(keys):
                at = 0
        if tried or (not last and soonest_at is not None):
            return None
        return soonest_at if soonest_at is not None else _find_dead(keys, now)

    def _put_off(self, mark: _Mark, now: float, retry_after_s: float | None) -> None:
        """Let ``mark`` stand for its time from now on. Refusals of attempts that began before it do not make it
        longer, unless the upstream itself says so."""
        told_s = 0.0
        if mark.state == THROTTLED and retry_after_s is not None:
            told_s = min(max(0.0, retry_after_s), MAX_RETRY_AFTER_S)
        if not _is_over(mark, now):
            mark.ready_at = max(mark.ready_at, now + told_s)
            return
        mark.wait_s = _next_wait_s(mark)
        jitter = self._rng.uniform(0.5, 1.0) if mark.state == THROTTLED else 1.0
        mark.ready_at = now + (told_s or mark.wait_s * jitter)
        mark.since = now
        mark.probing = False


def _renew(old: _Key | None, given: ProviderKey) -> _Key:
    """The key of after a reload."""
    if old is not None and old.choice.value == given.value:
        return old
    key = _Key(given.name, given.value)
    if old is not None:
        key.uses, key.refusals = old.uses, old.refusals
    return key


def _mark_of(key: _Key, state: int, target: str, now: float) -> _Mark | None:
    """The mark that a refusal concerns, made if it is new; ``None`` if a worse one stands there."""
    everywhere = state in (DEAD, SPENT) or not target
    mark = key.whole if everywhere else key.places.get(target)
    if mark is not None and mark.state == state:
        return mark
    if mark is not None and not _is_over(mark, now) and _weight(mark.state) > _weight(state):
        return None
    mark = _Mark(state, now)
    if everywhere:
        key.whole = mark
        return mark
    if len(key.places) >= MAX_PLACES:
        del key.places[next(iter(key.places))]
    key.places[target] = mark
    return mark


def _weight(state: int) -> int:
    return (USABLE, THROTTLED, FORBIDDEN, SPENT, DEAD).index(state)


def _next_wait_s(mark: _Mark) -> float:
    if mark.state == THROTTLED:
        return min(MAX_THROTTLED_S, max(THROTTLED_S, mark.wait_s * 2))
    if mark.state == SPENT:
        return SPENT_S
    return min(MAX_DEAD_S, max(DEAD_S, mark.wait_s * 2))


def _is_over(mark: _Mark, now: float) -> bool:
    return mark.probing or now >= mark.ready_at


def _find_dead(keys: tuple[_Key, ...], now: float) -> int | None:
    """Where all keys are dead: the place of the one that was refused longest ago, once per ``PROBE_S``."""
    marks = [(key.whole.since, at, key.whole) for at, key in enumerate(keys) if key.whole is not None]
    if not marks or any(mark.probing or now < since + PROBE_S for since, _, mark in marks):
        return None
    _, at, mark = min(marks, key=lambda each: each[0])
    _probe(mark, now)
    mark.wait_s /= 2  # its time was not over: another refusal does not make it longer
    return at


def _begin_probes(whole: _Mark | None, place: _Mark | None, now: float) -> None:
    """A key was picked whose time is over: whoever comes meanwhile takes another, but for throttling."""
    if whole is not None and whole.state != THROTTLED:
        _probe(whole, now)
    if place is not None and place.state != THROTTLED:
        _probe(place, now)


def _probe(mark: _Mark, now: float) -> None:
    mark.probing = True
    mark.ready_at = now + PROBE_S


def _describe(key: _Key, now: float) -> dict[str, Any]:
    said: dict[str, Any] = {"key": key.name, "state": STATES[key.state(now)], "uses": key.uses}
    if key.whole is not None:
        said["for_s"] = round(max(0.0, key.whole.ready_at - now), 1)
        said["probing"] = key.whole.probing
    if key.places:
        said["targets"] = {
            target: {"state": STATES[mark.state], "for_s": round(max(0.0, mark.ready_at - now), 1)}
            for target, mark in sorted(key.places.items())
        }
    if key.refusals:
        said["refusals"] = {STATES[_STATE_OF[cause]]: count for cause, count in key.refusals.items()}
    return said
