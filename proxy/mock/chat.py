"""Chat completions, legacy completions and fill-in-the-middle, as OpenAI and Mistral answer them."""

from __future__ import annotations

from typing import Any

from proxy.mock.answer import HOLE, MISTRAL, SSE, Answer, Call, answer_json, make_event, repeat_event
from proxy.mock.refusal import RefusedError, make_error_event
from proxy.mock.reply import Ask, Reply, Tool, choose_tool, make_reply, read_messages

_DONE = b"data: [DONE]\n\n"
_MAX_CHOICES = 128


def answer_chat(call: Call) -> Answer:
    """``POST /v1/chat/completions``."""
    if not isinstance(call.data.get("messages"), list) or not call.data["messages"]:
        raise RefusedError(400, "Missing required parameter: 'messages'.", param="messages")
    ask = _read_chat(call.data)
    replies = [make_reply(ask, call, index) for index in range(_read_count(call.data))]
    if call.wants_stream:
        return _stream_chat(call, replies)
    choices = [_make_choice(call, reply, index) for index, reply in enumerate(replies)]
    return answer_json(_make_completion(call, "chat.completion", choices, replies))


def answer_fim(call: Call) -> Answer:
    """Mistral's ``POST /v1/fim/completions``."""
    ask = Ask(_read_prompt(call.data) + str(call.data.get("suffix") or ""), limit=read_limit(call.data, "max_tokens"))
    reply = make_reply(ask, call)
    if call.wants_stream:
        return _stream_chat(call, [reply])
    return answer_json(_make_completion(call, "chat.completion", [_make_choice(call, reply, 0)], [reply]))


def answer_completion(call: Call) -> Answer:
    """OpenAI's legacy ``POST /v1/completions``."""
    ask = Ask(_read_prompt(call.data), limit=read_limit(call.data, "max_tokens"))
    replies = [make_reply(ask, call, index) for index in range(_read_count(call.data))]
    if call.wants_stream:
        return _stream_completion(call, replies)
    choices = [
        {"text": reply.text, "index": index, "logprobs": None, "finish_reason": _finish(reply)}
        for index, reply in enumerate(replies)
    ]
    return answer_json(_make_completion(call, "text_completion", choices, replies))


def read_limit(data: dict[str, Any], *names: str) -> int | None:
    """The first of the named limits that is there. Raises ``RefusedError`` for one that is no positive integer."""
    for name in names:
        value = data.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RefusedError(
                400, f"Invalid value for {name}: expected a positive integer, got {value!r}.", param=name
            )
        return value
    return None


