"""The cache level inside the process: a synchronous map from fingerprint to recording, bounded in bytes.

A look-up is one dictionary read whatever the number of entries, which is why this is not aiocache (its memory cache
costs 9 µs a read and has no bound). Its laws:

- the entries and their bookkeeping never weigh more than ``max_bytes``;
- nobody evicts everybody: a scope that holds more than its share gives up its own oldest entries first, and a user
  within a scope never holds more than a user's part of it;
- what was purged is gone in the same tick, and an answer whose flight began before a purge is not stored after it.

Nothing here awaits, so that a look-up in the cache and one in the flight table can share a tick.
"""

from __future__ import annotations

import random as _random
from collections.abc import Callable
from enum import Enum
from typing import Final

from proxy.cache.missing import MissingKeys
from proxy.cache.recording import Recording
from proxy.cache.refresh import Refreshes
from proxy.cache.ring import Node, Ring
from proxy.cache.users import Owned, Users

# An entry moves to the young end at most once in this time: recency is only of use across longer spans, and a hit
# then reads two objects instead of writing to the neighbours of two lists as well.
_TOUCH_S: Final = 1.0
# The index is one dictionary for each value of a key's first byte (keys are hashes, so they spread evenly). A
# dictionary that grows is rebuilt in one go: 0.1 s with 10^6 entries, 0.4 ms with the 256th part of them.
_SHARDS: Final = 256


class Freshness(Enum):
    FRESH = "fresh"
    STALE = "stale"


_FRESH, _STALE = Freshness.FRESH, Freshness.STALE


class Hit:
    """What a look-up found."""

    __slots__ = ("now", "recording", "ttl_left_s")

    def __init__(self, recording: Recording, now: float, ttl_left_s: float) -> None:
        self.recording = recording
        self.now = now
        self.ttl_left_s = ttl_left_s
        """Negative for a stale entry: for how long it has been stale."""

    @property
    def age_s(self) -> float:
        return self.recording.age_s(self.now)

    @property
    def freshness(self) -> Freshness:
        return Freshness.FRESH if self.ttl_left_s > 0.0 else Freshness.STALE

    @property
    def may_serve(self) -> bool:
        """Fresh, or stale within stale-while-revalidate: serve it (and refresh it if it is stale)."""
        return self.ttl_left_s > 0.0 or self.ttl_left_s > -self.recording.swr_s

    @property
    def may_mask_error(self) -> bool:
        """It may stand in for an upstream that failed (5xx, time-out, no connection)."""
        return self.ttl_left_s > 0.0 or self.ttl_left_s > -self.recording.sie_s

    def __repr__(self) -> str:
        return f"<Hit {self.freshness.value} age {self.age_s:.1f}s left {self.ttl_left_s:.1f}s {self.recording!r}>"


class _Scope:
    """The entries of one scope by age of use, their number and weight. Written by HotCache only."""

    __slots__ = ("count", "name", "order", "purged", "size_bytes")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.order: Ring[_Place] = Ring()
        self.count = 0
        self.size_bytes = 0
        self.purged = False
        """Its entries are invisible and are removed piece by piece; a new scope object takes its name."""

    @property
    def oldest(self) -> _Entry:
        place = self.order.oldest
        assert place is not None, "a scope is dropped with its last entry"
        return place.entry


class _Entry(Node):
    """A recording in the cache; as a node it stands in the order of all entries."""

    # `own` is its place among its user's entries; None where it is nobody's.
    __slots__ = ("fresh_until", "keep_until", "key", "own", "place", "recording", "scope", "touched_at")

    def __init__(self, key: bytes, scope: _Scope, recording: Recording, fresh_until: float) -> None:
        self.key = key
        self.scope = scope
        self.recording = recording
        self.fresh_until = fresh_until
        self.keep_until = fresh_until + max(recording.swr_s, recording.sie_s)
        self.touched_at = recording.stored_at
        self.place = _Place(self)
        self.own: Owned[_Entry] | None = None


class _Place(Node):
    """The same entry in the order of its scope."""

    __slots__ = ("entry",)

    def __init__(self, entry: _Entry) -> None:
        self.entry = entry


