"""Neutral words as a request for Gemini's generateContent."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from proxy.protocol.conversation import (
    Block,
    Conversation,
    Media,
    Opaque,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolResult,
    ToolUse,
)
from proxy.providers.base import (
    JSON_HEADERS,
    Draft,
    Encoding,
    Fields,
    Form,
    dump,
    parse_arguments,
    parse_object,
    refuse,
)
from proxy.providers.gemini_read import FAMILY

_CONFIG: Final = {
    "frequency_penalty": "frequencyPenalty",
    "n": "candidateCount",
    "presence_penalty": "presencePenalty",
    "seed": "seed",
    "temperature": "temperature",
    "top_k": "topK",
    "top_p": "topP",
}
_MAX_STOPS: Final = 5
_BUDGETS: Final = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24_576}
_THOUGHTLESS: Final = ("gemini-1", "gemini-2.0", "gemma")
_BY_BUDGET: Final = ("gemini-2.5",)
# What Google documents for a call whose proof is lost: a caller of another dialect has no place to keep it.
_NO_PROOF: Final = "skip_thought_signature_validator"


def write_contents(conversation: Conversation, form: Form) -> Encoding:
    """Raises ``ProxyError`` (``BAD_REQUEST``) that names the caller's field."""
    draft = Draft(conversation, FAMILY)
    body: Fields = {}
    _write_turns(conversation, draft, form, body)
    _write_tools(conversation, draft, body)
    config: Fields = {}
    limit = draft.take_limit(form)
    if limit is not None:
        config["maxOutputTokens"] = limit
    for name, field in _CONFIG.items():
        if name in draft.options:
            config[field] = draft.take(name)
    if "stop" in draft.options:
        at = draft.field_of("stop")
        stops = draft.take("stop")
        if type(stops) is list and len(stops) > _MAX_STOPS:
            raise refuse(at, f"has more than {_MAX_STOPS} sequences, which this model does not take")
        config["stopSequences"] = stops
    wanted = conversation.format
    if wanted is not None:
        config["responseMimeType"] = "application/json"
        if wanted.kind == "schema":
            config["responseJsonSchema"] = wanted.schema
    _write_thinking(draft, form, config)
    if config:
        body["generationConfig"] = config
    for name, field in (("safety_settings", "safetySettings"), ("cached_content", "cachedContent")):
        if name in draft.options:
            body[field] = draft.take(name)
    reported = draft.finish(body, form)
    path = path_of(form, conversation.streams)
    return Encoding(path, JSON_HEADERS, dump(body), reported, streams=conversation.streams)


def path_of(form: Form, streams: bool) -> str:
    verb = "streamGenerateContent?alt=sse" if streams else "generateContent"
    return f"/v1beta/models/{quote(form.model, safe='')}:{verb}"


def _write_thinking(draft: Draft, form: Form, config: Fields) -> None:
    names = [draft.field_of(name) for name in ("effort", "thinking") if name in draft.options]
    effort, thinking = draft.take("effort"), draft.take_thinking()
    if effort is None and thinking is None:
        return
    if form.thinking == "off" or form.model.startswith(_THOUGHTLESS):
        for name in names:
            draft.report(name)
        return
    said: Fields = {}
    budget = None
    if type(thinking) is dict:
        kind = thinking.get("type")
        tokens = thinking.get("budget_tokens")
        budget = 0 if kind == "disabled" else tokens if type(tokens) is int else None
        said["includeThoughts"] = kind != "disabled"
    if budget is None and effort is not None:
        budget = _BUDGETS.get(str(effort), _BUDGETS["high"])
    if form.model.startswith(_BY_BUDGET):
        said["thinkingBudget"] = -1 if budget is None else budget
    elif budget is not None:
        level = "minimal" if budget < _BUDGETS["low"] else "low" if budget <= 4096 else "medium"
        said["thinkingLevel"] = level if budget <= 16_384 else "high"
    config["thinkingConfig"] = said


# -- tools -------------------------------------------------------------------------------------------------------


def _write_tools(conversation: Conversation, draft: Draft, body: Fields) -> None:
    choice, tools = conversation.choice, conversation.tools
    if choice is not None and choice.allowed and choice.mode == "auto":
        tools = [tool for tool in tools if tool.name in choice.allowed]
    if tools:
        body["tools"] = [{"functionDeclarations": [_write_tool(tool, draft) for tool in tools]}]
    if conversation.parallel is False and tools:
        draft.report(conversation.parallel_at)
    if choice is None:
        return
    config: Fields = {"mode": {"auto": "AUTO", "none": "NONE"}.get(choice.mode, "ANY")}
    if choice.mode == "tool":
        config["allowedFunctionNames"] = [choice.name]
    elif choice.mode == "any" and choice.allowed:
        config["allowedFunctionNames"] = list(choice.allowed)
    body["toolConfig"] = {"functionCallingConfig": config}


