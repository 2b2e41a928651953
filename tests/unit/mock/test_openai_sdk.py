"""The official OpenAI client, pointed straight at the mock, reads everything it answers."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from proxy.mock import MockUpstream

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "find_gate",
        "parameters": {
            "type": "object",
            "properties": {"flight": {"type": "string"}, "row": {"type": "integer"}},
            "required": ["flight", "row"],
        },
    },
}
HELLO: Any = [{"role": "user", "content": "hello"}]
USE_TOOL: Any = [{"role": "user", "content": "use the tool"}]


class Gate(BaseModel):
    flight: str
    rows: list[int]


@pytest.fixture
async def sdk(mock: MockUpstream) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{mock.url}/v1", api_key="sk-test", max_retries=0) as sdk:
        yield sdk


async def test_whole_completion_carries_text_usage_and_vendor_headers(sdk: AsyncOpenAI) -> None:
    """What an application reads from an ordinary answer is there."""
    raw = await sdk.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=HELLO)
    answer = raw.parse()
    assert answer.usage is not None
    assert answer.choices[0].message.content is not None
    assert answer.choices[0].message.content.startswith("Answer ")
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("stop", 20)
    assert answer.model == "gpt-4o-mini"
    assert answer._request_id == raw.headers["x-request-id"]
    for name in ("openai-processing-ms", "openai-version", "x-ratelimit-remaining-tokens", "set-cookie", "date"):
        assert raw.headers[name]


async def test_streamed_completion_says_what_the_whole_one_says(sdk: AsyncOpenAI) -> None:
    """Chunks add up to a reply of the same form, with usage in the last one."""
    stream = await sdk.chat.completions.create(
        model="gpt-4o-mini", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    text = "".join([chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices])
    assert len(text.split(" ")) == 21
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert (chunks[-1].choices, chunks[-1].usage is not None) == ([], True)
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_several_choices_differ_and_are_all_streamed(sdk: AsyncOpenAI) -> None:
    """``n`` gives n different answers, whole or streamed."""
    whole = await sdk.chat.completions.create(model="gpt-4o-mini", messages=HELLO, n=3)
    assert len({choice.message.content for choice in whole.choices}) == 3
    stream = await sdk.chat.completions.create(model="gpt-4o-mini", messages=HELLO, n=2, stream=True)
    assert {chunk.choices[0].index async for chunk in stream} == {0, 1}


async def test_limit_below_the_mocks_length_ends_the_answer_early(sdk: AsyncOpenAI) -> None:
    """``max_tokens`` is kept and reported as the reason."""
    answer = await sdk.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_completion_tokens=5)
    assert answer.usage is not None
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 5)


async def test_tool_is_called_when_the_user_asks_and_answered_with_text_afterwards(sdk: AsyncOpenAI) -> None:
    """A loop around tools comes to an end: call, result, text."""
    first = await sdk.chat.completions.create(model="gpt-4o-mini", messages=USE_TOOL, tools=[TOOL])
    calls = first.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert (first.choices[0].finish_reason, calls[0].function.name) == ("tool_calls", "find_gate")
    assert calls[0].function.arguments == '{"flight":"mock","row":7}'
    result: Any = {"role": "tool", "tool_call_id": calls[0].id, "content": "A1"}
    said: Any = first.choices[0].message.model_dump(exclude_none=True)
    second = await sdk.chat.completions.create(
        model="gpt-4o-mini", messages=[*USE_TOOL, said, result], tools=[TOOL]
    )
    assert (second.choices[0].finish_reason, second.choices[0].message.tool_calls) == ("stop", None)


async def test_streamed_tool_call_is_put_together_by_the_sdk(sdk: AsyncOpenAI) -> None:
    """The SDK's own accumulator reads the argument deltas."""
    async with sdk.chat.completions.stream(
        model="gpt-4o-mini", messages=HELLO, tools=[TOOL], tool_choice="required"
    ) as stream:
        answer = await stream.get_final_completion()
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.arguments == '{"flight":"mock","row":7}'


async def test_json_is_answered_when_it_is_asked_for(sdk: AsyncOpenAI) -> None:
    """JSON mode gives an object, and a schema gives an instance that the SDK parses."""
    answer = await sdk.chat.completions.create(
        model="gpt-4o-mini", messages=HELLO, response_format={"type": "json_object"}
    )
    assert (answer.choices[0].message.content or "").startswith('{"answer":"Answer ')
    parsed = await sdk.chat.completions.parse(model="gpt-4o-mini", messages=HELLO, response_format=Gate)
    assert parsed.choices[0].message.parsed == Gate(flight="mock", rows=[7])


