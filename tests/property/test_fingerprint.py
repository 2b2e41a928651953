"""Laws of the key, and of the headers that go into it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.protocol.fingerprint import flight_key
from proxy.protocol.headers import semantic_headers, shared_request_headers
from proxy.protocol.message import HeaderList, make_request_head
from proxy.protocol.routes import Dialect

SECRET = b"k" * 32

small = st.binary(max_size=4)
words = st.text(max_size=4)
header_lists = st.lists(st.tuples(small, small), max_size=3)

requests = st.fixed_dictionaries(
    {
        "config_version": st.integers(0, 2),
        "scope": small,
        "provider": words,
        "origin": words,
        "credential": small,
        "method": words,
        "path": words,
        "query": words,
        "headers": header_lists,
        "content_type": small,
        "encoding": small,
        "streams": st.booleans(),
        "variant": small,
        "idempotency_key": small,
        "transform": small,
        "body": small,
    }
)


@given(requests, requests)
def test_keys_are_equal_exactly_when_all_inputs_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Injective on tuples: no two different requests have one key, no request has two."""
    assert (flight_key(SECRET, **one) == flight_key(SECRET, **other)) == (one == other)


@given(requests, st.sampled_from(["provider", "origin", "method", "path", "query"]), st.data())
def test_one_character_moved_to_another_field_changes_the_key(request: dict[str, Any], name: str, data: Any) -> None:
    """The text of all fields together stays the same; only where one ends and the next begins differs."""
    order = ["provider", "origin", "method", "path", "query"]
    follower = order[(order.index(name) + 1) % len(order)]
    moved = data.draw(st.text(min_size=1, max_size=2))
    one = {**request, name: request[name] + moved}
    other = {**request, follower: moved + request[follower]}
    assert flight_key(SECRET, **one) != flight_key(SECRET, **other)


SEMANTIC = [
    b"accept",
    b"openai-beta",
    b"openai-organization",
    b"openai-project",
    b"anthropic-version",
    b"anthropic-beta",
    b"content-type",
]
DROPPED = [
    b"user-agent",
    b"x-stainless-lang",
    b"x-stainless-retry-count",
    b"x-stainless-read-timeout",
    b"x-forwarded-for",
    b"forwarded",
    b"via",
    b"cookie",
    b"referer",
    b"origin",
    b"accept-language",
    b"accept-encoding",
    b"traceparent",
    b"tracestate",
    b"baggage",
    b"x-request-id",
    b"connection",
    b"keep-alive",
    b"te",
    b"cache-control",
    b"x-sameflight-share",
    b"authorization",
    b"x-unheard-of",
]
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12).map(str.encode)
kept = st.lists(st.sampled_from(SEMANTIC), unique=True).flatmap(
    lambda names: st.tuples(*[st.tuples(st.just(name), values) for name in names])
)
noise = st.lists(st.sampled_from(DROPPED), unique=True).flatmap(
    lambda names: st.tuples(*[st.tuples(st.just(name), values) for name in names])
)


@given(kept, noise, noise, st.randoms(use_true_random=False), st.sampled_from(Dialect))
def test_dropped_headers_change_neither_the_key_s_input_nor_the_upstream_request(
    semantic: tuple[tuple[bytes, bytes], ...],
    some: tuple[tuple[bytes, bytes], ...],
    others: tuple[tuple[bytes, bytes], ...],
    random: Any,
    dialect: Dialect,
) -> None:
    """Two requests that differ in dropped headers and in the order of all are one request."""
    one: HeaderList = [*semantic, *some]
    other: HeaderList = [*semantic, *others]
    random.shuffle(other)
    first, second = make_request_head("POST", "/v1/x", one), make_request_head("POST", "/v1/x", other)
    assert semantic_headers(first, dialect) == semantic_headers(second, dialect)
    assert shared_request_headers(first, dialect, []) == shared_request_headers(second, dialect, [])


@given(kept, noise, st.sampled_from(Dialect))
def test_all_that_a_shared_call_sends_is_in_the_key(
    semantic: tuple[tuple[bytes, bytes], ...], some: tuple[tuple[bytes, bytes], ...], dialect: Dialect
) -> None:
    """Nothing goes upstream that is neither a semantic header nor one of the key's own fields."""
    head = make_request_head("POST", "/v1/x", [*semantic, *some])
    keyed = semantic_headers(head, dialect)
    own_fields = [(b"content-type", head.get(b"content-type"))] if b"content-type" in head.headers else []
    assert shared_request_headers(head, dialect, []) == sorted(keyed + own_fields)
