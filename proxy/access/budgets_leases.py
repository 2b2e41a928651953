"""Keeps purses filled: leases money out of budgets, tells the store what was spent, gives back what lies idle.

A steady request takes from its purse and never comes here. One that finds too little waits once in `obtain`; all that
wait for one account are served by one call to the store. Purses with news have one conversation with the store after
the other (never two at once for one purse), a few purses at a time: tell the totals, then lease or extend.

Nothing is refused that could be afforded: a request is told that the budget is spent only when the store has less
than it needs and nobody holds a lease, or when it has waited for as long as idle leases take to come back.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from proxy.access.budgets import Pot, Purse, Waiting
from proxy.access.limits_answers import budget_crowded, budget_spent, budget_unknown
from proxy.clock import Clock, Deadlines
from proxy.config.keys import Budget
from proxy.errors import ProxyError, StoreError

TICK_S: Final = 0.25
IDLE_S: Final = 1.0
"""Free money that nobody took for so long goes back."""
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.2
_RECHECK_S: Final = 5.0
_DOWN_S: Final = 1.0
_TALKERS: Final = 4
_LOST_AFTER_S: Final = 3_600.0


class Granted(Protocol):
    """What the store answers; `store.base.Lease` is one."""

    @property
    def picodollars(self) -> int: ...
    @property
    def rest_picodollars(self) -> int: ...
    @property
    def leased_picodollars(self) -> int: ...
    @property
    def held_picodollars(self) -> int: ...
    @property
    def spent_total(self) -> int: ...
    @property
    def returned_total(self) -> int: ...
    @property
    def window(self) -> str: ...
    @property
    def ends_at(self) -> float: ...


class BudgetStore(Protocol):
    """What is needed of `store.base.Store`."""

    async def lease(
        self, account: str, budget: Budget, holder: str, *, need: int, want: int, lasts_s: float
    ) -> Granted: ...

    async def settle(
        self, account: str, window: str, holder: str, *, spent_total: int, returned_total: int
    ) -> None: ...

    async def settle_dead(self, account: str, holder: str) -> None: ...

    async def expired_leases(self) -> list[tuple[str, str, str]]: ...


class BudgetLeases:
    """The source of all purses of a process."""

    # Mutable: _purses by account; _due are purses whose conversation is to begin, _talkers the tasks that hold
    # conversations; _failures counts the store's failures in a row, _failed_at is the last one's time. _lapsed says
    # since when leases of dead holders are seen, _recovered whose usage is known to be written. The counters are
    # written here and read by the metrics.
    def __init__(
        self,
        store: BudgetStore,
        holder: str,
        clock: Clock,
        deadlines: Deadlines,
        *,
        wait_s: float = 2.0,
        lasts_s: float = 120.0,
        max_waiting: int = 10_000,
        allow_when_down: bool = False,
        on_bug: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        """``holder`` names this process to the store: the first 16 characters of its request ids."""
        self._store = store
        self.holder = holder
        self._clock = clock
        self._deadlines = deadlines
        self._wait_s = wait_s
        self._lasts_s = lasts_s
        self._max_waiting = max_waiting
        self._allow_when_down = allow_when_down
        self._on_bug = on_bug
        self._purses: dict[str, Purse] = {}
        self._due: deque[Purse] = deque()
        self._talkers: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._failed_at = -math.inf
        self._lapsed: dict[tuple[str, str], float] = {}
        self._recovered: set[str] = set()
        self._reaper: asyncio.Task[None] | None = None
        self._reaped_at = -math.inf
        self.calls = 0
        """Leases asked for, extensions included."""
        self.waits = 0
        """Requests that had to wait for money."""
        self.refused = 0
        self.store_errors = 0
        self.unchecked = 0
        """Requests let through because the store was away and the operator wants that."""
        self.reclaimed = 0
        """Leases of dead processes that were given back."""

    # -- purses -----------------------------------------------------------------------------------------------

    def purse(self, account: str, budget: Budget) -> Purse:
        """The purse of an account; a changed budget changes it in place."""
        purse = self._purses.get(account)
        if purse is None:
            purse = self._purses[account] = Purse(account, budget, self)
        elif purse.budget != budget:
            purse.budget = budget
            purse.spent_until = -math.inf
            purse.pot.good_until = -math.inf  # of another window, perhaps: ask
        return purse

    def forget(self, purse: Purse) -> None:
        """Drop an idle purse."""
        if purse.is_idle and self._purses.get(purse.account) is purse:
            del self._purses[purse.account]

    @property
    def free_picodollars(self) -> int:
        """Leased here and promised to nobody."""
        return sum(purse.pot.free for purse in self._purses.values())

    @property
    def reserved_picodollars(self) -> int:
        return sum(purse.pot.reserved + sum(pot.reserved for pot in purse.old) for purse in self._purses.values())

    @property
    def waiting(self) -> int:
        return sum(len(purse.queue) for purse in self._purses.values())

    # -- for requests -----------------------------------------------------------------------------------------

    async def obtain(self, purse: Purse, need: int) -> Pot:
        """Wait until ``need`` is promised; the pot that has to hear what became of it. Raises ``ProxyError``."""
        now = self._clock.now()
        if need > purse.budget.picodollars or (now < purse.spent_until and need > purse.rest):
            raise self._spent(purse, need)
        if self._failures > 1:
            if self._allow_when_down:  # nobody waits for a store that does not answer
                if now - self._failed_at >= _DOWN_S:
                    self._begin(purse)
                self.unchecked += 1
                return purse.take(now, need)
            if now - self._failed_at < _DOWN_S:
                raise budget_unknown(_kind(purse))
        if len(purse.queue) >= self._max_waiting:
            raise budget_crowded(_kind(purse))
        self.waits += 1
        waiting = Waiting(need, now + self._wait_s, asyncio.get_running_loop().create_future())
        purse.queue.append(waiting)
        deadline = self._deadlines.arm(self._wait_s, lambda: self._too_late(purse, waiting))
        self._begin(purse, urgent=True)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            future = waiting.future
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().settle(need, 0)  # promised in the moment in which nobody wanted it any more
            raise
        finally:
            deadline.cancel()
            if waiting in purse.queue:
                purse.queue.remove(waiting)

    def thirst(self, purse: Purse) -> None:
        self._begin(purse)

    def serve(self, purse: Purse) -> None:
        """Give what is free to those who wait, in their order, as far as it goes."""
        pot, now = purse.pot, self._clock.now()
        if pot.free <= 0 or now >= pot.good_until:
            return
        waiting_on: deque[Waiting] = deque()
        for waiting in purse.queue:
            if waiting.future.done():
                continue
            if waiting.need <= pot.free:
                waiting.future.set_result(purse.take(now, waiting.need))
            else:
                waiting_on.append(waiting)
        purse.queue = waiting_on

    def _too_late(self, purse: Purse, waiting: Waiting) -> None:
        if self._failures or not waiting.answered:
            if not waiting.answered:  # the store hangs; whoever comes next need not find out again
                self._failures = max(self._failures, 2)
                self._failed_at = self._clock.now()
            self._give_up(purse, waiting)
        else:
            self._refuse(purse, waiting)

    def _refuse(self, purse: Purse, waiting: Waiting) -> None:
        if not waiting.future.done():
            waiting.future.set_exception(self._spent(purse, waiting.need))

    def _spent(self, purse: Purse, need: int) -> ProxyError:
        self.refused += 1
        ends_at = purse.pot.ends_at
        return budget_spent(_kind(purse), purse.budget, need, ends_at if math.isfinite(ends_at) else None)

    def _give_up(self, purse: Purse, waiting: Waiting) -> None:
        """The store is away: the operator said what then."""
        if waiting.future.done():
            return
        if self._allow_when_down:
            self.unchecked += 1
            waiting.future.set_result(purse.take(self._clock.now(), waiting.need))
        else:
            waiting.future.set_exception(budget_unknown(_kind(purse)))

    # -- conversations ----------------------------------------------------------------------------------------

    def _begin(self, purse: Purse, *, urgent: bool = False) -> None:
        """See to it that a conversation about ``purse`` begins soon, unless one is under way."""
        if purse.busy:
            return
        purse.busy = True
        if urgent:
            self._due.appendleft(purse)
        else:
            self._due.append(purse)
        if len(self._talkers) < _TALKERS:
            task = asyncio.get_running_loop().create_task(self._talk(), name="budget-leases")
            self._talkers.add(task)
            task.add_done_callback(self._talkers.discard)

    async def _talk(self) -> None:
        while self._due:
            purse = self._due.popleft()
            try:
                await self._converse(purse)
                self._failures = 0
            except StoreError:
                self._fail(purse)
            except Exception as bug:  # noqa: BLE001 - the other purses must not feel it
                self._fail(purse)
                if self._on_bug is not None:
                    self._on_bug("budget_leases", bug)
            finally:
                purse.busy = False
            if purse.queue:
                self._come_again(purse)
            elif purse.pot.free < purse.low and not self._failures and _wish(purse, self._clock.now())[1]:
                self._begin(purse)  # what was fetched is gone already

    async def _converse(self, purse: Purse) -> None:
        """Tell what happened, then ask for what is needed."""
        for pot in [*purse.old, purse.pot]:
            await self._tell(pot)
        purse.old = [pot for pot in purse.old if pot.reserved or not pot.is_told]
        pot = purse.pot
        need, want = _wish(purse, self._clock.now())
        if not (want or purse.queue or purse.old or purse.unsure or pot.free or pot.reserved):
            return  # nothing to keep and nothing to fetch
        for waiting in purse.queue:
            waiting.asked = True
        asked_at = self._clock.now()
        self.calls += 1
        purse.unsure = True
        lease = await self._store.lease(
            purse.account, purse.budget, self.holder, need=need, want=want, lasts_s=self._lasts_s
        )
        purse.unsure = False
        for waiting in purse.queue:
            waiting.answered = waiting.asked
        self._credit(purse, lease, asked_at)
        self.serve(purse)
        self._judge(purse, lease)

    async def _tell(self, pot: Pot) -> None:
        if pot.is_told or not pot.window:
            return
        spent, returned = pot.spent, pot.returned
        await self._store.settle(
            pot.purse.account, pot.window, self.holder, spent_total=spent, returned_total=returned
        )
        pot.told_spent, pot.told_returned = spent, returned

    def _credit(self, purse: Purse, lease: Granted, asked_at: float) -> None:
        """Take over what the store says this process holds."""
        pot, now = purse.pot, self._clock.now()
        if pot.window != lease.window:
            if pot.window:
                pot.give_back(max(0, pot.free))
                purse.old.append(pot)
                pot = purse.pot = Pot(purse, lease.window)
            else:
                # A purse that was forgotten and came back goes on from its totals: the store never lets them sink.
                # On top of them is what was let through before the store was heard.
                pot.window = lease.window
                pot.told_spent, pot.told_returned = lease.spent_total, lease.returned_total
                pot.spent += lease.spent_total
                pot.returned += lease.returned_total
        pot.ends_at = lease.ends_at
        unheard = pot.spent - pot.told_spent + pot.returned - pot.told_returned
        pot.free = lease.held_picodollars - pot.reserved - unheard
        # Our clock may be ahead of the store's: then the window is asked for every second until the store opens it.
        ends_in_s = max(lease.ends_at - self._clock.wall(), IDLE_S)
        pot.good_until = min(asked_at + 0.9 * self._lasts_s, now + ends_in_s)
        purse.kept_at = asked_at
        purse.rest = lease.rest_picodollars
        purse.outside = lease.leased_picodollars - lease.held_picodollars
        if not purse.typical and purse.queue:
            purse.typical = purse.queue[0].need
        purse.low = 0 if purse.is_tight else purse.chunk // 4
        purse.pause_s = 0.0 if lease.picodollars else purse.pause_s

    def _judge(self, purse: Purse, lease: Granted) -> None:
        """Refuse those for whom nothing is left and nothing can come back."""
        pot, now = purse.pot, self._clock.now()
        if not purse.queue:
            return
        if purse.outside > 0 or pot.reserved > 0:
            pot.give_back(max(0, pot.free))  # two that each hold a part of what each needs would both wait in vain
            return
        left = lease.rest_picodollars + max(0, pot.free)
        for waiting in purse.queue:
            if waiting.asked and waiting.need > left:
                self._refuse(purse, waiting)
                purse.spent_until = now + max(0.0, min(_RECHECK_S, lease.ends_at - self._clock.wall()))
        purse.queue = deque(waiting for waiting in purse.queue if not waiting.future.done())

    def _fail(self, purse: Purse) -> None:
        self.store_errors += 1
        self._failures += 1
        self._failed_at = self._clock.now()
        if self._failures > 1:
            for waiting in purse.queue:
                self._give_up(purse, waiting)
            purse.queue = deque(waiting for waiting in purse.queue if not waiting.future.done())

    def _come_again(self, purse: Purse) -> None:
        """Somebody waits still: ask once more in a moment."""
        purse.pause_s = min(max(2 * purse.pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self._deadlines.arm(purse.pause_s, lambda: self._begin(purse, urgent=True) if purse.queue else None)

    # -- duties -----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Give back what lies idle, tell what is untold, extend what is held. Called every ``TICK_S``."""
        now = self._clock.now()
        away = self._failures > 0 and now - self._failed_at < _DOWN_S
        for purse in self._purses.values():
            if purse.busy or purse.queue or away:
                continue
            pot = purse.pot
            if pot.free > 0 and (now - purse.used_at >= IDLE_S or purse.is_tight):
                pot.give_back(pot.free)
            if purse.unsure or not pot.is_told or self._is_due(purse, now):
                self._begin(purse)
        if now - self._reaped_at >= self._lasts_s / 4 and (self._reaper is None or self._reaper.done()):
            self._reaped_at = now
            self._reaper = asyncio.get_running_loop().create_task(self._reap(), name="budget-reaper")

    def _is_due(self, purse: Purse, now: float) -> bool:
        """Whether the store should hear from us for the lease's sake. Who holds free money asks often how much is
        left, so as to let go of it in time."""
        pot = purse.pot
        if any(each.reserved == 0 or not each.is_told for each in purse.old):
            return True
        if pot.free > 0:
            return now - purse.kept_at >= IDLE_S
        return (pot.reserved > 0 or bool(purse.old)) and now - purse.kept_at >= self._lasts_s / 3

    def recovered(self, holder: str) -> None:
        """The usage of a dead process's requests is in the store: what it had leased can be settled."""
        self._recovered.add(holder)
        self._reaped_at = -math.inf

    async def _reap(self) -> None:
        """Give back what dead processes hold: at once where their usage is known to be written, else after an hour
        without a sign of it."""
        try:
            lapsed = {(account, holder) for account, _, holder in await self._store.expired_leases()}
            now = self._clock.now()
            self._lapsed = {each: self._lapsed.get(each, now) for each in lapsed}
            for (account, holder), since in self._lapsed.items():
                if holder != self.holder and (holder in self._recovered or now - since >= _LOST_AFTER_S):
                    await self._store.settle_dead(account, holder)
                    self.reclaimed += 1
            self._recovered &= {holder for _, holder in lapsed} if len(self._recovered) > 1_000 else self._recovered
        except StoreError:
            self.store_errors += 1

    async def close(self, within_s: float = 2.0) -> None:
        """Settle everything and give back the rest, as far as the store lets us in time."""
        for purse in self._purses.values():
            for waiting in purse.queue:
                self._refuse(purse, waiting)
            purse.queue.clear()
            purse.pot.give_back(max(0, purse.pot.free))
        tasks = [*self._talkers, *([self._reaper] if self._reaper is not None else [])]
        try:
            async with asyncio.timeout(within_s):
                if tasks:
                    await asyncio.wait(tasks)
                for purse in self._purses.values():
                    purse.pot.give_back(max(0, purse.pot.free))  # what came while the talkers were waited for
                    for pot in (*purse.old, purse.pot):
                        await self._tell(pot)
        except (StoreError, TimeoutError):
            self.store_errors += 1  # it lapses, and is counted from the usage records
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _wish(purse: Purse, now: float) -> tuple[int, int]:
    """How much to ask for, at least and at most. A debt is covered by the next grant."""
    pot = purse.pot
    if purse.queue:
        needs = [waiting.need for waiting in purse.queue]
        need = max(0, min(needs) - pot.free)
        return need, max(need, sum(needs) - pot.free) + (0 if purse.is_tight else purse.chunk)
    if purse.is_tight or now - purse.used_at >= IDLE_S or pot.free >= purse.chunk // 2:
        return 0, 0
    return 0, purse.chunk - pot.free


def _kind(purse: Purse) -> str:
    return purse.account.partition(":")[0]
