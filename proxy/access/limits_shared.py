"""Limits that several processes keep together, through a level that all of them can reach.

A process takes units of a limit out of the shared bucket ahead of the requests that will use them: what it used in
about half a second before. A steady request takes from this stock and waits for nothing; stock that nobody took for a
second goes back. So no process counts a unit later than the shared level did, and at most a second earlier. Slots of
concurrent requests are held the same way, and lapse when their process dies.

While the level is away each process keeps its part of the limits by itself.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final, NamedTuple, Protocol

from proxy.access.limits_account import Account, LimitOptions
from proxy.access.limits_bucket import Bucket
from proxy.clock import Clock
from proxy.errors import StoreError

TICK_S: Final = 0.25
IDLE_S: Final = 1.0
SLOTS_LAST_S: Final = 10.0
_DOWN_S: Final = 1.0
_BARRED_S: Final = 0.1
_ROUNDS: Final = 3
_ASKED_AT_ONCE: Final = 256
_MINUTE_US: Final = 60e6


class UnitsWish(NamedTuple):
    """Units of one bucket: at least ``need`` or none, at most ``want``; ``back`` were not used."""

    name: str
    interval_us: float
    capacity_us: float
    need: int
    want: int
    back: int


class UnitsGrant(NamedTuple):
    granted: int
    left: int
    """Units that fit still."""
    level_us: int
    """Until the bucket is empty."""
    wait_us: int
    """Until ``need`` will fit; 0 if it did."""


class SlotsWish(NamedTuple):
    """Slots of one account: ``want`` in all for this process, as far as ``limit`` goes."""

    name: str
    limit: int
    want: int
    lasts_ms: int


class RateLevel(Protocol):
    """The level itself; `limits_valkey` is one. Every failure is a ``StoreError``."""

    async def ask(self, units: list[UnitsWish], slots: list[SlotsWish]) -> tuple[list[UnitsGrant], list[int]]:
        """One exchange: a grant for each wish, in their order."""

    async def close(self) -> None: ...


class SharedBucket(Bucket):
    """A bucket whose units come from the shared level; by itself while that is away."""

    # Mutable: stock, used and the moments are written by take and amend, what the level said by SharedLimits. Its
    # empty_at is never: whoever reads it without asking takes the bucket for full and asks.
    __slots__ = (
        "_home",
        "_own",
        "back",
        "barred_until",
        "left",
        "level_until",
        "name",
        "needs",
        "stock",
        "used",
        "used_at",
    )

    def __init__(self, home: SharedLimits, name: str, per_minute: int, options: LimitOptions) -> None:
        super().__init__(per_minute, options.burst_s, options.parts)
        self._own = Bucket(per_minute, options.burst_s, options.parts)
        """This process's part, while the level is away."""
        self.empty_at = math.inf
        self._home = home
        self.name = name
        self.stock = 0
        """Units taken out and not used; below nothing after a request that used more than was estimated."""
        self.back = 0
        """Units to be given back with the next exchange."""
        self.used = 0.0
        """Used lately, fading."""
        self.used_at = -math.inf
        self.needs: list[int] = []
        """Of requests that wait."""
        self.barred_until = -math.inf
        self.left = per_minute
        self.level_until = 0.0

    @property
    def shared_interval_us(self) -> float:
        """Without regard to how many processes share it."""
        return _MINUTE_US / self.per_minute

    def change(self, now: float, per_minute: int, burst_s: float, parts: int) -> None:
        self.configure(per_minute, burst_s, parts)
        self._own.change(now, per_minute, burst_s, parts)

    def wait_s(self, now: float, units: int) -> float:
        """As in `Bucket`; below 0.0 where the level has to be asked."""
        if not self._home.up:
            return self._own.wait_s(now, units)
        if self.stock >= units:
            return 0.0
        return self.barred_until - now if now < self.barred_until else -1.0

    def take(self, now: float, units: int, turn: int) -> None:
        if not self._home.up:
            self._own.take(now, units, turn)
            return
        self.stock -= units
        self.used += units
        self.used_at = now
        if self.stock < self.used / 4:
            self._home.thirst(self)

    def amend(self, now: float, turn: int, units: int) -> None:
        if not self._home.up:
            self._own.amend(now, turn, units)
            return
        self.stock += units

    def remaining(self, now: float) -> int:
        return max(0, self.left + self.stock) if self._home.up else self._own.remaining(now)

    def reset_s(self, now: float) -> float:
        return max(0.0, self.level_until - now) if self._home.up else self._own.reset_s(now)

    def is_idle(self, now: float) -> bool:
        return self._own.is_idle(now) and self.stock == 0 and self.back == 0 and not self.needs

    def wish(self) -> UnitsWish:
        """What to ask for now."""
        debt = max(0, -self.stock)
        have = max(0, self.stock)
        need = max(0, min(self.needs) - have) + debt if self.needs else debt
        ahead = int(min(self.used / 2, self.capacity_s * 1e6 / self.shared_interval_us / 10))
        want = max(need, sum(self.needs) + debt + ahead - have)
        return UnitsWish(self.name, self.shared_interval_us, self.capacity_s * 1e6, need, max(0, want), self.back)

    def credit(self, now: float, wish: UnitsWish, grant: UnitsGrant) -> None:
        """Take over what the level granted."""
        self.back -= wish.back
        self.stock += grant.granted
        self.left = grant.left
        self.level_until = now + grant.level_us / 1e6
        if grant.granted < wish.want:
            self.barred_until = now + max(grant.wait_us / 1e6, 1.0 / self.per_minute)


