"""The generation of what is stored in one namespace: a number that only grows, the same in all processes.

It is part of every entry's name and of what its hash covers. A purge raises it, and what was stored before is out of
everybody's reach at once, without being looked for: it ends with its time to live, or is evicted.

Processes agree by taking the greatest: each raises its own number first and tells the server when it can (`watch`),
so a purge works here even while the server is away, and a server that lost its memory learns the number again from
whoever comes first. The number is a time in microseconds, so that a process that knows none makes a greater one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from proxy.clock import Clock


def _nothing() -> None:
    """Nobody wants to know."""


class Debt(NamedTuple):
    """What the server has to be told."""

    known: int
    purges: int
    """How many purges there were here so far."""
    is_purge: bool
    """Everybody's number must grow, even if the server's is greater than ours."""
    cause: str
    """The same, unless this was the cause of the last time; empty: none."""


class Generation:
    """One namespace's generation as this process knows it. ``value`` 0: not asked for yet, so nothing may be used."""

    # Mutable: value; what the server has to be told (_purges beyond _told, _cause), written by advance, announce and
    # settle; and a counter.
    __slots__ = ("_cause", "_clock", "_purges", "_told", "changes", "on_change", "value")

    def __init__(self, clock: Clock, value: int = 0) -> None:
        self._clock = clock
        self._purges = 0
        self._told = 0
        self._cause = ""
        self.value = value
        self.changes = 0
        """How often others had it changed, or a cause announced here."""
        self.on_change: Callable[[], object] = _nothing
        """Called in the tick in which that is learnt: to drop what is older."""

    def advance(self) -> None:
        """Drop everything: here at once, elsewhere as soon as the server was told."""
        self.value = max(self.value + 1, int(self._clock.wall() * 1e6))
        self._purges += 1

    def announce(self, cause: str) -> None:
        """Let everybody drop everything for a ``cause`` that several may report, such as a change of configuration:
        it counts once, until another cause is reported."""
        self._cause = cause

    def agrees(self, held: object) -> bool:
        """Whether the server holds the same number, and we know one at all."""
        return isinstance(held, bytes) and held == b"%d" % self.value and self.value > 0

    @property
    def owes(self) -> bool:
        """Whether there is something that the server was not told."""
        return self._purges > self._told or bool(self._cause)

    def debt(self) -> Debt:
        """What the server has to be told now; if it was, follow with ``settle``."""
        return Debt(self.value, self._purges, self._purges > self._told, self._cause)

    def settle(self, debt: Debt, value: int) -> None:
        """The server was told, and ``value`` is what everybody agrees on."""
        self._told = debt.purges
        if self._cause == debt.cause:
            self._cause = ""
        if value == self.value or (self._purges > self._told and value < self.value):
            return  # in the latter case it was raised again in the meantime: the next one settles
        self.changes += debt.known > 0
        self.value = value
        self.on_change()
