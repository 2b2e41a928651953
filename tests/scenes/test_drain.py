"""The way out: unready at once, serving until everybody knows, and then nobody is dropped who can still land."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.drain import drain_unless
from tests.fakes.client import RawClient
from tests.fakes.gates import wait_until
from tests.fakes.upstream import ScriptedUpstream
from tests.scenes.kubelet import Kubelet
from tests.scenes.stage import CHAT, KEY, Stage, as_bytes, chat, completion, delta
from tests.scenes.test_process import Serve

AUTH = [("authorization", f"Bearer {KEY}")]
SSE = [("content-type", "text/event-stream")]
FIRST = as_bytes([delta("begun")])
REST = as_bytes([delta("the rest"), "[DONE]"])


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage() as made:
        yield made


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as made:
        yield made


class Draining:
    """A drain of a stage, cut short at the end."""

    def __init__(self, stage: Stage, grace_s: float, delay_s: float = 0.0) -> None:
        self.hurry = asyncio.Event()
        self.stage = stage
        self.task = asyncio.ensure_future(drain_unless(self.hurry, stage.app, grace_s, delay_s))

    async def __aenter__(self) -> Draining:
        await wait_until(lambda: self.stage.app.server.draining, "the drain began")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hurry.set()
        await self.task


# -- the delay ---------------------------------------------------------------------------------------------------


async def test_until_the_endpoint_is_gone_new_connections_are_served_and_told_to_leave(stage: Stage) -> None:
    """Unready at once; whoever has not noticed is answered, and comes back to somebody else."""
    async with Draining(stage, 30.0, delay_s=3600.0):
        ready, _ = reversed(stage.app.probe())
        response = await stage.ask(chat())
        await (await stage.upstream.next_call()).answer_json(completion())
        await response.read_end()

        assert not ready.ok
        assert response.json() == completion()
        assert response.header("connection") == "close"
        assert stage.app.doors is not None
        assert stage.app.doors.is_open


async def test_the_delay_can_be_cut_short(stage: Stage) -> None:
    """Somebody is in a hurry: a second signal."""
    async with Draining(stage, 30.0, delay_s=3600.0) as drain:
        drain.hurry.set()

        assert await drain.task is False


# -- kept connections --------------------------------------------------------------------------------------------


async def test_a_request_on_a_kept_connection_is_served_and_is_the_last(stage: Stage) -> None:
    """It was sent before its client could know; a close would have been a failure of ours."""
    client = await stage.client()
    first = await stage.ask(chat("first"), client=client)
    await (await stage.upstream.next_call()).answer_json(completion())
    await first.read_end()
    async with Draining(stage, 30.0):
        assert stage.app.doors is not None
        doors = stage.app.doors
        await wait_until(lambda: not doors.is_open, "nobody new is let in")
        second = await stage.ask(chat("second"), client=client)
        await (await stage.upstream.next_call()).answer_json(completion())
        await second.read_end()
        await client.peer_closed()

    assert first.header("connection") is None
    assert (second.status, second.header("connection")) == (200, "close")


async def test_a_stream_that_began_before_leaves_its_connection_open_for_one_more_request(stage: Stage) -> None:
    """Its head was out before it could say so: its client may send again, and is answered and told."""
    client = await stage.client()
    stream = await stage.ask(chat(stream=True), client=client)
    call = await stage.upstream.next_call()
    await call.send_head(200, SSE, chunked=True)
    await call.send(FIRST)
    await stream.read_until(FIRST)
    async with Draining(stage, 30.0):
        await call.send(REST)
        await call.end()
        await stream.read_end()
        after = await stage.ask(chat("after"), client=client)
        await (await stage.upstream.next_call()).answer_json(completion())
        await after.read_end()
        await client.peer_closed()

    assert stream.ended
    assert stream.body == FIRST + REST
    assert (after.status, after.header("connection")) == (200, "close")


async def test_late_in_the_grace_a_request_is_refused_rather_than_cut(stage: Stage) -> None:
    """It is told to come back, and its retry goes to somebody who lives."""
    client, other = await stage.client(), await stage.client()
    streams = [await stage.ask(chat(name, stream=True), client=each) for name, each in (("a", client), ("b", other))]
    calls = [await stage.upstream.next_call(), await stage.upstream.next_call()]
    for call in calls:
        await call.send_head(200, SSE, chunked=True)
        await call.send(FIRST)
    for stream in streams:
        await stream.read_until(FIRST)
    async with Draining(stage, 1.6) as drain:
        await wait_until(lambda: stage.app.pipeline.admission.draining is not None, "half of the grace is over")
        for call in calls:
            await call.send(REST)
            await call.end()
        for stream in streams:
            await stream.read_end()
        late = await stage.ask(chat("late"), client=client)
        await late.read_end()
        await drain.task

    assert all(stream.ended for stream in streams)
    assert (late.status, late.json()["error"]["code"]) == (503, "draining")
    assert (late.header("connection"), late.header("retry-after")) == ("close", "1")


async def test_connections_that_nobody_uses_end_after_a_moment(stage: Stage) -> None:
    """A pool of idle connections is no reason to use up the grace."""
    idle = [await stage.client() for _ in range(3)]
    async with Draining(stage, 3600.0) as drain:
        for client in idle:
            await client.peer_closed()

        assert await drain.task is True


async def test_whoever_waits_in_the_queue_when_the_doors_close_is_let_in(stage: Stage) -> None:
    """They were not refused, so nobody may drop them."""
    doors = stage.app.doors
    assert doors is not None
    doors._shut()
    client = await stage.client()  # the kernel takes it
    response = await stage.ask(chat(), client=client)
    async with Draining(stage, 30.0):
        await (await stage.upstream.next_call()).answer_json(completion())
        await response.read_end()

    assert (response.status, response.header("connection")) == (200, "close")


# -- real processes ----------------------------------------------------------------------------------------------


async def test_an_idle_sidecar_is_gone_within_two_seconds_and_its_usage_is_on_disk(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """The pod waits for nobody who has nothing to do, kept connections or not."""
    async with Serve(tmp_path, upstream) as serve:
        client = await serve.client()
        response = await client.start("POST", CHAT, AUTH, chat())
        await (await upstream.next_call()).answer_json(completion())
        await response.read_end()
        began = asyncio.get_running_loop().time()
        code = await serve.stop()
        took_s = asyncio.get_running_loop().time() - began
    spool = tmp_path / ".sameflight" / "spool"

    assert code == 0
    assert took_s < 2.0
    assert [path for path in spool.rglob("*") if path.is_file()] == []
    assert serve.errors == ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_under_a_kubelet_a_pod_starts_serves_and_goes_without_a_loss(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """Start-up, readiness, SIGTERM, late removal of the endpoint, streams within the grace, exit code 0."""
    port = free_port()
    arguments = ("--port", str(port), "--openai-upstream", upstream.url, "--drain-delay-s", "0.5")
    async with Kubelet(tmp_path, free_port(), *arguments, grace_s=20.0) as kubelet:
        await kubelet.is_ready()
        stream_client = await RawClient.connect(port=port)
        stream = await stream_client.start("POST", CHAT, AUTH, chat("long", stream=True))
        call = await upstream.next_call()
        await call.send_head(200, SSE, chunked=True)
        await call.send(FIRST)
        await stream.read_until(FIRST)
        kubelet.delete()
        late_client = await RawClient.connect(port=port)  # its balancer has not heard yet
        late = await late_client.start("POST", CHAT, AUTH, chat("late"))
        await (await upstream.next_call()).answer_json(completion())
        await late.read_end()
        await kubelet.is_removed()
        await call.send(REST)
        await call.end()
        await stream.read_end()
        code = await kubelet.gone()
        for client in (stream_client, late_client):
            await client.close()

    assert (late.status, late.header("connection")) == (200, "close")
    assert stream.ended
    assert stream.body == FIRST + REST
    assert (code, kubelet.killed, kubelet.restarts) == (0, False, 0)
    assert [what for what, _ in kubelet.history] == ["started", "ready", "terminating", "unready", "gone"]
    outcomes = [line["outcome"] for line in map(json.loads, kubelet.log.splitlines()) if line["event"] == "request"]
    assert sorted(outcomes) == ["ok", "ok"]


@pytest.mark.long
async def test_a_pod_whose_stream_outlasts_the_grace_ends_it_with_an_error_event(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """In the dialect of the caller, before SIGKILL would cut it."""
    port = free_port()
    arguments = ("--port", str(port), "--openai-upstream", upstream.url, "--drain-grace-s", "0.2")
    async with Kubelet(tmp_path, free_port(), *arguments, grace_s=20.0) as kubelet:
        await kubelet.is_ready()
        async with await RawClient.connect(port=port) as client:
            stream = await client.start("POST", CHAT, AUTH, chat(stream=True))
            call = await upstream.next_call()
            await call.send_head(200, SSE, chunked=True)
            await call.send(FIRST)
            await stream.read_until(FIRST)
            kubelet.delete()
            await stream.read_end()
            await call.client_gone()
        code = await kubelet.gone()

    assert stream.truncated
    assert json.loads(stream.events()[-1].removeprefix(b"data: "))["error"]["code"] == "draining"
    assert (code, kubelet.killed) == (0, False)
