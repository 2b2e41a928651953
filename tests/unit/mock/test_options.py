"""Options and how a request overrides them."""

from __future__ import annotations

import pytest

from proxy.mock.options import Fault, MockOptions, override, split_model


def test_model_name_with_options_gives_both() -> None:
    """The suffix is taken off the name, and each value has its type."""
    name, options = split_model(MockOptions(tokens=5), "gpt-4o?fault=429&fail_first=1&latency_ms=50&usage=off")
    assert name == "gpt-4o"
    assert options == MockOptions(tokens=5, fault=Fault.TOO_MANY, fail_first=1, latency_ms=50.0, usage=False)


def test_model_name_without_options_changes_nothing() -> None:
    """Most names are names."""
    options = MockOptions()
    assert split_model(options, "gpt-4o") == ("gpt-4o", options)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("colour", "blue", "no mock option 'colour'"),
        ("require_key", "0", "no mock option"),
        ("tokens", "1.5", "cannot be '1.5'"),
        ("latency_ms", "nan", "cannot be 'nan'"),
        ("latency_ms", "-1", "between"),
        ("fault", "404", "cannot be '404'"),
        ("usage", "perhaps", "cannot be 'perhaps'"),
        ("fault_rate", "2", "between"),
    ],
)
def test_override_that_makes_no_sense_is_refused(name: str, value: str, complaint: str) -> None:
    """A typing mistake in a test must not pass as the default."""
    with pytest.raises(ValueError, match=complaint):
        override(MockOptions(), [(name, value)])


def test_header_form_of_a_name_is_understood() -> None:
    """Headers have hyphens where options have underscores."""
    assert override(MockOptions(), [("latency-ms", "7")]).latency_ms == 7.0
