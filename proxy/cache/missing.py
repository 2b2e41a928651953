"""Keys that are known to lead nowhere, remembered briefly and apart from what is worth keeping.

They live in a map of their own with its own bound, so that guesses cannot evict a single good entry, and they end by
time alone: a look-up does not prolong them.
"""

from __future__ import annotations

from collections import OrderedDict


class MissingKeys:
    """At most ``max_keys`` keys with the monotonic time at which each is forgotten."""

    # Mutable: _until (key -> time, in order of being remembered; written by remember, knows, sweep, clear) and the
    # counters.
    __slots__ = ("_until", "displaced", "hits", "max_keys")

    def __init__(self, max_keys: int = 50_000) -> None:
        self.max_keys = max_keys
        self._until: OrderedDict[bytes, float] = OrderedDict()
        self.hits = 0
        self.displaced = 0
        """Keys forgotten early to make room."""

    def __len__(self) -> int:
        return len(self._until)

    def remember(self, key: bytes, ttl_s: float, now: float) -> None:
        self._until[key] = now + ttl_s
        self._until.move_to_end(key)
        if len(self._until) > self.max_keys:
            self._until.popitem(last=False)
            self.displaced += 1

    def knows(self, key: bytes, now: float) -> bool:
        """Whether the key is still remembered as missing."""
        until = self._until.get(key)
        if until is None:
            return False
        if now >= until:
            del self._until[key]
            return False
        self.hits += 1
        return True

    def forget(self, key: bytes) -> None:
        self._until.pop(key, None)

    def clear(self) -> None:
        self._until.clear()

    def sweep(self, now: float, limit: int) -> int:
        """Forget up to ``limit`` outlived keys, oldest first; returns how many."""
        # One key of a long time to live may shade younger ones that are over; they go when looked up or displaced.
        gone = 0
        while gone < limit and self._until:
            key, until = next(iter(self._until.items()))
            if now < until:
                break
            del self._until[key]
            gone += 1
        return gone
