"""How answers end when they do not end well: framing, streams cut short, terminal events and answers beyond a bound.

A reader must never take a broken answer for a whole one, and never a byte of one answer for a part of the next.
"""

from __future__ import annotations

import asyncio
import gzip

import pytest

from proxy.intake import TERMINAL_GRACE_S
from tests.fakes.client import RawClient
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks
from tests.fakes.upstream import Call
from tests.scenes.stage import CHAT, KEY, Stage, as_bytes, chat, completion, delta, stream_events

EVENTS = ("content-type", "text/event-stream")
BEARER = ("authorization", f"Bearer {KEY}")


async def send_lines(client: RawClient, count: int) -> None:
    """So many header lines of four kilobytes, one at a time, or until the proxy has had enough."""
    for number in range(count):
        if client.peer_ended:
            return
        client._transport.write(b"x-%d: %b\r\n" % (number, b"a" * 4000))
        await run_ticks(3)


# -- terminal events -------------------------------------------------------------------------------------------------


async def test_a_stream_that_owes_bytes_after_its_terminal_event_takes_its_connection_along(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """`[DONE]` came, the announced length did not: the next answer must not be read as the rest of this one."""
    response = await frozen_stage.ask(chat(stream=True))
    call = await frozen_stage.upstream.next_call()
    data = as_bytes(stream_events("a"))
    await call.send_head(200, [EVENTS], content_length=len(data) + 100)
    await call.send(data)
    await response.read_until(b"[DONE]")
    frozen_clock.advance(TERMINAL_GRACE_S * 2)
    await response.read_end()

    assert response.truncated
    assert response.body == data


async def test_a_stream_without_a_length_is_whole_once_its_terminal_event_came(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """Of the message only the last chunk is missing, and that is the proxy's own to write."""
    response = await frozen_stage.ask(chat(stream=True))
    call = await frozen_stage.upstream.next_call()
    data = as_bytes(stream_events("a"))
    await call.send_head(200, [EVENTS], chunked=True)
    await call.send(data)
    await response.read_until(b"[DONE]")
    frozen_clock.advance(TERMINAL_GRACE_S * 2)
    await response.read_end()

    assert response.ended
    assert response.body == data


# -- streams that break ----------------------------------------------------------------------------------------------


async def test_a_stream_of_announced_length_that_breaks_never_looks_whole(stage: Stage) -> None:
    """An error event would fill the body up to the length that was promised."""
    response = await stage.ask(chat(stream=True))
    call = await stage.upstream.next_call()
    data = as_bytes([delta("a")])
    await call.send_head(200, [EVENTS], content_length=len(data) + 60)
    await call.send(data)
    await response.read_until(b"\n\n")
    call.reset()
    await response.read_end()

    assert response.truncated
    assert response.body == data


async def test_a_compressed_stream_that_breaks_gets_no_event_in_plain_text(stage: Stage) -> None:
    """Two line feeds among compressed bytes are no place where an event may begin."""
    body = {"model": "gpt-4o-mini", "input": "x", "stream": True}
    response = await stage.ask(body, path="/v1/responses", headers=[("accept-encoding", "gzip")])
    call = await stage.upstream.next_call()
    sent = gzip.compress(b"event: a\ndata: {}\n\n" * 50)[:20] + b"\n\n"
    await call.send_head(200, [EVENTS, ("content-encoding", "gzip")], chunked=True)
    await call.send(sent)
    await response.read_until(b"\n\n")
    call.reset()
    await response.read_end()

    assert response.truncated
    assert response.body == sent


async def test_a_broken_stream_to_an_http10_client_ends_in_a_reset(stage: Stage) -> None:
    """Where the end of the connection is the end of the body, a clean one would be a lie."""
    client = await stage.client()
    response = client.expect("POST")
    request = client.make_request("POST", CHAT, [BEARER], chat(stream=True))
    await client.send(request.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    call = await stage.upstream.next_call()
    await call.send_head(200, [EVENTS], chunked=True)
    await call.send(as_bytes([delta("a")]))
    await response.read_until(b'"a"')
    call.reset()
    await client.peer_closed()

    assert client.was_reset


async def answer_badly(call: Call, how: str) -> None:
    """Every way to disappoint a stream that a heartbeat has begun."""
    if how == "json":
        await call.answer_json(completion())
    elif how == "error":
        await call.answer_json({"error": {"message": "no"}}, status=429, headers=[("x-ratelimit-limit", "1")])
    elif how == "html":
        await call.answer(200, [("content-type", "text/html")], b"x")
    else:
        call.reset()


@pytest.mark.parametrize("how", ["json", "error", "html", "reset"])
async def test_a_stream_begun_by_a_heartbeat_that_never_comes_ends_abruptly(
    frozen_stage: Stage, frozen_clock: FrozenClock, how: str
) -> None:
    """The 200 is out already, so the connection says what the status cannot."""
    response = await frozen_stage.ask(chat(stream=True))
    call = await frozen_stage.upstream.next_call()
    frozen_clock.advance(11)
    await response.read_head()
    await answer_badly(call, how)
    await response.read_end()

    assert response.status == 200
    assert response.truncated
    assert b"[DONE]" not in response.body


async def test_a_stream_begun_by_a_heartbeat_that_does_come_ends_well(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """Behind the comments follows what a direct caller would have read."""
    response = await frozen_stage.ask(chat(stream=True))
    call = await frozen_stage.upstream.next_call()
    frozen_clock.advance(11)
    await response.read_head()
    await call.answer_sse(stream_events("a"))
    await response.read_end()

    assert response.ended
    assert response.body.endswith(as_bytes(stream_events("a")))


async def test_readers_that_leave_during_a_fan_out_take_nothing_from_the_others(stage: Stage) -> None:
    """A third of a crowd goes in the turn in which everybody is served."""
    responses = await stage.ask_many(150, chat(stream=True))
    call = await stage.upstream.next_call()
    await call.send_head(200, [EVENTS], chunked=True)
    for text in "abcdef":
        await call.send(as_bytes([delta(text)]))
    for client in stage.clients[::3]:
        client._transport.abort()
    await call.send(as_bytes(["[DONE]"]))
    await call.end()
    stayed = [response for number, response in enumerate(responses) if number % 3]
    bodies = {(await response.read_end()).body for response in stayed}

    assert bodies == {as_bytes(stream_events(*"abcdef"))}
    assert [response for response in stayed if not response.ended] == []


# -- overrun ---------------------------------------------------------------------------------------------------------


async def test_an_answer_beyond_its_bound_is_broken_off_and_not_kept() -> None:
    """Its last bytes go over the bound together with its proper end, which must not make it whole."""
    headers = [("x-sameflight-cache", "on"), ("x-sameflight-share", "off")]
    async with Stage(max_answer_bytes=100_000) as stage:
        response = await stage.ask(chat(), headers=headers)
        call = await stage.upstream.next_call()
        await call.send_head(200, [("content-type", "application/json")], chunked=True)
        await call.send_raw(b"%x\r\n%b\r\n0\r\n\r\n" % (150_000, b"a" * 150_000))
        call.done()
        await response.read_end()
        await stage.at_rest()

        assert stage.app.hot.entries == 0


# -- framing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [204, 304])
async def test_interim_answers_before_one_without_a_body_leave_the_framing_intact(stage: Stage, status: int) -> None:
    """The same connection serves the next request as if nothing had been odd."""
    client = await stage.client()
    first = await stage.ask(method="DELETE", path="/v1/files/x", client=client)
    call = await stage.upstream.next_call()
    call.raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
    call.raw(b"HTTP/1.1 %d X\r\netag: a\r\n\r\n" % status)
    call.done()
    await first.read_end()
    second = await stage.ask(client=client)
    await (await stage.upstream.next_call()).answer_json(completion())
    await second.read_end()

    assert (first.status, first.ended, first.body) == (status, True, b"")
    assert second.json() == completion()


async def test_no_byte_of_a_refused_upload_is_taken_for_a_request(stage: Stage) -> None:
    """The answer came before the body, so what follows on the connection is thrown away."""
    client = await stage.client()
    response = client.expect("POST")
    lines = [BEARER, ("content-type", "multipart/form-data; boundary=b"), ("content-length", "100000")]
    await client.send(client.make_request("POST", "/v1/files", lines))
    call = await stage.upstream.next_call(whole=False)
    call.raw(b"HTTP/1.1 401 No\r\ncontent-length: 2\r\n\r\n{}")
    call.done()
    await response.read_end()
    client._transport.write(b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n" * 10)
    await client.peer_closed()

    assert response.status == 401
    assert len(stage.upstream.history) == 1
    assert client.unread == b""


async def test_a_client_that_goes_on_after_its_head_was_refused_still_reads_why(stage: Stage) -> None:
    """Forty lines behind the bound are no forty refusals, no reset, and no exception in the loop."""
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    client = await stage.client()
    response = client.expect("POST")
    await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n")
    await send_lines(client, 40)
    await response.read_end()

    assert faults == []
    assert (response.status, client.was_reset) == (431, False)
    assert stage.app.server.closed_why.get("headers_too_large") == 1


async def test_the_bound_of_a_head_holds_behind_another_request(stage: Stage) -> None:
    """Bytes that come while an answer is awaited are counted like any others."""
    client = await stage.client()
    first = await stage.ask(chat("one"), client=client)
    call = await stage.upstream.next_call()
    second = client.expect("GET")
    await client.send(b"GET /v1/files HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\n" % KEY.encode())
    await send_lines(client, 100)
    client._transport.write(b"\r\n")
    await run_ticks(20)
    await call.answer_json(completion())
    await first.read_end()
    await second.read_end()

    assert first.json() == completion()
    assert second.status == 431
    assert stage.upstream.calls == 1


async def test_a_client_can_neither_drop_a_minted_header_nor_spell_one_twice(stage: Stage) -> None:
    """`Connection` names the caller's own lines only, and an underscore makes no second spelling."""
    lines = [("connection", "via, x-a"), ("x-a", "1"), ("x_api_key", "zzz"), ("via", "1.1 other")]
    response = await stage.ask(method="GET", path="/v1/files", headers=lines)
    call = await stage.upstream.next_call()
    await call.answer_json({})
    await response.read_end()

    assert call.header("x-a") is None
    assert call.header("x_api_key") is None
    assert "sameflight" in (call.header("via") or "")
