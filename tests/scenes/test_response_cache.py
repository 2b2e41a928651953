"""The response cache over the wire: what is kept, for whom, and what may be given again."""

from __future__ import annotations

import pytest

from tests.fakes.clock import FrozenClock
from tests.fakes.gates import wait_until
from tests.scenes.stage import KEY, OTHER_KEY, Stage, as_bytes, chat, completion, stream_events

MODELS = {"object": "list", "data": [{"id": "gpt-4o-mini", "object": "model", "created": 1, "owned_by": "x"}]}
CACHE_ON = [("x-sameflight-cache", "on")]


async def ask_models(stage: Stage, key: str = KEY) -> bytes:
    """One request for the list of models that the cache can answer."""
    response = await stage.ask(path="/v1/models", method="GET", key=key)
    await response.read_end()
    assert response.status == 200, response.body
    return response.body


async def fill_models(stage: Stage, key: str = KEY, value: object = MODELS) -> None:
    """One request for the list of models that goes upstream and fills the cache."""
    response = await stage.ask(path="/v1/models", method="GET", key=key)
    await (await stage.upstream.next_call()).answer_json(value)
    await response.read_end()


async def test_a_fresh_list_of_models_is_answered_without_a_flight(frozen_stage: Stage) -> None:
    """TC115: a hit starts nothing."""
    await fill_models(frozen_stage)
    started = frozen_stage.app.table.started

    for _ in range(3):
        await ask_models(frozen_stage)

    assert frozen_stage.upstream.calls == 1
    assert frozen_stage.app.table.started == started


async def test_a_hit_says_its_age_and_what_is_left(frozen_stage: Stage, frozen_clock: FrozenClock) -> None:
    """TC107: Age and Cache-Status follow the clock."""
    await fill_models(frozen_stage)
    frozen_clock.advance(10)
    response = await frozen_stage.ask(path="/v1/models", method="GET")
    await response.read_end()
    status = response.header("cache-status") or ""

    assert response.header("age") == "10"
    assert status.startswith("sameflight; hit; ttl=")
    assert 43 <= int(status.rpartition("=")[2]) <= 56


