"""Clients that send or take their bytes slowly: deadlines on both, and a bound on what waits for them."""

from __future__ import annotations

import pytest

from tests.adversity.conftest import AUTHORISED, heads_begun, is_closed, is_refusal, nothing_admitted, swept
from tests.fakes.client import RawClient
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks, wait_until
from tests.fakes.upstream import Call
from tests.scenes.stage import CHAT, KEY, Stage, chat, completion

SSE = [("content-type", "text/event-stream")]
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\n" + AUTHORISED
UPLOAD = b"POST /v1/files HTTP/1.1\r\nhost: h\r\ncontent-type: multipart/form-data; boundary=b\r\n" + AUTHORISED


async def taken(stage: Stage, count: int) -> None:
    """Until the proxy has accepted so many connections."""
    await wait_until(lambda: stage.app.server.opened == count, f"{count} connections were accepted")


# -- heads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"GET /", b"GET /v1/mod", POST, POST + b"x-one: 1"])
async def test_a_head_that_is_not_complete_after_ten_seconds_is_refused(
    frozen_stage: Stage, frozen_clock: FrozenClock, sent: bytes
) -> None:
    """RELIABILITY row 1: the deadline is for the whole head, however often a byte comes."""
    stage = frozen_stage
    client = await stage.client()
    response = client.expect("GET")
    await client.send(sent)
    await wait_until(lambda: heads_begun(stage), "the head has begun")
    for _ in range(9):
        frozen_clock.advance(1.0)
        await client.send(b"a")
        await swept(stage)
        assert not response.status
    frozen_clock.advance(1.1)
    await response.read_end()

    is_refusal(response, 408, "request_timeout")
    await is_closed(client)
    nothing_admitted(stage)
    assert stage.series('connections_closed_total{why="head_timeout"}') == 1


