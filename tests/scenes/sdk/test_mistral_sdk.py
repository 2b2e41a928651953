"""The Mistral SDK sees through the proxy what it sees without it: values, exceptions, calls."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mistralai.client import Mistral, errors
from mistralai.client.utils import BackoffStrategy, RetryConfig

from tests.scenes.sdk.conftest import ASYNCHRONOUS, BLOCKING
from tests.scenes.sdk.sides import Eager, Program, Side, Sides, observe, resolve, run_both, vendor_headers

KEY = "sk-test-aaaaaaaaaaaaaaaaaaaaaaaa"
MODEL = "mistral-small-latest"
HELLO: Any = [{"role": "user", "content": "hello ✈"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "find_gate", "parameters": {"type": "object", "properties": {"row": {"type": "integer"}}}},
}
ASKED: Any = {"model": MODEL, "messages": HELLO}
PATIENT = RetryConfig("backoff", BackoffStrategy(1, 20, 1.5, 20_000), retry_connection_errors=True)


@asynccontextmanager
async def open_sdk(kind: str, side: Side, mount: str = "/mistral", **options: Any) -> AsyncIterator[Any]:
    """The blocking or the asynchronous client, pointed at one side's mount of this vendor."""
    given: dict[str, Any] = {"server_url": side.url + mount, "api_key": KEY, **options}
    if kind == BLOCKING:
        with Mistral(**given) as blocking:
            yield Eager(blocking)
    else:
        async with Mistral(**given) as asynchronous:
            yield asynchronous


def at(kind: str, program: Program, **options: Any) -> Callable[[Side], Awaitable[object]]:
    """The program with a client of its own."""

    async def run(side: Side) -> object:
        async with open_sdk(kind, side, **options) as sdk:
            return await program(sdk)

    return run


# --- programs: what an application does; each returns what it has seen ---


async def ask_whole(sdk: Any) -> object:
    return await sdk.chat.complete_async(**ASKED)


async def stream(sdk: Any) -> object:
    async with await sdk.chat.stream_async(**ASKED) as events:
        return [event.data async for event in events]


async def stream_cut_between_any_two_bytes(sdk: Any) -> object:
    async with await sdk.chat.stream_async(**{**ASKED, "model": f"{MODEL}?chunk_bytes=7"}) as events:
        return [event.data async for event in events]


async def call_a_tool(sdk: Any) -> object:
    asked = {**ASKED, "tools": [TOOL], "tool_choice": "any"}
    whole = await sdk.chat.complete_async(**asked)
    async with await sdk.chat.stream_async(**asked) as events:
        return [whole, [event.data async for event in events]]


async def fill_in_the_middle(sdk: Any) -> object:
    whole = await sdk.fim.complete_async(model="codestral-latest", prompt="def f():", suffix="return 1")
    async with await sdk.fim.stream_async(model="codestral-latest", prompt="def f():") as events:
        return [whole, [event.data async for event in events]]


async def embed_moderate_and_recognise(sdk: Any) -> object:
    embedded = await sdk.embeddings.create_async(model="mistral-embed", inputs=["a", "b"])
    document = {"type": "document_url", "document_url": "https://example.test/a.pdf"}
    page = await sdk.ocr.process_async(model="mistral-ocr-latest", document=document)
    judged = await sdk.classifiers.moderate_async(model="mistral-moderation-latest", inputs=["violence"])
    return [embedded, page, judged]


async def look_at_the_models(sdk: Any) -> object:
    return [await sdk.models.list_async(), await sdk.models.retrieve_async(model_id="codestral-latest")]


async def download_ten_megabytes(sdk: Any) -> object:
    response = await sdk.files.download_async(file_id="file-10485760")
    content = await resolve(response.read() if isinstance(response, Eager) else response.aread())
    return [content, vendor_headers(response.headers)]


