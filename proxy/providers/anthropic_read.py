"""Anthropic's messages as they are asked for, in neutral words."""

from __future__ import annotations

from typing import Any, Final

from proxy.protocol.conversation import (
    Block,
    Conversation,
    Media,
    Opaque,
    Option,
    OutputFormat,
    Text,
    Thinking,
    Tool,
    ToolChoice,
    ToolResult,
    ToolUse,
    Turn,
)
from proxy.providers.base import (
    Fields,
    dump_arguments,
    list_at,
    malformed,
    note_rest,
    object_at,
    read_options,
    refuse,
    rest_of,
    text_at,
)
from proxy.providers.marks import mark_of

FAMILY: Final = "messages"

_SAID: Final = frozenset(
    ("messages", "model", "stream", "system", "tools", "tool_choice", "metadata", "output_config", "output_format",
     "service_tier")
)
OPTIONS: Final = {
    "cache_control": "cache_control",
    "container": "container",
    "context_management": "context_management",
    "inference_geo": "inference_geo",
    "max_tokens": "max_tokens",
    "mcp_servers": "mcp_servers",
    "stop_sequences": "stop",
    "temperature": "temperature",
    "thinking": "thinking",
    "top_k": "top_k",
    "top_p": "top_p",
}
_TIERS: Final = {"auto": "auto", "standard_only": "default"}


def read_messages(fields: Fields, model: str, streams: bool) -> Conversation:
    """Raises ``ProxyError`` (``BAD_REQUEST``) that names the field."""
    conversation = Conversation(FAMILY, model, streams)
    if not list_at(fields.get("messages"), "messages"):
        raise malformed("messages", "a non-empty array")
    if fields.get("system"):
        conversation.turns.append(Turn("system", _read_content(fields["system"], "system", conversation), "system"))
    for index, message in enumerate(fields["messages"]):
        at = f"messages[{index}]"
        said = object_at(message, at)
        role = said.get("role")
        if role not in ("user", "assistant", "system"):
            raise malformed(f"{at}.role", "user, assistant or system")
        blocks = _read_content(said.get("content"), f"{at}.content", conversation)
        extra = rest_of(said, frozenset(("role", "content")))
        conversation.turns.append(Turn(role, blocks, at, extra))
    conversation.tools = [
        _read_tool(object_at(tool, f"tools[{index}]"), f"tools[{index}]", conversation)
        for index, tool in enumerate(list_at(fields.get("tools"), "tools"))
    ]
    _read_choice(fields.get("tool_choice"), conversation)
    _read_settings(fields, conversation)
    return conversation


def _read_settings(fields: Fields, conversation: Conversation) -> None:
    options = conversation.options
    read_options(fields, OPTIONS, _SAID, options)
    metadata = fields.get("metadata")
    if metadata is not None:
        read_options(object_at(metadata, "metadata"), {"user_id": "user"}, frozenset(), options, "metadata.")
    config = object_at(fields.get("output_config") or {}, "output_config")
    read_options(config, {"effort": "effort"}, frozenset(("format",)), options, "output_config.")
    for owner, name, at in ((config, "format", "output_config.format"), (fields, "output_format", "output_format")):
        if owner.get(name) is not None:
            conversation.format = _read_format(owner[name], at)
            note_rest(owner[name], ("type", "schema"), at, conversation)
    tier = fields.get("service_tier")
    if tier is not None:
        options["service_tier"] = Option(_TIERS.get(str(tier), tier), "service_tier")


def _read_format(form: object, at: str) -> OutputFormat:
    match form:
        case {"type": "json_schema", "schema": dict(schema)}:
            return OutputFormat("schema", schema, at=at)
        case _:
            raise refuse(at, "is not a format that can be translated")


def _read_content(content: object, at: str, conversation: Conversation) -> list[Block]:
    if type(content) is str:
        return [Text(content, at=at)]
    return [
        _read_block(object_at(block, f"{at}[{index}]"), f"{at}[{index}]", conversation)
        for index, block in enumerate(list_at(content, at))
    ]


def _read_block(said: Fields, at: str, conversation: Conversation) -> Block:
    kind = said.get("type")
    if kind == "tool_result":
        block: Block = _read_result(said, at, conversation)
    else:
        read = _BLOCKS.get(kind) if type(kind) is str else None
        if read is None:
            return Opaque(str(kind), at=at, extra=said)
        block = read(said, at)
    block.at = at
    block.cache = mark_of(said, at, conversation)
    block.extra |= rest_of(said, _KNOWN[str(kind)] | _EVERYWHERE)
    source = said.get("source")
    if type(source) is dict:
        note_rest(source, _SOURCE, f"{at}.source", conversation)
    for inner in _flattened(said):
        note_rest(inner, ("type", "text"), f"{at}.content[]", conversation)
    return block


_SOURCE: Final = ("type", "media_type", "data", "url", "file_id", "content")


def _flattened(said: Fields) -> list[Fields]:
    """The blocks inside a block that become its text."""
    source = said.get("source")
    owner = source if type(source) is dict else said if said.get("type") == "search_result" else {}
    content = owner.get("content")
    return [inner for inner in content if type(inner) is dict] if type(content) is list else []


