"""Virtual keys in memory: found without waiting, and fetched once when they are not there.

A key that is held is served as long as somebody vouches for it: its own reading (``fresh_s``), or the feed of
changes, which vouches for all keys at once each time the database says that nothing else has changed. When nobody
can, because the database is away, a key that was seen before is served for ``stale_s`` more, and an unknown one is
refused as unavailable: never as wrong, and never let in.

Levels: this map, the shared level if there is one, the database. What comes from the database carries a version; an
older record never replaces a newer one, whichever way it comes.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from proxy.access.levels import KeySource, Levels, Reading, SharedKeys, Tuning, unavailable, unknown_key
from proxy.access.token import KEY_BYTES, Digester, is_key
from proxy.clock import Clock
from proxy.config.keys import KeyRecord
from proxy.errors import ProxyError, StoreError

__all__ = ["Held", "Keyring", "Reading", "Tuning", "unknown_key"]

_SOFT: Final = 0.8
"""Part of the time of freshness after which a key in use is read again, behind the answer."""
_REREAD: Final = 10.0
"""Times ``fresh_s``: a key in use is read again after that, even if the feed vouches for it."""
_SECOND_CHANCES: Final = 32


class Held:
    """One key in memory. Written by the ring; ``memo`` belongs to whoever derives something from the record."""

    __slots__ = ("fresh_s", "fresh_until", "memo", "read_at", "record", "reread_at", "used")

    def __init__(self, record: KeyRecord, read_at: float, fresh_s: float) -> None:
        self.record = record
        self.read_at = read_at
        """When its reading began."""
        self.fresh_s = fresh_s
        """How long somebody's word for it lasts."""
        self.reread_at = read_at + _REREAD * fresh_s
        self.fresh_until = 0.0
        """Until then it is served without a closer look."""
        self.used = False
        """Since it was last passed over by an eviction."""
        self.memo: dict[Any, Any] = {}
        """Emptied when the record is replaced."""


