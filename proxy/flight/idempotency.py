"""Idempotency keys: one caller's name for one operation, so that doing it again is never doing it twice.

An entry maps (scope, Idempotency-Key) to the print of the request that used it first and to its flight. While the
flight can be joined a second request joins it by its ordinary key, which holds the idempotency key as a field; this
index only answers the cases in which that is not possible.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

from proxy.clock import Clock
from proxy.flight.flight import Flight, Phase

MAX_ENTRIES = 10_000


class Verdict(Enum):
    PROCEED = "proceed"
    BUSY = "busy"
    """The operation is under way and its flight can no longer be joined: 409."""
    MISMATCH = "mismatch"
    """The key was used for a different request: 422."""


class _Entry:
    __slots__ = ("ended_at", "flight", "print")

    def __init__(self, print_: bytes, flight: Flight) -> None:
        self.print = print_
        self.flight: Flight | None = flight
        self.ended_at = 0.0


class IdempotencyIndex:
    """Bounded: beyond ``MAX_ENTRIES`` the oldest key is forgotten, which only loses a protection."""

    # Mutable state: _entries, oldest first; written by `record`, `check` and `sweep`.
    __slots__ = ("_clock", "_entries", "ttl_s")

    def __init__(self, clock: Clock, ttl_s: float) -> None:
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self.ttl_s = ttl_s
        """How long a key is remembered after its operation ended; 0 forgets it at once."""

    def check(self, index: bytes, print_: bytes) -> Verdict:
        """What a request with this key may do. Call it in the tick in which the request would join."""
        entry = self._entries.get(index)
        if entry is None or self._is_over(entry):
            return Verdict.PROCEED
        if entry.print != print_:
            return Verdict.MISMATCH
        flight = entry.flight
        if flight is None or flight.is_joinable(self._clock.now()):
            return Verdict.PROCEED
        return Verdict.BUSY

    def record(self, index: bytes, print_: bytes, flight: Flight) -> None:
        """Remember which flight carries out the operation."""
        entry = self._entries.get(index)
        if entry is not None and entry.flight is flight:
            return
        self._entries[index] = _Entry(print_, flight)
        self._entries.move_to_end(index)
        if len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)

    def _is_over(self, entry: _Entry) -> bool:
        flight = entry.flight
        if flight is not None:
            if flight.phase is not Phase.ENDED:
                return False
            # The flight itself is let go; only its print is remembered.
            entry.flight = None
            entry.ended_at = self._clock.now()
        return self._clock.now() >= entry.ended_at + self.ttl_s

    def sweep(self) -> None:
        """Drop what is over; called by the janitor."""
        for index in [index for index, entry in self._entries.items() if self._is_over(entry)]:
            del self._entries[index]

    def __len__(self) -> int:
        return len(self._entries)
