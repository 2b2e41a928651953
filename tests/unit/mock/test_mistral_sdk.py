"""The official Mistral client, pointed straight at the mock, reads everything it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from mistralai.client import Mistral, errors

from proxy.mock import MockUpstream

HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "find_gate", "parameters": {"type": "object", "properties": {"row": {"type": "integer"}}}},
}


@pytest.fixture
async def sdk(mock: MockUpstream) -> AsyncIterator[Mistral]:
    async with Mistral(api_key="sk-test", server_url=mock.url) as sdk:
        yield sdk


async def test_whole_completion_carries_text_and_usage(sdk: Mistral) -> None:
    """The answer's shape is close to OpenAI's, and its own."""
    answer = await sdk.chat.complete_async(model="mistral-small-latest", messages=HELLO)
    message: Any = answer.choices[0].message
    assert message.content.startswith("Answer ")
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("stop", 20)


async def test_streamed_completion_has_usage_in_its_last_chunk(sdk: Mistral) -> None:
    """Usage comes without being asked for, with the finish reason."""
    stream = await sdk.chat.stream_async(model="mistral-small-latest", messages=HELLO)
    chunks = [event.data async for event in stream]
    text = "".join([str(chunk.choices[0].delta.content or "") for chunk in chunks])
    assert (text[:7], chunks[-1].choices[0].finish_reason) == ("Answer ", "stop")
    assert [chunk.usage is not None for chunk in chunks] == [False] * 21 + [True]


async def test_tool_call_is_the_same_whole_and_streamed(sdk: Mistral) -> None:
    """This vendor streams a tool call in one chunk."""
    asked: Any = {"model": "mistral-small-latest", "messages": HELLO, "tools": [TOOL], "tool_choice": "any"}
    whole: Any = await sdk.chat.complete_async(**asked)
    stream = await sdk.chat.stream_async(**asked)
    chunks: Any = [event.data async for event in stream]
    for call in (whole.choices[0].message.tool_calls[0], chunks[0].choices[0].delta.tool_calls[0]):
        assert (call.function.name, call.function.arguments, len(call.id)) == ("find_gate", '{"row":7}', 9)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_middle_is_filled_in(sdk: Mistral) -> None:
    """The route for code has prompt and suffix, and answers like chat."""
    whole: Any = await sdk.fim.complete_async(model="codestral-latest", prompt="def f():", suffix="return 1")
    assert whole.choices[0].message.content.startswith("Answer ")
    stream = await sdk.fim.stream_async(model="codestral-latest", prompt="def f():")
    assert [event.data.choices[0].finish_reason async for event in stream][-1] == "stop"


async def test_embeddings_models_and_recognition_are_answered(sdk: Mistral) -> None:
    """The other routes of this vendor parse."""
    embedded: Any = await sdk.embeddings.create_async(model="mistral-embed", inputs=["a", "b"])
    assert [len(one.embedding) for one in embedded.data] == [1536, 1536]
    models: Any = await sdk.models.list_async()
    assert {model.type for model in models.data} == {"base"}
    document: Any = {"type": "document_url", "document_url": "https://example.test/a.pdf"}
    page: Any = await sdk.ocr.process_async(model="mistral-ocr-latest", document=document)
    assert page.pages[0].markdown.startswith("# Page ")


async def test_file_is_uploaded_listed_and_deleted(sdk: Mistral, mock: MockUpstream) -> None:
    """Files of this dialect carry its extra fields."""
    uploaded = await sdk.files.upload_async(file={"file_name": "a.jsonl", "content": b"{}\n" * 100}, purpose="batch")
    assert (uploaded.size_bytes, uploaded.purpose) == (300, "batch")
    listed: Any = await sdk.files.list_async()
    assert [file.id for file in listed.data] == [uploaded.id]
    deleted: Any = await sdk.files.delete_async(file_id=uploaded.id)
    assert deleted.deleted


async def test_error_is_flat(sdk: Mistral) -> None:
    """This vendor's errors have no envelope."""
    with pytest.raises(errors.SDKError) as caught:
        await sdk.chat.complete_async(model="mistral-small-latest?fault=429", messages=HELLO)
    assert caught.value.status_code == 429
    assert '"object":"error"' in caught.value.body
    assert caught.value.headers["retry-after"] == "1"


async def test_mount_chooses_the_dialect_where_nothing_else_tells(mock: MockUpstream) -> None:
    """Behind a proxy the user agent is gone; the base URL then says whose models are meant."""
    async with Mistral(api_key="sk-test", server_url=f"{mock.url}/mistral") as sdk:
        models: Any = await sdk.models.list_async()
    assert "codestral-latest" in [model.id for model in models.data]
