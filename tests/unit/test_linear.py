"""Regular expressions that cannot be made slow."""

from __future__ import annotations

import time

import pytest

from proxy.linear import MAX_PATTERN_CHARS, Expression, ExpressionSet, PatternError


def test_the_leftmost_match_is_found_with_its_place_in_bytes() -> None:
    """A place counts bytes, so that the text need not be decoded."""
    text = "für 42 Äpfel".encode()
    span = Expression(r"\d+").search(text)
    assert span is not None
    assert text[slice(*span)] == b"42"


def test_matches_do_not_overlap_and_are_bounded() -> None:
    """As many as were asked for, empty ones left out."""
    assert Expression("a*").find(b"aa b aaa a", 2) == [(0, 2), (5, 8)]


def test_named_groups_say_what_they_took_of_a_whole_match() -> None:
    """One that took no part is left out."""
    expression = Expression(r"(?P<who>\w+) is (?:(?P<what>\pL+)|(?P<year>\d+))")
    assert expression.names == {"who", "what", "year"}
    assert expression.groups("it is grün".encode()) == {"who": "it", "what": "grün"}
    assert expression.groups(b"it is 2026") == {"who": "it", "year": "2026"}
    assert expression.groups(b"it is 2026!") is None


def test_a_pattern_may_have_to_match_the_whole_text() -> None:
    """Search and whole match are different questions."""
    assert Expression("hi", ignore_case=True).matches_whole(b"HI")
    assert not Expression("hi").matches_whole(b"hi there")


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(a", "missing )"),
        (r"(a)\1", "invalid escape"),
        ("(?=a)", "invalid perl operator"),
        ("((a{1,100}){1,100}){1,100}", "pattern too large|invalid repetition size|bad repetition"),
        ("a" * (MAX_PATTERN_CHARS + 1), "longer than"),
        ("\ud800", "surrogate"),
    ],
)
def test_what_is_no_pattern_or_too_large_is_refused_with_the_reason(pattern: str, why: str) -> None:
    """Before it is ever run."""
    with pytest.raises(PatternError, match=why.replace(")", r"\)")):
        Expression(pattern)


def test_many_patterns_are_found_in_one_pass() -> None:
    """The set says which of them occur."""
    many = ExpressionSet(["red", "gr(e|a)y", "blue"])
    assert many.which(b"blue and gray") == [1, 2]
    assert ExpressionSet(["red", "blue"], whole=True).which(b"blue and red") == []
    assert ExpressionSet([]).which(b"anything") == []


def test_a_pattern_that_ruins_a_backtracking_engine_stays_linear() -> None:
    """Four times the text takes about four times as long, not four to the power of something."""
    hostile = Expression("(a+)+$|(a|aa)+b|(.*a){12}c")

    def measure(size: int) -> float:
        text = b"a" * size + b"!"
        times = []
        for _ in range(5):
            begun_at = time.perf_counter()
            assert hostile.search(text) is None
            times.append(time.perf_counter() - begun_at)
        return min(times)

    assert measure(1 << 18) < 40 * measure(1 << 14)
