"""Two proxies that share answers through Valkey, and what their callers notice when it is in trouble: nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from proxy.cache.level import AiocacheShared
from tests.fakes.gates import wait_until
from tests.fakes.upstream import Call
from tests.fakes.valkey import ValkeyServer
from tests.scenes.stage import Stage, as_bytes, chat, completion, stream_events

CACHE_ON = [("x-sameflight-cache", "on")]


class Pair:
    """Two proxies before one upstream, each with what a process has of its own."""

    def __init__(self, first: Stage, second: Stage) -> None:
        self.first = first
        self.second = second

    @property
    def calls(self) -> int:
        """What the upstream was asked in all."""
        return self.first.upstream.calls

    async def ask(self, stage: Stage, body: object | None = None) -> Any:
        response = await stage.ask(chat() if body is None else body, headers=CACHE_ON)
        await response.read_end()
        await stage.settled()
        return response


def level(stage: Stage) -> AiocacheShared:
    shared = stage.app.shared
    assert isinstance(shared, AiocacheShared)
    return shared


async def answer(call: Call) -> None:
    if b'"stream":true' in call.body.replace(b" ", b""):
        await call.answer_sse(stream_events("one", "two", "three"))
    else:
        await call.answer_json(completion("shared"))


@pytest.fixture
async def pair(private_valkey: ValkeyServer) -> AsyncIterator[Pair]:
    """Both know the server and listen to it."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(Stage(cache_url=private_valkey.url))
        upstream = first.upstream.url
        urls = {f"{name}_upstream": upstream for name in ("openai", "anthropic", "mistral")}
        second = await stack.enter_async_context(Stage(cache_url=private_valkey.url, **urls))
        first.upstream.respond_with(answer)
        for stage in (first, second):
            level(stage).start(stage.app.hot.purge)
            await wait_until(lambda stage=stage: level(stage).up, "the proxy listens")
        yield Pair(first, second)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_second_proxy_answers_with_what_the_first_was_told(pair: Pair, stream: bool) -> None:
    """Whole or as a stream, byte for byte, without an upstream call."""
    one = await pair.ask(pair.first, chat(stream=stream))
    await wait_until(lambda: level(pair.first).stored, "the answer was stored")
    other = await pair.ask(pair.second, chat(stream=stream))

    assert (one.status, other.status, pair.calls) == (200, 200, 1)
    assert one.body == other.body
    if stream:
        assert other.body == as_bytes(stream_events("one", "two", "three"))


async def test_a_purge_at_one_proxy_is_a_purge_at_the_other(pair: Pair) -> None:
    """In both levels."""
    await pair.ask(pair.first)
    await wait_until(lambda: level(pair.first).stored, "the answer was stored")
    await pair.ask(pair.second)
    assert pair.calls == 1
    generation = pair.second.app.hot.generation
    pair.first.app.hot.purge()
    pair.first.app.shared.purge()
    await wait_until(lambda: pair.second.app.hot.generation > generation, "the other heard of it")
    await pair.ask(pair.second)

    assert pair.calls == 2


@pytest.mark.parametrize("trouble", ["stopped", "hung", "flushed", "poisoned"])
async def test_no_caller_notices_that_the_server_is_in_trouble(
    pair: Pair, private_valkey: ValkeyServer, trouble: str
) -> None:
    """Not one answer but 200, each asked for at the upstream; and afterwards the level is used again."""
    bodies = [chat(f"question {number}") for number in range(40)]
    for body in bodies[:5]:
        await pair.ask(pair.first, body)
    await wait_until(lambda: level(pair.first).stored == 5, "the answers were stored")
    if trouble == "stopped":
        private_valkey.stop()
    elif trouble == "hung":
        private_valkey.suspend()
    elif trouble == "flushed":
        private_valkey.ask("FLUSHALL")
    else:
        for name in private_valkey.names():
            private_valkey.ask("SET", name, b"\x80\x04poison")
    responses = [await pair.second.ask(body, headers=CACHE_ON) for body in bodies]
    for response in responses:
        await response.read_end()
    await pair.second.settled()

    assert {response.status for response in responses} == {200}
    assert pair.calls == 5 + 40
    assert level(pair.second).hits == 0


async def test_the_level_is_used_again_after_the_server_was_away(pair: Pair, private_valkey: ValkeyServer) -> None:
    """Without anybody's doing."""
    private_valkey.stop()
    for number in range(5):
        await pair.ask(pair.second, chat(f"while it is away {number}"))
    private_valkey.start()
    for stage in (pair.first, pair.second):
        level(stage).breaker.succeed()  # what five seconds would do
        await wait_until(lambda stage=stage: level(stage).up, "the proxy listens again")
    await pair.ask(pair.first)
    await wait_until(lambda: level(pair.first).stored, "the answer was stored")
    calls = pair.calls
    await pair.ask(pair.second)

    assert pair.calls == calls


async def test_crowds_while_the_server_hangs_wait_for_one_time_out(
    pair: Pair, private_valkey: ValkeyServer
) -> None:
    """The look-up is inside the flight: identical requests wait together, and then the breaker is open."""
    private_valkey.suspend()
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(4):
        responses = await asyncio.gather(*(pair.second.ask(chat("same"), headers=CACHE_ON) for _ in range(50)))
        for response in responses:
            await response.read_end()
        assert {response.status for response in responses} == {200}
        pair.second.app.hot.purge()
        await pair.second.settled()
    assert loop.time() - began < 5.0
    assert level(pair.second).timeouts >= 3
    assert level(pair.second).breaker.open
