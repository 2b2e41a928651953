"""Anthropic's messages as answers: events from their bytes, and their bytes from events."""

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
    Proof,
    Reason,
    Thought,
    ToolDelta,
    UsageReport,
)
from proxy.protocol.routes import Dialect
from proxy.protocol.sse import SseEvent, make_event
from proxy.protocol.usage import Usage, UsageReader
from proxy.providers.base import (
    Asked,
    Fields,
    dump,
    dump_arguments,
    index_in,
    parse_arguments,
    parse_object,
    words_in,
)
from proxy.providers.faults import cut_off, fault_in_object
from proxy.providers.folding import Piece, fold
from proxy.providers.splitter import Splitter, TooLargeError

_REASONS: Final = {
    "end_turn": Reason.STOP,
    "stop_sequence": Reason.STOP_SEQUENCE,
    "max_tokens": Reason.LENGTH,
    "model_context_window_exceeded": Reason.LENGTH,
    "tool_use": Reason.TOOLS,
    "refusal": Reason.FILTERED,
    "pause_turn": Reason.PAUSED,
}
_WORDS: Final = {
    Reason.STOP: "end_turn",
    Reason.STOP_SEQUENCE: "stop_sequence",
    Reason.LENGTH: "max_tokens",
    Reason.TOOLS: "tool_use",
    Reason.FILTERED: "refusal",
    Reason.PAUSED: "pause_turn",
    Reason.BROKEN: "max_tokens",
}


# -- reading -----------------------------------------------------------------------------------------------------


class MessagesReader:
    """One streamed answer."""

    # Mutable, written by `feed` and what it calls: _slots block index -> slot of its tool call (-1: JSON output),
    # _calls the calls so far, _begun and _finished as the upstream said so, _ended when nothing more is told.
    __slots__ = ("_begun", "_calls", "_ended", "_finished", "_json_tool", "_slots", "_splitter", "_usage")

    def __init__(self, json_tool: str = "") -> None:
        self._splitter = Splitter()
        self._usage = UsageReader(Dialect.ANTHROPIC, "messages")
        self._json_tool = json_tool
        self._slots: dict[int, int] = {}
        self._calls = 0
        self._begun = False
        self._finished = False
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
        for _, data in pieces:
            if self._ended:
                break
            fields = parse_object(data)
            events += self._end(cut_off()) if fields is None else self._take(fields)
        return events

    def _end(self, event: End | Fault) -> list[Event]:
        self._ended = True
        return [event]

    def _take(self, fields: Fields) -> list[Event]:
        kind = fields.get("type")
        if kind == "content_block_delta":
            return self._take_delta(index_in(fields), _object(fields, "delta"))
        if kind == "content_block_start":
            return self._take_start(index_in(fields), _object(fields, "content_block"))
        if kind == "message_start":
            self._begun = True
            message = _object(fields, "message")
            return [_head_of(message), *self._take_usage(fields)]
        if kind == "message_delta":
            delta = _object(fields, "delta")
            finish = _finish_of(delta, self._calls) if delta.get("stop_reason") else []
            self._finished = self._finished or bool(finish)
            return [*finish, *self._take_usage(fields)]
        if kind == "message_stop":
            return self._end(End() if self._begun and self._finished else cut_off())
        if kind == "error" or fields.get("error"):
            return self._end(fault_in_object(fields))
        return []  # pings, and events that do not exist yet

    def _take_usage(self, fields: Fields) -> list[Event]:
        self._usage.feed(SseEvent("", b"", fields))
        usage = self._usage.usage()
        return [] if usage is None else [UsageReport(usage)]

    def _take_start(self, index: int, block: Fields) -> list[Event]:
        kind = block.get("type")
        if kind == "tool_use":
            if block.get("name") == self._json_tool:
                self._slots[index] = -1
                return []
            slot = self._slots[index] = self._calls
            self._calls += 1
            return [ToolDelta(slot, str(block.get("id") or ""), str(block.get("name") or ""))]
        if kind == "text":
            return [Delta(text)] if (text := words_in(block, "text")) else []
        if kind == "thinking":
            return [Thought(text)] if (text := words_in(block, "thinking")) else []
        if kind == "redacted_thinking":
            return [Proof("", redacted=str(block.get("data") or ""))]
        return []

    def _take_delta(self, index: int, delta: Fields) -> list[Event]:
        match delta:
            case {"type": "text_delta", "text": str(text)}:
                return [Delta(text)]
            case {"type": "input_json_delta", "partial_json": str(text)}:
                if not text or index not in self._slots:
                    return []
                slot = self._slots[index]
                return [Delta(text) if slot < 0 else ToolDelta(slot, arguments=text)]
            case {"type": "thinking_delta", "thinking": str(text)}:
                return [Thought(text)]
            case {"type": "signature_delta", "signature": str(signature)}:
                return [Proof(signature)]
        return []


