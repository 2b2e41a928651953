"""What an answer costs, who pays for it, and what the others saved."""

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.usage import NOTHING, PICODOLLARS, Account, attribute, cost_picodollars, cost_usd, pay, save
from proxy.config.prices import BUILT_IN, Price
from proxy.protocol.usage import Usage

PRICE = Price(2.5, 10.0, 1.25)

counts = st.integers(0, 2**40)
rates = st.integers(0, 10**9).map(lambda micro: micro / 1e6)
usages = st.tuples(counts, counts, counts).map(lambda n: Usage(n[0] + n[2], n[1], n[2]))
prices = st.builds(Price, rates, rates, st.none() | rates)


def test_answer_costs_its_fresh_cached_and_produced_tokens_at_their_rates():
    """600 fresh at 2.50, 400 cached at 1.25 and 100 produced at 10 dollars for a million."""
    assert cost_usd(Usage(1000, 100, cached_input_tokens=400), PRICE) == 0.0030


def test_cached_tokens_without_a_rate_cost_what_input_costs():
    """No discount that nobody granted."""
    assert cost_usd(Usage(1000, 0, cached_input_tokens=400), Price(3.0)) == 0.003


def test_reasoning_and_cache_writes_are_not_charged_twice():
    """They are parts of the output and the input."""
    assert cost_usd(Usage(100, 50, 0, 30, 40), PRICE) == cost_usd(Usage(100, 50), PRICE)


@pytest.mark.parametrize(("usage", "price"), [(None, PRICE), (Usage(10, 10), None), (None, None)])
def test_answer_of_unknown_usage_or_price_costs_nothing_that_is_known(usage, price):
    """An unknown is not guessed here."""
    assert cost_picodollars(usage, price) == 0


def test_tokens_are_counted_where_the_price_is_unknown():
    """A model without a price still uses tokens."""
    assert pay(Usage(10, 5), None) == Account(15, 0)


def test_smallest_embedding_is_not_rounded_to_nothing():
    """Ten tokens at two cents a million, a million times over, are twenty cents."""
    one = cost_picodollars(Usage(10, 0), BUILT_IN["text-embedding-3-small"])
    assert one * 1_000_000 == 200_000_000_000


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_listed_price_is_whole_in_picodollars_a_token(name):
    """The unit is fine enough for the price list, so nothing is rounded."""
    price = BUILT_IN[name]
    for rate in (price.input, price.output, price.cached_input or 0.0):
        assert round(rate * 1e6) == pytest.approx(rate * 1e6, abs=1e-6)


def exact_usd(usage: Usage, price: Price) -> Decimal:
    """The same cost in decimal fractions."""
    fresh, cached, output = (
        Decimal(repr(rate))
        for rate in (price.input, price.input if price.cached_input is None else price.cached_input, price.output)
    )
    uncached_tokens = usage.input_tokens - usage.cached_input_tokens
    return (uncached_tokens * fresh + usage.cached_input_tokens * cached + usage.output_tokens * output) / 10**6


@given(usage=usages, price=prices)
def test_cost_is_exact_to_the_last_digit_of_the_prices(usage, price):
    """Whole numbers of the unit lose nothing that six decimals of a price can say."""
    with localcontext(prec=60):
        assert Decimal(cost_picodollars(usage, price)) / PICODOLLARS == exact_usd(usage, price)


def test_more_cached_tokens_than_input_never_pay_back():
    """A report that contradicts itself must not turn into a credit."""
    assert cost_picodollars(Usage(10, 0, cached_input_tokens=500), PRICE) == 10 * 1_250_000


def test_payer_pays_and_followers_are_told_what_they_saved():
    """Three subscribers, one call."""
    usage = Usage(1000, 100)
    accounts, overhead = attribute(usage, PRICE, [True, True, True], payer=0)
    assert accounts == (
        Account(1100, 3_500_000_000, 0, 0),
        Account(0, 0, 1100, 3_500_000_000),
        Account(0, 0, 1100, 3_500_000_000),
    )
    assert (accounts[0].cost_usd, accounts[1].saved_usd, overhead) == (0.0035, 0.0035, NOTHING)


def test_payer_who_left_after_the_head_still_pays_all():
    """It was fixed when the head arrived."""
    accounts, _ = attribute(Usage(1000, 100), PRICE, [False, True], payer=0)
    assert accounts[0] == pay(Usage(1000, 100), PRICE)


def test_follower_who_left_early_claims_no_output_as_saved():
    """Of its own call it would have paid the input in any case."""
    assert save(Usage(1000, 100, 400), PRICE, whole=False) == Account(0, 0, 1000, 2_000_000_000)


def test_call_that_nobody_stayed_for_is_overhead():
    """All left before the head: the upstream charges all the same."""
    accounts, overhead = attribute(Usage(1000, 100), PRICE, [False, False], payer=None)
    assert overhead == pay(Usage(1000, 100), PRICE)
    assert all(account.picodollars == 0 for account in accounts)


def test_cache_hit_costs_nothing_and_saves_a_call():
    """The account of an answer that nobody made."""
    hit = save(Usage(1000, 100), PRICE)
    assert (hit.tokens, hit.cost_usd, hit.tokens_saved, hit.saved_usd) == (0, 0.0, 1100, 0.0035)


@given(
    usage=st.none() | usages,
    price=st.none() | prices,
    whole=st.lists(st.booleans(), max_size=12),
    pick=st.none() | st.integers(0, 11),
)
def test_upstream_cost_is_on_the_books_exactly_once(usage, price, whole, pick):
    """Whoever stayed, left, paid or did not: the sum is what the upstream charges, and nothing is negative."""
    payer = pick % len(whole) if whole and pick is not None else None
    accounts, overhead = attribute(usage, price, whole, payer)
    everybody = [*accounts, overhead]
    assert len(accounts) == len(whole)
    assert sum(account.picodollars for account in everybody) == cost_picodollars(usage, price)
    assert sum(account.tokens for account in everybody) == (usage.total_tokens if usage else 0)
    assert min(value for account in everybody for value in account) >= 0
    for account in accounts:
        assert account.picodollars_saved <= cost_picodollars(usage, price)
        assert not (account.tokens and account.tokens_saved)