def _read_chat(data: dict[str, Any]) -> Ask:
    prompt, last_user = read_messages(data["messages"])
    tools = [
        Tool(str(tool["function"].get("name", "")), tool["function"].get("parameters") or {})
        for tool in data.get("tools") or ()
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    form = data.get("response_format") or {}
    schema: dict[str, Any] | None = None
    if form.get("type") == "json_object":
        schema = {}
    elif form.get("type") == "json_schema":
        schema = form.get("json_schema", {}).get("schema") or {}
    return Ask(
        prompt,
        choose_tool(tools, _read_forced(data.get("tool_choice")), last_user),
        schema,
        read_limit(data, "max_completion_tokens", "max_tokens"),
    )


def _read_forced(choice: object) -> str | None:
    if choice in ("required", "any"):
        return "*"
    if choice == "none":
        return ""
    if isinstance(choice, dict):
        return str(choice.get("function", {}).get("name", "*"))
    return None


def _read_count(data: dict[str, Any]) -> int:
    return min(read_limit(data, "n") or 1, _MAX_CHOICES)


def _read_prompt(data: dict[str, Any]) -> str:
    prompt = data.get("prompt")
    if prompt is None:
        raise RefusedError(400, "Missing required parameter: 'prompt'.", param="prompt")
    return prompt if isinstance(prompt, str) else str(prompt)


def _finish(reply: Reply) -> str:
    if reply.tool is not None:
        return "tool_calls"
    return "length" if reply.cut else "stop"


def _make_usage(replies: list[Reply]) -> dict[str, Any]:
    given, made = replies[0].input_tokens, sum([reply.output_tokens for reply in replies])
    return {
        "prompt_tokens": given,
        "completion_tokens": made,
        "total_tokens": given + made,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _make_completion(call: Call, kind: str, choices: list[dict[str, Any]], replies: list[Reply]) -> dict[str, Any]:
    value = _make_frame(call, kind)
    value["choices"] = choices
    if call.options.usage:
        value["usage"] = _make_usage(replies)
    return value


def _make_frame(call: Call, kind: str) -> dict[str, Any]:
    if call.dialect == MISTRAL:
        return {"id": call.make_id(""), "object": kind, "created": call.created, "model": call.model}
    return {
        "id": call.make_id("cmpl-" if kind == "text_completion" else "chatcmpl-"),
        "object": kind,
        "created": call.created,
        "model": call.model,
        "service_tier": "default",
        "system_fingerprint": "fp_mock",
    }


def _make_choice(call: Call, reply: Reply, index: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None if reply.tool else reply.text}
    if call.dialect != MISTRAL:
        message.update(refusal=None, annotations=[])
    if reply.tool is not None:
        message["tool_calls"] = [
            {
                "id": _tool_id(call, index),
                "type": "function",
                "function": {"name": reply.tool.name, "arguments": reply.text},
            }
        ]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": _finish(reply)}


def _tool_id(call: Call, index: int) -> str:
    # Mistral's ids are nine letters and digits, and its API refuses others when they come back.
    if call.dialect == MISTRAL:
        number = int.from_bytes(call.digest[:4], "big") if call.options.repeatable else call.serial
        return f"{number % 10**6:06d}{index:03d}"
    return call.make_id(f"call_{index}")


def _stream_chat(call: Call, replies: list[Reply]) -> Answer:
    frame = _make_frame(call, "chat.completion.chunk")
    with_usage = call.options.usage and bool((call.data.get("stream_options") or {}).get("include_usage"))
    end: dict[str, Any] = {}
    if with_usage:
        frame["usage"] = None
    if call.dialect == MISTRAL and call.options.usage:
        end["usage"] = _make_usage(replies)
        with_usage = False
    pieces: list[bytes] = []
    for index, reply in enumerate(replies):
        pieces += _stream_choice(call, frame, reply, index)
        final = {"index": index, "delta": {}, "logprobs": None, "finish_reason": _finish(reply)}
        if call.dialect == MISTRAL:
            final["delta"] = {"content": ""}
        last = end if index == len(replies) - 1 else {}
        pieces.append(make_event({**frame, "choices": [final], **last}))
    if with_usage:
        pieces.append(make_event({**frame, "choices": [], "usage": _make_usage(replies)}))
    pieces.append(_DONE)
    return Answer(content_type=SSE, pieces=pieces, terminal=1, error_event=_error_event(call))


def _stream_choice(call: Call, frame: dict[str, Any], reply: Reply, index: int) -> list[bytes]:
    """The role chunk and one chunk for each token."""
    delta: dict[str, Any] = {"role": "assistant", "content": ""}
    if call.dialect != MISTRAL:
        delta["refusal"] = None
    if reply.tool is None:
        opening = make_event({**frame, "choices": [_make_delta(index, delta)]})
        return [opening, *_repeat(frame, _make_delta(index, {"content": HOLE}), reply.tokens)]
    whole = call.dialect == MISTRAL
    function = {"name": reply.tool.name, "arguments": reply.text if whole else ""}
    tool_call = {"index": 0, "id": _tool_id(call, index), "type": "function", "function": function}
    delta.update(content="" if whole else None, tool_calls=[tool_call])
    opening = make_event({**frame, "choices": [_make_delta(index, delta)]})
    if whole:
        return [opening]
    hole = _make_delta(index, {"tool_calls": [{"index": 0, "function": {"arguments": HOLE}}]})
    return [opening, *_repeat(frame, hole, reply.tokens)]


def _make_delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _repeat(frame: dict[str, Any], choice: dict[str, Any], tokens: list[str]) -> list[bytes]:
    return repeat_event({**frame, "choices": [choice]}, tokens)


def _stream_completion(call: Call, replies: list[Reply]) -> Answer:
    frame = _make_frame(call, "text_completion")
    with_usage = call.options.usage and bool((call.data.get("stream_options") or {}).get("include_usage"))
    if with_usage:
        frame["usage"] = None
    pieces: list[bytes] = []
    for index, reply in enumerate(replies):
        choice = {"text": HOLE, "index": index, "logprobs": None, "finish_reason": None}
        pieces += _repeat(frame, choice, reply.tokens)
        pieces.append(make_event({**frame, "choices": [{**choice, "text": "", "finish_reason": _finish(reply)}]}))
    if with_usage:
        pieces.append(make_event({**frame, "choices": [], "usage": _make_usage(replies)}))
    pieces.append(_DONE)
    return Answer(content_type=SSE, pieces=pieces, terminal=1, error_event=_error_event(call))


def _error_event(call: Call) -> bytes:
    return make_error_event(call.dialect, call.make_id("req_"))
