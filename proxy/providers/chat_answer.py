"""Chat completions as answers: events from their bytes, and their bytes from events."""

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
from proxy.protocol.sse import SseEvent
from proxy.protocol.usage import Usage, UsageReader
from proxy.providers.base import Asked, Fields, dump, index_in, items_in, parse_object, words_in
from proxy.providers.faults import cut_off, fault_in_object, fault_members
from proxy.providers.folding import Choice, Piece, fold, join_logprobs
from proxy.providers.splitter import Splitter, TooLargeError

_REASONS: Final = {
    "stop": Reason.STOP,
    "length": Reason.LENGTH,
    "model_length": Reason.LENGTH,
    "tool_calls": Reason.TOOLS,
    "function_call": Reason.TOOLS,
    "content_filter": Reason.FILTERED,
    "stop_sequence": Reason.STOP_SEQUENCE,
    "eos_token": Reason.STOP,
    "error": Reason.BROKEN,
}
_WORDS: Final = {
    Reason.STOP: "stop",
    Reason.STOP_SEQUENCE: "stop",
    Reason.LENGTH: "length",
    Reason.TOOLS: "tool_calls",
    Reason.FILTERED: "content_filter",
    Reason.PAUSED: "stop",
    Reason.BROKEN: "length",
}
_DONE: Final = b"data: [DONE]\n\n"


# -- reading -----------------------------------------------------------------------------------------------------


class ChatReader:
    """One answer, streamed or whole (`take_whole`)."""

    # Mutable, written by `feed` and what it calls:
    #   _head     the answer's head was told
    #   _slots    (choice, index of the upstream) -> (slot, id) of the call that is being told
    #   _counts   choice -> calls so far
    #   _ended    nothing more is told; _finished: some choice has ended
    __slots__ = ("_counts", "_ended", "_finished", "_head", "_id", "_slots", "_splitter", "_usage")

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._usage = UsageReader(Dialect.OPENAI, "chat.completions")
        self._head = False
        self._id = ""
        self._slots: dict[tuple[int, int], tuple[int, str]] = {}
        self._counts: dict[int, int] = {}
        self._finished = False
        self._ended = False

    def feed(self, data: bytes) -> list[Event]:
        try:
            return self._take_all(self._splitter.feed(data))
        except TooLargeError:
            return self._end(cut_off("The upstream sent an event that is too large."))

    def close(self) -> list[Event]:
        events = self._take_all(self._splitter.close())
        if self._ended:
            return events
        # Some servers leave the last line out; a finished answer is complete without it.
        return events + (self._end(End()) if self._finished else self._end(cut_off()))

    def _finish(self) -> list[Event]:
        """The upstream said that it is done: true if it said anything. Not all say why."""
        if not self._head:
            return self._end(cut_off("The upstream's answer is empty."))
        unsaid: list[Event] = [] if self._finished else [Finish(Reason.STOP)]
        return unsaid + self._end(End())

    def take_whole(self, fields: Fields) -> list[Event]:
        """The events of a whole answer."""
        events = self._take(fields, "message")
        if not self._ended and not fields.get("choices"):
            return self._end(cut_off("The upstream's answer has no choice."))
        return events if self._ended else events + self._finish()

    def _take_all(self, pieces: list[tuple[str, bytes]]) -> list[Event]:
        events: list[Event] = []
        for _, data in pieces:
            if self._ended:
                break
            if data.startswith(b"[DONE]"):
                events += self._finish()
                break
            fields = parse_object(data)
            events += self._end(cut_off()) if fields is None else self._take(fields, "delta")
        return events

    def _end(self, event: End | Fault) -> list[Event]:
        self._ended = True
        return [event]

    def _take(self, fields: Fields, member: str) -> list[Event]:
        if fields.get("error") or fields.get("object") == "error":
            return self._end(fault_in_object(fields))
        events: list[Event] = []
        choices = items_in(fields, "choices")
        if not self._head and (choices or fields.get("id")):
            self._head = True
            created = fields.get("created")
            self._id = str(fields.get("id") or "")
            model = str(fields.get("model") or "")
            events.append(Head(self._id, model, created if type(created) is int else 0))
        for choice in choices:
            if type(choice) is dict:
                events += self._take_choice(choice, member)
        if type(fields.get("usage")) is dict:
            self._usage.feed(SseEvent("", b"", fields))
            usage = self._usage.usage()
            if usage is not None:
                events.append(UsageReport(usage))
        return events

    def _take_choice(self, choice: Fields, member: str) -> list[Event]:
        index = index_in(choice)
        message = choice.get(member)
        logprobs = choice.get("logprobs")
        events = _pieces_of(message, index, logprobs) if type(message) is dict else []
        if logprobs is not None and not any(isinstance(event, Delta) for event in events):
            events.append(Delta("", index, logprobs))
        if type(message) is dict:
            for place, call in enumerate(items_in(message, "tool_calls")):
                if type(call) is dict:
                    events.append(self._take_call(call, index, place))
        reason = choice.get("finish_reason")
        if type(reason) is str and reason:
            self._finished = True
            said = _REASONS.get(reason, Reason.STOP)
            if said is Reason.STOP and self._counts.get(index):
                said = Reason.TOOLS  # some servers call tools and say "stop"
            events.append(Finish(said, index))
        return events

    def _take_call(self, call: Fields, choice: int, place: int) -> ToolDelta:
        index = call.get("index")
        key = (choice, index if type(index) is int else place)
        call_id = call.get("id") if type(call.get("id")) is str else ""
        function = call.get("function")
        function = function if type(function) is dict else {}
        signature = ""
        match call.get("extra_content"):
            case {"google": {"thought_signature": str(signature)}}:
                pass
        arguments = function.get("arguments")
        if arguments is not None and type(arguments) is not str:
            arguments = dump(arguments).decode()  # some servers send the object itself
        slot = self._slots.get(key)
        # A server that numbers every call 0 tells a new one by its id.
        begins = slot is None or (call_id not in ("", "null", slot[1]))
        if begins:
            number = self._counts.get(choice, 0)
            self._counts[choice] = number + 1
            if call_id in ("", "null", None):
                call_id = f"call_{self._id}_{choice}_{number}"
            slot = (number, call_id)
            self._slots[key] = slot
        assert slot is not None
        name = str(function.get("name") or "") if begins else ""
        return ToolDelta(slot[0], slot[1] if begins else "", name, arguments or "", choice, signature)


