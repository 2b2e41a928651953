"""Callers run out of patience, come back, and name their operations."""

from __future__ import annotations

import json

import pytest

from tests.fakes.clock import FrozenClock
from tests.fakes.gates import wait_until
from tests.scenes.stage import (
    KEY,
    MESSAGES,
    OTHER_KEY,
    Header,
    Stage,
    as_bytes,
    chat,
    completion,
    stream_events,
)

SSE = [("content-type", "text/event-stream")]
EVENTS = stream_events("one", "two", "three")
WHOLE = as_bytes(EVENTS)
FIRST = as_bytes(EVENTS[:1])
RETRY: Header = ("x-stainless-retry-count", "1")


def patience(seconds: float) -> Header:
    return ("x-stainless-read-timeout", f"{seconds:g}")


def named(key: str) -> Header:
    return ("idempotency-key", key)


async def swept(stage: Stage) -> None:
    """Until every deadline that is due has fired."""
    runs = stage.app.janitor.durations["deadlines"].runs
    await wait_until(lambda: stage.app.janitor.durations["deadlines"].runs > runs + 1, "the deadlines were swept")


# -- patience --------------------------------------------------------------------------------------------------------


async def test_a_caller_of_little_patience_is_told_so_and_the_other_gets_the_answer(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """TC062: 100 ms for the one, no limit for the other, one call."""
    stage = frozen_stage
    [hasty] = await stage.ask_many(1, chat(), headers=[patience(0.1)])
    [calm] = await stage.ask_many(1, chat())
    call = await stage.upstream.next_call()
    frozen_clock.advance(0.2)
    await hasty.read_end()
    assert calm.status == 0
    frozen_clock.advance(0.8)
    await call.answer_json(completion())
    await calm.read_end()

    assert hasty.status == 504
    assert hasty.json()["error"] == {
        "message": "No answer came within the time the caller is willing to wait.",
        "type": "timeout_error",
        "param": None,
        "code": "caller_deadline",
    }
    assert calm.json() == completion()
    assert stage.upstream.calls == 1


async def test_the_leaders_time_limit_bounds_the_leader_and_the_followers_theirs(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """TC063: the flight keeps to the route's time-outs, whoever started it."""
    stage = frozen_stage
    [leader] = await stage.ask_many(1, chat(), headers=[patience(1)])
    [follower] = await stage.ask_many(1, chat(), headers=[patience(60)])
    [unlimited] = await stage.ask_many(1, chat())
    call = await stage.upstream.next_call()
    frozen_clock.advance(0.9)
    await swept(stage)
    assert leader.status == 0
    frozen_clock.advance(0.2)
    await leader.read_end()
    frozen_clock.advance(57.8)
    await swept(stage)
    assert follower.status == 0
    frozen_clock.advance(2.2)
    await follower.read_end()
    frozen_clock.advance(500.0)
    await swept(stage)
    await call.answer_json(completion())
    await unlimited.read_end()

    assert [response.status for response in (leader, follower, unlimited)] == [504, 504, 200]
    assert stage.upstream.aborted == 0


async def test_the_refusal_comes_with_the_callers_time_limit(frozen_stage: Stage, frozen_clock: FrozenClock) -> None:
    """Give or take a twentieth of it: neither long before nor long after the caller would hang up by itself."""
    stage = frozen_stage
    [response] = await stage.ask_many(1, chat(), headers=[patience(10)])
    await stage.upstream.next_call()
    frozen_clock.advance(9.4)
    await swept(stage)
    assert response.status == 0
    frozen_clock.advance(1.2)
    await response.read_end()

    assert response.status == 504
    assert response.ended
    assert stage.app.table.lingering == 1
    await stage.upstream.history[0].answer_json(completion())


async def test_a_hasty_caller_of_claude_is_told_in_its_dialect(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """504 with Anthropic's object; an SDK raises the right exception from it."""
    stage = frozen_stage
    body = {"model": "claude-sonnet-4-5", "max_tokens": 1, "messages": []}
    headers = [("x-api-key", KEY), ("anthropic-version", "2023-06-01"), ("x-stainless-timeout", "2")]
    [response] = await stage.ask_many(1, body, path=MESSAGES, key=None, headers=headers)
    call = await stage.upstream.next_call()
    frozen_clock.advance(2.2)
    await response.read_end()
    await call.answer_json({"type": "message"})

    assert response.status == 504
    assert (response.json()["type"], response.json()["error"]["type"]) == ("error", "timeout_error")


async def test_the_retry_of_a_caller_out_of_patience_joins_the_lingering_flight(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """What an SDK does by itself: a time-out, a marked retry, and the answer to the first call."""
    stage = frozen_stage
    client = await stage.client()
    first = await stage.ask(chat(), headers=[patience(1), ("x-stainless-retry-count", "0")], client=client)
    call = await stage.upstream.next_call()
    frozen_clock.advance(1.2)
    await first.read_end()
    await wait_until(lambda: stage.app.table.lingering == 1, "the flight lingers")
    frozen_clock.advance(0.8)
    second = await stage.ask(chat(), headers=[patience(1), RETRY], client=client)
    await stage.attached(1)
    await call.answer_json(completion("one call"))
    await second.read_end()
    lines = await stage.access_lines(2)

    assert (first.status, second.status) == (504, 200)
    assert second.json() == completion("one call")
    assert stage.upstream.calls == 1
    assert [(line["outcome"], line["client_retry_count"]) for line in lines] == [("upstream_failed", 0), ("ok", 1)]


async def test_patience_ends_with_the_first_byte_of_a_stream(frozen_stage: Stage, frozen_clock: FrozenClock) -> None:
    """A read time-out is about silence, and the answer has begun."""
    stage = frozen_stage
    [response] = await stage.ask_many(1, chat(stream=True), headers=[patience(5)])
    call = await stage.upstream.next_call()
    await call.send_head(200, SSE, chunked=True)
    await call.send(FIRST)
    await response.read_until(FIRST)
    frozen_clock.advance(60.0)
    await swept(stage)
    await call.send(WHOLE[len(FIRST) :])
    await call.end()

    assert (await response.read_end()).body == WHOLE
    assert response.ended


async def test_a_hasty_caller_of_a_stream_gets_a_status_and_no_event(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """Nothing was sent yet, so the failure can be a real 504; alone, its stream is cancelled upstream."""
    stage = frozen_stage
    [response] = await stage.ask_many(1, chat(stream=True), headers=[patience(5)])
    call = await stage.upstream.next_call()
    frozen_clock.advance(5.4)
    await response.read_end()
    await call.client_gone()

    assert response.status == 504
    assert response.json()["error"]["code"] == "caller_deadline"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e3", "banana", "", "9" * 40])
async def test_a_time_limit_that_makes_no_sense_is_none(
    frozen_stage: Stage, frozen_clock: FrozenClock, value: str
) -> None:
    """An SDK that says ``0`` or rubbish means no limit, and nobody is cut off by a typing error."""
    stage = frozen_stage
    [response] = await stage.ask_many(1, chat(), headers=[("x-stainless-read-timeout", value)])
    call = await stage.upstream.next_call()
    frozen_clock.advance(500.0)
    await swept(stage)
    await call.answer_json(completion())

    assert (await response.read_end()).json() == completion()


async def test_a_hit_is_not_kept_from_a_caller_without_patience(frozen_stage: Stage) -> None:
    """What is there already needs no waiting."""
    stage = frozen_stage
    cached = ("x-sameflight-cache", "on")
    first = await stage.ask(chat(), headers=[cached])
    await (await stage.upstream.next_call()).answer_json(completion())
    await first.read_end()
    hit = await stage.ask(chat(), headers=[cached, patience(0.01)])

    assert (await hit.read_end()).json() == completion()
    assert stage.upstream.calls == 1


# -- marked retries --------------------------------------------------------------------------------------------------


async def test_a_retry_prefers_the_flight_its_client_just_left(frozen_clock: FrozenClock) -> None:
    """TC051: of two flights of one key, the one that lingers is most likely the retry's own."""
    async with Stage(clock=frozen_clock, share="retries") as stage:
        leaver = await stage.client()
        await stage.ask(chat(), client=leaver)
        first = await stage.upstream.next_call()
        [second_caller] = [await stage.ask(chat())]
        second = await stage.upstream.next_call()
        await stage.attached(2)
        await leaver.reset()
        await wait_until(lambda: stage.app.table.lingering == 1, "the first flight lingers")
        retry = await stage.ask(chat(), headers=[RETRY])
        await stage.attached(2)
        await second.answer_json(completion("second"))
        await first.answer_json(completion("first"))
        await retry.read_end()
        await second_caller.read_end()
        await stage.at_rest()

        assert retry.json() == completion("first")
        assert second_caller.json() == completion("second")
        assert stage.upstream.calls == 2


async def test_a_retry_joins_a_running_stream_from_its_first_byte(stage: Stage) -> None:
    """TC051: what was delivered to the connection that broke is delivered again, in full."""
    responses = await stage.ask_many(2, chat(stream=True))
    call = await stage.upstream.next_call()
    await call.send_head(200, SSE, chunked=True)
    await call.send(FIRST)
    await responses[0].read_until(FIRST)
    await stage.clients[0].reset()
    await stage.attached(1)
    responses += await stage.ask_many(1, chat(stream=True), headers=[RETRY])
    await call.send(WHOLE[len(FIRST) :])
    await call.end()
    for response in responses[1:]:
        await response.read_end()

    assert [response.body for response in responses[1:]] == [WHOLE, WHOLE]
    assert stage.upstream.calls == 1


async def test_a_retry_that_finds_nothing_in_the_air_makes_its_own_call(stage: Stage) -> None:
    """The mark is a wish, never a reason to fail."""
    response = await stage.ask(chat(), headers=[RETRY])
    await (await stage.upstream.next_call()).answer_json(completion())
    await response.read_end()

    assert response.json() == completion()
    assert response.header("cache-status") == "sameflight; fwd=miss"


# -- idempotency keys ------------------------------------------------------------------------------------------------


async def test_two_names_of_one_request_are_two_operations(stage: Stage) -> None:
    """TC036: whoever names them apart wants them apart, and a third without a name is neither."""
    responses = [
        await stage.ask(chat(), headers=[named("a")]),
        await stage.ask(chat(), headers=[named("b")]),
        await stage.ask(chat()),
    ]
    for text in "123":
        await (await stage.upstream.next_call()).answer_json(completion(text))
    texts = [(await response.read_end()).json() for response in responses]

    assert texts == [completion("1"), completion("2"), completion("3")]


@pytest.mark.parametrize("profile", ["retries", "auto", "all"])
@pytest.mark.parametrize("streams", [False, True])
async def test_the_same_name_for_the_same_request_joins(profile: str, streams: bool) -> None:
    """TC037: an idempotency key marks a retry wherever sharing is on at all."""
    async with Stage(share=profile) as stage:
        responses = await stage.ask_many(3, chat(stream=streams), headers=[named("a")])
        call = await stage.upstream.next_call()
        if streams:
            await call.answer_sse(EVENTS)
        else:
            await call.answer_json(completion())
        for response in responses:
            await response.read_end()
        await stage.at_rest()

        assert len({response.body for response in responses}) == 1
        assert stage.upstream.calls == 1


async def test_the_same_name_for_another_request_is_unprocessable(stage: Stage) -> None:
    """TC038: 422, and the operation that has the name is not disturbed."""
    first = await stage.ask(chat("one"), headers=[named("a")])
    call = await stage.upstream.next_call()
    second = await stage.ask(chat("two"), headers=[named("a")])
    await second.read_end()
    await call.answer_json(completion())

    assert (second.status, second.json()["error"]["code"]) == (422, "idempotency_mismatch")
    assert (await first.read_end()).json() == completion()
    assert stage.upstream.calls == 1


async def test_two_callers_may_use_the_same_name(stage: Stage) -> None:
    """A name belongs to its credential's scope."""
    responses = [
        await stage.ask(chat(), headers=[named("a")]),
        await stage.ask(chat("else"), headers=[named("a")], key=OTHER_KEY),
    ]
    for _ in responses:
        await (await stage.upstream.next_call()).answer_json(completion())

    assert [(await response.read_end()).status for response in responses] == [200, 200]


async def test_an_operation_that_can_not_be_joined_any_more_is_busy(frozen_clock: FrozenClock) -> None:
    """TC039: 409 with ``Retry-After``; starting it again would be doing it twice."""
    async with Stage(clock=frozen_clock, max_join_age_s=30) as stage:
        first = await stage.ask(chat(), headers=[named("a")])
        call = await stage.upstream.next_call()
        frozen_clock.advance(31.0)
        second = await stage.ask(chat(), headers=[named("a")])
        await second.read_end()
        await call.answer_json(completion())
        await first.read_end()
        await stage.at_rest()

        assert (second.status, second.json()["error"]["code"]) == (409, "idempotency_in_progress")
        assert second.header("retry-after") == "1"
        assert second.header("x-should-retry") == "true"
        assert stage.upstream.calls == 1


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.long
async def test_a_finished_operation_is_replayed_while_it_is_remembered(
    frozen_clock: FrozenClock, streams: bool
) -> None:
    """TC040: with ``idempotency_ttl_s``, doing it again is reading the first result, marked as a hit; then it is
    over, and so is the claim on the name."""
    async with Stage(clock=frozen_clock, idempotency_ttl_s=3600) as stage:
        body = chat(stream=streams)
        first = await stage.ask(body, headers=[named("a")])
        call = await stage.upstream.next_call()
        await (call.answer_sse(EVENTS) if streams else call.answer_json(completion()))
        await first.read_end()
        frozen_clock.advance(6.0)
        await wait_until(
            lambda: stage.app.janitor.durations["idempotency"].runs, "the index noticed that the flight is over"
        )
        frozen_clock.advance(3194.0)
        again = await stage.ask(body, headers=[named("a")])
        await again.read_end()
        other = await stage.ask(chat("other"), headers=[named("a")])
        await other.read_end()
        unnamed = await stage.ask(body)
        call = await stage.upstream.next_call()
        await (call.answer_sse(EVENTS) if streams else call.answer_json(completion()))
        await unnamed.read_end()
        frozen_clock.advance(410.0)
        late = await stage.ask(chat("other"), headers=[named("a")])
        await (await stage.upstream.next_call()).answer_json(completion())
        await late.read_end()
        await stage.at_rest()

        assert again.body == first.body
        assert (again.header("cache-status") or "").startswith("sameflight; hit")
        assert again.header("age") == "3200"
        assert other.status == 422
        assert (unnamed.status, late.status) == (200, 200)
        assert stage.upstream.calls == 3


async def test_a_failed_operation_is_not_replayed() -> None:
    """TC040: only a whole success is a result; after a failure the retry is a new attempt."""
    async with Stage(idempotency_ttl_s=3600) as stage:
        for status in (500, 429):
            response = await stage.ask(chat(), headers=[named("a")])
            await (await stage.upstream.next_call()).answer_json({"error": {}}, status=status)
            assert (await response.read_end()).status == status
        broken = await stage.ask(chat(), headers=[named("a")])
        for _ in range(2):  # once on a connection that was used before, once on a fresh one
            (await stage.upstream.next_call()).reset()
        assert (await broken.read_end()).status == 502
        response = await stage.ask(chat(), headers=[named("a")])
        await (await stage.upstream.next_call()).answer_json(completion())
        await response.read_end()
        await stage.at_rest()

        assert response.json() == completion()
        assert stage.upstream.calls == 5


async def test_a_name_is_free_again_as_soon_as_its_operation_is_over_by_default(stage: Stage) -> None:
    """Without a time to live nothing is kept, neither the answer nor the claim."""
    for content in ("one", "two"):
        response = await stage.ask(chat(content), headers=[named("a")])
        await (await stage.upstream.next_call()).answer_json(completion(content))
        assert (await response.read_end()).json() == completion(content)


async def test_the_operation_of_a_caller_that_left_is_found_by_its_name(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """TC037 after a hang-up: the flight lingers and the name leads back to it."""
    stage = frozen_stage
    leaver = await stage.client()
    await stage.ask(chat(), headers=[named("a")], client=leaver)
    call = await stage.upstream.next_call()
    await stage.attached(1)
    await leaver.reset()
    await wait_until(lambda: stage.app.table.lingering == 1, "the flight lingers")
    [again] = await stage.ask_many(1, chat(), headers=[named("a")])
    await call.answer_json(completion())

    assert (await again.read_end()).json() == completion()
    assert stage.upstream.calls == 1


async def test_a_name_that_is_too_long_is_refused(stage: Stage) -> None:
    """To cut it would put two operations together; to drop it would share what was named apart."""
    response = await stage.ask(chat(), headers=[named("a" * 256)])
    await response.read_end()

    assert response.status == 400
    assert stage.upstream.calls == 0


async def test_a_name_is_not_sent_upstream_on_a_shared_call_and_is_on_a_private_one(stage: Stage) -> None:
    """Shared calls send nothing that is not in their list; whoever goes alone sends what it said."""
    shared = await stage.ask(chat(), headers=[named("a")])
    first = await stage.upstream.next_call()
    await first.answer_json(completion())
    alone = await stage.ask(chat(), headers=[named("a"), ("x-sameflight-share", "off")])
    second = await stage.upstream.next_call()
    await second.answer_json(completion())
    for response in (shared, alone):
        await response.read_end()

    assert first.header("idempotency-key") is None
    assert second.header("idempotency-key") == "a"


async def test_an_answer_too_large_to_keep_is_delivered_and_made_again() -> None:
    """Replay is bounded by the cache's largest entry; beyond it a name only protects while the call runs."""
    async with Stage(idempotency_ttl_s=3600, max_entry_bytes=1000) as stage:
        body = json.dumps(completion("x" * 2000)).encode()
        for _ in range(2):
            response = await stage.ask(chat(), headers=[named("a")])
            await (await stage.upstream.next_call()).answer(200, [("content-type", "application/json")], body)
            assert (await response.read_end()).body == body
        await stage.at_rest()

        assert stage.upstream.calls == 2
