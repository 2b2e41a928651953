"""Streams: every caller reads the bytes of a direct call, whenever it comes and however they arrive."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from proxy.edge.connection import Connection
from proxy.edge.lane import Lane
from tests.fakes.client import RawClient, RawResponse
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks, wait_until
from tests.fakes.upstream import Call
from tests.scenes.stage import CHAT, KEY, MESSAGES, Stage, as_bytes, chat, completion, stream_events

SSE = [("content-type", "text/event-stream")]
EVENTS = stream_events("Hel", "lo", " ✈ 🛩", " naïve", "!")
WHOLE = as_bytes(EVENTS)
CRLF = WHOLE.replace(b"\n", b"\r\n")
KEEP_ALIVE = b": keep-alive\n\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'

MESSAGE_EVENTS = [
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":3}}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"\xe2\x9c\x88"}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":4}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
]
ANTHROPIC = [("x-api-key", KEY), ("anthropic-version", "2023-06-01")]


async def begin(call: Call) -> None:
    await call.send_head(200, SSE, chunked=True)


async def read_all(responses: list[RawResponse]) -> set[bytes]:
    """Every body, once all have ended."""
    for response in responses:
        await response.read_end()
    return {response.body for response in responses}


async def deadlines_swept(stage: Stage) -> None:
    """Until every deadline that is due has fired."""
    runs = stage.app.janitor.durations["deadlines"].runs
    await wait_until(lambda: stage.app.janitor.durations["deadlines"].runs > runs + 1, "the deadlines were swept")


async def ask_claude(stage: Stage, client: RawClient | None = None) -> RawResponse:
    body = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [], "stream": True}
    return await stage.ask(body, path=MESSAGES, key=None, headers=ANTHROPIC, client=client)


# -- one call for many -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("callers", [2, 100, 1000])
async def test_identical_requests_make_one_call_and_read_what_a_direct_caller_reads(
    stage: Stage, callers: int, streams: bool
) -> None:
    """The heart of it, in any number that one flight carries."""
    whole = json.dumps(completion("shared ✈"), separators=(",", ":"), ensure_ascii=False).encode()
    responses = await stage.ask_many(callers, chat(stream=streams))
    call = await stage.upstream.next_call()
    if streams:
        await call.answer_sse(EVENTS)
    else:
        await call.answer_json(completion("shared ✈"))
    bodies = await read_all(responses)

    assert bodies == {WHOLE if streams else whole}
    assert all(response.ended and response.status == 200 for response in responses)
    assert stage.upstream.calls == 1


@pytest.mark.parametrize("whole", [WHOLE, CRLF, CRLF.replace(b"\r\n", b"\r")], ids=["lf", "crlf", "cr"])
async def test_an_upstream_that_sends_one_byte_at_a_time_is_read_byte_for_byte(stage: Stage, whole: bytes) -> None:
    """Characters, fields, line ends and pairs of CR and LF are all cut apart, and a joiner comes in the middle."""
    responses = await stage.ask_many(2, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    for place in range(len(whole)):
        await call.send(whole[place : place + 1])
        await run_ticks(2)
        if place == len(whole) // 2:
            responses += await stage.ask_many(1, chat(stream=True))
    await call.end()

    assert await read_all(responses) == {whole}
    assert all(response.ended for response in responses)


@pytest.mark.parametrize("seed", range(20))
async def test_a_stream_cut_at_random_places_is_passed_on_unchanged(stage: Stage, seed: int) -> None:
    """TC068: whatever the reads look like, the bytes are the same for everybody."""
    chance = random.Random(seed)
    whole = chance.choice((WHOLE, CRLF))
    responses = await stage.ask_many(3, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    rest = whole
    while rest:
        size = chance.randint(1, 40)
        await call.send(rest[:size])
        rest = rest[size:]
        if chance.random() < 0.3:
            await run_ticks(chance.randint(1, 6))
        if chance.random() < 0.1:
            responses += await stage.ask_many(1, chat(stream=True))
    await call.end()

    assert await read_all(responses) == {whole}
    assert stage.upstream.calls == 1


async def _join_at_every_offset(stage: Stage, chunks: int) -> None:
    """A joiner behind each chunk; every tenth stays to the end, the others go once they saw the live edge."""
    pieces = [as_bytes([{"n": number, "text": "é" * (number % 7)}]) for number in range(chunks)]
    stayed = await stage.ask_many(1, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    sent = b""
    for number, piece in enumerate(pieces):
        await call.send(piece)
        sent += piece
        await stayed[0].read_until(piece)
        [joiner] = await stage.ask_many(1, chat(stream=True))
        if number % 10:
            assert await joiner.read_until(piece) == sent
            await stage.clients.pop().close()
            await stage.attached(len(stayed))
        else:
            stayed.append(joiner)
    await call.send(b"data: [DONE]\n\n")
    await call.end()

    assert await read_all(stayed) == {sent + b"data: [DONE]\n\n"}
    assert stage.upstream.calls == 1


async def test_a_joiner_at_every_offset_of_a_stream_has_every_byte(stage: Stage) -> None:
    """TC066, in a hundred and fifty places."""
    await _join_at_every_offset(stage, 150)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_joiner_at_every_offset_of_a_thousand_chunks_has_every_byte(stage: Stage) -> None:
    """TC066 at full length."""
    await _join_at_every_offset(stage, 1000)


async def test_a_joiner_in_the_tick_of_an_append_has_no_gap_and_no_repeat(stage: Stage) -> None:
    """TC067: its request and the upstream's bytes are on the wire at the same time."""
    responses = await stage.ask_many(1, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    pieces = [as_bytes([{"n": number}]) for number in range(60)]
    newcomers = [await stage.client() for _ in pieces]
    for place, (piece, newcomer) in enumerate(zip(pieces, newcomers, strict=True)):
        request = newcomer.make_request("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat(stream=True))
        responses.append(newcomer.expect("POST"))
        if place % 2:
            newcomer._transport.write(request)
            await call.send(piece)
        else:
            await call.send(piece)
            newcomer._transport.write(request)
    await stage.attached(61)
    await call.send(b"data: [DONE]\n\n")
    await call.end()

    assert await read_all(responses) == {b"".join(pieces) + b"data: [DONE]\n\n"}


async def test_followers_are_written_in_the_tick_of_the_leader(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TC069: nobody is served later for having come later."""
    ticks = 0
    running = True
    loop = asyncio.get_running_loop()
    written: list[tuple[int, bytes]] = []

    def count_tick() -> None:
        nonlocal ticks
        ticks += 1
        if running:
            loop.call_soon(count_tick)

    def write(connection: Lane | Connection, data: bytes) -> None:
        written.append((ticks, data))
        assert connection.transport is not None
        connection.transport.write(data)

    responses = await stage.ask_many(5, chat(stream=True))
    call = await stage.upstream.next_call()
    monkeypatch.setattr(type(stage.app.server.clients[0]), "write", write)
    loop.call_soon(count_tick)
    await call.answer_sse(EVENTS)
    bodies = await read_all(responses)
    running = False
    heads = [tick for tick, data in written if data.startswith(b"HTTP/1.1 200")]

    assert bodies == {WHOLE}
    assert len(heads) == 5
    assert len(set(heads)) == 1


async def test_a_burst_over_several_flights_at_once_keeps_every_stream_apart(stage: Stage) -> None:
    """Twenty streams of ten callers each, in the air together and fed in turns."""
    groups = [await stage.ask_many(10, chat(str(number), stream=True)) for number in range(20)]
    calls = {json.loads(call.body)["messages"][0]["content"]: call for call in stage.upstream.history}
    await stage.upstream.seen(20)
    for call in calls.values():
        await begin(call)
    for word in ("a", "b", "c"):
        for number, call in calls.items():
            await call.send(as_bytes([f"{number}-{word}"]))
    for call in calls.values():
        await call.send(b"data: [DONE]\n\n")
        await call.end()

    for number, group in enumerate(groups):
        expected = as_bytes([f"{number}-a", f"{number}-b", f"{number}-c", "[DONE]"])
        assert await read_all(group) == {expected}
    assert stage.upstream.calls == 20


# -- odd answers -----------------------------------------------------------------------------------------------------


async def test_an_empty_event_stream_completes_for_everybody(stage: Stage) -> None:
    """TC071: no event at all; passed on as it is, and known to have lacked its terminal event."""
    responses = await stage.ask_many(3, chat(stream=True))
    await (await stage.upstream.next_call()).answer_sse([])

    assert await read_all(responses) == {b""}
    assert all(response.ended for response in responses)
    assert stage.series('flights_total{ending="cut"}') == 1


async def test_an_empty_whole_answer_completes_for_everybody(stage: Stage) -> None:
    """TC071: a length of zero."""
    responses = await stage.ask_many(3, chat())
    await (await stage.upstream.next_call()).answer(200, [("content-type", "application/json")], b"")

    assert await read_all(responses) == {b""}
    assert [response.header("content-length") for response in responses] == ["0"] * 3
    assert stage.upstream.calls == 1


async def test_an_answer_without_content_completes_for_everybody(stage: Stage) -> None:
    """TC071: 204 is nothing that can be shared, so each asks for itself, and all at once."""

    async def answer(call: Call) -> None:
        call.raw(b"HTTP/1.1 204 No Content\r\n\r\n")
        call.done()

    responses = await stage.ask_many(3, chat())
    await answer(await stage.upstream.next_call())
    for _ in range(2):
        await answer(await stage.upstream.next_call())
    await read_all(responses)

    assert [(response.status, response.ended) for response in responses] == [(204, True)] * 3
    assert stage.upstream.calls == 3


async def test_a_stream_without_its_terminal_event_is_passed_on_and_not_kept(stage: Stage) -> None:
    """TC072: the bytes are the upstream's, the flight is known to be cut, and nothing is cached."""
    cached = [("x-sameflight-cache", "on")]
    responses = await stage.ask_many(3, chat(stream=True), headers=cached)
    await (await stage.upstream.next_call()).answer_sse(EVENTS[:-1])
    bodies = await read_all(responses)
    again = await stage.ask(chat(stream=True), headers=cached)
    await (await stage.upstream.next_call()).answer_sse(EVENTS)
    await again.read_end()

    assert bodies == {as_bytes(EVENTS[:-1])}
    assert again.body == WHOLE
    assert stage.series('flights_total{ending="cut"}') == 1
    assert stage.upstream.calls == 2


async def test_a_reset_behind_the_terminal_event_is_a_whole_answer_that_is_not_kept(stage: Stage) -> None:
    """TC073: everything that was meant for the caller is there."""
    cached = [("x-sameflight-cache", "on")]
    responses = await stage.ask_many(3, chat(stream=True), headers=cached)
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(WHOLE)
    await responses[0].read_until(b"[DONE]\n\n")
    call.reset()
    bodies = await read_all(responses)
    lines = await stage.access_lines(3)
    again = await stage.ask(chat(stream=True), headers=cached)
    await (await stage.upstream.next_call()).answer_sse(EVENTS)
    await again.read_end()

    assert bodies == {WHOLE}
    assert all(response.ended for response in responses)
    assert {line["outcome"] for line in lines} == {"ok"}
    assert stage.upstream.calls == 2


async def test_readers_are_let_go_when_the_end_of_the_message_does_not_follow_the_terminal_event(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """An upstream that keeps the connection open behind ``[DONE]`` holds up nobody, and no place in the pool."""
    stage = frozen_stage
    responses = await stage.ask_many(2, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(WHOLE)
    await responses[0].read_until(b"[DONE]\n\n")
    assert not responses[0].ended
    frozen_clock.advance(0.1)
    bodies = await read_all(responses)
    await call.client_gone()

    assert bodies == {WHOLE}
    assert all(response.ended for response in responses)


@pytest.mark.parametrize("place", [0, 2])
async def test_an_error_event_inside_a_stream_goes_to_everybody_and_is_not_kept(stage: Stage, place: int) -> None:
    """TC074: whether it is the first event or a later one."""
    cached = [("x-sameflight-cache", "on")]
    failed = [*EVENTS[:place], {"error": {"message": "overloaded", "type": "server_error", "code": None}}]
    responses = await stage.ask_many(3, chat(stream=True), headers=cached)
    await (await stage.upstream.next_call()).answer_sse(failed)
    bodies = await read_all(responses)
    again = await stage.ask(chat(stream=True), headers=cached)
    await (await stage.upstream.next_call()).answer_sse(EVENTS)
    await again.read_end()

    assert bodies == {as_bytes(failed)}
    assert again.body == WHOLE
    assert stage.upstream.calls == 2


@pytest.mark.parametrize("trailer", [b": bye\n\n", b"data: more\n\n", b"\n"])
async def test_bytes_behind_the_terminal_event_are_passed_to_everybody_alike(stage: Stage, trailer: bytes) -> None:
    """TC078: what the upstream says after its last word is still its answer."""
    responses = await stage.ask_many(3, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(WHOLE)
    await call.send(trailer)
    await call.end()

    assert await read_all(responses) == {WHOLE + trailer}
    assert all(response.ended for response in responses)


async def test_an_answer_that_flows_because_it_is_long_is_shared_byte_for_byte(stage: Stage) -> None:
    """A whole answer beyond a mebibyte is not held, and a joiner in its middle has all of it."""
    body = json.dumps({"data": "é" * 1_500_000}, ensure_ascii=False).encode()
    responses = await stage.ask_many(2, chat())
    call = await stage.upstream.next_call()
    await call.send_head(200, [("content-type", "application/json")], content_length=len(body))
    await call.send(body[:1_200_000])
    await responses[0].read_head()
    responses += await stage.ask_many(1, chat())
    await call.send(body[1_200_000:])
    await call.end()

    assert await read_all(responses) == {body}
    assert stage.upstream.calls == 1


@pytest.mark.parametrize("streams", [False, True])
async def test_an_http_1_0_follower_and_an_http_1_1_leader_each_have_right_framing(
    stage: Stage, streams: bool
) -> None:
    """TC076: chunks for the one, the end of the connection or a length for the other."""
    [modern] = await stage.ask_many(1, chat(stream=streams))
    old = await stage.client()
    request = old.make_request("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat(stream=streams))
    ancient = old.expect("POST")
    await old.send(request.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1))
    await stage.attached(2)
    call = await stage.upstream.next_call()
    if streams:
        await begin(call)
        await call.send(WHOLE[:10])
        await ancient.read_until(WHOLE[:10])
        await call.send(WHOLE[10:])
        await call.end()
    else:
        await call.answer_json(completion())
    bodies = await read_all([modern, ancient])
    await old.peer_closed()

    assert len(bodies) == 1
    assert modern.ended
    assert ancient.ended
    assert ancient.header("transfer-encoding") is None
    assert (ancient.close_delimited, modern.header("transfer-encoding")) == (streams, "chunked" if streams else None)


async def test_an_http_1_0_follower_of_a_broken_stream_is_reset(stage: Stage) -> None:
    """Without chunks, an orderly close would pass for the end of the answer."""
    old = await stage.client()
    request = old.make_request("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat(stream=True))
    response = old.expect("POST")
    await old.send(request.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(as_bytes(EVENTS[:1]))
    await response.read_until(as_bytes(EVENTS[:1]))
    call.reset()
    await old.peer_closed()

    assert old.was_reset


# -- heartbeats ------------------------------------------------------------------------------------------------------


async def test_the_upstreams_own_comments_are_delivered(stage: Stage) -> None:
    """TC075: a heartbeat from the vendor is part of the answer."""
    events: list[object] = [b": OPENROUTER PROCESSING\n\n", *EVENTS[:2], b": ping\n\n", *EVENTS[2:]]
    responses = await stage.ask_many(2, chat(stream=True))
    await (await stage.upstream.next_call()).answer_sse(events)

    assert await read_all(responses) == {as_bytes(events)}


async def test_a_caller_that_waits_long_for_a_stream_is_kept_warm_until_its_first_byte(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """TC075: the response is begun, then comments come, and none once the answer flows."""
    stage = frozen_stage
    [waiting] = await stage.ask_many(1, chat(stream=True))
    call = await stage.upstream.next_call()
    frozen_clock.advance(9.0)
    await run_ticks(20)
    assert waiting.status == 0
    frozen_clock.advance(1.5)
    assert await waiting.read_until(KEEP_ALIVE) == KEEP_ALIVE
    frozen_clock.advance(15.5)
    await waiting.read_until(KEEP_ALIVE)
    [late] = await stage.ask_many(1, chat(stream=True))
    await begin(call)
    await call.send(WHOLE[:10])
    await waiting.read_until(WHOLE[:10])
    frozen_clock.advance(60.0)
    await deadlines_swept(stage)
    await call.send(WHOLE[10:])
    await call.end()
    await read_all([waiting, late])

    assert waiting.body == KEEP_ALIVE * 2 + WHOLE
    assert late.body == WHOLE
    assert (waiting.status, waiting.header("content-type")) == (200, "text/event-stream; charset=utf-8")
    assert "early" in (waiting.header("cache-status") or "")
    assert waiting.ended
    assert late.ended


async def test_a_caller_of_claude_is_kept_warm_with_pings(frozen_stage: Stage, frozen_clock: FrozenClock) -> None:
    """The heartbeat is the dialect's own."""
    stage = frozen_stage
    response = await ask_claude(stage)
    call = await stage.upstream.next_call()
    frozen_clock.advance(10.5)
    assert await response.read_until(PING) == PING
    await call.answer_sse(MESSAGE_EVENTS)
    await response.read_end()

    assert response.body == PING + b"".join(MESSAGE_EVENTS)


async def test_a_whole_answer_gets_no_heartbeat(frozen_stage: Stage, frozen_clock: FrozenClock) -> None:
    """There is nothing in JSON that could be sent early without changing the status."""
    stage = frozen_stage
    [response] = await stage.ask_many(1, chat())
    call = await stage.upstream.next_call()
    frozen_clock.advance(100.0)
    await deadlines_swept(stage)
    assert response.status == 0
    await call.answer_json(completion(), status=429)
    await response.read_end()

    assert response.status == 429


def _openai_error(event: bytes) -> Any:
    return json.loads(event.removeprefix(b"data: "))["error"]


async def test_a_failing_upstream_behind_a_heartbeat_is_an_error_event_and_an_aborted_connection(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """The status was sent already, so the failure is told in the stream, and the stream is not ended cleanly."""
    stage = frozen_stage
    responses = await stage.ask_many(2, chat(stream=True))
    call = await stage.upstream.next_call()
    frozen_clock.advance(10.5)
    for response in responses:
        await response.read_until(KEEP_ALIVE)
    await call.answer_json({"error": {"message": "slow down", "type": "rate_limit_error", "code": "x"}}, status=429)
    bodies = await read_all(responses)
    lines = await stage.access_lines(2)

    assert len(bodies) == 1
    assert all(response.truncated and not response.ended for response in responses)
    [comment, event] = responses[0].events()
    assert comment + b"\n\n" == KEEP_ALIVE
    assert _openai_error(event)["message"] == "slow down"
    assert [(line["status"], line["outcome"]) for line in lines] == [(429, "upstream_error")] * 2


async def test_a_reset_behind_a_heartbeat_is_an_error_event_and_an_aborted_connection(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """The same for an upstream that never answers."""
    stage = frozen_stage
    response = await stage.ask(chat(stream=True))
    call = await stage.upstream.next_call()
    frozen_clock.advance(10.5)
    await response.read_until(KEEP_ALIVE)
    call.reset()
    await response.read_end()

    assert response.truncated
    assert _openai_error(response.events()[-1])["code"] == "upstream_reset"


async def test_a_refused_claude_behind_a_ping_is_an_error_event_of_its_dialect(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """``event: error`` with the vendor's own object."""
    stage = frozen_stage
    response = await ask_claude(stage)
    call = await stage.upstream.next_call()
    frozen_clock.advance(10.5)
    await response.read_until(PING)
    refused = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    await call.answer_json(refused, status=529)
    await response.read_end()
    event, data = response.events()[-1].split(b"\n", 1)

    assert event == b"event: error"
    assert json.loads(data.removeprefix(b"data: "))["error"] == refused["error"]
    assert response.truncated


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
async def test_a_silent_answer_of_a_known_length_gets_no_heartbeat_into_its_body(
    frozen_stage: Stage, frozen_clock: FrozenClock, kind: str
) -> None:
    """Between a head and its first byte there is room for a comment only where chunks can carry one."""
    stage = frozen_stage
    body = b"data: [DONE]\n\n" if kind == "text/event-stream" else b" " * 1_100_000
    response = await stage.ask(chat(stream=True))
    call = await stage.upstream.next_call()
    await call.send_head(200, [("content-type", kind)], content_length=len(body))
    await response.read_head()
    frozen_clock.advance(30.0)
    await deadlines_swept(stage)
    await call.send(body)
    await call.end()
    await response.read_end()

    assert response.body == body


async def test_a_stream_is_kept_warm_between_its_head_and_its_first_byte(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """Vendors send the head at once and then think."""
    stage = frozen_stage
    response = await stage.ask(chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await response.read_head()
    frozen_clock.advance(10.5)
    await response.read_until(KEEP_ALIVE)
    await call.send(WHOLE)
    await call.end()
    await response.read_end()

    assert response.body == KEEP_ALIVE + WHOLE


async def test_a_caller_kept_warm_and_then_released_gets_its_own_answer_on_the_same_stream(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """What it waited for belongs to somebody else; the response that was begun goes on with its own call."""
    stage = frozen_stage
    responses = await stage.ask_many(2, chat(stream=True))
    first = await stage.upstream.next_call()
    frozen_clock.advance(10.5)
    for response in responses:
        await response.read_until(KEEP_ALIVE)
    await first.answer_sse(EVENTS[1:], headers=[("vary", "*")])
    second = await stage.upstream.next_call()
    frozen_clock.advance(15.5)
    await responses[1].read_until(KEEP_ALIVE)
    await second.answer_sse(EVENTS)
    await read_all(responses)

    assert responses[0].body == KEEP_ALIVE + as_bytes(EVENTS[1:])
    assert responses[1].body == KEEP_ALIVE * 2 + WHOLE
    assert all(response.ended for response in responses)


async def test_a_drain_behind_a_heartbeat_is_an_error_event_and_an_aborted_connection(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """The last word of a stream whose upstream never said anything."""
    stage = frozen_stage
    response = await stage.ask(chat(stream=True))
    await stage.upstream.next_call()
    frozen_clock.advance(10.5)
    await response.read_until(KEEP_ALIVE)
    await stage.app.drain(0.0)
    await response.read_end()

    assert response.truncated
    assert _openai_error(response.events()[-1])["code"] == "draining"


async def test_heartbeats_can_be_switched_off(frozen_clock: FrozenClock) -> None:
    """``heartbeat_after_s`` of 0 sends none, as its help says."""
    async with Stage(clock=frozen_clock, heartbeat_after_s=0) as stage:
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        frozen_clock.advance(100.0)
        await deadlines_swept(stage)
        await call.answer_sse(EVENTS)
        await response.read_end()
        await stage.at_rest()

        assert response.body == WHOLE


# -- heads and accounts ----------------------------------------------------------------------------------------------


async def test_each_of_five_callers_has_an_id_of_its_own_and_all_have_the_upstreams(stage: Stage) -> None:
    """TC104: the vendor's id is for its support, ours for the operator's log."""
    responses = await stage.ask_many(5, chat())
    await (await stage.upstream.next_call()).answer_json(completion(), headers=[("x-request-id", "req_vendor")])
    await read_all(responses)
    lines = await stage.access_lines(5)
    own = {response.header("x-sameflight-request-id") for response in responses}

    assert len(own) == 5
    assert own == {line["request_id"] for line in lines}
    assert {response.header("x-request-id") for response in responses} == {"req_vendor"}
    assert {line["upstream_request_id"] for line in lines} == {"req_vendor"}
    assert len({line["flight_id"] for line in lines}) == 1


@pytest.mark.parametrize("streams", [False, True])
async def test_only_a_follower_is_collapsed(stage: Stage, streams: bool) -> None:
    """TC105: the leader's cache status speaks of a plain miss."""
    responses = await stage.ask_many(2, chat(stream=streams))
    call = await stage.upstream.next_call()
    if streams:
        await call.answer_sse(EVENTS)
    else:
        await call.answer_json(completion())
    await read_all(responses)

    assert [response.header("cache-status") for response in responses] == [
        "sameflight; fwd=miss",
        "sameflight; fwd=miss; collapsed",
    ]


async def test_the_vendors_rate_limits_reach_the_leader_alone(stage: Stage) -> None:
    """TC106: they describe one call and the account's quota."""
    vendors = [("x-ratelimit-remaining-requests", "7"), ("anthropic-ratelimit-x", "8"), ("openai-processing-ms", "9")]
    responses = await stage.ask_many(3, chat())
    await (await stage.upstream.next_call()).answer_json(completion(), headers=[*vendors, ("openai-version", "v")])
    await read_all(responses)
    seen = [[response.header(name) for name, _ in vendors] for response in responses]

    assert seen == [["7", "8", "9"], [None] * 3, [None] * 3]
    assert {response.header("openai-version") for response in responses} == {"v"}


async def test_nine_followers_save_nine_calls(stage: Stage) -> None:
    """TC114: the leader saved nothing."""
    responses = await stage.ask_many(10, chat())
    await (await stage.upstream.next_call()).answer_json(completion(prompt_tokens=5, completion_tokens=7))
    await read_all(responses)
    lines = await stage.access_lines(10)

    assert stage.series("collapse_saved_total") == 9
    assert stage.series("tokens_total") == 12
    assert stage.series("tokens_saved_total") == 9 * 12
    assert sorted(line["role"] for line in lines) == ["follower"] * 9 + ["leader"]


async def test_cookies_of_the_upstream_reach_nobody_and_do_not_prevent_sharing(stage: Stage) -> None:
    """TC103: vendors' edges set cookies on every answer."""
    responses = await stage.ask_many(3, chat())
    cookies = [("set-cookie", "__cf_bm=a"), ("Set-Cookie", "_cfuvid=b")]
    await (await stage.upstream.next_call()).answer_json(completion(), headers=cookies)
    await read_all(responses)

    assert [response.header_values("set-cookie") for response in responses] == [[], [], []]
    assert stage.upstream.calls == 1
