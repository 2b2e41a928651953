"""The OpenAI SDK sees through the proxy what it sees without it: values, exceptions, calls."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.scenes.sdk.conftest import ASYNCHRONOUS, BLOCKING
from tests.scenes.sdk.sides import (
    ADDED,
    DROPPED,
    OF_STREAMS,
    Eager,
    Program,
    Side,
    Sides,
    describe,
    observe,
    resolve,
    run_both,
    vendor_headers,
)

KEY = "sk-test-aaaaaaaaaaaaaaaaaaaaaaaa"
MODEL = "gpt-4o-mini"
HELLO: Any = [{"role": "user", "content": "hello ✈"}]
USE_TOOL: Any = [{"role": "user", "content": "use the tool"}]
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
FLAT_TOOL: Any = {"type": "function", **TOOL["function"]}
QUICK = "retry_after_s=0.001"
WAITS_BRIEFLY = {"x-stainless-read-timeout": "0.2"}
"""What the SDK says of a short time-out, so that the proxy's answer need not race with one."""


class Gate(BaseModel):
    flight: str
    rows: list[int]


@asynccontextmanager
async def open_sdk(kind: str, side: Side, **options: Any) -> AsyncIterator[Any]:
    """The blocking or the asynchronous client, pointed at one side."""
    given: dict[str, Any] = {"base_url": f"{side.url}/v1", "api_key": KEY, "max_retries": 0, **options}
    if kind == BLOCKING:
        with OpenAI(**given) as blocking:
            yield Eager(blocking)
    else:
        async with AsyncOpenAI(**given) as asynchronous:
            yield asynchronous


def at(kind: str, program: Program, **options: Any) -> Callable[[Side], Awaitable[object]]:
    """The program with a client of its own."""

    async def run(side: Side) -> object:
        async with open_sdk(kind, side, **options) as sdk:
            return await program(sdk)

    return run


# --- programs: what an application does; each returns what it has seen ---


async def ask_whole(sdk: Any) -> object:
    return await sdk.chat.completions.create(model=MODEL, messages=HELLO)


async def ask_for_three_choices(sdk: Any) -> object:
    return await sdk.chat.completions.create(model=MODEL, messages=HELLO, n=3)


async def ask_with_a_limit(sdk: Any) -> object:
    return await sdk.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=5)


async def stream(sdk: Any) -> object:
    chunks = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    return [chunk async for chunk in chunks]


async def stream_with_usage(sdk: Any) -> object:
    chunks = await sdk.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, n=2, stream_options={"include_usage": True}
    )
    return [chunk async for chunk in chunks]


async def stream_cut_between_any_two_bytes(sdk: Any) -> object:
    chunks = await sdk.chat.completions.create(model=f"{MODEL}?chunk_bytes=7", messages=HELLO, stream=True)
    return [chunk async for chunk in chunks]


async def use_a_tool_and_answer_it(sdk: Any) -> object:
    first = await sdk.chat.completions.create(model=MODEL, messages=USE_TOOL, tools=[TOOL])
    said = first.choices[0].message.model_dump(exclude_none=True)
    result = {"role": "tool", "tool_call_id": first.choices[0].message.tool_calls[0].id, "content": "A1"}
    second = await sdk.chat.completions.create(model=MODEL, messages=[*USE_TOOL, said, result], tools=[TOOL])
    return [first, second]


async def stream_a_tool_call(sdk: Any) -> object:
    chunks = await sdk.chat.completions.create(model=MODEL, messages=USE_TOOL, tools=[TOOL], stream=True)
    return [chunk async for chunk in chunks]


async def read_the_stream_helper(sdk: Any) -> object:
    async with sdk.chat.completions.stream(model=MODEL, messages=USE_TOOL, tools=[TOOL]) as events:
        seen = [event async for event in events]
        return [seen, await events.get_final_completion()]


async def parse_a_model(sdk: Any) -> object:
    whole = await sdk.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Gate)
    async with sdk.chat.completions.stream(model=MODEL, messages=HELLO, response_format=Gate) as events:
        streamed = await events.get_final_completion()
    assert whole.choices[0].message.parsed == streamed.choices[0].message.parsed == Gate(flight="mock", rows=[7])
    return [whole, streamed]


async def complete_as_of_old(sdk: Any) -> object:
    whole = await sdk.completions.create(model="gpt-3.5-turbo-instruct", prompt="hello")
    chunks = await sdk.completions.create(model="gpt-3.5-turbo-instruct", prompt="hello", stream=True)
    return [whole, [chunk async for chunk in chunks]]


