"""Who is billed what under each charge policy, and what writing to the upstream's cache costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.usage import (
    NOTHING,
    Account,
    attribute,
    cost_picodollars,
    divide,
    divide_usage,
    pay,
    save,
)
from proxy.config.prices import BUILT_IN, Price, make_prices
from proxy.protocol.usage import Usage

PRICE = Price(2.5, 10.0, 1.25)
USAGE = Usage(1000, 101)

counts = st.integers(0, 2**40)
rates = st.integers(0, 10**9).map(lambda micro: micro / 1e6)
usages = st.tuples(counts, counts, counts, counts).map(lambda n: Usage(n[0] + n[2] + n[3], n[1], n[2], n[3]))
prices = st.builds(Price, rates, rates, st.none() | rates, st.none() | rates)


def test_tokens_written_to_the_cache_cost_their_own_rate() -> None:
    """500 fresh at 4, 300 written at 5, 200 read at 0.2 and 100 produced at 20 dollars for a million."""
    assert cost_picodollars(Usage(1000, 100, 200, 300), Price(4.0, 20.0, 0.2, 5.0)) == 5_540_000_000


def test_tokens_written_to_the_cache_cost_what_input_costs_where_no_rate_is_known() -> None:
    """As before there were such rates."""
    assert cost_picodollars(Usage(1000, 100, 200, 300), Price(4.0, 20.0, 0.2)) == 5_240_000_000


def test_more_written_and_read_tokens_than_input_cost_no_more_than_the_input() -> None:
    """A report that contradicts itself neither pays back nor charges twice."""
    assert cost_picodollars(Usage(10, 0, 8, 500), Price(1.0, 0.0, 0.0, 2.0)) == 2 * 2_000_000


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name.startswith("claude")])
def test_anthropic_charges_a_quarter_more_for_cache_writes(name: str) -> None:
    """Of every model of theirs, in whole picodollars a token."""
    price = BUILT_IN[name]
    assert price.cache_write is not None
    assert price.cache_write == pytest.approx(1.25 * price.input)
    assert round(price.cache_write * 1e6) == pytest.approx(price.cache_write * 1e6, abs=1e-6)


def test_other_vendors_have_no_rate_for_cache_writes() -> None:
    """What is not known is not made up."""
    assert {price.cache_write for name, price in BUILT_IN.items() if not name.startswith("claude")} == {None}
    assert make_prices({"own": Price(1.0, cache_write=3.0)}).by_name["own"].cache_write == 3.0


def test_split_divides_the_bill_and_the_payer_takes_what_does_not_divide() -> None:
    """1101 tokens and 3.51 thousandths of a dollar among three; the second one pays."""
    accounts, overhead = attribute(USAGE, PRICE, [True] * 3, 1, policy="split")
    assert [account.tokens for account in accounts] == [367, 367, 367]
    assert [account.picodollars for account in accounts] == [1_170_000_000] * 3
    assert [account.picodollars_saved for account in accounts] == [2_340_000_000] * 3
    assert overhead == NOTHING
    accounts, _ = attribute(USAGE, PRICE, [True] * 4, 1, policy="split")
    assert [account.tokens for account in accounts] == [275, 276, 275, 275]


def test_split_leaves_out_who_got_no_byte_of_the_answer_but_never_the_payer() -> None:
    """A follower that left before the first byte pays nothing; the payer pays its part though it left too."""
    accounts, _ = attribute(USAGE, PRICE, [False, False, True], 0, policy="split", got=[False, False, True])
    assert [account.tokens for account in accounts] == [551, 0, 550]


def test_split_without_anybody_is_overhead() -> None:
    """All left before the head came."""
    accounts, overhead = attribute(USAGE, PRICE, [False, False], None, policy="split", got=[False, False])
    assert [account.picodollars for account in accounts] == [0, 0]
    assert overhead == pay(USAGE, PRICE)


def test_each_bills_everybody_the_whole_call() -> None:
    """Three callers, three bills; what the upstream was not paid is still known as saved."""
    accounts, overhead = attribute(USAGE, PRICE, [True, True, False], 0, policy="each")
    assert [account.picodollars for account in accounts] == [3_510_000_000] * 3
    assert [account.tokens_saved for account in accounts] == [0, 1101, 1000]
    assert overhead == NOTHING


@pytest.mark.parametrize(("policy", "billed"), [("first", 0), ("split", 0), ("each", 3_510_000_000)])
def test_a_hit_is_billed_under_each_alone(policy: str, billed: int) -> None:
    """Nobody paid an upstream for it."""
    assert save(USAGE, PRICE, policy=policy) == Account(1101 if billed else 0, billed, 1101, 3_510_000_000)


@given(
    usage=usages,
    price=st.none() | prices,
    whole=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12),
    pick=st.none() | st.integers(0, 11),
    policy=st.sampled_from(["first", "split", "each"]),
)
def test_bills_add_up_to_what_the_upstream_charges(
    usage: Usage,
    price: Price | None,
    whole: list[tuple[bool, bool]],
    pick: int | None,
    policy: str,
) -> None:
    """To the last picodollar under `first` and `split`; under `each` everybody's bill is the whole."""
    payer = pick % len(whole) if whole and pick is not None else None
    stayed, got = [each[0] for each in whole], [each[1] for each in whole]
    accounts, overhead = attribute(usage, price, stayed, payer, policy=policy, got=got)
    everybody = [*accounts, overhead]
    cost = cost_picodollars(usage, price)
    assert min(value for account in everybody for value in account) >= 0
    if policy == "each":
        assert {account.picodollars for account in accounts} <= {cost}
    else:
        assert sum(account.picodollars for account in everybody) == cost
        assert sum(account.tokens for account in everybody) == usage.total_tokens


@given(total=st.integers(0, 2**60), parts=st.integers(1, 20), extra=st.integers(0, 19))
def test_parts_differ_by_what_does_not_divide(total: int, parts: int, extra: int) -> None:
    """Equal but for one of them."""
    divided = divide(total, parts, extra % parts)
    assert sum(divided) == total
    assert divided[extra % parts] - min(divided) == total % parts


@given(usage=usages, parts=st.integers(1, 9))
def test_divided_tokens_add_up_kind_by_kind(usage: Usage, parts: int) -> None:
    """What the records of a split call say together is what the call said."""
    divided = divide_usage(usage, parts)
    for name in ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens"):
        assert sum(getattr(part, name) for part in divided) == getattr(usage, name)
