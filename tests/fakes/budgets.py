"""Budgets in a dictionary, as a store keeps them: the reference for the real ones and a store that obeys a test."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.config.keys import Budget
from proxy.errors import StoreError
from proxy.store.base import Lease


@dataclass
class Held:
    """One holder's totals in one window."""

    granted: int = 0
    spent: int = 0
    returned: int = 0
    expires_at: float = math.inf
    dead: bool = False

    @property
    def leased(self) -> int:
        return max(0, self.granted - self.spent - self.returned)


@dataclass
class MemoryBudgets:
    """``window`` names the current one. ``gate`` holds calls back while it is cleared, ``failing`` makes the next
    calls fail before (``refuse``) or after (``lose``) they had their effect."""

    now: Callable[[], float] = lambda: 0.0
    window: str = "total"
    ends_at: float = math.inf
    holders: dict[tuple[str, str, str], Held] = field(default_factory=dict)
    billed: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """What usage rows say: (account, window, holder) → picodollars."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    failing: list[str] = field(default_factory=list)
    leases: int = 0
    settles: int = 0
    most: int = 0
    """Most that was ever spent and leased at once."""

    def __post_init__(self) -> None:
        self.gate.set()

    def _of(self, account: str, window: str) -> list[Held]:
        return [held for (name, each, _), held in self.holders.items() if name == account and each == window]

    def total(self, account: str, window: str | None = None) -> tuple[int, int]:
        """(spent, leased)."""
        held = self._of(account, self.window if window is None else window)
        return sum(each.spent for each in held), sum(each.leased for each in held)

    async def _pass(self) -> str:
        await self.gate.wait()
        await asyncio.sleep(0)
        failure = self.failing.pop(0) if self.failing else ""
        if failure == "refuse":
            raise StoreError("unavailable")
        return failure

    def _finish(self, failure: str) -> None:
        if failure == "lose":
            raise StoreError("timeout")

    async def lease(
        self, account: str, budget: Budget, holder: str, *, need: int, want: int, lasts_s: float
    ) -> Lease:
        failure = await self._pass()
        self.leases += 1
        spent, leased = self.total(account)
        rest = budget.picodollars - spent - leased
        held = self.holders.setdefault((account, self.window, holder), Held())
        # What it spent beyond its lease is among what was spent already.
        room = rest + max(0, held.spent + held.returned - held.granted)
        grant = max(0, min(want, room)) if room >= need else 0
        before = held.leased
        held.granted += grant
        held.dead = False
        for (name, _, each), other in self.holders.items():
            if name == account and each == holder:
                other.expires_at = self.now() + lasts_s
        spent, leased = self.total(account)
        self.most = max(self.most, spent + leased)
        rest -= held.leased - before
        self._finish(failure)
        return Lease(grant, rest, leased, held.leased, self.window, self.ends_at)

    async def settle(self, account: str, window: str, holder: str, *, spent_total: int, returned_total: int) -> None:
        failure = await self._pass()
        self.settles += 1
        held = self.holders.setdefault((account, window, holder), Held())
        held.spent = max(held.spent, spent_total)
        held.returned = max(held.returned, returned_total)
        self._finish(failure)

    async def settle_dead(self, account: str, holder: str) -> None:
        failure = await self._pass()
        for (name, window, each), held in self.holders.items():
            if name == account and each == holder:
                held.spent = max(held.spent, self.billed.get((account, window, holder), 0))
                held.returned += held.leased
                held.dead = True
        self._finish(failure)

    async def expired_leases(self) -> list[tuple[str, str, str]]:
        failure = await self._pass()
        self._finish(failure)
        now = self.now()
        return [key for key, held in self.holders.items() if held.expires_at < now and held.leased and not held.dead]
