"""Pass markers: keys whose answers could not be shared a moment ago.

While a key is marked, its requests go alone and nobody waits for a head in vain. A marker is a hint: losing one costs
a wait, never an answer, so the set is bounded and drops its oldest.
"""

from __future__ import annotations

import random
from collections import OrderedDict

from proxy.clock import Clock

_MAX = 10_000


class PassMarkers:
    """At most ``_MAX`` keys, each with the time at which its marker ends; newest last."""

    # Mutable state: _until (key -> monotonic seconds), written by every method.
    __slots__ = ("_clock", "_keep_s", "_until")

    def __init__(self, clock: Clock, keep_s: float) -> None:
        self._clock = clock
        self._keep_s = keep_s
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def has(self, key: bytes) -> bool:
        until = self._until.get(key)
        if until is None:
            return False
        if until <= self._clock.now():
            del self._until[key]
            return False
        return True

    def mark(self, key: bytes) -> None:
        """Mark a key, or mark it anew, for ``keep_s`` give or take a tenth, so that no burst expires at once."""
        jitter = 0.9 + 0.2 * random.random()  # noqa: S311 - spreads expiry, protects nothing
        self._until[key] = self._clock.now() + self._keep_s * jitter
        self._until.move_to_end(key)
        if len(self._until) > _MAX:
            self._until.popitem(last=False)

    def clear(self, key: bytes) -> bool:
        """Take a marker away, and return whether there was one."""
        return self._until.pop(key, None) is not None

    def sweep(self) -> None:
        """Drop what has expired."""
        now = self._clock.now()
        for key in [key for key, until in self._until.items() if until <= now]:
            del self._until[key]

    def __len__(self) -> int:
        return len(self._until)
