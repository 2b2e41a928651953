"""Failures in the words of each SDK, read back by the SDKs' own decoders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic._streaming import SSEDecoder as AnthropicDecoder
from mistralai.client.utils.eventstreaming import stream_events
from openai._streaming import SSEDecoder as OpenAIDecoder

from proxy.errors import Kind, ProxyError
from proxy.protocol.faults import error_body, error_event, error_headers, upstream_error_event
from proxy.protocol.routes import Dialect
from proxy.protocol.sse import SseScanner, grammar_of, heartbeat

ERROR = ProxyError(Kind.OVERLOADED, 'Too "busy".', detail="host 10.0.0.1 stack", retry_after_s=1.25)
SPOKEN = [
    (Dialect.OPENAI, "chat.completions"),
    (Dialect.OPENAI, "responses"),
    (Dialect.OPENAI, "images.generations"),
    (Dialect.ANTHROPIC, "messages"),
    (Dialect.MISTRAL, "chat.completions"),
    (Dialect.MISTRAL, "responses"),
]


def test_openai_body_has_all_four_members() -> None:
    """Clients read each of them without asking whether it is there."""
    assert json.loads(error_body(ERROR, Dialect.OPENAI, "r1")) == {
        "error": {
            "message": 'Too "busy".',
            "type": "service_unavailable_error",
            "param": None,
            "code": "server_is_overloaded",
        }
    }


def test_anthropic_body_has_its_envelope_and_the_request_id() -> None:
    """As documented for all of Anthropic's errors."""
    assert json.loads(error_body(ERROR, Dialect.ANTHROPIC, "r1")) == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": 'Too "busy".'},
        "request_id": "r1",
    }


def test_mistral_body_is_flat() -> None:
    """Its members stand at the top."""
    assert json.loads(error_body(ERROR, Dialect.MISTRAL, "r1")) == {
        "object": "error",
        "message": 'Too "busy".',
        "type": "service_unavailable_error",
        "param": None,
        "code": "server_is_overloaded",
    }


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("dialect", list(Dialect))
def test_every_kind_has_a_body_in_every_dialect_and_tells_no_detail(kind: Kind, dialect: Dialect) -> None:
    """What is for the log stays there."""
    error = ProxyError(kind, "public words", detail="secret-detail", why="secret-why")
    for rendered in (
        error_body(error, dialect, "r1"),
        error_event(error, dialect, "chat.completions", "r1"),
        repr(error_headers(error, "r1", dialect)).encode(),
    ):
        assert b"secret" not in rendered
    assert b"public words" in error_body(error, dialect, "r1")


def test_headers_tell_the_sdk_whether_and_when_to_come_back() -> None:
    """Whole seconds rounded up for everybody, milliseconds for those who read them."""
    assert error_headers(ERROR, "r1") == [
        (b"content-type", b"application/json"),
        (b"x-request-id", b"r1"),
        (b"x-should-retry", b"true"),
        (b"retry-after", b"2"),
        (b"retry-after-ms", b"1250"),
    ]


def test_anthropic_s_sdk_reads_the_request_id_under_its_own_name() -> None:
    """Beside the others."""
    assert (b"request-id", b"r1") in error_headers(ERROR, "r1", Dialect.ANTHROPIC)
    assert b"request-id" not in dict(error_headers(ERROR, "r1"))


@pytest.mark.parametrize(
    ("kind", "value"), [(Kind.INVALID_KEY, b"false"), (Kind.DRAINING, b"true"), (Kind.PATIENCE, None)]
)
def test_retry_advice_is_left_out_where_the_sdk_may_decide(kind: Kind, value: bytes | None) -> None:
    """The row of the kind says so."""
    assert dict(error_headers(ProxyError(kind, "x"), "r1")).get(b"x-should-retry") == value


@pytest.mark.parametrize(
    ("wait_s", "seconds", "milliseconds"),
    [(0.0, b"0", b"0"), (0.001, b"1", b"1"), (1.0, b"1", b"1000"), (-5.0, b"0", b"0"), (1e9, b"86400", b"86400000")],
)
def test_time_to_wait_is_bounded_and_never_negative(wait_s: float, seconds: bytes, milliseconds: bytes) -> None:
    """No client shall sleep for years on our word."""
    headers = dict(error_headers(ProxyError(Kind.RATE_LIMITED, "x", retry_after_s=wait_s), "r1"))
    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (seconds, milliseconds)


def openai_events(stream: bytes) -> list[Any]:
    return list(OpenAIDecoder().iter_bytes(iter([stream])))


def anthropic_events(stream: bytes) -> list[Any]:
    return list(AnthropicDecoder().iter_bytes(iter([stream])))


class Answer:
    """What Mistral's decoder wants of a response."""

    def __init__(self, stream: bytes) -> None:
        self.stream = stream

    def iter_bytes(self) -> Iterator[bytes]:
        yield self.stream

    def close(self) -> None:
        pass


def mistral_events(stream: bytes) -> list[Any]:
    return list(stream_events(Answer(stream), json.loads, "[DONE]"))  # type: ignore[arg-type]


@pytest.mark.parametrize("route_name", ["chat.completions", "completions", "images.generations", "responses"])
def test_openai_s_sdk_raises_on_our_event(route_name: str) -> None:
    """It raises on any event whose data has an ``error``."""
    [event] = openai_events(error_event(ERROR, Dialect.OPENAI, route_name, "r1"))
    assert event.json()["error"]["message"] == 'Too "busy".'
    assert event.event == ("error" if route_name == "responses" else None)