def _write_tool(tool: Tool, draft: Draft) -> Fields:
    if tool.opaque:
        raise refuse(f"{tool.at}.type", f"'{tool.opaque}' is a kind of tool that this model cannot be given")
    said: Fields = {"name": tool.name}
    if tool.description:
        said["description"] = tool.description
    if tool.schema is not None:
        said["parametersJsonSchema"] = tool.schema
    if tool.strict:
        draft.report(f"{tool.at}.strict")
    if tool.cache is not None:
        draft.report(f"{tool.at}.{tool.cache.field}")
    draft.keep(tool.extra, tool.at, said)
    return said


# -- turns -------------------------------------------------------------------------------------------------------


def _write_turns(conversation: Conversation, draft: Draft, form: Form, body: Fields) -> None:
    contents: list[Fields] = []
    instructions: list[Fields] = []
    names = {
        block.id: block.name
        for turn in conversation.turns
        for block in turn.blocks
        if isinstance(block, ToolUse)
    }
    needs_proof = form.model.startswith("gemini-3")
    for turn in conversation.turns:
        parts = [part for block in turn.blocks for part in _write_block(block, draft, names)]
        draft.keep(turn.extra, turn.at, {})
        if turn.role == "system":
            if contents:
                draft.report(f"{turn.at}.role")  # instructions stand apart here
            instructions += parts
        elif parts:
            if needs_proof:
                _prove(parts)
            contents.append({"role": "model" if turn.role == "assistant" else "user", "parts": parts})
    if instructions:
        body["systemInstruction"] = {"parts": instructions}
    if not contents:
        raise refuse("messages", "must hold more than instructions for this model")
    body["contents"] = contents


def _prove(parts: list[Fields]) -> None:
    """The first call of a turn must bear a proof."""
    first = next((part for part in parts if "functionCall" in part), None)
    if first is not None:
        first.setdefault("thoughtSignature", _NO_PROOF)


def _write_block(block: Block, draft: Draft, names: dict[str, str]) -> list[Fields]:
    """A tool's result that holds pictures becomes several parts; a foreign thought none."""
    parts: list[Fields]
    if isinstance(block, (Text, Refusal)):
        parts = [{"text": block.text}] if block.text else []
    elif isinstance(block, Media):
        parts = [_write_media(block)]
    elif isinstance(block, ToolUse):
        call: Fields = {"id": block.id, "name": block.name, "args": parse_arguments(block.arguments)}
        parts = [{"functionCall": call}]
        if block.signature:
            parts[0]["thoughtSignature"] = block.signature
    elif isinstance(block, ToolResult):
        parts = _write_result(block, draft, names)
    elif isinstance(block, Thinking):
        draft.report(block.at)
        parts = []
    else:
        kind = block.kind if isinstance(block, Opaque) else "block"
        raise refuse(f"{block.at}.type", f"'{kind}' cannot be translated for this model")
    if block.cache is not None:
        draft.report(f"{block.at}.{block.cache.field}")
    draft.keep(block.extra, block.at, parts[0] if parts else {})
    return parts


def _write_result(block: ToolResult, draft: Draft, names: dict[str, str]) -> list[Fields]:
    name = names.get(block.id)
    if name is None:
        raise refuse(block.at, "answers a tool call that is not in the conversation")
    text = "\n".join([inner.text for inner in block.blocks if isinstance(inner, Text)])
    others = [inner for inner in block.blocks if not isinstance(inner, Text)]
    response: Any = {"error": text} if block.is_error else parse_object(text.encode()) or {"result": text}
    parts: list[Fields] = [{"functionResponse": {"id": block.id, "name": name, "response": response}}]
    for inner in others:
        parts += _write_block(inner, draft, names)
    return parts


def _write_media(block: Media) -> Fields:
    if block.file_id:
        raise refuse(block.at, "names a file that only its own vendor has")
    if block.text:
        return {"text": "\n".join([line for line in (block.name, block.context, block.text) if line])}
    if block.url:
        if not block.media_type:
            raise refuse(block.at, "is a URL whose media type cannot be told; send the contents instead")
        return {"fileData": {"mimeType": block.media_type, "fileUri": block.url}}
    return {"inlineData": {"mimeType": block.media_type, "data": block.data}}
