"""What the events of a stream add to the texts of the answer, in each dialect.

A piece belongs to a part, which is told by its key, or is a whole text of its own: streams of Responses say every
text once more when it is complete, and once more at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from proxy.guard.walk import NAMES, Path, texts_in
from proxy.protocol.routes import Grammar

Key = tuple[str | int, ...]
"""Of a part. What an event closes is all parts whose keys begin so; ``()`` closes all of them."""


class Piece(NamedTuple):
    path: Path
    """Where it stands in the event's data."""
    text: str
    key: Key | None
    """``None``: whole by itself."""
    kind: str
    """``text`` (what the model says), ``thought``, ``refusal``, ``arguments`` (JSON) or ``other``."""


class Reading(NamedTuple):
    pieces: list[Piece]
    closes: tuple[Key, ...] = ()


EVERYTHING: Final[Key] = ()

_KINDS: Final = {
    "content": "text",
    "text": "text",
    "output_text": "text",
    "arguments": "arguments",
    "partial_json": "arguments",
    "function_call_arguments": "arguments",
    "mcp_call_arguments": "arguments",
    "reasoning_content": "thought",
    "reasoning": "thought",
    "thinking": "thought",
    "reasoning_text": "thought",
    "reasoning_summary_text": "thought",
    "refusal": "refusal",
}
_SOUND: Final = ("response.audio.delta", "response.output_audio.delta")


def kind_of(path: Path) -> str:
    """What the text is that stands there."""
    names = [step for step in path if type(step) is str]
    if len(names) > 1 and names[-1] == "text":  # a piece of what is named above it
        return _KINDS.get(names[-2], "text")
    return _KINDS.get(names[-1], "other") if names else "other"


def read_event(grammar: Grammar, fields: dict[str, Any]) -> Reading:
    """``fields``: the event's data."""
    if grammar is Grammar.MESSAGES:
        return _read_messages(fields)
    kind = fields.get("type")
    if grammar is Grammar.RESPONSES or (type(kind) is str and kind.startswith("response.")):
        return _read_responses(kind if type(kind) is str else "", fields)
    if type(fields.get("choices")) is list:
        return _read_choices(fields["choices"])
    return Reading(list(_whole(fields, ())))


def _read_choices(choices: list[Any]) -> Reading:
    """Of chat completions, completions and their kin."""
    pieces: list[Piece] = []
    closes: list[Key] = []
    for at, choice in enumerate(choices):
        if type(choice) is not dict:
            continue
        number = choice.get("index", at)
        number = number if type(number) is int else at
        for name in ("delta", "text", "message"):
            pieces += _grown(choice.get(name), ("choices", at, name), (number,))
        if choice.get("finish_reason"):
            closes.append((number,))
    return Reading(pieces, tuple(closes))


def _grown(node: Any, path: Path, key: Key) -> Iterator[Piece]:
    """Texts that go on from event to event. A member of a list is told by its ``index``; lists without are Mistral's,
    whose members are pieces of one text."""
    if type(node) is str:
        if node:
            yield Piece(path, node, key, kind_of(path))
    elif len(path) >= 16:
        yield from _whole(node, path)  # nobody nests so deep; it is looked at all the same
    elif type(node) is dict:
        for name, each in node.items():
            if type(each) is not str or name not in NAMES:
                yield from _grown(each, (*path, name), key if name == "text" else (*key, name))
    elif type(node) is list:
        for at, each in enumerate(node):
            index = each.get("index") if type(each) is dict else None
            yield from _grown(each, (*path, at), (*key, index) if type(index) is int else key)


def _read_messages(fields: dict[str, Any]) -> Reading:
    kind = fields.get("type")
    index = fields.get("index")
    number = index if type(index) is int else 0
    if kind == "content_block_delta":
        return Reading(list(_block(fields.get("delta"), "delta", number)))
    if kind == "content_block_start":
        return Reading(list(_block(fields.get("content_block"), "content_block", number)))
    if kind == "content_block_stop":
        return Reading([], ((number,),))
    if kind == "message_stop":
        return Reading([], (EVERYTHING,))
    if kind == "message_start":
        message = fields.get("message")
        content = message.get("content") if type(message) is dict else None
        return Reading(list(_whole(content, ("message", "content"))))
    if kind in ("ping", "message_delta"):
        return Reading([])
    return Reading(list(_whole(fields, ())))


def _block(node: Any, name: str, number: int) -> Iterator[Piece]:
    """Of one content block: its strings go on, what lies deeper (a tool's input, a citation) is whole."""
    if type(node) is not dict:
        return
    for member, each in node.items():
        path = (name, member)
        if type(each) is str:
            if each and member not in NAMES:
                yield Piece(path, each, (number, member), kind_of(path))
        else:
            yield from _whole(each, path)


def _read_responses(kind: str, fields: dict[str, Any]) -> Reading:
    where: Key = (_number(fields, "output_index"), _number(fields, "content_index", "summary_index"))
    delta = fields.get("delta")
    if kind.endswith(".delta") and type(delta) is str:
        if kind in _SOUND or not delta:
            return Reading([])
        name = kind.removeprefix("response.").removesuffix(".delta")
        return Reading([Piece(("delta",), delta, (where[0], name, where[1]), _KINDS.get(name, "other"))])
    response = fields.get("response")
    pieces: list[Piece] = []
    if type(response) is dict:
        pieces += _whole(response.get("output"), ("response", "output"))
        pieces += _whole(response.get("output_text"), ("response", "output_text"))
    for name, each in fields.items():
        if name != "response" and (type(each) is not str or name not in NAMES):
            pieces += _whole(each, (name,))
    if kind in ("response.completed", "response.failed", "response.incomplete"):
        return Reading(pieces, (EVERYTHING,))
    if kind == "response.output_item.done":
        return Reading(pieces, ((where[0],),))
    if kind.endswith(".done"):
        return Reading(pieces, ((where[0], kind.removeprefix("response.").removesuffix(".done"), where[1]),))
    return Reading(pieces)


def _number(fields: dict[str, Any], *names: str) -> int:
    for name in names:
        if type(fields.get(name)) is int:
            value: int = fields[name]
            return value
    return 0


def _whole(node: Any, path: Path) -> Iterator[Piece]:
    for at, text in texts_in(node, path):
        yield Piece(at, text, None, kind_of(at))
