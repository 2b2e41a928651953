"""What an attempt came to, and what that means for the next one, for the target's health and for the caller."""

from __future__ import annotations

from typing import Final

from proxy.errors import ProxyError, Retry
from proxy.failover.attempt import Attempt
from proxy.protocol.events import Cause, Fault
from proxy.protocol.message import HeaderList
from proxy.upstream.outcomes import Outcome
from proxy.upstream.retries import Why, judge

# The caller's own credential is the only one there is.
_ABOUT_THE_KEY: Final = frozenset((Cause.DEAD_KEY, Cause.FORBIDDEN, Cause.SPENT))


class Upshot:
    """What one attempt came to."""

    # Frozen after construction; a class for its defaults.
    __slots__ = ("again", "attempt", "error", "fault", "free", "outcome", "retry_after_s", "why")

    def __init__(
        self,
        why: str,
        outcome: Outcome,
        *,
        again: bool,
        free: bool = False,
        attempt: Attempt | None = None,
        fault: Fault | None = None,
        error: ProxyError | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.why = why
        """Low-cardinality: a word of ``upstream.retries``, or another; empty for an answer."""
        self.outcome = outcome
        """For the health of the target."""
        self.again = again
        """Another attempt may be made."""
        self.free = free
        """The upstream was not asked: moving on costs it nothing and needs nobody's leave."""
        self.attempt = attempt
        self.fault = fault
        self.error = error
        self.retry_after_s = retry_after_s

    @property
    def ejected(self) -> bool:
        """The target was ejected while it was asked."""
        return self.attempt is not None and self.attempt.place.outlived

    @property
    def retry_why(self) -> Why | None:
        """The word under which the gates know the failure."""
        failure = self.fault or self.error
        verdict = judge(failure) if failure is not None else None
        return verdict.why if verdict is not None else None


def judge_fault(fault: Fault, attempt: Attempt, *, own: bool, unsafe: bool) -> Upshot:
    """What came of an attempt that was refused. ``own``: with the caller's credential; ``unsafe``: what may have been
    answered and charged may be asked for again."""
    verdict = judge(fault)
    if verdict is None:
        return Upshot(fault.cause.name.lower(), Outcome.NEUTRAL, again=False, attempt=attempt, fault=fault)
    outcome = Outcome.NEUTRAL if own and fault.cause is Cause.THROTTLED else _outcome_of(fault)
    again = (unsafe or not verdict.unsafe) and not (own and fault.cause in _ABOUT_THE_KEY)
    return Upshot(
        verdict.why,
        outcome,
        again=again,
        attempt=attempt,
        fault=fault,
        retry_after_s=fault.retry_after_s,
    )


def _outcome_of(fault: Fault) -> Outcome:
    """What a refusal says about the target."""
    cause = fault.cause
    if cause is Cause.OVERLOADED and fault.status == 503:
        return Outcome.BUSY
    if cause in (Cause.THROTTLED, Cause.OVERLOADED):
        return Outcome.THROTTLED
    if cause is Cause.TIMED_OUT:
        return Outcome.TIMED_OUT
    return Outcome.FAILED if cause.value.blames_target else Outcome.NEUTRAL


def judge_error(error: ProxyError, attempt: Attempt, *, unsafe: bool) -> Upshot:
    """What came of an attempt that broke off, or never got there."""
    verdict = judge(error)
    if verdict is None:
        return Upshot(error.why, Outcome.NEUTRAL, again=False, attempt=attempt, error=error)
    if verdict.why == "crowded":
        return Upshot(verdict.why, Outcome.NEUTRAL, again=True, free=True, error=error)
    timed_out = verdict.why == "timeout"
    return Upshot(
        verdict.why,
        Outcome.TIMED_OUT if timed_out else Outcome.FAILED,
        again=unsafe or not verdict.unsafe,
        attempt=attempt,
        error=error,
    )


def refusal_headers(fault: Fault, length: int) -> HeaderList:
    headers: HeaderList = [(b"content-type", b"application/json"), (b"content-length", b"%d" % length)]
    after_s = fault.retry_after_s
    if after_s is not None:
        headers.append((b"retry-after", b"%d" % -(-after_s // 1)))
        headers.append((b"retry-after-ms", b"%d" % (after_s * 1e3)))
    if fault.cause.retry is Retry.NO or (fault.cause.value.blames_key and fault.cause is not Cause.THROTTLED):
        headers.append((b"x-should-retry", b"false"))
    return headers
