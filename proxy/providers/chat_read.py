"""Chat completions as they are asked for, in neutral words: OpenAI's form, and what Mistral and gateways add."""

from __future__ import annotations

from typing import Any, Final

from proxy.protocol.conversation import (
    Block,
    Conversation,
    Media,
    Opaque,
    Option,
    Refusal,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Turn,
)
from proxy.providers.base import (
    Fields,
    list_at,
    malformed,
    note_rest,
    object_at,
    read_options,
    refuse,
    rest_of,
    text_at,
)
from proxy.providers.chat_tools import read_choice, read_format, read_tool
from proxy.providers.marks import mark_of
from proxy.providers.media import media_of_url

FAMILY: Final = "chat"

# What is said to the model and how; everything else becomes an option.
_SAID: Final = frozenset(
    (
        "messages", "model", "stream", "stream_options", "tools", "tool_choice", "parallel_tool_calls",
        "response_format", "max_tokens", "max_completion_tokens", "functions", "function_call",
    )
)
# Field -> neutral option. Fields that are not here are foreign to everybody but this family.
OPTIONS: Final = {
    "audio": "audio",
    "frequency_penalty": "frequency_penalty",
    "guardrails": "guardrails",
    "logit_bias": "logit_bias",
    "logprobs": "logprobs",
    "metadata": "metadata",
    "modalities": "modalities",
    "moderation": "moderation",
    "n": "n",
    "prediction": "prediction",
    "presence_penalty": "presence_penalty",
    "prompt_cache_key": "prompt_cache_key",
    "prompt_cache_options": "prompt_cache_options",
    "prompt_cache_retention": "prompt_cache_retention",
    "random_seed": "seed",
    "reasoning_effort": "effort",
    "safe_prompt": "safe_prompt",
    "safety_identifier": "safety_identifier",
    "seed": "seed",
    "service_tier": "service_tier",
    "stop": "stop",
    "store": "store",
    "temperature": "temperature",
    "thinking": "thinking",
    "top_k": "top_k",
    "top_logprobs": "top_logprobs",
    "top_p": "top_p",
    "user": "user",
    "verbosity": "verbosity",
    "web_search_options": "web_search_options",
}
# Values that ask for what happens anyway.
_IDLE: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "logit_bias": ({},),
    "store": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "metadata": ({},),
    "guardrails": ([],),
    "safe_prompt": (False,),
}
_CACHE: Final = frozenset(("cache_control", "prompt_cache_breakpoint"))


def read_chat(fields: Fields, model: str, streams: bool) -> Conversation:
    """Raises ``ProxyError`` (``BAD_REQUEST``) that names the field."""
    for name in ("functions", "function_call"):
        if fields.get(name) is not None:
            raise refuse(name, "is the old form of tools and is not translated; use 'tools' and 'tool_choice'")
    conversation = Conversation(FAMILY, model, streams)
    if not list_at(fields.get("messages"), "messages"):
        raise malformed("messages", "a non-empty array")
    for index, message in enumerate(fields["messages"]):
        at = f"messages[{index}]"
        _read_message(object_at(message, at), at, conversation)
    conversation.tools = [
        read_tool(object_at(tool, f"tools[{index}]"), f"tools[{index}]", conversation)
        for index, tool in enumerate(list_at(fields.get("tools"), "tools"))
    ]
    conversation.choice = read_choice(fields.get("tool_choice"), conversation)
    parallel = fields.get("parallel_tool_calls")
    conversation.parallel = parallel if type(parallel) is bool else None
    conversation.format = read_format(fields.get("response_format"), conversation)
    said = {name: value for name, value in fields.items() if not _is_idle(name, value)}
    read_options(said, OPTIONS, _SAID, conversation.options)
    for name in ("max_tokens", "max_completion_tokens"):
        if fields.get(name) is not None:
            conversation.options["max_tokens"] = Option(fields[name], name)
    if type(fields.get("stop")) is str:
        conversation.options["stop"] = Option([fields["stop"]], "stop")
    return conversation


def _is_idle(name: str, value: object) -> bool:
    # 0 == False in Python, so that types are compared as well where they matter.
    return any(value is idle or (value == idle and type(value) is not bool) for idle in _IDLE.get(name, ()))


