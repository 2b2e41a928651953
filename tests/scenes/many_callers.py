"""The vendors' own SDKs as callers of any model, each asked in the same words and heard in the same words.

What an SDK is given and what it hands out differs; what is compared with another vendor's model must not. So a
`Question` is put into each SDK's own form, and its answer becomes a `Heard`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, NamedTuple, Protocol

from anthropic import AsyncAnthropic
from mistralai.client import Mistral
from openai import AsyncOpenAI

from tests.scenes.many import PLACEHOLDER

CITY: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
TOOLS: Final = {"weather": CITY, "clock": {"type": "object", "properties": {}}}
MAX_TOKENS: Final = 500


class Cost(NamedTuple):
    """Tokens in neutral words: input in all, output, and of the input what was cached."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0


class Heard(NamedTuple):
    """An answer, whichever SDK read it."""

    text: str
    calls: list[tuple[str, Any]]
    """Name and arguments, in order."""
    end: str
    """``stop``, ``length``, ``tools`` or ``refused``; ``none`` if nothing was said of it."""
    cost: Cost | None
    turn: Any
    """What the SDK gave, to be sent back with the results."""

    def says(self) -> tuple[str, list[tuple[str, Any]], str]:
        return self.text, self.calls, self.end


class Question(NamedTuple):
    model: str
    text: str
    tools: bool = False
    image: bytes = b""
    """A PNG."""
    system: str = ""
    earlier: Heard | None = None
    """The answer to this question, whose calls were made."""
    results: tuple[str, ...] = ()
    """What came of them, in order."""


class Caller(Protocol):
    """One SDK. Raises what the SDK raises."""

    sdk: Any

    async def ask(self, question: Question, *, streams: bool) -> Heard: ...


def _data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def _system(question: Question) -> list[dict[str, Any]]:
    return [{"role": "system", "content": question.system}] if question.system else []


_ENDS: Final = {
    "stop": "stop", "end_turn": "stop", "completed": "stop",
    "length": "length", "max_tokens": "length", "incomplete": "length",
    "tool_calls": "tools", "tool_use": "tools",
    "content_filter": "refused", "refusal": "refused",
}  # fmt: skip


class OpenAICaller:
    """Chat completions of the OpenAI SDK; streams are put together by hand, as its helper takes a limit for an
    error."""

    def __init__(self, sdk: AsyncOpenAI) -> None:
        self.sdk = sdk

    async def ask(self, question: Question, *, streams: bool) -> Heard:
        fields = self._fields(question)
        if streams:
            return await self._stream(fields)
        answer = await self.sdk.chat.completions.create(**fields)
        message = answer.choices[0].message
        calls = [call for call in message.tool_calls or [] if call.type == "function"]
        return Heard(
            message.content or message.refusal or "",
            [(call.function.name, json.loads(call.function.arguments)) for call in calls],
            _ENDS[answer.choices[0].finish_reason],
            _cost_of_chat(answer.usage),
            message.model_dump(exclude_none=True),
        )

    async def _stream(self, fields: dict[str, Any]) -> Heard:
        text, end, cost = "", "", None
        calls: list[dict[str, Any]] = []
        options = {"include_usage": True}
        async for chunk in await self.sdk.chat.completions.create(**fields, stream=True, stream_options=options):
            cost = _cost_of_chat(chunk.usage) or cost
            for choice in chunk.choices:
                text += choice.delta.content or choice.delta.refusal or ""
                end = choice.finish_reason or end
                for piece in choice.delta.tool_calls or []:
                    said = piece.function
                    assert said is not None
                    if piece.id:  # some servers number all calls alike, but none of them reuses an id
                        made = {"name": said.name, "arguments": ""}
                        calls.append({"id": piece.id, "type": "function", "function": made})
                    calls[-1]["function"]["arguments"] += said.arguments or ""
        turn: dict[str, Any] = {"role": "assistant", "content": text, "tool_calls": calls}
        asked = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
        return Heard(text, asked, _ENDS.get(end, "none"), cost, turn)

    def _fields(self, question: Question) -> dict[str, Any]:
        content: Any = question.text
        if question.image:
            picture = {"type": "image_url", "image_url": {"url": _data_url(question.image)}}
            content = [{"type": "text", "text": question.text}, picture]
        messages: list[Any] = [*_system(question), {"role": "user", "content": content}]
        if question.earlier is not None:
            messages.append(question.earlier.turn)
            ids = [call["id"] for call in question.earlier.turn["tool_calls"]]
            messages += [
                {"role": "tool", "tool_call_id": each, "content": result}
                for each, result in zip(ids, question.results, strict=True)
            ]
        fields: dict[str, Any] = {"model": question.model, "messages": messages}
        if question.tools:
            fields["tools"] = _function_tools()
        return fields