def test_responses_event_has_the_documented_members_at_the_top() -> None:
    """Clients that follow the event types read them there."""
    [event] = openai_events(error_event(ERROR, Dialect.OPENAI, "responses", "r1", sequence_number=7))
    data = event.json()
    assert {name: data[name] for name in ("type", "code", "message", "param", "sequence_number")} == {
        "type": "error",
        "code": "server_is_overloaded",
        "message": 'Too "busy".',
        "param": None,
        "sequence_number": 7,
    }


def test_anthropic_s_sdk_raises_on_our_event() -> None:
    """It raises on an event of this name, and only by the name."""
    [event] = anthropic_events(error_event(ERROR, Dialect.ANTHROPIC, "messages", "r1"))
    assert event.event == "error"
    assert event.json() == json.loads(error_body(ERROR, Dialect.ANTHROPIC, "r1"))


def test_mistral_s_sdk_gets_our_event_as_data() -> None:
    """It knows no names."""
    [event] = mistral_events(error_event(ERROR, Dialect.MISTRAL, "chat.completions", "r1"))
    assert event["data"] == json.loads(error_body(ERROR, Dialect.MISTRAL, "r1"))


def test_heartbeats_are_nothing_to_each_sdk() -> None:
    """The comment is no event; Anthropic's SDK skips its ping by name."""
    assert openai_events(heartbeat(Dialect.OPENAI)) == []
    assert mistral_events(heartbeat(Dialect.MISTRAL)) == []
    assert [event.event for event in anthropic_events(heartbeat(Dialect.ANTHROPIC))] == ["ping"]


@pytest.mark.parametrize(("dialect", "route_name"), SPOKEN)
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error":{"message":"no","code":1}}', b'{"message":"no"}', b"[]"])
def test_our_own_scanner_knows_every_error_event_and_takes_none_for_the_end(
    dialect: Dialect, route_name: str, body: bytes
) -> None:
    """A stream with such an event is broken, not complete."""
    for stream in (
        error_event(ERROR, dialect, route_name, "r1"),
        upstream_error_event(dialect, route_name, 500, body),
    ):
        scanner = SseScanner(grammar_of(route_name))
        scanner.feed(stream)
        assert scanner.error is not None
        assert (scanner.terminal, scanner.at_boundary, scanner.seen_events) == (False, True, 1)


@pytest.mark.parametrize(
    ("dialect", "route_name", "body", "expected"),
    [
        (
            Dialect.OPENAI,
            "chat.completions",
            b'{\n  "error": {\n    "message": "slow down", "code": "slow_down", "x": 1\n  }\n}',
            {"error": {"message": "slow down", "code": "slow_down", "x": 1}},
        ),
        (
            Dialect.ANTHROPIC,
            "messages",
            b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"u1"}',
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "u1"},
        ),
        (
            Dialect.MISTRAL,
            "chat.completions",
            b'{"object":"error","message":"no","type":"x","code":1}',
            {"object": "error", "message": "no", "type": "x", "code": 1},
        ),
        (
            Dialect.MISTRAL,
            "chat.completions",
            b'{"detail":[{"msg":"bad"}]}',
            {"object": "error", "detail": [{"msg": "bad"}]},
        ),
    ],
)
def test_upstream_s_error_in_the_dialect_s_shape_goes_through_in_one_line(
    dialect: Dialect, route_name: str, body: bytes, expected: Any
) -> None:
    """Members that we do not know stay."""
    stream = upstream_error_event(dialect, route_name, 429, body)
    [event] = openai_events(stream)
    assert event.json() == expected
    assert stream.count(b"data: ") == 1


@pytest.mark.parametrize(
    ("status", "openai_type", "anthropic_type"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "authentication_error"),
        (404, "invalid_request_error", "not_found_error"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "api_error", "api_error"),
        (503, "service_unavailable_error", "api_error"),
        (529, "api_error", "overloaded_error"),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>stack trace</html>", b'{"x":1}', b"[1]", b"\xff", b'{"error":7}'])
def test_upstream_s_error_in_no_known_shape_tells_its_status(
    status: int, openai_type: str, anthropic_type: str, body: bytes
) -> None:
    """A page for people is not repeated to an SDK."""
    [event] = openai_events(upstream_error_event(Dialect.OPENAI, "chat.completions", status, body))
    words = f"The upstream answered with status {status}."
    code = f"upstream_{status}"
    assert event.json() == {"error": {"message": words, "type": openai_type, "param": None, "code": code}}
    [event] = anthropic_events(upstream_error_event(Dialect.ANTHROPIC, "messages", status, body))
    assert event.json()["error"] == {"type": anthropic_type, "message": words}


def test_upstream_s_plain_words_are_kept_and_made_harmless() -> None:
    """Line ends and control bytes become blanks."""
    body = b'{"detail":"a\\nb\\u001b[2J"}'
    [event] = openai_events(upstream_error_event(Dialect.OPENAI, "chat.completions", 422, body))
    assert event.json()["error"]["message"] == "a b [2J"


def test_upstream_s_error_of_megabytes_is_not_repeated() -> None:
    """Every subscriber would get it."""
    body = b'{"error":{"message":"' + b"x" * 100_000 + b'"}}'
    assert len(upstream_error_event(Dialect.OPENAI, "chat.completions", 500, body)) < 300
