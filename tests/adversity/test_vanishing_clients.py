"""Clients that hang up: noticed in every phase, and nothing is left of them, here or upstream."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from tests.adversity.conftest import AUTHORISED, heads_begun, nothing_admitted
from tests.fakes.client import RawClient
from tests.fakes.gates import run_ticks, wait_until
from tests.fakes.upstream import Call
from tests.scenes.stage import CHAT, KEY, Stage, chat, completion

SSE = [("content-type", "text/event-stream")]
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\n" + AUTHORISED
CREDENTIAL = ("authorization", f"Bearer {KEY}")

Leave = Callable[[RawClient], Awaitable[None]]

WAYS: dict[str, Leave] = {"fin": RawClient.close, "rst": RawClient.reset}
leaving = pytest.mark.parametrize("leave", WAYS.values(), ids=WAYS.keys())


async def gone_within(call: Call, limit_s: float = 0.1) -> None:
    """Assert that the upstream's connection is closed in no time, as the loop counts it."""
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    await call.client_gone()
    assert loop.time() - began_at < limit_s


async def outcome(stage: Stage) -> dict[str, object]:
    """The only access line."""
    [line] = await stage.access_lines(1)
    return line


# -- before the request is whole -----------------------------------------------------------------------------


@leaving
async def test_a_client_that_leaves_inside_its_head_leaves_nothing(stage: Stage, leave: Leave) -> None:
    """No request, no line, no flight."""
    client = await stage.client()
    await client.send(POST)
    await wait_until(lambda: heads_begun(stage), "the head has begun")
    await leave(client)
    await wait_until(lambda: not stage.app.server.connections, "the connection is forgotten")

    nothing_admitted(stage)
    assert stage.app.deadlines.armed == 0


@leaving
@pytest.mark.parametrize("sent", [b"", b'{"model"'])
@pytest.mark.parametrize("framing", [b"content-length: 100\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"])
async def test_a_client_that_leaves_inside_its_body_is_gone_and_nothing_was_asked_for(
    stage: Stage, leave: Leave, framing: bytes, sent: bytes
) -> None:
    """RELIABILITY rows 4 and 11, CVE-2026-90678: a short body is no body."""
    client = await stage.client()
    await client.send(POST + framing + (b"%x\r\n%b" % (len(sent), sent) if b"chunked" in framing and sent else sent))
    await wait_until(lambda: stage.app.server.running == 1, "the request was accepted")
    await leave(client)
    await stage.settled()

    assert (await outcome(stage))["outcome"] == "client_gone"
    assert stage.series("rejections_total") == 0
    nothing_admitted(stage)
    assert client.bytes_received == 0


@leaving
async def test_an_upload_whose_client_leaves_is_closed_upstream(stage: Stage, leave: Leave) -> None:
    """The upstream must not wait for bytes that will never come, nor take a part for the whole."""
    client = await stage.client()
    head = b"POST /v1/files HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n" + AUTHORISED
    await client.send(head + b"\r\n" + b"x" * 100_000)
    call = await stage.upstream.next_call(whole=False)
    await wait_until(lambda: len(call.body) == 100_000, "what came was passed on")
    await leave(client)
    await gone_within(call)
    await stage.settled()

    assert not call.received
    assert (await outcome(stage))["outcome"] == "client_gone"


# -- while it waits ------------------------------------------------------------------------------------------


@leaving
@pytest.mark.parametrize("phase", ["before_the_head", "after_the_head", "inside_an_event", "after_an_event"])
async def test_the_only_reader_of_a_stream_leaves_and_the_upstream_is_closed_at_once(
    stage: Stage, leave: Leave, phase: str
) -> None:
    """RELIABILITY rows 12 and 13: within 100 ms, and the connection is never used again."""
    client = await stage.client()
    response = await stage.ask(chat(stream=True), client=client)
    call = await stage.upstream.next_call()
    if phase != "before_the_head":
        await call.send_head(200, SSE, chunked=True)
        await response.read_head()
    if phase in ("inside_an_event", "after_an_event"):
        event = b"data: {\"a\"" if phase == "inside_an_event" else b"data: {}\n\n"
        await call.send(event)
        await response.read_until(event)
    await leave(client)
    await gone_within(call)
    await stage.settled()

    line = await outcome(stage)
    assert (line["outcome"], line["status"]) == ("client_gone", 0 if phase == "before_the_head" else 200)
    assert stage.series("upstream_connections") == 0