async def keep_a_response_and_delete_it(sdk: Any) -> object:
    made = await sdk.responses.create(model="gpt-5", input="hello", store=True)
    read = await sdk.responses.retrieve(made.id)
    await sdk.responses.delete(made.id)
    try:
        await sdk.responses.retrieve(made.id)
    except openai.NotFoundError as error:
        return [made, read, error.body]
    raise AssertionError("the response is still there")


async def respond_without_keeping(sdk: Any) -> object:
    parsed = await sdk.responses.parse(model="gpt-5", input="hello", store=False, text_format=Gate)
    assert parsed.output_parsed == Gate(flight="mock", rows=[7])
    count = await sdk.responses.input_tokens.count(model="gpt-5", input="hello")
    return [parsed, count, await sdk.responses.create(model="gpt-5", input="hello", store=False)]


async def stream_a_response(sdk: Any) -> object:
    kept = await sdk.responses.create(model="gpt-5", input="hello", stream=True)
    kept_events = [event async for event in kept]
    cut = await sdk.responses.create(model="gpt-5", input="hello", store=False, max_output_tokens=2, stream=True)
    return [kept_events, [event async for event in cut]]


async def read_the_response_stream_helper(sdk: Any) -> object:
    fields = {"model": "gpt-5", "input": "use the tool", "tools": [FLAT_TOOL], "store": False}
    async with sdk.responses.stream(**fields) as events:
        seen = [event async for event in events]
        return [seen, await events.get_final_response()]


async def embed(sdk: Any) -> object:
    model = "text-embedding-3-small"
    packed = await sdk.embeddings.create(model=model, input=["a", "b"], dimensions=8)
    floats = await sdk.embeddings.create(model=model, input=["a", "b"], dimensions=8, encoding_format="float")
    return [packed, floats, await sdk.embeddings.create(model=model, input=[[1, 2], [3]])]


async def look_at_the_models(sdk: Any) -> object:
    return [[model async for model in sdk.models.list()], await sdk.models.retrieve("gpt-5")]


async def moderate_and_draw(sdk: Any) -> object:
    judged = await sdk.moderations.create(input=["kind words", "violence"])
    return [judged, await sdk.images.generate(model="gpt-image-1", prompt="a runway", n=2)]


async def speak(sdk: Any) -> object:
    whole = await sdk.audio.speech.create(model="tts-1", voice="alloy", input="hello there")
    fields = {"model": "tts-1", "voice": "alloy", "input": "hello again", "response_format": "wav"}
    async with sdk.audio.speech.with_streaming_response.create(**fields) as response:
        streamed = b"".join([piece async for piece in response.iter_bytes(1000)])
        kind = response.headers["content-type"]
    return [whole.content, streamed, kind]


async def download_ten_megabytes(sdk: Any) -> object:
    content = (await sdk.files.content("file-10485760")).content
    assert content[:502] == bytes(range(251)) * 2
    async with sdk.files.with_streaming_response.content("file-3000001") as response:
        size = sum([len(piece) async for piece in response.iter_bytes()])
    return [content, size]


async def read_raw_responses(sdk: Any) -> object:
    raw = await sdk.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    chunks = await sdk.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, stream=True)
    seen = [raw.status_code, raw.request_id, vendor_headers(raw.headers), await resolve(raw.parse())]
    parsed = await resolve(chunks.parse())
    return [*seen, vendor_headers(chunks.headers, also=OF_STREAMS), [chunk async for chunk in parsed]]


async def read_streaming_responses(sdk: Any) -> object:
    async with sdk.chat.completions.with_streaming_response.create(model=MODEL, messages=HELLO) as response:
        whole = [response.status_code, vendor_headers(response.headers), await response.parse()]
    fields = {"model": MODEL, "messages": HELLO, "stream": True}
    async with sdk.chat.completions.with_streaming_response.create(**fields) as response:
        return [whole, [line async for line in response.iter_lines()]]


async def ask_for_what_the_sdk_does_not_know(sdk: Any) -> object:
    answer = await sdk.chat.completions.create(
        model=MODEL, messages=HELLO, extra_body={"new_field": {"a": [1]}}, extra_query={"trace": "a b"}
    )
    try:
        await sdk.get("/unknown/path", cast_to=object)
    except openai.NotFoundError as error:
        return [answer, error.body, error.status_code]
    raise AssertionError("there is no such path")


