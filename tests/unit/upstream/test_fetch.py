"""Small answers as a whole: the proxy's own questions, and the bounds on what may come back."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator

import pytest

from proxy.errors import Kind, ProxyError
from proxy.upstream.base import Origin, UpstreamRequest
from proxy.upstream.fetch import Fetched, fetch
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, within
from tests.fakes.transports import PATIENCE, Rig, SessionRig, WireRig
from tests.fakes.wire_server import CHUNKED, LAST_CHUNK, READ, Repeat, Step, Wait, WireServer, Write, answer, chunk

MOST = 1000


@pytest.fixture(params=[WireRig, SessionRig])
async def rig(request: pytest.FixtureRequest, frozen_clock: FrozenClock) -> AsyncIterator[Rig]:
    made: Rig = request.param(frozen_clock)
    yield made
    await made.transport.close()


async def ask(rig: Rig, origin: Origin, *, keep: bool = True) -> Fetched:
    request = UpstreamRequest(origin, "GET", "/v1/models", [], b"")
    return await within(fetch(rig.transport, request, PATIENCE, MOST, keep=keep), "the answer came")


async def fails(rig: Rig, origin: Origin, *, keep: bool = True) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        await ask(rig, origin, keep=keep)
    return caught.value


async def test_answer_comes_whole_whatever_its_status(rig: Rig) -> None:
    """In one piece or in chunks, up to the last byte that is allowed."""
    timelines: list[list[Step]] = [
        [READ, Write(answer(b"x" * MOST))],
        [READ, Write(CHUNKED), Write(chunk(b"a")), Write(chunk(b"b") + LAST_CHUNK)],
        [READ, Write(answer(b"no", "503 No"))],
    ]
    expected = [Fetched(200, b"x" * MOST), Fetched(200, b"ab"), Fetched(503, b"no")]
    for timeline, whole in zip(timelines, expected, strict=True):
        async with WireServer(timeline) as server:
            assert await ask(rig, server.origin) == whole


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
async def test_answer_beyond_the_bound_is_cut_off(rig: Rig, at_once: bool, keep: bool) -> None:
    """Its connection is closed as soon as too much came, and not when the upstream has told everything."""
    gate = Gate("the rest")
    timeline: list[Step]
    if at_once:
        timeline = [READ, Write(answer(b"x" * (MOST + 1))), Wait(gate)]
    else:
        timeline = [READ, Write(CHUNKED), *[Write(chunk(b"x" * MOST))] * 2, Wait(gate), Write(LAST_CHUNK)]
    async with WireServer(timeline) as server:
        assert (await fails(rig, server.origin, keep=keep)).kind is Kind.UPSTREAM_TOO_LARGE
        if not at_once:
            await server.cut()
        gate.open()


async def test_encoded_answer_is_decoded_within_the_bound(rig: Rig) -> None:
    """Some servers compress what nobody asked them to; a small bomb stays shut."""
    coding = (b"content-encoding: gzip",)
    for body, kind in ((b"x" * MOST, None), (b"x" * (MOST + 1), Kind.UPSTREAM_BAD_RESPONSE)):
        timeline = [Repeat((READ, Write(answer(gzip.compress(body), headers=coding))))]
        async with WireServer(timeline) as server:
            if kind is None:
                assert await ask(rig, server.origin) == Fetched(200, body)
            else:
                assert (await fails(rig, server.origin)).kind is kind


async def test_body_that_nobody_wants_is_not_kept(rig: Rig) -> None:
    """The status is all that a ping is about."""
    async with WireServer([READ, Write(answer(b"x" * MOST))]) as server:
        assert await ask(rig, server.origin, keep=False) == Fetched(200, b"")


async def test_failing_upstream_fails_as_its_transport_says(rig: Rig) -> None:
    """No word of its own for what the transport has told."""
    async with WireServer() as server:
        origin = server.origin
    assert (await fails(rig, origin)).kind is Kind.UPSTREAM_UNREACHABLE