async def test_a_connection_that_says_nothing_is_closed_without_a_word(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """RELIABILITY row 2: there is nobody to answer."""
    stage = frozen_stage
    client = await stage.client()
    await taken(stage, 1)
    frozen_clock.advance(9.0)
    await swept(stage)
    assert not client.peer_ended
    frozen_clock.advance(1.1)
    await is_closed(client)

    assert client.bytes_received == 0
    assert stage.series('connections_closed_total{why="idle"}') == 1


async def test_a_second_head_on_a_kept_connection_has_a_deadline_too(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """The first request was in time; that is no credit."""
    stage = frozen_stage
    client = await stage.client()
    assert (await client.request("GET", "/health")).status == 200
    frozen_clock.advance(30.0)
    await swept(stage)
    response = client.expect("POST")
    await client.send(POST)
    await wait_until(lambda: heads_begun(stage), "the head has begun")
    frozen_clock.advance(10.1)
    await response.read_end()

    is_refusal(response, 408, "request_timeout")


async def test_two_hundred_dribblers_hold_nobody_up(frozen_clock: FrozenClock) -> None:
    """RELIABILITY row 1: others are served meanwhile, and all of them are gone after the deadline."""
    async with Stage(clock=frozen_clock) as stage:
        dribblers = [await stage.client() for _ in range(200)]
        for client in dribblers:
            client.expect("POST")
            await client.send(POST[:40])
        response = await stage.ask(chat())
        await (await stage.upstream.next_call()).answer_json(completion())
        assert (await response.read_end()).status == 200
        await wait_until(lambda: heads_begun(stage) == 200, "all began")
        frozen_clock.advance(10.1)
        for client in dribblers:
            await client.peer_closed()

        assert stage.series('connections_closed_total{why="head_timeout"}') == 200
        await stage.at_rest()


# -- bodies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", [b"content-length: 100000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"])
async def test_a_body_at_a_trickle_is_refused(
    frozen_stage: Stage, frozen_clock: FrozenClock, framing: bytes
) -> None:
    """RELIABILITY row 3: fewer than 500 bytes a second over ten seconds."""
    stage = frozen_stage
    client = await stage.client()
    response = client.expect("POST")
    await client.send(POST + framing)
    await wait_until(lambda: stage.app.server.running == 1, "the request was accepted")
    await run_ticks(20)
    for _ in range(9):
        frozen_clock.advance(1.0)
        await client.send(b"1\r\nx\r\n" if b"chunked" in framing else b"x")
        await swept(stage)
        assert not response.status
    frozen_clock.advance(1.1)
    await response.read_end()

    is_refusal(response, 408, "request_timeout")
    assert response.header("connection") == "close"
    await is_closed(client)
    nothing_admitted(stage)
    [line] = await stage.access_lines(1)
    assert (line["status"], line["error_type"]) == (408, "body_rate")


async def test_a_body_at_a_fair_pace_has_a_minute_and_no_more(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """RELIABILITY row 3: a kilobyte each second is no trickle, and still it ends after 60 seconds."""
    stage = frozen_stage
    client = await stage.client()
    response = client.expect("POST")
    await client.send(POST + b"content-length: 100000\r\n\r\n")
    await wait_until(lambda: stage.app.server.running == 1, "the request was accepted")
    for second in range(0, 56, 8):
        await client.send(b"x" * 8000)
        await run_ticks(20)
        frozen_clock.advance(8.0)
        await swept(stage)
        assert not response.status, second
    await client.send(b"x" * 8000)
    frozen_clock.advance(4.1)
    await response.read_end()

    is_refusal(response, 408, "request_timeout")
    [line] = await stage.access_lines(1)
    assert line["error_type"] == "body_timeout"


async def test_a_slow_body_that_arrives_in_time_is_served(frozen_stage: Stage, frozen_clock: FrozenClock) -> None:
    """A deadline is no reason to hurry those who keep it."""
    stage = frozen_stage
    client = await stage.client()
    request = client.make_request("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat("x" * 20_000))
    response = client.expect("POST")
    for at in range(0, len(request), 1000):
        await client.send(request[at : at + 1000])
        await run_ticks(20)
        frozen_clock.advance(1.0)
        await swept(stage)
    await (await stage.upstream.next_call()).answer_json(completion())
    await response.read_end()

    assert response.json() == completion()


async def test_an_upload_at_a_trickle_is_ended_on_both_sides(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """The upstream's connection is not held for somebody who does not send."""
    stage = frozen_stage
    client = await stage.client()
    response = client.expect("POST")
    await client.send(UPLOAD + b"content-length: 1000000\r\n\r\n" + b"x" * 10_000)
    call = await stage.upstream.next_call(whole=False)
    await wait_until(lambda: len(call.body) == 10_000, "what came was passed on")
    frozen_clock.advance(10.1)  # enough in the first window
    await swept(stage)
    assert not response.status
    await client.send(b"x" * 10)
    frozen_clock.advance(10.1)
    await response.read_end()
    await call.client_gone()

    is_refusal(response, 408, "request_timeout")
    await is_closed(client)


async def test_an_upload_that_waits_for_the_upstream_is_no_trickle(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """Back-pressure is ours: a client that would send, and may not, keeps every deadline of its own."""
    stage = frozen_stage
    client = await stage.client()
    size = 32 << 20
    response = client.expect("POST")
    await client.send(UPLOAD + b"content-length: %d\r\n\r\n" % size)
    call = await stage.upstream.next_call(whole=False)
    call.stop_reading()
    client._transport.write(b"x" * size)
    [connection] = stage.app.server.connections
    await wait_until(lambda: connection._reading_paused, "the proxy has stopped reading")
    await wait_until(lambda: stage.app.table.describe()[0]["state"] == "OPENING", "the call is under way")
    frozen_clock.advance(30.0)
    await swept(stage)
    await swept(stage)
    assert not response.status
    call.resume_reading()
    assert len(await call.read_body()) == size
    await call.answer_json({"id": "file-1"})

    assert (await response.read_end()).json() == {"id": "file-1"}


# -- clients that do not read --------------------------------------------------------------------------------


async def fill(stage: Stage, client: RawClient, call: Call, piece: bytes) -> int:
    """Send pieces of an answer until the proxy takes no more of them; how many bytes there were."""
    sent = 0
    while not call.is_paused:
        call.raw(piece)
        sent += len(piece)
        await run_ticks(5)
        assert sent < 64 << 20
    return sent


async def paused_reader(stage: Stage, **request: object) -> tuple[RawClient, Call]:
    """A client with a tiny window that has asked for something and reads nothing."""
    client = await stage.client(receive_buffer_bytes=4096)
    await stage.ask(client=client, **request)  # type: ignore[arg-type]
    client.pause()
    return client, await stage.upstream.next_call()


@pytest.mark.parametrize("path", ["/v1/files/file-1/content", "/v1/models"])
async def test_a_client_that_takes_nothing_for_a_minute_is_cut_off_with_its_upstream(
    frozen_stage: Stage, frozen_clock: FrozenClock, path: str
) -> None:
    """RELIABILITY row 16: write stall."""
    stage = frozen_stage
    client, call = await paused_reader(stage, path=path, method="GET")
    await call.send_head(200, [("content-type", "application/octet-stream")], content_length=1 << 30)
    await fill(stage, client, call, b"x" * 65_536)
    frozen_clock.advance(59.0)
    await swept(stage)
    assert not call._connection.lost
    frozen_clock.advance(1.1)
    await call.client_gone()
    client.resume()
    await client.peer_closed()
    await stage.settled()

    assert stage.app.table.retained_bytes == 0
    [line] = await stage.access_lines(1)
    assert line["outcome"] in ("client_gone", "slow_reader")
    assert stage.series("connections_closed_total") + stage.app.table.ejected_stalled >= 1


async def test_a_stream_whose_only_reader_stalls_is_cut_off_after_a_minute(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """RELIABILITY row 16 for events: paused, bounded, then ended, and never with a fake ending."""
    stage = frozen_stage
    client, call = await paused_reader(stage, body=chat(stream=True))
    await call.send_head(200, SSE, chunked=True)
    event = b"data: " + b"x" * 16_000 + b"\n\n"
    sent = await fill(stage, client, call, b"%x\r\n%b\r\n" % (len(event), event))
    assert sent < 16 << 20
    frozen_clock.advance(60.1)
    await call.client_gone()
    client.resume()
    await client.peer_closed()
    await stage.settled()

    assert b"[DONE]" not in client.received
    assert not client.received.endswith(b"0\r\n\r\n")


async def test_a_client_that_reads_a_little_in_time_is_never_cut_off(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """The stall is counted from the last time that it took something."""
    stage = frozen_stage
    client, call = await paused_reader(stage, path="/v1/files/file-1/content", method="GET")
    await call.send_head(200, [], content_length=256 << 20)
    for _ in range(4):
        await fill(stage, client, call, b"x" * 65_536)
        frozen_clock.advance(50.0)
        await swept(stage)
        before = client.bytes_received
        client.resume()
        await wait_until(lambda before=before: client.bytes_received > before + (1 << 20), "the client read on")
        client.pause()
        assert not call._connection.lost
    await client.reset()


@pytest.mark.long
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_hundred_megabytes_for_a_client_that_does_not_read_wait_upstream(
    stage: Stage, framing: str
) -> None:
    """Memory is bounded while it rests, and every byte arrives once it reads."""
    size, piece = 100 << 20, b"x" * (1 << 20)
    client, call = await paused_reader(stage, path="/v1/files/file-1/content", method="GET")
    response = client._reader.expected[0]
    chunked = framing == "chunked"
    await call.send_head(200, [], content_length=None if chunked else size, chunked=chunked)
    sent = 0
    while not call.is_paused:
        await call_send(call, piece, chunked=chunked)
        sent += len(piece)
        await run_ticks(20)
    [connection] = stage.app.server.connections
    assert connection.transport is not None
    waiting = connection.transport.get_write_buffer_size() + stage.app.table.retained_bytes
    assert waiting < 4 << 20
    assert sent < 24 << 20
    client.resume()
    most = 0
    while sent < size:
        await call.send(piece)
        sent += len(piece)
        most = max(most, connection.transport.get_write_buffer_size() + stage.app.table.retained_bytes)
    await call.end()
    await response.read_end()

    assert response.ended
    assert len(response.body) == response.body.count(b"x") == size
    assert most < 4 << 20


async def call_send(call: Call, piece: bytes, *, chunked: bool) -> None:
    """Write without waiting for room."""
    if call._left is not None:
        call._left -= len(piece)
    call.raw(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)


async def test_a_large_body_that_comes_before_its_request_is_taken_is_no_head(stage: Stage) -> None:
    """A prompt of megabytes on a kept connection was answered 431: its first bytes came behind a parsed head that
    aiohttp's task had not taken yet, and were counted as the next head."""
    client = await stage.client()
    first = await stage.ask(chat(), client=client)
    await (await stage.upstream.next_call()).answer_json(completion())
    await first.read_end()
    await stage.settled()
    await run_ticks(5)
    [connection] = stage.app.server.connections
    whole = client.make_request("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat("x" * 300_000))
    at = whole.index(b"\r\n\r\n") + 4
    second = client.expect("POST")
    connection.data_received(whole[:at])
    connection.data_received(whole[at:])
    call = await stage.upstream.next_call()
    await call.answer_json(completion("whole"))
    await second.read_end()

    assert second.json() == completion("whole")
    assert call.body == whole[at:]
