"""Failures as the client's SDK expects them: bodies, headers and the last event of a broken stream.

Only ``ProxyError.public`` is ever rendered; details, hosts and stack traces stay in the log. A whole upstream error
that arrives after the client's 200 was sent is turned into such an event too.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from proxy.errors import ProxyError
from proxy.protocol import sse
from proxy.protocol.message import HeaderList
from proxy.protocol.routes import Dialect, Grammar, grammar_of

_JSON_TYPE: Final = (b"content-type", b"application/json")
_MAX_RETRY_AFTER_S: Final = 86_400.0
_MAX_UPSTREAM_ERROR_BYTES: Final = 65_536
_BLANKED: Final = str.maketrans(dict.fromkeys([*range(32), 127], " "))

# Anthropic's word for a status, for errors of an upstream that gave no usable body.
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OPENAI_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


def error_body(error: ProxyError, dialect: Dialect, request_id: str) -> bytes:
    """The JSON body of an answer to a failed request.

    OpenAI: ``{"error": {message, type, param, code}}``; Anthropic: ``{type, error: {type, message}, request_id}``;
    Mistral: ``{object, message, type, param, code}``.
    """
    row = error.kind.value
    if dialect is Dialect.ANTHROPIC:
        return _anthropic(row.anthropic_type, error.public, request_id)
    members = _openai_members(error)
    if dialect is Dialect.MISTRAL:
        return orjson.dumps({"object": "error", **members})
    return orjson.dumps({"error": members})


def error_headers(error: ProxyError, request_id: str, dialect: Dialect = Dialect.OPENAI) -> HeaderList:
    """The headers of such an answer, framing left out. ``request_id`` is the id of the client's request with us; the
    SDKs read it where the vendor would have put its own."""
    rid = request_id.encode("latin-1", "replace")
    headers: HeaderList = [_JSON_TYPE, (b"x-request-id", rid)]
    if dialect is Dialect.ANTHROPIC:
        headers.append((b"request-id", rid))
    should_retry = error.kind.value.should_retry
    if should_retry is not None:
        headers.append((b"x-should-retry", b"true" if should_retry else b"false"))
    if error.retry_after_s is not None:
        wait_s = min(max(error.retry_after_s, 0.0), _MAX_RETRY_AFTER_S)
        # Whole seconds rounded up (RFC 9110, 10.2.3), and the exact time for the SDKs that read it.
        headers.append((b"retry-after", b"%d" % -int(-wait_s // 1)))
        headers.append((b"retry-after-ms", b"%d" % round(wait_s * 1000)))
    return headers


def error_event(
    error: ProxyError, dialect: Dialect, route_name: str, request_id: str, sequence_number: int = 0
) -> bytes:
    """The last event of a stream that broke. No terminal event follows it, so that it can never look complete."""
    if grammar_of(route_name) is Grammar.RESPONSES:
        data = _responses_error(_openai_members(error), sequence_number)
    else:
        data = error_body(error, dialect, request_id)
    return sse.error_event(dialect, route_name, data)


def upstream_error_event(dialect: Dialect, route_name: str, status: int, body: bytes) -> bytes:
    """A whole upstream error answer as an event, for a client whose 200 was already sent.

    A body in the dialect's own shape goes through as it is (made one line); of any other only the status is told.
    """
    answer = _upstream_object(body)
    if dialect is Dialect.ANTHROPIC:
        if type(answer.get("error")) is dict:
            data = orjson.dumps({**answer, "type": "error"})
        else:
            kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
            data = _anthropic(kind, _said(answer, status), "")
        return sse.error_event(dialect, route_name, data)
    inner = answer.get("error")
    members: dict[str, Any] = inner if type(inner) is dict else _members_of_status(answer, status)
    if grammar_of(route_name) is Grammar.RESPONSES:
        data = _responses_error(members, 0)
    elif dialect is Dialect.MISTRAL:
        data = orjson.dumps({**(answer if answer and inner is None else members), "object": "error"})
    else:
        data = orjson.dumps({"error": members})
    return sse.error_event(dialect, route_name, data)


def _openai_members(error: ProxyError) -> dict[str, Any]:
    row = error.kind.value
    return {"message": error.public, "type": row.openai_type, "param": None, "code": row.code}


def _responses_error(members: dict[str, Any], sequence_number: int) -> bytes:
    """The ``error`` event of a Responses stream. The members stand at the top, as documented, and again under
    ``error``, which is what makes the Python SDK raise."""
    return orjson.dumps(
        {
            "type": "error",
            "code": members.get("code"),
            "message": members.get("message") or "",
            "param": members.get("param"),
            "sequence_number": sequence_number,
            "error": members,
        }
    )


def _anthropic(kind: str, message: str, request_id: str) -> bytes:
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id or None}
    return orjson.dumps(body)


def _upstream_object(body: bytes) -> dict[str, Any]:
    """The upstream's error as an object; empty when it is none or too large to repeat."""
    if len(body) > _MAX_UPSTREAM_ERROR_BYTES:
        return {}
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return answer if type(answer) is dict else {}


def _members_of_status(answer: dict[str, Any], status: int) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"message": _said(answer, status), "type": kind, "param": None, "code": f"upstream_{status}"}


def _said(answer: dict[str, Any], status: int) -> str:
    """The upstream's own words if it has any in a usual place."""
    for name in ("message", "detail", "error"):
        words = answer.get(name)
        if type(words) is str and words:
            return words.translate(_BLANKED)
    return f"The upstream answered with status {status}."
