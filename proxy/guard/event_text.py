"""The text that one event of a stream adds to the answer, for guards that only read."""

from __future__ import annotations

from typing import Any, Final

import orjson

from proxy.guard.deltas import Key, read_event
from proxy.protocol.routes import Grammar

_WHOLE: Final[Key] = ("whole",)


def event_texts(event: bytes, grammar: Grammar) -> list[tuple[Key, bytes]]:
    """The parts it belongs to and what it adds to them. What a stream of Responses says once more when it is complete
    is left out; what cannot be read is said as it stands."""
    data = b"\n".join([line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")])
    if not data or data == b"[DONE]":
        return []
    fields: Any = None
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError:
        return [(_WHOLE, data)]
    if type(fields) is not dict:
        return [(_WHOLE, data)]
    repeats = grammar is Grammar.RESPONSES
    return [
        (_WHOLE if piece.key is None else piece.key, piece.text.encode("utf-8", "replace"))
        for piece in read_event(grammar, fields).pieces
        if piece.key is not None or not repeats
    ]
