"""Who pays for an answer, and what the others saved.

An upstream call is paid once, by the subscriber that was attached first when the head arrived; everybody else who got
its bytes, and everybody whom the cache answered, is on the books with no upstream cost and with what a call of their
own would have cost. So the sum over all accounts is what the upstream charges, never more and never less.

Money is counted in whole picodollars: prices are dollars for a million tokens with at most six decimals, so a token
costs a whole number of them and sums are exact. Micro-dollars would round an embedding of ten tokens (0.2 of one) to
nothing. It becomes a float of dollars only where it leaves for people.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from proxy.config.prices import Price
from proxy.protocol.usage import Usage

PICODOLLARS: Final = 10**12
"""In a dollar."""

# A price is dollars for 10^6 tokens; a token costs this many picodollars for each dollar of it.
_PER_TOKEN: Final = 10**6


def cost_picodollars(usage: Usage | None, price: Price | None) -> int:
    """What the upstream charges; 0 where the usage or the price is not known. Never negative.

    Tokens written to the upstream's prompt cache are charged as input: the price list has no rate of their own.
    """
    if usage is None or price is None:
        return 0
    cached_tokens = min(usage.cached_input_tokens, usage.input_tokens)
    cached_rate = price.input if price.cached_input is None else price.cached_input
    return (
        (usage.input_tokens - cached_tokens) * round(price.input * _PER_TOKEN)
        + cached_tokens * round(cached_rate * _PER_TOKEN)
        + usage.output_tokens * round(price.output * _PER_TOKEN)
    )


def cost_usd(usage: Usage | None, price: Price | None) -> float:
    """``cost_picodollars`` in US dollars."""
    return cost_picodollars(usage, price) / PICODOLLARS


class Account(NamedTuple):
    """What one request used and saved. Of tokens and money, one of the two pairs is always 0."""

    tokens: int = 0
    """Tokens of the upstream call that this request pays."""
    picodollars: int = 0
    tokens_saved: int = 0
    """Tokens of the call that this request did not have to make."""
    picodollars_saved: int = 0

    @property
    def cost_usd(self) -> float:
        return self.picodollars / PICODOLLARS

    @property
    def saved_usd(self) -> float:
        return self.picodollars_saved / PICODOLLARS


NOTHING: Final = Account()


def pay(usage: Usage | None, price: Price | None) -> Account:
    """The account of the request that pays the call: the payer's, or the scope's own if nobody was left to pay."""
    return NOTHING if usage is None else Account(usage.total_tokens, cost_picodollars(usage, price))


def save(usage: Usage | None, price: Price | None, *, whole: bool = True) -> Account:
    """The account of a follower or a cache hit.

    One that left before the end (``whole`` is false) saved the input, which a call of its own would have cost at
    once, and claims none of the output, of which it may not have wanted any more.
    """
    if usage is None:
        return NOTHING
    if not whole:
        usage = Usage(usage.input_tokens, 0, usage.cached_input_tokens)
    return Account(0, 0, usage.total_tokens, cost_picodollars(usage, price))


class Attribution(NamedTuple):
    """One upstream call on the books of all who had to do with it."""

    accounts: tuple[Account, ...]
    """In the order of the subscribers."""
    overhead: Account
    """What nobody among the subscribers pays."""


def attribute(usage: Usage | None, price: Price | None, whole: list[bool], payer: int | None) -> Attribution:
    """Divide one call by the charge policy ``first``.

    ``whole`` says of each subscriber whether it stayed to the end; ``payer`` is the index of the one that was
    attached first when the head arrived, and pays even if it left since, or ``None`` if there was none: the call is
    then the scope's overhead, never lost.
    """
    accounts = tuple(
        pay(usage, price) if index == payer else save(usage, price, whole=stayed)
        for index, stayed in enumerate(whole)
    )
    return Attribution(accounts, pay(usage, price) if payer is None else NOTHING)