def _object(fields: Fields, name: str) -> Fields:
    value = fields.get(name)
    return value if type(value) is dict else {}


def _head_of(message: Fields) -> Head:
    return Head(str(message.get("id") or ""), str(message.get("model") or ""))


def _finish_of(owner: Fields, calls: int) -> list[Event]:
    """Why it ended; what it said about a refusal goes before it."""
    reason = _REASONS.get(str(owner.get("stop_reason")), Reason.STOP)
    if reason is Reason.TOOLS and not calls:
        reason = Reason.STOP  # the one call was the JSON output
    sequence = owner.get("stop_sequence")
    details = _object(owner, "stop_details")
    explanation = details.get("explanation")
    finish = Finish(reason, 0, sequence if type(sequence) is str else None)
    return [Declined(explanation), finish] if type(explanation) is str and explanation else [finish]


def events_of_message(body: bytes, json_tool: str = "") -> list[Event]:
    """The events of a whole answer; a ``Fault`` where it is none."""
    fields = parse_object(body)
    if fields is None:
        return [cut_off("The upstream's answer is not valid JSON.")]
    if fields.get("type") == "error" or type(fields.get("content")) is not list:
        return [fault_in_object(fields) if fields.get("error") else cut_off("The upstream's answer has no content.")]
    events: list[Event] = [_head_of(fields)]
    calls = 0
    for block in fields["content"]:
        if type(block) is not dict:
            continue
        told = _events_of_block(block, calls, json_tool)
        calls += sum(isinstance(event, ToolDelta) for event in told)
        events += told
    events += _finish_of(fields, calls)
    reader = UsageReader(Dialect.ANTHROPIC, "messages")
    reader.feed(SseEvent("", b"", fields))
    usage = reader.usage()
    return [*events, *([UsageReport(usage)] if usage else ()), End()]


def _events_of_block(block: Fields, calls: int, json_tool: str) -> list[Event]:
    match block:
        case {"type": "text", "text": str(text)}:
            return [Delta(text)] if text else []
        case {"type": "tool_use", "name": str(name)} if name == json_tool:
            return [Delta(dump_arguments(block.get("input")))]
        case {"type": "tool_use", "name": str(name)}:
            return [ToolDelta(calls, str(block.get("id") or ""), name, dump_arguments(block.get("input")))]
        case {"type": "thinking", "thinking": str(text)}:
            thoughts: list[Event] = [Thought(text)] if text else []
            return [*thoughts, Proof(proof)] if (proof := words_in(block, "signature")) else thoughts
        case {"type": "redacted_thinking", "data": str(data)}:
            return [Proof("", redacted=data)]
    return []


# -- writing -----------------------------------------------------------------------------------------------------


