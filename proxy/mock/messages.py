"""Anthropic's Messages API: whole messages, their event streams and token counts."""

from __future__ import annotations

from typing import Any

import orjson

from proxy.mock.answer import HOLE, SSE, Answer, Call, answer_json, make_event, repeat_event
from proxy.mock.chat import read_limit
from proxy.mock.refusal import RefusedError, make_error_event
from proxy.mock.reply import Ask, Reply, Tool, choose_tool, count_tokens, make_reply, read_messages, read_text


def answer_message(call: Call) -> Answer:
    """``POST /v1/messages``."""
    if not isinstance(call.data.get("messages"), list) or not call.data["messages"]:
        raise RefusedError(400, "messages: Field required")
    limit = read_limit(call.data, "max_tokens")
    if limit is None:
        raise RefusedError(400, "max_tokens: Field required")
    reply = make_reply(_read_ask(call.data, limit), call)
    if call.wants_stream:
        return _stream(call, reply)
    message = _make_message(call, reply, [_make_block(call, reply)])
    message["stop_reason"] = _stop_reason(reply)
    message["usage"] = _make_usage(call, reply.input_tokens, reply.output_tokens)
    return answer_json(message)


def count_message(call: Call) -> Answer:
    """``POST /v1/messages/count_tokens``."""
    if not isinstance(call.data.get("messages"), list):
        raise RefusedError(400, "messages: Field required")
    return answer_json({"input_tokens": count_tokens(_read_ask(call.data, None).prompt)})


def _read_ask(data: dict[str, Any], limit: int | None) -> Ask:
    prompt, last_user = read_messages(data["messages"])
    tools = [
        Tool(str(tool["name"]), tool.get("input_schema") or {})
        for tool in data.get("tools") or ()
        if isinstance(tool, dict) and "name" in tool
    ]
    form = (data.get("output_config") or {}).get("format") or {}
    schema = form.get("schema") if form.get("type") == "json_schema" else None
    tool = choose_tool(tools, _read_forced(data.get("tool_choice")), last_user)
    return Ask(read_text(data.get("system")) + prompt, tool, schema, limit)


def _read_forced(choice: object) -> str | None:
    if not isinstance(choice, dict):
        return None
    kind = choice.get("type")
    if kind == "tool":
        return str(choice.get("name", "*"))
    return {"any": "*", "none": ""}.get(str(kind))


def _stop_reason(reply: Reply) -> str:
    if reply.tool is not None:
        return "tool_use"
    return "max_tokens" if reply.cut else "end_turn"


def _make_block(call: Call, reply: Reply) -> dict[str, Any]:
    if reply.tool is None:
        return {"type": "text", "text": reply.text}
    return {
        "type": "tool_use",
        "id": call.make_id("toolu_"),
        "name": reply.tool.name,
        "input": orjson.loads(reply.text),
    }


def _make_usage(call: Call, given: int, made: int) -> dict[str, Any]:
    # The field is required by clients, so that switching usage off means zeros here.
    if not call.options.usage:
        given = made = 0
    return {
        "input_tokens": given,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": made,
        "service_tier": "standard",
    }


def _make_message(call: Call, reply: Reply, content: list[dict[str, Any]]) -> dict[str, Any]:
    """A message that has just begun: no stop reason, one output token."""
    return {
        "id": call.make_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _make_usage(call, reply.input_tokens, 1),
    }


def _stream(call: Call, reply: Reply) -> Answer:
    block: dict[str, Any] = {"type": "text", "text": ""}
    kind, field = "text_delta", "text"
    if reply.tool is not None:
        block = {**_make_block(call, reply), "input": {}}
        kind, field = "input_json_delta", "partial_json"
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: HOLE}}
    ending = {
        "type": "message_delta",
        "delta": {"stop_reason": _stop_reason(reply), "stop_sequence": None},
        "usage": {"output_tokens": reply.output_tokens if call.options.usage else 0},
    }
    pieces = [
        _name({"type": "message_start", "message": _make_message(call, reply, [])}),
        _name({"type": "content_block_start", "index": 0, "content_block": block}),
        _name({"type": "ping"}),
        *repeat_event(delta, reply.tokens, "content_block_delta"),
        _name({"type": "content_block_stop", "index": 0}),
        _name(ending),
        _name({"type": "message_stop"}),
    ]
    error = make_error_event(call.dialect, call.make_id("req_"))
    return Answer(content_type=SSE, pieces=pieces, terminal=1, error_event=error)


def _name(event: dict[str, Any]) -> bytes:
    """An event that is named after its type; clients of this dialect drop those without a name."""
    return make_event(event, event["type"])