def _read_text(said: Fields, at: str) -> Block:
    return Text(text_at(said.get("text"), f"{at}.text"))


def _read_image(said: Fields, at: str) -> Block:
    return _read_source("image", object_at(said.get("source"), f"{at}.source"), f"{at}.source")


def _read_source(kind: str, source: Fields, at: str) -> Media:
    match source:
        case {"type": "base64", "data": str(data)}:
            return Media(kind, text_at(source.get("media_type"), f"{at}.media_type"), data)
        case {"type": "url", "url": str(url)}:
            return Media(kind, url=url)
        case {"type": "file", "file_id": str(file_id)}:
            return Media(kind, file_id=file_id)
        case {"type": "text", "data": str(text)}:
            return Media(kind, "text/plain", text=text)
        case {"type": "content", "content": content}:
            return Media(kind, "text/plain", text=_text_of(content, at))
        case _:
            raise refuse(f"{at}.type", "is not a source that can be translated")


def _text_of(content: Any, at: str) -> str:
    """The text of blocks that may hold nothing else."""
    if type(content) is str:
        return content
    texts = []
    for block in list_at(content, at):
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                raise refuse(at, "holds more than text, which has no translation here")
    return "\n".join(texts)


def _read_document(said: Fields, at: str) -> Block:
    block = _read_source("document", object_at(said.get("source"), f"{at}.source"), f"{at}.source")
    block.name = text_at(said.get("title"), f"{at}.title")
    block.context = text_at(said.get("context"), f"{at}.context")
    return block


def _read_search_result(said: Fields, at: str) -> Block:
    return Media(
        "document",
        "text/plain",
        text=_text_of(said.get("content"), f"{at}.content"),
        name=text_at(said.get("title"), f"{at}.title"),
        context=text_at(said.get("source"), f"{at}.source"),
    )


def _read_thinking(said: Fields, at: str) -> Block:
    return Thinking(
        text_at(said.get("thinking"), f"{at}.thinking"), text_at(said.get("signature"), f"{at}.signature")
    )


def _read_redacted(said: Fields, at: str) -> Block:
    return Thinking("", redacted=text_at(said.get("data"), f"{at}.data"))


def _read_use(said: Fields, at: str) -> Block:
    extra = {} if said.get("caller") in (None, {"type": "direct"}) else {"caller": said["caller"]}
    return ToolUse(
        text_at(said.get("id"), f"{at}.id"),
        text_at(said.get("name"), f"{at}.name"),
        dump_arguments(said.get("input")),
        extra=extra,
    )


def _read_result(said: Fields, at: str, conversation: Conversation) -> ToolResult:
    return ToolResult(
        text_at(said.get("tool_use_id"), f"{at}.tool_use_id"),
        _read_content(said.get("content"), f"{at}.content", conversation),
        said.get("is_error") is True,
    )


_BLOCKS: Final = {
    "text": _read_text,
    "image": _read_image,
    "document": _read_document,
    "search_result": _read_search_result,
    "thinking": _read_thinking,
    "redacted_thinking": _read_redacted,
    "tool_use": _read_use,
}
_EVERYWHERE: Final = frozenset(("type", "cache_control"))
_KNOWN: Final = {
    "text": frozenset(("text",)),
    "image": frozenset(("source",)),
    "document": frozenset(("source", "title", "context")),
    "search_result": frozenset(("content", "title", "source")),
    "thinking": frozenset(("thinking", "signature")),
    "redacted_thinking": frozenset(("data",)),
    "tool_use": frozenset(("id", "name", "input", "caller")),
    "tool_result": frozenset(("tool_use_id", "content", "is_error")),
}
_TOOL: Final = frozenset(("type", "name", "description", "input_schema", "strict", "cache_control"))


def _read_tool(said: Fields, at: str, conversation: Conversation) -> Tool:
    if said.get("type") not in (None, "custom"):
        return Tool("", "", None, at, extra=said, opaque=str(said["type"]))
    strict = said.get("strict")
    return Tool(
        text_at(said.get("name"), f"{at}.name"),
        text_at(said.get("description"), f"{at}.description"),
        object_at(said.get("input_schema"), f"{at}.input_schema"),
        at,
        strict if type(strict) is bool else None,
        mark_of(said, at, conversation),
        rest_of(said, _TOOL),
    )


def _read_choice(choice: object, conversation: Conversation) -> None:
    match choice:
        case None:
            return
        case {"type": "auto" | "any" | "none" as mode}:
            conversation.choice = ToolChoice(str(mode))
        case {"type": "tool", "name": str(name)}:
            conversation.choice = ToolChoice("tool", name)
        case _:
            raise refuse("tool_choice", "is not a choice that can be translated")
    if type(choice) is dict:
        note_rest(choice, ("type", "name", "disable_parallel_tool_use"), "tool_choice", conversation)
    if type(choice) is dict and type(choice.get("disable_parallel_tool_use")) is bool:
        conversation.parallel = not choice["disable_parallel_tool_use"]
        conversation.parallel_at = "tool_choice.disable_parallel_tool_use"
