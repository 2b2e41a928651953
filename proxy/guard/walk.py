"""Every text in a JSON tree, with the way to it. What names things (ids, types, models) is no text, nor is what only
machines read (pictures, sound, signatures)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

Path = tuple[str | int, ...]
"""Names and indices from the root to a value."""

NAMES: Final = frozenset((
    *("id", "type", "object", "model", "role", "status", "name", "index", "format", "detail", "media_type"),
    *("mime_type", "cache_control"),
    *("call_id", "item_id", "tool_call_id", "tool_use_id", "response_id", "previous_response_id", "file_id"),
    *("finish_reason", "stop_reason", "system_fingerprint", "service_tier", "created", "obfuscation"),
    *("encrypted_content", "signature", "b64_json", "partial_image_b64", "audio", "data"),
))  # fmt: skip
"""Members that are no text where they are strings."""
_SKIPPED: Final = frozenset(("embedding", "logprobs", "top_logprobs", "usage"))
"""Members in which there is no text, or none of their own."""

_FREE: Final = frozenset(("input", "arguments", "args"))
"""What tools are called with: there names mean what their makers like, so all of it is text."""
_LEAST_NUMBER: Final = 10**8
"""Numbers of free trees from which on they are texts as well: what is shorter is no card and no account."""
_INLINE: Final = "data:"
_FILES: Final = frozenset((
    *("url", "image_url", "video_url", "audio_url", "document_url", "file_url", "file_data", "input_audio", "image"),
))  # fmt: skip
"""Members that hold files written as addresses. Anywhere else what begins like one is a text."""


def texts_in(node: Any, path: Path = (), *, free: bool = False) -> Iterator[tuple[Path, str]]:
    """All texts below ``node``, in order. Nested as deep as the body may be (`protocol.call.MAX_DEPTH` for requests;
    for answers, as the parser allows)."""
    stack: list[tuple[Path, Any, bool]] = [(path, node, free)]
    while stack:
        at, value, free = stack.pop()
        kind = type(value)
        if kind is str:
            if value and (free or not (value.startswith(_INLINE) and at and at[-1] in _FILES)):
                yield at, value
        elif kind is dict:
            below = [
                ((*at, name), each, free or (name in _FREE and type(each) is not str))
                for name, each in value.items()
                if free or is_text(name, each) or _is_said(name, value)
            ]
            stack += reversed(below)
        elif kind is list:
            stack += [((*at, index), each, free) for index, each in reversed(list(enumerate(value)))]
        elif free and kind is int and abs(value) >= _LEAST_NUMBER:
            yield at, str(value)


def is_text(name: str, value: Any) -> bool:
    """Whether a member may be or hold text. What stands under a name as a tree (an ``audio`` with its transcript) is
    looked into."""
    kind = type(value)
    if kind is str:
        return name not in NAMES
    return (kind is dict or kind is list) and name not in _SKIPPED


def _is_said(name: str, value: dict[str, Any]) -> bool:
    """Whether what is no text elsewhere is one here: a document that is text, and the name of who speaks, which the
    model reads."""
    return (name == "data" and value.get("type") == "text") or (name == "name" and "role" in value)


def put(node: Any, path: Path, value: Any) -> None:
    """Set what is at ``path``, which exists."""
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value


def forget_logprobs(node: Any, path: Path) -> None:
    """Beside a text that was changed its tokens may stand once more, one by one: those go, all along the way."""
    for step in path:
        if type(node) is dict and node.get("logprobs"):
            node["logprobs"] = [] if type(node["logprobs"]) is list else None
        node = node[step]
