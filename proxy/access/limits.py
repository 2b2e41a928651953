"""Whether a request may go on: limits and budgets of its key, its team and its tenant, in one pass.

`Limiter.reserve` looks at all of them first and takes from all of them then, without a wait in between, so a refusal
has nothing to undo. What it took is a `Reservation`, which is settled with what the request really cost, or refunded,
exactly once. If the only thing missing is money that may yet be leased (or units of a limit shared with other
processes), it hands back a `Shortage`, and the caller waits once in `obtain`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from proxy.access.budgets import Pot, Purse
from proxy.access.budgets_leases import BudgetLeases
from proxy.access.limits_account import Account, LimitOptions
from proxy.access.limits_answers import crowd_refused, rate_refused, unpriced_refused
from proxy.access.limits_bucket import Bucket
from proxy.access.limits_reservation import UNLIMITED, Reservation
from proxy.access.limits_shared import SharedLimits
from proxy.clock import Clock
from proxy.config.keys import Allowance, KeyRecord, Limits
from proxy.errors import ProxyError

_SWEPT_AT_ONCE: Final = 1_000
_NO_LIMITS: Final = Limits()


class Ties:
    """Which accounts a key's requests count on; made again when the key or an allowance changed."""

    __slots__ = ("accounts", "generation", "has_budget", "has_tokens", "record")

    def __init__(self, record: KeyRecord, generation: int, accounts: tuple[Account, ...]) -> None:
        self.record = record
        self.generation = generation
        self.accounts = accounts
        self.has_budget = any(account.purse is not None for account in accounts)
        self.has_tokens = any(account.tokens is not None for account in accounts)


class Shortage:
    """What a request lacks that may yet come. Given to `Limiter.obtain`."""

    __slots__ = ("money", "short", "ties", "tokens")

    def __init__(self, ties: Ties, tokens: int, money: int, short: Account) -> None:
        self.ties = ties
        self.tokens = tokens
        self.money = money
        self.short = short


