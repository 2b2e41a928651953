"""What a request needs before it may fly: the right to ask for this, room within its limits and budgets, and an open
line in the usage spool. And what becomes of that when it is over.

Callers with a credential of their own have no key and no limits here; only their usage is kept.
"""

from __future__ import annotations

from proxy.access.limits import Limiter, Shortage, Ties
from proxy.access.limits_reservation import UNLIMITED, Reservation
from proxy.access.permission import allow
from proxy.accounting.record import UsageRecord
from proxy.accounting.spool import Spool
from proxy.accounting.usage import Account
from proxy.clock import Clock
from proxy.config.prices import Price, Prices
from proxy.errors import ProxyError
from proxy.exchange import Exchange
from proxy.policy.estimate import estimate
from proxy.policy.plan import Plan


class Clearance:
    """Grants and takes back. Everything but `wait` is synchronous."""

    __slots__ = ("_assumed_output_tokens", "_clock", "_limiter", "_spool")

    def __init__(self, clock: Clock, limiter: Limiter, spool: Spool, *, assumed_output_tokens: int) -> None:
        self._clock = clock
        self._limiter = limiter
        self._spool = spool
        self._assumed_output_tokens = assumed_output_tokens

    def ask(self, exchange: Exchange) -> Shortage | None:
        """Reserve for a request whose plan is made, or say what it has to wait for. Raises ``ProxyError`` (forbidden,
        limited, budget spent)."""
        principal = exchange.principal
        assert principal is not None
        if principal.key is None:
            exchange.admitted_at = self._clock.wall()
            return None
        self.allow(exchange)
        ties = self._limiter.ties(principal.key)
        try:
            taken = self._reserve(exchange, ties)
        except ProxyError:
            exchange.reservation = self._limiter.refused_reservation(ties)
            raise
        if type(taken) is Shortage:
            return taken
        assert isinstance(taken, Reservation)
        self._grant(exchange, taken)
        return None

    def allow(self, exchange: Exchange) -> None:
        """Raise ``ProxyError(FORBIDDEN)`` if the key may not ask for this."""
        principal, located, plan = exchange.principal, exchange.located, exchange.plan
        assert principal is not None
        assert located is not None
        if principal.key is not None:
            allow(principal.key, located.route, plan.model if plan is not None else "", exchange.asked)

    async def wait(self, exchange: Exchange, shortage: Shortage) -> None:
        """Wait for what was short, within the settings' bounds. Raises ``ProxyError``."""
        try:
            taken = await self._limiter.obtain(shortage)
        except ProxyError:
            exchange.reservation = self._limiter.refused_reservation(shortage.ties)
            raise
        if exchange.accounted:
            taken.refund()  # the client left in the tick in which it was granted
        else:
            self._grant(exchange, taken)

    def _grant(self, exchange: Exchange, reservation: Reservation) -> None:
        part = exchange.shaped is not None and exchange.shaped.own
        exchange.reservation = reservation.stand_aside() if part else reservation
        exchange.admitted_at = self._clock.wall()

    def _reserve(self, exchange: Exchange, ties: Ties) -> Reservation | Shortage:
        if not ties.accounts:
            return UNLIMITED
        answered = exchange.shaped is not None and exchange.shaped.answer is not None  # by a rule: that costs nothing
        if answered or not (ties.has_tokens or ties.has_budget):
            return self._limiter.reserve(ties)
        located, plan, terms = exchange.located, exchange.plan, exchange.terms
        assert located is not None
        assert plan is not None
        assert terms is not None
        body = exchange.body
        guess = estimate(
            located.route,
            exchange.call,
            len(body) if isinstance(body, bytes) else 0,
            _price_of(plan, terms.catalog.prices),
            self._assumed_output_tokens,
        )
        priced = guess.priced and (plan.routed is None or None not in plan.routed.prices.values())
        return self._limiter.reserve(ties, guess.tokens, guess.picodollars, priced=priced)

    # -- the usage record --------------------------------------------------------------------------------------

    def open(self, exchange: Exchange) -> None:
        """Put down that this request may be about to cost something, before it can. Raises
        ``ProxyError(USAGE_UNAVAILABLE)`` where the operator would rather refuse than not know."""
        principal, plan = exchange.principal, exchange.plan
        assert principal is not None
        assert plan is not None
        key = principal.key
        try:
            self._spool.open_record(
                exchange.request_id,
                exchange.admitted_at,
                principal.key_id,
                key.tenant if key is not None else "",
                key.team if key is not None else "",
                plan.target.provider,
                plan.route.name,
                plan.model,
                exchange.bytes_in // 4,
                exchange.reservation.picodollars,
                plan.streams,
            )
        except ProxyError:
            self._take_back(exchange)
            raise

    def open_hit(self, exchange: Exchange) -> None:
        """A hit costs nothing that could be lost, so it has no open line; its closing one needs room all the same.
        Raises as `open`."""
        try:
            self._spool.demand_room()
        except ProxyError:
            self._take_back(exchange)
            raise

    def _take_back(self, exchange: Exchange) -> None:
        """It was not admitted after all, and its row must not take the room of those that were."""
        exchange.reservation.refund()
        exchange.admitted_at = 0.0

    def settle(self, exchange: Exchange, account: Account, record: UsageRecord) -> None:
        """The request is over: what it is billed, and its line in the spool. Once."""
        exchange.reservation.settle(account.tokens, account.picodollars)
        self._spool.close_record(record)

    def abandon(self, exchange: Exchange) -> None:
        """Its account failed: give back what it holds. Its open line stays, and the heir of the spool makes a row of
        it."""
        exchange.reservation.refund()

    def note(self, record: UsageRecord) -> None:
        """Put down usage that is on no exchange: of a call that nobody was left to pay for."""
        self._spool.close_record(record)


def _price_of(plan: Plan, prices: Prices) -> Price | None:
    """What is reserved has to do for whichever target answers."""
    if plan.routed is not None:
        return plan.routed.dearest
    return prices.find(plan.model) if plan.model else None
