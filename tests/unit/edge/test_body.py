"""Request bodies: held within bounds, streamed without any, and never waited for without end."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from proxy.clock import Deadlines
from proxy.edge.body import BodyLimits, Upload, read_whole
from proxy.errors import Kind, ProxyError
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks

LIMITS = BodyLimits(max_bytes=100, min_rate=500, timeout_s=60.0)
WIDE = BodyLimits(max_bytes=1_000_000, min_rate=500, timeout_s=60.0)


class Rig:
    """A stream that is fed by hand."""

    def __init__(self, clock: FrozenClock) -> None:
        self.clock = clock
        self.deadlines = Deadlines(clock)
        protocol = cast("BaseProtocol", _Protocol())
        self.content = StreamReader(protocol, 2**16, loop=asyncio.get_running_loop())

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.deadlines.sweep()

    def read(self, declared: int | None = None, limits: BodyLimits = LIMITS) -> asyncio.Task[bytes]:
        reading = read_whole(self.content, declared, limits, self.clock, self.deadlines)
        return asyncio.get_running_loop().create_task(reading)

    async def fails(self, task: asyncio.Task[bytes]) -> ProxyError:
        with pytest.raises(ProxyError) as caught:
            await task
        assert self.deadlines.armed == 0
        return caught.value


class _Protocol:
    """As much of a connection as a stream asks for."""

    connected = True
    _reading_paused = False

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self, *_: Any, **__: Any) -> None:
        self._reading_paused = False


@pytest.fixture
async def rig(frozen_clock: FrozenClock) -> Rig:
    """A stream with nothing in it."""
    return Rig(frozen_clock)


# -- held bodies ---------------------------------------------------------------------------------------------


async def test_a_body_that_came_with_the_head_is_there_at_once_and_arms_nothing(rig: Rig) -> None:
    """The usual case has neither a deadline nor a wait."""
    rig.content.feed_data(b"hello")
    rig.content.feed_eof()
    task = rig.read(5)
    await run_ticks(1)

    assert rig.deadlines.armed == 0
    assert await task == b"hello"


async def test_a_body_in_pieces_is_put_together(rig: Rig) -> None:
    """In their order; the deadline goes with the last one."""
    task = rig.read()
    for piece in (b"a", b"bc", b"def"):
        await run_ticks(2)
        rig.content.feed_data(piece)
    rig.content.feed_eof()

    assert await task == b"abcdef"
    assert rig.deadlines.armed == 0


@pytest.mark.parametrize("declared", [101, 10**12])
async def test_a_declared_length_above_the_bound_is_refused_unread(rig: Rig, declared: int) -> None:
    """Nothing is waited for."""
    error = await rig.fails(rig.read(declared))

    assert error.kind is Kind.TOO_LARGE
    assert "100 bytes" in error.public


@pytest.mark.parametrize(("size", "fits"), [(99, True), (100, True), (101, False)])
@pytest.mark.parametrize("at_once", [True, False])
async def test_the_bound_counts_bytes_whatever_was_declared(rig: Rig, size: int, fits: bool, at_once: bool) -> None:
    """Whole, or piece by piece."""
    if at_once:
        rig.content.feed_data(b"x" * size)
        rig.content.feed_eof()
    task = rig.read()
    if not at_once:
        for _ in range(size):
            rig.content.feed_data(b"x")
            await run_ticks(2)
        rig.content.feed_eof()
    if fits:
        assert len(await task) == size
    else:
        assert (await rig.fails(task)).kind is Kind.TOO_LARGE


@pytest.mark.parametrize(
    ("exception", "kind"),
    [
        (ConnectionResetError("gone"), Kind.CLIENT_GONE),
        (ValueError("bad chunk: secret"), Kind.BAD_REQUEST),
        (ProxyError(Kind.DRAINING, "Bye."), Kind.DRAINING),
    ],
)
async def test_what_breaks_a_body_is_said_in_our_own_terms(rig: Rig, exception: Exception, kind: Kind) -> None:
    """A client that left, a broken frame, and our own errors as they are."""
    task = rig.read()
    await run_ticks(2)
    rig.content.set_exception(exception)
    error = await rig.fails(task)

    assert error.kind is kind
    assert "secret" not in error.public


@pytest.mark.parametrize(("bytes_a_window", "fits"), [(4_999, False), (5_000, True)])
async def test_a_body_has_a_least_pace_over_ten_seconds(rig: Rig, bytes_a_window: int, fits: bool) -> None:
    """500 bytes a second."""
    task = rig.read(limits=WIDE)
    await run_ticks(2)
    rig.content.feed_data(b"x" * bytes_a_window)
    await run_ticks(2)
    rig.advance(10.05)
    await run_ticks(2)
    if fits:
        assert not task.done()
        rig.content.feed_eof()
        assert len(await task) == bytes_a_window
    else:
        error = await rig.fails(task)
        assert (error.kind, error.why) == (Kind.REQUEST_TIMEOUT, "body_rate")


async def test_a_body_has_a_minute_at_any_pace(rig: Rig) -> None:
    """The time limit of a held body."""
    task = rig.read(limits=WIDE)
    for _ in range(6):
        await run_ticks(2)
        assert not task.done()
        rig.content.feed_data(b"x" * 10_000)
        await run_ticks(2)
        rig.advance(10.05)
    error = await rig.fails(task)

    assert (error.kind, error.why) == (Kind.REQUEST_TIMEOUT, "body_timeout")


# -- streamed bodies -----------------------------------------------------------------------------------------


def upload(rig: Rig, counted: list[int]) -> Upload:
    return Upload(rig.content, None, LIMITS, rig.clock, rig.deadlines, count=counted.append)


async def test_an_upload_hands_pieces_on_and_counts_them_without_a_bound(rig: Rig) -> None:
    """It holds nothing, so there is nothing to bound."""
    counted: list[int] = []
    source = upload(rig, counted)
    rig.content.feed_data(b"x" * 1000)
    assert (await source.read(), source.unread) == (b"x" * 1000, True)
    rig.content.feed_eof()
    assert (await source.read(), source.unread) == (b"", False)

    assert counted == [1000, 0]
    assert rig.deadlines.armed == 0


async def test_an_upload_that_nobody_reads_is_not_the_clients_fault(rig: Rig) -> None:
    """Only a read that waits is a client that does not send."""
    source = upload(rig, [])
    rig.advance(10.05)
    rig.advance(600.0)
    rig.content.feed_data(b"x")

    assert await source.read() == b"x"
    source.close()
    source.close()
    assert rig.deadlines.armed == 0


async def test_an_upload_that_waits_for_its_client_runs_into_the_least_pace(rig: Rig) -> None:
    """At any time, without a limit on the whole."""
    source = upload(rig, [])
    for _ in range(20):
        rig.content.feed_data(b"x" * 6_000)
        await source.read()
        rig.advance(10.05)
    reading = asyncio.get_running_loop().create_task(source.read())
    await run_ticks(2)
    rig.advance(10.05)

    error = await rig.fails(reading)
    assert (error.kind, error.why) == (Kind.REQUEST_TIMEOUT, "body_rate")
