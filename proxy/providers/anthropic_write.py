"""Neutral words as a request for Anthropic's messages."""

from __future__ import annotations

import re
from typing import Any, Final

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
    Turn,
)
from proxy.protocol.message import HeaderList
from proxy.providers.anthropic_read import FAMILY
from proxy.providers.base import (
    ANTHROPIC_VERSION,
    JSON_HEADERS,
    Draft,
    Encoding,
    Fields,
    Form,
    dump,
    parse_arguments,
    refuse,
    short_id,
)
from proxy.providers.marks import cache_control
from proxy.providers.media import text_of_media

JSON_TOOL: Final = "json_output"

_TOOL_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_IMAGES: Final = frozenset(("image/jpeg", "image/png", "image/gif", "image/webp"))
_TIERS: Final = {"auto": "auto", "default": "standard_only"}

# Beginning of a model's name -> the longest answer it may give. The first that fits counts.
_LIMITS: Final = (
    ("claude-2", 4096),
    ("claude-3-5", 8192),
    ("claude-3-7", 64_000),
    ("claude-3", 4096),
    ("claude-opus-4-1", 32_000),
    ("claude-opus-4-2", 32_000),
)
_USUAL_LIMIT: Final = 32_000
# Models that think by a budget of tokens, and those that do not think; all others decide by an effort.
_BY_BUDGET: Final = (
    "claude-3-7", "claude-sonnet-4-2", "claude-sonnet-4-0", "claude-sonnet-4-5", "claude-opus-4-0", "claude-opus-4-1",
    "claude-opus-4-2", "claude-opus-4-5", "claude-haiku-4-5",
)
_THOUGHTLESS: Final = (
    "claude-2", "claude-3-5", "claude-3-haiku", "claude-3-opus", "claude-3-sonnet", "claude-instant",
)
_BUDGETS: Final = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 24_576, "max": 31_999}
MIN_BUDGET: Final = 1024


def write_messages(conversation: Conversation, form: Form) -> Encoding:
    """Raises ``ProxyError`` (``BAD_REQUEST``) that names the caller's field."""
    draft = Draft(conversation, FAMILY)
    body: Fields = {"model": form.model, "max_tokens": _limit_of(draft, form)}
    _write_turns(conversation, draft, body)
    _write_tools(conversation, draft, form, body)
    json_tool = _write_format(conversation, draft, form, body)
    _write_sampling(conversation, draft, body)
    _write_thinking(conversation, draft, form, body)
    _write_account(draft, body)
    if conversation.streams:
        body["stream"] = True
    reported = draft.finish(body, form)
    return Encoding("/v1/messages", message_headers(form), dump(body), reported, json_tool, conversation.streams)


def message_headers(form: Form) -> HeaderList:
    return [*JSON_HEADERS, (b"anthropic-version", (form.version or ANTHROPIC_VERSION).encode())]


def _limit_of(draft: Draft, form: Form) -> Any:
    limit = draft.take_limit(form)
    if limit is not None:
        return limit
    if form.max_tokens:
        return form.max_tokens
    return next((most for start, most in _LIMITS if form.model.startswith(start)), _USUAL_LIMIT)


# -- settings ----------------------------------------------------------------------------------------------------


def _write_sampling(conversation: Conversation, draft: Draft, body: Fields) -> None:
    for name in ("temperature", "top_p"):
        option = draft.options.get(name)
        # The default of all its models; the newest refuse to be told even that.
        if option is not None and option.value == 1 and conversation.family != FAMILY:
            draft.take(name)
    option = draft.options.get("temperature")
    if option is not None and type(option.value) in (int, float) and option.value > 1:
        draft.report(option.field)
        draft.options["temperature"] = option._replace(value=1.0)
    for name in ("temperature", "top_p", "top_k", "cache_control"):
        if name in draft.options:
            body[name] = draft.take(name)
    if "stop" in draft.options:
        at = draft.field_of("stop")
        stops = draft.take("stop")
        for stop in stops if type(stops) is list else ():
            if type(stop) is str and not stop.strip():
                raise refuse(at, "has a sequence of nothing but white space, which this model does not take")
        if stops:
            body["stop_sequences"] = stops


def _write_account(draft: Draft, body: Fields) -> None:
    for name in ("safety_identifier", "user"):
        if name in draft.options and "metadata" not in body:
            body["metadata"] = {"user_id": draft.take(name)}
    tier = draft.options.get("service_tier")
    if tier is not None and str(tier.value) in _TIERS:
        body["service_tier"] = _TIERS[str(draft.take("service_tier"))]


