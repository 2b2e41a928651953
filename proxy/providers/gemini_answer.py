"""Gemini's generateContent as answers: events from their bytes, and their bytes from events."""

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
from proxy.protocol.usage import Usage
from proxy.providers.base import Asked, Fields, dump, dump_arguments, index_in, parse_arguments, parse_object
from proxy.providers.faults import cut_off, fault_in_object
from proxy.providers.folding import Answer, Choice, Piece, fold
from proxy.providers.splitter import Splitter, TooLargeError

_REASONS: Final = {
    "STOP": Reason.STOP,
    "MAX_TOKENS": Reason.LENGTH,
    "SAFETY": Reason.FILTERED,
    "RECITATION": Reason.FILTERED,
    "LANGUAGE": Reason.FILTERED,
    "BLOCKLIST": Reason.FILTERED,
    "PROHIBITED_CONTENT": Reason.FILTERED,
    "SPII": Reason.FILTERED,
    "IMAGE_SAFETY": Reason.FILTERED,
}
_WORDS: Final = {
    Reason.STOP: "STOP",
    Reason.STOP_SEQUENCE: "STOP",
    Reason.TOOLS: "STOP",
    Reason.LENGTH: "MAX_TOKENS",
    Reason.FILTERED: "SAFETY",
    Reason.PAUSED: "STOP",
    Reason.BROKEN: "OTHER",
}
_MAX_COUNT: Final = 1 << 53
_NOTHING: Final = {"parts": [{"text": ""}], "role": "model"}


# -- reading -----------------------------------------------------------------------------------------------------


class GeminiReader:
    """One answer, streamed or whole (`take_whole`). A stream has no last word: its end is that of the body."""

    # Mutable, written by `feed` and what it calls: _head and _id since the head was told, _calls choice -> calls so
    # far, _finished: some choice has ended, _ended: nothing more is told.
    __slots__ = ("_calls", "_ended", "_finished", "_head", "_id", "_splitter")

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._head = False
        self._id = ""
        self._calls: dict[int, int] = {}
        self._finished = False
        self._ended = False

    def feed(self, data: bytes) -> list[Event]:
        try:
            return self._take_all(self._splitter.feed(data))
        except TooLargeError:
            return self._end(cut_off("The upstream sent an event that is too large."))

    def close(self) -> list[Event]:
        events = self._take_all(self._splitter.close())
        return events if self._ended else events + self._end(End() if self._finished else cut_off())

    def take_whole(self, fields: Fields) -> list[Event]:
        events = self._take(fields)
        return events if self._ended else events + self._end(End() if self._finished else cut_off())

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
        if fields.get("error"):
            return self._end(fault_in_object(fields))
        events: list[Event] = []
        if not self._head:
            self._head = True
            self._id = str(fields.get("responseId") or "")
            events.append(Head(self._id, str(fields.get("modelVersion") or "")))
        candidates = fields.get("candidates")
        for candidate in candidates if type(candidates) is list else ():
            if type(candidate) is dict:
                events += self._take_candidate(candidate)
        match fields.get("promptFeedback"):
            case {"blockReason": str(reason)} if not candidates:
                self._finished = True
                events += [Declined(f"The prompt was blocked: {reason}."), Finish(Reason.FILTERED)]
        usage = _read_usage(fields.get("usageMetadata"))
        return [*events, UsageReport(usage)] if usage is not None else events

    def _take_candidate(self, candidate: Fields) -> list[Event]:
        choice = index_in(candidate)
        content = candidate.get("content")
        parts = content.get("parts") if type(content) is dict else None
        events: list[Event] = []
        for part in parts if type(parts) is list else ():
            if type(part) is dict:
                events += self._take_part(part, choice)
        said = candidate.get("finishReason")
        if type(said) is str and said and said != "FINISH_REASON_UNSPECIFIED":
            self._finished = True
            reason = _REASONS.get(said, Reason.BROKEN)
            if (reason is Reason.STOP or said == "FUNCTION_CALL") and self._calls.get(choice):
                reason = Reason.TOOLS  # Google itself says "STOP", servers that take its place may say more
            events.append(Finish(reason, choice))
        return events

    def _take_part(self, part: Fields, choice: int) -> list[Event]:
        text = part.get("text")
        if type(text) is str:
            if not text:
                return []
            return [Thought(text, choice)] if part.get("thought") is True else [Delta(text, choice)]
        call = part.get("functionCall")
        if type(call) is not dict:
            return []
        slot = self._calls.get(choice, 0)
        self._calls[choice] = slot + 1
        call_id = str(call.get("id") or f"call_{self._id}_{choice}_{slot}")
        signature = str(part.get("thoughtSignature") or "")
        arguments = dump_arguments(call.get("args"))
        return [ToolDelta(slot, call_id, str(call.get("name") or ""), arguments, choice, signature)]


def events_of_content(body: bytes) -> list[Event]:
    """The events of a whole answer; a ``Fault`` where it is none."""
    fields = parse_object(body)
    if fields is None:
        return [cut_off("The upstream's answer is not valid JSON.")]
    return GeminiReader().take_whole(fields)


