"""The key of a flight and its relatives."""

from __future__ import annotations

import inspect
from hashlib import blake2b
from typing import Any

import pytest

from proxy.protocol.fingerprint import FIELDS, digest16, flight_hasher, flight_key, idempotency_index

SECRET = b"k" * 32

REQUEST: dict[str, Any] = {
    "config_version": 7,
    "scope": b"s" * 16,
    "provider": "openai",
    "origin": "https://api.openai.com",
    "credential": b"c" * 16,
    "method": "POST",
    "path": "/v1/chat/completions",
    "query": "",
    "headers": [(b"accept", b"application/json")],
    "content_type": b"application/json",
    "encoding": b"",
    "streams": False,
    "variant": b"",
    "idempotency_key": b"",
    "transform": b"",
    "body": b'{"model":"gpt-4o"}',
}

CHANGES: dict[str, Any] = {
    "config_version": 8,
    "scope": b"t" * 16,
    "provider": "mistral",
    "origin": "https://api.openai.com:8443",
    "credential": b"d" * 16,
    "method": "GET",
    "path": "/v1/completions",
    "query": "a=1",
    "headers": [(b"accept", b"text/event-stream")],
    "content_type": b"text/plain",
    "encoding": b"gzip",
    "streams": True,
    "variant": b"1",
    "idempotency_key": b"1",
    "transform": b"1",
    "body": b'{"model":"gpt-4o" }',
}


def test_every_input_of_a_request_is_decided_in_or_out() -> None:
    """``FIELDS`` and the parameters of ``flight_hasher`` name the same inputs but for the body, none with a default,
    and each out has a reason."""
    parameters = list(inspect.signature(flight_hasher).parameters.values())[1:]
    decided_in = {name for name, why in FIELDS.items() if why.startswith("IN: ")}
    decided_out = {name for name, why in FIELDS.items() if why.startswith("OUT: ")}
    assert decided_in - {"body"} == {parameter.name for parameter in parameters}
    assert decided_in | decided_out == FIELDS.keys()
    assert all(parameter.default is inspect.Parameter.empty for parameter in parameters)
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters)
    assert all(len(why) > len("OUT: ") + 8 for why in FIELDS.values())


def test_key_is_32_bytes_and_a_function_of_its_inputs() -> None:
    """Equal requests meet, also across processes with the same secret."""
    key = flight_key(SECRET, **REQUEST)
    assert len(key) == 32
    assert flight_key(bytes(SECRET), **{name: REQUEST[name] for name in reversed(REQUEST)}) == key


@pytest.mark.parametrize("name", sorted(REQUEST))
def test_change_of_any_keyed_input_changes_the_key(name: str) -> None:
    """No input is forgotten on its way into the hash."""
    assert flight_key(SECRET, **{**REQUEST, name: CHANGES[name]}) != flight_key(SECRET, **REQUEST)


def test_key_cannot_be_computed_without_the_secret() -> None:
    """Somebody who sees keys in a log cannot test guesses against them."""
    assert flight_key(b"x" * 32, **REQUEST) != flight_key(SECRET, **REQUEST)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"path": "/v1/ab", "query": "c"}, {"path": "/v1/a", "query": "bc"}),
        ({"variant": b"ab", "idempotency_key": b"c"}, {"variant": b"a", "idempotency_key": b"bc"}),
        ({"variant": b"a", "idempotency_key": b""}, {"variant": b"", "idempotency_key": b"a"}),
        ({"transform": b"a", "body": b"b"}, {"transform": b"", "body": b"ab"}),
        ({"headers": [(b"a", b"bc")]}, {"headers": [(b"ab", b"c")]}),
        ({"headers": [(b"a", b"b"), (b"c", b"d")]}, {"headers": [(b"a", b"bcd")]}),
        ({"headers": []}, {"headers": [(b"", b"")]}),
        ({"provider": "é", "origin": "x"}, {"provider": "Ã", "origin": "©x"}),
        ({"body": b"\0"}, {"body": b""}),
    ],
)
def test_moving_bytes_between_neighbouring_fields_changes_the_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Lengths stand in front, so there is no separator to play with."""
    assert flight_key(SECRET, **{**REQUEST, **one}) != flight_key(SECRET, **{**REQUEST, **other})


def test_digests_for_different_purposes_are_unrelated() -> None:
    """One secret, but what identifies a scope says nothing about an id in a log."""
    scope = digest16(SECRET, b"scope", b"sk-1")
    assert len(scope) == 16
    assert scope == blake2b(b"sk-1", key=SECRET, digest_size=16, person=b"scope").digest()
    assert len({scope, digest16(SECRET, b"log", b"sk-1"), digest16(SECRET, b"scope", b"sk-2")}) == 3
    assert digest16(b"other", b"scope", b"sk-1") != scope


def test_idempotency_index_keeps_scopes_apart() -> None:
    """The same key from two tenants is two operations, wherever scope ends and key begins."""
    index = idempotency_index(SECRET, b"ab", b"c")
    assert len(index) == 32
    assert idempotency_index(SECRET, b"ab", b"c") == index
    assert idempotency_index(SECRET, b"a", b"bc") != index
    assert idempotency_index(b"other", b"ab", b"c") != index