async def test_legacy_completion_is_answered_whole_and_streamed(sdk: AsyncOpenAI) -> None:
    """The route of old clients works like the new one."""
    whole = await sdk.completions.create(model="gpt-3.5-turbo-instruct", prompt="hello")
    stream = await sdk.completions.create(model="gpt-3.5-turbo-instruct", prompt="hello", stream=True)
    text = "".join([chunk.choices[0].text async for chunk in stream])
    assert (whole.object, len(text.split(" "))) == ("text_completion", len(whole.choices[0].text.split(" ")))


async def test_response_is_complete_stored_and_deleted(sdk: AsyncOpenAI) -> None:
    """A response can be read back until it is deleted."""
    response = await sdk.responses.create(model="gpt-5", input="hello")
    assert response.usage is not None
    assert (response.status, response.usage.output_tokens) == ("completed", 20)
    assert response.output_text.startswith("Answer ")
    assert (await sdk.responses.retrieve(response.id)).output_text == response.output_text
    await sdk.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.retrieve(response.id)


async def test_response_that_must_not_be_stored_is_not(sdk: AsyncOpenAI) -> None:
    """``store=False`` leaves nothing to read back."""
    response = await sdk.responses.create(model="gpt-5", input="hello", store=False)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.retrieve(response.id)


async def test_response_stream_has_every_event_in_order(sdk: AsyncOpenAI) -> None:
    """Named events, numbered without a gap, from created to completed."""
    stream = await sdk.responses.create(model="gpt-5?tokens=3", input="hello", stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(11))
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == 3
    assert last.response.output_text == "".join(
        [event.delta for event in events if event.type == "response.output_text.delta"]
    )


async def test_response_stream_helper_puts_text_and_tool_calls_together(sdk: AsyncOpenAI) -> None:
    """The SDK's accumulator accepts both kinds of output item."""
    async with sdk.responses.stream(model="gpt-5", input="hello") as stream:
        final = await stream.get_final_response()
    assert final.output_text.startswith("Answer ")
    tool: Any = {"type": "function", **TOOL["function"]}
    async with sdk.responses.stream(model="gpt-5", input="use the tool", tools=[tool]) as stream:
        final = await stream.get_final_response()
    item = final.output[0]
    assert item.type == "function_call"
    assert (item.name, item.arguments) == ("find_gate", '{"flight":"mock","row":7}')


async def test_response_cut_by_its_limit_is_incomplete(sdk: AsyncOpenAI) -> None:
    """The stream then ends with ``response.incomplete``."""
    stream = await sdk.responses.create(model="gpt-5", input="hello", max_output_tokens=2, stream=True)
    events = [event async for event in stream]
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"


async def test_response_parsed_by_schema_is_an_instance(sdk: AsyncOpenAI) -> None:
    """``text.format`` is obeyed."""
    parsed = await sdk.responses.parse(model="gpt-5", input="hello", text_format=Gate)
    assert parsed.output_parsed == Gate(flight="mock", rows=[7])


async def test_embeddings_are_equal_as_floats_and_as_base64(sdk: AsyncOpenAI) -> None:
    """The SDK asks for base64 by itself; plain floats say the same."""
    packed = await sdk.embeddings.create(model="text-embedding-3-small", input=["a", "b"], dimensions=8)
    plain = await sdk.embeddings.create(
        model="text-embedding-3-small", input=["a", "b"], dimensions=8, encoding_format="float"
    )
    assert [len(one.embedding) for one in packed.data] == [8, 8]
    assert [one.embedding for one in packed.data] == [pytest.approx(one.embedding) for one in plain.data]
    assert packed.data[0].embedding != packed.data[1].embedding
    tokens = await sdk.embeddings.create(model="text-embedding-3-small", input=[[1, 2], [3]])
    assert len(tokens.data) == 2


async def test_models_are_listed_and_found(sdk: AsyncOpenAI) -> None:
    """The list has what the item route describes."""
    names = [model.id async for model in sdk.models.list()]
    assert "gpt-4o-mini" in names
    assert (await sdk.models.retrieve(names[0])).id == names[0]


async def test_moderation_flags_what_says_so(sdk: AsyncOpenAI) -> None:
    """One result for each input."""
    answer = await sdk.moderations.create(input=["kind words", "violence"])
    assert [result.flagged for result in answer.results] == [False, True]
    assert [result.categories.violence for result in answer.results] == [False, True]


