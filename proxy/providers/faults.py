"""What an upstream's refusal means, read from its status, its words and its headers.

Vendors use one status for several things (429 for haste and for an empty account, 400 for a malformed request and for
one that is too long), so the words decide where they are clear and the status where they are not.
"""

from __future__ import annotations

import re
from typing import Any, Final

from proxy.protocol.events import Cause, Fault
from proxy.protocol.message import ResponseHead
from proxy.providers.base import MAX_ERROR_BYTES, Fields, clip, items_in, parse_object

_BY_STATUS: Final = {
    400: Cause.BAD_REQUEST,
    401: Cause.DEAD_KEY,
    402: Cause.SPENT,
    403: Cause.FORBIDDEN,
    404: Cause.NOT_FOUND,
    405: Cause.NOT_FOUND,
    408: Cause.TIMED_OUT,
    409: Cause.CONFLICT,
    410: Cause.NOT_FOUND,
    413: Cause.TOO_LARGE,
    429: Cause.THROTTLED,
    498: Cause.OVERLOADED,  # Groq: capacity of a tier exceeded
    503: Cause.OVERLOADED,
    504: Cause.TIMED_OUT,
    524: Cause.TIMED_OUT,
    529: Cause.OVERLOADED,
}
# A vendor's own word -> cause; stronger than the status.
_BY_CODE: Final = {
    "authentication_error": Cause.DEAD_KEY,
    "billing_error": Cause.SPENT,
    "billing_hard_limit_reached": Cause.SPENT,
    "billing_not_active": Cause.SPENT,
    "conflict_error": Cause.CONFLICT,
    "content_filter": Cause.CONTENT_FILTER,
    "content_policy_violation": Cause.CONTENT_FILTER,
    "context_length_exceeded": Cause.CONTEXT_LENGTH,
    "credit_balance_exhausted": Cause.SPENT,
    "DeploymentNotFound": Cause.NOT_FOUND,
    "exceed_context_size_error": Cause.CONTEXT_LENGTH,
    "insufficient_quota": Cause.SPENT,
    "invalid_api_key": Cause.DEAD_KEY,
    "model_not_found": Cause.NOT_FOUND,
    "not_found_error": Cause.NOT_FOUND,
    "NOT_FOUND": Cause.NOT_FOUND,
    "organization_spend_limit_exceeded": Cause.SPENT,
    "organization_usage_limit_exceeded": Cause.SPENT,
    "overloaded_error": Cause.OVERLOADED,
    "PERMISSION_DENIED": Cause.FORBIDDEN,
    "permission_error": Cause.FORBIDDEN,
    "project_spend_limit_exceeded": Cause.SPENT,
    "rate_limit_error": Cause.THROTTLED,
    "rate_limit_exceeded": Cause.THROTTLED,
    "request_too_large": Cause.TOO_LARGE,
    "RESOURCE_EXHAUSTED": Cause.THROTTLED,
    "ResponsibleAIPolicyViolation": Cause.CONTENT_FILTER,
    "server_error": Cause.FAILED,
    "server_is_overloaded": Cause.OVERLOADED,
    "slow_down": Cause.THROTTLED,
    "string_above_max_length": Cause.CONTEXT_LENGTH,
    "timeout_error": Cause.TIMED_OUT,
    "UNAUTHENTICATED": Cause.DEAD_KEY,
    "UNAVAILABLE": Cause.OVERLOADED,
    "DEADLINE_EXCEEDED": Cause.TIMED_OUT,
    "unsupported_country_region_territory": Cause.FORBIDDEN,
}
# Where a 400 says no more in its code; vendors and servers have said it so for years.
_TOO_LONG: Final = re.compile(
    r"maximum context length|context length exceeded|prompt is too long|input is too long|context window"
    r"|exceeds? the (?:model's )?(?:maximum|available) (?:context|number of tokens|input)|input token count"
    r"|too many tokens|max_new_tokens`? must be|larger than the maximum",
    re.IGNORECASE,
)
_FILTERED: Final = re.compile(r"content (?:filter|management policy|policy)|blocked by|safety system", re.IGNORECASE)
_NO_MONEY: Final = re.compile(r"credit balance|exceeded your current quota|billing|out of credits", re.IGNORECASE)
# A refusal of a malformed request repeats the caller's own words, so only how vendors begin their sentences counts.
_OUT_OF_MONEY: Final = re.compile(r"your credit balance|you exceeded your current quota", re.IGNORECASE)
_BAD_KEY: Final = re.compile(r"api key not valid|invalid api key|incorrect api key|api key expired", re.IGNORECASE)

# Nobody but the operator must see what the upstream says about a credential: some vendors repeat half of it.
_HIDDEN: Final = {
    Cause.DEAD_KEY: "The upstream did not accept the credential that is configured for this model.",
    Cause.FORBIDDEN: "The upstream does not allow this request with the configured credential.",
}


