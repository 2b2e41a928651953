"""Gemini's generateContent as it is asked for, in neutral words."""

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
from proxy.providers.schema import from_openapi

FAMILY: Final = "gemini"

_SAID: Final = frozenset(("contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "model"))
_TOP: Final = {"cachedContent": "cached_content", "safetySettings": "safety_settings", "labels": "labels"}
OPTIONS: Final = {
    "candidateCount": "n",
    "frequencyPenalty": "frequency_penalty",
    "logprobs": "candidate_logprobs",
    "maxOutputTokens": "max_tokens",
    "presencePenalty": "presence_penalty",
    "responseLogprobs": "candidate_logprobs",
    "responseModalities": "response_modalities",
    "seed": "seed",
    "speechConfig": "speech",
    "stopSequences": "stop",
    "temperature": "temperature",
    "topK": "top_k",
    "topP": "top_p",
}
_SHAPES: Final = frozenset(("responseMimeType", "responseSchema", "responseJsonSchema", "thinkingConfig"))
_IDLE: Final = (("candidateCount", 1), ("responseModalities", ["TEXT"]), ("responseLogprobs", False))


def camel(fields: Fields) -> Fields:
    """Members in the one spelling of the two that the API takes."""
    if not any("_" in name for name in fields):
        return fields
    return {_camel_word(name): value for name, value in fields.items()}


def _camel_word(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join([word.capitalize() for word in rest])


def read_contents(fields: Fields, model: str, streams: bool) -> Conversation:
    """Raises ``ProxyError`` (``BAD_REQUEST``) that names the field."""
    fields = camel(fields)
    conversation = Conversation(FAMILY, model, streams)
    contents = fields.get("contents")
    if not list_at(contents, "contents"):
        raise malformed("contents", "a non-empty array")
    instruction = fields.get("systemInstruction")
    if instruction is not None:
        if type(instruction) is str:
            instruction = {"parts": [{"text": instruction}]}
        said = object_at(instruction, "systemInstruction")
        note_rest(said, ("parts", "role"), "systemInstruction", conversation)
        blocks = _Parts(conversation).read(said, "systemInstruction")
        conversation.turns.append(Turn("system", blocks, "systemInstruction"))
    parts = _Parts(conversation)
    for index, said in enumerate(list_at(contents, "contents")):
        at = f"contents[{index}]"
        content = object_at(said, at)
        role = "assistant" if content.get("role") == "model" else "user"
        conversation.turns.append(
            Turn(role, parts.read(content, at), at, rest_of(content, frozenset(("role", "parts"))))
        )
    _read_tools(fields, conversation)
    read_options(fields, _TOP, _SAID, conversation.options)
    _read_config(camel(object_at(fields.get("generationConfig") or {}, "generationConfig")), conversation)
    return conversation


def _read_config(config: Fields, conversation: Conversation) -> None:
    said = {name: value for name, value in config.items() if (name, value) not in _IDLE}
    read_options(said, OPTIONS, _SHAPES, conversation.options, "generationConfig.")
    if config.get("responseMimeType") == "application/json":
        conversation.format = OutputFormat("json", {}, at="generationConfig.responseMimeType")
    elif config.get("responseMimeType") not in (None, "text/plain"):
        raise refuse("generationConfig.responseMimeType", "is not a format that can be translated")
    for name in ("responseSchema", "responseJsonSchema"):
        if config.get(name) is not None:
            at = f"generationConfig.{name}"
            schema = object_at(config[name], at)
            schema = from_openapi(schema) if name == "responseSchema" else schema
            conversation.format = OutputFormat("schema", schema, at=at)
    thinking = config.get("thinkingConfig")
    if thinking is not None:
        _read_thinking(camel(object_at(thinking, "generationConfig.thinkingConfig")), conversation)


def _read_thinking(said: Fields, conversation: Conversation) -> None:
    at = "generationConfig.thinkingConfig"
    note_rest(said, ("thinkingBudget", "thinkingLevel"), at, conversation)
    budget, level = said.get("thinkingBudget"), said.get("thinkingLevel")
    if type(level) is str:
        conversation.options["effort"] = Option(level.lower(), f"{at}.thinkingLevel")
    elif type(budget) is int and budget >= 0:
        effort = "none" if not budget else "low" if budget <= 4096 else "medium" if budget <= 16_384 else "high"
        conversation.options["effort"] = Option(effort, f"{at}.thinkingBudget")


class _Parts:
    """Reads parts, and gives calls of tools the ids they may lack: the n-th call is answered by the result that names
    the same function first."""

    # Mutable, written by `read`: _count calls so far, _open calls without a result as (name, id).
    __slots__ = ("_conversation", "_count", "_open")

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._count = 0
        self._open: list[tuple[str, str]] = []

    def read(self, content: Fields, at: str) -> list[Block]:
        return [
            self._read_part(camel(object_at(part, f"{at}.parts[{index}]")), f"{at}.parts[{index}]")
            for index, part in enumerate(list_at(content.get("parts"), f"{at}.parts"))
        ]

    def _read_part(self, part: Fields, at: str) -> Block:
        signature = text_at(part.get("thoughtSignature"), f"{at}.thoughtSignature")
        extra = rest_of(part, _PART)
        for name, known in _INSIDE.items():
            if type(part.get(name)) is dict:
                note_rest(camel(part[name]), known, f"{at}.{name}", self._conversation)
        if type(part.get("text")) is str:
            if part.get("thought") is True:
                return Thinking(part["text"], signature, at=at, extra=extra)
            return Text(part["text"], at=at, extra=extra)
        if part.get("functionCall") is not None:
            block: Block = self._read_call(object_at(part["functionCall"], at), at, signature)
        elif part.get("functionResponse") is not None:
            block = self._read_result(object_at(part["functionResponse"], at), at)
        elif part.get("inlineData") is not None:
            data = camel(object_at(part["inlineData"], at))
            block = _media(text_at(data.get("mimeType"), at), at)
            block.data = text_at(data.get("data"), f"{at}.inlineData.data")
            block.name = text_at(data.get("displayName"), at)
        elif part.get("fileData") is not None:
            data = camel(object_at(part["fileData"], at))
            block = _media(text_at(data.get("mimeType"), at), at)
            uri = text_at(data.get("fileUri"), f"{at}.fileData.fileUri")
            own = uri.startswith(("gs://", "https://generativelanguage."))
            block.file_id, block.url = (uri, "") if own else ("", uri)
        else:
            return Opaque(next(iter(part), "part"), at=at, extra=part)
        block.at, block.extra = at, extra
        return block

    def _read_call(self, call: Fields, at: str, signature: str) -> ToolUse:
        name = text_at(call.get("name"), f"{at}.functionCall.name")
        call_id = text_at(call.get("id"), f"{at}.functionCall.id") or f"call_{self._count}"
        self._count += 1
        self._open.append((name, call_id))
        return ToolUse(call_id, name, dump(call.get("args") or {}).decode(), signature)

    def _read_result(self, said: Fields, at: str) -> ToolResult:
        name = text_at(said.get("name"), f"{at}.functionResponse.name")
        given = text_at(said.get("id"), f"{at}.functionResponse.id")
        match = next((pair for pair in self._open if given in ("", pair[1]) and pair[0] == name), None)
        if match is not None:
            self._open.remove(match)
        call_id = given or (match[1] if match else f"call_{name}")
        response = said.get("response")
        return ToolResult(call_id, [Text(_text_of(response), at=at)], _is_error(response))


_INSIDE: Final = {
    "functionCall": ("id", "name", "args"),
    "functionResponse": ("id", "name", "response"),
    "inlineData": ("mimeType", "data", "displayName"),
    "fileData": ("mimeType", "fileUri"),
}
_PART: Final = frozenset(
    ("text", "thought", "thoughtSignature", "functionCall", "functionResponse", "inlineData", "fileData")
)


def _text_of(response: Any) -> str:
    """A result that is nothing but a text is told as the text."""
    match response:
        case {"result": str(text), **rest} | {"output": str(text), **rest} | {"error": str(text), **rest} if not rest:
            return text
    return dump(response if response is not None else {}).decode()


def _is_error(response: Any) -> bool:
    return type(response) is dict and response.keys() == {"error"}


def _media(media_type: str, at: str) -> Media:
    kind = media_type.partition("/")[0]
    if kind == "video":
        raise refuse(at, "is video, which cannot be translated")
    return Media(kind if kind in ("image", "audio") else "document", media_type)


def _read_tools(fields: Fields, conversation: Conversation) -> None:
    for index, tool in enumerate(list_at(fields.get("tools"), "tools")):
        said = camel(object_at(tool, f"tools[{index}]"))
        for name, value in said.items():
            if name != "functionDeclarations" and value is not None:
                conversation.tools.append(Tool("", "", None, f"tools[{index}]", extra=said, opaque=name))
        for place, function in enumerate(list_at(said.get("functionDeclarations"), f"tools[{index}]")):
            at = f"tools[{index}].functionDeclarations[{place}]"
            conversation.tools.append(_read_function(camel(object_at(function, at)), at))
    settings = camel(object_at(fields.get("toolConfig") or {}, "toolConfig"))
    note_rest(settings, ("functionCallingConfig",), "toolConfig", conversation)
    config = settings.get("functionCallingConfig")
    if config is None:
        return
    config = camel(object_at(config, "toolConfig.functionCallingConfig"))
    note_rest(config, ("mode", "allowedFunctionNames"), "toolConfig.functionCallingConfig", conversation)
    mode = str(config.get("mode") or "AUTO").upper()
    names = tuple([str(name) for name in list_at(config.get("allowedFunctionNames"), "toolConfig")])
    at = "toolConfig.functionCallingConfig"
    if mode == "ANY" and len(names) == 1:
        conversation.choice = ToolChoice("tool", names[0], at=at)
    elif mode in ("AUTO", "ANY", "NONE", "MODE_UNSPECIFIED", "VALIDATED"):
        word = {"ANY": "any", "NONE": "none"}.get(mode, "auto")
        conversation.choice = ToolChoice(word, allowed=names, at=at)
    else:
        raise refuse(f"{at}.mode", "is not a choice that can be translated")


def _read_function(said: Fields, at: str) -> Tool:
    schema = said.get("parametersJsonSchema")
    if schema is None and said.get("parameters") is not None:
        schema = from_openapi(object_at(said["parameters"], f"{at}.parameters"))
    return Tool(
        text_at(said.get("name"), f"{at}.name"),
        text_at(said.get("description"), f"{at}.description"),
        schema,
        at,
        extra=rest_of(said, frozenset(("name", "description", "parameters", "parametersJsonSchema"))),
    )