def _pieces_of(message: Fields, choice: int, logprobs: Any) -> list[Event]:
    """What a delta or message says, thoughts first."""
    events: list[Event] = []
    thought = message.get("reasoning_content") or message.get("reasoning")
    if type(thought) is str and thought:
        events.append(Thought(thought, choice))
    for block in items_in(message, "thinking_blocks"):
        match block:
            case {"type": "redacted_thinking", "data": str(data)}:
                events.append(Proof("", choice, data))
            case {"signature": str(signature)} if signature:
                events.append(Proof(signature, choice))
    content = message.get("content")
    if type(content) is str:
        if content:
            events.append(Delta(content, choice, logprobs))
    elif type(content) is list:
        for part in content:
            events += _events_of_part(part, choice)
    refusal = message.get("refusal")
    if type(refusal) is str and refusal:
        events.append(Declined(refusal, choice))
    return events


def _events_of_part(part: Any, choice: int) -> list[Event]:
    """A part of a content that is a list, as Mistral's models that think send it."""
    match part:
        case {"type": "text", "text": str(text)}:
            return [Delta(text, choice)] if text else []
        case {"type": "thinking", "thinking": list(pieces)}:
            texts = [str(piece["text"]) for piece in pieces if type(piece) is dict and "text" in piece]
            events: list[Event] = [Thought("".join(texts), choice)] if any(texts) else []
            return [*events, Proof(proof, choice)] if (proof := words_in(part, "signature")) else events
    return []


def events_of_chat(body: bytes) -> list[Event]:
    """The events of a whole answer; a ``Fault`` where it is none."""
    fields = parse_object(body)
    if fields is None:
        return [cut_off("The upstream's answer is not valid JSON.")]
    return ChatReader().take_whole(fields)


# -- writing -----------------------------------------------------------------------------------------------------


