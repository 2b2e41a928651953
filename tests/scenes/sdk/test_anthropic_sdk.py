"""The Anthropic SDK sees through the proxy what it sees without it: values, exceptions, calls."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel

from tests.scenes.sdk.conftest import ASYNCHRONOUS, BLOCKING
from tests.scenes.sdk.sides import (
    OF_STREAMS,
    Eager,
    Program,
    Side,
    Sides,
    observe,
    resolve,
    run_both,
    vendor_headers,
)

KEY = "sk-test-aaaaaaaaaaaaaaaaaaaaaaaa"
MODEL = "claude-sonnet-4-6"
HELLO: Any = [{"role": "user", "content": "hello ✈"}]
USE_TOOL: Any = [{"role": "user", "content": [{"type": "text", "text": "use the tool"}]}]
TOOL: Any = {
    "name": "find_gate",
    "input_schema": {"type": "object", "properties": {"flight": {"type": "string"}, "row": {"type": "integer"}}},
}
ASKED: Any = {"model": MODEL, "max_tokens": 100, "messages": HELLO}
ASKED_FOR_TOOL: Any = {"model": MODEL, "max_tokens": 100, "messages": USE_TOOL, "tools": [TOOL]}
WAITS_BRIEFLY = {"x-stainless-read-timeout": "0.2"}
"""What the SDK says of a short time-out, so that the proxy's answer need not race with one."""


class Gate(BaseModel):
    flight: str
    rows: list[int]


@asynccontextmanager
async def open_sdk(kind: str, side: Side, **options: Any) -> AsyncIterator[Any]:
    """The blocking or the asynchronous client, pointed at one side."""
    given: dict[str, Any] = {"base_url": side.url, "api_key": KEY, "max_retries": 0, **options}
    if kind == BLOCKING:
        with Anthropic(**given) as blocking:
            yield Eager(blocking)
    else:
        async with AsyncAnthropic(**given) as asynchronous:
            yield asynchronous


def at(kind: str, program: Program, **options: Any) -> Callable[[Side], Awaitable[object]]:
    """The program with a client of its own."""

    async def run(side: Side) -> object:
        async with open_sdk(kind, side, **options) as sdk:
            return await program(sdk)

    return run


# --- programs: what an application does; each returns what it has seen ---


async def ask_whole(sdk: Any) -> object:
    return await sdk.messages.create(**ASKED, system="be brief")


async def ask_with_a_limit(sdk: Any) -> object:
    return await sdk.messages.create(**{**ASKED, "max_tokens": 4})


async def stream(sdk: Any) -> object:
    events = await sdk.messages.create(**ASKED, stream=True)
    return [event async for event in events]


async def stream_cut_between_any_two_bytes(sdk: Any) -> object:
    events = await sdk.messages.create(**{**ASKED, "model": f"{MODEL}?chunk_bytes=7"}, stream=True)
    return [event async for event in events]


async def read_the_stream_helper(sdk: Any) -> object:
    async with sdk.messages.stream(**ASKED) as events:
        text = "".join([piece async for piece in events.text_stream])
        return [text, await events.get_final_message()]


async def read_every_event_of_the_stream_helper(sdk: Any) -> object:
    async with sdk.messages.stream(**ASKED_FOR_TOOL) as events:
        return [event async for event in events]


async def use_a_tool_and_answer_it(sdk: Any) -> object:
    first = await sdk.messages.create(**ASKED_FOR_TOOL)
    block = first.content[0]
    said = {"role": "assistant", "content": [block.model_dump(include={"type", "id", "name", "input"})]}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "A1"}]}
    second = await sdk.messages.create(**{**ASKED_FOR_TOOL, "messages": [*USE_TOOL, said, result]})
    return [first, second]


async def parse_a_model(sdk: Any) -> object:
    parsed = await sdk.messages.parse(**ASKED, output_format=Gate)
    assert parsed.parsed_output == Gate(flight="mock", rows=[7])
    return parsed


async def count_and_ask_beta(sdk: Any) -> object:
    counted = await sdk.messages.count_tokens(model=MODEL, messages=HELLO, system="be brief")
    beta = await sdk.beta.messages.create(**ASKED, betas=["context-1m-2025-08-07"])
    return [counted, beta]


async def look_at_the_models(sdk: Any) -> object:
    return [[model async for model in sdk.models.list()], await sdk.models.retrieve("claude-opus-4-6")]


