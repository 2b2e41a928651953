"""Callers leave: what is left of their flights, and that nobody else can tell."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path

import pytest

from proxy.flight.flight import Phase
from tests.fakes.client import RawClient
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks, wait_until
from tests.fakes.upstream import Call
from tests.scenes.stage import KEY, Stage, as_bytes, chat, completion, stream_events

SSE = [("content-type", "text/event-stream")]
RETRY = [("x-stainless-retry-count", "1")]
EVENTS = stream_events("one", "two", "three", "four")
FIRST, SECOND, REST = as_bytes(EVENTS[:1]), as_bytes(EVENTS[1:2]), as_bytes(EVENTS[2:])
WHOLE = as_bytes(EVENTS)


async def leave(client: RawClient, how: str) -> None:
    """Hang up politely or not."""
    await (client.reset() if how == "reset" else client.close())


async def begin(call: Call) -> None:
    """The head of a stream and nothing else."""
    await call.send_head(200, SSE, chunked=True)


async def complete(call: Call, rest: bytes) -> None:
    await call.send(rest)
    await call.end()


async def swept(stage: Stage) -> None:
    """Until every deadline that is due has fired."""
    runs = stage.app.janitor.durations["deadlines"].runs
    await wait_until(lambda: stage.app.janitor.durations["deadlines"].runs > runs + 1, "the deadlines were swept")


def idle_upstream_connections(stage: Stage) -> int:
    return sum(pool["idle"] for pool in stage.app.transport.describe()["pools"])


def catalog(tmp_path: Path, text: str) -> str:
    """A catalog file with these rules for chat completions."""
    path = tmp_path / "catalog.yaml"
    path.write_text(f"routes:\n  chat.completions: {text}\n")
    return str(path)


# -- one of several leaves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("streams", [False, True])
async def test_the_leader_leaves_before_the_head_and_the_followers_see_nothing(
    stage: Stage, streams: bool, how: str
) -> None:
    """TC045: the flight belongs to nobody, so it outlives the caller it was started for."""
    responses = await stage.ask_many(3, chat(stream=streams))
    call = await stage.upstream.next_call()
    await leave(stage.clients[0], how)
    await stage.attached(2)
    if streams:
        await call.answer_sse(EVENTS)
    else:
        await call.answer_json(completion())
    for response in responses[1:]:
        await response.read_end()

    expected = WHOLE if streams else responses[1].body
    assert [response.body for response in responses[1:]] == [expected, expected]
    assert all(response.ended for response in responses[1:])
    assert stage.upstream.calls == 1


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("sent", [b"", FIRST, FIRST + SECOND[:9], FIRST + SECOND, WHOLE])
async def test_the_leader_leaves_in_any_phase_of_a_stream_and_the_followers_get_every_byte(
    stage: Stage, sent: bytes, how: str
) -> None:
    """TC046: after the head, after an event, inside an event, after the terminal event but before the end."""
    responses = await stage.ask_many(3, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    for response in responses:
        await response.read_head()
    if sent:
        await call.send(sent)
        await responses[0].read_until(sent)
    await leave(stage.clients[0], how)
    await stage.attached(2)
    await complete(call, WHOLE[len(sent) :])
    for response in responses[1:]:
        await response.read_end()

    assert [response.body for response in responses[1:]] == [WHOLE, WHOLE]
    assert all(response.ended for response in responses[1:])
    assert stage.upstream.calls == 1


async def test_a_follower_leaves_and_the_leader_is_unaffected(stage: Stage) -> None:
    """TC047: leaving is invisible in both directions."""
    responses = await stage.ask_many(2, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(FIRST)
    await responses[1].read_until(FIRST)
    await stage.clients[1].reset()
    await stage.attached(1)
    await complete(call, WHOLE[len(FIRST) :])

    assert (await responses[0].read_end()).body == WHOLE
    assert stage.upstream.aborted == 0


async def test_a_follower_waiting_for_the_head_leaves_alone(stage: Stage) -> None:
    """TC056, first case: its departure is noticed at once, without a write."""
    responses = await stage.ask_many(3, chat())
    call = await stage.upstream.next_call()
    await stage.clients[2].reset()
    await stage.attached(2)
    await call.answer_json(completion())
    for response in responses[:2]:
        await response.read_end()

    assert [response.json() for response in responses[:2]] == [completion()] * 2


async def test_a_follower_waiting_for_a_chunk_leaves_alone(stage: Stage) -> None:
    """TC056, second case: between two events."""
    responses = await stage.ask_many(3, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(FIRST)
    for response in responses:
        await response.read_until(FIRST)
    await stage.clients[1].reset()
    await stage.attached(2)
    await complete(call, WHOLE[len(FIRST) :])
    bodies = [(await responses[place].read_end()).body for place in (0, 2)]

    assert bodies == [WHOLE, WHOLE]


async def test_a_follower_that_is_held_up_inside_a_write_leaves_alone(stage: Stage) -> None:
    """TC056, third case: its buffers are full, its place on the flight goes with it."""
    fast = await stage.ask(chat(stream=True))
    slow_client = await stage.client(receive_buffer_bytes=4096)
    await stage.ask(chat(stream=True), client=slow_client)
    await stage.attached(2)
    slow_client.pause()
    call = await stage.upstream.next_call()
    await begin(call)
    filler = b": " + b"x" * 65_533 + b"\n"
    [flight] = stage.app.table.live
    sent = b""
    while not flight.paused:
        await call.send(filler)
        sent += filler
        await fast.read_until(filler)
    await slow_client.reset()
    await stage.attached(1)
    await complete(call, b"\n" + WHOLE)

    assert (await fast.read_end()).body == sent + b"\n" + WHOLE
    assert stage.upstream.aborted == 0


# -- all leave a stream ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [None, b"", FIRST, FIRST + SECOND[:9]])
@pytest.mark.parametrize("callers", [1, 3])
async def test_everybody_leaves_a_stream_one_by_one_and_the_upstream_is_closed_once(
    stage: Stage, callers: int, sent: bytes | None
) -> None:
    """TC048: the call is cancelled with the last of them, and its connection is not used again."""
    responses = await stage.ask_many(callers, chat(stream=True))
    call = await stage.upstream.next_call()
    if sent is not None:
        await begin(call)
        await call.send(sent)
        for response in responses:
            await response.read_head()
    for left, client in enumerate(stage.clients, 1):
        assert not call.gone
        await client.close()
        await stage.attached(callers - left)
    await call.client_gone()

    assert stage.upstream.aborted == 1
    assert idle_upstream_connections(stage) == 0
    assert stage.series('flights_total{ending="abandoned"}') == 1


async def test_everybody_leaves_a_stream_in_one_tick_and_the_upstream_is_closed_once(stage: Stage) -> None:
    """TC049: the same, when nobody is left to be the last."""
    await stage.ask_many(5, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    for client in stage.clients:
        client._transport.abort()
    await call.client_gone()
    await stage.settled()

    assert stage.upstream.aborted == 1
    assert idle_upstream_connections(stage) == 0


async def test_an_abandoned_stream_is_closed_upstream_within_a_tenth_of_a_second(stage: Stage) -> None:
    """What nobody reads is not paid for: measured over twenty streams, from the hang-up to the upstream's end."""
    loop = asyncio.get_running_loop()
    took_s: list[float] = []
    for _ in range(20):
        client = await stage.client()
        await stage.ask(chat(stream=True), client=client)
        call = await stage.upstream.next_call()
        await begin(call)
        await stage.attached(1)
        left_at = loop.time()
        await client.reset()
        await call.client_gone()
        took_s.append(loop.time() - left_at)

    assert statistics.median(took_s) < 0.1
    assert stage.upstream.aborted == 20