class _Lookup:
    """One look-up in the air. ``newer`` is written by the feed: what it learnt of the key meanwhile."""

    __slots__ = ("newer", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[Held | ProxyError] | None = None
        self.newer: KeyRecord | None = None


class Keyring:
    """The keys of one process."""

    # Mutable state: _held (digest -> key, in the order of eviction), _unknown (digest -> until when), _lookups,
    # _confirmed_at and _void_before (from when on somebody must have vouched for a key), _watched_until and the
    # counters. Written on the loop: by find, fetch, the look-ups, tick, apply, confirmed, restore, forget, doubt.
    def __init__(
        self,
        digester: Digester,
        source: KeySource,
        clock: Clock,
        tuning: Tuning | None = None,
        *,
        shared: SharedKeys | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.digest = digester.digest
        self._clock = clock
        self.tuning = tuning or Tuning()
        self._jitter = jitter
        self.levels = Levels(source, clock, shared, self.tuning.max_queries, jitter)
        self._held: OrderedDict[bytes, Held] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._lookups: dict[bytes, _Lookup] = {}
        self._began_at = clock.now()
        self._confirmed_at = -float("inf")
        self._void_before = -float("inf")
        self._watched_until = float("inf")
        self._ticked: tuple[float, float] | None = None
        self._forgotten_version = 0
        """The highest version among the records that were seen and are not held."""
        self.version = 0
        """Every change up to this one has been applied."""
        self.newest_version = 0
        """The highest version that anybody mentioned."""
        self.confirm: Callable[[], Awaitable[object]] | None = None
        """Asks the database for all changes at once; set by the feed."""
        self.on_change: Callable[[KeyRecord], None] | None = None
        """Told of every change of a key that may be in use, for whoever keeps more of it. Must not raise."""
        self.hits = 0
        self.stale_served = 0
        """Hits of keys that nobody could vouch for, because the database was away."""
        self.misses = 0
        self.unknown_hits = 0
        """Unknown keys that were refused from memory."""
        self.junk = 0
        """Tokens whose form alone showed that they are no keys."""
        self.turned_away = 0
        """Look-ups refused because there were too many, or because the database had just failed."""
        self.older_refused = 0
        """Records that came late and were older than what was held."""
        self.evictions = 0
        self.doubts = 0
        """Times at which everything had to be confirmed again."""

    def __len__(self) -> int:
        return len(self._held)

    # -- without waiting -------------------------------------------------------------------------------------

    def find(self, token: bytes, now: float) -> Held | None:
        """The key if it is in memory and may be used (revoked and expired ones too), ``None`` if it must be fetched.

        Raises ``ProxyError``: ``INVALID_KEY`` for what is no key or was unknown a moment ago, ``AUTH_UNAVAILABLE`` if
        nobody has been able to vouch for it for too long.
        """
        if len(token) != KEY_BYTES:
            self.junk += 1
            raise unknown_key()
        digest = self.digest(token)
        held = self._held.get(digest)
        if held is not None and now < held.fresh_until and now < self._watched_until:
            self.hits += 1
            held.used = True
            return held
        if now >= self._watched_until:
            self.doubt(now)
        if held is None:
            self._check_unknown(token, digest, now)
            return None
        return self._vouched(digest, held, now)

    def held(self, digest: bytes) -> Held | None:
        """What is known of a key that was let in, fresh or not; nothing if it was evicted since."""
        return self._held.get(digest)

    def _check_unknown(self, token: bytes, digest: bytes, now: float) -> None:
        until = self._unknown.get(digest)
        if until is not None and now < until:
            self.unknown_hits += 1
            raise unknown_key()
        if not is_key(token):
            self.junk += 1
            raise unknown_key()
        self.misses += 1

    def _vouched(self, digest: bytes, held: Held, now: float) -> Held | None:
        """``held`` if it may be used by now, by whose word ever; looked at more closely than each time."""
        confirmed_at = max(held.read_at, self._confirmed_at)
        if confirmed_at >= self._void_before and now - confirmed_at < held.fresh_s:
            self.hits += 1
            held.used = True
            held.fresh_until = min(confirmed_at + _SOFT * held.fresh_s, held.reread_at)
            if now >= held.fresh_until and self.levels.may_ask(now):
                self._begin(digest)  # behind the answer
            return held
        if self.levels.up:
            self.misses += 1
            return None
        held.used = True
        if self.levels.may_ask(now):
            self._begin(digest)
        self._check_stale(held)
        self.stale_served += 1
        return held

    # -- with waiting ----------------------------------------------------------------------------------------

    async def fetch(self, token: bytes) -> Held:
        """The key that `find` did not have; one look-up for all who wait for the same.

        Raises ``ProxyError``: ``INVALID_KEY`` if nobody knows it, ``AUTH_UNAVAILABLE`` if nobody can tell.
        """
        digest = self.digest(token)
        held = self._held.get(digest)
        caught_up = self._confirmed_at > -float("inf")
        if held is not None and caught_up and self.confirm is not None and self.levels.up:
            # One question for all keys, instead of one for each: everybody comes here after a suspension.
            await self.confirm()
            if self._held.get(digest) is held and self._is_fresh(held):
                return held
        lookup = self._begin(digest)
        if lookup is None or lookup.task is None:
            self.turned_away += 1
            if held is None:
                raise unavailable("too many look-ups" if self.levels.up else "the database failed a moment ago")
            self._check_stale(held)
            self.stale_served += 1
            return held
        outcome = await asyncio.shield(lookup.task)
        if isinstance(outcome, ProxyError):
            raise outcome.with_traceback(None)
        self.stale_served += not self._is_fresh(outcome)
        return outcome

    def _is_fresh(self, held: Held) -> bool:
        confirmed_at = max(held.read_at, self._confirmed_at)
        return confirmed_at >= self._void_before and self._clock.now() - confirmed_at < held.fresh_s

    def _begin(self, digest: bytes) -> _Lookup | None:
        """The look-up of a key: the one in the air or a new one; ``None`` if there may be none now."""
        lookup = self._lookups.get(digest)
        if lookup is None:
            if len(self._lookups) >= self.tuning.max_lookups or not self.levels.may_ask(self._clock.now()):
                return None
            lookup = self._lookups[digest] = _Lookup()
            lookup.task = asyncio.get_running_loop().create_task(self._look_up(digest, lookup))
        return lookup

    async def _look_up(self, digest: bytes, lookup: _Lookup) -> Held | ProxyError:
        try:
            async with asyncio.timeout(self.tuning.lookup_s):
                reading = await self.levels.read(digest, lambda: self.version, self._is_usable)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must neither let in nor tell a caller "wrong key"
            self.levels.fail_fetch()
            return self._outcome_without_answer(digest, error)
        finally:
            del self._lookups[digest]
        return self._take(digest, reading, lookup.newer)

    def _is_usable(self, reading: Reading) -> bool:
        """Whether what the shared level has is no older than what was known here once."""
        held = self._held.get(reading.record.digest)
        known = self._forgotten_version if held is None else max(held.record.version, self._forgotten_version)
        age_s = self._clock.now() - reading.read_at
        fresh = reading.read_at >= self._void_before and age_s < _SOFT * self.tuning.fresh_s
        return fresh and reading.as_of >= known

    def _take(self, digest: bytes, reading: Reading | None, newer: KeyRecord | None) -> Held | ProxyError:
        """Keep what a look-up brought, unless the feed knows better by now."""
        if newer is not None and (reading is None or newer.version > reading.record.version):
            reading = Reading(newer, newer.version, self._clock.now())
        if reading is None:
            self._held.pop(digest, None)
            self._unknown[digest] = self._clock.now() + self.tuning.unknown_s * (1.0 + self._jitter())
            if len(self._unknown) > self.tuning.max_unknown:
                self._unknown.popitem(last=False)
            return unknown_key()
        self._unknown.pop(digest, None)
        return self._keep(reading.record, reading.read_at)

    def _outcome_without_answer(self, digest: bytes, error: Exception) -> Held | ProxyError:
        held = self._held.get(digest)
        if held is None:
            why = error.why if isinstance(error, StoreError) else type(error).__name__
            return unavailable(f"the database did not answer: {why}")
        try:
            self._check_stale(held)
        except ProxyError as refusal:
            return refusal
        return held

    def _check_stale(self, held: Held) -> None:
        """Raise ``AUTH_UNAVAILABLE`` if nobody has vouched for the key for too long."""
        if self._clock.now() - max(held.read_at, self._confirmed_at) >= self.tuning.stale_s:
            raise unavailable("the key was last confirmed too long ago")

    # -- what others say -------------------------------------------------------------------------------------

    def apply(self, record: KeyRecord, read_at: float | None = None) -> None:
        """A record that was read from the database at ``read_at`` (now, unless given): it replaces an older one of
        the same key, and takes an empty place if there is one."""
        digest = record.digest
        self._unknown.pop(digest, None)
        lookup = self._lookups.get(digest)
        if lookup is not None and (lookup.newer is None or lookup.newer.version < record.version):
            lookup.newer = record
        room = len(self._held) < self.tuning.max_keys and not record.revoked_at
        if digest in self._held or room:
            self._keep(record, self._clock.now() if read_at is None else read_at)
        else:
            self._forgotten_version = max(self._forgotten_version, record.version)
            if self.on_change is not None:
                self.on_change(record)

    def _keep(self, record: KeyRecord, read_at: float) -> Held:
        held = self._held.get(record.digest)
        if held is None:
            self._make_room()
            fresh_s = self.tuning.fresh_s * (0.9 + 0.2 * self._jitter())
            held = self._held[record.digest] = Held(record, read_at, fresh_s)
            return held
        if record.version < held.record.version:
            self.older_refused += 1
            return held
        if record.version > held.record.version:
            held.record = record
            held.memo = {}
            if self.on_change is not None:
                self.on_change(record)
        held.read_at = max(held.read_at, read_at)
        held.reread_at = held.read_at + _REREAD * held.fresh_s
        return held

    def _make_room(self) -> None:
        """Evict the key that came in first and was not used since somebody was evicted last, or nearly so."""
        if len(self._held) < self.tuning.max_keys:
            return
        for _ in range(_SECOND_CHANCES):
            digest, held = next(iter(self._held.items()))
            if not held.used:
                break
            held.used = False
            self._held.move_to_end(digest)
        _, held = self._held.popitem(last=False)
        self._forgotten_version = max(self._forgotten_version, held.record.version)
        self.evictions += 1

    def confirmed(self, version: int, at: float) -> None:
        """The database said at ``at`` that there is no change behind ``version``, and all up to it were applied."""
        self.version = max(self.version, version)
        self.newest_version = max(self.newest_version, version)
        self._confirmed_at = max(self._confirmed_at, at)
        self.levels.succeeded()

    def restore(self, records: Iterable[KeyRecord], version: int, confirmed_at: float) -> None:
        """Begin with what an earlier process knew, confirmed at ``confirmed_at`` on this process's clock."""
        for record in records:
            if len(self._held) < self.tuning.max_keys:
                self._keep(record, confirmed_at)
        self.version = self.newest_version = self._forgotten_version = version

    def forget(self) -> None:
        """Another database answers under the same name: nothing that is known counts any more."""
        self._held.clear()
        self._unknown.clear()
        self.version = self.newest_version = self._forgotten_version = 0
        self._confirmed_at = -float("inf")

    def doubt(self, now: float) -> None:
        """Something may have been missed: nobody's word from before ``now`` counts as fresh."""
        self.doubts += 1
        self._void_before = now
        self.levels.succeeded()  # a failure from before says nothing either
        self._watched_until = now + self.tuning.unwatched_s
        for held in self._held.values():
            held.fresh_until = 0.0

    def tick(self) -> bool:
        """The process is awake; called several times in ``unwatched_s``. Returns whether it was not, for a while."""
        now, wall = self._clock.now(), self._clock.wall()
        # Monotonic time stands still while a machine sleeps, wall time does not.
        before, wall_before = self._ticked or (now, wall)
        slept = (wall - wall_before) - (now - before) > self.tuning.unwatched_s
        if slept or now >= self._watched_until:
            self.doubt(now)
            slept = True
        self._ticked = now, wall
        self._watched_until = now + self.tuning.unwatched_s
        return slept

    # -- for people ------------------------------------------------------------------------------------------

    @property
    def database_up(self) -> bool:
        """Whether the last question was answered."""
        return self.levels.up

    @property
    def version_lag(self) -> int:
        """How many versions are known to exist and not applied yet."""
        return max(0, self.newest_version - self.version)

    @property
    def hit_rate(self) -> float:
        """Part of the look-ups of valid or unknown keys that waited for nothing; 1 before the first."""
        served = self.hits + self.stale_served + self.unknown_hits
        asked = served + self.misses
        return served / asked if asked else 1.0

    def confirmed_age_s(self, now: float) -> float:
        """How long ago the feed last vouched for all keys; if it never did, since this ring was made."""
        return now - max(self._confirmed_at, self._began_at)

    @property
    def confirmed_at(self) -> float:
        return self._confirmed_at

    def records(self) -> list[KeyRecord]:
        """What is held and not revoked."""
        return [held.record for held in self._held.values() if not held.record.revoked_at]

    async def close(self) -> None:
        """End the look-ups in the air."""
        tasks = [lookup.task for lookup in self._lookups.values() if lookup.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
