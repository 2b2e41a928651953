"""Faults inside the proxy, and what its bounds owe to those who keep them: a fault hurts its own exchange only.

The scenes that plant a fault end settled instead of at rest, because a fault is what `last_bug` then rightly tells.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, cast

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from proxy.clock import Deadlines
from proxy.edge.body import BodyLimits, Upload
from proxy.edge.connection import Connection
from proxy.edge.lane import Lane
from proxy.edge.relay import Relay
from proxy.errors import Kind, ProxyError
from proxy.flight.table import Table
from proxy.intake import TERMINAL_GRACE_S
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks, wait_until
from tests.scenes.stage import CHAT, KEY, Stage, as_bytes, chat, completion, delta, stream_events

EVENTS = ("content-type", "text/event-stream")
BEARER = ("authorization", f"Bearer {KEY}")
FORM = ("content-type", "multipart/form-data; boundary=b")


def write_buffers(stage: Stage) -> int:
    """The bytes that the proxy holds for the client that takes the least."""
    transports = [connection.transport for connection in stage.app.server.connections]
    return max([transport.get_write_buffer_size() for transport in transports if transport is not None], default=0)


# -- planted faults --------------------------------------------------------------------------------------------------


async def test_a_relay_that_fails_in_a_stream_hurts_its_own_reader_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is broken off; the flight and its other readers do not feel it."""
    async with Stage() as stage:
        responses = await stage.ask_many(3, chat(stream=True))
        call = await stage.upstream.next_call()
        await call.send_head(200, [EVENTS], chunked=True)
        await call.send(as_bytes([delta("a")]))
        for response in responses:
            await response.read_until(b'"a"')
        victim = next(iter(stage.app.server.clients))
        kind: Any = type(victim)
        write = kind.write

        def write_or_fail(self: Lane | Connection, data: bytes) -> None:
            if self is victim:
                raise RuntimeError("no ink")
            write(self, data)

        monkeypatch.setattr(kind, "write", write_or_fail)
        await call.send(as_bytes([delta("b"), "[DONE]"]))
        await call.end()
        for response in responses:
            await response.read_end()
        await stage.settled()

        assert sorted(response.ended for response in responses) == [False, True, True]
        assert {response.body for response in responses if response.ended} == {as_bytes(stream_events("a", "b"))}
        assert "no ink" in stage.app.metrics.last_bug


async def test_a_call_of_ones_own_that_fails_to_start_hurts_its_own_caller_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four were released from what cannot be shared; the fault of the first does not stop the three behind it."""
    async with Stage() as stage:
        responses = await stage.ask_many(5, chat())
        call = await stage.upstream.next_call()
        join, asked = Table.join, []

        def join_or_fail(self: Table, *arguments: Any, **options: Any) -> Any:
            asked.append(arguments)
            if len(asked) == 1:
                raise RuntimeError("no seat")
            return join(self, *arguments, **options)

        monkeypatch.setattr(Table, "join", join_or_fail)
        await call.answer(200, [("content-type", "text/html")], b"x")
        for _ in range(3):
            await (await stage.upstream.next_call()).answer_json(completion())
        statuses = sorted([(await response.read_end()).status for response in responses])
        await stage.settled()

        assert statuses == [200, 200, 200, 200, 500]
        assert stage.upstream.calls == 4


async def test_a_fault_after_joining_leaves_no_reader_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscription whose reader was told 500 would hold the flight up for ever."""

    def fail(*_: object) -> None:
        raise RuntimeError("no pen")

    monkeypatch.setattr(Relay, "attach", fail)
    async with Stage() as stage:
        response = await stage.ask(chat(stream=True))
        await response.read_end()
        await stage.settled()

        assert response.status == 500
        assert stage.app.table.subscribers == 0


async def test_one_refusal_for_all_collects_no_frames(stage: Stage) -> None:
    """The error of a draining proxy is raised again and again, and must not hold on to every request it refused."""
    error = stage.app.pipeline.admission.draining = ProxyError(Kind.DRAINING, "The proxy is shutting down.")
    lengths = []
    for _ in range(10):
        await (await stage.ask(chat())).read_end()
        frames, trace = 0, error.__traceback__
        while trace is not None:
            frames, trace = frames + 1, trace.tb_next
        lengths.append(frames)

    assert lengths == [lengths[0]] * 10


# -- clients that are gone -------------------------------------------------------------------------------------------


