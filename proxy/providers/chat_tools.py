"""Tools, their choice and the form of the answer, as chat completions say them."""

from __future__ import annotations

from typing import Any, Final

from proxy.protocol.conversation import Conversation, OutputFormat, Tool, ToolChoice
from proxy.providers.base import Fields, note_rest, object_at, refuse, rest_of, text_at
from proxy.providers.marks import mark_of

_MARKS: Final = ("cache_control", "prompt_cache_breakpoint")
_SCHEMA: Final = ("name", "description", "schema", "schema_definition", "strict")


def read_choice(choice: object, conversation: Conversation) -> ToolChoice | None:
    """Raises ``ProxyError`` for a choice without translation."""
    read = _choice_of(choice)
    _note_choice(choice, conversation)
    return read


def read_format(form: object, conversation: Conversation) -> OutputFormat | None:
    """Raises ``ProxyError`` for a format without translation."""
    read = _format_of(form)
    if type(form) is dict:
        note_rest(form, ("type", "json_schema"), "response_format", conversation)
        if type(form.get("json_schema")) is dict:
            note_rest(form["json_schema"], _SCHEMA, "response_format.json_schema", conversation)
    return read


def read_tool(tool: Fields, at: str, conversation: Conversation) -> Tool:
    if tool.get("type", "function") != "function":
        return Tool("", "", None, at, extra=tool, opaque=str(tool.get("type")))
    function = object_at(tool.get("function"), f"{at}.function")
    note_rest(tool, ("type", "function", *_MARKS), at, conversation)
    strict = function.get("strict")
    schema = function.get("parameters")
    extra = rest_of(function, frozenset(("name", "description", "parameters", "strict")))
    extra.pop("cache_control", None)
    return Tool(
        text_at(function.get("name"), f"{at}.function.name"),
        text_at(function.get("description"), f"{at}.function.description"),
        None if schema is None else object_at(schema, f"{at}.function.parameters"),
        f"{at}.function",
        strict if type(strict) is bool else None,
        mark_of(tool, at, conversation) or mark_of(function, f"{at}.function", conversation),
        extra,
    )


def _choice_of(choice: object) -> ToolChoice | None:
    match choice:
        case None:
            return None
        case "auto" | "none":
            return ToolChoice(str(choice))
        case "required" | "any":
            return ToolChoice("any")
        case {"type": "function", "function": {"name": str(name)}} | {"function": {"name": str(name)}}:
            return ToolChoice("tool", name)
        case {"type": "allowed_tools", "allowed_tools": {"mode": str(mode), "tools": list(tools)}}:
            return ToolChoice("any" if mode == "required" else "auto", allowed=_names_of(tools))
        case _:
            raise refuse("tool_choice", "is not a choice that can be translated")


def _note_choice(choice: Any, conversation: Conversation) -> None:
    """Report what a choice says beyond mode and names."""
    match choice:
        case {"function": dict(function)}:
            note_rest(choice, ("type", "function"), "tool_choice", conversation)
            note_rest(function, ("name",), "tool_choice.function", conversation)
        case {"type": "allowed_tools", "allowed_tools": dict(allowed)}:
            note_rest(choice, ("type", "allowed_tools"), "tool_choice", conversation)
            note_rest(allowed, ("mode", "tools"), "tool_choice.allowed_tools", conversation)
            for tool in allowed["tools"]:
                note_rest(tool, ("type", "function"), "tool_choice.allowed_tools.tools[]", conversation)
                note_rest(tool["function"], ("name",), "tool_choice.allowed_tools.tools[].function", conversation)


def _names_of(tools: list[Any]) -> tuple[str, ...]:
    names = []
    for tool in tools:
        match tool:
            case {"function": {"name": str(name)}}:
                names.append(name)
            case _:
                raise refuse("tool_choice.allowed_tools.tools", "names a tool that is no function")
    return tuple(names)


def _format_of(form: object) -> OutputFormat | None:
    match form:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return OutputFormat("json", {})
        case {"type": "json_schema", "json_schema": dict(said)}:
            strict = said.get("strict")
            schema = said.get("schema", said.get("schema_definition"))
            return OutputFormat(
                "schema",
                object_at({} if schema is None else schema, "response_format.json_schema.schema"),
                text_at(said.get("name"), "response_format.json_schema.name"),
                text_at(said.get("description"), "response_format.json_schema.description"),
                strict if type(strict) is bool else None,
            )
        case _:
            raise refuse("response_format", "is not a format that can be translated")