def classify(head: ResponseHead, body: bytes) -> Fault:
    """The fault of an answer with a status beyond 299, whichever dialect its body speaks."""
    fields = parse_object(body) if len(body) <= MAX_ERROR_BYTES else None
    members = _members(fields) if fields is not None else {}
    return _make_fault(head.status, members, _retry_after_s(head, members))


def fault_in_object(fields: Fields) -> Fault:
    """The fault of an error object inside a stream, or in an answer of status 200."""
    return _make_fault(0, _members(fields), None)


def cut_off(message: str = "The upstream's answer ended before it was complete.") -> Fault:
    return Fault(Cause.CUT_OFF, message)


def fault_members(fault: Fault) -> Fields:
    """OpenAI's error object; the upstream's own code where it is more exact than ours."""
    row = fault.cause.value
    own = fault.cause in (Cause.BAD_REQUEST, Cause.CONTENT_FILTER, Cause.SPENT) and fault.code
    return {"message": fault.message, "type": row.openai_type, "param": fault.param, "code": own or row.code}


def _members(fields: Fields) -> Fields:
    """The object that holds message, type and code, wherever a dialect puts it."""
    inner = fields.get("error")
    if type(inner) is list and inner:  # Gemini wraps errors of a stream in a list
        inner = inner[0]
    if type(inner) is dict:
        return inner
    if type(inner) is str:  # Ollama, TGI: {"error": "words", "error_type": "validation"}
        return {"message": inner, "type": fields.get("error_type")}
    response = fields.get("response")
    if type(response) is dict and type(response.get("error")) is dict:
        return dict(response["error"])
    if "detail" in fields and "message" not in fields:
        return {"message": _words_of_detail(fields["detail"])}
    return fields


def _words_of_detail(detail: Any) -> str:
    """Validation items of FastAPI, Mistral's and vLLM's."""
    if type(detail) is str:
        return detail
    words = []
    for item in detail if type(detail) is list else ():
        match item:
            case {"msg": str(said), "loc": list(place)}:
                words.append(f"{'.'.join(map(str, place))}: {said}")
            case {"msg": str(said)}:
                words.append(said)
    return "; ".join(words)


def _make_fault(status: int, members: Fields, retry_after_s: float | None) -> Fault:
    codes = [str(members[name]) for name in ("code", "status", "type") if members.get(name) is not None]
    said = members.get("message")
    if type(said) is dict:  # Mistral: {"message": {"detail": [...]}}
        said = _words_of_detail(said.get("detail"))
    message = clip(said) if type(said) is str and said else f"The upstream answered with status {status or 'error'}."
    inner = members.get("innererror")
    if type(inner) is dict and inner.get("code"):
        codes.insert(0, str(inner["code"]))
    if not status and codes and codes[0].isdigit():  # Gemini and vLLM put the status into the code
        status = int(codes[0])
    cause = _cause_of(status, codes, message)
    own = next((code for code in codes if not code.isdigit()), "")
    param = members.get("param")
    hidden = _HIDDEN.get(cause)
    return Fault(
        cause,
        hidden or message,
        status,
        own,
        param if type(param) is str else None,
        retry_after_s,
        message if hidden else "",
    )


def _cause_of(status: int, codes: list[str], message: str) -> Cause:
    cause = next((_BY_CODE[code] for code in codes if code in _BY_CODE), None)
    if cause is None:
        fallback = Cause.FAILED if status >= 500 or status < 400 else Cause.BAD_REQUEST
        cause = _BY_STATUS.get(status, fallback)
    elif cause is Cause.FAILED and status > 500:
        cause = _BY_STATUS.get(status, cause)  # "server_error" says less than 503
    if cause in (Cause.BAD_REQUEST, Cause.TOO_LARGE, Cause.FAILED):
        # llama.cpp and TGI call even a prompt that is too long their own failure.
        if _TOO_LONG.search(message):
            return Cause.CONTEXT_LENGTH
        if _BAD_KEY.match(message):
            return Cause.DEAD_KEY
        if cause is Cause.BAD_REQUEST and _FILTERED.search(message):
            return Cause.CONTENT_FILTER
    if cause is Cause.THROTTLED and _NO_MONEY.search(message):
        return Cause.SPENT
    if cause is Cause.BAD_REQUEST and _OUT_OF_MONEY.match(message):
        return Cause.SPENT
    return cause


def _retry_after_s(head: ResponseHead, members: Fields) -> float | None:
    """When to come back, in seconds: headers first, then Gemini's detail."""
    for name, scale in ((b"retry-after-ms", 1e-3), (b"retry-after", 1.0)):
        said = head.get(name)
        if said and len(said) <= 12 and said.replace(b".", b"", 1).isdigit():
            return float(said) * scale
    for detail in items_in(members, "details"):
        match detail:
            case {"retryDelay": str(delay)} if delay[-1:] == "s" and delay[:-1].replace(".", "", 1).isdigit():
                return float(delay[:-1])
    return None