class HotCache:
    """Fingerprint to recording, with LRU order overall and within each scope.

    ``share`` is the part of ``max_bytes`` that one scope may hold while others want room (alone it may have all);
    ``user_share`` is the part of that which one user may hold at all.
    ``random`` gives numbers in [0, 1); it spreads times to live by ±10 %. ``now`` is monotonic seconds throughout.
    """

    # Mutable state, written by put, purge, sweep, lookup (only what has ended) and their private parts:
    #   _index    256 dictionaries key -> entry             _order   all entries, oldest use first
    #   _scopes   name -> scope with a visible entry        _over    scopes above their share
    #   _users    the users of scopes that have entries
    #   _purged   scopes whose entries are invisible but still weigh, until they are swept or evicted
    # An entry is in its dictionary, in _order and in its scope's order, or in none of them.
    # size_bytes is the weight of all entries and `entries` their number, purged ones included; generation only
    # grows; _next_shard is where the next sweep looks. The rest are counters.
    __slots__ = (
        "_index",
        "_missing",
        "_next_shard",
        "_order",
        "_over",
        "_purged",
        "_random",
        "_refreshes",
        "_scopes",
        "_users",
        "entries",
        "evictions",
        "expired",
        "generation",
        "hits",
        "max_bytes",
        "max_entry_bytes",
        "misses",
        "refused",
        "share_bytes",
        "size_bytes",
        "stale_hits",
        "stored",
        "user_evictions",
    )

    def __init__(
        self,
        max_bytes: int,
        *,
        share: float = 0.5,
        user_share: float = 1 / 16,
        max_entry_bytes: int | None = None,
        max_missing: int = 50_000,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self.max_bytes = max_bytes
        self.share_bytes = int(max_bytes * share)
        # An entry within the share can always be kept, so making room never has to evict the entry it is made for.
        self.max_entry_bytes = min(max_bytes // 8 if max_entry_bytes is None else max_entry_bytes, self.share_bytes)
        self._random = random
        self._index: tuple[dict[bytes, _Entry], ...] = tuple({} for _ in range(_SHARDS))
        self._order: Ring[_Entry] = Ring()
        self._scopes: dict[bytes, _Scope] = {}
        self._users: Users[_Entry] = Users(int(self.share_bytes * user_share))
        self._over: dict[_Scope, None] = {}
        self._purged: dict[_Scope, None] = {}
        self._next_shard = 0
        self._missing = MissingKeys(max_missing)
        self._refreshes = Refreshes(random)
        self.generation = 0
        """Take it when a flight begins, hand it back with ``put``."""
        self.size_bytes = 0
        self.entries = 0
        self.hits = 0
        self.stale_hits = 0
        self.misses = 0
        self.stored = 0
        self.refused = 0
        """Recordings not stored: too large, worthless by age, or overtaken by a purge."""
        self.evictions = 0
        self.user_evictions = 0
        """Of them by a user's own newer entries."""
        self.expired = 0

    @property
    def missing(self) -> MissingKeys:
        """The negative entries, for their counters."""
        return self._missing

    @property
    def refreshes(self) -> Refreshes:
        """The refreshes under way, for their counters."""
        return self._refreshes

    def lookup(self, key: bytes, now: float) -> Hit | None:
        """The entry of ``key`` if it is of any use.

        A stale entry counts as ``stale_hits`` while it may be served; later, when it can only mask an error, it is
        returned all the same but counts as a miss.
        """
        entry = self._index[key[0]].get(key)
        if entry is None or entry.scope.purged:
            self.misses += 1
            return None
        ttl_left_s = entry.fresh_until - now
        if ttl_left_s > 0.0:
            self.hits += 1
        elif now < entry.keep_until:
            if ttl_left_s > -entry.recording.swr_s:
                self.stale_hits += 1
            else:
                self.misses += 1
        else:
            self._remove(entry)
            self.expired += 1
            self.misses += 1
            return None
        if now - entry.touched_at >= _TOUCH_S:
            entry.touched_at = now
            self._order.renew(entry)
            entry.scope.order.renew(entry.place)
        return Hit(entry.recording, now, ttl_left_s)

    def put(self, key: bytes, scope: bytes, recording: Recording, generation: int, user: bytes = b"") -> bool:
        """Store, replacing an older entry of the key; ``False`` (and ``refused``) if it may not be stored.

        ``generation`` is the value of ``self.generation`` when the flight that made the recording began. ``user``
        names one of the scope's users, whose own oldest entries make room for it.
        """
        most_bytes = min(self.max_entry_bytes, self._users.share_bytes) if user else self.max_entry_bytes
        if (
            generation != self.generation
            or recording.size_bytes > most_bytes
            or recording.keeps_s <= 0.0
        ):
            self.refused += 1
            return False
        old = self._index[key[0]].get(key)
        if old is not None:
            self._remove(old)
        self._missing.forget(key)
        entry = self._insert(key, scope, recording)
        if user:
            self._own(entry, (scope, user))
        self.stored += 1
        while self.size_bytes > self.max_bytes:
            self._remove(self._victim(scope))
            self.evictions += 1
        return True

    def purge(self, *, scope: bytes | None = None, key: bytes | None = None) -> int:
        """Make one key, one scope or (without arguments) everything invisible at once; returns how many entries.

        Also keeps every flight now in the air from storing what it brings. The memory of a scope comes back with
        the next sweeps; the work here does not grow with its entries.
        """
        self.generation += 1
        if key is not None:
            self._missing.forget(key)
            entry = self._index[key[0]].get(key)
            if entry is None or entry.scope.purged:
                return 0
            self._remove(entry)
            return 1
        if scope is not None:
            one = self._scopes.pop(scope, None)
            return 0 if one is None else self._condemn(one)
        self._missing.clear()
        scopes, self._scopes = self._scopes, {}
        return sum(map(self._condemn, scopes.values()))

    def advance(self) -> None:
        """Keep flights now in the air from storing, without dropping anything: a reload, a revoked credential."""
        self.generation += 1

    def sweep(self, now: float, limit: int = 1000) -> int:
        """Remove up to ``limit`` entries that were purged or have ended; returns how many. About 2 µs each.

        Ended ones are looked for in two of the 256 parts of the index, so that each comes round every 128 sweeps;
        until then they are invisible, and the first to be evicted once they are the oldest.
        """
        gone = 0
        while self._purged and gone < limit:
            self._remove(next(iter(self._purged)).oldest)
            gone += 1
        for _ in range(2):
            shard = self._index[self._next_shard]
            ended = [entry for entry in shard.values() if entry.keep_until <= now]
            for entry in ended[: limit - gone]:
                self._remove(entry)
                self.expired += 1
            if len(ended) > limit - gone:
                gone = limit
                break
            gone += len(ended)
            self._next_shard = (self._next_shard + 1) % _SHARDS
        self._refreshes.sweep(now)
        return gone + self._missing.sweep(now, limit - gone)

    def shrink(self, size_bytes: int, limit: int = 1000) -> int:
        """Give up the oldest entries until all together weigh at most ``size_bytes``, but no more than ``limit`` of
        them in one call; returns how many. For when the process is short of memory."""
        gone = 0
        while self.size_bytes > size_bytes and gone < limit:
            oldest = next(iter(self._purged)).oldest if self._purged else self._order.oldest
            assert oldest is not None, "weight without entries"
            self._remove(oldest)
            self.evictions += 1
            gone += 1
        return gone

    def remember_missing(self, key: bytes, ttl_s: float, now: float) -> None:
        """Remember briefly that ``key`` leads nowhere; apart from the entries, so it can evict none of them."""
        self._missing.remember(key, ttl_s, now)

    def is_missing(self, key: bytes, now: float) -> bool:
        return self._missing.knows(key, now)

    def begin_refresh(self, key: bytes, now: float) -> bool:
        """Whether the caller is to refresh the stale entry of ``key``: nobody else does, and no hold-off runs.

        After ``True`` the caller owes ``put`` or ``end_refresh``.
        """
        entry = self._index[key[0]].get(key)
        return entry is not None and not entry.scope.purged and self._refreshes.begin(key, now)

    def end_refresh(self, key: bytes, now: float, *, ok: bool = False) -> None:
        """A refresh ended without a new entry; unless ``ok`` the next one is held off, longer with each failure."""
        self._refreshes.end(key, now, ok=ok)

    def _own(self, entry: _Entry, name: tuple[bytes, bytes]) -> None:
        """Note whose it is; what the user has too much of goes."""
        entry.own = self._users.add(name, entry, entry.recording.size_bytes)
        while (oldest := self._users.surplus(entry.own)) is not None:
            self._remove(oldest)
            self.evictions += 1
            self.user_evictions += 1

    def _insert(self, key: bytes, name: bytes, recording: Recording) -> _Entry:
        scope = self._scopes.get(name)
        if scope is None:
            scope = self._scopes[name] = _Scope(name)
        ttl_s = recording.ttl_s * (0.9 + 0.2 * self._random())
        entry = _Entry(key, scope, recording, recording.stored_at + ttl_s)
        self._index[key[0]][key] = entry
        self._order.append(entry)
        scope.order.append(entry.place)
        self._weigh(scope, 1, recording.size_bytes)
        return entry

    def _remove(self, entry: _Entry) -> None:
        key, scope = entry.key, entry.scope
        del self._index[key[0]][key]
        self._order.drop(entry)
        scope.order.drop(entry.place)
        if entry.own is not None:
            self._users.drop(entry.own)
        self._weigh(scope, -1, -entry.recording.size_bytes)
        self._refreshes.forget(key)
        if not scope.count:
            if scope.purged:
                del self._purged[scope]
            else:
                del self._scopes[scope.name]

    def _weigh(self, scope: _Scope, count: int, size_bytes: int) -> None:
        self.entries += count
        scope.count += count
        self.size_bytes += size_bytes
        scope.size_bytes += size_bytes
        if scope.size_bytes > self.share_bytes and not scope.purged:
            self._over[scope] = None
        else:
            self._over.pop(scope, None)

    def _victim(self, name: bytes) -> _Entry:
        """Whose turn it is when the scope called ``name`` has just stored and there is too much."""
        if self._purged:
            return next(iter(self._purged)).oldest
        scope = self._scopes[name]
        if scope not in self._over:
            scope = next(iter(self._over), scope)
        if scope in self._over:
            return scope.oldest
        oldest = self._order.oldest
        assert oldest is not None, "weight without entries"
        return oldest

    def _condemn(self, scope: _Scope) -> int:
        scope.purged = True
        self._over.pop(scope, None)
        self._purged[scope] = None
        return scope.count

    def __repr__(self) -> str:
        return (
            f"<HotCache {self.entries} entries {self.size_bytes}/{self.max_bytes} bytes "
            f"hits {self.hits} stale {self.stale_hits} misses {self.misses} evictions {self.evictions}>"
        )

