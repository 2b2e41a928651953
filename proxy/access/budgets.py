"""Money that this process may spend: what was leased out of a budget, what of it is promised, what is spent.

A purse belongs to one account and has a pot for each window of its budget in which something is still open. All of it
is plain arithmetic in the process; `budgets_leases` fills pots from the store and tells it what became of the money.

For each pot: granted = free + reserved + spent + returned, where ``free`` may be below nothing after an answer that
cost more than was estimated; the next grant covers that first.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Protocol

from proxy.config.keys import Budget

if TYPE_CHECKING:
    from asyncio import Future


class Pot:
    """A purse's money in one window."""

    # Mutable: free, reserved, spent and returned are written by Purse.take, settle and the leases; the rest by the
    # leases alone. told_* are what the store has heard, held what it says this process has.
    __slots__ = (
        "ends_at",
        "free",
        "good_until",
        "purse",
        "reserved",
        "returned",
        "spent",
        "told_at",
        "told_returned",
        "told_spent",
        "window",
    )

    def __init__(self, purse: Purse, window: str, ends_at: float = math.inf) -> None:
        self.purse = purse
        self.window = window
        self.ends_at = ends_at
        """Unix seconds, by the store's clock."""
        self.good_until = -math.inf
        """Monotonic seconds until which ``free`` may be promised."""
        self.free = 0
        self.reserved = 0
        self.spent = 0
        self.returned = 0
        self.told_spent = 0
        self.told_returned = 0
        self.told_at = -math.inf

    def settle(self, reserved: int, spent: int) -> None:
        """A promise of ``reserved`` became ``spent``."""
        self.reserved -= reserved
        self.spent += spent
        self.free += reserved - spent
        purse = self.purse
        if self is not purse.pot:
            self.give_back(max(0, self.free))  # its window is over: nobody will take it any more
        elif purse.queue:
            purse.source.serve(purse)

    def give_back(self, picodollars: int) -> None:
        """Let go of free money; the store hears of it with the next telling."""
        self.free -= picodollars
        self.returned += picodollars

    @property
    def is_told(self) -> bool:
        return self.told_spent == self.spent and self.told_returned == self.returned


class Waiting:
    """One request that waits for money."""

    __slots__ = ("answered", "asked", "ends_at", "future", "need")

    def __init__(self, need: int, ends_at: float, future: Future[Pot]) -> None:
        self.need = need
        self.ends_at = ends_at
        self.future = future
        self.asked = False
        """The store has been asked since it came."""
        self.answered = False
        """And has answered."""


class Source(Protocol):
    """Where a purse's money comes from."""

    def thirst(self, purse: Purse) -> None:
        """It runs low; must not wait."""

    def serve(self, purse: Purse) -> None:
        """Money came free while requests wait for it."""


class Purse:
    """The money of one account in this process."""

    # Mutable: pot is the current window's, old those of ended windows that are not settled; queue holds who waits.
    # low, typical and rest steer the leases. used_at is written by take, everything else by the leases.
    __slots__ = (
        "account",
        "budget",
        "busy",
        "kept_at",
        "low",
        "old",
        "outside",
        "pause_s",
        "pot",
        "queue",
        "rest",
        "source",
        "spent_until",
        "typical",
        "unsure",
        "used_at",
    )

    def __init__(self, account: str, budget: Budget, source: Source) -> None:
        self.account = account
        self.budget = budget
        self.source = source
        self.pot = Pot(self, "")
        self.old: list[Pot] = []
        self.queue: deque[Waiting] = deque()
        self.low = 0
        """Free money below which more is fetched ahead."""
        self.typical = 0
        """What a request needs, averaged over the last ones."""
        self.rest = 0
        """What the store had left when it was last asked."""
        self.outside = 0
        """What others had leased then."""
        self.spent_until = -math.inf
        """Monotonic seconds until which the store need not be asked again: nothing was left and nothing can come
        back."""
        self.used_at = -math.inf
        self.kept_at = -math.inf
        """When the lease was last extended."""
        self.pause_s = 0.0
        """Until the store is asked again, while somebody waits."""
        self.unsure = False
        """A lease was asked for and no answer came: the store may have granted it."""
        self.busy = False
        """A conversation with the store is under way."""

    def has(self, now: float, need: int) -> bool:
        """Whether ``need`` can be promised now. Nobody passes those who wait."""
        pot = self.pot
        return pot.free >= need and now < pot.good_until and not self.queue

    def take(self, now: float, need: int) -> Pot:
        """Promise ``need``; the pot that has to hear what became of it."""
        pot = self.pot
        pot.free -= need
        pot.reserved += need
        self.used_at = now
        self.typical += (need - self.typical) >> 3
        if pot.free < self.low and not self.busy:
            self.source.thirst(self)
        return pot

    @property
    def chunk(self) -> int:
        """What is fetched ahead: a hundredth of the rest, or enough for fifty requests if that is less."""
        return min(self.rest // 100, 50 * max(self.typical, 1))

    @property
    def is_tight(self) -> bool:
        """So little is left that nobody should keep what he does not need at once."""
        return self.chunk < 2 * max(self.typical, 1)

    @property
    def is_idle(self) -> bool:
        """Whether forgetting it would lose anything."""
        pot = self.pot
        return (
            not (self.queue or self.old or self.busy or self.unsure or pot.reserved or pot.free > 0) and pot.is_told
        )
