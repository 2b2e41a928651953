"""What callers are told about limits."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.limits_answers import (
    budget_crowded,
    budget_spent,
    budget_unknown,
    crowd_refused,
    limit_lines,
    rate_refused,
    unpriced_refused,
)
from proxy.config.keys import Budget
from proxy.errors import Kind


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, b"0ms"), (0.0001, b"1ms"), (0.12, b"120ms"), (1.0, b"1.00s"), (8.64, b"8.64s"), (59.999, b"1m0s"),
     (360.0, b"6m0s"), (3600.4, b"60m0s")],
)  # fmt: skip
def test_a_reset_is_written_as_the_vendors_write_it(seconds: float, said: bytes) -> None:
    """Never sooner than it is, to the millisecond."""
    assert limit_lines(b"requests", 60, 7, seconds) == (
        b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 7\r\n"
        b"x-ratelimit-reset-requests: " + said + b"\r\n"
    )


@given(st.floats(0, 10**7))
def test_every_reset_is_a_duration(seconds: float) -> None:
    """Whoever parses one can parse all."""
    line = limit_lines(b"tokens", 1, 0, seconds).split(b"\r\n")[2]
    assert re.fullmatch(rb"x-ratelimit-reset-tokens: ([0-9]+ms|[0-9]+\.[0-9]{2}s|[0-9]+m[0-9]{1,2}s)", line)


@pytest.mark.parametrize("kind", ["key", "team", "tenant"])
def test_refusals_name_the_account_for_people_and_for_metrics(kind: str) -> None:
    """The status says whether it is the caller's pace, the caller's money or our own trouble."""
    budget = Budget(10**12, "day")
    found = {
        error.why: (error.kind, error.kind.status, error.kind.value.should_retry)
        for error in (
            rate_refused(kind, "requests", 60, 1.0),
            crowd_refused(kind, 3),
            budget_spent(kind, budget, 10**9, None),
            budget_unknown(kind),
            budget_crowded(kind),
            unpriced_refused(kind),
        )
    }
    assert found == {
        f"{kind}_requests": (Kind.RATE_LIMITED, 429, True),
        f"{kind}_concurrent": (Kind.RATE_LIMITED, 429, True),
        f"{kind}_budget_day": (Kind.BUDGET_SPENT, 402, False),
        f"{kind}_budget_unavailable": (Kind.BUDGET_UNAVAILABLE, 503, True),
        f"{kind}_budget_queue": (Kind.OVERLOADED, 503, True),
        f"{kind}_unpriced": (Kind.BUDGET_SPENT, 402, False),
    }


@pytest.mark.parametrize(
    ("need", "said"), [(1, "$0.0001"), (10**8, "$0.0001"), (10**10, "$0.01"), (1_234_567 * 10**12, "$1,234,567.00")]
)
def test_money_is_rounded_up_to_a_hundredth_of_a_cent(need: int, said: str) -> None:
    """Nobody is told that a request costs nothing."""
    assert f"than the {said} that" in budget_spent("key", Budget(1, "total"), need, None).public
