"""OpenAI's responses as answers: events from their bytes, and whole responses from events."""

from __future__ import annotations

from typing import Any, Final

from proxy.protocol.events import (
    Declined,
    Delta,
    End,
    Event,
    Fault,
    Finish,
    Head,
    Reason,
    Thought,
    ToolDelta,
    UsageReport,
)
from proxy.protocol.routes import Dialect
from proxy.protocol.sse import SseEvent
from proxy.protocol.usage import Usage, UsageReader
from proxy.providers.base import Asked, Fields, dump, index_in, parse_object, words_in
from proxy.providers.faults import cut_off, fault_in_object
from proxy.providers.folding import Choice, Piece, fold
from proxy.providers.responses_read import PROOF
from proxy.providers.splitter import Splitter, TooLargeError

_INCOMPLETE: Final = {
    Reason.LENGTH: "max_output_tokens",
    Reason.FILTERED: "content_filter",
    Reason.BROKEN: "max_output_tokens",
}
_ENDINGS: Final = frozenset(("response.completed", "response.incomplete"))


# -- reading -----------------------------------------------------------------------------------------------------


class ResponsesReader:
    """One streamed answer."""

    # Mutable, written by `feed` and what it calls: _slots output index -> slot of its call, _told slots whose
    # arguments were told, _begun when the head was, _ended when nothing more is told.
    __slots__ = ("_begun", "_ended", "_slots", "_splitter", "_told", "_usage")

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._usage = UsageReader(Dialect.OPENAI, "responses")
        self._slots: dict[int, int] = {}
        self._told: set[int] = set()
        self._begun = False
        self._ended = False

    def feed(self, data: bytes) -> list[Event]:
        try:
            return self._take_all(self._splitter.feed(data))
        except TooLargeError:
            return self._end(cut_off("The upstream sent an event that is too large."))

    def close(self) -> list[Event]:
        events = self._take_all(self._splitter.close())
        return events if self._ended else events + self._end(cut_off())

    def _take_all(self, pieces: list[tuple[str, bytes]]) -> list[Event]:
        events: list[Event] = []
        for name, data in pieces:
            if self._ended:
                break
            fields = parse_object(data)
            if fields is not None:
                events += self._take(str(fields.get("type") or name), fields)
            elif not data.startswith(b"[DONE]"):
                events += self._end(cut_off())
        return events

    def _end(self, event: End | Fault) -> list[Event]:
        self._ended = True
        return [event]

    def _take(self, kind: str, fields: Fields) -> list[Event]:
        delta = fields.get("delta")
        if kind in _ENDINGS:
            return self._take_end(fields)
        if kind in ("response.failed", "error") or fields.get("error"):
            return self._end(fault_in_object(fields))
        if kind == "response.created":
            response = fields.get("response")
            self._begun = type(response) is dict
            return [_head_of(response)] if type(response) is dict else []
        if kind in ("response.output_item.added", "response.output_item.done"):
            return self._take_item(fields, kind.endswith("done"))
        if kind == "response.reasoning_summary_part.added":
            return [Thought("\n\n")] if fields.get("summary_index") else []
        if type(delta) is not str or not delta:
            return []
        if kind == "response.output_text.delta":
            return [Delta(delta)]
        if kind == "response.function_call_arguments.delta":
            slot = self._slots.get(index_in(fields, "output_index"), -1)
            self._told.add(slot)
            return [ToolDelta(slot, arguments=delta)] if slot >= 0 else []
        if kind in ("response.reasoning_summary_text.delta", "response.reasoning_text.delta"):
            return [Thought(delta)]
        return [Declined(delta)] if kind == "response.refusal.delta" else []

    def _take_item(self, fields: Fields, done: bool) -> list[Event]:
        item, index = fields.get("item"), index_in(fields, "output_index")
        if type(item) is not dict or item.get("type") != "function_call":
            return []
        events: list[Event] = []
        if index not in self._slots:
            self._slots[index] = len(self._slots)
            events.append(ToolDelta(self._slots[index], str(item.get("call_id") or ""), str(item.get("name") or "")))
        slot = self._slots[index]
        arguments = item.get("arguments")
        if done and slot not in self._told and type(arguments) is str and arguments:
            events.append(ToolDelta(slot, arguments=arguments))  # a server that tells calls whole
        return events

    def _take_end(self, fields: Fields) -> list[Event]:
        self._usage.feed(SseEvent("", b"", fields))
        usage = self._usage.usage()
        response = fields.get("response")
        if type(response) is not dict:
            return self._end(cut_off())
        head = [] if self._begun else [_head_of(response)]
        report = [] if usage is None else [UsageReport(usage)]
        return [*head, _finish_of(response, bool(self._slots)), *report, *self._end(End())]


def _head_of(response: Fields) -> Head:
    created = response.get("created_at")
    created_s = int(created) if isinstance(created, (int, float)) else 0
    return Head(str(response.get("id") or ""), str(response.get("model") or ""), created_s)


def _finish_of(response: Fields, calls: bool) -> Finish:
    if response.get("status") == "incomplete":
        match response.get("incomplete_details"):
            case {"reason": "content_filter"}:
                return Finish(Reason.FILTERED)
        return Finish(Reason.LENGTH)
    return Finish(Reason.TOOLS if calls else Reason.STOP)


