"""What policies save on one request: never twice, and never where a price is unknown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.spared import SPARED_NOTHING, Spared, spare_call, spare_some
from proxy.accounting.usage import cost_picodollars
from proxy.config.prices import Price
from proxy.protocol.usage import Usage

CHEAP, STRONG = Price(1.0, 4.0, cached_input=0.1), Price(10.0, 40.0, cached_input=1.0)
USAGE = Usage(100, 20)

counts = st.integers(0, 10**6)
rates = st.decimals(0, 1_000, places=6).map(float)
prices = st.builds(Price, rates, rates)


def test_a_rules_answer_saves_the_whole_call_at_the_asked_models_price() -> None:
    """Prompt and answer; nothing where nobody said what it costs, but the tokens are known."""
    assert spare_call(10, 5, STRONG) == Spared(pattern=10 * 10_000_000 + 5 * 40_000_000, tokens=15)
    assert spare_call(10, 5, None) == Spared(tokens=15)


def test_a_cheaper_tier_saves_the_difference_and_a_dearer_one_loses_it() -> None:
    """What was paid is taken off what would have been."""
    saved = spare_some(USAGE, CHEAP, baseline=STRONG, tiered=True)

    assert saved.tier == saved.total == cost_picodollars(USAGE, STRONG) - cost_picodollars(USAGE, CHEAP)
    assert spare_some(USAGE, STRONG, baseline=CHEAP, tiered=True).total == -saved.total


def test_a_tier_in_shadow_mode_only_says_what_it_would_have_saved() -> None:
    """It is in no sum; the price of the other model is told as the baseline."""
    saved = spare_some(USAGE, STRONG, baseline=CHEAP, tiered=True, shadow=True)

    assert saved.total == 0
    assert saved.shadow == cost_picodollars(USAGE, STRONG) - cost_picodollars(USAGE, CHEAP)


def test_what_was_cut_off_saves_the_price_of_its_tokens_where_they_would_have_been_read() -> None:
    """At the rate of the prompt cache, if the upstream had part of the rest in there."""
    fresh = spare_some(USAGE, STRONG, pruned_tokens=1_000, slimmed_tokens=10)
    cached = spare_some(Usage(100, 20, 60), STRONG, pruned_tokens=1_000, slimmed_tokens=10)

    assert (fresh.pruning, fresh.slimming, fresh.tier) == (1_000 * 10_000_000, 10 * 10_000_000, 0)
    assert (cached.pruning, cached.slimming) == (1_000 * 1_000_000, 10 * 1_000_000)


def test_nothing_is_claimed_where_a_price_is_unknown() -> None:
    """Neither a saving nor a loss."""
    assert spare_some(USAGE, None, baseline=STRONG, tiered=True, pruned_tokens=9) == SPARED_NOTHING
    assert spare_some(USAGE, CHEAP, baseline=None, tiered=True).total == 0


@given(counts, counts, counts, counts, prices, prices)
def test_cost_and_savings_are_what_it_would_have_cost_as_it_was_written(
    given_tokens: int, made: int, pruned: int, slimmed: int, paid: Price, usual: Price
) -> None:
    """Whatever the policies did, and in whichever direction."""
    sent, written = Usage(given_tokens, made), Usage(given_tokens + pruned + slimmed, made)
    saved = spare_some(sent, paid, baseline=usual, tiered=True, pruned_tokens=pruned, slimmed_tokens=slimmed)

    assert cost_picodollars(sent, paid) + saved.total == cost_picodollars(written, usual)