def _read_usage(said: object) -> Usage | None:
    """``None`` for no report or an impossible one. Thoughts are counted beside the answer here, and the prompts that
    tools wrote beside the prompt."""
    if type(said) is not dict:
        return None
    counts = []
    for name in (
        "promptTokenCount", "toolUsePromptTokenCount", "candidatesTokenCount", "thoughtsTokenCount",
        "cachedContentTokenCount",
    ):
        value = said.get(name) or 0
        if type(value) is not int or not 0 <= value < _MAX_COUNT:
            return None
        counts.append(value)
    given, by_tools, produced, thoughts, cached = counts
    if cached > given + by_tools:
        return None
    return Usage(given + by_tools, produced + thoughts, cached, 0, thoughts)


# -- writing -----------------------------------------------------------------------------------------------------


class GeminiWriter:
    """Chunks for one caller. Calls of tools are told whole, as the dialect has no pieces of them."""

    # Mutable, written by `write`: _frame since the answer began, _calls choice -> the call that is not complete,
    # _finish choice -> why it ended, _usage the last report.
    __slots__ = ("_calls", "_finish", "_frame", "_usage")

    def __init__(self) -> None:
        self._frame: Fields = {}
        self._calls: dict[int, Piece] = {}
        self._finish: dict[int, Finish] = {}
        self._usage: Usage | None = None

    def write(self, event: Event) -> bytes:
        if isinstance(event, Head):
            self._frame = {"modelVersion": event.model, "responseId": event.id}
        elif isinstance(event, UsageReport):
            self._usage = event.usage
        elif isinstance(event, (Delta, Thought, Declined)):
            part: Fields = {"text": event.text}
            if isinstance(event, Thought):
                part["thought"] = True
            return self._flush(event.choice) + self._chunk(event.choice, [part]) if event.text else b""
        elif isinstance(event, ToolDelta):
            return self._take_call(event)
        elif isinstance(event, Finish):
            self._finish[event.choice] = event
            return self._flush(event.choice)
        elif isinstance(event, Fault):
            return b"data: " + dump(fault_object(event)) + b"\n\n"
        elif isinstance(event, End):
            return self._write_end()
        return b""

    def _take_call(self, event: ToolDelta) -> bytes:
        call = self._calls.get(event.choice)
        out = b""
        if call is None or call.slot != event.slot:
            out = self._flush(event.choice)
            call = Piece("tool", [], event.id, event.name, event.signature, slot=event.slot)
            self._calls[event.choice] = call
        call.parts.append(event.arguments)
        return out

    def _flush(self, choice: int) -> bytes:
        call = self._calls.pop(choice, None)
        return b"" if call is None else self._chunk(choice, [_call_part(call)])

    def _chunk(self, choice: int, parts: list[Fields]) -> bytes:
        candidate = {"content": {"parts": parts, "role": "model"}, "index": choice}
        return b"data: " + dump({"candidates": [candidate], **self._frame}) + b"\n\n"

    def _write_end(self) -> bytes:
        candidates = [
            {"content": _NOTHING, "finishReason": _WORDS[ending.reason], "index": at}
            for at, ending in sorted(self._finish.items())
        ]
        said: Fields = {"candidates": candidates}
        if self._usage is not None:
            said["usageMetadata"] = content_usage(self._usage)
        return b"data: " + dump(said | self._frame) + b"\n\n"


def _call_part(call: Piece) -> Fields:
    part: Fields = {"functionCall": {"id": call.id, "name": call.name, "args": parse_arguments(call.text)}}
    if call.signature:
        part["thoughtSignature"] = call.signature
    return part


def content_usage(usage: Usage) -> Fields:
    said: Fields = {
        "promptTokenCount": usage.input_tokens,
        "candidatesTokenCount": max(0, usage.output_tokens - usage.reasoning_tokens),
        "totalTokenCount": usage.total_tokens,
    }
    if usage.reasoning_tokens:
        said["thoughtsTokenCount"] = usage.reasoning_tokens
    if usage.cached_input_tokens:
        said["cachedContentTokenCount"] = usage.cached_input_tokens
    return said


def content_body(events: list[Event], asked: Asked) -> bytes:
    """A whole answer."""
    answer: Answer = fold(events)
    body: Fields = {
        "candidates": [
            {
                "content": {"parts": _parts_of(choice), "role": "model"},
                "finishReason": _WORDS[choice.finish.reason],
                "index": index,
            }
            for index, choice in answer.ordered()
        ]
    }
    if answer.usage is not None:
        body["usageMetadata"] = content_usage(answer.usage)
    return dump(body | {"modelVersion": answer.head.model, "responseId": answer.head.id})


def _parts_of(choice: Choice) -> list[Any]:
    parts = []
    for piece in choice.pieces:
        if piece.kind == "tool":
            parts.append(_call_part(piece))
        elif piece.text:
            parts.append({"text": piece.text, "thought": True} if piece.kind == "thought" else {"text": piece.text})
    return parts


def fault_object(fault: Fault) -> Fields:
    row = fault.cause.value
    return {"error": {"code": row.openai_status, "message": fault.message, "status": row.gemini_status}}