class ChatWriter:
    """Chunks for one caller."""

    # Mutable, written by `write`: _frame since the answer began, _told the choices whose role was told, _usage the
    # last report, _thoughts choice -> the thought that is being told, _proofs choice -> thoughts that are complete,
    # _bare (choice, slot) of calls without arguments so far.
    __slots__ = ("_asked", "_bare", "_frame", "_proofs", "_thoughts", "_told", "_usage")

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._frame: Fields = {}
        self._told: set[int] = set()
        self._usage: Usage | None = None
        self._thoughts: dict[int, list[str]] = {}
        self._proofs: dict[int, int] = {}
        self._bare: set[tuple[int, int]] = set()

    def write(self, event: Event) -> bytes:
        if isinstance(event, Head):
            self._frame = _make_frame(event, self._asked, "chat.completion.chunk")
            if self._asked.wants_usage:
                self._frame["usage"] = None
            return self._tell_role(0)
        if isinstance(event, Finish):
            return self._fill_calls(event) + self._chunk(event.choice, {}, _WORDS[event.reason])
        if isinstance(event, UsageReport):
            self._usage = event.usage
            return b""
        if isinstance(event, Fault):
            return b"data: " + dump({"error": fault_members(event)}) + b"\n\n"
        if isinstance(event, End):
            return self._tell_usage() + _DONE
        delta = self._delta_of(event)
        return self._chunk(event.choice, delta, None, event.logprobs if isinstance(event, Delta) else None)

    def _tell_role(self, choice: int) -> bytes:
        if choice in self._told:
            return b""
        self._told.add(choice)
        return self._chunk(choice, {"role": "assistant", "content": ""}, None)

    def _chunk(self, choice: int, delta: Fields, reason: str | None, logprobs: Any = None) -> bytes:
        role = self._tell_role(choice)
        said = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return role + b"data: " + dump({**self._frame, "choices": [said]}) + b"\n\n"

    def _delta_of(self, event: Delta | Thought | Proof | ToolDelta | Declined) -> Fields:
        if isinstance(event, Delta):
            return {"content": event.text}
        if isinstance(event, ToolDelta):
            if event.arguments:
                self._bare.discard((event.choice, event.slot))
            elif event.id:
                self._bare.add((event.choice, event.slot))
            return {"tool_calls": [_call_delta(event)]}
        if isinstance(event, Thought):
            self._thoughts.setdefault(event.choice, []).append(event.text)
            return {"reasoning_content": event.text}
        if isinstance(event, Proof):
            # The index keeps clients that merge deltas from mixing two thoughts.
            number = self._proofs.get(event.choice, 0)
            self._proofs[event.choice] = number + 1
            text = "".join(self._thoughts.pop(event.choice, ()))
            return {"thinking_blocks": [{"index": number, **_proof_block(text, event.signature, event.redacted)}]}
        return {"refusal": event.text}

    def _fill_calls(self, event: Finish) -> bytes:
        """An empty object for calls that have no arguments: callers parse them as JSON, and OpenAI sends it."""
        if event.reason is not Reason.TOOLS:
            return b""
        bare = sorted(slot for choice, slot in self._bare if choice == event.choice)
        deltas = [{"tool_calls": [{"index": slot, "function": {"arguments": "{}"}}]} for slot in bare]
        return b"".join([self._chunk(event.choice, delta, None) for delta in deltas])

    def _tell_usage(self) -> bytes:
        if not self._asked.wants_usage or self._usage is None:
            return b""
        return b"data: " + dump({**self._frame, "choices": [], "usage": chat_usage(self._usage)}) + b"\n\n"


def _call_delta(event: ToolDelta) -> Fields:
    call: Fields = {"index": event.slot}
    if event.id:
        call |= {"id": event.id, "type": "function"}
        call["function"] = {"name": event.name, "arguments": event.arguments}
    else:
        call["function"] = {"arguments": event.arguments}
    if event.signature:
        call["extra_content"] = {"google": {"thought_signature": event.signature}}
    return call


def _proof_block(text: str, signature: str, redacted: str) -> Fields:
    if redacted:
        return {"type": "redacted_thinking", "data": redacted}
    return {"type": "thinking", "thinking": text, "signature": signature}


def _make_frame(head: Head, asked: Asked, kind: str) -> Fields:
    answer_id = head.id if head.id.startswith("chatcmpl") else f"chatcmpl-{head.id}"
    return {
        "id": answer_id,
        "object": kind,
        "created": head.created_s or asked.created_s,
        "model": head.model,
    }


def chat_usage(usage: Usage) -> Fields:
    """What the tokens of an answer are called in chat completions."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def chat_body(events: list[Event], asked: Asked) -> bytes:
    """A whole completion."""
    answer = fold(events)
    body = _make_frame(answer.head, asked, "chat.completion")
    body["choices"] = [
        {
            "index": index,
            "message": _message_of(choice),
            "logprobs": join_logprobs(choice.logprobs),
            "finish_reason": _WORDS[choice.finish.reason],
        }
        for index, choice in answer.ordered()
    ]
    if answer.usage is not None:
        body["usage"] = chat_usage(answer.usage)
    return dump(body)


def _message_of(choice: Choice) -> Fields:
    text, calls = choice.text_of("text"), choice.of("tool")
    message: Fields = {"role": "assistant", "content": text if text or not calls else None}
    declined = choice.text_of("declined")
    message["refusal"] = declined or None
    if declined and not text:
        message["content"] = None
    if calls:
        message["tool_calls"] = [_whole_call(call) for call in calls]
    thought = choice.text_of("thought")
    if thought:
        message["reasoning_content"] = thought
    proofs = [piece for piece in choice.of("thought") if piece.signature]
    if proofs:
        message["thinking_blocks"] = [_proof_block(piece.text, piece.signature, piece.redacted) for piece in proofs]
    return message


def _whole_call(call: Piece) -> Fields:
    function = {"name": call.name, "arguments": call.text or "{}"}
    said: Fields = {"id": call.id, "type": "function", "function": function}
    if call.signature:
        said["extra_content"] = {"google": {"thought_signature": call.signature}}
    return said