def _cost_of_chat(usage: Any) -> Cost | None:
    if usage is None:
        return None
    details = usage.prompt_tokens_details
    return Cost(usage.prompt_tokens, usage.completion_tokens, (details and details.cached_tokens) or 0)


def _function_tools() -> list[Any]:
    return [{"type": "function", "function": {"name": name, "parameters": form}} for name, form in TOOLS.items()]


class ResponsesCaller:
    """Responses of the OpenAI SDK."""

    def __init__(self, sdk: AsyncOpenAI) -> None:
        self.sdk = sdk

    async def ask(self, question: Question, *, streams: bool) -> Heard:
        fields = self._fields(question)
        answer = await (self._stream(fields) if streams else self.sdk.responses.create(**fields))
        calls = [item for item in answer.output if item.type == "function_call"]
        usage = answer.usage
        details = usage.input_tokens_details if usage is not None else None
        return Heard(
            answer.output_text,
            [(call.name, json.loads(call.arguments)) for call in calls],
            "tools" if calls else _ENDS[str(answer.status)],
            usage and Cost(usage.input_tokens, usage.output_tokens, (details and details.cached_tokens) or 0),
            [item.model_dump(exclude_none=True) for item in answer.output],
        )

    async def _stream(self, fields: dict[str, Any]) -> Any:
        event: Any = None
        async for event in await self.sdk.responses.create(**fields, stream=True):
            if event.type in ("response.completed", "response.incomplete"):
                return event.response
        raise RuntimeError(f"the stream ended with {event!r}")

    def _fields(self, question: Question) -> dict[str, Any]:
        content: list[Any] = [{"type": "input_text", "text": question.text}]
        if question.image:
            content.append({"type": "input_image", "image_url": _data_url(question.image), "detail": "auto"})
        items: list[Any] = [{"role": "user", "content": content}]
        if question.earlier is not None:
            items += question.earlier.turn
            ids = [item["call_id"] for item in question.earlier.turn if item["type"] == "function_call"]
            items += [
                {"type": "function_call_output", "call_id": each, "output": result}
                for each, result in zip(ids, question.results, strict=True)
            ]
        fields: dict[str, Any] = {"model": question.model, "input": items}
        if question.system:
            fields["instructions"] = question.system
        if question.tools:
            fields["tools"] = [
                {"type": "function", "name": name, "parameters": form, "strict": False}
                for name, form in TOOLS.items()
            ]
        return fields


class AnthropicCaller:
    """Messages of the Anthropic SDK."""

    def __init__(self, sdk: AsyncAnthropic) -> None:
        self.sdk = sdk

    async def ask(self, question: Question, *, streams: bool) -> Heard:
        fields = self._fields(question)
        if not streams:
            answer = await self.sdk.messages.create(**fields)
        else:
            async with self.sdk.messages.stream(**fields) as stream:
                async for _ in stream:
                    pass
                answer = await stream.get_final_message()
        usage = answer.usage
        cached = usage.cache_read_input_tokens or 0
        entire = usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0)
        return Heard(
            "".join([block.text for block in answer.content if block.type == "text"]),
            [(block.name, block.input) for block in answer.content if block.type == "tool_use"],
            _ENDS.get(str(answer.stop_reason), "none"),
            Cost(entire, usage.output_tokens, cached),
            [block.model_dump(exclude_none=True, exclude={"parsed_output"}) for block in answer.content],
        )

    def _fields(self, question: Question) -> dict[str, Any]:
        content: Any = question.text
        if question.image:
            source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(question.image).decode()}
            content = [{"type": "text", "text": question.text}, {"type": "image", "source": source}]
        messages: list[Any] = [{"role": "user", "content": content}]
        if question.earlier is not None:
            messages.append({"role": "assistant", "content": question.earlier.turn})
            ids = [block["id"] for block in question.earlier.turn if block["type"] == "tool_use"]
            results = [
                {"type": "tool_result", "tool_use_id": each, "content": result}
                for each, result in zip(ids, question.results, strict=True)
            ]
            messages.append({"role": "user", "content": results})
        fields: dict[str, Any] = {"model": question.model, "max_tokens": MAX_TOKENS, "messages": messages}
        if question.system:
            fields["system"] = question.system
        if question.tools:
            fields["tools"] = [{"name": name, "input_schema": form} for name, form in TOOLS.items()]
        return fields


