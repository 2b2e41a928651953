"""Neutral words as a request for chat completions, in the form that a given server understands."""

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
from proxy.providers.base import JSON_HEADERS, Draft, Encoding, Fields, Form, dump, refuse, short_id
from proxy.providers.chat_profile import Profile
from proxy.providers.chat_read import FAMILY
from proxy.providers.marks import cache_breakpoint, cache_control
from proxy.providers.media import text_of_media, url_of_media
from proxy.providers.schema import is_strict

MINTED: Final = frozenset(("effort", "thinking", "max_tokens", "stop", "user", "safety_identifier"))
"""Options that need more than a new name; `write_chat` settles them itself."""


def write_chat(conversation: Conversation, form: Form, profile: Profile, path: str) -> Encoding:
    """Raises ``ProxyError`` (``BAD_REQUEST``) that names the caller's field."""
    draft = Draft(conversation, FAMILY)
    body: Fields = {"model": form.model, "messages": []}
    turns = _Turns(draft, form, profile)
    for turn in conversation.turns:
        body["messages"] += turns.write(turn)
    _write_prefill(conversation, draft, profile, body["messages"][-1])
    _write_tools(conversation, draft, profile, form, body)
    if conversation.format is not None:
        body["response_format"] = _write_format(conversation.format)
    if conversation.streams:
        body["stream"] = True
        if profile.asks_usage:
            body["stream_options"] = {"include_usage": True}
    _write_options(conversation, draft, profile, form, body)
    reported = draft.finish(body, form)
    return Encoding(path, JSON_HEADERS, dump(body), reported, streams=conversation.streams)


def _write_prefill(conversation: Conversation, draft: Draft, profile: Profile, last: Fields) -> None:
    """An answer that the caller has begun itself, as Anthropic and Mistral allow."""
    if conversation.family == FAMILY or last["role"] != "assistant":
        return
    if profile.prefix:
        last["prefix"] = True
    else:
        draft.report(f"{conversation.turns[-1].at}.prefill")


# -- options -----------------------------------------------------------------------------------------------------


def _write_options(
    conversation: Conversation, draft: Draft, profile: Profile, form: Form, body: Fields
) -> None:
    _write_temperature(conversation, draft, profile)
    _write_effort(conversation, draft, profile, form, body)
    limit = draft.take_limit(form)
    if limit is not None:
        body[profile.limit] = limit
    if "stop" in draft.options:
        at = draft.field_of("stop")
        stops = draft.take("stop")
        if profile.max_stops and type(stops) is list and len(stops) > profile.max_stops:
            raise refuse(at, f"has more than {profile.max_stops} sequences, which this model does not take")
        if stops:
            body["stop"] = stops
    for name in ("user", "safety_identifier"):
        if name in profile.options and name in draft.options:
            body[profile.options[name]] = draft.take(name)
    for name, field_name in profile.options.items():
        if name not in MINTED and name in draft.options:
            body[field_name] = draft.take(name)


def _write_temperature(conversation: Conversation, draft: Draft, profile: Profile) -> None:
    option = draft.options.get("temperature")
    if option is None or type(option.value) not in (int, float):
        return
    if conversation.family != FAMILY and option.value == profile.default_temperature:
        draft.take("temperature")  # models that reason refuse even their own default
    elif option.value > profile.max_temperature:
        draft.report(option.field)
        draft.options["temperature"] = option._replace(value=profile.max_temperature)


def _write_effort(
    conversation: Conversation, draft: Draft, profile: Profile, form: Form, body: Fields
) -> None:
    """How much to think: said as an effort, or as Anthropic's budget of tokens."""
    names = [draft.field_of(name) for name in ("effort", "thinking") if name in draft.options]
    effort, thinking = draft.take("effort"), draft.take_thinking()
    if effort is None and type(thinking) is dict:
        effort = _effort_of(thinking)
    if effort is None:
        if type(thinking) is dict and thinking.get("type") == "adaptive":
            return  # to think as much as it finds good is what such a model does anyway
        if not (type(thinking) is dict and thinking.get("type") == "disabled"):
            for name in names:
                draft.report(name)
        return
    unasked = conversation.family != FAMILY and form.model.startswith(profile.plain_models or ("\n",))
    if not profile.effort or unasked or form.thinking == "off":
        for name in names:
            draft.report(name)
    else:
        body["reasoning_effort"] = effort


def _effort_of(thinking: Fields) -> str | None:
    budget = thinking.get("budget_tokens")
    if thinking.get("type") != "enabled" or type(budget) is not int:
        return None
    return "low" if budget <= 4096 else "medium" if budget <= 16_384 else "high"


