"""What the mock's model says, before a dialect gives it a shape. Equal bodies get equal replies."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import orjson

from proxy.mock.answer import Call

# Some words leave ASCII, so that cutting a stream between any two bytes cuts characters as well.
_TEXT = (
    "the plane leaves when every seat is taken and nobody waits for a second one "
    "café naïve 日本 über façade 🛫 runway crew pilot tower signal cloud wing "
    "one call many readers same answer shared between them all at once without delay"
)
_MAX_DEPTH = 8


class Tool(NamedTuple):
    name: str
    schema: dict[str, Any]


class Ask(NamedTuple):
    """What matters of a request, whatever its dialect."""

    prompt: str
    tool: Tool | None = None
    """The tool that the reply has to call."""
    schema: dict[str, Any] | None = None
    """Schema of the JSON that the reply has to be; ``{}`` for any object."""
    limit: int | None = None
    """The request's own limit in tokens."""


class Reply(NamedTuple):
    tokens: list[str]
    """Text, or the pieces of a tool call's arguments."""
    tool: Tool | None
    cut: bool
    """Whether the request's limit ended the reply."""
    input_tokens: int
    output_tokens: int

    @property
    def text(self) -> str:
        return "".join(self.tokens)


def make_reply(ask: Ask, call: Call, index: int = 0) -> Reply:
    """The reply to ``ask``; ``index`` tells the choices of one answer apart."""
    prompt_tokens = count_tokens(ask.prompt)
    if ask.tool is not None:
        tokens = _cut(orjson.dumps(make_instance(ask.tool.schema)).decode())
        return Reply(tokens, ask.tool, False, prompt_tokens, len(tokens))
    if ask.schema is not None:
        tokens = _cut(_as_json(ask.schema, call, index))
        return Reply(tokens, None, False, prompt_tokens, len(tokens))
    count = call.options.tokens
    cut = ask.limit is not None and ask.limit < count
    if cut and ask.limit is not None:
        count = ask.limit
    return Reply(_speak(call, index, count), None, cut, prompt_tokens, count)


def count_tokens(text: str) -> int:
    """Four characters a token, and at least one."""
    return max(1, (len(text) + 3) // 4)


def _speak(call: Call, index: int, count: int) -> list[str]:
    # The first token names the body, so that a test sees which call it was answered from.
    name = f"Answer {call.digest[:4].hex()}"
    if call.options.vary:
        name += f" of call {call.serial}"
    if index:
        name += f" choice {index}"
    if not count:
        return []
    ring = _ring()
    at = (call.digest[0] + index * 7) & 255
    words = ring[at : at + count - 1]
    while len(words) < count - 1:
        words += ring[: count - 1 - len(words)]
    return [name, *words]


@cache
def _ring() -> list[str]:
    """Words to take a run from; long enough that an answer of usual length is one slice."""
    words = _TEXT.split()
    return [" " + words[(i * 31 + i // 7) % len(words)] for i in range(1024)]


def _cut(text: str) -> list[str]:
    return [text[i : i + 12] for i in range(0, len(text), 12)]


def _as_json(schema: dict[str, Any], call: Call, index: int) -> str:
    if schema.get("type") == "object" and schema.get("properties"):
        value = make_instance(schema)
    else:
        value = {"answer": "".join(_speak(call, index, min(call.options.tokens, 8)))}
    return orjson.dumps(value).decode()


def make_instance(schema: dict[str, Any], root: dict[str, Any] | None = None, depth: int = 0) -> Any:
    """A small value that the JSON schema accepts; local ``$ref`` is followed, eight levels at most."""
    root = schema if root is None else root
    if depth > _MAX_DEPTH or not isinstance(schema, dict):
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return make_instance(_resolve(reference, root), root, depth + 1)
    for joint in ("anyOf", "oneOf", "allOf"):
        if schema.get(joint):
            return make_instance(schema[joint][0], root, depth + 1)
    return _of_type(schema, root, depth)


def _of_type(schema: dict[str, Any], root: dict[str, Any], depth: int) -> Any:
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        kind = kind[0] if kind else "null"
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: make_instance(inner, root, depth + 1) for name, inner in properties.items()}
    if kind == "array":
        count = min(int(schema.get("minItems", 1)), 4)
        return [make_instance(schema.get("items", {"type": "string"}), root, depth + 1)] * count
    return {"string": "mock", "integer": 7, "number": 7.5, "boolean": True}.get(kind)


def _resolve(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    value: Any = root
    for part in reference.lstrip("#/").split("/") if reference != "#" else ():
        value = value.get(part, {}) if isinstance(value, dict) else {}
    return value if isinstance(value, dict) else {}


def choose_tool(tools: list[Tool], forced: str | None, last_user: str) -> Tool | None:
    """The tool to call: the one that is ``forced`` (``*`` means any), else the first if the user says "tool".

    ``forced`` is ``""`` when the request forbids tools.
    """
    if not tools or forced == "":
        return None
    if forced is not None:
        return next((tool for tool in tools if tool.name == forced), tools[0])
    return tools[0] if "tool" in last_user.lower() else None


def read_text(content: object) -> str:
    """The text of a message's content: a string, or a list of parts of which some carry text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return " ".join([str(part.get("text") or "") for part in content if isinstance(part, dict)])


def read_messages(messages: object) -> tuple[str, str]:
    """All text of a conversation, and the text of its last message if a user sent that."""
    if not isinstance(messages, list):
        return "", ""
    texts = [read_text(message.get("content")) for message in messages if isinstance(message, dict)]
    last = messages[-1] if messages else None
    # A tool's result comes back as a user's message in one dialect; it must not ask for the tool again.
    is_user = isinstance(last, dict) and last.get("role") == "user" and not _has_result(last.get("content"))
    return "\n".join(texts), texts[-1] if is_user and texts else ""


def _has_result(content: object) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "tool_result" for part in content
    )
