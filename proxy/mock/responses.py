"""OpenAI's Responses API: whole answers, streams of named events, and stored responses."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from proxy.mock.answer import SSE, Answer, Call, answer_json, make_event
from proxy.mock.chat import read_limit
from proxy.mock.refusal import RefusedError
from proxy.mock.reply import Ask, Reply, Tool, choose_tool, count_tokens, make_reply, read_messages

MAX_STORED = 1000


class Responses:
    """The responses of one mock; stored ones can be read back until ``MAX_STORED`` newer ones exist."""

    # The mutable state: _stored maps id -> whole response, oldest first. Only this class writes it.
    __slots__ = ("_stored",)

    def __init__(self) -> None:
        self._stored: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def create(self, call: Call) -> Answer:
        """``POST /v1/responses``."""
        if call.data.get("input") is None:
            raise RefusedError(400, "Missing required parameter: 'input'.", param="input")
        reply = make_reply(_read_ask(call.data), call)
        item = _make_item(call, reply, "completed")
        response = _make_response(call, "incomplete" if reply.cut else "completed", [item], reply)
        if call.data.get("store") is not False:
            self._store(response)
        if call.wants_stream:
            return _stream(call, reply, item, response)
        return answer_json(response)

    def read(self, response_id: str) -> Answer:
        """``GET /v1/responses/{id}``."""
        return answer_json(self._find(response_id))

    def delete(self, response_id: str) -> Answer:
        """``DELETE /v1/responses/{id}``."""
        self._find(response_id)
        del self._stored[response_id]
        return answer_json({"id": response_id, "object": "response", "deleted": True})

    def _find(self, response_id: str) -> dict[str, Any]:
        try:
            return self._stored[response_id]
        except KeyError:
            raise RefusedError(404, f"Response with id '{response_id}' not found.") from None

    def _store(self, response: dict[str, Any]) -> None:
        self._stored[response["id"]] = response
        if len(self._stored) > MAX_STORED:
            self._stored.popitem(last=False)


def count_input(call: Call) -> Answer:
    """``POST /v1/responses/input_tokens``."""
    tokens = count_tokens(_read_ask(call.data).prompt)
    return answer_json({"object": "response.input_tokens", "input_tokens": tokens})


def _read_ask(data: dict[str, Any]) -> Ask:
    given = data.get("input")
    prompt, last_user = (given, given) if isinstance(given, str) else read_messages(given)
    tools = [
        Tool(str(tool.get("name", "")), tool.get("parameters") or {})
        for tool in data.get("tools") or ()
        if isinstance(tool, dict) and tool.get("type") == "function"
    ]
    form = (data.get("text") or {}).get("format") or {}
    schema: dict[str, Any] | None = None
    if form.get("type") == "json_object":
        schema = {}
    elif form.get("type") == "json_schema":
        schema = form.get("schema") or {}
    return Ask(
        f"{data.get('instructions') or ''}{prompt}",
        choose_tool(tools, _read_forced(data.get("tool_choice")), last_user),
        schema,
        read_limit(data, "max_output_tokens"),
    )


def _read_forced(choice: object) -> str | None:
    if choice == "required":
        return "*"
    if choice == "none":
        return ""
    return str(choice.get("name", "*")) if isinstance(choice, dict) else None


def _make_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _make_item(call: Call, reply: Reply, status: str) -> dict[str, Any]:
    """The one output item: a message or a function call, empty while it is in progress."""
    text = reply.text if status == "completed" else ""
    if reply.tool is not None:
        return {
            "id": call.make_id("fc_"),
            "type": "function_call",
            "status": status,
            "call_id": call.make_id("call_"),
            "name": reply.tool.name,
            "arguments": text,
        }
    content = [_make_part(text)] if status == "completed" else []
    return {"id": call.make_id("msg_"), "type": "message", "status": status, "role": "assistant", "content": content}


def _make_response(call: Call, status: str, output: list[dict[str, Any]], reply: Reply | None) -> dict[str, Any]:
    data = call.data
    now = call.created
    usage = None
    if reply is not None and call.options.usage:
        usage = {
            "input_tokens": reply.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": reply.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": reply.input_tokens + reply.output_tokens,
        }
    return {
        "id": call.make_id("resp_"),
        "object": "response",
        "created_at": now,
        "completed_at": now if status == "completed" else None,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": data.get("instructions"),
        "max_output_tokens": data.get("max_output_tokens"),
        "model": call.model,
        "output": output,
        "parallel_tool_calls": data.get("parallel_tool_calls", True),
        "previous_response_id": data.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": data.get("store") is not False,
        "temperature": data.get("temperature", 1.0),
        "text": data.get("text") or {"format": {"type": "text"}},
        "tool_choice": data.get("tool_choice", "auto"),
        "tools": data.get("tools") or [],
        "top_p": data.get("top_p", 1.0),
        "truncation": data.get("truncation", "disabled"),
        "usage": usage,
        "user": data.get("user"),
        "metadata": data.get("metadata") or {},
    }


class _Script:
    """Collects events and numbers them."""

    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def add(self, kind: str, **values: object) -> None:
        self.pieces.append(make_event({"type": kind, "sequence_number": len(self.pieces), **values}, kind))


def _stream(call: Call, reply: Reply, item: dict[str, Any], response: dict[str, Any]) -> Answer:
    script = _Script()
    started = _make_response(call, "in_progress", [], None)
    script.add("response.created", response=started)
    script.add("response.in_progress", response=started)
    script.add("response.output_item.added", output_index=0, item=_make_item(call, reply, "in_progress"))
    if reply.tool is None:
        _add_text(script, reply, item)
    else:
        where = {"item_id": item["id"], "output_index": 0}
        for token in reply.tokens:
            script.add("response.function_call_arguments.delta", **where, delta=token)
        script.add(
            "response.function_call_arguments.done", **where, name=reply.tool.name, arguments=item["arguments"]
        )
    script.add("response.output_item.done", output_index=0, item=item)
    script.add(f"response.{response['status']}", response=response)
    failure = {"type": "error", "sequence_number": 0, "code": "server_error", "message": "Overloaded", "param": None}
    return Answer(content_type=SSE, pieces=script.pieces, terminal=1, error_event=make_event(failure, "error"))


def _add_text(script: _Script, reply: Reply, item: dict[str, Any]) -> None:
    where = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    script.add("response.content_part.added", **where, part=_make_part(""))
    for token in reply.tokens:
        script.add("response.output_text.delta", **where, delta=token, logprobs=[])
    script.add("response.output_text.done", **where, text=reply.text, logprobs=[])
    script.add("response.content_part.done", **where, part=_make_part(reply.text))