@leaving
async def test_the_only_reader_of_a_private_answer_leaves_and_the_upstream_is_closed_at_once(
    stage: Stage, leave: Leave
) -> None:
    """What cannot be shared has nobody to wait for."""
    client = await stage.client()
    await stage.ask(chat(), headers=[("x-sameflight-share", "off")], client=client)
    call = await stage.upstream.next_call()
    await leave(client)
    await gone_within(call)


@leaving
async def test_the_only_reader_of_a_whole_answer_leaves_and_the_call_ends_when_nobody_came_back(
    leave: Leave,
) -> None:
    """A shared whole answer waits a while for a retry; without that wait it ends at once."""
    async with Stage(linger_s=0) as stage:
        client = await stage.client()
        await stage.ask(chat(), client=client)
        call = await stage.upstream.next_call()
        await leave(client)
        await gone_within(call)
        await stage.at_rest()


@leaving
async def test_a_client_that_leaves_inside_a_download_stops_it(stage: Stage, leave: Leave) -> None:
    """Nothing is fetched for nobody."""
    client = await stage.client()
    response = await stage.ask(None, method="GET", path="/v1/files/f/content", client=client)
    call = await stage.upstream.next_call()
    await call.send_head(200, [], content_length=1 << 30)
    await call.send(b"x" * 1000)
    await response.read_until(b"x" * 1000)
    await leave(client)
    await gone_within(call)


@leaving
async def test_a_client_that_leaves_while_an_answer_is_held_up_frees_what_waits_for_it(
    stage: Stage, leave: Leave
) -> None:
    """CVE-2026-54280: buffers go with the client."""
    client = await stage.client(receive_buffer_bytes=4096)
    await stage.ask(None, method="GET", path="/v1/files/f/content", client=client)
    client.pause()
    call = await stage.upstream.next_call()
    await call.send_head(200, [], content_length=1 << 30)
    while not call.is_paused:
        call.raw(b"x" * 65_536)
        await run_ticks(5)
    await leave(client)
    await gone_within(call)
    await stage.settled()

    assert stage.app.table.retained_bytes == 0


# -- after the answer ----------------------------------------------------------------------------------------


@leaving
async def test_a_client_that_leaves_after_the_last_byte_has_had_its_answer(stage: Stage, leave: Leave) -> None:
    """RELIABILITY row 14."""
    client = await stage.client()
    response = await stage.ask(chat(), client=client)
    await (await stage.upstream.next_call()).answer_json(completion())
    await response.read_end()
    await leave(client)
    await stage.settled()

    line = await outcome(stage)
    assert (line["outcome"], line["status"], line["tokens_out"]) == ("ok", 200, 7)
    assert stage.upstream.aborted == 0


async def test_a_client_that_leaves_before_its_pipelined_requests_are_served_is_not_served(stage: Stage) -> None:
    """What nobody will read is not asked for."""
    client = await stage.client()
    requests = [client.make_request("POST", CHAT, [CREDENTIAL], chat(str(n), stream=True)) for n in range(5)]
    await client.send(b"".join(requests))
    call = await stage.upstream.next_call()
    await client.close()
    await gone_within(call)
    await stage.settled()

    assert len(stage.upstream.history) == 1


# -- half a farewell -----------------------------------------------------------------------------------------


async def test_a_client_that_closes_its_half_counts_as_gone(stage: Stage) -> None:
    """The default: who hung up and who only finished sending look the same, and the former is not paid for."""
    client = await stage.client()
    await stage.ask(chat(stream=True), client=client)
    call = await stage.upstream.next_call()
    client.shutdown_write()
    await gone_within(call)
    await client.peer_closed()

    assert client.bytes_received == 0


@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_closes_its_half_gets_its_whole_answer_where_that_is_set(streams: bool) -> None:
    """RELIABILITY row 15: and then the connection is closed, for no request can follow."""
    async with Stage(abort_on_half_close=False) as stage:
        client = await stage.client()
        response = await stage.ask(chat(stream=streams), client=client)
        call = await stage.upstream.next_call()
        client.shutdown_write()
        await run_ticks(20)
        if streams:
            await call.answer_sse(["one", "[DONE]"])
        else:
            await call.answer_json(completion())
        await response.read_end()
        await client.peer_closed()

        assert response.ended
        assert response.header("connection") == "close"
        assert not client.was_reset
        assert not call.gone
        assert (await outcome(stage))["outcome"] == "ok"
        await stage.at_rest()