@pytest.mark.parametrize("first", ["leave", "join"])
async def test_a_newcomer_in_the_tick_of_the_last_departure_never_meets_the_dying_flight(
    stage: Stage, first: str
) -> None:
    """TC050: it joins before the cancellation or gets a flight of its own, and its answer is whole."""
    for _ in range(10):
        leaver, newcomer = await stage.client(), await stage.client()
        await stage.ask(chat(stream=True), client=leaver)
        held = await stage.upstream.next_call()
        await begin(held)
        await stage.attached(1)
        seen, joined = len(stage.upstream.history), stage.app.table.joins.get("STREAMING", 0)
        response = newcomer.expect("POST")
        request = newcomer.make_request(
            "POST", "/v1/chat/completions", [("authorization", f"Bearer {KEY}")], chat(stream=True)
        )
        for step in (first, "join" if first == "leave" else "leave"):
            if step == "leave":
                leaver._transport.abort()
            else:
                newcomer._transport.write(request)
        await wait_until(
            lambda seen=seen, joined=joined, held=held: (len(stage.upstream.history) > seen and held.gone)
            or (stage.app.table.joins.get("STREAMING", 0) > joined and stage.app.table.subscribers == 1),
            "the newcomer is on a flight",
        )
        if held.gone:
            await (await stage.upstream.next_call()).answer_sse(EVENTS)
        else:
            await complete(held, WHOLE)
        await response.read_end()

        assert (response.status, response.body, response.ended) == (200, WHOLE, True)