def _write_thinking(conversation: Conversation, draft: Draft, form: Form, body: Fields) -> None:
    """An effort becomes what the model understands. A caller's own ``thinking`` object goes through as it is."""
    thinking = draft.take("thinking")
    if thinking is not None:
        body["thinking"] = thinking
    if "effort" not in draft.options:
        return
    manner = form.thinking or _manner_of(form.model)
    at = draft.field_of("effort")
    effort = draft.take("effort")
    if effort == "none":
        if manner != "off":
            body.setdefault("thinking", {"type": "disabled"})
    elif manner == "adaptive":
        config = body.setdefault("output_config", {})
        config["effort"] = "low" if effort == "minimal" else effort
        if thinking is None and not _is_forced(body):
            body["thinking"] = {"type": "adaptive"}
            _drop_sampling(draft, body)
    elif manner == "off" or thinking is not None or not _may_think(conversation, body):
        draft.report(at)
    else:
        _write_budget(effort, at, draft, body)


def _write_budget(effort: Any, at: str, draft: Draft, body: Fields) -> None:
    limit = body["max_tokens"]
    budget = min(_BUDGETS.get(str(effort), _BUDGETS["medium"]), limit - 1 if type(limit) is int else 0)
    if budget < MIN_BUDGET:
        draft.report(at)
        return
    body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    _drop_sampling(draft, body)


def _drop_sampling(draft: Draft, body: Fields) -> None:
    """No model thinks while it is told how to sample."""
    for name in ("temperature", "top_k"):
        if name in body:
            del body[name]
            draft.report(name)


def _manner_of(model: str) -> str:
    return "budget" if model.startswith(_BY_BUDGET) else "off" if model.startswith(_THOUGHTLESS) else "adaptive"


def _may_think(conversation: Conversation, body: Fields) -> bool:
    """A model that thinks by budget neither takes a forced tool nor a conversation that goes on behind a tool call
    without the thought that led to it."""
    if _is_forced(body):
        return False
    spoken = [turn for turn in conversation.turns if turn.role == "assistant"]
    if not spoken or not any(isinstance(block, ToolUse) for block in spoken[-1].blocks):
        return True
    first = spoken[-1].blocks[0]
    return isinstance(first, Thinking) and bool(first.signature or first.redacted)


def _is_forced(body: Fields) -> bool:
    return body.get("tool_choice", {}).get("type") in ("any", "tool")


def _write_format(conversation: Conversation, draft: Draft, form: Form, body: Fields) -> str:
    """JSON output by ``output_config``; by a tool where there is no schema or the model is too old."""
    wanted = conversation.format
    if wanted is None:
        return ""
    if wanted.kind == "schema" and form.json_output == "format":
        body["output_config"] = {"format": {"type": "json_schema", "schema": wanted.schema}}
        return ""
    choice = body.get("tool_choice", {})
    if choice.get("type") == "tool":
        draft.report(wanted.at)  # the answer is a call of that tool, whose arguments are JSON anyway
        return ""
    names = {tool.name for tool in conversation.tools}
    name = JSON_TOOL
    while name in names:
        name += "_"
    described = wanted.description or "Give the answer by calling this tool: its input is the answer."
    schema = wanted.schema if wanted.kind == "schema" else {"type": "object"}
    own = {"name": name, "description": described, "input_schema": {"type": "object", **schema}}
    if choice.get("type") == "none":
        body["tools"] = []
    others = body.setdefault("tools", [])
    others.append(own)
    forced: Fields = {"type": "any"} if len(others) > 1 else {"type": "tool", "name": name}
    if choice.get("disable_parallel_tool_use") or len(others) == 1:
        forced["disable_parallel_tool_use"] = True
    body["tool_choice"] = forced
    return name


# -- tools -------------------------------------------------------------------------------------------------------


def _write_tools(conversation: Conversation, draft: Draft, form: Form, body: Fields) -> None:
    choice, tools = conversation.choice, conversation.tools
    if choice is not None and choice.allowed:
        tools = [tool for tool in tools if tool.name in choice.allowed]
    if tools:
        body["tools"] = [_write_tool(tool, draft, form) for tool in tools]
    said: Fields = {}
    if choice is not None and (tools or choice.mode != "none"):
        said = {"type": "tool", "name": choice.name} if choice.mode == "tool" else {"type": choice.mode}
    if conversation.parallel is False and tools and said.get("type") != "none":
        said = {"type": "auto"} | said | {"disable_parallel_tool_use": True}
    if said:
        body["tool_choice"] = said


def _write_tool(tool: Tool, draft: Draft, form: Form) -> Fields:
    if tool.opaque:
        raise refuse(f"{tool.at}.type", f"'{tool.opaque}' is a kind of tool that this model cannot be given")
    said: Fields = {"name": tool.name}
    if tool.description:
        said["description"] = tool.description
    said["input_schema"] = {"type": "object", **(tool.schema or {"properties": {}})}
    if tool.strict:
        if form.json_output == "format":
            said["strict"] = True
        else:
            draft.report(f"{tool.at}.strict")
    if tool.cache is not None:
        said["cache_control"] = cache_control(tool.cache)
    draft.keep(tool.extra, tool.at, said)
    return said