def events_of_response(body: bytes) -> list[Event]:
    """The events of a whole answer; a ``Fault`` where it is none."""
    fields = parse_object(body)
    if fields is None or type(fields.get("output")) is not list:
        failed = fields is not None and bool(fields.get("error"))
        return [fault_in_object(fields or {}) if failed else cut_off("The upstream's answer has no output.")]
    if fields.get("status") == "failed" or fields.get("error"):
        return [fault_in_object(fields)]
    events: list[Event] = [_head_of(fields)]
    calls = 0
    for item in fields["output"]:
        match item:
            case {"type": "message", "content": list(parts)}:
                events += _events_of_parts(parts)
            case {"type": "function_call", "name": str(name), "arguments": str(arguments)}:
                events.append(ToolDelta(calls, str(item.get("call_id") or ""), name, arguments))
                calls += 1
            case {"type": "reasoning"}:
                said = item.get("summary") or item.get("content")
                parts = said if type(said) is list else []
                texts = [words_in(part, "text") for part in parts if type(part) is dict]
                events += [Thought("\n\n".join(texts))] if texts else []
    events.append(_finish_of(fields, bool(calls)))
    reader = UsageReader(Dialect.OPENAI, "responses")
    reader.feed(SseEvent("", b"", fields))
    usage = reader.usage()
    return [*events, *([UsageReport(usage)] if usage else ()), End()]


def _events_of_parts(parts: list[Any]) -> list[Event]:
    events: list[Event] = []
    for part in parts:
        match part:
            case {"type": "output_text", "text": str(text)} if text:
                events.append(Delta(text))
            case {"type": "refusal", "refusal": str(text)}:
                events.append(Declined(text))
    return events


# -- writing -----------------------------------------------------------------------------------------------------


def response_usage(usage: Usage) -> Fields:
    """What tokens are called here."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def make_response(head: Head, asked: Asked) -> Fields:
    """A response that has just begun; what the caller asked for is told again, as the API does."""
    fields = asked.fields
    text = fields.get("text")
    response_id = head.id if head.id.startswith("resp") else f"resp_{head.id}"
    return {
        "id": response_id,
        "object": "response",
        "created_at": head.created_s or asked.created_s,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": fields.get("instructions"),
        "max_output_tokens": fields.get("max_output_tokens"),
        "model": head.model,
        "output": [],
        "parallel_tool_calls": fields.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None, **(fields.get("reasoning") or {})},
        "store": False,
        "temperature": fields.get("temperature", 1.0),
        "text": text if type(text) is dict and text.get("format") else {"format": {"type": "text"}},
        "tool_choice": fields.get("tool_choice", "auto"),
        "tools": fields.get("tools") or [],
        "top_p": fields.get("top_p", 1.0),
        "truncation": fields.get("truncation", "disabled"),
        "usage": None,
        "user": fields.get("user"),
        "metadata": fields.get("metadata") or {},
    }


def close_response(response: Fields, output: list[Fields], finish: Finish, usage: Usage | None) -> Fields:
    """The same response at its end."""
    why = _INCOMPLETE.get(finish.reason)
    return {
        **response,
        "status": "incomplete" if why else "completed",
        "incomplete_details": {"reason": why} if why else None,
        "output": output,
        "usage": None if usage is None else response_usage(usage),
    }


def custom_tools(asked: Asked) -> frozenset[str]:
    """Names of the caller's tools that take free text."""
    tools = asked.fields.get("tools")
    return frozenset(
        [str(tool.get("name")) for tool in tools if type(tool) is dict and tool.get("type") == "custom"]
        if type(tools) is list
        else ()
    )


def input_of(arguments: str) -> str:
    """The free text inside the arguments of a function that stands for a custom tool."""
    fields = parse_object(arguments.encode())
    said = None if fields is None else fields.get("input")
    return said if type(said) is str else arguments


def name_item(piece: Piece, item_id: str, custom: frozenset[str]) -> str:
    """The id of a piece's item: its kind in front, as the API does."""
    if piece.kind == "tool":
        return f"ctc_{item_id}" if piece.name in custom else f"fc_{item_id}"
    return f"rs_{item_id}" if piece.kind == "thought" else f"msg_{item_id}"


def make_item(piece: Piece, item_id: str, custom: frozenset[str], status: str = "completed") -> Fields:
    """One output item from a piece."""
    item_id = name_item(piece, item_id, custom)
    if piece.kind == "tool":
        said: Fields = {"id": item_id, "status": status, "call_id": piece.id, "name": piece.name}
        if piece.name in custom:
            return {"type": "custom_tool_call", **said, "input": input_of(piece.text)}
        arguments = piece.text or ("{}" if status == "completed" else "")
        return {"type": "function_call", **said, "arguments": arguments}
    if piece.kind == "thought":
        summary = [{"type": "summary_text", "text": piece.text}] if piece.text else []
        item: Fields = {"id": item_id, "type": "reasoning", "summary": summary}
        if piece.signature and not piece.redacted:
            item["encrypted_content"] = PROOF + piece.signature
        return item
    content = [make_part(piece)] if status == "completed" else []
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def make_part(piece: Piece) -> Fields:
    if piece.kind == "declined":
        return {"type": "refusal", "refusal": piece.text}
    return {"type": "output_text", "text": piece.text, "annotations": [], "logprobs": []}


def response_body(events: list[Event], asked: Asked) -> bytes:
    """A whole response."""
    answer = fold(events)
    choice = answer.choices.get(0) or Choice()
    custom = custom_tools(asked)
    response = make_response(answer.head, asked)
    output = [make_item(piece, f"{answer.head.id}_{at}", custom) for at, piece in enumerate(choice.pieces)]
    return dump(close_response(response, output, choice.finish, answer.usage))
