"""Every way a request can fail, as one class and one table.

``Kind`` is the table: a row decides the HTTP status, the words each dialect uses on the wire, whether the
caller should try again, and how loud the log is. ``ProxyError`` carries a kind with the text for the client
(``public``) and the text for the operator (``detail``). Constructing an error never logs, never allocates I/O
and never keeps a traceback alive: a flight hands the same instance to all of its subscribers, each of which
renders its own answer from it.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Side(Enum):
    """Who is at fault; a client that went away must never count against an upstream."""

    CLIENT = "client"
    UPSTREAM = "upstream"
    SELF = "self"


class Retry(Enum):
    """What another attempt inside the same flight may do; decided where the error is born."""

    NO = "no"
    SAME = "same"
    """Nothing was sent or nothing was read: the same target may be tried on a fresh connection."""
    OTHER = "other"
    """Only another target can help."""


class Row(NamedTuple):
    status: int
    code: str
    openai_type: str
    anthropic_type: str
    side: Side
    should_retry: bool | None
    """Value of ``x-should-retry``; ``None`` leaves the decision to the SDK."""
    level: str
    """Log level of the access line: ``debug``, ``info``, ``warning`` or ``error``."""


_C, _U, _S = Side.CLIENT, Side.UPSTREAM, Side.SELF
_INVALID = "invalid_request_error"
_BUSY = "service_unavailable_error"


class Kind(Enum):
    """One member for each failure; the value is its row. Codes are stable: users match on them."""

    BAD_REQUEST = Row(400, "bad_request", _INVALID, _INVALID, _C, False, "info")
    BAD_JSON = Row(400, "invalid_json", _INVALID, _INVALID, _C, False, "info")
    AMBIGUOUS_CREDENTIAL = Row(400, "ambiguous_credential", _INVALID, _INVALID, _C, False, "info")
    GUARD_BLOCKED = Row(400, "content_policy_violation", _INVALID, _INVALID, _C, False, "info")
    UPGRADE_REFUSED = Row(400, "upgrade_refused", _INVALID, _INVALID, _C, False, "info")
    INVALID_KEY = Row(401, "invalid_api_key", "authentication_error", "authentication_error", _C, False, "info")
    BUDGET_SPENT = Row(402, "budget_exceeded", "insufficient_quota", "billing_error", _C, False, "info")
    FORBIDDEN = Row(403, "forbidden", "permission_error", "permission_error", _C, False, "info")
    NOT_FOUND = Row(404, "not_found", _INVALID, "not_found_error", _C, False, "info")
    METHOD_NOT_ALLOWED = Row(405, "method_not_allowed", _INVALID, _INVALID, _C, False, "info")
    REQUEST_TIMEOUT = Row(408, "request_timeout", "timeout_error", "timeout_error", _C, None, "info")
    IDEMPOTENCY_BUSY = Row(409, "idempotency_in_progress", "conflict_error", "conflict_error", _C, True, "info")
    TOO_LARGE = Row(413, "request_too_large", _INVALID, "request_too_large", _C, False, "info")
    URI_TOO_LONG = Row(414, "uri_too_long", _INVALID, _INVALID, _C, False, "info")
    BAD_ENCODING = Row(415, "bad_encoding", _INVALID, _INVALID, _C, False, "info")
    IDEMPOTENCY_MISMATCH = Row(422, "idempotency_mismatch", _INVALID, _INVALID, _C, False, "info")
    RATE_LIMITED = Row(429, "rate_limit_exceeded", "rate_limit_error", "rate_limit_error", _C, True, "info")
    HEADERS_TOO_LARGE = Row(431, "headers_too_large", _INVALID, _INVALID, _C, False, "info")
    CLIENT_GONE = Row(499, "client_gone", "client_error", "api_error", _C, None, "info")
    NOT_CACHED = Row(504, "not_cached", _INVALID, _INVALID, _C, False, "info")
    PROXY_LOOP = Row(508, "proxy_loop", _INVALID, _INVALID, _C, False, "warning")

    UPSTREAM_UNREACHABLE = Row(502, "upstream_unreachable", "api_error", "api_error", _U, True, "warning")
    UPSTREAM_TLS = Row(502, "upstream_tls", "api_error", "api_error", _U, False, "error")
    UPSTREAM_RESET = Row(502, "upstream_reset", "api_error", "api_error", _U, None, "warning")
    UPSTREAM_BAD_RESPONSE = Row(502, "upstream_bad_response", "api_error", "api_error", _U, None, "warning")
    UPSTREAM_TOO_LARGE = Row(502, "upstream_response_too_large", "api_error", "api_error", _U, False, "warning")
    UPSTREAM_TIMEOUT = Row(504, "upstream_timeout", "timeout_error", "timeout_error", _U, False, "warning")
    PATIENCE = Row(504, "caller_deadline", "timeout_error", "timeout_error", _U, None, "warning")

    OVERLOADED = Row(503, "server_is_overloaded", _BUSY, "overloaded_error", _S, True, "warning")
    AUTH_UNAVAILABLE = Row(503, "auth_unavailable", _BUSY, "overloaded_error", _S, True, "error")
    BUDGET_UNAVAILABLE = Row(503, "budget_unavailable", _BUSY, "overloaded_error", _S, True, "error")
    USAGE_UNAVAILABLE = Row(503, "usage_unavailable", _BUSY, "overloaded_error", _S, True, "error")
    GUARD_FAILED = Row(503, "guard_unavailable", _BUSY, "overloaded_error", _S, True, "error")
    DRAINING = Row(503, "draining", _BUSY, "overloaded_error", _S, True, "info")
    SLOW_READER = Row(503, "slow_reader", _BUSY, "api_error", _S, None, "warning")
    BUG = Row(500, "internal_error", "api_error", "api_error", _S, None, "error")

    @property
    def status(self) -> int:
        return self.value.status

    @property
    def code(self) -> str:
        return self.value.code

    @property
    def side(self) -> Side:
        return self.value.side


class ProxyError(Exception):
    """A failure that has an answer.

    ``public`` goes to the client and must not name hosts, credentials or code; ``detail`` goes to the log only.
    ``retry_after_s`` becomes ``Retry-After`` and ``retry-after-ms``. ``why`` is a low-cardinality word for the
    metric (``connect``, ``first_byte``, ``idle`` …).
    """

    __slots__ = ("detail", "kind", "public", "retry", "retry_after_s", "why")

    def __init__(
        self,
        kind: Kind,
        public: str,
        *,
        detail: str = "",
        why: str = "",
        retry: Retry = Retry.NO,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(public)
        self.kind = kind
        self.public = public
        self.detail = detail
        self.why = why or kind.code
        self.retry = retry
        self.retry_after_s = retry_after_s

    def freed(self) -> ProxyError:
        """This error, without the frames that it came through. They know whoever catches it, so who keeps an error
        frees it first: else every refusal is a circle of everything that the request was, left to the collector."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self

    def __str__(self) -> str:
        return f"{self.kind.code}: {self.public}" + (f" ({self.detail})" if self.detail else "")


class StoreError(Exception):
    """The store did not do what it was asked. ``why`` is a low-cardinality word for the metric."""

    __slots__ = ("transient", "why")

    def __init__(self, why: str, detail: str = "", *, transient: bool = True) -> None:
        super().__init__(f"{why}: {detail}" if detail else why)
        self.why = why
        """``unavailable``, ``timeout``, ``read_only``, ``full``, ``conflict``, ``schema``, ``closed`` …"""
        self.transient = transient
        """The same call may succeed later; ``False``: somebody has to act."""
