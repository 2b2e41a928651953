"""OpenAI's responses as they are asked for, in neutral words."""

from __future__ import annotations

from typing import Any, Final

from proxy.protocol.conversation import (
    Block,
    Conversation,
    Media,
    Option,
    OutputFormat,
    Refusal,
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
    dump,
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
from proxy.providers.media import media_of_url

FAMILY: Final = "responses"
PROOF: Final = "proof:"
"""What our own ``encrypted_content`` begins with: the signature of a thought. Another vendor's means nothing here."""

_SAID: Final = frozenset(
    ("input", "instructions", "model", "stream", "stream_options", "tools", "tool_choice", "parallel_tool_calls",
     "text", "reasoning", "include")
)
OPTIONS: Final = {
    "background": "background",
    "context_management": "context_management",
    "conversation": "conversation",
    "max_output_tokens": "max_tokens",
    "max_tool_calls": "max_tool_calls",
    "metadata": "metadata",
    "moderation": "moderation",
    "previous_response_id": "previous_response_id",
    "prompt": "prompt",
    "prompt_cache_key": "prompt_cache_key",
    "prompt_cache_options": "prompt_cache_options",
    "prompt_cache_retention": "prompt_cache_retention",
    "safety_identifier": "safety_identifier",
    "service_tier": "service_tier",
    "store": "store",
    "temperature": "temperature",
    "top_logprobs": "item_logprobs",
    "top_p": "top_p",
    "user": "user",
}
_IDLE: Final[dict[str, Any]] = {
    "background": False, "store": False, "truncation": "disabled", "top_logprobs": 0, "metadata": {},
}
_INCLUDED: Final = frozenset(("reasoning.encrypted_content",))
INPUT_SCHEMA: Final[Fields] = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
"""What the free text of a ``custom`` tool looks like to a model that knows functions only."""


def read_response(fields: Fields, model: str, streams: bool) -> Conversation:
    """Raises ``ProxyError`` (``BAD_REQUEST``) that names the field."""
    conversation = Conversation(FAMILY, model, streams)
    if fields.get("instructions"):
        text = text_at(fields["instructions"], "instructions")
        conversation.turns.append(Turn("system", [Text(text, at="instructions")], "instructions"))
    given = fields.get("input")
    if type(given) is str:
        conversation.turns.append(Turn("user", [Text(given, at="input")], "input"))
    else:
        for index, item in enumerate(list_at(given, "input")):
            _read_item(object_at(item, f"input[{index}]"), f"input[{index}]", conversation)
    if not any(turn.role != "system" for turn in conversation.turns):
        raise malformed("input", "a non-empty string or array")
    conversation.tools = [
        _read_tool(object_at(tool, f"tools[{index}]"), f"tools[{index}]")
        for index, tool in enumerate(list_at(fields.get("tools"), "tools"))
    ]
    choice = fields.get("tool_choice")
    conversation.choice = _read_choice(choice)
    if type(choice) is dict:
        note_rest(choice, ("type", "name", "mode", "tools"), "tool_choice", conversation)
    parallel = fields.get("parallel_tool_calls")
    conversation.parallel = parallel if type(parallel) is bool else None
    _read_settings(fields, conversation)
    return conversation


def _read_settings(fields: Fields, conversation: Conversation) -> None:
    said = {name: value for name, value in fields.items() if name not in _IDLE or value != _IDLE[name]}
    options = conversation.options
    read_options(said, OPTIONS, _SAID, options)
    if any(str(name) not in _INCLUDED for name in list_at(fields.get("include"), "include")):
        options["include"] = Option(fields["include"], "include")
    reasoning = object_at(fields.get("reasoning") or {}, "reasoning")
    read_options(reasoning, {"effort": "effort"}, frozenset(), options, "reasoning.")
    text = object_at(fields.get("text") or {}, "text")
    read_options(text, {"verbosity": "verbosity"}, frozenset(("format",)), options, "text.")
    conversation.format = _read_format(text.get("format"))
    if type(text.get("format")) is dict:
        note_rest(text["format"], ("type", "name", "description", "schema", "strict"), "text.format", conversation)


def _read_format(form: object) -> OutputFormat | None:
    match form:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return OutputFormat("json", {}, at="text.format")
        case {"type": "json_schema", "schema": dict(schema), **said}:
            strict = said.get("strict")
            return OutputFormat(
                "schema",
                schema,
                text_at(said.get("name"), "text.format.name"),
                text_at(said.get("description"), "text.format.description"),
                strict if type(strict) is bool else None,
                "text.format",
            )
        case _:
            raise refuse("text.format", "is not a format that can be translated")


# -- items -------------------------------------------------------------------------------------------------------


def _read_item(item: Fields, at: str, conversation: Conversation) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            raise malformed(f"{at}.role", "user, assistant, system or developer")
        blocks = _read_content(item.get("content"), f"{at}.content", conversation)
        role = "system" if role == "developer" else role
        extra = rest_of(item, _MESSAGE)
        _append(conversation, Turn(role, blocks, at, extra), joins=role == "assistant" and not extra)
        return
    read = _ITEMS.get(kind) if type(kind) is str else None
    if read is None:
        raise refuse(f"{at}.type", f"'{kind}' is an item that cannot be translated")
    role, block = read(item, at, conversation)
    block.at = at
    block.extra = rest_of(item, _KNOWN[kind])
    _append(conversation, Turn(role, [block], at), joins=True)


_MESSAGE: Final = frozenset(("type", "role", "content", "id", "status", "phase"))


def _append(conversation: Conversation, turn: Turn, *, joins: bool) -> None:
    """Items of one speaker are one turn; a user's message begins a new one unless tools have just answered."""
    last = conversation.turns[-1] if conversation.turns else None
    answered = last is not None and bool(last.blocks) and isinstance(last.blocks[-1], ToolResult)
    joins = answered or (joins and turn.role != "user")
    if last is not None and last.role == turn.role and joins and not turn.extra:
        last.blocks += turn.blocks
    else:
        conversation.turns.append(turn)


def _read_content(content: object, at: str, conversation: Conversation) -> list[Block]:
    if type(content) is str:
        return [Text(content, at=at)]
    blocks = []
    for index, said in enumerate(list_at(content, at)):
        place = f"{at}[{index}]"
        part = object_at(said, place)
        kind = part.get("type")
        read = _PARTS.get(kind) if type(kind) is str else None
        if read is None:
            raise refuse(f"{place}.type", f"'{kind}' is content that cannot be translated")
        block = read(part, place)
        block.at = place
        block.cache = mark_of(part, place, conversation)
        blocks.append(block)
    return blocks


def _read_text(part: Fields, at: str) -> Block:
    known = frozenset(("type", "text", "annotations", "logprobs", "prompt_cache_breakpoint"))
    return Text(text_at(part.get("text"), f"{at}.text"), extra=rest_of(part, known))


def _read_refusal(part: Fields, at: str) -> Block:
    return Refusal(text_at(part.get("refusal"), f"{at}.refusal"))


def _read_image(part: Fields, at: str) -> Block:
    known = frozenset(("type", "image_url", "file_id", "prompt_cache_breakpoint"))
    extra = {name: value for name, value in rest_of(part, known).items() if (name, value) != ("detail", "auto")}
    if part.get("file_id"):
        return Media("image", file_id=text_at(part["file_id"], f"{at}.file_id"), extra=extra)
    block = media_of_url("image", text_at(part.get("image_url"), f"{at}.image_url"), f"{at}.image_url")
    block.extra = extra
    return block


def _read_file(part: Fields, at: str) -> Block:
    name = text_at(part.get("filename"), f"{at}.filename")
    known = frozenset(("type", "filename", "file_id", "file_url", "file_data", "prompt_cache_breakpoint"))
    extra = rest_of(part, known)
    if part.get("file_id"):
        return Media("document", file_id=text_at(part["file_id"], f"{at}.file_id"), name=name, extra=extra)
    member = "file_url" if part.get("file_url") else "file_data"
    block = media_of_url("document", text_at(part.get(member), f"{at}.{member}"), f"{at}.{member}")
    block.name, block.extra = name, extra
    return block


_PARTS: Final = {
    "input_text": _read_text,
    "output_text": _read_text,
    "text": _read_text,
    "refusal": _read_refusal,
    "input_image": _read_image,
    "input_file": _read_file,
}


def _read_call(item: Fields, at: str, conversation: Conversation) -> tuple[str, Block]:
    return "assistant", ToolUse(
        text_at(item.get("call_id"), f"{at}.call_id"),
        text_at(item.get("name"), f"{at}.name"),
        text_at(item.get("arguments"), f"{at}.arguments"),
    )


def _read_custom_call(item: Fields, at: str, conversation: Conversation) -> tuple[str, Block]:
    arguments = dump({"input": text_at(item.get("input"), f"{at}.input")}).decode()
    return "assistant", ToolUse(
        text_at(item.get("call_id"), f"{at}.call_id"), text_at(item.get("name"), f"{at}.name"), arguments
    )


def _read_output(item: Fields, at: str, conversation: Conversation) -> tuple[str, Block]:
    blocks = _read_content(item.get("output"), f"{at}.output", conversation)
    return "user", ToolResult(text_at(item.get("call_id"), f"{at}.call_id"), blocks)


def _read_reasoning(item: Fields, at: str, conversation: Conversation) -> tuple[str, Block]:
    texts = [
        text_at(object_at(part, at).get("text"), f"{at}.{name}")
        for name in ("summary", "content")
        for part in list_at(item.get(name), f"{at}.{name}")
    ]
    for name in ("summary", "content"):
        for part in list_at(item.get(name), f"{at}.{name}"):
            note_rest(part, ("type", "text"), f"{at}.{name}[]", conversation)
    proof = text_at(item.get("encrypted_content"), f"{at}.encrypted_content")
    signature = proof.removeprefix(PROOF) if proof.startswith(PROOF) else ""
    return "assistant", Thinking("\n\n".join(texts), signature)


_ITEMS: Final = {
    "function_call": _read_call,
    "custom_tool_call": _read_custom_call,
    "function_call_output": _read_output,
    "custom_tool_call_output": _read_output,
    "reasoning": _read_reasoning,
}
_COMMON: Final = frozenset(("type", "id", "status", "call_id"))
_KNOWN: Final = {
    "function_call": _COMMON | {"name", "arguments"},
    "custom_tool_call": _COMMON | {"name", "input"},
    "function_call_output": _COMMON | {"output"},
    "custom_tool_call_output": _COMMON | {"output"},
    "reasoning": _COMMON | {"summary", "content", "encrypted_content"},
}


# -- tools -------------------------------------------------------------------------------------------------------


def _read_tool(tool: Fields, at: str) -> Tool:
    kind = tool.get("type")
    name = text_at(tool.get("name"), f"{at}.name")
    described = text_at(tool.get("description"), f"{at}.description")
    if kind == "custom":
        extra = rest_of(tool, frozenset(("type", "name", "description", "format")))
        return Tool(name, _with_grammar(described, tool.get("format")), INPUT_SCHEMA, at, extra=extra)
    if kind != "function":
        return Tool("", "", None, at, extra=tool, opaque=str(kind))
    strict, schema = tool.get("strict"), tool.get("parameters")
    return Tool(
        name,
        described,
        None if schema is None else object_at(schema, f"{at}.parameters"),
        at,
        strict if type(strict) is bool else None,
        extra=rest_of(tool, frozenset(("type", "name", "description", "parameters", "strict"))),
    )


def _with_grammar(described: str, form: object) -> str:
    match form:
        case {"type": "grammar", "definition": str(definition), **rest}:
            syntax = str(rest.get("syntax") or "")
            return f"{described}\n\nThe input must follow this {syntax} grammar:\n{definition}".strip()
    return described


def _read_choice(choice: object) -> ToolChoice | None:
    match choice:
        case None:
            return None
        case "auto" | "none":
            return ToolChoice(str(choice))
        case "required":
            return ToolChoice("any")
        case {"type": "function" | "custom", "name": str(name)}:
            return ToolChoice("tool", name)
        case {"type": "allowed_tools", "mode": str(mode), "tools": list(tools)}:
            names = tuple([str(tool.get("name")) for tool in tools if type(tool) is dict])
            return ToolChoice("any" if mode == "required" else "auto", allowed=names)
        case _:
            raise refuse("tool_choice", "is not a choice that can be translated")
