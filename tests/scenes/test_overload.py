"""More requests than can be served: who is refused, how, and who is spared. Time stands still, so that the gate stays
as it is set; when it closes by itself is the matter of tests/unit/pressure."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from proxy.pipeline import Pipeline
from proxy.pressure.gate import Level
from tests.fakes.clock import FrozenClock
from tests.fakes.upstream import make_event
from tests.scenes.stage import CHAT, MESSAGES, Stage, chat, completion, delta

pytestmark = pytest.mark.skipif("gate" not in Pipeline.__slots__, reason="the pipeline has no gate yet")


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """A proxy whose gate nobody moves but the scene."""
    async with Stage(clock=FrozenClock()) as stage:
        yield stage


def limit(stage: Stage, level: Level, slots: int = 0) -> None:
    """As if the loop had been late for a while."""
    gate = stage.app.gate
    gate.level, gate.slots = level, float(slots)


async def test_a_request_is_refused_at_its_head_before_its_body_is_read(stage: Stage) -> None:
    """The answer is there although the body never comes."""
    limit(stage, Level.HEADS)
    client = await stage.client()
    response = client.expect("POST")
    await client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 100000\r\n\r\n"
    )
    await response.read_end()

    assert response.status == 503
    assert response.header("x-should-retry") == "true"
    assert 1000 <= int(response.header("retry-after-ms") or 0) < 2000
    assert response.header("retry-after") in ("1", "2")
    assert response.json()["error"]["code"] == "server_is_overloaded"
    assert stage.upstream.calls == 0
    assert stage.app.gate.refused["slots"] == 1


async def test_a_refused_client_may_ask_again_on_its_connection(stage: Stage) -> None:
    """A small body has come with the head, so that nothing is in the way."""
    limit(stage, Level.HEADS)
    client = await stage.client()
    refused = await (await stage.ask(chat(), client=client)).read_end()
    limit(stage, Level.OPEN)
    response = await stage.ask(chat(), client=client)
    await (await stage.upstream.next_call()).answer_json(completion())
    await response.read_end()

    assert (refused.status, response.status) == (503, 200)


async def test_followers_are_spared_while_new_calls_are_refused(stage: Stage) -> None:
    """Who joins a flight costs next to nothing."""
    leader = await stage.ask(chat("known"))
    call = await stage.upstream.next_call()
    await stage.attached(1)
    limit(stage, Level.LEADS, slots=1)
    other = await (await stage.ask(chat("new"))).read_end()
    follower = await stage.ask(chat("known"))
    await stage.attached(2)
    await call.answer_json(completion())

    assert other.status == 503
    assert other.json()["error"]["code"] == "server_is_overloaded"
    assert [(await each.read_end()).status for each in (leader, follower)] == [200, 200]
    assert stage.upstream.calls == 1
    assert stage.app.gate.refused["lead"] == 1


async def test_a_request_that_finds_a_slot_is_let_in(stage: Stage) -> None:
    """What can be served is served."""
    limit(stage, Level.HEADS, slots=1)
    response = await stage.ask(chat("first"))
    call = await stage.upstream.next_call()
    refused = await (await stage.ask(chat("second"))).read_end()
    await call.answer_json(completion())
    await response.read_end()
    await stage.settled()
    again = await stage.ask(chat("second"))
    await (await stage.upstream.next_call()).answer_json(completion())
    await again.read_end()

    assert (response.status, refused.status, again.status) == (200, 503, 200)


async def test_a_refusal_speaks_the_dialect_of_its_route(stage: Stage) -> None:
    """Anthropic's SDK looks for a word of its own."""
    limit(stage, Level.HEADS)
    response = await (await stage.ask(chat(), path=MESSAGES)).read_end()

    assert response.status == 503
    assert response.json()["error"]["type"] == "overloaded_error"


async def test_without_memory_nobody_new_is_let_in_and_what_runs_goes_on(stage: Stage) -> None:
    """Probes are answered all the same."""
    running = await stage.ask(chat("running", stream=True))
    call = await stage.upstream.next_call()
    await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
    await call.send(make_event(delta("a")))
    await running.read_until(b"\n\n")
    stage.app.gate.closed = True
    refused = await (await stage.ask(chat("new"))).read_end()
    probe = await (await stage.ask(None, path="/health", method="GET", key=None)).read_end()
    await call.send(make_event("[DONE]"))
    await call.end()
    await running.read_end()

    assert (refused.status, probe.status, running.status) == (503, 200, 200)
    assert stage.app.gate.refused["memory"] == 1


async def test_nobody_is_refused_while_there_is_room(stage: Stage) -> None:
    """The gate is open from the start."""
    responses = [await stage.ask(chat(str(number)), path=CHAT) for number in range(20)]
    for _ in range(20):
        await (await stage.upstream.next_call()).answer_json(completion())

    assert {(await response.read_end()).status for response in responses} == {200}
    assert sum(stage.app.gate.refused.values()) == 0


async def test_a_refused_client_is_not_read_before_its_time_where_refusing_has_become_a_burden(stage: Stage) -> None:
    """What it asks meanwhile waits for the time it was told, and is then served."""
    limit(stage, Level.HEADS)
    stage.app.gate._refusing_s = 1e9
    client = await stage.client()
    await (await stage.ask(chat("hasty"), client=client)).read_end()
    limit(stage, Level.OPEN)
    stage.app.gate._refusing_s = 0.0
    hasty = await stage.ask(chat("hasty"), client=client)
    other = await stage.ask(chat("other"))
    call = await stage.upstream.next_call()
    assert b"other" in call.body
    assert stage.upstream.calls == 1

    stage.app.clock.advance(2.5)  # type: ignore[attr-defined]  # it is frozen
    second = await stage.upstream.next_call()
    for each in (call, second):
        await each.answer_json(completion())
    for response in (hasty, other):
        await response.read_end()

    assert b"hasty" in second.body
    assert hasty.status == other.status == 200
    assert stage.app.gate.held == 1
