"""Changing members of a JSON object in its text.

Nothing is serialised again, so numbers, order and unknown members stay as the caller wrote them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Final

import orjson

_SPACE: Final = re.compile(r"[ \t\n\r]*")
# Finds where a value stops in one step, however much is in it; what it makes of it is not looked at.
_scan: Final = json.JSONDecoder().raw_decode


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
    text = body.decode()
    found: dict[str, tuple[int, int, int, int]] = {}
    at = _behind_space(text, _behind_space(text, 0) + 1)
    while text[at] != "}":
        name, key_stop = _scan(text, at)
        value_at = _behind_space(text, _behind_space(text, key_stop) + 1)
        _, value_stop = _scan(text, value_at)
        found[name] = (at, key_stop, value_at, value_stop)
        at = _behind_space(text, value_stop)
        if text[at] == ",":
            at = _behind_space(text, at + 1)
    return found if len(text) == len(body) else _in_bytes(found, text)


def _behind_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _in_bytes(found: dict[str, tuple[int, int, int, int]], text: str) -> dict[str, tuple[int, int, int, int]]:
    """Places among characters as places among bytes."""
    placed: dict[str, tuple[int, int, int, int]] = {}
    done = size = 0
    for name, places in found.items():
        own = []
        for place in places:
            size += len(text[done:place].encode())
            done = place
            own.append(size)
        placed[name] = (own[0], own[1], own[2], own[3])
    return placed