class MistralCaller:
    """Chat completions of the Mistral SDK."""

    def __init__(self, sdk: Mistral) -> None:
        self.sdk = sdk

    async def ask(self, question: Question, *, streams: bool) -> Heard:
        fields = self._fields(question)
        if streams:
            return await self._stream(fields)
        answer = await self.sdk.chat.complete_async(**fields)
        message, usage = answer.choices[0].message, answer.usage
        assert message is not None
        calls = [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or []]
        cost = Cost(usage.prompt_tokens or 0, usage.completion_tokens or 0)
        return self._heard(_plain(message.content), calls, str(answer.choices[0].finish_reason), cost)

    async def _stream(self, fields: dict[str, Any]) -> Heard:
        text, end, cost = "", "", None
        calls: dict[int, tuple[str, str, str]] = {}
        async with await self.sdk.chat.stream_async(**fields) as events:
            async for event in events:
                usage = event.data.usage
                if usage is not None:
                    cost = Cost(usage.prompt_tokens or 0, usage.completion_tokens or 0)
                for choice in event.data.choices:
                    text += _plain(choice.delta.content)
                    end = str(choice.finish_reason or end)
                    for call in choice.delta.tool_calls or []:
                        was = calls.get(call.index or 0, ("", "", ""))
                        said = call.function.arguments
                        assert isinstance(said, str)
                        named = call.function.name or was[1]
                        known = was[0] or str(call.id)
                        calls[call.index or 0] = known, named, was[2] + said
        return self._heard(text, list(calls.values()), end, cost)

    @staticmethod
    def _heard(text: str, calls: list[Any], end: str, cost: Cost | None) -> Heard:
        made = [
            {"id": each, "type": "function", "function": {"name": name, "arguments": arguments}}
            for each, name, arguments in calls
        ]
        turn = {"role": "assistant", "content": text, "tool_calls": made}
        asked = [(name, json.loads(said) if isinstance(said, str) else said) for _, name, said in calls]
        return Heard(text, asked, _ENDS.get(end, "none"), cost, turn)

    def _fields(self, question: Question) -> dict[str, Any]:
        content: Any = question.text
        if question.image:
            picture = {"type": "image_url", "image_url": _data_url(question.image)}
            content = [{"type": "text", "text": question.text}, picture]
        messages: list[Any] = [*_system(question), {"role": "user", "content": content}]
        if question.earlier is not None:
            messages.append(question.earlier.turn)
            calls = question.earlier.turn["tool_calls"]
            messages += [
                {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": result}
                for call, result in zip(calls, question.results, strict=True)
            ]
        fields: dict[str, Any] = {"model": question.model, "messages": messages}
        if question.tools:
            fields["tools"] = _function_tools()
        return fields


def _plain(content: Any) -> str:
    """Text of the answer; the SDK has a list of parts where there are thoughts as well."""
    if isinstance(content, list):
        return "".join([part.text for part in content if part.type == "text"])
    return content if isinstance(content, str) else ""


@asynccontextmanager
async def _open_openai(url: str, key: str) -> AsyncIterator[Caller]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as sdk:
        yield OpenAICaller(sdk)


@asynccontextmanager
async def _open_responses(url: str, key: str) -> AsyncIterator[Caller]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as sdk:
        yield ResponsesCaller(sdk)


@asynccontextmanager
async def _open_anthropic(url: str, key: str) -> AsyncIterator[Caller]:
    async with AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as sdk:
        yield AnthropicCaller(sdk)


@asynccontextmanager
async def _open_mistral(url: str, key: str) -> AsyncIterator[Caller]:
    async with Mistral(server_url=f"{url}/mistral", api_key=key) as sdk:
        yield MistralCaller(sdk)


_OPEN: Final[dict[str, Callable[[str, str], AbstractAsyncContextManager[Caller]]]] = {
    "openai": _open_openai,
    "responses": _open_responses,
    "anthropic": _open_anthropic,
    "mistral": _open_mistral,
}
CALLERS: Final = tuple(_OPEN)


def open_caller(name: str, url: str, key: str = PLACEHOLDER) -> AbstractAsyncContextManager[Caller]:
    """One of ``CALLERS``, pointed at the proxy at ``url``."""
    return _OPEN[name](url, key)
