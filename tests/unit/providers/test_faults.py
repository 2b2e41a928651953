"""What refusals of upstreams mean, and how callers hear of them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.errors import Retry
from proxy.protocol.events import MAX_MESSAGE_CHARS, Cause, Fault
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.providers.faults import classify
from proxy.providers.kinds import make_providers

PROVIDERS = make_providers()


def openai(message: str = "m", kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def anthropic(kind: str, message: str = "m") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def gemini(code: int, status: str, message: str = "m", **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, **more}}


REFUSALS = [
    # OpenAI
    (401, openai("Incorrect API key provided: sk-ab**yz.", code="invalid_api_key"), Cause.DEAD_KEY),
    (403, openai("Country not supported", code="unsupported_country_region_territory"), Cause.FORBIDDEN),
    (404, openai("The model `x` does not exist", code="model_not_found"), Cause.NOT_FOUND),
    (429, openai("Rate limit reached", "requests", "rate_limit_exceeded"), Cause.THROTTLED),
    (429, openai("You exceeded your current quota", "insufficient_quota", "insufficient_quota"), Cause.SPENT),
    (429, openai("No credit", "insufficient_quota", "credit_balance_exhausted"), Cause.SPENT),
    (429, openai("Slow down", "requests", "slow_down"), Cause.THROTTLED),
    (400, openai("Too long", code="context_length_exceeded"), Cause.CONTEXT_LENGTH),
    (400, openai("Your request was rejected", code="content_policy_violation"), Cause.CONTENT_FILTER),
    (400, openai("Unknown parameter: 'foo'."), Cause.BAD_REQUEST),
    (500, openai("The server had an error", "server_error"), Cause.FAILED),
    (503, openai("Overloaded", "service_unavailable_error", "server_is_overloaded"), Cause.OVERLOADED),
    # Azure
    (404, {"error": {"code": "DeploymentNotFound", "message": "m"}}, Cause.NOT_FOUND),
    (401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key"}}, Cause.DEAD_KEY),
    (400, openai("The response was filtered due to Azure's content management policy", code="content_filter"),
     Cause.CONTENT_FILTER),
    (429, {"error": {"code": "429", "message": "Requests have exceeded call rate limit"}}, Cause.THROTTLED),
    # Anthropic
    (401, anthropic("authentication_error", "invalid x-api-key"), Cause.DEAD_KEY),
    (403, anthropic("permission_error"), Cause.FORBIDDEN),
    (402, anthropic("billing_error"), Cause.SPENT),
    (400, anthropic("invalid_request_error", "Your credit balance is too low"), Cause.SPENT),
    (404, anthropic("not_found_error", "model: claude-x"), Cause.NOT_FOUND),
    (413, anthropic("request_too_large"), Cause.TOO_LARGE),
    (400, anthropic("invalid_request_error", "prompt is too long: 210000 tokens > 200000"), Cause.CONTEXT_LENGTH),
    (400, anthropic("invalid_request_error", "Output blocked by content filtering policy"), Cause.CONTENT_FILTER),
    (400, anthropic("invalid_request_error", "messages: Field required"), Cause.BAD_REQUEST),
    (429, anthropic("rate_limit_error"), Cause.THROTTLED),
    (500, anthropic("api_error"), Cause.FAILED),
    (504, anthropic("timeout_error"), Cause.TIMED_OUT),
    (529, anthropic("overloaded_error"), Cause.OVERLOADED),
    # Mistral
    (401, {"detail": "Unauthorized"}, Cause.DEAD_KEY),
    (400, {"object": "error", "message": "Invalid model: x", "type": "invalid_model", "code": "1500"},
     Cause.BAD_REQUEST),
    (400, {"object": "error", "message": "Prompt contains 40000 tokens, too large for model with 32768 maximum "
           "context length", "type": "invalid_request_message_error", "code": 3051}, Cause.CONTEXT_LENGTH),
    (422, {"object": "error", "message": {"detail": [{"loc": ["body", "n"], "msg": "too big"}]}}, Cause.BAD_REQUEST),
    (429, {"object": "error", "message": "Service tier capacity exceeded", "type": "service_tier_capacity_exceeded",
           "code": "3505"}, Cause.THROTTLED),
    # Gemini
    (400, gemini(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."), Cause.DEAD_KEY),
    (403, gemini(403, "PERMISSION_DENIED"), Cause.FORBIDDEN),
    (404, gemini(404, "NOT_FOUND", "models/x is not found"), Cause.NOT_FOUND),
    (400, gemini(400, "INVALID_ARGUMENT", "The input token count (1) exceeds the maximum number of tokens allowed"),
     Cause.CONTEXT_LENGTH),
    (429, gemini(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted"), Cause.THROTTLED),
    (503, gemini(503, "UNAVAILABLE", "The model is overloaded."), Cause.OVERLOADED),
    (504, gemini(504, "DEADLINE_EXCEEDED"), Cause.TIMED_OUT),
    # Servers of one's own
    (400, {"object": "error", "message": "This model's maximum context length is 4096 tokens.",
           "type": "BadRequestError", "param": None, "code": 400}, Cause.CONTEXT_LENGTH),
    (500, {"error": {"code": 500, "message": "the request exceeds the available context size",
                     "type": "server_error"}}, Cause.CONTEXT_LENGTH),
    (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096",
           "error_type": "validation"}, Cause.CONTEXT_LENGTH),
    (404, {"error": "model 'x' not found, try pulling it first"}, Cause.NOT_FOUND),
    (422, {"detail": [{"loc": ["body", "messages"], "msg": "field required", "type": "v"}]}, Cause.BAD_REQUEST),
    # No words at all
    (502, None, Cause.FAILED),
    (503, None, Cause.OVERLOADED),
    (429, None, Cause.THROTTLED),
    (418, None, Cause.BAD_REQUEST),
    (408, None, Cause.TIMED_OUT),
]


@pytest.mark.parametrize(("status", "body", "cause"), REFUSALS, ids=lambda value: str(value)[:40])
def test_a_refusal_is_understood_from_its_words_and_its_status(
    status: int, body: dict[str, Any] | None, cause: Cause
) -> None:
    """Each vendor has its own ways to say the same few things."""
    text = b"<html>bad gateway</html>" if body is None else orjson.dumps(body)
    fault = classify(ResponseHead(status, []), text)

    assert fault.cause is cause
    assert fault.status == status
    assert fault.message


def test_only_what_another_target_could_do_better_is_tried_again() -> None:
    """A request that is wrong, too long or filtered is so everywhere."""
    hopeless = {cause for cause in Cause if cause.retry is Retry.NO}

    assert hopeless == {Cause.CONTEXT_LENGTH, Cause.CONTENT_FILTER, Cause.TOO_LARGE, Cause.BAD_REQUEST}
    assert {cause for cause in Cause if cause.value.blames_key} == {
        Cause.DEAD_KEY, Cause.FORBIDDEN, Cause.SPENT, Cause.THROTTLED,
    }
    assert not any(cause.value.blames_target and cause.value.blames_key for cause in Cause)
    assert not any(cause.value.blames_target for cause in hopeless)


@pytest.mark.parametrize(
    ("headers", "body", "wait_s"),
    [
        ([(b"retry-after", b"7")], {}, 7.0),
        ([(b"retry-after", b"7"), (b"retry-after-ms", b"1500")], {}, 1.5),
        ([], gemini(429, "RESOURCE_EXHAUSTED", details=[{"@type": "RetryInfo", "retryDelay": "34.5s"}]), 34.5),
        ([(b"retry-after", b"Wed, 21 Oct 2026 07:28:00 GMT")], {}, None),
        ([(b"retry-after", b"-1")], {}, None),
        ([], gemini(429, "RESOURCE_EXHAUSTED", details=[{"retryDelay": "soon"}]), None),
    ],
)
def test_the_time_to_come_back_is_found(headers: HeaderList, body: dict[str, Any], wait_s: float | None) -> None:
    """In milliseconds if there are any, then in seconds, then in Gemini's details."""
    assert classify(ResponseHead(429, headers), orjson.dumps(body)).retry_after_s == wait_s


