"""When a request is over, all that it was is gone: nothing of it is in a circle that the collector has to find."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.scenes.guarded import CARDS, guarded
from tests.scenes.many import PLACEHOLDER, Many, answers, refusal, unused_url
from tests.scenes.stage import Stage, chat, completion, stream_events

OURS = frozenset((
    *("Exchange", "Relay", "RequestHead", "Plan", "Work", "Flight", "Subscription", "Tape", "Report", "AnswerHead"),
    *("Intake", "GuardedIntake", "DirectFlight", "DirectCall", "Leg", "Course", "Attempt", "Race", "Upshot"),
    *("ProxyError", "Usage", "Account"),
))  # fmt: skip
"""What requests are made of; what the scenes themselves leave behind does not count."""

COMPATIBLE = {"kind": "compatible"}
SMART: dict[str, Any] = {"smart": {"targets": ["one/llama", "two/qwen"]}}
Ask = Callable[[], Awaitable[None]]


async def ask(stage: Stage, body: object, status: int = 200) -> None:
    response = await (await stage.ask(body, key=PLACEHOLDER)).read_end()
    assert response.status == status


@asynccontextmanager
async def plain(streams: bool = False, status: int = 200, **settings: Any) -> AsyncIterator[tuple[Stage, Ask]]:
    async with Stage(**settings) as stage:
        if streams:
            stage.upstream.respond_with(lambda call: call.answer_sse(stream_events("a", "b")))
        else:
            stage.upstream.respond_with(lambda call: call.answer_json(completion(), status))
        yield stage, lambda: ask(stage, chat(stream=streams), status)


@asynccontextmanager
async def failed_over(one: Any) -> AsyncIterator[tuple[Stage, Ask]]:
    """The second of two targets answers; ``one`` is what the first does, ``None`` if nobody listens there."""
    first = COMPATIBLE if one is not None else {**COMPATIBLE, "base_url": unused_url()}
    async with Many({"one": first, "two": COMPATIBLE}, SMART) as stage:
        if one is not None:
            stage.upstreams["one"].respond_with(one)
        stage.upstreams["two"].respond_with(answers("two"))
        yield stage, lambda: ask(stage, chat(model="smart", stream=True))


@asynccontextmanager
async def guarded_streams() -> AsyncIterator[tuple[Stage, Ask]]:
    async with guarded({"cards": {**CARDS, "mode": "after", "action": "redact"}}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_sse(stream_events("a clean", " answer")))
        yield stage, lambda: ask(stage, chat(stream=True))


SCENES: dict[str, Callable[[], Any]] = {
    "whole answers": plain,
    "streams": lambda: plain(streams=True),
    "whole answers on aiohttp's lane": lambda: plain(fast_lane=False),
    "streams on aiohttp's lane": lambda: plain(streams=True, fast_lane=False),
    "errors of the upstream": lambda: plain(status=500),
    "a first target that fails": lambda: failed_over(refusal(500)),
    "a first target where nobody listens": lambda: failed_over(None),
    "guarded streams": guarded_streams,
}


PLAIN = ("whole answers", "a first target that fails")


@pytest.mark.parametrize(
    "scene", [name if name in PLAIN else pytest.param(name, marks=pytest.mark.long) for name in SCENES]
)
async def test_nothing_of_a_request_is_left_to_the_collector(scene: str) -> None:
    """On real sockets, with everything around them; the first few requests warm up."""
    async with SCENES[scene]() as (stage, ask_one):
        for _ in range(3):
            await ask_one()
        await stage.at_rest()
        stage.app.books.post()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(5):
                await ask_one()
            await stage.at_rest()
            stage.app.books.post()
            gc.collect()
            found = Counter(type(each).__name__ for each in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

        assert {name: count for name, count in found.items() if name in OURS} == {}
