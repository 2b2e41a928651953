"""What one request has taken from its accounts, until it is settled."""

from __future__ import annotations

from typing import Final

from proxy.access.budgets import Pot
from proxy.access.limits_account import Account
from proxy.access.limits_answers import limit_lines
from proxy.access.limits_bucket import Bucket
from proxy.clock import Clock


class Reservation:
    """Taken from every account at once; `settle` or `refund` ends it, whichever comes first, and nothing after that
    has any effect."""

    # Mutable: open, written by settle.
    __slots__ = ("_accounts", "_clock", "_pots", "_turn", "open", "picodollars", "tokens")

    def __init__(  # noqa: PLR0917 - by position, for each request
        self,
        clock: Clock,
        accounts: tuple[Account, ...],
        turn: int,
        tokens: int,
        picodollars: int,
        pots: list[Pot],
    ) -> None:
        self._clock = clock
        self._accounts = accounts
        self._turn = turn
        self._pots = pots
        self.tokens = tokens
        """Estimated."""
        self.picodollars = picodollars
        """Estimated."""
        self.open = True

    def settle(self, tokens: int, picodollars: int) -> None:
        """The request is over and is billed this much; the difference to the estimate goes where it belongs."""
        if not self.open:
            return
        self.open = False
        over = self.tokens - tokens
        for account in self._accounts:
            account.running -= 1
            bucket = account.tokens
            if bucket is not None and over:
                bucket.amend(self._clock.now(), self._turn, over)
        for pot in self._pots:
            pot.settle(self.picodollars, picodollars)

    def refund(self) -> None:
        """The request came to nothing: only that it was made still counts."""
        self.settle(0, 0)

    def stand_aside(self) -> Reservation:
        """The same for what is part of another request: that one counts as a request and takes a place, this one only
        costs. To be called in the tick in which it was taken."""
        now = self._clock.now()
        self.open = False
        for account in self._accounts:
            account.running -= 1
            if account.requests is not None:
                account.requests.amend(now, self._turn, 1)
        return _Part(self._clock, self._accounts, self._turn, self.tokens, self.picodollars, self._pots)

    def header_lines(self) -> bytes:
        """The caller's limits as header lines, those of the account that is nearest to its end; empty without."""
        accounts, now = self._accounts, self._clock.now()
        return _lines(b"requests", [account.requests for account in accounts], now) + _lines(
            b"tokens", [account.tokens for account in accounts], now
        )


def _lines(what: bytes, buckets: list[Bucket | None], now: float) -> bytes:
    nearest: Bucket | None = None
    least = 0
    for bucket in buckets:
        if bucket is not None:
            remaining = bucket.remaining(now)
            if nearest is None or remaining < least:
                nearest, least = bucket, remaining
    return b"" if nearest is None else limit_lines(what, nearest.per_minute, least, nearest.reset_s(now))


class _Part(Reservation):
    """Of what is part of another request, and has no place of its own."""

    __slots__ = ()

    def settle(self, tokens: int, picodollars: int) -> None:
        if self.open:
            for account in self._accounts:
                account.running += 1  # that is taken off with everybody's
        super().settle(tokens, picodollars)


class _Unlimited(Reservation):
    """Of a request that nothing limits: one for all."""

    __slots__ = ()

    def settle(self, tokens: int, picodollars: int) -> None:
        """Nothing was taken."""

    def stand_aside(self) -> Reservation:
        return self

    def header_lines(self) -> bytes:
        return b""


UNLIMITED: Final[Reservation] = _Unlimited(Clock(), (), 0, 0, 0, [])
