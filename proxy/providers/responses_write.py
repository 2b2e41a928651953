"""Neutral words as a request for OpenAI's responses."""

from __future__ import annotations

from typing import Any, Final

from proxy.protocol.conversation import (
    Block,
    Conversation,
    Media,
    Opaque,
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
from proxy.providers.base import JSON_HEADERS, Draft, Encoding, Fields, Form, dump, refuse
from proxy.providers.marks import cache_breakpoint
from proxy.providers.media import url_of_media
from proxy.providers.responses_read import FAMILY
from proxy.providers.schema import is_strict

_OPTIONS: Final = {
    "metadata": "metadata",
    "prompt_cache_key": "prompt_cache_key",
    "prompt_cache_options": "prompt_cache_options",
    "prompt_cache_retention": "prompt_cache_retention",
    "safety_identifier": "safety_identifier",
    "service_tier": "service_tier",
    "store": "store",
    "temperature": "temperature",
    "top_p": "top_p",
    "user": "user",
}


def write_response(conversation: Conversation, form: Form) -> Encoding:
    """Raises ``ProxyError`` (``BAD_REQUEST``) that names the caller's field."""
    draft = Draft(conversation, FAMILY)
    body: Fields = {"model": form.model, "input": []}
    for turn in conversation.turns:
        body["input"] += _write_turn(turn, draft, form)
    _write_tools(conversation, draft, body)
    text: Fields = {}
    if conversation.format is not None:
        text["format"] = _write_format(conversation.format)
    if "verbosity" in draft.options:
        text["verbosity"] = draft.take("verbosity")
    if text:
        body["text"] = text
    _write_effort(conversation, draft, form, body)
    temperature = draft.options.get("temperature")
    if temperature is not None and temperature.value == 1:
        draft.take("temperature")  # the default; models that reason refuse to be told even that
    limit = draft.take_limit(form)
    if limit is not None:
        body["max_output_tokens"] = limit
    for name, field in _OPTIONS.items():
        if name in draft.options:
            body[field] = draft.take(name)
    # Whoever asks in another dialect has no way to read a stored response, and did not ask for one.
    body.setdefault("store", False)
    if conversation.streams:
        body["stream"] = True
    reported = draft.finish(body, form)
    return Encoding("/v1/responses", JSON_HEADERS, dump(body), reported, streams=conversation.streams)


def _write_effort(conversation: Conversation, draft: Draft, form: Form, body: Fields) -> None:
    names = [draft.field_of(name) for name in ("effort", "thinking") if name in draft.options]
    effort, thinking = draft.take("effort"), draft.take_thinking()
    reasoning: Fields = {} if effort is None else {"effort": effort}
    match thinking:
        case {"type": "enabled", "budget_tokens": int(budget)}:
            reasoning.setdefault("effort", "low" if budget <= 4096 else "medium" if budget <= 16_384 else "high")
            reasoning["summary"] = "auto"
    if reasoning and (form.thinking == "off" or form.model.startswith(("gpt-3", "gpt-4", "chatgpt-4"))):
        for name in names:
            draft.report(name)
    elif reasoning:
        body["reasoning"] = reasoning


def _write_format(form: OutputFormat) -> Fields:
    if form.kind == "json":
        return {"type": "json_object"}
    strict = is_strict(form.schema) if form.strict is None else form.strict
    said = {"type": "json_schema", "name": form.name or "answer", "schema": form.schema, "strict": strict}
    if form.description:
        said["description"] = form.description
    return said


# -- tools -------------------------------------------------------------------------------------------------------


def _write_tools(conversation: Conversation, draft: Draft, body: Fields) -> None:
    if conversation.tools:
        body["tools"] = [_write_tool(tool, draft) for tool in conversation.tools]
        if conversation.parallel is not None:
            body["parallel_tool_calls"] = conversation.parallel
    if conversation.choice is not None:
        body["tool_choice"] = _write_choice(conversation.choice)


def _write_tool(tool: Tool, draft: Draft) -> Fields:
    if tool.opaque:
        raise refuse(f"{tool.at}.type", f"'{tool.opaque}' is a kind of tool that this model cannot be given")
    # Without a word, this API is strict, unlike all the others.
    said: Fields = {"type": "function", "name": tool.name, "parameters": tool.schema, "strict": tool.strict is True}
    if tool.description:
        said["description"] = tool.description
    if tool.cache is not None:
        draft.report(f"{tool.at}.{tool.cache.field}")
    draft.keep(tool.extra, tool.at, said)
    return said


def _write_choice(choice: ToolChoice) -> Any:
    if choice.mode == "tool":
        return {"type": "function", "name": choice.name}
    mode = "required" if choice.mode == "any" else choice.mode
    if choice.allowed:
        tools = [{"type": "function", "name": name} for name in choice.allowed]
        return {"type": "allowed_tools", "mode": mode, "tools": tools}
    return mode


# -- turns -------------------------------------------------------------------------------------------------------


def _write_turn(turn: Turn, draft: Draft, form: Form) -> list[Fields]:
    """The items of one turn: what was said, and tools called or answered, in order."""
    items: list[Fields] = []
    parts: list[Fields] = []
    for block in turn.blocks:
        if isinstance(block, (ToolUse, ToolResult)):
            _end_message(turn, parts, items)
            items.append(_write_call(block) if isinstance(block, ToolUse) else _write_result(block, draft, form))
            draft.keep(block.extra, block.at, items[-1])
            if block.cache is not None:
                draft.report(f"{block.at}.{block.cache.field}")
        elif isinstance(block, Thinking):
            draft.report(block.at)
        elif not (isinstance(block, Text) and not block.text and turn.role == "assistant"):
            parts.append(_write_part(block, turn.role, draft, form))
    _end_message(turn, parts, items)
    draft.keep(turn.extra, turn.at, items[-1] if items else {})
    return items


def _end_message(turn: Turn, parts: list[Fields], items: list[Fields]) -> None:
    if not parts:
        return
    content: Any = list(parts)
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        content = parts[0]["text"]
    items.append({"role": turn.role, "content": content})
    parts.clear()


def _write_call(block: ToolUse) -> Fields:
    return {"type": "function_call", "call_id": block.id, "name": block.name, "arguments": block.arguments or "{}"}


def _write_result(block: ToolResult, draft: Draft, form: Form) -> Fields:
    if block.is_error:
        draft.report(f"{block.at}.is_error")
    plain = all(isinstance(inner, Text) for inner in block.blocks)
    output: Any = [_write_part(inner, "user", draft, form) for inner in block.blocks]
    if plain:
        output = "\n".join([part["text"] for part in output])
    return {"type": "function_call_output", "call_id": block.id, "output": output}


def _write_part(block: Block, role: str, draft: Draft, form: Form) -> Fields:
    if isinstance(block, Text):
        part: Fields = {"type": "output_text" if role == "assistant" else "input_text", "text": block.text}
    elif isinstance(block, Refusal):
        part = {"type": "refusal", "refusal": block.text}
    elif isinstance(block, Media):
        part = _write_media(block, draft)
    else:
        kind = block.kind if isinstance(block, Opaque) else "block"
        raise refuse(f"{block.at}.type", f"'{kind}' cannot be translated for this model")
    if block.cache is not None:
        if form.cache_markers == "breakpoint" and role != "assistant":
            part["prompt_cache_breakpoint"] = cache_breakpoint(block.cache)
        else:
            draft.report(f"{block.at}.{block.cache.field}")
    if not (isinstance(block, Media) and block.kind == "image"):
        draft.keep(block.extra, block.at, part)
    return part


def _write_media(block: Media, draft: Draft) -> Fields:
    if block.file_id:
        raise refuse(block.at, "names a file that only its own vendor has")
    if block.kind == "image":
        extra = dict(block.extra)
        part = {"type": "input_image", "image_url": url_of_media(block), "detail": extra.pop("detail", "auto")}
        draft.keep(extra, block.at, part)
        return part
    if block.kind != "document":
        raise refuse(block.at, "is audio, which this model is not sent")
    if block.text:
        text = "\n".join([line for line in (block.name, block.context, block.text) if line])
        return {"type": "input_text", "text": text}
    if block.context:
        draft.report(f"{block.at}.context")
    if block.url:
        return {"type": "input_file", "file_url": block.url}
    return {"type": "input_file", "filename": block.name or "document.pdf", "file_data": url_of_media(block)}