def test_what_an_upstream_says_of_a_credential_stays_with_the_operator() -> None:
    """Some vendors repeat half of the key."""
    fault = classify(ResponseHead(401, []), orjson.dumps(openai("Incorrect API key: sk-abc", code="invalid_api_key")))

    assert "sk-abc" not in fault.message
    assert "sk-abc" in fault.detail
    for provider in PROVIDERS.values():
        _, body = provider.fault_body(fault, "r")
        assert b"sk-abc" not in body


def test_an_endless_or_huge_refusal_is_cut() -> None:
    """An error page is no answer of ours."""
    long = classify(ResponseHead(400, []), orjson.dumps(openai("x" * 20_000)))
    huge = classify(ResponseHead(500, []), orjson.dumps(openai("x" * 100_000)))

    assert len(long.message) == MAX_MESSAGE_CHARS + 1
    assert huge.message == "The upstream answered with status 500."


@pytest.mark.parametrize("cause", Cause)
def test_every_fault_has_a_body_in_every_dialect_that_means_the_same(cause: Cause) -> None:
    """A caller's SDK reads status and type; read back, they mean what was meant or at least the same for a retry."""
    fault = Fault(cause, "words")
    for provider in PROVIDERS.values():
        status, body = provider.fault_body(fault, "req_9")
        again = classify(ResponseHead(status, []), body)

        assert 400 <= status <= 599
        assert b"words" in body
        if cause not in (Cause.DEAD_KEY, Cause.CUT_OFF):
            assert again.cause.retry is cause.retry, provider.name


def test_anthropics_callers_get_the_id_of_their_request() -> None:
    """Their SDK shows it."""
    _, body = PROVIDERS["anthropic"].fault_body(Fault(Cause.THROTTLED, "m"), "req_9")

    assert orjson.loads(body) == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "m"},
        "request_id": "req_9",
    }


def test_the_upstreams_own_code_survives_where_it_says_more() -> None:
    """`unknown_parameter` helps a caller more than `bad_request`."""
    fault = classify(ResponseHead(400, []), orjson.dumps(openai("no", code="unknown_parameter")))
    _, body = PROVIDERS["openai"].fault_body(fault, "r")

    assert orjson.loads(body)["error"] == {
        "message": "no",
        "type": "invalid_request_error",
        "param": None,
        "code": "unknown_parameter",
    }
