"""What a caller is told about limits: refusals, and the header lines of those that were let through.

The headers are the vendors' own (``x-ratelimit-limit-requests`` and its kin), because SDKs, dashboards and people
read those; what they speak of is this proxy's account of the caller, not the vendor's of the proxy.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from proxy.config.keys import Budget
from proxy.errors import Kind, ProxyError

PICODOLLARS: Final = 10**12
_NOUNS: Final = {"key": "this key", "team": "this key's team", "tenant": "this key's tenant"}
_WINDOWS: Final = {"day": "for today (UTC)", "month": "for this month (UTC)", "total": "in total"}
_BUSY_S: Final = 1.0


def rate_refused(kind: str, what: str, per_minute: int, wait_s: float) -> ProxyError:
    """429: ``what`` (``requests`` or ``tokens``) of the ``kind`` of account come too fast."""
    public = (
        f"Rate limit reached for {_NOUNS[kind]}: {per_minute} {what} per minute. Try again in {_duration(wait_s)}."
    )
    return ProxyError(Kind.RATE_LIMITED, public, why=f"{kind}_{what}", retry_after_s=wait_s)


def crowd_refused(kind: str, concurrent: int) -> ProxyError:
    """429: as many requests as may run at once are running."""
    public = f"Rate limit reached for {_NOUNS[kind]}: {concurrent} requests at once. Try again when one has ended."
    return ProxyError(Kind.RATE_LIMITED, public, why=f"{kind}_concurrent", retry_after_s=_BUSY_S)


def budget_spent(kind: str, budget: Budget, need: int, window_ends_at: float | None) -> ProxyError:
    """402: the budget does not bear what the request may cost. Money is rounded up to a hundredth of a cent."""
    public = (
        f"The budget of {_NOUNS[kind]} is spent: {_dollars(budget.picodollars)} {_WINDOWS[budget.period]}, of which "
        f"less is left than the {_dollars(need)} that this request may cost."
    )
    if window_ends_at is not None and budget.period != "total":
        public += f" It is renewed at {datetime.fromtimestamp(window_ends_at, UTC):%Y-%m-%dT%H:%M:%SZ}."
    return ProxyError(Kind.BUDGET_SPENT, public, why=f"{kind}_budget_{budget.period}")


def budget_unknown(kind: str) -> ProxyError:
    """503: whether the budget bears it cannot be found out at the moment."""
    public = f"The budget of {_NOUNS[kind]} cannot be checked at the moment. Try again."
    return ProxyError(Kind.BUDGET_UNAVAILABLE, public, why=f"{kind}_budget_unavailable", retry_after_s=_BUSY_S)


def budget_crowded(kind: str) -> ProxyError:
    """503: too many requests wait for money already."""
    public = f"Too many requests wait for the budget of {_NOUNS[kind]}. Try again."
    return ProxyError(Kind.OVERLOADED, public, why=f"{kind}_budget_queue", retry_after_s=_BUSY_S)


def unpriced_refused(kind: str) -> ProxyError:
    """402: the request costs nobody knows what, and the operator wants no such requests under a budget."""
    public = f"The price of this model is not known here, and {_NOUNS[kind]} has a budget."
    return ProxyError(Kind.BUDGET_SPENT, public, why=f"{kind}_unpriced")


def limit_lines(what: bytes, limit: int, remaining: int, reset_s: float) -> bytes:
    """The three header lines of one limit."""
    return _limit_frame(what, limit) % (remaining, _reset(reset_s))


@lru_cache(maxsize=1024)
def _limit_frame(what: bytes, limit: int) -> bytes:
    """The lines but for what changes from one request to the next."""
    frame = b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%b\r\n"
    return frame % (what, limit, what, what)


def _reset(seconds: float) -> bytes:
    """As the vendors write it: ``120ms``, ``8.64s``, ``6m0s``."""
    if seconds < 1.0:
        return b"%dms" % -int(-seconds * 1000 // 1)
    if seconds < 59.995:
        return b"%.2fs" % seconds
    return b"%dm%ds" % divmod(round(seconds), 60)


def _duration(seconds: float) -> str:
    """The same for people."""
    if seconds < 1.0:
        return f"{-int(-seconds * 1000 // 1)}ms"
    if seconds < 60.0:
        return f"{round(seconds, 2):g}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s"


def _dollars(picodollars: int) -> str:
    units = -(-picodollars * 10_000 // PICODOLLARS)
    text = f"${units / 10_000:,.4f}"
    return text.removesuffix("00")
