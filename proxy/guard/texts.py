"""The texts of a whole body, whatever its dialect: what was said, instructions, results and arguments of tools,
inputs of embeddings, prompts. Who asks, which model answers and how tools are described to it is no text, but for
what the descriptions say.

Bodies are walked, not understood, so that a new kind of message is looked at like the old ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any, Final

import orjson

from proxy.guard.base import Finding, Said, redact
from proxy.guard.deltas import kind_of
from proxy.guard.walk import Path, forget_logprobs, put, texts_in
from proxy.protocol.call import Call
from proxy.protocol.routes import Route

_DESCRIBED: Final = frozenset((
    *("tools", "functions", "response_format", "tool_choice", "function_call", "output_config"),
    *("mcp_servers", "container", "context_management"),
))  # fmt: skip
"""Top members that describe: names are none of their texts, nor what opens other doors for the model's vendor."""
_FORMAL: Final = frozenset(("type", "$ref", "strict", "authorization", "authorization_token", "server_url"))
"""What says in a description how something is reached or built, and not what it is."""
_PASSED_OVER: Final = frozenset((
    *("user", "safety_identifier", "prompt_cache_key", "metadata", "model", "models", "stop", "stop_sequences"),
    *("stream_options", "reasoning", "reasoning_effort", "thinking", "include", "modalities", "voice", "language"),
    *("logit_bias", "encoding_format", "truncation", "verbosity", "background", "size", "quality", "style"),
    *("response_format_name", "usage", "warnings", "error", "incomplete_details"),
))  # fmt: skip
_ECHOED: Final = frozenset(("instructions", "prompt", "text", "tools", "tool_choice"))
"""What answers of Responses repeat of the request."""

_Texts = list[tuple[Path, Said]]


def read_request(call: Call, route: Route) -> _Texts:
    """Every text of a request's body, with its place."""
    return [(path, _say(path, text)) for path, text in _texts_of(call.fields)]


def is_in_tokens(call: Call) -> bool:
    """Whether a prompt or an input is given in numbers, which only the model's own tokenizer can read."""
    for name in ("prompt", "input"):
        said = call.fields.get(name)
        if type(said) is list and any(type(each) is int or _is_numbers(each) for each in said):
            return True
    return False


def _is_numbers(value: Any) -> bool:
    return type(value) is list and any(type(each) is int for each in value)


def put_back(call: Call, texts: Sequence[bytes]) -> dict[str, Any]:
    """Members for `Call.edit` in which the texts, as many as `read_request` gives and in its order, stand for the
    call's own; only of what has changed."""
    members: dict[str, Any] = {}
    for (path, before), after in zip(_texts_of(call.fields), texts, strict=True):
        if after == _say(path, before):
            continue
        top = path[0]
        assert type(top) is str
        if top not in members:
            members[top] = deepcopy(call.fields[top])
        put(members, path, after.decode("utf-8", "replace"))
    return members


def pack(members: Mapping[str, Any]) -> bytes:
    """Members to be remembered: as text they are a small part of their tree."""
    return orjson.dumps(members)


def unpack(packed: bytes) -> dict[str, Any]:
    members: dict[str, Any] = orjson.loads(packed)
    return members


class Answer:
    """A whole answer and its texts."""

    # Mutable: _fields, which `redact` changes; it is called once.
    __slots__ = ("_fields", "texts")

    def __init__(self, fields: Any, texts: _Texts) -> None:
        self._fields = fields
        self.texts = texts
        """With their places, in order."""

    def redact(self, found: Mapping[int, Sequence[Finding]]) -> bytes:
        """The body without what was found, by index of the text; findings as `merge_findings` gives them."""
        for index, findings in found.items():
            path, text = self.texts[index]
            put(self._fields, path, redact(text, findings).decode("utf-8", "replace"))
            forget_logprobs(self._fields, path)
        return orjson.dumps(self._fields)


def read_answer(body: bytes, route: Route) -> Answer | None:
    """A whole answer in JSON, an object or a list; ``None`` if it is none."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if type(fields) is list:
        found = texts_in(fields)
    elif type(fields) is not dict:
        return None
    elif fields.get("object") == "response":
        found = _texts_of({name: each for name, each in fields.items() if name not in _ECHOED})
    else:
        found = _texts_of(fields)
    return Answer(fields, [(path, _say(path, text)) for path, text in found])


def _say(path: Path, text: str) -> Said:
    """A text as guards see it. What is JSON in itself (arguments and results of tools) is written with its characters
    rather than their escapes."""
    if "\\u" in text and text.lstrip()[:1] in ("{", "["):
        with suppress(orjson.JSONDecodeError):  # it may only look like it
            text = orjson.dumps(orjson.loads(text)).decode()
    return Said(text.encode(), kind_of(path))


def _texts_of(fields: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    for name, value in fields.items():
        kind = type(value)
        if name in _PASSED_OVER or (kind is not str and kind is not dict and kind is not list):
            continue
        if name in _DESCRIBED or (name == "text" and kind is dict):
            yield from ((path, text) for path, text in texts_in(value, (name,)) if not _is_formal(path))
        elif kind is not str:
            yield from texts_in(value, (name,))
        elif name not in _TOP_NAMES and value:
            yield (name,), value


def _is_formal(path: Path) -> bool:
    last = path[-2] if type(path[-1]) is int else path[-1]
    return last in _FORMAL or (len(path) == 4 and path[2] == "headers")


_TOP_NAMES: Final = frozenset((
    *("id", "type", "object", "role", "status", "service_tier", "stop_reason", "system_fingerprint", "stop_sequence"),
    *("previous_response_id", "response_format", "format", "tool_choice", "created_at", "conversation", "dimensions"),
))  # fmt: skip
"""Strings at the top that are no texts."""