def _read_message(message: Fields, at: str, conversation: Conversation) -> None:
    role = message.get("role")
    if role == "tool":
        _read_result(message, at, conversation)
        return
    if role in ("system", "developer"):
        known = frozenset(("role", "content")) | _CACHE
        blocks = _read_content(message.get("content"), f"{at}.content", conversation)
        turn = Turn("system", blocks, at, rest_of(message, known))
    elif role == "user":
        known = frozenset(("role", "content")) | _CACHE
        turn = Turn("user", _read_content(message.get("content"), f"{at}.content", conversation), at, {})
        turn.extra = rest_of(message, known)
    elif role == "assistant":
        turn = _read_assistant(message, at, conversation)
    else:
        raise refuse(f"{at}.role", "is not a role that can be translated")
    mark = mark_of(message, at, conversation)
    if mark is not None and turn.blocks:
        turn.blocks[-1].cache = mark
    previous = conversation.turns[-1] if conversation.turns else None
    if turn.role == "user" and previous is not None and _ends_in_result(previous) and not turn.extra:
        previous.blocks += turn.blocks
    else:
        conversation.turns.append(turn)


_ASSISTANT: Final = frozenset(
    ("role", "content", "tool_calls", "refusal", "reasoning_content", "reasoning", "thinking_blocks", "annotations",
     "function_call", "audio")
) | _CACHE


def _read_assistant(message: Fields, at: str, conversation: Conversation) -> Turn:
    for name in ("function_call", "audio"):
        if message.get(name) is not None:
            raise refuse(f"{at}.{name}", "cannot be translated")
    blocks = _read_thoughts(message, at, conversation)
    blocks += [
        block
        for block in _read_content(message.get("content"), f"{at}.content", conversation)
        if not isinstance(block, Text) or block.text
    ]
    if message.get("refusal"):
        blocks.append(Refusal(text_at(message["refusal"], f"{at}.refusal"), at=f"{at}.refusal"))
    for index, call in enumerate(list_at(message.get("tool_calls"), f"{at}.tool_calls")):
        place = f"{at}.tool_calls[{index}]"
        blocks.append(_read_call(object_at(call, place), place, conversation))
    extra = rest_of(message, _ASSISTANT)
    if extra.get("prefix") is False:
        del extra["prefix"]  # Mistral's SDK says so of every turn
    return Turn("assistant", blocks, at, extra)


def _read_thoughts(message: Fields, at: str, conversation: Conversation) -> list[Block]:
    """Thoughts as gateways tell them: signed ones in ``thinking_blocks``, else their mere text."""
    blocks: list[Block] = []
    for index, block in enumerate(list_at(message.get("thinking_blocks"), f"{at}.thinking_blocks")):
        place = f"{at}.thinking_blocks[{index}]"
        thought = object_at(block, place)
        note_rest(thought, ("type", "thinking", "signature", "data", "index"), place, conversation)
        blocks.append(
            Thinking(
                text_at(thought.get("thinking"), place),
                text_at(thought.get("signature"), place),
                text_at(thought.get("data"), place),
                at=place,
            )
        )
    for name in ("reasoning_content", "reasoning"):
        if not blocks and message.get(name):
            blocks.append(Thinking(text_at(message[name], f"{at}.{name}"), at=f"{at}.{name}"))
    return blocks


def _read_call(call: Fields, at: str, conversation: Conversation) -> ToolUse:
    if call.get("type", "function") not in ("function", None):
        raise refuse(f"{at}.type", "is not a kind of tool that can be translated")
    function = object_at(call.get("function"), f"{at}.function")
    note_rest(function, ("name", "arguments"), f"{at}.function", conversation)
    signature = ""
    extra = rest_of(call, frozenset(("id", "type", "function", "index")))
    match extra.get("extra_content"):
        case {"google": {"thought_signature": str(signature)}}:
            del extra["extra_content"]
    return ToolUse(
        text_at(call.get("id"), f"{at}.id"),
        text_at(function.get("name"), f"{at}.function.name"),
        text_at(function.get("arguments"), f"{at}.function.arguments"),
        signature,
        at=f"{at}.function.arguments",
        extra=extra,
    )


# The name is the call's, which the id says already; some servers refuse it here.
_RESULT: Final = frozenset(("role", "content", "tool_call_id", "name")) | _CACHE


