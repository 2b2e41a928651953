"""The neutral vocabulary of an answer, whole or streamed: what readers of a dialect yield and writers take.

The order is ``Head``, then pieces (``Delta``, ``Thought``, ``Proof``, ``ToolDelta``, ``Declined``) as the model
produced them, then one ``Finish`` for each choice, then ``End``. ``UsageReport`` may come at any time after the head,
and a later one replaces an earlier one. A ``Fault`` ends the answer at any place; nothing follows it. A whole answer
is the same list of events, each piece in one.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, NamedTuple

from proxy.errors import Retry
from proxy.protocol.usage import Usage


class Head(NamedTuple):
    """The answer has begun."""

    id: str
    """As the upstream named it; may be empty."""
    model: str
    created_s: int = 0
    """Unix time, 0 where the dialect does not say."""


class Delta(NamedTuple):
    """Text of the answer."""

    text: str
    choice: int = 0
    logprobs: Any = None
    """As the upstream gave them; chat completions only."""


class Thought(NamedTuple):
    """Text of the model's reasoning."""

    text: str
    choice: int = 0


class Proof(NamedTuple):
    """The thought so far is complete, and this is what its maker wants to see again."""

    signature: str
    choice: int = 0
    redacted: str = ""
    """The thought itself in encryption; no text came before it."""


class ToolDelta(NamedTuple):
    """A call of a tool: the first of a ``slot`` has its id and name, each adds to the JSON text of the arguments."""

    slot: int
    """0, 1 … in the order of appearance within the choice."""
    id: str = ""
    name: str = ""
    arguments: str = ""
    choice: int = 0
    signature: str = ""


class Declined(NamedTuple):
    """Text in which the model refuses."""

    text: str
    choice: int = 0


class Reason(Enum):
    """Why a choice ended."""

    STOP = "stop"
    STOP_SEQUENCE = "stop_sequence"
    LENGTH = "length"
    TOOLS = "tools"
    FILTERED = "filtered"
    """A filter of the vendor cut it off, or the model refused."""
    PAUSED = "paused"
    """The vendor wants to be asked again with what there is."""
    BROKEN = "broken"
    """The upstream gave up."""


class Finish(NamedTuple):
    reason: Reason
    choice: int = 0
    stop_sequence: str | None = None
    explanation: str = ""


class UsageReport(NamedTuple):
    usage: Usage


class End(NamedTuple):
    """The upstream said that the answer is complete."""


class CauseRow(NamedTuple):
    openai_status: int
    openai_type: str
    code: str
    anthropic_status: int
    anthropic_type: str
    gemini_status: str
    retry: Retry
    blames_key: bool = False
    """The credential is at fault: another key of the same provider may do."""
    blames_target: bool = False
    """Counts against the health of the target."""


_INVALID = "invalid_request_error"


class Cause(Enum):
    """Why an upstream did not answer as asked, and what another attempt may do. The value is its row."""

    # The caller did not choose the credential, so that a 401 would send it looking in the wrong place.
    DEAD_KEY = CauseRow(
        502, "api_error", "upstream_credential", 500, "api_error", "INTERNAL", Retry.OTHER, blames_key=True
    )
    FORBIDDEN = CauseRow(
        403, "permission_error", "forbidden", 403, "permission_error", "PERMISSION_DENIED", Retry.OTHER,
        blames_key=True,
    )
    SPENT = CauseRow(
        429, "insufficient_quota", "insufficient_quota", 402, "billing_error", "RESOURCE_EXHAUSTED", Retry.OTHER,
        blames_key=True,
    )
    """The account behind the key has no money or no quota left; waiting does not help."""
    THROTTLED = CauseRow(
        429, "rate_limit_error", "rate_limit_exceeded", 429, "rate_limit_error", "RESOURCE_EXHAUSTED", Retry.OTHER,
        blames_key=True,
    )
    OVERLOADED = CauseRow(
        503, "service_unavailable_error", "server_is_overloaded", 529, "overloaded_error", "UNAVAILABLE",
        Retry.OTHER, blames_target=True,
    )
    FAILED = CauseRow(
        502, "api_error", "upstream_error", 500, "api_error", "INTERNAL", Retry.OTHER, blames_target=True
    )
    TIMED_OUT = CauseRow(
        504, "timeout_error", "upstream_timeout", 504, "timeout_error", "DEADLINE_EXCEEDED", Retry.OTHER,
        blames_target=True,
    )
    CUT_OFF = CauseRow(
        502, "api_error", "upstream_incomplete", 500, "api_error", "INTERNAL", Retry.OTHER, blames_target=True
    )
    """The answer stopped without its end, or was no answer of this dialect."""
    CONTEXT_LENGTH = CauseRow(
        400, _INVALID, "context_length_exceeded", 400, _INVALID, "INVALID_ARGUMENT", Retry.NO
    )
    CONTENT_FILTER = CauseRow(400, _INVALID, "content_filter", 400, _INVALID, "INVALID_ARGUMENT", Retry.NO)
    TOO_LARGE = CauseRow(
        413, _INVALID, "request_too_large", 413, "request_too_large", "INVALID_ARGUMENT", Retry.NO
    )
    NOT_FOUND = CauseRow(404, _INVALID, "model_not_found", 404, "not_found_error", "NOT_FOUND", Retry.OTHER)
    """No such model or path there; another target may have it."""
    CONFLICT = CauseRow(409, "conflict_error", "conflict", 409, "conflict_error", "ABORTED", Retry.OTHER)
    BAD_REQUEST = CauseRow(400, _INVALID, "bad_request", 400, _INVALID, "INVALID_ARGUMENT", Retry.NO)

    @property
    def retry(self) -> Retry:
        return self.value.retry


class Fault(NamedTuple):
    """An upstream's refusal, as a whole answer or inside a stream."""

    cause: Cause
    message: str
    """For the caller: the upstream's words, unless they could show a credential."""
    status: int = 0
    """As the upstream sent it; 0 inside a stream."""
    code: str = ""
    """The upstream's own word, empty if it had none."""
    param: str | None = None
    retry_after_s: float | None = None
    detail: str = ""
    """For the log: the upstream's words where ``message`` hides them."""


Event = Head | Delta | Thought | Proof | ToolDelta | Declined | Finish | UsageReport | Fault | End

MAX_MESSAGE_CHARS: Final = 4000
