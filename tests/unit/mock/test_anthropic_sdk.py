"""The official Anthropic client, pointed straight at the mock, reads everything it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic

from proxy.mock import MockUpstream

HELLO: Any = [{"role": "user", "content": "hello"}]
USE_TOOL: Any = [{"role": "user", "content": [{"type": "text", "text": "use the tool"}]}]
TOOL: Any = {
    "name": "find_gate",
    "input_schema": {"type": "object", "properties": {"flight": {"type": "string"}, "rows": {"type": "array"}}},
}


@pytest.fixture
async def sdk(mock: MockUpstream) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=mock.url, api_key="sk-test", max_retries=0) as sdk:
        yield sdk


def text_of(message: Any) -> str:
    return "".join([block.text for block in message.content])


async def test_whole_message_carries_text_usage_and_vendor_headers(sdk: AsyncAnthropic) -> None:
    """What an application reads from an ordinary message is there."""
    raw = await sdk.messages.with_raw_response.create(model="claude-sonnet-4-6", max_tokens=100, messages=HELLO)
    message = await raw.parse()
    assert text_of(message).startswith("Answer ")
    assert (message.stop_reason, message.usage.output_tokens, message.usage.input_tokens) == ("end_turn", 20, 2)
    assert raw.headers["request-id"]
    assert raw.headers["anthropic-ratelimit-requests-remaining"]


async def test_streamed_message_is_put_together_by_the_sdk(sdk: AsyncAnthropic) -> None:
    """Every event has its place, and usage arrives with the end."""
    async with sdk.messages.stream(model="claude-sonnet-4-6", max_tokens=100, messages=HELLO) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        message = await stream.get_final_message()
    assert (text_of(message), message.stop_reason, message.usage.output_tokens) == (text, "end_turn", 20)


async def test_stream_has_the_events_of_the_vendor_in_order(sdk: AsyncAnthropic) -> None:
    """From message_start to message_stop, with a ping among them that the SDK passes over."""
    stream = await sdk.messages.create(model="claude-sonnet-4-6?tokens=2", max_tokens=9, messages=HELLO, stream=True)
    kinds = [event.type async for event in stream]
    assert [kind for kind in kinds if kind != "ping"] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def test_limit_below_the_mocks_length_ends_the_message_early(sdk: AsyncAnthropic) -> None:
    """``max_tokens`` is kept and reported as the reason."""
    message = await sdk.messages.create(model="claude-sonnet-4-6", max_tokens=4, messages=HELLO)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 4)


async def test_tool_use_is_the_same_whole_and_streamed(sdk: AsyncAnthropic) -> None:
    """Partial JSON adds up to the input of the whole block."""
    asked: Any = {"model": "claude-sonnet-4-6", "max_tokens": 99, "messages": USE_TOOL, "tools": [TOOL]}
    whole = await sdk.messages.create(**asked)
    async with sdk.messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()
    for message in (whole, streamed):
        block: Any = message.content[0]
        assert (message.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "find_gate")
        assert block.input == {"flight": "mock", "rows": ["mock"]}


async def test_tool_result_is_answered_with_text(sdk: AsyncAnthropic) -> None:
    """A result of a tool does not ask for the tool again, although a user's message carries it."""
    use: Any = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "find_gate", "input": {}}]}
    result: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "the tool"}]}
    message = await sdk.messages.create(
        model="claude-sonnet-4-6", max_tokens=99, messages=[*USE_TOOL, use, result], tools=[TOOL]
    )
    assert message.stop_reason == "end_turn"


async def test_tokens_are_counted_as_the_message_counts_them(sdk: AsyncAnthropic) -> None:
    """The counting route and the usage of a message agree."""
    counted = await sdk.messages.count_tokens(model="claude-sonnet-4-6", messages=HELLO, system="be brief")
    message = await sdk.messages.create(model="claude-sonnet-4-6", max_tokens=9, messages=HELLO, system="be brief")
    assert counted.input_tokens == message.usage.input_tokens


async def test_models_come_in_the_vendors_shape(sdk: AsyncAnthropic) -> None:
    """The version header alone changes the shape of ``/v1/models``."""
    models = [model async for model in sdk.models.list()]
    assert {model.type for model in models} == {"model"}
    assert (await sdk.models.retrieve(models[0].id)).display_name == models[0].display_name


async def test_file_is_uploaded_and_listed_in_the_vendors_shape(sdk: AsyncAnthropic) -> None:
    """Files of this dialect have ``size_bytes``."""
    uploaded = await sdk.beta.files.upload(file=("a.txt", b"x" * 1234, "text/plain"))
    assert (uploaded.size_bytes, uploaded.filename) == (1234, "a.txt")
    assert [file.id async for file in sdk.beta.files.list()] == [uploaded.id]
    assert (await sdk.beta.files.delete(uploaded.id)).id == uploaded.id


@pytest.mark.parametrize(
    ("fields", "error", "kind"),
    [
        ({"model": "missing-model"}, anthropic.NotFoundError, "not_found_error"),
        ({"max_tokens": -1}, anthropic.BadRequestError, "invalid_request_error"),
        ({"model": "claude-sonnet-4-6?fault=429"}, anthropic.RateLimitError, "rate_limit_error"),
        ({"model": "claude-sonnet-4-6?fault=529"}, anthropic.InternalServerError, "overloaded_error"),
        ({"model": "claude-sonnet-4-6?fault=500"}, anthropic.InternalServerError, "api_error"),
    ],
)
async def test_error_is_the_vendors_error(
    sdk: AsyncAnthropic, fields: dict[str, Any], error: type[anthropic.APIStatusError], kind: str
) -> None:
    """The SDK raises the class it would raise, and the envelope names the type and the request."""
    with pytest.raises(error) as caught:
        await sdk.messages.create(**{"model": "claude-sonnet-4-6", "max_tokens": 9, "messages": HELLO, **fields})
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"], bool(body["request_id"])) == ("error", kind, True)


async def test_error_event_inside_a_stream_raises(sdk: AsyncAnthropic) -> None:
    """A stream that began with 200 still fails as the vendor's streams fail."""
    stream = await sdk.messages.create(
        model="claude-sonnet-4-6?fault=error_event", max_tokens=99, messages=HELLO, stream=True
    )
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        async for _ in stream:
            pass
