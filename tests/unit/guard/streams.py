"""Streams of the three dialects made of pieces of text, and the texts in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import orjson

Write = Callable[[list[str]], bytes]


def chat(pieces: list[str]) -> bytes:
    """Chat completions: one choice that says the pieces."""
    chunks: list[dict[str, Any]] = [_chunk({"role": "assistant", "content": ""})]
    chunks += [_chunk({"content": piece}) for piece in pieces]
    chunks += [_chunk({}, "stop"), {"id": "c1", "choices": [], "usage": {"total_tokens": 9}}]
    return b"".join(_data(chunk) for chunk in chunks) + b"data: [DONE]\n\n"


def chat_arguments(pieces: list[str]) -> bytes:
    """Chat completions: a call of a tool whose arguments are the pieces."""
    calls = [{"index": 0, "function": {"arguments": piece}} for piece in pieces]
    chunks = [_chunk({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "pay"}}]})]
    chunks += [_chunk({"tool_calls": [call]}) for call in calls]
    return b"".join(map(_data, [*chunks, _chunk({}, "tool_calls")])) + b"data: [DONE]\n\n"


def messages(pieces: list[str]) -> bytes:
    """Anthropic's messages: one block of text."""
    events: list[tuple[str, dict[str, Any]]] = [
        ("message_start", {"message": {"id": "m1", "role": "assistant", "content": []}}),
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        ("ping", {}),
    ]
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    events += [("content_block_delta", {"index": 0, "delta": delta}) for delta in deltas]
    events += [
        ("content_block_stop", {"index": 0}),
        ("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}),
        ("message_stop", {}),
    ]
    return b"".join(_named(name, data) for name, data in events)


def responses(pieces: list[str]) -> bytes:
    """Responses: one text, said in pieces and then thrice more."""
    text = "".join(pieces)
    where = {"item_id": "i1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "i1", "type": "message", "role": "assistant", "content": [part]}
    events: list[tuple[str, dict[str, Any]]] = [("response.created", {"response": {"id": "r1", "output": []}})]
    events += [("response.output_text.delta", {**where, "delta": piece, "logprobs": []}) for piece in pieces]
    events += [
        ("response.output_text.done", {**where, "text": text}),
        ("response.content_part.done", {**where, "part": part}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.completed", {"response": {"id": "r1", "output": [item], "instructions": "card 4242424242424242"}}),
    ]
    return b"".join(_named(name, data) for name, data in events)


DIALECTS: dict[str, Write] = {"chat.completions": chat, "messages": messages, "responses": responses}


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"id": "c1", "object": "chat.completion.chunk", "choices": [
        {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    ]}  # fmt: skip


def _data(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _named(name: str, data: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\n" + _data({"type": name, **data})


def objects_in(stream: bytes) -> list[dict[str, Any]]:
    """The data of every event, in order."""
    lines = [line[6:] for line in stream.splitlines() if line.startswith(b"data: ")]
    return [orjson.loads(line) for line in lines if line != b"[DONE]"]


def said_in(stream: bytes) -> str:
    """All deltas of text or of arguments joined."""
    return "".join(_deltas(objects_in(stream)))


def _deltas(objects: Iterable[dict[str, Any]]) -> Iterable[str]:
    for each in objects:
        delta = each.get("delta")
        if type(delta) is str:
            yield delta
        elif type(delta) is dict:
            yield delta.get("text", "")
        for choice in each.get("choices", ()):
            yield choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls", ()):
                yield call["function"].get("arguments", "")


def repeated_in(stream: bytes) -> list[str]:
    """What a stream of Responses says of the text when it is complete."""
    texts = []
    for each in objects_in(stream):
        items = [each["item"]] if "item" in each else each.get("response", {}).get("output", [])
        texts += [part["text"] for item in items for part in item["content"]]
        texts += [each["part"]["text"]] if "part" in each else []
        texts += [each["text"]] if each["type"] == "response.output_text.done" else []
    return texts
