"""The bytes the fake provider sends, rendered once before the first request."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import orjson

from loadtests.upstream.options import UpstreamOptions

_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: loadtest\r\ncontent-type: %b\r\nx-request-id: req_0123456789abcdef\r\n"
    b"openai-processing-ms: 12\r\nx-ratelimit-remaining-requests: 9999\r\n%b\r\n"
)
NUMBER = b"#%012d" % 0
"""Where the number of the question goes in answers that have a mark."""
_USAGE = {"prompt_tokens": 160, "completion_tokens": 120, "total_tokens": 280}


class Answers(NamedTuple):
    """Whole answers are one piece; a stream is a head and its events, framed as chunks."""

    whole: bytes
    stream_head: bytes
    events: tuple[bytes, ...]
    """The last one holds the protocol's own end, the usage and the last chunk."""


def make_answers(options: UpstreamOptions) -> Answers:
    body = make_body(options.answer_bytes, options.mark)
    marked = b"x-upstream: [%b]\r\n" % options.mark.encode() if options.mark else b""
    return Answers(
        _HEAD % (b"application/json", b"%bcontent-length: %d\r\n" % (marked, len(body))) + body,
        _HEAD % (b"text/event-stream; charset=utf-8", marked + b"transfer-encoding: chunked\r\n"),
        tuple(_make_events(options.events, options.event_bytes, options.mark)),
    )


@cache
def make_failure(status: str) -> bytes:
    """A refusal."""
    failed = orjson.dumps({"error": {"message": "fault", "type": "server_error", "param": None, "code": None}})
    head = b"HTTP/1.1 %b Fault\r\ncontent-type: application/json\r\nretry-after: 1\r\ncontent-length: %d\r\n\r\n"
    return head % (status.encode(), len(failed)) + failed


def make_body(size: int, mark: str = "") -> bytes:
    """A chat completion of exactly ``size`` bytes, or the smallest there is."""

    def render(text: str) -> bytes:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        frame = {"id": "chatcmpl-0123456789", "object": "chat.completion", "created": 1_735_689_600}
        return orjson.dumps({**frame, "model": "gpt-4o-mini", "choices": [choice], "usage": _USAGE})

    return render(_fill(max(0, size - len(render(""))), mark))


def _fill(size: int, mark: str) -> str:
    """So much text; with a ``mark``, the number of the question and then nothing but the mark."""
    if not mark:
        return "x" * size
    text = f"{NUMBER.decode()} " + f"[{mark}]" * (size // len(mark))
    return text[:size] if size > len(NUMBER) + len(mark) + 3 else f"{NUMBER.decode()} [{mark}]"


def _make_events(count: int, size: int, mark: str) -> list[bytes]:
    def render(delta: dict[str, str], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        frame = {"id": "chatcmpl-0123456789", "object": "chat.completion.chunk", "created": 1_735_689_600}
        return b"data: %b\n\n" % orjson.dumps({**frame, "model": "gpt-4o-mini", "choices": [choice]})

    text = _fill(max(1, size - len(render({"content": ""}))), mark)
    events = [render({"content": text})] * max(count - 2, 0)
    closing = [render({}, "stop"), b"data: [DONE]\n\n"]
    framed = [frame(event) for event in (events + closing)[-max(count, 1) :]]
    framed[-1] += b"0\r\n\r\n"
    return framed


def frame(event: bytes) -> bytes:
    """One chunk (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(event), event)