def _read_result(message: Fields, at: str, conversation: Conversation) -> None:
    result = ToolResult(
        text_at(message.get("tool_call_id"), f"{at}.tool_call_id"),
        _read_content(message.get("content"), f"{at}.content", conversation),
        at=at,
        cache=mark_of(message, at, conversation),
        extra=rest_of(message, _RESULT),
    )
    turns = conversation.turns
    if turns and _ends_in_result(turns[-1]):
        turns[-1].blocks.append(result)
    else:
        turns.append(Turn("user", [result], at))


def _ends_in_result(turn: Turn) -> bool:
    return turn.role == "user" and bool(turn.blocks) and isinstance(turn.blocks[-1], ToolResult)


def _read_content(content: object, at: str, conversation: Conversation) -> list[Block]:
    if content is None:
        return []
    if type(content) is str:
        return [Text(content, at=at)]
    return [
        _read_part(object_at(part, f"{at}[{index}]"), f"{at}[{index}]", conversation)
        for index, part in enumerate(list_at(content, at))
    ]


def _read_part(part: Fields, at: str, conversation: Conversation) -> Block:
    kind = part.get("type")
    read = _PARTS.get(kind) if type(kind) is str else None
    if read is None:
        return Opaque(str(kind), at=at, extra=part)
    block = read(part, at)
    block.at = at
    block.cache = mark_of(part, at, conversation)
    known = frozenset((str(kind), "type", "signature", "closed", "document_name")) | _CACHE
    block.extra.update(rest_of(part, known))
    if kind in _INSIDE and type(part[kind]) is dict:
        note_rest(part[kind], _INSIDE[kind], f"{at}.{kind}", conversation)
    return block


_INSIDE: Final = {"input_audio": ("data", "format"), "file": ("file_id", "file_data", "filename")}


def _read_text(part: Fields, at: str) -> Block:
    return Text(text_at(part.get("text"), f"{at}.text"))


def _read_image(part: Fields, at: str) -> Block:
    image = part.get("image_url")
    fields: Fields = {"url": image} if type(image) is str else object_at(image, f"{at}.image_url")
    block = media_of_url("image", text_at(fields.get("url"), f"{at}.image_url.url"), f"{at}.image_url.url")
    idle = ("detail", "auto")
    block.extra = {name: value for name, value in fields.items() if name != "url" and (name, value) != idle}
    return block


def _read_audio(part: Fields, at: str) -> Block:
    audio = part.get("input_audio")
    if type(audio) is str:
        return Media("audio", data=audio)
    fields = object_at(audio, f"{at}.input_audio")
    form = text_at(fields.get("format"), f"{at}.input_audio.format")
    return Media("audio", f"audio/{form}", text_at(fields.get("data"), f"{at}.input_audio.data"))


def _read_file(part: Fields, at: str) -> Block:
    fields = object_at(part.get("file"), f"{at}.file")
    name = text_at(fields.get("filename"), f"{at}.file.filename")
    if fields.get("file_id"):
        return Media("document", file_id=text_at(fields["file_id"], f"{at}.file.file_id"), name=name)
    block = media_of_url("document", text_at(fields.get("file_data"), f"{at}.file.file_data"), f"{at}.file.file_data")
    block.name = name
    return block


def _read_document(part: Fields, at: str) -> Block:
    """Mistral's documents."""
    block = media_of_url("document", text_at(part.get("document_url"), f"{at}.document_url"), f"{at}.document_url")
    block.name = text_at(part.get("document_name"), f"{at}.document_name")
    return block


def _read_refusal(part: Fields, at: str) -> Block:
    return Refusal(text_at(part.get("refusal"), f"{at}.refusal"))


def _read_thinking(part: Fields, at: str) -> Block:
    """Mistral's thoughts: a list of texts."""
    texts = [
        text_at(object_at(piece, f"{at}.thinking").get("text"), f"{at}.thinking")
        for piece in list_at(part.get("thinking"), f"{at}.thinking")
    ]
    return Thinking("".join(texts), text_at(part.get("signature"), f"{at}.signature"))


_PARTS: Final = {
    "text": _read_text,
    "image_url": _read_image,
    "input_audio": _read_audio,
    "file": _read_file,
    "document_url": _read_document,
    "refusal": _read_refusal,
    "thinking": _read_thinking,
}