PROGRAMS = [
    ask_whole,
    ask_for_three_choices,
    ask_with_a_limit,
    stream,
    stream_with_usage,
    stream_cut_between_any_two_bytes,
    use_a_tool_and_answer_it,
    stream_a_tool_call,
    read_the_stream_helper,
    parse_a_model,
    complete_as_of_old,
    keep_a_response_and_delete_it,
    respond_without_keeping,
    stream_a_response,
    read_the_response_stream_helper,
    embed,
    look_at_the_models,
    moderate_and_draw,
    speak,
    download_ten_megabytes,
    read_raw_responses,
    read_streaming_responses,
    ask_for_what_the_sdk_does_not_know,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
async def test_program_sees_the_same_values_on_both_sides(sides: Sides, kind: str, program: Program) -> None:
    """Texts, tool calls, reasons, usage, parsed objects, ids, bytes and headers are equal, and so is each body that
    arrived."""
    outcome = await run_both(sides, at(kind, program))

    assert outcome.failure is None
    assert outcome.value is not None


async def test_file_goes_up_and_down_whole(sides: Sides, kind: str) -> None:
    """An upload of several megabytes arrives complete and is the same file in every later answer."""
    content = bytes(range(251)) * 20_000

    async def program(sdk: Any) -> object:
        uploaded = await sdk.files.create(file=("notes.bin", io.BytesIO(content)), purpose="user_data")
        listed = [file.id async for file in sdk.files.list()] == [uploaded.id]
        read = await sdk.files.retrieve(uploaded.id)
        down = (await sdk.files.content(uploaded.id)).content
        deleted = await sdk.files.delete(uploaded.id)
        about = [uploaded.bytes, uploaded.filename, uploaded.purpose, uploaded.status]
        return [about, listed, read.bytes, down, deleted.deleted]

    seen = [await observe(side, at(kind, program)) for side in sides]

    # The boundary is drawn anew for each upload, so the hashes of those bodies differ.
    assert seen[0]._replace(calls={}) == seen[1]._replace(calls={})
    assert seen[1].value[0] == [len(content), "notes.bin", "user_data", "processed"]
    assert [side.mock.calls for side in sides] == [5, 5]


# --- failures ---

FAILURES: dict[str, dict[str, Any]] = {
    "no such model": {"model": "missing-model"},
    "bad parameter": {"max_tokens": -1},
    "no messages": {"messages": []},
    "too many requests": {"model": f"{MODEL}?fault=429"},
    "server error": {"model": f"{MODEL}?fault=500"},
    "overloaded": {"model": f"{MODEL}?fault=503"},
    "streamed server error": {"model": f"{MODEL}?fault=500", "stream": True},
    "streamed bad parameter": {"n": 0, "stream": True},
}


@pytest.mark.parametrize("fields", FAILURES.values(), ids=FAILURES.keys())
async def test_refusal_raises_the_same_exception_on_both_sides(
    sides: Sides, kind: str, fields: dict[str, Any]
) -> None:
    """Class, status, code, body, request id and text are those of the upstream."""

    async def program(sdk: Any) -> object:
        return await sdk.chat.completions.create(**{"model": MODEL, "messages": HELLO, **fields})

    outcome = await run_both(sides, at(kind, program))

    assert outcome.failure is not None
    assert outcome.failure["body"].keys() == {"message", "type", "param", "code"}
    assert outcome.failure["request_id"].startswith("req_")
    assert sides.proxied.mock.calls == 1


async def test_forgotten_key_raises_the_same_exception_on_both_sides(sides: Sides, kind: str) -> None:
    """The upstream says that there is no credential, not the proxy."""
    outcome = await run_both(sides, at(kind, ask_whole, default_headers={"Authorization": ""}))

    assert outcome.failure is not None
    assert outcome.failure["class"] == "openai.AuthenticationError"
    assert outcome.failure["code"] == "invalid_api_key"


async def test_headers_differ_by_the_named_ones_only(sides: Sides) -> None:
    """The proxy drops what describes the vendor's edge, adds what describes itself, and changes nothing else."""
    seen = {}
    for side in sides:
        async with open_sdk(ASYNCHRONOUS, side) as sdk:
            raw = await sdk.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
            seen[side.name] = {name.lower(): value for name, value in raw.headers.items()}
    direct, proxied = seen["direct"], seen["proxied"]

    assert direct.keys() - proxied.keys() - {"connection"} <= DROPPED
    assert proxied.keys() - direct.keys() == ADDED
    assert [name for name in direct.keys() & proxied.keys() if direct[name] != proxied[name]] in ([], ["date"])


# --- broken answers ---


async def read_chunks(sdk: Any, fault: str) -> tuple[int, BaseException | None]:
    """How many chunks came, and how the stream ended."""
    chunks = await sdk.chat.completions.create(model=f"{MODEL}?{fault}", messages=HELLO, stream=True)
    count = 0
    try:
        async for _ in chunks:
            count += 1
    except Exception as error:
        return count, error
    return count, None


async def test_error_event_inside_a_stream_raises_the_same_exception(sides: Sides, kind: str) -> None:
    """Three chunks, then the vendor's words."""

    async def program(sdk: Any) -> object:
        count, error = await read_chunks(sdk, "fault=error_event&fault_after=3")
        assert isinstance(error, openai.APIError)
        return [count, type(error).__name__, error.message, error.code, error.type, error.body]

    outcome = await run_both(sides, at(kind, program))

    assert outcome.failure is None
    assert outcome.value[:2] == [3, "APIError"]


async def test_error_event_inside_a_response_stream_is_seen_as_it_is(sides: Sides, kind: str) -> None:
    """Whatever the SDK makes of the upstream's event, it makes of the proxied one."""

    async def program(sdk: Any) -> object:
        events = await sdk.responses.create(
            model="gpt-5?fault=error_event&fault_after=4", input="hello", store=False, stream=True
        )
        return [event async for event in events]

    await run_both(sides, at(kind, program))


@pytest.mark.parametrize("fault", ["truncate", "reset_mid"])
@pytest.mark.parametrize("after", [0, 3, 21])
async def test_stream_cut_by_the_upstream_raises_and_never_ends_early(
    sides: Sides, kind: str, fault: str, after: int
) -> None:
    """Directly the SDK raises an error of its transport; through the proxy it raises too, without having lost a chunk
    that came whole."""
    seen = {}
    for side in sides:
        async with open_sdk(kind, side) as sdk:
            try:
                count, error = await read_chunks(sdk, f"fault={fault}&fault_after={after}")
            except openai.APIError as early:
                count, error = 0, early
        seen[side.name] = error
        assert error is not None
        # What a reset overtakes is lost on its way.
        assert count == after or (fault == "reset_mid" and count <= after)

    assert isinstance(seen["proxied"], openai.APIError)


async def test_stream_that_the_upstream_ends_without_its_terminal_event_is_passed_on(sides: Sides, kind: str) -> None:
    """The SDK asks for no ``[DONE]``; what is a short answer without the proxy is one with it."""

    async def program(sdk: Any) -> object:
        chunks = await sdk.chat.completions.create(model=f"{MODEL}?fault=no_terminal", messages=HELLO, stream=True)
        return [chunk async for chunk in chunks]

    outcome = await run_both(sides, at(kind, program))

    assert len(outcome.value) == 22


async def test_stream_that_its_reader_leaves_is_broken_off_upstream_too(sides: Sides, kind: str) -> None:
    """Nobody pays for what nobody reads, with the proxy as without it."""

    async def program(sdk: Any) -> object:
        chunks = await sdk.chat.completions.create(model=f"{MODEL}?fault=stall", messages=HELLO, stream=True)
        async with chunks:
            return await anext(aiter(chunks))

    outcome = await run_both(sides, at(kind, program))

    assert outcome.failure is None
    for side in sides:
        sides.wait(lambda mock=side.mock: mock.aborted == 1, f"the {side.name} call was broken off")


async def test_stream_cut_inside_an_event_raises_the_same_exception_on_both_sides(sides: Sides, kind: str) -> None:
    """No event of the proxy's own can follow half an event, so the connection breaks as it broke upstream."""

    async def program(sdk: Any) -> object:
        count, error = await read_chunks(sdk, "fault=truncate&chunk_bytes=100&fault_after=20")
        return [count, describe(error or AssertionError("the stream seemed whole"))]

    outcome = await run_both(sides, at(kind, program))

    assert outcome.value[1]["class"] == "openai.APIConnectionError"


@pytest.mark.parametrize("fault", ["reset", "garbage", "truncate"])
async def test_call_that_breaks_before_its_answer_is_whole_raises_on_both_sides(
    sides: Sides, kind: str, fault: str
) -> None:
    """Directly the connection breaks; the proxy says so with a 502 in the vendor's form."""
    errors: dict[str, Any] = {}
    for side in sides:
        async with open_sdk(kind, side) as sdk:
            with pytest.raises(openai.APIError) as caught:
                await sdk.chat.completions.create(model=f"{MODEL}?fault={fault}", messages=HELLO)
        errors[side.name] = caught.value

    assert isinstance(errors["direct"], openai.APIConnectionError)
    assert errors["proxied"].status_code == 502
    assert errors["proxied"].body.keys() == {"message", "type", "param", "code"}


# --- retries and time-outs ---


@pytest.mark.long
async def test_retries_succeed_after_the_same_number_of_calls(sides: Sides) -> None:
    """429 with retry-after, then an answer; two 503s, then an answer: the SDK repeats its calls as often as without
    the proxy."""

    async def program(sdk: Any) -> object:
        limited = f"{MODEL}?fault=429&fail_first=1&{QUICK}"
        failing = f"{MODEL}?fault=503&fail_first=2"
        return [
            await sdk.chat.completions.create(model=limited, messages=HELLO),
            await sdk.chat.completions.create(model=failing, messages=HELLO),
        ]

    outcome = await run_both(sides, at(BLOCKING, program, max_retries=2))

    assert outcome.failure is None
    assert sorted(outcome.calls.values()) == [2, 3]


@pytest.mark.parametrize("fault", ["500", "reset", "truncate"])
async def test_call_that_fails_once_is_repeated_once_on_both_sides(sides: Sides, fault: str) -> None:
    """A server error, a connection that broke before the answer, and one that broke inside it."""

    async def program(sdk: Any) -> object:
        return await sdk.chat.completions.create(model=f"{MODEL}?fault={fault}&fail_first=1", messages=HELLO)

    outcome = await run_both(sides, at(ASYNCHRONOUS, program, max_retries=1))

    assert (outcome.failure, list(outcome.calls.values())) == (None, [2])


async def test_retries_that_are_used_up_raise_the_last_error(sides: Sides) -> None:
    """One repetition, two calls, the upstream's own 429."""

    async def program(sdk: Any) -> object:
        return await sdk.chat.completions.create(model=f"{MODEL}?fault=429&{QUICK}", messages=HELLO)

    outcome = await run_both(sides, at(ASYNCHRONOUS, program, max_retries=1))

    assert outcome.failure is not None
    assert outcome.failure["class"] == "openai.RateLimitError"
    assert list(outcome.calls.values()) == [2]


async def test_time_out_raises_the_same_exception_where_the_proxy_leaves_it_to_the_sdk(
    unhurried_sides: Sides, kind: str
) -> None:
    """With ``heed_patience`` off the SDK gives up by itself, with the proxy as without it."""

    async def program(sdk: Any) -> object:
        return await sdk.chat.completions.create(model=f"{MODEL}?latency_ms=60000", messages=HELLO)

    outcome = await run_both(unhurried_sides, at(kind, program, timeout=0.3))

    assert outcome.failure is not None
    assert outcome.failure["class"] == "openai.APITimeoutError"


async def test_time_out_is_told_just_before_it_where_the_proxy_heeds_it(sides: Sides, kind: str) -> None:
    """By default the SDK gets a 504 that it raises and repeats like its own time-out."""

    async def program(sdk: Any) -> object:
        return await sdk.chat.completions.create(
            model=f"{MODEL}?latency_ms=60000", messages=HELLO, extra_headers=WAITS_BRIEFLY
        )

    outcome = await observe(sides.proxied, at(kind, program))

    assert outcome.failure is not None
    assert (outcome.failure["class"], outcome.failure["status_code"]) == ("openai.InternalServerError", 504)
    assert outcome.failure["code"] == "caller_deadline"


@pytest.mark.long
@pytest.mark.parametrize(("kind", "heeds"), [(BLOCKING, True), (ASYNCHRONOUS, False)])
async def test_retry_after_a_time_out_joins_the_call_that_is_still_running(kind: str, heeds: bool) -> None:
    """Directly every attempt is a call of its own; through the proxy the second one gets the answer of the first."""

    async def program(sdk: Any) -> object:
        return await sdk.chat.completions.create(model=f"{MODEL}?latency_ms=60000", messages=HELLO)

    with Sides(heed_patience=heeds) as sides:
        table = sides.app.table
        direct = await observe(sides.direct, at(kind, program, max_retries=1, timeout=0.2))
        asking = asyncio.ensure_future(
            asyncio.to_thread(asyncio.run, observe(sides.proxied, at(kind, program, max_retries=1, timeout=1.0)))
        )
        await asyncio.to_thread(sides.wait, lambda: table.lingers["joined"] == 1, "the retry joined the call")
        sides.advance(61)
        proxied = await asking

        assert direct.failure is not None
        assert (list(direct.calls.values()), direct.failure["class"]) == ([2], "openai.APITimeoutError")
        assert (list(proxied.calls.values()), proxied.failure) == ([1], None)
        assert proxied.value["choices"][0]["finish_reason"] == "stop"


# --- connections and many callers at once ---


async def test_five_streams_one_after_another_use_one_connection(kind: str) -> None:
    """The end of the body comes with the terminal event, so the SDK gives its connection back in time."""
    with Sides(stands_still=False) as sides:

        async def program(sdk: Any) -> object:
            texts = []
            for number in range(5):
                asked = [{"role": "user", "content": str(number)}]
                chunks = await sdk.chat.completions.create(
                    model=f"{MODEL}?pace_ms=2&tokens=5", messages=asked, stream=True
                )
                texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in chunks]))
            return texts

        outcome = await run_both(sides, at(kind, program))

        assert outcome.failure is None
        assert len(set(outcome.value)) == 5
        # The blocking client of this SDK closes its connection after each stream, whoever is at its other end.
        made = 5 if kind == BLOCKING else 1
        assert (sides.direct.mock.connections_made, sides.app.server.opened) == (made, made)
        assert sides.proxied.mock.connections_made == 1
        sides.wait(lambda: sides.outcomes() == {"ok": 5}, f"five streams were whole (now {sides.outcomes()})")