async def download_ten_megabytes(sdk: Any) -> object:
    response = await sdk.beta.files.download("file-10485760")
    content = await resolve(response.read())
    assert bytes(content[:502]) == bytes(range(251)) * 2
    return content


async def read_raw_responses(sdk: Any) -> object:
    raw = await sdk.messages.with_raw_response.create(**ASKED)
    events = await sdk.messages.with_raw_response.create(**ASKED, stream=True)
    seen = [raw.status_code, vendor_headers(raw.headers), await resolve(raw.parse())]
    return [*seen, vendor_headers(events.headers, also=OF_STREAMS), [e async for e in await resolve(events.parse())]]


async def read_streaming_responses(sdk: Any) -> object:
    async with sdk.messages.with_streaming_response.create(**ASKED) as response:
        whole = [response.status_code, vendor_headers(response.headers), await response.parse()]
    async with sdk.messages.with_streaming_response.create(**ASKED, stream=True) as response:
        return [whole, [line async for line in response.iter_lines()]]


async def ask_for_what_is_not_there(sdk: Any) -> object:
    return await sdk.messages.batches.retrieve("msgbatch_1")


PROGRAMS = [
    ask_whole,
    ask_with_a_limit,
    stream,
    stream_cut_between_any_two_bytes,
    read_the_stream_helper,
    read_every_event_of_the_stream_helper,
    use_a_tool_and_answer_it,
    parse_a_model,
    count_and_ask_beta,
    look_at_the_models,
    download_ten_megabytes,
    read_raw_responses,
    read_streaming_responses,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
async def test_program_sees_the_same_values_on_both_sides(sides: Sides, kind: str, program: Program) -> None:
    """Texts, tool uses, reasons, usage, parsed objects, ids, bytes and headers are equal, and so is each body that
    arrived."""
    outcome = await run_both(sides, at(kind, program))

    assert outcome.failure is None
    assert outcome.value is not None


async def test_file_goes_up_and_down_whole(sides: Sides, kind: str) -> None:
    """An upload of several megabytes arrives complete and is the same file in every later answer."""
    content = bytes(range(251)) * 20_000

    async def program(sdk: Any) -> object:
        uploaded = await sdk.beta.files.upload(file=("notes.bin", io.BytesIO(content), "text/plain"))
        listed = [file.id async for file in sdk.beta.files.list()] == [uploaded.id]
        read = await sdk.beta.files.retrieve_metadata(uploaded.id)
        response = await sdk.beta.files.download(uploaded.id)
        down = await resolve(response.read())
        deleted = await sdk.beta.files.delete(uploaded.id)
        return [uploaded.size_bytes, uploaded.filename, listed, read.size_bytes, down, deleted.id == uploaded.id]

    seen = [await observe(side, at(kind, program)) for side in sides]

    # The boundary is drawn anew for each upload, so the hashes of those bodies differ.
    assert seen[0]._replace(calls={}) == seen[1]._replace(calls={})
    assert seen[1].value[:4] == [len(content), "notes.bin", True, len(content)]
    assert [side.mock.calls for side in sides] == [5, 5]


# --- failures ---

FAILURES: dict[str, dict[str, Any]] = {
    "no such model": {"model": "missing-model"},
    "bad parameter": {"max_tokens": -1},
    "too many requests": {"model": f"{MODEL}?fault=429"},
    "server error": {"model": f"{MODEL}?fault=500"},
    "overloaded": {"model": f"{MODEL}?fault=529"},
    "streamed overloaded": {"model": f"{MODEL}?fault=529", "stream": True},
}


@pytest.mark.parametrize("fields", FAILURES.values(), ids=FAILURES.keys())
async def test_refusal_raises_the_same_exception_on_both_sides(
    sides: Sides, kind: str, fields: dict[str, Any]
) -> None:
    """Class, status, body, request id and text are those of the upstream."""

    async def program(sdk: Any) -> object:
        return await sdk.messages.create(**{**ASKED, **fields})

    outcome = await run_both(sides, at(kind, program))

    assert outcome.failure is not None
    assert outcome.failure["body"].keys() == {"type", "error", "request_id"}
    assert outcome.failure["request_id"].startswith("req_")
    assert sides.proxied.mock.calls == 1


async def test_unknown_path_raises_the_same_exception_on_both_sides(sides: Sides, kind: str) -> None:
    """What the proxy does not understand is answered by the upstream."""
    outcome = await run_both(sides, at(kind, ask_for_what_is_not_there))

    assert outcome.failure is not None
    assert (outcome.failure["class"], outcome.failure["status_code"]) == ("anthropic.NotFoundError", 404)


# --- broken streams ---


async def read_events(sdk: Any, fault: str) -> tuple[int, BaseException | None]:
    """How many events came, and how the stream ended."""
    events = await sdk.messages.create(**{**ASKED, "model": f"{MODEL}?{fault}"}, stream=True)
    count = 0
    try:
        async for _ in events:
            count += 1
    except Exception as error:
        return count, error
    return count, None


async def test_error_event_inside_a_stream_raises_the_same_exception(sides: Sides, kind: str) -> None:
    """The vendor's words, with the status under which the stream began."""

    async def program(sdk: Any) -> object:
        count, error = await read_events(sdk, "fault=error_event&fault_after=5")
        assert isinstance(error, anthropic.APIStatusError)
        return [count, type(error).__name__, error.message, error.status_code, error.body, error.request_id]

    outcome = await run_both(sides, at(kind, program))

    assert outcome.failure is None
    assert outcome.value[4]["error"]["type"] == "overloaded_error"


async def test_error_event_reaches_the_stream_helper_alike(sides: Sides, kind: str) -> None:
    """The helper raises before it makes a message of half a stream."""

    async def program(sdk: Any) -> object:
        async with sdk.messages.stream(**{**ASKED, "model": f"{MODEL}?fault=error_event"}) as events:
            return await events.get_final_message()

    outcome = await run_both(sides, at(kind, program))

    assert outcome.failure is not None
    assert outcome.failure["body"]["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("fault", ["truncate", "reset_mid"])
@pytest.mark.parametrize("after", [0, 5, 24])
async def test_stream_cut_by_the_upstream_raises_and_never_ends_early(
    sides: Sides, kind: str, fault: str, after: int
) -> None:
    """Directly the SDK's transport raises; through the proxy the SDK raises one of its own exceptions."""
    errors: dict[str, Any] = {}
    for side in sides:
        async with open_sdk(kind, side) as sdk:
            try:
                _, errors[side.name] = await read_events(sdk, f"fault={fault}&fault_after={after}")
            except anthropic.APIError as early:
                errors[side.name] = early

    assert errors["direct"] is not None
    assert isinstance(errors["proxied"], anthropic.APIError)


async def test_stream_that_the_upstream_ends_without_its_terminal_event_is_passed_on(sides: Sides, kind: str) -> None:
    """The SDK asks for no ``message_stop``; what is a short answer without the proxy is one with it."""

    async def program(sdk: Any) -> object:
        events = await sdk.messages.create(**{**ASKED, "model": f"{MODEL}?fault=no_terminal"}, stream=True)
        return [event async for event in events]

    outcome = await run_both(sides, at(kind, program))

    assert outcome.value[-1]["type"] == "message_delta"


# --- retries and time-outs ---


async def test_retries_succeed_after_the_same_number_of_calls(sides: Sides, kind: str) -> None:
    """429 with retry-after, then 529, then an answer: the SDK repeats its call as often as without the proxy."""

    async def program(sdk: Any) -> object:
        limited = f"{MODEL}?fault=429&fail_first=1&retry_after_s=0.001"
        overloaded = f"{MODEL}?fault=529&fail_first=1"
        return [await sdk.messages.create(**{**ASKED, "model": model}) for model in (limited, overloaded)]

    outcome = await run_both(sides, at(kind, program, max_retries=2))

    assert outcome.failure is None
    assert sorted(outcome.calls.values()) == [2, 2]


async def test_time_out_raises_the_same_exception_where_the_proxy_leaves_it_to_the_sdk(
    unhurried_sides: Sides, kind: str
) -> None:
    """With ``heed_patience`` off the SDK gives up by itself, with the proxy as without it."""

    async def program(sdk: Any) -> object:
        return await sdk.messages.create(**{**ASKED, "model": f"{MODEL}?latency_ms=60000"})

    outcome = await run_both(unhurried_sides, at(kind, program, timeout=0.3))

    assert outcome.failure is not None
    assert outcome.failure["class"] == "anthropic.APITimeoutError"


async def test_time_out_is_told_just_before_it_where_the_proxy_heeds_it(sides: Sides, kind: str) -> None:
    """By default the SDK gets a 504 that it raises and repeats like its own time-out."""

    async def program(sdk: Any) -> object:
        asked = {**ASKED, "model": f"{MODEL}?latency_ms=60000"}
        return await sdk.messages.create(**asked, extra_headers=WAITS_BRIEFLY)

    outcome = await observe(sides.proxied, at(kind, program))

    assert outcome.failure is not None
    assert (outcome.failure["class"], outcome.failure["status_code"]) == ("anthropic.GatewayTimeoutError", 504)
    assert outcome.failure["body"]["error"]["type"] == "timeout_error"


async def test_retry_after_a_time_out_joins_the_call_that_is_still_running(sides: Sides) -> None:
    """The second attempt gets the first one's answer."""

    async def program(sdk: Any) -> object:
        return await sdk.messages.create(**{**ASKED, "model": f"{MODEL}?latency_ms=60000"})

    table = sides.app.table
    asking = asyncio.ensure_future(observe(sides.proxied, at(ASYNCHRONOUS, program, max_retries=1, timeout=1.0)))
    await asyncio.to_thread(sides.wait, lambda: table.lingers["joined"] == 1, "the retry joined the call")
    sides.advance(61)
    outcome = await asking

    assert (list(outcome.calls.values()), outcome.failure) == ([1], None)
    assert outcome.value["stop_reason"] == "end_turn"


# --- connections and many callers at once ---


async def test_five_streams_one_after_another_use_one_connection(kind: str) -> None:
    """The end of the body comes with the terminal event, so the SDK gives its connection back in time."""
    with Sides(stands_still=False) as sides:

        async def program(sdk: Any) -> object:
            texts = []
            for number in range(5):
                asked = [{"role": "user", "content": str(number)}]
                async with sdk.messages.stream(
                    model=f"{MODEL}?pace_ms=2&tokens=5", max_tokens=99, messages=asked
                ) as events:
                    texts.append(await events.get_final_text())
            return texts

        outcome = await run_both(sides, at(kind, program))

        assert outcome.failure is None
        assert len(set(outcome.value)) == 5
        assert (sides.direct.mock.connections_made, sides.app.server.opened) == (1, 1)
        assert sides.proxied.mock.connections_made == 1


async def test_equal_streams_in_parallel_through_one_client_are_one_call(sides: Sides) -> None:
    """Twenty readers get the events of one upstream call, and they are the direct ones."""
    table = sides.app.table
    fields: Any = {**ASKED, "model": f"{MODEL}?latency_ms=60000"}

    async def read(sdk: Any) -> object:
        async with sdk.messages.stream(**fields) as events:
            return await events.get_final_message()

    async with open_sdk(ASYNCHRONOUS, sides.proxied) as sdk:
        asking = [asyncio.ensure_future(read(sdk)) for _ in range(20)]
        await asyncio.to_thread(
            sides.wait,
            lambda: table.subscribers == 20 and sides.proxied.mock.in_flight,
            "all readers are attached and their call has arrived",
        )
        sides.advance(61)
        messages: list[Any] = await asyncio.gather(*asking)
    direct = asyncio.ensure_future(observe(sides.direct, at(ASYNCHRONOUS, read)))
    await asyncio.to_thread(sides.wait, lambda: sides.direct.mock.in_flight == 1, "the direct call arrived")
    sides.advance(61)

    assert sides.proxied.mock.calls == 1
    assert [message.model_dump() for message in messages] == [messages[0].model_dump()] * 20
    assert (await direct).value["content"] == [block.model_dump() for block in messages[0].content]


# --- where the client points ---


@pytest.mark.parametrize("base", ["", "/", "/anthropic"])
async def test_base_url_may_have_a_mount(sides: Sides, kind: str, base: str) -> None:
    """Every spelling reaches the same call."""

    async def program(sdk: Any) -> object:
        return [await ask_whole(sdk), await stream(sdk), await look_at_the_models(sdk)]

    async def through(side: Side) -> object:
        async with open_sdk(kind, side, base_url=side.url + base) as sdk:
            return await program(sdk)

    direct = await observe(sides.direct, at(kind, program))
    proxied = await observe(sides.proxied, through)

    assert proxied == direct
    assert proxied.failure is None


async def test_environment_alone_is_enough(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    """ANTHROPIC_BASE_URL is the whole change to an application that makes its client without arguments."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)

    async def program(side: Side) -> object:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", side.url)
        with Anthropic() as blocking:
            first = await read_the_stream_helper(Eager(blocking))
        async with AsyncAnthropic() as asynchronous:
            return [first, await use_a_tool_and_answer_it(asynchronous)]

    outcome = await run_both(sides, program)

    assert outcome.failure is None
    assert sides.app.server.opened == 2
