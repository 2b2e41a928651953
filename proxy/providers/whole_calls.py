"""Calls of tools told whole, for callers whose SDK knows no pieces of them."""

from __future__ import annotations

from proxy.protocol.events import End, Event, Fault, Finish, ToolDelta
from proxy.providers.base import Writer


class WholeCalls:
    """A writer before another one: each call comes in one event, at the end of its choice at the latest. What is left
    of a call when the answer breaks off is not told."""

    # Mutable, written by `write`: _calls (choice, slot) -> what has been said of the call so far.
    __slots__ = ("_calls", "_writer")

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._calls: dict[tuple[int, int], list[ToolDelta]] = {}

    def write(self, event: Event) -> bytes:
        if isinstance(event, ToolDelta):
            self._calls.setdefault((event.choice, event.slot), []).append(event)
            return b""
        told = b""
        if isinstance(event, (Finish, End)) and self._calls:
            told = self._tell(event)
        elif isinstance(event, Fault):
            self._calls.clear()
        return told + self._writer.write(event)

    def _tell(self, event: Finish | End) -> bytes:
        places = [place for place in self._calls if isinstance(event, End) or place[0] == event.choice]
        return b"".join([self._writer.write(_join(self._calls.pop(place))) for place in sorted(places)])


def _join(pieces: list[ToolDelta]) -> ToolDelta:
    """One call of all its pieces; its arguments are an object where it has none."""
    arguments = "".join([piece.arguments for piece in pieces])
    signature = next((piece.signature for piece in pieces if piece.signature), "")
    return pieces[0]._replace(arguments=arguments or "{}", signature=signature)
