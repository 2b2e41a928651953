"""A stream of OpenAI's responses from events: named, numbered, and the whole response once more at the end."""

from __future__ import annotations

from typing import Any

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
from proxy.protocol.usage import Usage
from proxy.providers.base import Asked, Fields, dump
from proxy.providers.faults import fault_members
from proxy.providers.folding import Piece
from proxy.providers.responses_answer import (
    close_response,
    custom_tools,
    make_item,
    make_part,
    make_response,
    name_item,
)


class ResponsesWriter:
    """Named events for one caller."""

    # Mutable, written by `write`:
    #   _number    of the next event
    #   _response  the response as it began
    #   _pieces    all output so far, in order; _open is the index of the one that is being told, -1 for none
    #   _finish, _usage  wait for the end
    __slots__ = (
        "_asked",
        "_custom",
        "_finish",
        "_head",
        "_number",
        "_open",
        "_pieces",
        "_response",
        "_usage",
    )

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._custom = custom_tools(asked)
        self._number = 0
        self._head = Head("", "")
        self._response: Fields = {}
        self._pieces: list[Piece] = []
        self._open = -1
        self._finish = Finish(Reason.STOP)
        self._usage: Usage | None = None

    def write(self, event: Event) -> bytes:
        if isinstance(event, Delta):
            return self._in_piece("text", event.text)
        if isinstance(event, ToolDelta):
            return self._write_tool(event)
        if isinstance(event, Thought):
            return self._in_piece("thought", event.text)
        if isinstance(event, Declined):
            return self._in_piece("declined", event.text)
        if isinstance(event, Proof):
            return self._write_proof(event)
        if isinstance(event, Head):
            self._head = event
            self._response = make_response(event, self._asked)
            created = self._event("response.created", response=self._response)
            return created + self._event("response.in_progress", response=self._response)
        if isinstance(event, Finish):
            self._finish = event
        elif isinstance(event, UsageReport):
            self._usage = event.usage
        elif isinstance(event, Fault):
            return self._write_fault(event)
        elif isinstance(event, End):
            return self._write_end()
        return b""

    def _event(self, kind: str, **members: Any) -> bytes:
        data = dump({"type": kind, "sequence_number": self._number, **members})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def _item(self, at: int, status: str) -> Fields:
        return make_item(self._pieces[at], f"{self._head.id}_{at}", self._custom, status)

    def _id(self, at: int) -> str:
        return name_item(self._pieces[at], f"{self._head.id}_{at}", self._custom)

    def _begin(self, piece: Piece) -> bytes:
        out = self._close()
        self._pieces.append(piece)
        self._open = at = len(self._pieces) - 1
        item = self._item(at, "in_progress")
        out += self._event("response.output_item.added", output_index=at, item=item)
        if piece.kind == "thought":
            part = {"type": "summary_text", "text": ""}
            where = {"item_id": item["id"], "output_index": at, "summary_index": 0}
            return out + self._event("response.reasoning_summary_part.added", **where, part=part)
        if piece.kind == "tool":
            return out
        where = {"item_id": item["id"], "output_index": at, "content_index": 0}
        return out + self._event("response.content_part.added", **where, part=make_part(piece))

    def _in_piece(self, kind: str, text: str) -> bytes:
        if not text:
            return b""
        out = b""
        if self._open < 0 or self._pieces[self._open].kind != kind:
            out = self._begin(Piece(kind))
        at = self._open
        self._pieces[at].parts.append(text)
        item_id = self._id(at)
        if kind == "thought":
            where: Fields = {"item_id": item_id, "output_index": at, "summary_index": 0}
            return out + self._event("response.reasoning_summary_text.delta", **where, delta=text)
        where = {"item_id": item_id, "output_index": at, "content_index": 0}
        if kind == "declined":
            return out + self._event("response.refusal.delta", **where, delta=text)
        return out + self._event("response.output_text.delta", **where, delta=text, logprobs=[])

    def _write_tool(self, event: ToolDelta) -> bytes:
        out = b""
        at = next((index for index, piece in enumerate(self._pieces) if piece.slot == event.slot), -1)
        if at < 0:
            out = self._begin(Piece("tool", [], event.id, event.name, event.signature, slot=event.slot))
            at = self._open
        piece = self._pieces[at]
        if not event.arguments:
            return out
        piece.parts.append(event.arguments)
        if piece.name in self._custom:
            return out  # its text is inside the JSON and is told when that is whole
        where = {"item_id": self._id(at), "output_index": at}
        return out + self._event("response.function_call_arguments.delta", **where, delta=event.arguments)

    def _write_proof(self, event: Proof) -> bytes:
        if event.redacted:
            return b""  # only its maker can read it, and has no place for it here
        out = b""
        if self._open < 0 or self._pieces[self._open].kind != "thought":
            out = self._begin(Piece("thought"))
        self._pieces[self._open].signature = event.signature
        return out + self._close()

    def _close(self) -> bytes:
        """Tell the end of the item that is open."""
        if self._open < 0:
            return b""
        at, self._open = self._open, -1
        piece, item = self._pieces[at], self._item(at, "completed")
        where: Fields = {"item_id": item["id"], "output_index": at}
        out = b""
        if piece.kind == "tool" and piece.name in self._custom:
            said = item["input"]
            out += self._event("response.custom_tool_call_input.delta", **where, delta=said)
            out += self._event("response.custom_tool_call_input.done", **where, input=said)
        elif piece.kind == "tool":
            said = item["arguments"]
            out += self._event("response.function_call_arguments.done", **where, name=piece.name, arguments=said)
        elif piece.kind == "thought":
            where["summary_index"] = 0
            out += self._event("response.reasoning_summary_text.done", **where, text=piece.text)
            part = {"type": "summary_text", "text": piece.text}
            out += self._event("response.reasoning_summary_part.done", **where, part=part)
        else:
            where["content_index"] = 0
            out += self._close_part(piece, where)
        return out + self._event("response.output_item.done", output_index=at, item=item)

    def _close_part(self, piece: Piece, where: Fields) -> bytes:
        if piece.kind == "declined":
            out = self._event("response.refusal.done", **where, refusal=piece.text)
        else:
            out = self._event("response.output_text.done", **where, text=piece.text, logprobs=[])
        return out + self._event("response.content_part.done", **where, part=make_part(piece))

    def _write_end(self) -> bytes:
        out = self._close()
        output = [self._item(at, "completed") for at in range(len(self._pieces))]
        response = close_response(self._response, output, self._finish, self._usage)
        return out + self._event(f"response.{response['status']}", response=response)

    def _write_fault(self, fault: Fault) -> bytes:
        """The members stand at the top, as documented, and again under ``error``, which makes the SDK raise."""
        members = fault_members(fault)
        said = {name: members[name] for name in ("code", "message", "param")}
        return self._event("error", **said, error=members)
