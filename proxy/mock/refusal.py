"""Errors in the shapes in which OpenAI, Anthropic and Mistral send them."""

from __future__ import annotations

from typing import Any

from proxy.mock.answer import ANTHROPIC, MISTRAL, Answer, answer_json, make_event

_OPENAI = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_supported"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("requests", "rate_limit_exceeded"),
    500: ("server_error", None),
    503: ("server_error", "server_is_overloaded"),
    529: ("server_error", "server_is_overloaded"),
}
_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    529: "overloaded_error",
}
_TEXTS = {
    429: "Rate limit reached for requests.",
    500: "The server had an error while processing your request.",
    503: "The engine is currently overloaded, please try again later.",
    529: "Overloaded",
}


class RefusedError(Exception):
    """A call that is answered with an error; raised while its answer is being made."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param


def make_error(dialect: str, error: RefusedError, request_id: str) -> dict[str, Any]:
    """The JSON object that the vendor's error body would be."""
    kind, code = _OPENAI.get(error.status, ("server_error", None))
    if dialect == ANTHROPIC:
        name = _ANTHROPIC.get(error.status, "api_error")
        return {"type": "error", "error": {"type": name, "message": error.message}, "request_id": request_id}
    if dialect == MISTRAL:
        flat = {"type": kind, "param": error.param, "code": error.code or code}
        return {"object": "error", "message": error.message, **flat}
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code or code}}


def refuse(dialect: str, error: RefusedError, request_id: str, retry_after_s: float = 0.0) -> Answer:
    """The whole error answer, with ``retry-after`` on a 429."""
    headers: list[tuple[bytes, bytes]] = []
    if error.status == 429 and retry_after_s:
        headers.append((b"retry-after", b"%d" % -(-retry_after_s // 1)))
        headers.append((b"retry-after-ms", b"%d" % (retry_after_s * 1000)))
    if dialect == ANTHROPIC and error.status in (429, 503, 529):
        headers.append((b"x-should-retry", b"true"))
    return answer_json(make_error(dialect, error, request_id), error.status, headers=tuple(headers))


def refuse_with(dialect: str, status: int, request_id: str, retry_after_s: float) -> Answer:
    """The answer of a status fault."""
    return refuse(dialect, RefusedError(status, _TEXTS[status]), request_id, retry_after_s)


def make_error_event(dialect: str, request_id: str) -> bytes:
    """The event with which a running stream fails."""
    status = 529 if dialect == ANTHROPIC else 503
    value = make_error(dialect, RefusedError(status, _TEXTS[status]), request_id)
    return make_event(value, "error" if dialect == ANTHROPIC else "")