class Limiter:
    """All accounts of the process. Synchronous but for `obtain`."""

    # Mutable: _accounts by name and _ties by key id, both written by _tie and sweep; _allowances by account name and
    # _generation, written by set_allowances; _turn numbers the reservations; _sweeping is where the next sweep goes
    # on. The counters are written here and read by the metrics.
    __slots__ = (
        "_accounts",
        "_allowances",
        "_clock",
        "_generation",
        "_leases",
        "_options",
        "_shared",
        "_sweeping",
        "_ties",
        "_turn",
        "refused",
        "reserved",
        "shortages",
        "unpriced",
    )

    def __init__(
        self,
        clock: Clock,
        leases: BudgetLeases | None,
        shared: SharedLimits | None = None,
        options: LimitOptions | None = None,
    ) -> None:
        """Without ``leases`` there are no budgets, without ``shared`` no limits are shared with other processes."""
        self._clock = clock
        self._leases = leases
        self._shared = shared
        self._options = options or LimitOptions()
        self._accounts: dict[str, Account] = {}
        self._ties: dict[str, Ties] = {}
        self._allowances: dict[str, Allowance] = {}
        self._generation = 0
        self._turn = 0
        self._sweeping: list[str] = []
        self.reserved = 0
        self.refused = 0
        self.shortages = 0
        self.unpriced = 0
        """Requests under a budget whose price nobody knows: they are not charged."""

    def __len__(self) -> int:
        """Accounts that are remembered."""
        return len(self._accounts)

    # -- what is limited --------------------------------------------------------------------------------------

    def set_allowances(self, allowances: Iterable[Allowance]) -> None:
        """Limits and budgets of teams and tenants, as read or changed; older versions change nothing."""
        for allowance in allowances:
            name = f"{allowance.kind}:{allowance.name}"
            known = self._allowances.get(name)
            if known is None or allowance.version >= known.version:
                self._allowances[name] = allowance
        self._generation += 1

    def ties(self, record: KeyRecord) -> Ties:
        """What a key's requests count on. ``has_budget`` and ``has_tokens`` say whether an estimate is of use."""
        ties = self._ties.get(record.id)
        if ties is None or ties.record is not record or ties.generation != self._generation:
            ties = self._tie(record)
        return ties

    def _tie(self, record: KeyRecord) -> Ties:
        found = [self._account(f"key:{record.id}", record)]
        if record.team:
            found.append(self._account(f"team:{record.tenant}/{record.team}"))
        if record.tenant:
            found.append(self._account(f"tenant:{record.tenant}"))
        accounts = tuple(account for account in found if account is not None)
        ties = self._ties[record.id] = Ties(record, self._generation, accounts)
        return ties

    def _account(self, name: str, record: KeyRecord | None = None) -> Account | None:
        owner = record if record is not None else self._allowances.get(name)
        if owner is None or (owner.limits == _NO_LIMITS and owner.budget is None):
            return None
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(name, self._options, self._shared, self._clock.now())
        account.configure(owner.limits, self._clock.now())
        account.purse = None
        if owner.budget is not None and self._leases is not None:
            account.purse = self._leases.purse(name, owner.budget)
        return account

    # -- for requests -----------------------------------------------------------------------------------------

    def reserve(
        self, ties: Ties, tokens: int = 0, picodollars: int = 0, *, priced: bool = True
    ) -> Reservation | Shortage:
        """Take one request, ``tokens`` and ``picodollars`` from every account. Raises ``ProxyError`` to refuse."""
        accounts = ties.accounts
        if not accounts:
            return UNLIMITED
        now = self._clock.now()
        short = self._look(accounts, now, tokens)
        if ties.has_budget:
            if not priced:
                self._count_unpriced(ties)
            if picodollars and short is None:
                for account in accounts:
                    purse = account.purse
                    if purse is not None:
                        pot = purse.pot
                        if pot.free < picodollars or now >= pot.good_until or purse.queue:  # Purse.has
                            short = account
                            break
        if short is not None:
            self.shortages += 1
            return Shortage(ties, tokens, picodollars, short)
        return self._take(accounts, now, tokens, picodollars)

    def _look(self, accounts: tuple[Account, ...], now: float, tokens: int) -> Account | None:
        """Raises ``ProxyError`` if a limit does not let one more request pass; an account of which only other
        processes know whether it does."""
        short = None
        for account in accounts:
            if account.concurrent and account.running >= account.slots:
                if account.slots < account.concurrent and account.may_ask(now):
                    short = account
                else:
                    raise self._refuse(crowd_refused(account.kind, account.concurrent))
            # What obviously fits is not asked for: two calls less for each account.
            bucket = account.requests
            if bucket is not None and bucket.empty_at - now + bucket.interval_s > bucket.brim_s:
                short = self._ask(account, bucket, "requests", now, 1) or short
            bucket = account.tokens
            if bucket is not None and bucket.empty_at - now + tokens * bucket.interval_s > bucket.brim_s and tokens:
                short = self._ask(account, bucket, "tokens", now, tokens) or short
        return short

    def _ask(self, account: Account, bucket: Bucket, what: str, now: float, units: int) -> Account | None:
        wait_s = bucket.wait_s(now, units)
        if wait_s > 0.0:
            raise self._refuse(rate_refused(account.kind, what, bucket.per_minute, wait_s))
        return account if wait_s < 0.0 else None

    def _take(
        self,
        accounts: tuple[Account, ...],
        now: float,
        tokens: int,
        picodollars: int,
        pots: dict[Account, Pot] | None = None,
    ) -> Reservation:
        self._turn = turn = self._turn + 1
        # What was promised while it waited counts, whatever budgets its accounts have by now.
        taken: list[Pot] = [] if pots is None else list(pots.values())
        for account in accounts:
            account.running += 1
            account.used_at = now
            bucket = account.requests
            if bucket is not None:
                # Bucket.take, without the call.
                if account.level is not None:
                    bucket.take(now, 1, turn)
                elif (empty_at := bucket.empty_at) > now:
                    bucket.empty_at = empty_at + bucket.interval_s
                else:
                    bucket.idle_turn = turn
                    bucket.empty_at = now + bucket.interval_s
            bucket = account.tokens
            if bucket is not None and tokens:
                if account.level is not None:
                    bucket.take(now, tokens, turn)
                elif (empty_at := bucket.empty_at) > now:
                    bucket.empty_at = empty_at + tokens * bucket.interval_s
                else:
                    bucket.idle_turn = turn
                    bucket.empty_at = now + tokens * bucket.interval_s
            purse = account.purse
            if purse is not None and picodollars and pots is None:
                taken.append(purse.take(now, picodollars))
        self.reserved += 1
        return Reservation(self._clock, accounts, turn, tokens, picodollars, taken)

    def refused_reservation(self, ties: Ties) -> Reservation:
        """Nothing, for a request that was refused: it has the header lines of what refused it."""
        nothing = Reservation(self._clock, ties.accounts, 0, 0, 0, [])
        nothing.open = False
        return nothing

    async def obtain(self, shortage: Shortage) -> Reservation:
        """Wait for what a request lacks, as long as the settings allow, and reserve. Raises ``ProxyError``; whatever
        was got by then is given back, then and when the caller is cancelled."""
        ties, tokens, money = shortage.ties, shortage.tokens, shortage.money
        accounts = ties.accounts
        pots: dict[Account, Pot] = {}
        try:
            if money and self._leases is not None:
                for account in accounts:
                    purse = account.purse
                    if purse is not None:
                        pots[account] = await self._promise(purse, money)
            if self._shared is not None:
                await self._shared.obtain(accounts, tokens)
            now = self._clock.now()
            self._insist(accounts, now, tokens)
            return self._take(accounts, now, tokens, money, pots)
        except BaseException:
            for pot in pots.values():
                pot.settle(money, 0)
            raise

    def _insist(self, accounts: tuple[Account, ...], now: float, tokens: int) -> None:
        """Refuse what lacks anything still: others were quicker."""
        short = self._look(accounts, now, tokens)
        if short is not None:
            raise self._refuse(short.cannot_share(now))

    async def _promise(self, purse: Purse, money: int) -> Pot:
        assert self._leases is not None
        now = self._clock.now()
        if purse.has(now, money):
            return purse.take(now, money)
        try:
            return await self._leases.obtain(purse, money)
        except ProxyError:
            self.refused += 1
            raise

    def _refuse(self, error: ProxyError) -> ProxyError:
        self.refused += 1
        return error

    def _count_unpriced(self, ties: Ties) -> None:
        self.unpriced += 1
        if self._options.refuse_unpriced:
            kind = next(account.kind for account in ties.accounts if account.purse is not None)
            raise self._refuse(unpriced_refused(kind))

    # -- duties -----------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Forget what is as if it had never been: drained buckets, settled purses. A thousand accounts at a time."""
        if not self._sweeping:
            self._sweeping = list(self._accounts)
        now = self._clock.now()
        looked = list(islice(reversed(self._sweeping), _SWEPT_AT_ONCE))
        del self._sweeping[-_SWEPT_AT_ONCE:]
        dropped = False
        for name in looked:
            account = self._accounts.get(name)
            if account is not None and account.is_idle(now):
                del self._accounts[name]
                account.close()
                if account.purse is not None and self._leases is not None:
                    self._leases.forget(account.purse)
                dropped = True
        if dropped or len(self._ties) > 4 * len(self._accounts) + _SWEPT_AT_ONCE:
            # A key's ties hold its accounts: an account that is forgotten must not be counted on any more.
            self._ties = {
                key: ties
                for key, ties in self._ties.items()
                if ties.accounts and all(self._accounts.get(each.name) is each for each in ties.accounts)
            }

    def describe(self) -> dict[str, int]:
        """For the admin port."""
        return {
            "accounts": len(self._accounts),
            "running": sum(account.running for account in self._accounts.values()),
            "reserved": self.reserved,
            "refused": self.refused,
            "shortages": self.shortages,
            "unpriced": self.unpriced,
        }