def _write_format(form: OutputFormat) -> Fields:
    if form.kind == "json":
        return {"type": "json_object"}
    strict = is_strict(form.schema) if form.strict is None else form.strict
    said: Fields = {"name": form.name or "answer", "schema": form.schema, "strict": strict}
    if form.description:
        said["description"] = form.description
    return {"type": "json_schema", "json_schema": said}


# -- tools -------------------------------------------------------------------------------------------------------


def _write_tools(
    conversation: Conversation, draft: Draft, profile: Profile, form: Form, body: Fields
) -> None:
    choice, tools = conversation.choice, conversation.tools
    if choice is not None and choice.allowed and not profile.allowed_tools:
        tools = [tool for tool in tools if tool.name in choice.allowed]
    if tools:
        body["tools"] = [_write_tool(tool, draft, profile, form) for tool in tools]
    if choice is not None:
        body["tool_choice"] = _write_choice(choice, profile)
    if conversation.parallel is not None and tools:
        body["parallel_tool_calls"] = conversation.parallel


def _write_tool(tool: Tool, draft: Draft, profile: Profile, form: Form) -> Fields:
    if tool.opaque:
        raise refuse(f"{tool.at}.type", f"'{tool.opaque}' is a kind of tool that this model cannot be given")
    function: Fields = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.schema is not None:
        function["parameters"] = tool.schema
    if tool.strict is not None and profile.strict:
        function["strict"] = tool.strict
    draft.keep(tool.extra, tool.at, function)
    said: Fields = {"type": "function", "function": function}
    if tool.cache is not None:
        if form.cache_markers == "cache_control":
            said["cache_control"] = cache_control(tool.cache)
        else:
            draft.report(f"{tool.at}.{tool.cache.field}")
    return said


def _write_choice(choice: ToolChoice, profile: Profile) -> Any:
    if choice.mode == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    if choice.allowed and profile.allowed_tools:
        tools = [{"type": "function", "function": {"name": name}} for name in choice.allowed]
        mode = "required" if choice.mode == "any" else "auto"
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
    return profile.forced if choice.mode == "any" else choice.mode


# -- turns -------------------------------------------------------------------------------------------------------


