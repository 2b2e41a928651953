"""A JSON request body, parsed once and judged strictly.

The proxy decides price, model and sharing from its own parse while the upstream uses another parser on the same
bytes. So every text that two parsers may read differently is refused: duplicate names, NaN, a byte order mark,
trailing bytes, lone surrogates, invalid UTF-8, excessive depth. The bytes themselves are kept as they came; nothing
is serialised again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import orjson

from proxy.errors import Kind, ProxyError
from proxy.protocol.edit import drop_members, edit_members, rename_model
from proxy.protocol.routes import Route

MAX_DEPTH: Final = 64
MAX_MODEL_CHARS: Final = 512

_Fields = dict[str, Any]


class Call:
    """The body of one request. ``fields`` is shared and must not be changed by a reader."""

    # Mutable: `rename` and `edit` set model, body and members, before the request is planned.

    __slots__ = ("body", "fields", "model", "streams", "wants_usage")

    def __init__(self, body: bytes, fields: _Fields, model: str, streams: bool, wants_usage: bool) -> None:
        self.body = body
        """Exactly what was parsed (after content decoding, if there was any)."""
        self.fields = fields
        """Every member, unknown ones included."""
        self.model = model
        """As the caller named it, unless it was renamed since; empty when absent."""
        self.streams = streams
        """The caller asked for an event stream."""
        self.wants_usage = wants_usage
        """``stream_options.include_usage`` is set."""

    def rename(self, model: str) -> None:
        """Ask for another model than the caller wrote; every other byte of the body stays."""
        self.body = rename_model(self.body, self.fields, model)
        self.fields["model"] = self.model = model

    def edit(self, members: Mapping[str, Any], dropped: Collection[str] = ()) -> None:
        """Say ``members`` instead of what the caller wrote there, and nothing of ``dropped``; every other byte of the
        body stays. Not for ``model`` and ``stream``."""
        gone = [name for name in dropped if name in self.fields]
        if gone:
            self.body = drop_members(self.body, gone)
        if members:
            self.body = edit_members(self.body, dict(members))
        self.fields = {name: value for name, value in self.fields.items() if name not in gone} | dict(members)

    def __repr__(self) -> str:
        return f"<Call {self.model or '-'} {len(self.body)} bytes{' streams' if self.streams else ''}>"


def parse_call(route: Route, body: bytes) -> Call:
    """Parse and validate the JSON ``body`` of a request for ``route``.

    Raises ``ProxyError``: ``BAD_JSON`` for a text that is not one unambiguous JSON object, ``BAD_REQUEST`` for a
    member the proxy itself needs (``model``, ``stream``) with the wrong type.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _unreadable(body, error) from None
    if type(fields) is not dict:
        raise _bad_json("The request body must be a JSON object.")
    colons = body.count(b":")
    # Going down costs a bracket for a list and a colon for an object (but for the innermost): only a rich body can
    # be too deep and has to be walked.
    if colons + body.count(b"[") >= MAX_DEPTH:
        _check_depth(fields)
    _check_names(body, fields, colons)
    model = fields.get("model")
    if model is None:
        model = ""
    elif type(model) is not str or len(model) > MAX_MODEL_CHARS:
        raise _bad_field(f"'model' must be a string of at most {MAX_MODEL_CHARS} characters.")
    streams = fields.get("stream")
    if streams is None:
        # Speech has its own word for a stream of events.
        streams = route.name == "audio.speech" and fields.get("stream_format") == "sse"
    elif type(streams) is not bool:
        raise _bad_field("'stream' must be true or false.")
    options = fields.get("stream_options")
    wants_usage = type(options) is dict and options.get("include_usage") is True
    return Call(body, fields, model, streams, wants_usage)


def _check_names(body: bytes, fields: _Fields, colons: int) -> None:
    """Refuse duplicate member names.

    The colons of a JSON text are those behind names and those inside strings. Serialised again, the tree shows the
    same colons less those of members that a later one of the same name has replaced, so equal counts prove that
    nothing was replaced. Only an escaped colon breaks the sum; then strings are cut out on both sides.
    """
    again = orjson.dumps(fields)
    if body.find(b"\\") >= 0 and (body.find(b"\\u003a") >= 0 or body.find(b"\\u003A") >= 0):
        unique = _colons_outside_strings(body) == _colons_outside_strings(again)
    else:
        unique = colons == again.count(b":")
    if not unique:
        raise _bad_json("The request body has a member name twice.")


def _colons_outside_strings(text: bytes) -> int:
    """Colons behind the names of a valid JSON text."""
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(unescaped.split(b'"')[::2]).count(b":")


def _check_depth(fields: _Fields) -> None:
    """Refuse nesting beyond ``MAX_DEPTH``, level by level, so that depth never becomes recursion."""
    level: list[Any] = [fields]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise _bad_json(f"The request body nests deeper than {MAX_DEPTH} levels.")


def _unreadable(body: bytes, error: orjson.JSONDecodeError) -> ProxyError:
    if not body.strip():
        return _bad_json("The request body is empty; a JSON object is expected.")
    # The reader's message names a position and the fault, never the content.
    reason = str(error).partition(": line ")[0]
    return _bad_json(f"The request body is not valid JSON: {reason} at character {error.pos}.")


def _bad_json(public: str) -> ProxyError:
    return ProxyError(Kind.BAD_JSON, public)


def _bad_field(public: str) -> ProxyError:
    return ProxyError(Kind.BAD_REQUEST, public, why="field")
