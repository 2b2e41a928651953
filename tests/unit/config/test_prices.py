"""How a model's name finds its price."""

import pytest

from proxy.config.prices import BUILT_IN, Price, make_prices


@pytest.mark.parametrize(
    ("model", "priced_as"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("claude-3-5-sonnet-20241022", "claude-3-5-sonnet"),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet"),
        ("claude-sonnet-4@20250514", "claude-sonnet-4"),
        ("gpt-4-0613", "gpt-4"),
    ],
)
def test_a_dated_name_costs_what_the_model_costs(model, priced_as):
    """Vendors pin versions by date; the price is the model's."""
    assert BUILT_IN[priced_as] is make_prices().find(model)


def test_a_dated_name_with_a_price_of_its_own_keeps_it():
    """The exact name comes first."""
    assert Price(5.0, 15.0) == make_prices().find("gpt-4o-2024-05-13")


@pytest.mark.parametrize("model", ["", "gpt-4o-audio-preview", "gpt-4o-", "ft:gpt-4o:acme", "gpt", "x" * 10_000])
def test_a_name_that_only_begins_like_a_model_has_no_price(model):
    """A guess would put wrong money on the books."""
    assert make_prices().find(model) is None


def test_own_prices_win_and_cover_dated_names():
    """The operator's contract counts, for the built-in names too."""
    prices = make_prices({"gpt-4o": Price(1.0, 2.0), "local": Price(0.0)})
    assert Price(1.0, 2.0) == prices.find("gpt-4o-2024-08-06")
    assert Price(0.0) == prices.find("local")


def test_every_built_in_price_is_sane():
    """Cached input never costs more than input, and nothing is negative or absurd."""
    for name, price in BUILT_IN.items():
        assert 0 < price.input <= 200, name
        assert 0 <= price.output <= 1_000, name
        assert price.cached_input is None or price.cached_input < price.input, name


def test_every_built_in_price_is_a_whole_number_of_picodollars_a_token():
    """Money is counted in picodollars; six decimals of a dollar for a million tokens."""
    for price in BUILT_IN.values():
        for rate in (price.input, price.output, price.cached_input or 0.0):
            assert rate == round(rate * 10**6) / 10**6


def test_prices_cannot_be_changed():
    """They are part of a snapshot."""
    with pytest.raises(TypeError):
        make_prices().by_name["x"] = Price(1.0)
