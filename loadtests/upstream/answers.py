"""The bytes the fake provider sends, rendered once before the first request."""

from __future__ import annotations

from typing import NamedTuple

import orjson

from loadtests.upstream.options import UpstreamOptions

_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: loadtest\r\ncontent-type: %b\r\nx-request-id: req_0123456789abcdef\r\n"
    b"openai-processing-ms: 12\r\nx-ratelimit-remaining-requests: 9999\r\n%b\r\n"
)
_USAGE = {"prompt_tokens": 160, "completion_tokens": 120, "total_tokens": 280}


class Answers(NamedTuple):
    """Whole answers are one piece; a stream is a head and its events, framed as chunks."""

    whole: bytes
    stream_head: bytes
    events: tuple[bytes, ...]
    """The last one holds the protocol's own end, the usage and the last chunk."""
    failure: bytes


def make_answers(options: UpstreamOptions) -> Answers:
    body = make_body(options.answer_bytes)
    failed = orjson.dumps({"error": {"message": "fault", "type": "server_error", "param": None, "code": None}})
    status = options.fault if options.fault.isdigit() else "500"
    return Answers(
        _HEAD % (b"application/json", b"content-length: %d\r\n" % len(body)) + body,
        _HEAD % (b"text/event-stream; charset=utf-8", b"transfer-encoding: chunked\r\n"),
        tuple(_make_events(options.events, options.event_bytes)),
        b"HTTP/1.1 %b Fault\r\ncontent-type: application/json\r\nretry-after: 1\r\ncontent-length: %d\r\n\r\n%b"
        % (status.encode(), len(failed), failed),
    )


def make_body(size: int) -> bytes:
    """A chat completion of exactly ``size`` bytes, or the smallest there is."""

    def render(text: str) -> bytes:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        frame = {"id": "chatcmpl-0123456789", "object": "chat.completion", "created": 1_735_689_600}
        return orjson.dumps({**frame, "model": "gpt-4o-mini", "choices": [choice], "usage": _USAGE})

    return render("x" * max(0, size - len(render(""))))


def _make_events(count: int, size: int) -> list[bytes]:
    def render(delta: dict[str, str], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        frame = {"id": "chatcmpl-0123456789", "object": "chat.completion.chunk", "created": 1_735_689_600}
        return b"data: %b\n\n" % orjson.dumps({**frame, "model": "gpt-4o-mini", "choices": [choice]})

    text = "x" * max(1, size - len(render({"content": ""})))
    events = [render({"content": text})] * max(count - 2, 0)
    closing = [render({}, "stop"), b"data: [DONE]\n\n"]
    framed = [frame(event) for event in (events + closing)[-max(count, 1) :]]
    framed[-1] += b"0\r\n\r\n"
    return framed


def frame(event: bytes) -> bytes:
    """One chunk (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(event), event)