class _Turns:
    """Writes turns for one draft. Holds no state of its own."""

    __slots__ = ("_draft", "_form", "_profile")

    def __init__(self, draft: Draft, form: Form, profile: Profile) -> None:
        self._draft = draft
        self._form = form
        self._profile = profile

    def write(self, turn: Turn) -> list[Fields]:
        """The messages of one turn: tool results become messages of their own."""
        if turn.role == "assistant":
            messages = [self._write_assistant(turn)]
        elif turn.role == "system":
            messages = [{"role": "system", "content": self._write_content(turn.blocks, "\n\n")}]
        else:
            messages = self._write_user(turn)
        extra = turn.extra
        for name, known in (("name", self._profile.names), ("prefix", self._profile.prefix)):
            if name in extra and not known:
                self._draft.report(f"{turn.at}.{name}")
                extra = {other: value for other, value in extra.items() if other != name}
        self._draft.keep(extra, turn.at, messages[-1])
        return messages

    def _write_user(self, turn: Turn) -> list[Fields]:
        messages: list[Fields] = []
        others: list[Block] = []
        for block in turn.blocks:
            if isinstance(block, ToolResult):
                message, pictures = self._write_result(block)
                messages.append(message)
                others += pictures
            else:
                others.append(block)
        if others or not messages:
            messages.append({"role": "user", "content": self._write_content(others, None)})
        return messages

    def _write_result(self, result: ToolResult) -> tuple[Fields, list[Block]]:
        """The message of a tool, and what it cannot hold: pictures follow in the user's name."""
        texts: list[Block] = [block for block in result.blocks if isinstance(block, Text)]
        others = [block for block in result.blocks if not isinstance(block, Text)]
        if others:
            told = Text(f"Attached to the result of the tool call {self._id(result.id)}:", at=result.at)
            others = [told, *others]
        if result.is_error:
            self._draft.report(f"{result.at}.is_error")
        message: Fields = {"role": "tool", "tool_call_id": self._id(result.id)}
        message["content"] = self._write_content(texts, "\n") if texts else ""
        self._mark(result, message)
        self._draft.keep(result.extra, result.at, message)
        return message, others

    def _write_assistant(self, turn: Turn) -> Fields:
        said = [block for block in turn.blocks if not isinstance(block, (ToolUse, Thinking, Refusal))]
        thoughts = [block for block in turn.blocks if isinstance(block, Thinking)]
        calls = [block for block in turn.blocks if isinstance(block, ToolUse)]
        message: Fields = {"role": "assistant", "content": self._write_content(said, "") if said else None}
        self._write_thoughts(thoughts, message)
        if calls:
            message["tool_calls"] = [self._write_call(call) for call in calls]
        for block in turn.blocks:
            if isinstance(block, Refusal):
                self._draft.keep(block.extra, block.at, {})
        refused = "".join([block.text for block in turn.blocks if isinstance(block, Refusal)])
        if refused:
            message["refusal"] = refused
        if message["content"] is None and not calls and not refused:
            message["content"] = ""
        return message

    def _write_thoughts(self, thoughts: list[Thinking], message: Fields) -> None:
        for block in thoughts:
            self._draft.keep(block.extra, block.at, {})
        told = [block for block in thoughts if block.text]
        if not told or not self._profile.thoughts:
            for block in thoughts:
                self._draft.report(block.at)
        elif self._profile.thoughts == "chunks":
            chunks: list[Any] = []
            for block in told:
                chunk: Fields = {"type": "thinking", "thinking": [{"type": "text", "text": block.text}]}
                chunks.append(chunk)
            content = message["content"]
            if type(content) is str:
                content = [{"type": "text", "text": content}]
            message["content"] = chunks + (content or [])
        else:
            message[self._profile.thoughts] = "".join([block.text for block in told])

    def _write_call(self, call: ToolUse) -> Fields:
        said: Fields = {
            "id": self._id(call.id),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments or "{}"},
        }
        self._draft.keep(call.extra, call.at, said)
        self._mark(call, said)
        return said

    def _id(self, tool_id: str) -> str:
        form = self._profile.tool_id
        return tool_id if form is None or form.fullmatch(tool_id) else short_id(tool_id)

    def _write_content(self, blocks: list[Block], joint: str | None) -> Any:
        """A string where nothing but text is said and ``joint`` may join it, else a list of parts."""
        plain = all(
            isinstance(block, Text) and not block.extra and (block.cache is None or not self._form.cache_markers)
            for block in blocks
        )
        if plain and (len(blocks) <= 1 or joint is not None):
            for block in blocks:
                self._mark(block, {})
            return (joint or "").join([block.text for block in blocks if isinstance(block, Text)])
        return [self._write_part(block) for block in blocks]

    def _write_part(self, block: Block) -> Fields:
        if isinstance(block, Text):
            part: Fields = {"type": "text", "text": block.text}
        elif isinstance(block, Media):
            part = self._write_media(block)
        elif isinstance(block, Opaque):
            raise refuse(f"{block.at}.type", f"'{block.kind}' cannot be translated for this model")
        elif isinstance(block, Refusal):
            part = {"type": "refusal", "refusal": block.text}
        else:
            raise refuse(block.at, "cannot stand here")
        self._mark(block, part)
        if not isinstance(block, Media):
            self._draft.keep(block.extra, block.at, part)
        return part

    def _mark(self, block: Block, part: Fields) -> None:
        if block.cache is None:
            return
        if self._form.cache_markers == "cache_control":
            part["cache_control"] = cache_control(block.cache)
        elif self._form.cache_markers == "breakpoint" and "type" in part:
            part["prompt_cache_breakpoint"] = cache_breakpoint(block.cache)
        else:
            self._draft.report(f"{block.at}.{block.cache.field}")

    def _write_media(self, block: Media) -> Fields:
        if block.file_id:
            raise refuse(block.at, "names a file that only its own vendor has")
        if block.kind == "image":
            image: Fields = {"url": url_of_media(block)}
            self._draft.keep(block.extra, block.at, image)
            return {"type": "image_url", "image_url": image}
        if block.kind == "audio":
            return self._write_audio(block)
        return self._write_document(block)

    def _write_audio(self, block: Media) -> Fields:
        form = block.media_type.rpartition("/")[2]
        if not self._profile.audio or not block.data:
            raise refuse(block.at, "is audio, which this model is not sent")
        part: Fields = {"type": "input_audio", "input_audio": {"data": block.data, "format": form}}
        self._draft.keep(block.extra, block.at, part)
        return part

    def _write_document(self, block: Media) -> Fields:
        part: Fields
        text = block.text
        if not text and block.media_type == "text/plain" and block.data:
            text = text_of_media(block, block.at)
        if text:
            part = {"type": "text", "text": "\n".join([line for line in (block.name, block.context, text) if line])}
        elif self._profile.document_urls:
            part = {"type": "document_url", "document_url": url_of_media(block)}
            if block.name:
                part["document_name"] = block.name
        elif block.data and self._profile.files:
            name = block.name or "document.pdf"
            part = {"type": "file", "file": {"filename": name, "file_data": url_of_media(block)}}
            if block.context:
                self._draft.report(f"{block.at}.context")
        else:
            raise refuse(block.at, "is a document that this model is not sent in this form")
        self._draft.keep(block.extra, block.at, part)
        return part