async def test_a_stale_list_is_given_at_once_and_renewed_by_one_call(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """TC122: a hundred callers of an outlived list cost one call behind their answers."""
    await fill_models(frozen_stage)
    frozen_clock.advance(120)
    bodies = {await ask_models(frozen_stage) for _ in range(100)}
    call = await frozen_stage.upstream.next_call()
    renewed = {**MODELS, "data": []}
    await call.answer_json(renewed)
    await frozen_stage.settled()
    after = await ask_models(frozen_stage)

    assert len(bodies) == 1
    assert frozen_stage.upstream.calls == 2
    assert after == b'{"object":"list","data":[]}'


async def test_a_failing_renewal_is_neither_hammered_nor_forgotten(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """TC123: the stale list goes on; the next try waits, and comes."""
    await fill_models(frozen_stage)
    frozen_clock.advance(120)
    await ask_models(frozen_stage)
    await (await frozen_stage.upstream.next_call()).answer_json({"error": {"message": "no"}}, status=500)
    await frozen_stage.settled()
    for _ in range(20):
        await ask_models(frozen_stage)
    held_off = frozen_stage.upstream.calls
    frozen_clock.advance(5)
    await ask_models(frozen_stage)
    await (await frozen_stage.upstream.next_call()).answer_json(MODELS)
    await frozen_stage.settled()

    assert held_off == 2
    assert frozen_stage.upstream.calls == 3


async def test_an_upstream_that_is_down_is_masked_by_the_stale_list(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """Row 78: a list that is too old to serve still beats a 502."""
    await fill_models(frozen_stage)
    frozen_clock.advance(3600)
    response = await frozen_stage.ask(path="/v1/models", method="GET")
    (await frozen_stage.upstream.next_call()).reset()
    await response.read_end()

    assert response.status == 200
    assert response.json() == MODELS
    assert "stale-if-error" in (response.header("cache-status") or "")


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refusal_is_not_masked_by_a_stale_list(
    frozen_stage: Stage, frozen_clock: FrozenClock, status: int
) -> None:
    """TC125: what an upstream refuses, it means."""
    await fill_models(frozen_stage)
    frozen_clock.advance(3600)
    response = await frozen_stage.ask(path="/v1/models", method="GET")
    await (await frozen_stage.upstream.next_call()).answer_json({"error": {"message": "no"}}, status=status)
    await response.read_end()

    assert response.status == status


async def test_two_credentials_have_two_lists(frozen_stage: Stage) -> None:
    """TC132: a list belongs to whoever may see it."""
    await fill_models(frozen_stage, KEY)
    await fill_models(frozen_stage, OTHER_KEY, {**MODELS, "data": []})

    assert await ask_models(frozen_stage, KEY) != await ask_models(frozen_stage, OTHER_KEY)
    assert frozen_stage.upstream.calls == 2


async def test_a_generated_answer_is_kept_only_when_asked_for(stage: Stage) -> None:
    """Nobody gets an old answer by default."""
    for _ in range(2):
        response = await stage.ask(chat())
        await (await stage.upstream.next_call()).answer_json(completion())
        await response.read_end()
    response = await stage.ask(chat(), headers=CACHE_ON)
    await (await stage.upstream.next_call()).answer_json(completion("kept"))
    await response.read_end()
    again = await stage.ask(chat(), headers=CACHE_ON)
    await again.read_end()

    assert "stored" in (response.header("cache-status") or "")
    assert again.json() == completion("kept")
    assert stage.upstream.calls == 3


async def test_a_stored_stream_is_replayed_as_the_same_stream(stage: Stage) -> None:
    """TC133: bytes equal the original, the terminal event comes once."""
    events = stream_events("Hel", "lo")
    response = await stage.ask(chat(stream=True), headers=CACHE_ON)
    await (await stage.upstream.next_call()).answer_sse(events)
    await response.read_end()
    await stage.settled()
    again = await stage.ask(chat(stream=True), headers=CACHE_ON)
    await again.read_end()

    assert again.body == response.body == as_bytes(events)
    assert again.header("content-type") == response.header("content-type")
    assert (again.header("cache-status") or "").startswith("sameflight; hit")
    assert stage.upstream.calls == 1


@pytest.mark.parametrize("broken", ["no_terminal", "cut", "error_event"])
async def test_a_stream_that_did_not_end_properly_is_never_stored(stage: Stage, broken: str) -> None:
    """TC120: half an answer is given to those who waited and to nobody else."""
    response = await stage.ask(chat(stream=True), headers=CACHE_ON)
    call = await stage.upstream.next_call()
    await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
    await call.send(as_bytes(stream_events("a")[:1]))
    if broken == "error_event":
        await call.send(as_bytes([{"error": {"message": "overloaded"}}]))
    if broken == "cut":
        call.reset()
    else:
        await call.end()
    await response.read_end()
    await stage.settled()

    assert stage.app.hot.entries == 0


async def test_an_oversized_answer_is_delivered_and_not_stored() -> None:
    """TC121: the bound of an entry is no bound of an answer."""
    async with Stage(max_entry_bytes="4KiB") as stage:
        response = await stage.ask(chat(), headers=CACHE_ON)
        await (await stage.upstream.next_call()).answer_json(completion("x" * 8192))
        await response.read_end()
        await stage.at_rest()

        assert response.json() == completion("x" * 8192)
        assert stage.app.hot.entries == 0


async def test_a_purge_during_a_flight_keeps_its_answer_out(stage: Stage) -> None:
    """TC118: the answer is delivered, not stored."""
    response = await stage.ask(chat(), headers=CACHE_ON)
    call = await stage.upstream.next_call()
    stage.app.hot.purge()
    await call.answer_json(completion())
    await response.read_end()
    await stage.settled()

    assert response.status == 200
    assert stage.app.hot.entries == 0


async def test_refresh_renews_the_entry_and_only_never_goes_upstream(stage: Stage) -> None:
    """`x-sameflight-cache: refresh` replaces what is kept; `only` answers from it or 504."""
    empty = await stage.ask(chat(), headers=[("x-sameflight-cache", "only")])
    await empty.read_end()
    for text in ("old", "new"):
        response = await stage.ask(chat(), headers=[("x-sameflight-cache", "refresh")])
        await (await stage.upstream.next_call()).answer_json(completion(text))
        await response.read_end()
        await stage.settled()
    kept = await stage.ask(chat(), headers=[("x-sameflight-cache", "only")])
    await kept.read_end()

    assert empty.status == 504
    assert empty.json()["error"]["code"] == "not_cached"
    assert kept.json() == completion("new")
    assert stage.upstream.calls == 2


async def test_a_lower_ttl_of_the_request_ends_the_entry_earlier(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """`x-sameflight-cache-ttl` only lowers."""
    headers = [*CACHE_ON, ("x-sameflight-cache-ttl", "2")]
    response = await frozen_stage.ask(chat(), headers=headers)
    await (await frozen_stage.upstream.next_call()).answer_json(completion("first"))
    await response.read_end()
    await frozen_stage.settled()
    frozen_clock.advance(3)
    again = await frozen_stage.ask(chat(), headers=headers)
    await (await frozen_stage.upstream.next_call()).answer_json(completion("second"))
    await again.read_end()

    assert again.json() == completion("second")


async def test_an_unknown_model_is_asked_for_once_in_fifteen_seconds(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """A 404 about the model is remembered for a moment, for the caller that got it."""
    missing = {"error": {"message": "no such model", "type": "x", "param": None, "code": "model_not_found"}}
    first = await frozen_stage.ask(chat())
    await (await frozen_stage.upstream.next_call()).answer_json(missing, status=404)
    await first.read_end()
    second = await frozen_stage.ask(chat())
    await second.read_end()
    frozen_clock.advance(20)
    third = await frozen_stage.ask(chat())
    await (await frozen_stage.upstream.next_call()).answer_json(completion())
    await third.read_end()

    assert [first.status, second.status, third.status] == [404, 404, 200]
    assert second.json() == missing
    assert frozen_stage.upstream.calls == 2


async def test_the_second_level_answers_what_the_first_has_lost() -> None:
    """TC008: it is asked once for each flight, and a hit makes no upstream call."""
    async with Stage(cache_url="memory://") as stage:
        response = await stage.ask(chat(), headers=CACHE_ON)
        await (await stage.upstream.next_call()).answer_json(completion("shared level"))
        await response.read_end()
        await stage.settled()
        stage.app.hot.purge()
        responses = [await stage.ask(chat(), headers=CACHE_ON) for _ in range(20)]
        bodies = {(await response.read_end()).body for response in responses}
        await stage.at_rest()

        assert len(bodies) == 1
        assert stage.upstream.calls == 1


async def test_a_scope_cannot_evict_everybody_elses_entries(stage: Stage) -> None:
    """One caller that fills the cache gives up its own entries first."""
    await fill_models(stage, OTHER_KEY)
    hot = stage.app.hot
    hot.max_bytes, hot.share_bytes = 40_000, 20_000
    for number in range(30):
        response = await stage.ask(chat(str(number)), headers=CACHE_ON)
        await (await stage.upstream.next_call()).answer_json(completion("x" * 1000))
        await response.read_end()
    await wait_until(lambda: hot.evictions > 0, "something was evicted")
    calls = stage.upstream.calls
    await ask_models(stage, OTHER_KEY)

    assert stage.upstream.calls == calls
