"""Who pays for an answer, and what the others saved.

An upstream call is on the books once: its cost stands with the payer (the subscriber that was attached first when the
head arrived), or with nobody among the subscribers if there was none. What each of them is billed is the charge
policy of the payer's key: ``first`` bills the payer alone, ``split`` divides among all who got some of the answer,
``each`` bills everybody as if the call had been their own. Under ``first`` and ``split`` the bills add up to what the
upstream charges, never more and never less.

Money is counted in whole picodollars: prices are dollars for a million tokens with at most six decimals, so a token
costs a whole number of them and sums are exact. Micro-dollars would round an embedding of ten tokens (0.2 of one) to
nothing. It becomes a float of dollars only where it leaves for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from proxy.config.prices import Price
from proxy.protocol.usage import Usage

PICODOLLARS: Final = 10**12
"""In a dollar."""

# A price is dollars for 10^6 tokens; a token costs this many picodollars for each dollar of it.
_PER_TOKEN: Final = 10**6


def cost_picodollars(usage: Usage | None, price: Price | None) -> int:
    """What the upstream charges; 0 where the usage or the price is not known. Never negative."""
    if usage is None or price is None:
        return 0
    cached_tokens = min(usage.cached_input_tokens, usage.input_tokens)
    written_tokens = min(usage.cache_write_tokens, usage.input_tokens - cached_tokens)
    cached_rate = price.input if price.cached_input is None else price.cached_input
    cost = (
        (usage.input_tokens - cached_tokens - written_tokens) * round(price.input * _PER_TOKEN)
        + cached_tokens * round(cached_rate * _PER_TOKEN)
        + usage.output_tokens * round(price.output * _PER_TOKEN)
    )
    if written_tokens:
        cost += written_tokens * round((price.input if price.cache_write is None else price.cache_write) * _PER_TOKEN)
    return cost


def cost_usd(usage: Usage | None, price: Price | None) -> float:
    """``cost_picodollars`` in US dollars."""
    return cost_picodollars(usage, price) / PICODOLLARS


class Account(NamedTuple):
    """What one request is billed and what it saved."""

    tokens: int = 0
    """Billed to this request."""
    picodollars: int = 0
    tokens_saved: int = 0
    """Tokens of the call that this request did not have to make, less those of an upstream call that it pays. It is
    not lessened by a bill for which the upstream charges nothing (`each`)."""
    picodollars_saved: int = 0

    @property
    def cost_usd(self) -> float:
        return self.picodollars / PICODOLLARS

    @property
    def saved_usd(self) -> float:
        return self.picodollars_saved / PICODOLLARS


NOTHING: Final = Account()


def pay(usage: Usage | None, price: Price | None) -> Account:
    """The account of a request that pays a whole call: the payer's, or the scope's own if nobody was left to pay."""
    return NOTHING if usage is None else Account(usage.total_tokens, cost_picodollars(usage, price))


def save(usage: Usage | None, price: Price | None, *, whole: bool = True, policy: str = "first") -> Account:
    """The account of a follower under ``first`` or ``each``, or of a cache hit under any policy.

    One that left before the end (``whole`` is false) saved the input, which a call of its own would have cost at
    once, and claims none of the output, of which it may not have wanted any more. Under ``each`` it is billed what a
    call of its own would have cost, all of it, as an upstream bills a call that was left.
    """
    if usage is None:
        return NOTHING
    bill = pay(usage, price) if policy == "each" else NOTHING
    if not whole:
        usage = Usage(usage.input_tokens, 0, usage.cached_input_tokens, usage.cache_write_tokens)
    return Account(bill.tokens, bill.picodollars, usage.total_tokens, cost_picodollars(usage, price))


def divide(total: int, parts: int, extra: int = 0) -> list[int]:
    """``total`` in ``parts`` equal whole numbers; the part at index ``extra`` takes what does not divide."""
    part, left = divmod(total, parts)
    divided = [part] * parts
    divided[extra] += left
    return divided


def divide_usage(usage: Usage, parts: int, extra: int = 0) -> list[Usage]:
    """One call's tokens as they are billed under ``split``, kind by kind; the sums are the call's."""
    columns = (
        divide(usage.input_tokens, parts, extra),
        divide(usage.output_tokens, parts, extra),
        divide(usage.cached_input_tokens, parts, extra),
        divide(usage.cache_write_tokens, parts, extra),
        divide(usage.reasoning_tokens, parts, extra),
    )
    return [Usage(*counts, usage.source) for counts in zip(*columns, strict=True)]


class Attribution(NamedTuple):
    """One upstream call on the books of all who had to do with it."""

    accounts: tuple[Account, ...]
    """In the order of the subscribers."""
    overhead: Account
    """What nobody among the subscribers pays."""


def attribute(
    usage: Usage | None,
    price: Price | None,
    whole: Sequence[bool],
    payer: int | None,
    *,
    policy: str = "first",
    got: Sequence[bool] = (),
) -> Attribution:
    """Divide one call by a charge policy.

    ``whole`` says of each subscriber whether it stayed to the end, ``got`` (for ``split``; empty: all did) whether it
    got at least one byte of the answer's body. ``payer`` is the index of the one that was attached first when the
    head arrived, and pays even if it left since, or ``None`` if there was none: what is billed to no subscriber is
    then the scope's overhead, never lost.
    """
    if policy == "split" and usage is not None:
        sharers = [index for index in range(len(whole)) if index == payer or (got[index] if got else True)]
        if sharers:
            return Attribution(_split(usage, price, whole, sharers, payer), NOTHING)
    accounts = tuple(
        pay(usage, price) if index == payer else save(usage, price, whole=stayed, policy=policy)
        for index, stayed in enumerate(whole)
    )
    return Attribution(accounts, pay(usage, price) if payer is None else NOTHING)


def _split(
    usage: Usage, price: Price | None, whole: Sequence[bool], sharers: list[int], payer: int | None
) -> tuple[Account, ...]:
    """Equal parts; what does not divide goes to the payer, or to the first sharer if there is none."""
    extra = sharers.index(payer) if payer is not None else 0
    tokens = dict(zip(sharers, divide(usage.total_tokens, len(sharers), extra), strict=True))
    money = dict(zip(sharers, divide(cost_picodollars(usage, price), len(sharers), extra), strict=True))
    accounts = []
    for index, stayed in enumerate(whole):
        part_tokens, part_money = tokens.get(index, 0), money.get(index, 0)
        own = save(usage, price, whole=stayed or index == payer)
        saved = max(0, own.tokens_saved - part_tokens), max(0, own.picodollars_saved - part_money)
        accounts.append(Account(part_tokens, part_money, *saved))
    return tuple(accounts)