async def test_different_calls_in_parallel_through_one_client_keep_their_answers(sides: Sides) -> None:
    """Forty calls, whole and streamed: each gets what it would get alone."""

    async def ask(sdk: Any, number: int) -> str:
        asked: Any = [{"role": "user", "content": f"question {number}"}]
        if number % 2:
            return (await sdk.chat.completions.create(model=MODEL, messages=asked)).choices[0].message.content
        chunks = await sdk.chat.completions.create(model=MODEL, messages=asked, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def program(sdk: Any) -> object:
        return await asyncio.gather(*(ask(sdk, number) for number in range(40)))

    outcome = await run_both(sides, at(ASYNCHRONOUS, program))

    assert outcome.failure is None
    assert len(set(outcome.value)) == len(outcome.calls) == 40


async def test_equal_calls_in_parallel_through_one_client_are_one_call(sides: Sides) -> None:
    """Twenty callers get the answer of one upstream call, and it is the direct one."""
    table = sides.app.table

    async with open_sdk(ASYNCHRONOUS, sides.proxied) as sdk:
        fields: Any = {"model": f"{MODEL}?latency_ms=60000", "messages": HELLO}
        asking = [asyncio.ensure_future(sdk.chat.completions.create(**fields)) for _ in range(20)]
        await asyncio.to_thread(
            sides.wait,
            lambda: table.subscribers == 20 and sides.proxied.mock.in_flight,
            "all callers are attached and their call has arrived",
        )
        sides.advance(61)
        answers = await asyncio.gather(*asking)
    direct = await observe(sides.direct, at(ASYNCHRONOUS, ask_whole))

    assert len({answer.id for answer in answers}) == 1
    assert sides.proxied.mock.calls == 1
    assert len({answer._request_id for answer in answers}) == 1
    assert answers[0].usage.model_dump() == direct.value["usage"]


# --- where the client points ---


@pytest.mark.parametrize("base", ["/v1", "/v1/", "", "/openai/v1", "/openai"])
async def test_base_url_may_have_a_mount_and_may_lack_the_version(sides: Sides, kind: str, base: str) -> None:
    """Every spelling reaches the same call."""

    async def program(sdk: Any) -> object:
        return [await ask_whole(sdk), await stream(sdk), await look_at_the_models(sdk), await speak(sdk)]

    async def through(side: Side) -> object:
        async with open_sdk(kind, side, base_url=side.url + base) as sdk:
            return await program(sdk)

    direct = await observe(sides.direct, at(kind, program))
    proxied = await observe(sides.proxied, through)

    assert proxied == direct
    assert proxied.failure is None


async def test_environment_alone_is_enough(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    """OPENAI_BASE_URL is the whole change to an application that makes its client without arguments."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)

    async def program(side: Side) -> object:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{side.url}/v1")
        with OpenAI() as blocking:
            first = await stream(Eager(blocking))
        async with AsyncOpenAI() as asynchronous:
            return [first, await use_a_tool_and_answer_it(asynchronous)]

    outcome = await run_both(sides, program)

    assert outcome.failure is None
    assert sides.app.server.opened == 2