PROGRAMS = [
    ask_whole,
    stream,
    stream_cut_between_any_two_bytes,
    call_a_tool,
    fill_in_the_middle,
    embed_moderate_and_recognise,
    look_at_the_models,
    download_ten_megabytes,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
async def test_program_sees_the_same_values_on_both_sides(sides: Sides, kind: str, program: Program) -> None:
    """Texts, tool calls, reasons, usage, ids and bytes are equal, and so is each body that arrived."""
    outcome = await run_both(sides, at(kind, program))

    assert outcome.failure is None
    assert outcome.value is not None


async def test_file_goes_up_and_is_there(sides: Sides, kind: str) -> None:
    """An upload of several megabytes arrives complete."""
    content = bytes(range(251)) * 20_000

    async def program(sdk: Any) -> object:
        file = {"file_name": "notes.bin", "content": io.BytesIO(content)}
        uploaded = await sdk.files.upload_async(file=file, purpose="batch")
        listed = await sdk.files.list_async()
        read = await sdk.files.retrieve_async(file_id=uploaded.id)
        deleted = await sdk.files.delete_async(file_id=uploaded.id)
        about = [uploaded.size_bytes, uploaded.filename, uploaded.purpose]
        return [about, [f.id for f in listed.data] == [uploaded.id], read.size_bytes, deleted.deleted]

    seen = [await observe(side, at(kind, program)) for side in sides]

    # The boundary is drawn anew for each upload, so the hashes of those bodies differ.
    assert seen[0]._replace(calls={}) == seen[1]._replace(calls={})
    assert seen[1].value == [[len(content), "notes.bin", "batch"], True, len(content), True]


# --- failures ---


@pytest.mark.parametrize("fault", ["429", "500", "503"])
@pytest.mark.parametrize("streams", [False, True])
async def test_refusal_raises_the_same_exception_on_both_sides(
    sides: Sides, kind: str, fault: str, streams: bool
) -> None:
    """Class, status, body, headers and text are those of the upstream."""

    async def program(sdk: Any) -> object:
        ask = sdk.chat.stream_async if streams else sdk.chat.complete_async
        try:
            return await ask(**{**ASKED, "model": f"{MODEL}?fault={fault}"})
        except errors.SDKError as error:
            return [error.status_code, error.body, error.message, vendor_headers(error.headers)]

    outcome = await run_both(sides, at(kind, program))

    assert outcome.value[0] == int(fault)
    assert '"object":"error"' in outcome.value[1]


async def test_no_such_model_raises_the_same_exception_on_both_sides(sides: Sides, kind: str) -> None:
    """The flat error of this vendor."""

    async def program(sdk: Any) -> object:
        return await sdk.chat.complete_async(model="missing-model", messages=HELLO)

    outcome = await run_both(sides, at(kind, program))

    assert outcome.failure is not None
    assert outcome.failure["status_code"] == 404


@pytest.mark.parametrize("fault", ["truncate", "reset_mid"])
async def test_stream_cut_by_the_upstream_raises_and_never_ends_early(sides: Sides, kind: str, fault: str) -> None:
    """This SDK raises what its transport raises, directly and through the proxy."""
    ends: dict[str, Any] = {}
    for side in sides:
        async with open_sdk(kind, side) as sdk:
            try:
                async with await sdk.chat.stream_async(**{**ASKED, "model": f"{MODEL}?fault={fault}"}) as events:
                    ends[side.name] = [event.data async for event in events]
            except Exception as error:
                ends[side.name] = error

    assert isinstance(ends["direct"], Exception)
    assert isinstance(ends["proxied"], Exception)


async def test_error_event_inside_a_stream_is_seen_as_it_is(sides: Sides, kind: str) -> None:
    """Whatever the SDK makes of the upstream's event, it makes of the proxied one."""

    async def program(sdk: Any) -> object:
        async with await sdk.chat.stream_async(**{**ASKED, "model": f"{MODEL}?fault=error_event"}) as events:
            return [event.data async for event in events]

    await run_both(sides, at(kind, program))


# --- retries and time-outs ---


async def test_retries_succeed_after_the_same_number_of_calls(sides: Sides, kind: str) -> None:
    """This SDK repeats only what it was told to repeat."""

    async def program(sdk: Any) -> object:
        return await sdk.chat.complete_async(**{**ASKED, "model": f"{MODEL}?fault=503&fail_first=2"})

    outcome = await run_both(sides, at(kind, program, retry_config=PATIENT))

    assert outcome.failure is None
    assert list(outcome.calls.values()) == [3]


async def test_time_out_raises_the_same_exception_on_both_sides(sides: Sides, kind: str) -> None:
    """A client that waits long enough gives up itself."""

    async def program(sdk: Any) -> object:
        return await sdk.chat.complete_async(**{**ASKED, "model": f"{MODEL}?latency_ms=60000"})

    outcome = await run_both(sides, at(kind, program, timeout_ms=300))

    assert outcome.failure is not None
    assert outcome.failure["class"].endswith("ReadTimeout")


# --- connections and where the client points ---


async def test_five_streams_one_after_another_use_one_connection(kind: str) -> None:
    """The end of the body comes with the terminal event, so the connection is free again in time."""
    with Sides(stands_still=False) as sides:

        async def program(sdk: Any) -> object:
            counts = []
            for number in range(5):
                asked = [{"role": "user", "content": str(number)}]
                async with await sdk.chat.stream_async(
                    model=f"{MODEL}?pace_ms=2&tokens=5", messages=asked
                ) as events:
                    counts.append(len([event async for event in events]))
            return counts

        outcome = await run_both(sides, at(kind, program))

        assert outcome.failure is None
        assert outcome.value == [7] * 5
        assert sides.app.server.opened == sides.direct.mock.connections_made
        assert sides.proxied.mock.connections_made == 1


async def test_equal_calls_in_parallel_through_one_client_are_one_call(sides: Sides) -> None:
    """Twenty callers get the answer of one upstream call."""
    table = sides.app.table
    fields: Any = {**ASKED, "model": f"{MODEL}?latency_ms=60000"}

    async with open_sdk(ASYNCHRONOUS, sides.proxied) as sdk:
        asking = [asyncio.ensure_future(sdk.chat.complete_async(**fields)) for _ in range(20)]
        await asyncio.to_thread(
            sides.wait,
            lambda: table.subscribers == 20 and sides.proxied.mock.in_flight,
            "all callers are attached and their call has arrived",
        )
        sides.advance(61)
        answers = await asyncio.gather(*asking)

    assert sides.proxied.mock.calls == 1
    assert len({answer.id for answer in answers}) == 1


async def test_own_paths_need_no_mount(sides: Sides, kind: str) -> None:
    """Only this vendor has these routes, so the bare URL reaches it."""

    async def program(sdk: Any) -> object:
        return await fill_in_the_middle(sdk)

    direct = await observe(sides.direct, at(kind, program))
    proxied = await observe(sides.proxied, at(kind, program, mount=""))

    assert proxied == direct
    assert proxied.failure is None