async def test_an_answer_to_an_upload_whose_client_has_closed_is_no_fault(stage: Stage) -> None:
    """The answer meets a reset before the loop has said that the client is gone."""
    client = await stage.client()
    lines = [BEARER, FORM, ("content-length", "50000000")]
    client._transport.write(client.make_request("POST", "/v1/files", lines) + b"x" * 30_000_000)
    call = await stage.upstream.next_call(whole=False)
    call.stop_reading()
    [connection] = stage.app.server.connections
    await wait_until(lambda: connection._reading_paused, "the proxy stopped reading the client")
    await run_ticks(200)
    await client.close()
    call.raw(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    call.done()
    await wait_until(lambda: not stage.app.server.running, "the exchange ended")

    assert stage.app.metrics.last_bug == ""


async def test_a_browser_that_goes_while_its_socket_is_being_opened_leaves_nothing(stage: Stage) -> None:
    """Neither an exchange nor a connection of the upstream."""
    client = await stage.client()
    lines = [
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    await stage.ask(method="GET", path="/v1/realtime?model=x", headers=lines, client=client)
    call = await stage.upstream.next_call()
    await client.reset()
    await call.client_gone()
    await wait_until(lambda: not stage.app.server.running, "the exchange ended")

    assert not stage.app.transport.describe().get("proxied")


async def test_a_caller_that_vanishes_before_its_answer_leaves_nothing_running(stage: Stage) -> None:
    """A large body that was held for the upstream goes with the one who sent it."""
    client = await stage.client()
    await stage.ask(chat("x" * 3_000_000, stream=True), client=client)
    await stage.attached(1)
    await client.reset()
    await wait_until(lambda: not stage.app.server.running, "the exchange ended")

    assert stage.app.table.subscribers == 0


# -- the upstream's side ---------------------------------------------------------------------------------------------


async def test_a_stream_let_go_after_its_terminal_event_gives_its_place_in_the_pool_back(
    frozen_clock: FrozenClock,
) -> None:
    """An upstream that says `[DONE]` and never ends its message would hold the only connection for two minutes."""
    async with Stage(clock=frozen_clock, pool_max_connections=1) as stage:
        first = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await call.send_head(200, [EVENTS], chunked=True)
        await call.send(as_bytes(stream_events("a")))
        await first.read_until(b"[DONE]")
        frozen_clock.advance(TERMINAL_GRACE_S * 2)
        await first.read_end()
        second = await stage.ask(chat("two"))
        await (await stage.upstream.next_call()).answer_json(completion())
        await second.read_end()
        await stage.at_rest()

        assert (first.ended, second.status) == (True, 200)


async def test_two_proxies_in_a_ring_notice_it() -> None:
    """The second one's own mark comes back to it through the first, where a shared call would wait for itself."""
    async with Stage() as one, Stage(openai_upstream=one.app.url) as other:
        catalog = one.app.catalogs.current
        there = dataclasses.replace(catalog.providers["openai"], host="127.0.0.1", port=other.app.port)
        providers = {**catalog.providers, "openai": there}
        one.app.catalogs.current = dataclasses.replace(catalog, providers=providers)
        response = await one.ask(chat())
        await response.read_end()
        await one.at_rest()
        await other.at_rest()

        assert response.status == 508
        assert (one.upstream.calls, other.upstream.calls) == (0, 0)


async def test_an_upload_meets_a_connection_that_the_upstream_has_just_closed(stage: Stage) -> None:
    """It cannot be sent twice once it has been read, so it is not sent into a dead connection."""
    warm = await stage.ask(chat("warm"))
    call = await stage.upstream.next_call()
    await call.answer_json(completion())
    await warm.read_end()
    client = await stage.client()
    response = client.expect("POST")
    client._transport.write(client.make_request("POST", "/v1/files", [BEARER, FORM], b"x" * 200_000))
    call.reset()
    again = await stage.upstream.next_call()
    await again.answer_json({})
    await response.read_end()

    assert (response.status, again.body) == (200, b"x" * 200_000)


class Hose:
    """As much of a connection as a body asks for."""

    connected = True
    _reading_paused = False

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self, *_: Any, **__: Any) -> None:
        self._reading_paused = False


async def test_a_client_is_not_blamed_for_the_time_in_which_nobody_asked_it(frozen_clock: FrozenClock) -> None:
    """The upstream held an upload up for most of a window; of the client were only waited for two tenths."""
    loop, deadlines = asyncio.get_running_loop(), Deadlines(frozen_clock)
    content = StreamReader(cast("BaseProtocol", Hose()), 2**16, loop=loop)
    counted: list[int] = []
    limits = BodyLimits(1 << 20, 500, 60.0)
    upload = Upload(content, None, limits, frozen_clock, deadlines, count=counted.append)
    frozen_clock.advance(9.9)
    reading = loop.create_task(upload.read())
    await run_ticks(3)
    frozen_clock.advance(0.2)
    deadlines.sweep()
    content.feed_data(b"x")
    piece = await reading
    upload.close()

    assert piece == b"x"
    assert counted == [1]


# -- bounds ----------------------------------------------------------------------------------------------------------


async def test_hits_do_not_pile_up_for_one_that_pipelines_and_does_not_read(stage: Stage) -> None:
    """The next answer waits until the last one was taken; then all of them come."""
    first = await stage.ask(method="GET", path="/v1/models")
    await (await stage.upstream.next_call()).answer_json({"data": ["x" * 1_000_000]})
    await first.read_end()
    client = await stage.client(receive_buffer_bytes=4096)
    client.pause()
    one = client.make_request("GET", "/v1/models", [BEARER])
    responses = [client.expect("GET") for _ in range(30)]
    for _ in responses:
        client._transport.write(one)
        await run_ticks(5)
    await wait_until(lambda: write_buffers(stage) > 0, "the client's buffers are full")
    await run_ticks(200)
    held = write_buffers(stage)
    client.resume()
    for response in responses:
        await response.read_end()

    assert held < 4_000_000
    assert {response.body for response in responses} == {first.body}


async def test_refusals_do_not_pile_up_for_one_that_pipelines_and_does_not_read(stage: Stage) -> None:
    """A bad request costs its sender as much as it costs the proxy."""
    client = await stage.client(receive_buffer_bytes=4096)
    client.pause()
    one = client.make_request("POST", CHAT, [], b"{")
    for _ in range(300):
        client._transport.write(one * 40)
        await run_ticks(5)
    held = write_buffers(stage)
    client._transport.abort()

    assert held < 1_000_000


async def test_answers_that_are_held_count_as_retained(stage: Stage) -> None:
    """They are memory like the tapes they will become, from their first byte to their last."""
    responses = [await stage.ask(chat(str(number))) for number in range(3)]
    calls = [await stage.upstream.next_call() for _ in responses]
    for call in calls:
        await call.send_head(200, [("content-type", "application/json")], chunked=True)
        await call.send(b" " * 900_000)
    await wait_until(lambda: stage.app.table.retained_bytes >= 2_700_000, "what is held was counted")
    for call in calls:
        await call.send(b"{}")
        await call.end()
    for response in responses:
        await response.read_end()
    await stage.settled()

    assert stage.app.table.retained_bytes == 0


async def test_followers_of_a_large_prompt_keep_one_copy_of_it(stage: Stage) -> None:
    """TC101: a thousand followers of a megabyte are no gigabyte."""
    responses = await stage.ask_many(5, chat("x" * 1_000_000))
    relays = [connection.relay for connection in stage.app.server.connections]
    exchanges = [relay.exchange for relay in relays if relay is not None]
    bodies = {id(exchange.body) for exchange in exchanges}
    parsed = [exchange for exchange in exchanges if exchange.call is not None]
    await (await stage.upstream.next_call()).answer_json(completion())
    for response in responses:
        await response.read_end()

    assert len(exchanges) == 5
    assert len(bodies) == 1
    assert len(parsed) <= 1


async def test_a_fingerprint_that_errs_gives_nobody_the_answer_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever joins is looked at twice: a body of another length goes alone, and the defect is counted."""
    monkeypatch.setattr("proxy.policy.planner.finish_key", lambda *_, **__: bytes(32))
    async with Stage() as stage:
        one, other = await stage.ask(chat("short")), await stage.ask(chat("a good deal longer"))
        for _ in range(2):
            call = await stage.upstream.next_call()
            await call.answer_json(completion(call.json()["messages"][0]["content"]))
        texts = [(await r.read_end()).json()["choices"][0]["message"]["content"] for r in (one, other)]

        assert texts == ["short", "a good deal longer"]
        assert stage.series('bugs_total{where="key_mismatch"}') == 1
