"""Callers that read slowly cost themselves, and memory has a bound whatever anybody does."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.client import RawClient, RawResponse
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks, wait_until
from tests.fakes.upstream import Call
from tests.scenes.stage import Stage, as_bytes, chat, stream_events

SSE = [("content-type", "text/event-stream")]
EVENTS = stream_events("the", "end")
WHOLE = as_bytes(EVENTS)
PIECE = b": " + b"x" * 65_532 + b"\n\n"
TINY = 4096


async def ask_slowly(stage: Stage) -> tuple[RawClient, RawResponse]:
    """A caller of the stream that reads nothing and has hardly any room to be sent to."""
    before = stage.app.table.subscribers
    client = await stage.client(receive_buffer_bytes=TINY)
    response = await stage.ask(chat(stream=True), client=client)
    await stage.attached(before + 1)
    client.pause()
    return client, response


async def begin(stage: Stage) -> Call:
    call = await stage.upstream.next_call()
    await call.send_head(200, SSE, chunked=True)
    return call


async def fill(stage: Stage, call: Call, reader: RawResponse | None, paused: int) -> bytes:
    """Send pieces, each read by ``reader``, until so many callers are held up; what was sent."""
    [flight] = stage.app.table.live
    sent = b""
    for _ in range(400):
        if len(flight.paused) >= paused:
            return sent
        call.raw(b"%x\r\n%b\r\n" % (len(PIECE), PIECE))
        sent += PIECE
        if reader is not None:
            await reader.read_until(PIECE)
        else:
            await run_ticks(5)
    raise AssertionError("nobody was ever held up")


async def finish(call: Call) -> None:
    await call.send(WHOLE)
    await call.end()


async def test_a_follower_that_never_reads_is_taken_off_and_the_others_run_at_full_speed(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """TC095, TC158: after its stall deadline; what it has does not look like a whole answer."""
    stage = frozen_stage
    fast = await stage.ask_many(2, chat(stream=True))
    client, slow = await ask_slowly(stage)
    call = await begin(stage)
    sent = await fill(stage, call, fast[0], 1)
    frozen_clock.advance(61.0)
    await stage.attached(2)
    await finish(call)
    for response in fast:
        await response.read_end()
    client.resume()
    await slow.read_end()

    assert [response.body for response in fast] == [sent + WHOLE] * 2
    assert slow.truncated
    assert not slow.ended
    assert (sent + WHOLE).startswith(slow.body)
    assert stage.upstream.aborted == 0


async def test_a_leader_that_never_reads_does_not_hold_up_its_follower(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """TC097: the flight keeps pace with the fastest, whoever came first."""
    stage = frozen_stage
    client, slow = await ask_slowly(stage)
    fast = await stage.ask(chat(stream=True))
    await stage.attached(2)
    call = await begin(stage)
    sent = await fill(stage, call, fast, 1)
    for _ in range(40):
        await call.send(PIECE)
        await fast.read_until(PIECE)
        sent += PIECE
    await finish(call)
    await fast.read_end()
    client.resume()
    await slow.read_end()

    assert fast.body == sent + WHOLE
    assert slow.body == sent + WHOLE
    assert slow.ended
    assert stage.upstream.calls == 1


async def test_a_follower_that_lags_behind_a_tape_that_is_not_kept_is_taken_off() -> None:
    """TC095 by bytes: where the tape is trimmed, a laggard would hold all of it."""
    async with Stage(max_tape_bytes=200_000, max_lag_bytes=300_000, write_stall_s=60) as stage:
        [fast] = await stage.ask_many(1, chat(stream=True))
        client, slow = await ask_slowly(stage)
        call = await begin(stage)
        sent = await fill(stage, call, fast, 1)
        for _ in range(40):
            await call.send(PIECE)
            await fast.read_until(PIECE)
            sent += PIECE
        await stage.attached(1)
        retained = stage.app.table.retained_bytes
        await finish(call)
        await fast.read_end()
        client.resume()
        await slow.read_end()
        await stage.at_rest()

        assert fast.body == sent + WHOLE
        assert retained < 200_000
        assert stage.series('detached_total{reason="lag"}') == 1
        assert not slow.ended
        assert (sent + WHOLE).startswith(slow.body)


async def test_when_nobody_reads_the_upstream_is_held_back_and_goes_on_when_somebody_does() -> None:
    """TC096: bytes are left with the upstream, memory is bounded, and every caller has all of it in the end."""
    async with Stage(run_ahead_bytes=200_000, max_tape_bytes=64 << 20) as stage:
        slow = [await ask_slowly(stage) for _ in range(3)]
        call = await begin(stage)
        sent = await fill(stage, call, None, 3)
        [flight] = stage.app.table.live
        while not call.is_paused:
            call.raw(b"%x\r\n%b\r\n" % (len(PIECE), PIECE))
            sent += PIECE
            await run_ticks(5)
        await run_ticks(50)
        held = flight.tape.total_bytes
        assert flight.producer_paused
        assert held < len(sent)
        ahead = held - max(len(response.body) for _, response in slow)
        slow[0][0].resume()
        await wait_until(lambda: not call.is_paused, "the upstream goes on")
        await finish(call)
        for client, _ in slow[1:]:
            client.resume()
        for _, response in slow:
            await response.read_end()
        await stage.at_rest()

        # The run-ahead bound, one read beyond it, and what lies in the buffers of the proxy and the kernel.
        assert ahead < 200_000 + 4_000_000
        assert [response.body for _, response in slow] == [sent + WHOLE] * 3
        assert all(response.ended for _, response in slow)


async def test_a_late_joiner_that_reads_slowly_is_served_from_the_first_byte(stage: Stage) -> None:
    """What was on the tape before it came is not counted as its lag."""
    [fast] = await stage.ask_many(1, chat(stream=True))
    call = await begin(stage)
    sent = b""
    for _ in range(40):
        await call.send(PIECE)
        await fast.read_until(PIECE)
        sent += PIECE
    client, slow = await ask_slowly(stage)
    await call.send(PIECE)
    await fast.read_until(PIECE)
    sent += PIECE
    client.resume()
    await finish(call)
    await fast.read_end()
    await slow.read_end()

    assert [fast.body, slow.body] == [sent + WHOLE] * 2
    assert slow.ended


@pytest.mark.long
async def test_a_thousand_followers_of_single_bytes_do_not_starve_a_health_check(stage: Stage) -> None:
    """TC079: every byte of the upstream is a fan-out of a thousand writes, and probes are answered in between."""
    followers = await stage.ask_many(1000, chat(stream=True))
    call = await begin(stage)
    loop = asyncio.get_running_loop()
    probe = await stage.client()
    took_s = []
    whole = b"data: 1\n\ndata: [DONE]\n\n"
    for place in range(len(whole)):
        await call.send(whole[place : place + 1])
        asked_at = loop.time()
        health = await probe.request("GET", "/health")
        took_s.append(loop.time() - asked_at)
        assert health.json() == {"status": "ok"}
    await call.end()
    for follower in followers:
        await follower.read_end()

    assert {follower.body for follower in followers} == {whole}
    assert sorted(took_s)[len(took_s) // 2] < 0.5
    assert stage.upstream.calls == 1


async def test_a_client_that_takes_nothing_of_a_whole_answer_is_cut_and_no_one_else(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """TC158: the write deadline ends that connection only."""
    stage = frozen_stage
    client = await stage.client(receive_buffer_bytes=TINY)
    slow = await stage.ask(chat(), client=client)
    fast = await stage.ask(chat())
    await stage.attached(2)
    client.pause()
    body = b" " * 12_000_000
    call = await stage.upstream.next_call()
    await call.send_head(200, [("content-type", "application/json")], content_length=len(body))
    sending = asyncio.ensure_future(call.send(body))
    await fast.read_end()
    await sending
    await call.end()
    await wait_until(lambda: stage.app.table.subscribers <= 1, "the fast caller is done")
    frozen_clock.advance(61.0)
    await stage.attached(0)
    client.resume()
    await slow.read_end()

    assert fast.body == body
    assert slow.truncated
    assert stage.series("detached_total") + stage.series('connections_closed_total{why="write_stall"}') >= 1