async def test_a_connection_that_is_half_closed_while_idle_is_closed(stage: Stage) -> None:
    """Nothing is owed to it, whatever the setting."""
    async with Stage(abort_on_half_close=False) as other:
        for each in (stage, other):
            client = await each.client()
            assert (await client.request("GET", "/health")).status == 200
            client.shutdown_write()
            await client.peer_closed()
            await wait_until(lambda each=each: not each.app.server.connections, "the connection is forgotten")


# -- a proxy that leaves -------------------------------------------------------------------------------------


async def test_a_drain_closes_idle_connections_at_once_and_busy_ones_with_their_answer(stage: Stage) -> None:
    """A kept connection is no reason to wait, and the next request of a busy one is another process's."""
    idle, silent, busy = await stage.client(), await stage.client(), await stage.client()
    assert (await idle.request("GET", "/health")).status == 200
    response = await stage.ask(chat(), client=busy)
    call = await stage.upstream.next_call()
    draining = asyncio.get_running_loop().create_task(stage.app.drain(30.0))
    await idle.peer_closed()
    await silent.peer_closed()
    assert not busy.peer_ended
    await call.answer_json(completion())
    await response.read_end()
    await busy.peer_closed()
    await draining

    assert response.json() == completion()
    assert response.header("connection") == "close"


# -- many ----------------------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_two_hundred_aborted_requests_leave_no_descriptor_and_no_task(stage: Stage) -> None:
    """CVE-2026-54280: in every phase, over and over."""
    bodies = [chat(stream=True), chat(), b"x" * 70_000, chat("alone", store=True)]
    paths = [CHAT, CHAT, "/v1/files", CHAT]

    async def abort(number: int) -> None:
        client = await RawClient.connect_url(stage.app.url)
        kind = number % 4
        variant = [("x-sameflight-variant", str(number))]
        response = await stage.ask(bodies[kind], path=paths[kind], headers=variant, client=client)
        call = await stage.upstream.next_call()
        if number % 3:
            await call.send_head(200, SSE if kind == 0 else [], chunked=True)
            await call.send(b"data: one\n\n")
            if kind in (0, 2):  # a whole answer of a known route is held until it is whole
                await response.read_head()
        await (client.reset() if number % 2 else client.close())
        if kind != 1:
            await call.client_gone()
        else:
            call.close()

    for number in range(8):
        await abort(number)
    await stage.settled()
    stage.upstream.close_idle()
    await wait_until(lambda: stage.upstream.open_connections == 0, "the upstream is alone")
    before, tasks = descriptors(), len(asyncio.all_tasks())
    for number in range(200):
        await abort(number)
    await stage.settled()
    stage.upstream.close_idle()
    await wait_until(lambda: stage.upstream.open_connections == 0, "the upstream is alone")
    await wait_until(lambda: not stage.app.server.connections, "the proxy is alone")

    assert descriptors() <= before + 4  # the usage ledger opens its files when it first has something to move
    assert len(asyncio.all_tasks()) <= tasks
    assert stage.app.deadlines.armed == 0


async def test_a_client_that_leaves_while_its_upload_is_stuck_is_noticed(stage: Stage) -> None:
    """An upstream that takes nothing stops the reading of the client, and with it the usual way to see it go. (A FIN
    waits behind the client's unsent bytes; only a reset overtakes them.)"""
    client = await stage.client()
    headers = [("authorization", f"Bearer {KEY}"), ("content-type", "multipart/form-data; boundary=b")]
    head = client.make_request("POST", "/v1/files", [*headers, ("content-length", "50000000")])
    client._transport.write(head)
    call = await stage.upstream.next_call(whole=False)
    call.stop_reading()
    for _ in range(300):
        client._transport.write(b"x" * 100_000)
        await run_ticks(2)
    await wait_until(lambda: stage.app.server.deaf, "the proxy stopped reading the client")
    await client.reset()
    await wait_until(lambda: not stage.app.server.running, "the proxy noticed that the client left")
    call.resume_reading()
    await call.client_gone()

    assert not stage.app.server.deaf


async def test_a_client_that_leaves_behind_many_pipelined_requests_is_noticed(stage: Stage) -> None:
    """More requests than are taken at a time stop the reading as well."""
    client = await stage.client()
    one = client.make_request("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat(stream=True))
    client._transport.write(one * 200)
    await stage.attached(1)
    await wait_until(lambda: stage.app.server.deaf, "the proxy stopped reading the client")
    await client.reset()
    await wait_until(lambda: not stage.app.server.running, "the proxy noticed that the client left")
    await (await stage.upstream.next_call()).client_gone()

    assert not stage.app.server.deaf