class SharedLimits:
    """This process's part in the shared limits."""

    # Mutable: _accounts, written by join and leave; _thirsty are buckets and _crowded accounts to be asked for; _task
    # holds the exchanges, _next is done after the next one to begin. up says whether the level answers.
    def __init__(self, level: RateLevel, clock: Clock, *, timeout_s: float = 0.05) -> None:
        self._level = level
        self._clock = clock
        self._timeout_s = timeout_s
        self._accounts: dict[str, Account] = {}
        self._thirsty: dict[SharedBucket, None] = {}
        self._crowded: dict[Account, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._next: asyncio.Future[None] | None = None
        self._down_until = -math.inf
        self.up = True
        self.exchanges = 0
        self.errors = 0
        self.waits = 0

    # -- limits_account.Level ---------------------------------------------------------------------------------

    def join(self, account: Account) -> None:
        self._accounts[account.name] = account
        if account.concurrent and self.up:
            account.slots = 0

    def leave(self, account: Account) -> None:
        self._accounts.pop(account.name, None)

    def make_bucket(self, account: Account, what: str, per_minute: int, options: LimitOptions) -> Bucket:
        return SharedBucket(self, f"{account.name}:{what}", per_minute, options)

    def may_ask(self, account: Account, now: float) -> bool:
        return self.up and now >= account.barred_until

    # -- asking -----------------------------------------------------------------------------------------------

    def thirst(self, bucket: SharedBucket) -> None:
        """It runs low; asked for in the background."""
        self._thirsty[bucket] = None
        self._start()

    async def obtain(self, accounts: tuple[Account, ...], tokens: int) -> None:
        """Wait until the level was asked for what one request of ``tokens`` lacks. Nothing is promised: whoever comes
        first takes it."""
        self.waits += 1
        for _ in range(_ROUNDS):
            lacking = self._lacking(accounts, tokens)
            if not lacking:
                return
            for bucket, units in lacking:
                if isinstance(bucket, SharedBucket):
                    bucket.needs.append(units)
                    self._thirsty[bucket] = None
                else:
                    bucket.asked_slots += 1
                    self._crowded[bucket] = None
            try:
                await self._asked()
            finally:
                for bucket, units in lacking:
                    if isinstance(bucket, SharedBucket):
                        bucket.needs.remove(units)
                    else:
                        bucket.asked_slots -= 1

    def _lacking(self, accounts: tuple[Account, ...], tokens: int) -> list[tuple[SharedBucket | Account, int]]:
        now = self._clock.now()
        lacking: list[tuple[SharedBucket | Account, int]] = []
        for account in accounts:
            if account.concurrent and account.running >= account.slots and self.may_ask(account, now):
                lacking.append((account, 1))
            for bucket, units in ((account.requests, 1), (account.tokens, tokens)):
                if isinstance(bucket, SharedBucket) and units and bucket.wait_s(now, units) < 0.0:
                    lacking.append((bucket, units))
        return lacking

    async def _asked(self) -> None:
        """Wait for an exchange that begins after this call."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        self._start()
        await asyncio.shield(self._next)

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._talk(), name="shared-limits")

    async def _talk(self) -> None:
        while self._thirsty or self._crowded or self._next is not None:
            waiting, self._next = self._next, None
            try:
                if self.up:
                    await self._exchange()
                else:
                    self._thirsty.clear()
                    self._crowded.clear()
            finally:
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)

    async def _exchange(self) -> None:
        buckets = list(self._thirsty)[:_ASKED_AT_ONCE]
        accounts = list(self._crowded)[:_ASKED_AT_ONCE]
        for bucket in buckets:
            del self._thirsty[bucket]
        for account in accounts:
            del self._crowded[account]
        units = [bucket.wish() for bucket in buckets]
        slots = [_slots_wish(account) for account in accounts]
        asked_at = self._clock.now()
        self.exchanges += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                granted, held = await self._level.ask(units, slots)
        except (StoreError, TimeoutError):
            self._fall()
            return
        now = self._clock.now()
        for bucket, wish, grant in zip(buckets, units, granted, strict=True):
            bucket.credit(now, wish, grant)
        for account, slot_wish, count in zip(accounts, slots, held, strict=True):
            account.slots = count
            account.renewed_at = asked_at
            if count < slot_wish.want:
                account.barred_until = now + _BARRED_S

    # -- the level's absence ----------------------------------------------------------------------------------

    def _fall(self) -> None:
        """The level does not answer: everybody for himself, for a moment at least."""
        self.errors += 1
        self.up = False
        self._down_until = self._clock.now() + _DOWN_S
        for account in self._accounts.values():
            account.slots = account.own_slots
            for bucket in (account.requests, account.tokens):
                if isinstance(bucket, SharedBucket):
                    bucket.stock = bucket.back = 0

    def _rise(self) -> None:
        """Try again: whatever is needed is asked for anew, what runs already first of all."""
        self.up = True
        for account in self._accounts.values():
            if account.concurrent:
                account.slots = 0
                account.barred_until = -math.inf

    # -- duties -----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Give back idle stock, hold on to slots in use, look for a level that was away. Called every ``TICK_S``."""
        now = self._clock.now()
        if not self.up:
            if now < self._down_until:
                return
            self._rise()
        for account in self._accounts.values():
            for bucket in (account.requests, account.tokens):
                if isinstance(bucket, SharedBucket):
                    self._tend(bucket, now)
            if account.concurrent and account.slots and now - account.renewed_at >= IDLE_S:
                self._crowded[account] = None
        if self._thirsty or self._crowded:
            self._start()

    def _tend(self, bucket: SharedBucket, now: float) -> None:
        bucket.used *= 0.5  # so that it is about what half a second needs
        if now - bucket.used_at >= IDLE_S:
            bucket.used = 0.0
            if bucket.stock > 0:
                bucket.back += bucket.stock
                bucket.stock = 0
        if bucket.back or bucket.stock < 0:
            self._thirsty[bucket] = None

    async def close(self) -> None:
        """Give back what is not used, if the level lets us, and the connections."""
        for account in self._accounts.values():
            for bucket in (account.requests, account.tokens):
                if isinstance(bucket, SharedBucket) and bucket.stock > 0:
                    bucket.back, bucket.stock, bucket.used = bucket.back + bucket.stock, 0, 0.0
                    self._thirsty[bucket] = None
            if account.concurrent and not account.running:
                self._crowded[account] = None
        if self._thirsty or self._crowded:
            self._start()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=1.0)
            self._task.cancel()
        await self._level.close()

    def describe(self) -> dict[str, int | bool]:
        return {"up": self.up, "exchanges": self.exchanges, "errors": self.errors, "waits": self.waits}


def _slots_wish(account: Account) -> SlotsWish:
    """What runs and what waits, and a fourth more while there is traffic."""
    busy = account.running + account.asked_slots
    ahead = busy // 4 if account.asked_slots or account.running >= account.slots else 0
    return SlotsWish(
        account.name, account.concurrent, min(account.concurrent, busy + ahead), round(SLOTS_LAST_S * 1000)
    )
