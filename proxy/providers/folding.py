"""A whole answer from the events of one: each choice's pieces in order, deltas joined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from proxy.protocol.events import (
    Declined,
    Delta,
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

_NO_HEAD: Final = Head("", "")
_STOPPED: Final = Finish(Reason.STOP)


@dataclass(slots=True)
class Piece:
    """One part of a choice. ``kind``: ``text``, ``thought``, ``tool`` or ``declined``."""

    kind: str
    parts: list[str] = field(default_factory=list)
    id: str = ""
    name: str = ""
    signature: str = ""
    redacted: str = ""
    slot: int = -1

    @property
    def text(self) -> str:
        """The text, or the JSON text of a tool's arguments."""
        return "".join(self.parts)


@dataclass(slots=True)
class Choice:
    pieces: list[Piece] = field(default_factory=list)
    finish: Finish = _STOPPED
    logprobs: list[Any] = field(default_factory=list)

    def text_of(self, kind: str) -> str:
        return "".join([piece.text for piece in self.pieces if piece.kind == kind])

    def of(self, kind: str) -> list[Piece]:
        return [piece for piece in self.pieces if piece.kind == kind]

    def last(self, kind: str, slot: int = -1) -> Piece:
        """The piece that a delta belongs to: the one of its slot, or the last one if it is of its kind."""
        if slot >= 0:
            for piece in self.pieces:
                if piece.slot == slot:
                    return piece
        elif self.pieces and self.pieces[-1].kind == kind and not self.pieces[-1].signature:
            return self.pieces[-1]
        self.pieces.append(Piece(kind, slot=slot))
        return self.pieces[-1]


@dataclass(slots=True)
class Answer:
    """Everything that one answer said."""

    head: Head = _NO_HEAD
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Usage | None = None
    fault: Fault | None = None

    def add(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, (Delta, Thought, Proof, ToolDelta, Declined, Finish)):
            _add_to(self.choices.setdefault(event.choice, Choice()), event)
        elif isinstance(event, Head):
            self.head = event
        elif isinstance(event, UsageReport):
            self.usage = event.usage
        elif isinstance(event, Fault):
            self.fault = event

    def ordered(self) -> list[tuple[int, Choice]]:
        return sorted(self.choices.items())


def _add_to(choice: Choice, event: Delta | Thought | Proof | ToolDelta | Declined | Finish) -> None:
    if isinstance(event, Delta):
        if event.text:
            choice.last("text").parts.append(event.text)
        if event.logprobs is not None:
            choice.logprobs.append(event.logprobs)
    elif isinstance(event, ToolDelta):
        piece = choice.last("tool", event.slot)
        piece.id = piece.id or event.id
        piece.name = piece.name or event.name
        piece.signature = piece.signature or event.signature
        piece.parts.append(event.arguments)
    elif isinstance(event, Thought):
        choice.last("thought").parts.append(event.text)
    elif isinstance(event, Proof):
        _add_proof(choice, event)
    elif isinstance(event, Declined):
        choice.last("declined").parts.append(event.text)
    else:
        choice.finish = event


def _add_proof(choice: Choice, event: Proof) -> None:
    if event.redacted:
        choice.pieces.append(Piece("thought", redacted=event.redacted, signature=event.signature or "-"))
    else:
        choice.last("thought").signature = event.signature


def fold(events: list[Event]) -> Answer:
    answer = Answer()
    for event in events:
        answer.add(event)
    return answer


def join_logprobs(parts: list[Any]) -> Any:
    """The log probabilities of all deltas in one list, as a whole answer has them."""
    if not parts:
        return None
    joined: dict[str, Any] = {}
    for part in parts:
        for name, values in part.items() if type(part) is dict else ():
            if type(values) is list:
                joined[name] = (joined.get(name) or []) + values
            else:
                joined.setdefault(name, values)
    return joined
