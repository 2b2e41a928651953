"""What looks like a credential does not reach a log, and what does not stays readable."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.telemetry.redact import _SHAPES, hide_named, is_suspect, redact, redact_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sk-proj-abcdefgh12345678", "sk-…"),
        ("key sk-ant-api03-abcdefghijkl, used", "key sk-…, used"),
        ("sf-0123456789abcdefghij", "sf-…"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer …"),
        ("authorization: bearer  abcdefgh", "authorization: bearer  …"),
        ("Basic dXNlcjpwYXNz", "Basic …"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIA…"),
        ("https://user:pw@host.example/x", "https://…@host.example/x"),
        ("hf_abcdefghijklmnop", "hf_…"),
        ("line\nsk-abcdefghijkl", "line\nsk-…"),
    ],
)
def test_a_credential_in_a_text_is_masked(text, expected):
    """Its first letters stay, so that one kind can be told from another."""
    assert redact_text(text) == expected


@pytest.mark.parametrize(
    "text",
    ["gpt-4o-mini", "task-complexity-router", "sk-short", "https://host.example/a@b", "req_abcdef01", "risk-x"],
)
def test_a_text_without_a_credential_stays_as_it_is(text):
    """Masking too much makes logs useless."""
    assert redact_text(text) == text


def test_a_value_under_a_secret_name_is_hidden_whatever_it_looks_like():
    """Some vendors' keys have no shape of their own."""
    names = ("authorization", "X-Api-Key", "openai_api_key", "password", "set-cookie", "db.password", "key_secret")
    assert {hide_named(name, "abcdef") for name in names} == {"…"}


def test_a_value_under_another_name_is_kept():
    """A digest prefix and a number of tokens are no secrets."""
    values = {"key_id": "ab12", "tokens_in": 5, "cache_key": "x", "api_key": ""}
    assert {name: hide_named(name, value) for name, value in values.items()} == values


def test_nested_values_are_masked_too():
    """Headers, lists of them, bytes, and objects that only have a ``repr``."""

    class Thing:
        def __repr__(self):
            return "<Thing sk-abcdefghijkl>"

    value = {
        "headers": [(b"x-api-key", b"0123456789abcdef"), (b"accept", b"*/*")],
        b"authorization": "raw",
        "deep": {"list": [b"Bearer abcdefgh", 1, None, True]},
        "thing": Thing(),
    }
    assert redact(value) == {
        "headers": [["x-api-key", "…"], ["accept", "*/*"]],
        "authorization": "…",
        "deep": {"list": ["Bearer …", 1, None, True]},
        "thing": "<Thing sk-…>",
    }


def test_a_value_that_contains_itself_ends():
    """Depth is bounded."""
    value = []
    value.append(value)
    assert "…" in str(redact(value))


_WORDS = "sk- SF- pk_ rk- gsk_ xai- hf_ ghp_ AKIA AIza bearer BeArEr basic :// @ abcdefgh 0123456789abcdef"
_PIECES = st.sampled_from([*_WORDS.split(), " "])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(_PIECES, st.text(max_size=3)), max_size=6).map("".join))
def test_the_quick_look_never_misses_what_the_pattern_finds(text):
    """It is only there to be quick."""
    assert is_suspect(text) or _SHAPES.search(text) is None
