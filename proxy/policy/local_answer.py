"""An answer that the proxy gives itself, in the caller's dialect, whole or as a stream of a few events.

It looks as a model's does and says that it cost nothing: usage is zero. SDKs read ids, times and reasons for the end,
so they are there; nothing is made up beyond that.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

from proxy.policy.turns import CHAT, MESSAGES, RESPONSES
from proxy.protocol.answer import AnswerHead
from proxy.protocol.call import Call
from proxy.protocol.routes import Dialect

_JSON: Final = b"application/json"
_EVENTS: Final = b"text/event-stream; charset=utf-8"
_DONE: Final = b"data: [DONE]\n\n"

Fields = dict[str, Any]


class Said(NamedTuple):
    """What is to be answered, and to what."""

    text: str
    call: Call
    dialect: Dialect
    request_id: str
    """Of the request with us; the answer's ids are made of it."""
    wall: float
    """Unix seconds."""

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return blake2b(self.request_id.encode(), digest_size=16).hexdigest()


def render_answer(route: str, said: Said) -> tuple[AnswerHead, bytes]:
    """Head and body of the answer to a conversation of ``route``: one event stream or one JSON text."""
    whole, stream = _FORMS[route]
    streams = said.call.streams
    rid = said.request_id.encode("latin-1", "replace")
    headers = [(b"content-type", _EVENTS if streams else _JSON), (b"x-request-id", rid)]
    if said.dialect is Dialect.ANTHROPIC:
        headers.append((b"request-id", rid))
    body = b"".join(stream(said)) if streams else orjson.dumps(whole(said))
    return AnswerHead(200, headers, length=len(body), streams=streams), body


# -- chat completions of OpenAI, Mistral and those who speak like them -----------------------------------------------


def _chat_frame(said: Said, kind: str) -> Fields:
    prefix = "" if said.dialect is Dialect.MISTRAL else "chatcmpl-"
    return {"id": prefix + said.id, "object": kind, "created": int(said.wall), "model": said.call.model}


def _chat_usage() -> Fields:
    return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _whole_chat(said: Said) -> Fields:
    message: Fields = {"role": "assistant", "content": said.text}
    choice: Fields = {"index": 0, "message": message, "finish_reason": "stop"}
    if said.dialect is Dialect.MISTRAL:
        message["tool_calls"] = None
    else:
        message.update(refusal=None, annotations=[])
        choice["logprobs"] = None
    return {**_chat_frame(said, "chat.completion"), "choices": [choice], "usage": _chat_usage()}


def _stream_chat(said: Said) -> list[bytes]:
    frame = _chat_frame(said, "chat.completion.chunk")
    tells = said.call.wants_usage
    begin: Fields = {"role": "assistant", "content": ""}
    if said.dialect is Dialect.MISTRAL:
        # It tells usage in the last chunk whether it was asked to or not.
        chunks = [_delta(begin), _delta({"content": said.text}), _delta({"content": ""}, "stop")]
        events = [{**frame, "choices": [choice]} for choice in chunks]
        events[-1]["usage"] = _chat_usage()
    else:
        begin["refusal"] = None
        chunks = [_delta(begin), _delta({"content": said.text}), _delta({}, "stop")]
        if tells:
            frame["usage"] = None
        events = [{**frame, "choices": [{**choice, "logprobs": None}]} for choice in chunks]
        if tells:
            events.append({**frame, "choices": [], "usage": _chat_usage()})
    return [*map(_event, events), _DONE]


def _delta(delta: Fields, finish: str | None = None) -> Fields:
    return {"index": 0, "delta": delta, "finish_reason": finish}


# -- Anthropic's messages --------------------------------------------------------------------------------------------


def _message(said: Said, content: list[Fields], reason: str | None) -> Fields:
    return {
        "id": f"msg_{said.id}",
        "type": "message",
        "role": "assistant",
        "model": said.call.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    }


def _whole_message(said: Said) -> Fields:
    return _message(said, [{"type": "text", "text": said.text}], "end_turn")


def _stream_message(said: Said) -> list[bytes]:
    delta = {"type": "text_delta", "text": said.text}
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    return [
        _named("message_start", message=_message(said, [], None)),
        _named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        _named("content_block_delta", index=0, delta=delta),
        _named("content_block_stop", index=0),
        _named("message_delta", delta=end, usage={"output_tokens": 0}),
        _named("message_stop"),
    ]


# -- OpenAI's responses ----------------------------------------------------------------------------------------------

# Members of a request that its response repeats, with what they are where they were left out.
_REPEATED: Final[Fields] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def _response(said: Said, status: str, output: list[Fields]) -> Fields:
    fields, made = said.call.fields, int(said.wall)
    done = status == "completed"
    usage = {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }
    return {
        "id": f"resp_{said.id}",
        "object": "response",
        "created_at": made,
        "completed_at": made if done else None,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": said.call.model,
        "output": output,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "usage": usage if done else None,
        **{name: usual if fields.get(name) is None else fields[name] for name, usual in _REPEATED.items()},
    }


def _item(said: Said, status: str, content: list[Fields]) -> Fields:
    return {"id": f"msg_{said.id}", "type": "message", "status": status, "role": "assistant", "content": content}


def _part(text: str) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _whole_response(said: Said) -> Fields:
    return _response(said, "completed", [_item(said, "completed", [_part(said.text)])])


def _stream_response(said: Said) -> list[bytes]:
    begun = _response(said, "in_progress", [])
    item = _item(said, "completed", [_part(said.text)])
    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    events: list[tuple[str, Fields]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": _item(said, "in_progress", [])}),
        ("response.content_part.added", {**at, "part": _part("")}),
        ("response.output_text.delta", {**at, "delta": said.text, "logprobs": []}),
        ("response.output_text.done", {**at, "text": said.text, "logprobs": []}),
        ("response.content_part.done", {**at, "part": _part(said.text)}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.completed", {"response": _response(said, "completed", [item])}),
    ]
    return [_named(name, sequence_number=number, **members) for number, (name, members) in enumerate(events)]


# --------------------------------------------------------------------------------------------------------------------


def _event(data: Fields) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(data)


def _named(name: str, **members: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **members}))


_FORMS: Final[dict[str, tuple[Callable[[Said], Fields], Callable[[Said], list[bytes]]]]] = {
    CHAT: (_whole_chat, _stream_chat),
    MESSAGES: (_whole_message, _stream_message),
    RESPONSES: (_whole_response, _stream_response),
}