async def test_everybody_leaves_after_the_terminal_event_and_the_connection_is_kept(stage: Stage) -> None:
    """An answer that lacks only its framing is worth a moment: the connection is reused instead of closed."""
    response = await stage.ask(chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(WHOLE)
    await response.read_until(b"[DONE]\n\n")
    await stage.clients[0].close()
    await call.end()
    await stage.settled()
    [line] = await stage.access_lines(1)

    assert stage.upstream.aborted == 0
    assert idle_upstream_connections(stage) == 1
    assert line["outcome"] == "ok"


# -- all leave a whole answer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [(), RETRY])
async def test_a_whole_answer_lingers_and_a_retry_finds_it(
    frozen_stage: Stage, frozen_clock: FrozenClock, headers: list[tuple[str, str]]
) -> None:
    """TC051: an SDK that timed out and asks again gets the call that is under way."""
    stage = frozen_stage
    await stage.ask_many(2, chat())
    call = await stage.upstream.next_call()
    for client in stage.clients:
        await client.reset()
    await wait_until(lambda: stage.app.table.lingering == 1, "the flight lingers")
    frozen_clock.advance(2.9)
    await swept(stage)
    [retry] = await stage.ask_many(1, chat(), headers=headers)
    frozen_clock.advance(60.0)
    await swept(stage)
    await call.answer_json(completion("worth the wait"))
    await retry.read_end()

    assert retry.json() == completion("worth the wait")
    assert retry.header("cache-status") == "sameflight; fwd=miss; collapsed"
    assert stage.upstream.calls == 1
    assert stage.series('linger_total{result="joined"}') == 1


async def test_a_lingering_stream_is_replayed_from_its_first_byte(tmp_path: Path, frozen_clock: FrozenClock) -> None:
    """TC051 for streams, where an operator asked for it: what came while nobody read is not lost."""
    config = catalog(tmp_path, "{leave: linger, linger_s: 5}")
    async with Stage(clock=frozen_clock, config=config) as stage:
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await begin(call)
        await call.send(FIRST)
        await response.read_until(FIRST)
        await stage.clients[0].reset()
        await wait_until(lambda: stage.app.table.lingering == 1, "the flight lingers")
        await call.send(SECOND)
        [retry] = await stage.ask_many(1, chat(stream=True), headers=RETRY)
        assert await retry.read_until(SECOND) == FIRST + SECOND
        await complete(call, REST)
        await retry.read_end()
        await stage.at_rest()

        assert retry.body == WHOLE
        assert stage.upstream.calls == 1


async def test_a_whole_answer_nobody_came_back_for_is_cancelled_after_the_linger(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """TC053: the wait for a retry is bounded."""
    stage = frozen_stage
    await stage.ask_many(2, chat())
    call = await stage.upstream.next_call()
    for client in stage.clients:
        await client.close()
    await wait_until(lambda: stage.app.table.lingering == 1, "the flight lingers")
    frozen_clock.advance(2.9)
    await swept(stage)
    assert not call.gone
    frozen_clock.advance(0.2)
    await call.client_gone()
    await stage.settled()

    assert stage.upstream.aborted == 1
    assert idle_upstream_connections(stage) == 0
    assert stage.series('linger_total{result="cancelled"}') == 1


@pytest.mark.parametrize("first", ["timer", "join"])
async def test_the_end_of_the_linger_and_a_newcomer_in_one_tick_lose_nobody(
    frozen_stage: Stage, frozen_clock: FrozenClock, first: str
) -> None:
    """TC052: whichever comes first, the newcomer gets an answer and the upstream is closed at most once."""
    stage = frozen_stage
    await stage.ask(chat())
    call = await stage.upstream.next_call()
    await stage.attached(1)
    await stage.clients[0].reset()
    await wait_until(lambda: stage.app.table.lingering == 1, "the flight lingers")
    newcomer = await stage.client()
    response = newcomer.expect("POST")
    request = newcomer.make_request("POST", "/v1/chat/completions", [("authorization", f"Bearer {KEY}")], chat())
    if first == "timer":
        frozen_clock.advance(3.1)
        stage.app.deadlines.sweep()
        newcomer._transport.write(request)
    else:
        newcomer._transport.write(request)
        frozen_clock.advance(3.1)
    await stage.attached(1)
    if call.gone or first == "timer":
        await call.client_gone()
        call = await stage.upstream.next_call()
    await call.answer_json(completion("after all"))
    await response.read_end()

    assert response.json() == completion("after all")
    assert stage.upstream.aborted + 1 == stage.upstream.calls


async def test_lingering_is_budgeted_for_each_credential(frozen_stage: Stage) -> None:
    """TC054: a caller that hangs up on everything cannot keep more than a hundred calls running for nobody."""
    stage = frozen_stage
    for number in range(101):
        await stage.ask(chat(str(number)))
    await stage.upstream.seen(101)
    await stage.attached(101)
    for client in stage.clients:
        client._transport.abort()
    await stage.attached(0)
    await wait_until(lambda: stage.upstream.aborted == 1, "the one over the budget was cancelled")

    assert stage.app.table.lingering == 100
    assert stage.series('linger_total{result="over_budget"}') == 1

    for call in stage.upstream.history:
        if not call.gone:
            await call.answer_json(completion())
    await stage.settled()
    assert stage.series('linger_total{result="finished"}') == 100


async def test_an_answer_to_be_cached_is_finished_after_everybody_left(tmp_path: Path) -> None:
    """TC055: with the rule ``finish``, the rest is fetched and the next caller has a hit."""
    async with Stage(config=catalog(tmp_path, "{leave: finish, cache: {ttl_s: 60}}")) as stage:
        responses = await stage.ask_many(2, chat(stream=True))
        call = await stage.upstream.next_call()
        await begin(call)
        await call.send(FIRST + SECOND)
        for response in responses:
            await response.read_until(SECOND)
        for client in stage.clients:
            await client.reset()
        await stage.attached(0)
        await complete(call, REST)
        await stage.settled()
        later = await stage.ask(chat(stream=True))
        await later.read_end()
        await stage.at_rest()

        assert later.body == WHOLE
        assert (later.header("cache-status") or "").startswith("sameflight; hit")
        assert stage.upstream.calls == 1


async def test_a_call_that_everybody_left_before_its_head_is_still_paid_for_once(frozen_stage: Stage) -> None:
    """TC110: without a payer the upstream's usage goes to the overhead, and no caller's line claims it."""
    stage = frozen_stage
    await stage.ask_many(2, chat())
    call = await stage.upstream.next_call()
    for client in stage.clients:
        await client.reset()
    await wait_until(lambda: stage.app.table.lingering == 1, "the flight lingers")
    await call.answer_json(completion(prompt_tokens=11, completion_tokens=13))
    await stage.settled()
    lines = await stage.access_lines(2)

    assert stage.series("tokens_total") == 24
    assert [(line["outcome"], line["cost_usd"], line["tokens_saved"]) for line in lines] == [
        ("client_gone", 0.0, 0)
    ] * 2


async def test_a_stream_that_everybody_left_is_booked_with_what_came_until_then(stage: Stage) -> None:
    """TC053, TC110 for streams: the upstream generated it, so it has its price."""
    response = await stage.ask(chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(FIRST + SECOND)
    await response.read_until(SECOND)
    await stage.clients[0].reset()
    await call.client_gone()
    await stage.settled()

    tokens = {labels["direction"]: value for labels, value in stage.app.metrics.tokens_total.rows()}
    assert tokens["input"] > 0
    assert tokens["output"] > 0


# -- the flight itself is ended --------------------------------------------------------------------------------------


async def test_a_flight_cancelled_from_outside_is_an_error_value_for_everybody(stage: Stage) -> None:
    """TC058: before the head; no caller's task learns of the cancellation but by an answer."""
    responses = await stage.ask_many(3, chat())
    await stage.upstream.next_call()
    [flight] = stage.app.table.live
    flight.task.cancel()
    for response in responses:
        await response.read_end()
    await stage.settled()

    assert [response.status for response in responses] == [503] * 3
    assert {response.json()["error"]["code"] for response in responses} == {"draining"}
    assert stage.app.server.running == 0


async def test_a_stream_cancelled_from_outside_ends_with_an_error_event_for_everybody(stage: Stage) -> None:
    """TC058: after the head; the stream never looks whole."""
    responses = await stage.ask_many(3, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(FIRST)
    for response in responses:
        await response.read_until(FIRST)
    [flight] = stage.app.table.live
    flight.task.cancel()
    for response in responses:
        await response.read_end()

    assert flight.phase is Phase.ENDED
    assert all(response.truncated and not response.ended for response in responses)
    assert len({response.body for response in responses}) == 1
    [first, last] = responses[0].events()
    assert first + b"\n\n" == FIRST
    assert b'"draining"' in last


@pytest.mark.parametrize("half_close_aborts", [True, False])
async def test_a_half_closed_client_is_gone_or_served_as_the_setting_says(half_close_aborts: bool) -> None:
    """FIN alone is a departure by default; with the setting off, the answer is still delivered."""
    async with Stage(abort_on_half_close=half_close_aborts) as stage:
        [response] = await stage.ask_many(1, chat(stream=True))
        call = await stage.upstream.next_call()
        await begin(call)
        stage.clients[0].shutdown_write()
        if half_close_aborts:
            await call.client_gone()
        else:
            await run_ticks(50)
            await complete(call, WHOLE)
            await response.read_end()
        await stage.at_rest()

        assert stage.upstream.aborted == int(half_close_aborts)
        assert response.ended is not half_close_aborts


async def test_references_are_right_after_every_second_caller_left(stage: Stage) -> None:
    """However callers go, what is counted is who is there."""
    responses = await stage.ask_many(20, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    for place, client in enumerate(stage.clients):
        if place % 2:
            await leave(client, "reset" if place % 4 == 1 else "close")
    await stage.attached(10)
    await wait_until(lambda: stage.app.server.running == 10, "ten exchanges are running")
    await complete(call, WHOLE)
    for response in responses[::2]:
        await response.read_end()

    assert {response.body for response in responses[::2]} == {WHOLE}
