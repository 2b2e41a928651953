"""One upstream call, however many callers ask for the same at the same time."""

from __future__ import annotations

import asyncio

import pytest

from tests.scenes.stage import OTHER_KEY, Stage, as_bytes, chat, completion, stream_events


async def test_one_request_makes_one_call_and_is_a_leader(stage: Stage) -> None:
    """TC001: nothing collapses where there is one caller."""
    response = await stage.ask(chat())
    call = await stage.upstream.next_call()
    await call.answer_json(completion())
    await response.read_end()

    assert response.status == 200
    assert response.json() == completion()
    assert response.header("cache-status") == "sameflight; fwd=miss"
    assert stage.upstream.calls == 1


async def test_fifty_identical_requests_make_one_call_and_get_equal_bodies(stage: Stage) -> None:
    """TC002: everybody attached before the head gets the same bytes."""
    responses = await stage.ask_many(50, chat())
    call = await stage.upstream.next_call()
    await call.answer_json(completion("shared"))
    bodies = {(await response.read_end()).body for response in responses}

    assert len(bodies) == 1
    assert stage.upstream.calls == 1
    assert [r.header("cache-status") for r in responses].count("sameflight; fwd=miss; collapsed") == 49


async def test_fifty_distinct_requests_make_fifty_calls_and_wait_for_nobody(stage: Stage) -> None:
    """TC003: callers with different bodies never meet."""
    responses = [await stage.ask(chat(str(number))) for number in range(50)]
    calls = [await stage.upstream.next_call() for _ in range(50)]
    for call in reversed(calls):
        await call.answer_json(completion(call.json()["messages"][0]["content"]))
    texts = [(await r.read_end()).json()["choices"][0]["message"]["content"] for r in responses]

    assert texts == [str(number) for number in range(50)]


async def test_a_request_after_the_end_of_an_uncached_answer_makes_its_own_call(stage: Stage) -> None:
    """TC004: a flight is no cache."""
    for text in ("first", "second"):
        response = await stage.ask(chat())
        await (await stage.upstream.next_call()).answer_json(completion(text))
        await response.read_end()

        assert response.json() == completion(text)

    assert stage.upstream.calls == 2


@pytest.mark.parametrize("callers", [1, 2, 20])
async def test_every_caller_of_a_stream_reads_the_bytes_of_a_direct_call(stage: Stage, callers: int) -> None:
    """Streams are shared byte for byte."""
    events = stream_events("Hel", "lo", " ✈", "!")
    responses = await stage.ask_many(callers, chat(stream=True))
    await (await stage.upstream.next_call()).answer_sse(events)
    for response in responses:
        await response.read_end()

    assert {response.body for response in responses} == {as_bytes(events)}
    assert all(response.ended and not response.truncated for response in responses)
    assert stage.upstream.calls == 1


async def test_a_joiner_at_every_event_boundary_reads_the_whole_stream(stage: Stage) -> None:
    """TC065: whoever joins late reads from the first byte on."""
    events = stream_events(*"abcdefgh")
    responses = await stage.ask_many(1, chat(stream=True))
    call = await stage.upstream.next_call()
    await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
    for event in events:
        responses += await stage.ask_many(1, chat(stream=True))
        await call.send(as_bytes([event]))
        await responses[0].read_until(as_bytes([event]))
    await call.end()
    for response in responses:
        await response.read_end()

    assert [response.body for response in responses] == [as_bytes(events)] * len(responses)
    assert stage.upstream.calls == 1


async def test_callers_with_different_credentials_never_share(stage: Stage) -> None:
    """TC022, TC135: the credential is part of what a request is."""
    one, other = await stage.ask(chat()), await stage.ask(chat(), key=OTHER_KEY)
    first, second = await stage.upstream.next_call(), await stage.upstream.next_call()
    await first.answer_json(completion(first.header("authorization") or ""))
    await second.answer_json(completion(second.header("authorization") or ""))
    texts = [(await r.read_end()).json()["choices"][0]["message"]["content"] for r in (one, other)]

    assert len(set(texts)) == 2
    assert texts[1] == f"Bearer {OTHER_KEY}"


async def test_a_burst_over_one_group_makes_one_call_for_each_group() -> None:
    """TC010: subscribers of one flight are bounded, and the next caller starts another."""
    async with Stage(max_subscribers=10) as stage:
        stage.upstream.respond_with(None)
        responses = await stage.ask_many(25, chat())
        calls = [await stage.upstream.next_call() for _ in range(3)]
        for call in calls:
            await call.answer_json(completion())
        await asyncio.gather(*(response.read_end() for response in responses))
        await stage.at_rest()

        assert stage.upstream.calls == 3
        assert all(response.json() == completion() for response in responses)
