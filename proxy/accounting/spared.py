"""What policies saved on one request, against doing without them. Pure; picodollars, as everywhere in accounting.

What sharing and caching save is booked elsewhere (`accounting.usage`): there a request is spared a call, here the
call is another or a shorter one, or there never was one to share. The two add up: where every price is known, what a
request costs its upstream, what sharing saved and what policies saved are together what it would have cost as the
caller wrote it, alone.

Policies are weighed in the order in which they act. A tier saves the difference of two models on the whole prompt;
what was cut off then saves what it would have cost with the model that answers. Where a price is not known nothing
is claimed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from proxy.accounting.usage import cost_picodollars
from proxy.config.prices import Price
from proxy.protocol.usage import Usage

_PER_TOKEN: Final = 10**6  # picodollars for each dollar of a price, which is for a million tokens


class Spared(NamedTuple):
    """One request's. Amounts are below 0 where a policy cost more than it saved."""

    pattern: int = 0
    """A rule answered in the place of a model."""
    tier: int = 0
    """Another model answered than the caller would have had."""
    pruning: int = 0
    slimming: int = 0
    shadow: int = 0
    """What a tier in shadow mode would have saved; in no sum."""
    tokens: int = 0
    """Tokens of the call that a rule's answer made unnecessary; estimated."""

    @property
    def total(self) -> int:
        return self.pattern + self.tier + self.pruning + self.slimming


SPARED_NOTHING: Final = Spared()


def spare_call(prompt_tokens: int, answer_tokens: int, price: Price | None) -> Spared:
    """A rule answered. ``price`` is that of the model that was asked for, the tokens are estimates."""
    usage = Usage(prompt_tokens, answer_tokens)
    return Spared(pattern=cost_picodollars(usage, price), tokens=usage.total_tokens)


def spare_some(
    usage: Usage,
    price: Price | None,
    *,
    baseline: Price | None = None,
    tiered: bool = False,
    shadow: bool = False,
    pruned_tokens: int = 0,
    slimmed_tokens: int = 0,
) -> Spared:
    """A model answered and reported ``usage``, at ``price``.

    ``tiered``: a tier chose it; ``baseline`` is the price of the model that would have answered without. In shadow
    mode ``baseline`` is that of the model that the tier would have chosen. ``pruned_tokens`` and ``slimmed_tokens``
    are missing in the usage, because they were not sent.
    """
    if price is None:
        return SPARED_NOTHING
    cut_tokens = max(0, pruned_tokens) + max(0, slimmed_tokens)
    rate = _cut_rate(usage, price)
    tier = 0
    if tiered and baseline is not None:
        whole = cost_picodollars(usage, price) + cut_tokens * rate
        tier = cost_picodollars(usage, baseline) + cut_tokens * _cut_rate(usage, baseline) - whole
    return Spared(
        tier=0 if shadow else tier,
        pruning=max(0, pruned_tokens) * rate,
        slimming=max(0, slimmed_tokens) * rate,
        shadow=-tier if shadow else 0,
    )


def _cut_rate(usage: Usage, price: Price) -> int:
    """Of a token that was not sent. What falls out of a prompt stood near its beginning: where the upstream took part
    of the rest from its prompt cache, it would have had that there as well."""
    dollars = price.input
    if usage.cached_input_tokens and price.cached_input is not None:
        dollars = price.cached_input
    return round(dollars * _PER_TOKEN)
