"""The text that one event of a stream adds to the answer, for guards that only read."""

from __future__ import annotations

from typing import Any, Final

import orjson

from proxy.guard.deltas import Key, read_event
from proxy.protocol.routes import Grammar

WHOLE: Final[Key] = ("whole",)
"""Of texts that are whole by themselves. Streams of Responses say each text once more so when it is complete."""


def event_texts(event: bytes, grammar: Grammar) -> list[tuple[Key, bytes]]:
    """The parts it belongs to and what it adds to them; what cannot be read is said as it stands."""
    data = b"\n".join([line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")])
    if not data or data == b"[DONE]":
        return []
    fields: Any = None
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError:
        return [(WHOLE, data)]
    if type(fields) is not dict:
        return [(WHOLE, data)]
    return [
        (WHOLE if piece.key is None else piece.key, piece.text.encode("utf-8", "replace"))
        for piece in read_event(grammar, fields).pieces
    ]