async def test_speech_is_binary_and_has_no_length(sdk: AsyncOpenAI) -> None:
    """Audio comes in chunks."""
    raw = await sdk.audio.speech.with_raw_response.create(model="tts-1", voice="alloy", input="hello there")
    assert (raw.headers["content-type"], raw.headers["transfer-encoding"]) == ("audio/mpeg", "chunked")
    assert "content-length" not in raw.headers
    assert len(await raw.parse().aread()) == 11 * 960


async def test_image_is_a_png_in_base64(sdk: AsyncOpenAI) -> None:
    """As many as were asked for."""
    answer = await sdk.images.generate(model="gpt-image-1", prompt="a runway", n=2)
    assert answer.data is not None
    assert len(answer.data) == 2
    assert (answer.data[0].b64_json or "").startswith("iVBORw0KGgo")


async def test_file_is_uploaded_listed_downloaded_and_deleted(sdk: AsyncOpenAI) -> None:
    """The size is that of the upload, all the way."""
    content = b"0123456789\r\n--not-the-boundary\r\n" * 10_000
    uploaded = await sdk.files.create(file=("notes.txt", io.BytesIO(content)), purpose="user_data")
    assert (uploaded.bytes, uploaded.filename, uploaded.purpose) == (len(content), "notes.txt", "user_data")
    assert [file.id async for file in sdk.files.list()] == [uploaded.id]
    assert (await sdk.files.retrieve(uploaded.id)).bytes == len(content)
    assert len((await sdk.files.content(uploaded.id)).content) == len(content)
    assert (await sdk.files.delete(uploaded.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await sdk.files.retrieve(uploaded.id)


async def test_file_of_a_chosen_size_can_be_downloaded(sdk: AsyncOpenAI) -> None:
    """The id says how many bytes come, and each block is where it belongs."""
    content = (await sdk.files.content("file-300001")).content
    assert content == bytes([i % 251 for i in range(300_001)])


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"model": "missing-model"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": -1}, openai.BadRequestError, None),
        ({"n": 0}, openai.BadRequestError, None),
        ({"messages": []}, openai.BadRequestError, None),
        ({"model": "gpt-4o?fault=429"}, openai.RateLimitError, "rate_limit_exceeded"),
        ({"model": "gpt-4o?fault=503"}, openai.InternalServerError, "server_is_overloaded"),
        ({"model": "gpt-4o?colour=blue"}, openai.BadRequestError, None),
        ({"model": "gpt-4o?tokens=many"}, openai.BadRequestError, None),
    ],
)
async def test_error_is_the_vendors_error(
    sdk: AsyncOpenAI, fields: dict[str, Any], error: type[openai.APIStatusError], code: str | None
) -> None:
    """The SDK raises the class it would raise, with all four fields of the error object."""
    with pytest.raises(error) as caught:
        await sdk.chat.completions.create(**{"model": "gpt-4o-mini", "messages": HELLO, **fields})
    body = caught.value.body
    assert isinstance(body, dict)
    assert body.keys() == {"message", "type", "param", "code"}
    assert (caught.value.code, bool(caught.value.request_id)) == (code, True)


async def test_call_without_a_credential_is_unauthorised(mock: MockUpstream) -> None:
    """The SDK raises what it raises for a key that was forgotten."""
    bare = {"Authorization": ""}
    async with AsyncOpenAI(base_url=f"{mock.url}/openai/v1", api_key="x", max_retries=0, default_headers=bare) as sdk:
        with pytest.raises(openai.AuthenticationError):
            await sdk.models.list()


async def test_sdk_retries_a_call_that_fails_once(mock: MockUpstream) -> None:
    """With ``fail_first=1`` the SDK's own retry succeeds."""
    async with AsyncOpenAI(base_url=f"{mock.url}/v1", api_key="sk-test", max_retries=1) as sdk:
        answer = await sdk.chat.completions.create(
            model="gpt-4o-mini?fault=429&fail_first=1&retry_after_s=0.001", messages=HELLO
        )
    assert answer.model == "gpt-4o-mini"
    assert (mock.calls, list(mock.calls_by_key.values()), mock.faults) == (2, [2], 1)


async def test_error_event_inside_a_stream_raises(sdk: AsyncOpenAI) -> None:
    """Some tokens arrive, then the SDK raises what the event says."""
    stream = await sdk.chat.completions.create(
        model="gpt-4o-mini?fault=error_event&fault_after=3", messages=HELLO, stream=True
    )
    seen: list[object] = []

    async def read() -> None:
        async for chunk in stream:
            seen.append(chunk)

    with pytest.raises(openai.APIError, match="overloaded"):
        await read()
    assert len(seen) == 3
