"""What a request may cost at most, from its body and its model's price."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.usage import cost_picodollars
from proxy.config.prices import Price
from proxy.policy.estimate import (
    ASSUMED_OUTPUT_TOKENS,
    MAX_CHOICES,
    MAX_OUTPUT_TOKENS,
    NOTHING,
    Estimate,
    estimate,
)
from proxy.protocol.call import Call
from proxy.protocol.routes import _TABLE, Route
from proxy.protocol.usage import Usage

PRICE = Price(2.0, 10.0, 0.5)
ROUTES = {choice.usual.route.name: choice.usual.route for choice in _TABLE.values()}
CHAT = ROUTES["chat.completions"]


def asked(fields: dict[str, Any], route: Route = CHAT, price: Price | None = PRICE) -> tuple[Estimate, int]:
    """The estimate and the size of the body in bytes."""
    body = orjson.dumps(fields)
    return estimate(route, Call(body, fields, "m", False, False), len(body), price), len(body)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_the_bound_of_the_output_is_taken_under_each_of_its_names(name: str) -> None:
    """A byte a token for money, four bytes a token for the limits."""
    found, size = asked({"model": "m", name: 500})
    assert found == Estimate(size // 4 + 500, size * 2_000_000 + 500 * 10_000_000)


def test_an_output_without_a_bound_is_assumed() -> None:
    """Some number has to stand for it."""
    found, size = asked({"model": "m"})
    assert found.tokens == size // 4 + ASSUMED_OUTPUT_TOKENS


@pytest.mark.parametrize("bound", [-1, "many", 1.5, True, {}])
def test_a_bound_that_is_none_is_as_good_as_none(bound: object) -> None:
    """The upstream will refuse it; here it must not break anything."""
    found, size = asked({"max_tokens": bound})
    assert found.tokens == size // 4 + ASSUMED_OUTPUT_TOKENS


def test_a_bound_beyond_all_models_is_cut() -> None:
    """Nobody reserves a fortune with nine digits."""
    found, size = asked({"max_tokens": 10**18})
    assert found.tokens == size // 4 + MAX_OUTPUT_TOKENS


@pytest.mark.parametrize(
    ("fields", "times"),
    [({"n": 3}, 3), ({"best_of": 5, "n": 2}, 5), ({"n": 0}, 1), ({"n": "x"}, 1), ({"n": 10**9}, MAX_CHOICES)],
)
def test_every_choice_has_its_own_output(fields: dict[str, Any], times: int) -> None:
    """``n`` answers to one question cost ``n`` outputs."""
    found, size = asked({"max_tokens": 100, **fields})
    assert found.tokens == size // 4 + 100 * times


def test_an_unknown_price_is_said_to_be_unknown() -> None:
    """Tokens count all the same."""
    found, size = asked({"max_tokens": 100}, price=None)
    assert found == Estimate(size // 4 + 100, 0, priced=False)


@pytest.mark.parametrize("name", ["embeddings", "moderations", "rerank"])
def test_routes_without_output_reserve_none(name: str) -> None:
    """An embedding has no tokens of its own."""
    found, size = asked({"input": "x"}, ROUTES[name])
    assert found.tokens == size // 4


@pytest.mark.parametrize("name", ["models", "files", "messages.count_tokens", "audio.speech"])
def test_routes_that_report_no_usage_reserve_nothing(name: str) -> None:
    """What is never billed is never reserved."""
    route = ROUTES.get(name) or Route(name, CHAT.shape)
    assert estimate(route, None, 5_000, PRICE) == NOTHING


def test_a_body_that_was_not_read_is_judged_by_its_size() -> None:
    """Compressed beyond what is decoded, for example."""
    assert estimate(CHAT, None, 400, PRICE, 7).tokens == 107


def test_cache_writes_are_reserved_at_their_rate() -> None:
    """A request that asks for them may cost a quarter more."""
    fields = {"max_tokens": 0, "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}
    found, size = asked(fields, ROUTES["messages"], Price(4.0, 20.0, 0.4, 5.0))
    assert found.picodollars == size * 5_000_000
    found, size = asked({"max_tokens": 0}, ROUTES["messages"], Price(4.0, 20.0, 0.4, 5.0))
    assert found.picodollars == size * 4_000_000


@pytest.mark.parametrize("prefix", ["data:image/png;base64,", ""])
def test_media_in_the_body_are_not_taken_for_text(prefix: str) -> None:
    """A photograph of three megabytes is not three million tokens."""
    encoded = prefix + base64.b64encode(bytes(range(256)) * 12_000).decode()
    found, size = asked({"max_tokens": 10, "messages": [{"content": [{"data": encoded}]}]})
    assert size > 4_000_000
    assert 1_000 < found.tokens < 100_000


def test_long_text_is_text() -> None:
    """Only what nobody would write is taken for media."""
    found, size = asked({"max_tokens": 0, "messages": [{"content": "words and words " * 10_000}]})
    assert found.tokens == size // 4


def test_images_by_reference_count_for_something() -> None:
    """Their bytes are elsewhere."""
    content = [{"type": "image_url", "image_url": {"url": "https://x/1.png"}}]
    found, size = asked({"max_tokens": 0, "messages": [{"content": content}]})
    assert found.tokens > size // 4 + 1_000


@given(
    text=st.text(max_size=300),
    most=st.integers(0, 1000),
    used=st.floats(0, 1),
    rates=st.tuples(*[st.integers(0, 10**8).map(lambda micro: micro / 1e6)] * 2),
)
def test_an_answer_within_its_bounds_never_costs_more_than_was_estimated(
    text: str, most: int, used: float, rates: tuple[float, float]
) -> None:
    """However few bytes make a token: the reservation bears the bill."""
    price = Price(*rates)
    found, size = asked({"max_tokens": most, "messages": [{"content": text}]}, price=price)
    worst = Usage(size, int(most * used))
    assert cost_picodollars(worst, price) <= found.picodollars
