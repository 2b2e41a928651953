"""Changing members of a JSON object in its text.

Nothing is serialised again, so numbers, order and unknown members stay as the caller wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

import orjson

# Strings whole, and what opens, closes or separates; all else lies between them.
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]')


def rename_model(body: bytes, fields: dict[str, Any], model: str) -> bytes:
    """``body`` with another model's name; ``fields`` is what it parses to."""
    said = fields.get("model")
    if said == model:
        return body
    if type(said) is str and body.count(b'"model"') == 1 and b"\\u" not in body:
        # One such name and none in disguise: it is the member of the request itself.
        before, _, after = body.partition(b'"model"')
        value = orjson.dumps(said)
        rest = after.lstrip(b" \t\r\n:")
        if rest.startswith(value):
            return b'%b"model":%b%b' % (before, orjson.dumps(model), rest[len(value) :])
    return edit_members(body, {"model": model})


def edit_members(body: bytes, members: dict[str, Any], *, renamed: dict[str, str] | None = None) -> bytes:
    """``body``, one JSON object, with ``members`` set and names changed: ``renamed`` maps old ones to new ones."""
    renamed = renamed or {}
    pieces: list[bytes] = []
    done = 0
    missing = dict(members)
    for name, (key_at, key_stop, value_at, value_stop) in find_members(body).items():
        if name in renamed:
            pieces += (body[done:key_at], orjson.dumps(renamed[name]))
            done = key_stop
        if name in missing:
            pieces += (body[done:value_at], orjson.dumps(missing.pop(name)))
            done = value_stop
    edited = b"".join([*pieces, body[done:]])
    if not missing:
        return edited
    stop = edited.rindex(b"}")
    more = orjson.dumps(missing)[1:]
    comma = b"," if edited[:stop].rstrip()[-1:] != b"{" else b""
    return edited[:stop].rstrip() + comma + more


def drop_members(body: bytes, names: Collection[str]) -> bytes:
    """``body``, one JSON object, without these members."""
    kept = [body[at:stop] for name, (at, _, _, stop) in find_members(body).items() if name not in names]
    return b"{" + b",".join(kept) + b"}"


def find_members(body: bytes) -> dict[str, tuple[int, int, int, int]]:
    """Where each member of the object stands: start and stop of its name, start and stop of its value. ``body`` must
    have been parsed: this looks for structure and finds no faults."""
    found: dict[str, tuple[int, int, int, int]] = {}
    depth = 0
    key: tuple[int, int] | None = None
    value_at = -1
    for match in _TOKEN.finditer(body):
        token = body[match.start()]
        if token in b"{[":
            depth += 1
        elif depth == 1 and token in b",}":
            if key is not None and value_at >= 0:
                _note(body, key, value_at, match.start(), found)
            key, value_at = None, -1
            depth -= token == 125
        elif token in b"}]":
            depth -= 1
        elif depth != 1:
            continue
        elif token == 58:
            if value_at < 0:
                value_at = match.end()
        elif key is None:
            key = match.span()
    return found


def _note(body: bytes, key: tuple[int, int], value_at: int, stop: int, found: dict[str, Any]) -> None:
    value = body[value_at:stop]
    start = value_at + len(value) - len(value.lstrip())
    found[orjson.loads(body[key[0] : key[1]])] = (*key, start, value_at + len(value.rstrip()))