class MessagesWriter:
    """Named events for one caller."""

    # Mutable, written by `write`: _open is the kind of the block that is being told ("" for none), _index its number,
    # _tools slot -> number of its block, _finish and _usage wait for the end, _declined: a refusal was told.
    __slots__ = ("_asked", "_declined", "_finish", "_index", "_open", "_slot", "_tools", "_usage")

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._open = ""
        self._slot = -1
        self._index = -1
        self._tools: dict[int, int] = {}
        self._finish = Finish(Reason.STOP)
        self._usage: Usage | None = None
        self._declined = False

    def write(self, event: Event) -> bytes:
        if isinstance(event, Delta):
            return self._in_block("text", {"type": "text_delta", "text": event.text}) if event.text else b""
        if isinstance(event, ToolDelta):
            return self._write_tool(event)
        if isinstance(event, Thought):
            return self._in_block("thinking", {"type": "thinking_delta", "thinking": event.text})
        if isinstance(event, Proof):
            return self._write_proof(event)
        if isinstance(event, Declined):
            self._declined = True
            return self._in_block("text", {"type": "text_delta", "text": event.text})
        if isinstance(event, Head):
            return _event("message_start", message=_make_message(event, [], self._usage))
        if isinstance(event, Finish):
            self._finish = event
            return b""
        if isinstance(event, UsageReport):
            self._usage = event.usage
            return b""
        if isinstance(event, Fault):
            return make_event(dump(fault_object(event, "")), "error")
        return self._write_end()

    def _in_block(self, kind: str, delta: Fields) -> bytes:
        front = b"" if self._open == kind else self._begin(kind, _EMPTY[kind])
        return front + _event("content_block_delta", index=self._index, delta=delta)

    def _begin(self, kind: str, block: Fields) -> bytes:
        stop = self._stop()
        self._open = kind
        self._index += 1
        return stop + _event("content_block_start", index=self._index, content_block=block)

    def _stop(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event("content_block_stop", index=self._index)

    def _write_tool(self, event: ToolDelta) -> bytes:
        front = b""
        if event.slot not in self._tools:
            block = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
            front = self._begin("tool", block)
            self._tools[event.slot] = self._index
        if not event.arguments:
            return front
        delta = {"type": "input_json_delta", "partial_json": event.arguments}
        # A server may tell two calls in turns; a delta then goes to the block of its call, though another is open.
        return front + _event("content_block_delta", index=self._tools[event.slot], delta=delta)

    def _write_proof(self, event: Proof) -> bytes:
        if event.redacted:
            return self._begin("redacted", {"type": "redacted_thinking", "data": event.redacted}) + self._stop()
        told = self._in_block("thinking", {"type": "signature_delta", "signature": event.signature})
        return told + self._stop()

    def _write_end(self) -> bytes:
        reason = _stop_reason(self._finish, self._declined)
        delta = {"stop_reason": reason, "stop_sequence": self._finish.stop_sequence}
        return (
            self._stop()
            + _event("message_delta", delta=delta, usage=message_usage(self._usage))
            + _event("message_stop")
        )


_EMPTY: Final[dict[str, Fields]] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}


def _event(kind: str, **members: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + dump({"type": kind, **members}) + b"\n\n"


def _stop_reason(finish: Finish, declined: bool) -> str:
    return "refusal" if declined and finish.reason is Reason.STOP else _WORDS[finish.reason]


def _make_message(head: Head, content: list[Fields], usage: Usage | None) -> Fields:
    message_id = head.id if head.id.startswith("msg") else f"msg_{head.id}"
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": message_usage(usage),
    }


def message_usage(usage: Usage | None) -> Fields:
    """What tokens are called here: the input is what no cache gave or took."""
    if usage is None:
        return {"input_tokens": 0, "output_tokens": 0}
    said: Fields = {
        "input_tokens": usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
    }
    if usage.reasoning_tokens:
        said["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return said


def message_body(events: list[Event], asked: Asked) -> bytes:
    """A whole message."""
    answer = fold(events)
    choice = answer.choices.get(0)
    pieces = choice.pieces if choice is not None else []
    content = [_write_piece(piece) for piece in pieces]
    body = _make_message(answer.head, content, answer.usage)
    if choice is not None:
        body["stop_reason"] = _stop_reason(choice.finish, bool(choice.of("declined")))
        body["stop_sequence"] = choice.finish.stop_sequence
    return dump(body)


def _write_piece(piece: Piece) -> Fields:
    if piece.kind == "tool":
        return {"type": "tool_use", "id": piece.id, "name": piece.name, "input": parse_arguments(piece.text)}
    if piece.redacted:
        return {"type": "redacted_thinking", "data": piece.redacted}
    if piece.kind == "thought":
        return {"type": "thinking", "thinking": piece.text, "signature": piece.signature}
    return {"type": "text", "text": piece.text}


def fault_object(fault: Fault, request_id: str) -> Fields:
    row = fault.cause.value
    return {
        "type": "error",
        "error": {"type": row.anthropic_type, "message": fault.message},
        "request_id": request_id or None,
    }
