"""An answer of the proxy's own, in the words of each dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.policy.local_answer import Said, render_answer
from proxy.protocol.answer import AnswerHead
from proxy.protocol.call import parse_call
from proxy.protocol.message import make_request_head
from proxy.protocol.routes import Dialect, grammar_of, locate
from proxy.protocol.sse import SseScanner
from proxy.protocol.usage import usage_from_body

TEXT = 'Grüß dich! "{}"\n👋'
PATHS = {"chat.completions": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
FORMS = [
    ("chat.completions", Dialect.OPENAI),
    ("chat.completions", Dialect.MISTRAL),
    ("messages", Dialect.ANTHROPIC),
    ("responses", Dialect.OPENAI),
]


def render(route: str, dialect: Dialect, text: str = TEXT, **fields: Any) -> tuple[AnswerHead, bytes]:
    located = locate(make_request_head("POST", PATHS[route], []))
    call = parse_call(located.route, json.dumps({"model": "m-1", **fields}).encode())
    return render_answer(route, Said(text, call, dialect, "req_0123456789ab00000001", 1_767_225_600.9))


def test_a_chat_stream_is_these_bytes() -> None:
    """Role, text, end; no usage that nobody asked for."""
    head, body = render("chat.completions", Dialect.OPENAI, "Hi.", stream=True)
    at = (
        b'data: {"id":"chatcmpl-00282bdfa9f661ce0a203c463e4e436d","object":"chat.completion.chunk",'
        b'"created":1767225600,"model":"m-1","choices":[{"index":0,"delta":'
    )
    assert body == (
        at + b'{"role":"assistant","content":"","refusal":null},"finish_reason":null,"logprobs":null}]}\n\n'
        + at + b'{"content":"Hi."},"finish_reason":null,"logprobs":null}]}\n\n'
        + at + b'{},"finish_reason":"stop","logprobs":null}]}\n\n'
        + b"data: [DONE]\n\n"
    )  # fmt: skip
    assert head.streams
    assert head.length == len(body)
    assert dict(head.shared)[b"content-type"] == b"text/event-stream; charset=utf-8"


def test_a_chat_stream_tells_usage_to_whoever_asked() -> None:
    """Nothing yet in each chunk, then zeros in one without choices."""
    _, body = render("chat.completions", Dialect.OPENAI, stream=True, stream_options={"include_usage": True})
    events = [json.loads(event[6:]) for event in body.split(b"\n\n")[:-2]]
    assert [event["usage"] for event in events[:-1]] == [None, None, None]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_a_mistral_stream_ends_with_its_usage() -> None:
    """In the last chunk, asked for or not; and its ids have no prefix."""
    _, body = render("chat.completions", Dialect.MISTRAL, stream=True)
    events = [json.loads(event[6:]) for event in body.split(b"\n\n")[:-2]]
    assert [set(event) - {"usage"} for event in events] == [{"id", "object", "created", "model", "choices"}] * 3
    assert [event.get("usage", {}).get("total_tokens") for event in events] == [None, None, 0]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert len(events[0]["id"]) == 32


def test_a_message_stream_is_these_bytes() -> None:
    """Each event is named after its type, as SDKs of this dialect drop those that are not."""
    _, body = render("messages", Dialect.ANTHROPIC, "Hi.", stream=True)
    start, rest = body.split(b"\n\n", 1)
    assert start.startswith(b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_')
    assert start.endswith(
        b'"type":"message","role":"assistant","model":"m-1","content":[],"stop_reason":null,"stop_sequence":null,'
        b'"usage":{"input_tokens":0,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}}'
    )
    assert rest == (
        b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        b'"content_block":{"type":"text","text":""}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":"Hi."}}\n\n'
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta",'
        b'"delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":0}}\n\n'
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )


def test_events_of_a_response_are_named_and_numbered() -> None:
    """From 0, without a gap."""
    _, body = render("responses", Dialect.OPENAI, stream=True)
    events = [event.split(b"\ndata: ") for event in body.split(b"\n\n")[:-1]]
    said = [(name.decode().removeprefix("event: "), json.loads(data)) for name, data in events]
    assert [name for name, _ in said] == [data["type"] for _, data in said]
    assert [data["sequence_number"] for _, data in said] == list(range(9))
    assert said[0][1]["response"]["usage"] is None
    assert said[-1][1]["response"]["output"][0]["content"][0]["text"] == TEXT


@pytest.mark.parametrize(("route", "dialect"), FORMS)
def test_a_stream_ends_as_its_grammar_promises(route: str, dialect: Dialect) -> None:
    """To whoever relays it, it is complete."""
    _, body = render(route, dialect, stream=True)
    scanner = SseScanner(grammar_of(route))
    scanner.feed(body)
    assert scanner.terminal
    assert scanner.terminal_at == len(body)
    assert scanner.at_boundary
    assert scanner.error is None


@pytest.mark.parametrize(("route", "dialect"), FORMS)
def test_a_whole_answer_says_the_text_and_costs_nothing(route: str, dialect: Dialect) -> None:
    """Read as any other answer is."""
    head, body = render(route, dialect)
    usage = usage_from_body(dialect, route, body)
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (0, 0)
    said = json.loads(body)
    assert said["model"] == "m-1"
    texts = {
        "chat.completions": lambda: said["choices"][0]["message"]["content"],
        "messages": lambda: said["content"][0]["text"],
        "responses": lambda: said["output"][0]["content"][0]["text"],
    }
    assert texts[route]() == TEXT
    assert dict(head.shared)[b"content-type"] == b"application/json"
    assert dict(head.shared)[b"x-request-id"] == b"req_0123456789ab00000001"
    assert not head.streams


def test_a_response_repeats_what_was_asked() -> None:
    """As the vendor's does; what was left out has the vendor's default."""
    asked: dict[str, Any] = {"instructions": "Be kind.", "temperature": 0, "metadata": {"a": "b"}, "tools": None}
    _, body = render("responses", Dialect.OPENAI, **asked)
    said = json.loads(body)
    assert (said["instructions"], said["temperature"], said["metadata"]) == ("Be kind.", 0, {"a": "b"})
    assert (said["tools"], said["tool_choice"], said["truncation"], said["store"]) == ([], "auto", "disabled", False)