# -- turns -------------------------------------------------------------------------------------------------------


def _write_turns(conversation: Conversation, draft: Draft, body: Fields) -> None:
    system: list[Fields] = []
    messages: list[Fields] = []
    for turn in conversation.turns:
        blocks = [said for block in _in_order(turn) if (said := _write_block(block, draft)) is not None]
        if turn.role == "system":
            if messages:
                draft.report(f"{turn.at}.role")  # instructions stand at the front here
            draft.keep(turn.extra, turn.at, {})
            system += blocks
        elif blocks or turn.role == "user":
            message: Fields = {"role": turn.role, "content": _shorten(blocks)}
            draft.keep(turn.extra, turn.at, message)
            messages.append(message)
    if system:
        body["system"] = _shorten(system)
    if not messages:
        raise refuse("messages", "must hold more than instructions for this model")
    body["messages"] = messages


def _in_order(turn: Turn) -> list[Block]:
    """Results of tools come first, as the API demands."""
    results = [block for block in turn.blocks if isinstance(block, ToolResult)]
    if not results:
        return turn.blocks
    return results + [block for block in turn.blocks if not isinstance(block, ToolResult)]


def _shorten(blocks: list[Fields]) -> Any:
    """One plain text is a string."""
    if len(blocks) == 1 and blocks[0].keys() == {"type", "text"}:
        return blocks[0]["text"]
    return blocks or ""


def _write_block(block: Block, draft: Draft) -> Fields | None:
    """``None`` for what says nothing or cannot be proven."""
    if isinstance(block, (Text, Refusal)):
        said: Fields | None = {"type": "text", "text": block.text} if block.text else None
    elif isinstance(block, Media):
        said = _write_media(block, draft)
    elif isinstance(block, ToolUse):
        said = {
            "type": "tool_use",
            "id": _id(block.id),
            "name": block.name,
            "input": parse_arguments(block.arguments),
        }
    elif isinstance(block, ToolResult):
        said = _write_result(block, draft)
    elif isinstance(block, Thinking):
        return _write_thought(block, draft)
    else:
        kind = block.kind if isinstance(block, Opaque) else "block"
        raise refuse(f"{block.at}.type", f"'{kind}' cannot be translated for this model")
    if said is not None:
        if block.cache is not None:
            said["cache_control"] = cache_control(block.cache)
        draft.keep(block.extra, block.at, said)
    return said


def _write_thought(block: Thinking, draft: Draft) -> Fields | None:
    draft.keep(block.extra, block.at, {})
    if block.redacted:
        return {"type": "redacted_thinking", "data": block.redacted}
    if not block.signature:
        draft.report(block.at)
        return None
    return {"type": "thinking", "thinking": block.text, "signature": block.signature}


def _write_result(block: ToolResult, draft: Draft) -> Fields:
    content = [inner for own in block.blocks if (inner := _write_block(own, draft)) is not None]
    said: Fields = {"type": "tool_result", "tool_use_id": _id(block.id), "content": _shorten(content)}
    if block.is_error:
        said["is_error"] = True
    return said


def _id(tool_id: str) -> str:
    return tool_id if _TOOL_ID.fullmatch(tool_id) else f"toolu_{short_id(tool_id)}"


def _write_media(block: Media, draft: Draft) -> Fields:
    if block.file_id:
        raise refuse(block.at, "names a file that only its own vendor has")
    if block.kind == "image":
        if block.data and block.media_type not in _IMAGES:
            raise refuse(block.at, "must be JPEG, PNG, GIF or WebP for this model")
        return {"type": "image", "source": _source(block)}
    if block.kind != "document":
        raise refuse(block.at, "is audio, which this model is not sent")
    said: Fields = {"type": "document", "source": _document_source(block)}
    if block.name:
        said["title"] = block.name
    if block.context:
        said["context"] = block.context
    return said


def _source(block: Media) -> Fields:
    if block.url:
        return {"type": "url", "url": block.url}
    return {"type": "base64", "media_type": block.media_type, "data": block.data}


def _document_source(block: Media) -> Fields:
    if block.url or block.media_type == "application/pdf":
        return _source(block)
    if block.text:
        return {"type": "text", "media_type": "text/plain", "data": block.text}
    if block.media_type.startswith("text/"):
        return {"type": "text", "media_type": "text/plain", "data": text_of_media(block, block.at)}
    raise refuse(block.at, "must be PDF or plain text for this model")
