"""How long the event loop needs to go round once: the wait that a request meets which comes in now.

A turn is measured by two callbacks, one behind the other. It costs a microsecond or two and is begun by the janitor's
tick. While turns are long they are measured one after another, as then the measuring costs nothing in comparison;
a quiet loop is not kept from sleeping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from proxy.clock import Clock

LONG_S: Final = 0.001
"""A turn of at least this length is followed by the measuring of the next."""


class Loop(Protocol):
    """What is needed of an event loop."""

    def call_soon(self, callback: Callable[[], object], /) -> Any: ...


class Turns:
    """Measures turns of one loop and tells ``observe`` the time and the length of each, in seconds."""

    # Mutable state: whether a callback is pending, and when the turn began that it ends; written by the callbacks.
    __slots__ = ("_began_at", "_clock", "_loop", "_measuring", "_observe")

    def __init__(self, loop: Loop, clock: Clock, observe: Callable[[float, float], object]) -> None:
        self._loop = loop
        self._clock = clock
        self._observe = observe
        self._measuring = False
        self._began_at = 0.0

    def tick(self) -> None:
        """Measure the next turn, unless one is being measured."""
        if not self._measuring:
            self._measuring = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        # A timer's callback runs before the ready ones of the same turn, which are no whole turn.
        self._began_at = self._clock.now()
        self._loop.call_soon(self._end)

    def _end(self) -> None:
        now = self._clock.now()
        took_s = now - self._began_at
        if took_s >= LONG_S:
            self._began_at = now
            self._loop.call_soon(self._end)
        else:
            self._measuring = False
        self._observe(now, took_s)
