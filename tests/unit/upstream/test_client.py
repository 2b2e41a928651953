"""Our own HTTP/1.1 client where it keeps connections: reuse, bounds, staleness, cancellation, on both loops."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import pytest

from proxy.errors import Kind, ProxyError, Retry
from proxy.protocol.message import ResponseHead
from proxy.upstream.base import Control, Origin, UpstreamRequest
from proxy.upstream.pool import Limits
from proxy.upstream.wire import Hold, WireConnection
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, run_ticks, wait_until, within
from tests.fakes.receiver import HandFedBody, Recorder
from tests.fakes.transports import PATIENCE, WireRig, cancel, served
from tests.fakes.wire_server import (
    CHUNKED,
    CLOSE,
    DEAF,
    LAST_CHUNK,
    READ,
    READ_HEAD,
    RESET,
    Repeat,
    Step,
    Wait,
    WireServer,
    Write,
    answer,
    chunk,
)

IDLE = {"idle": 1, "busy": 0, "opening": 0, "waiting": 0}
EMPTY = {"idle": 0, "busy": 0, "opening": 0, "waiting": 0}


@pytest.fixture
async def rig(frozen_clock: FrozenClock) -> AsyncIterator[WireRig]:
    made = WireRig(frozen_clock)
    yield made
    await made.wire.close()


# -- reuse ---------------------------------------------------------------------------------------------------------


async def test_requests_one_after_the_other_share_a_connection(rig: WireRig) -> None:
    """The second request finds the first one's connection."""
    async with WireServer() as server:
        for _ in range(5):
            await rig.ask(server.origin)
        assert (server.opened, len(server.requests)) == (1, 5)
        assert (rig.counts.opened, rig.counts.reused, rig.pool()) == (1, 4, IDLE)


async def test_connection_used_last_is_used_first(rig: WireRig) -> None:
    """A burst's connections grow cold while the newest one carries on."""
    gates = [Gate("first"), Gate("second")]
    timelines = [served(Wait(gate), Write(answer()), Repeat((READ, Write(answer())))) for gate in gates]
    async with WireServer(*timelines) as server:
        exchanges = [rig.begin(server.origin) for _ in gates]
        await server.seen(2)
        gates[1].open()
        await asyncio.wait(exchanges, return_when=asyncio.FIRST_COMPLETED)
        gates[0].open()
        await asyncio.gather(*exchanges)
        for _ in range(3):
            await rig.ask(server.origin)
        assert [request.connection for request in server.requests[2:]] == [1, 1, 1]


async def test_answers_without_body_leave_the_connection_fit(rig: WireRig) -> None:
    """HEAD, 204 and 304 end with their heads, and the next request goes out on the same connection."""
    timeline = [
        READ,
        Write(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n"),
        *served(Write(b"HTTP/1.1 204 No Content\r\n\r\n")),
        *served(Write(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n")),
        *served(Write(answer(b"last"))),
    ]
    async with WireServer(timeline) as server:
        for method in ("HEAD", "GET", "GET"):
            assert (await rig.ask(server.origin, b"", method)).body == b""
        assert (await rig.ask(server.origin)).body == b"last"
        assert server.opened == 1


async def test_whole_answer_in_one_read_is_one_call(rig: WireRig) -> None:
    """Head, body and end of a small answer reach the receiver together."""
    async with WireServer() as server:
        assert len((await rig.ask(server.origin)).reads) == 1


async def test_many_chunks_in_one_read_are_one_call(rig: WireRig) -> None:
    """So do all the chunks of one read."""
    async with WireServer(served(Write(CHUNKED + chunk(b"a") * 100 + LAST_CHUNK))) as server:
        recorder = await rig.ask(server.origin)
        assert [(data, ended) for _, data, ended in recorder.reads] == [(b"a" * 100, True)]


async def test_connection_that_the_upstream_wants_closed_is_closed(rig: WireRig) -> None:
    """``Connection: close`` is believed, also when the upstream does not act on it."""
    once = served(Write(answer(b"one", headers=[b"connection: close"])))
    async with WireServer(once, served(Write(answer(b"two")))) as server:
        assert (await rig.ask(server.origin)).body == b"one"
        await server.cut(1)
        assert rig.pool() == EMPTY
        assert (await rig.ask(server.origin)).body == b"two"


@pytest.mark.parametrize("ending", [CLOSE, RESET], ids=["fin", "rst"])
async def test_connection_that_died_idle_is_never_used(rig: WireRig, ending: Step) -> None:
    """The end of an idle connection takes it out of the pool; the next request needs no retry."""
    goes = Gate("goes")
    async with WireServer(served(Write(answer()), Wait(goes), ending), served(Write(answer(b"two")))) as server:
        await rig.ask(server.origin)
        goes.open()
        await wait_until(lambda: rig.counts.evicted, "the pool noticed")
        assert rig.pool() == EMPTY
        recorder = await rig.ask(server.origin)
        assert (recorder.body, recorder.starts, rig.counts.stale_retries) == (b"two", 1, 0)


async def test_surplus_bytes_close_the_connection(rig: WireRig) -> None:
    """In the same read as the answer they are seen at once, and the next request has another connection."""
    poisoned = served(Write(answer(b"one") + answer(b"poison")))
    async with WireServer(poisoned, served(Write(answer(b"two")))) as server:
        assert (await rig.ask(server.origin)).body == b"one"
        await server.cut(1)
        assert (await rig.ask(server.origin)).body == b"two"
        assert rig.counts.poison_averted == 1


async def test_bytes_on_an_idle_connection_close_it(rig: WireRig) -> None:
    """Whoever comes next must not take them for an answer."""
    later = Gate("later")
    poisoned = served(Write(answer(b"one")), Wait(later), Write(answer(b"poison")))
    async with WireServer(poisoned, served(Write(answer(b"two")))) as server:
        await rig.ask(server.origin)
        later.open()
        await server.cut(1)
        assert (rig.counts.poison_averted, rig.counts.evicted, rig.pool()) == (1, 1, EMPTY)
        assert (await rig.ask(server.origin)).body == b"two"


async def test_answer_that_overtakes_its_request_is_counted_and_ends_the_connection(rig: WireRig) -> None:
    """The rest of the body has nowhere to go."""
    async with WireServer([READ_HEAD, Write(answer(b"no", "413 Too Large"))]) as server:
        recorder = await rig.ask(server.origin, HandFedBody(100).feed(b"abc"))
        assert (recorder.head.status, rig.counts.early_answers, rig.pool()) == (413, 1, EMPTY)
        await server.cut(1)


async def test_body_is_not_read_any_more_when_the_exchange_has_returned(rig: WireRig) -> None:
    """Whoever owns the source may close it then."""

    class Slow:
        length = None
        left = False

        async def read(self) -> bytes:
            try:
                return await asyncio.get_running_loop().create_future()
            finally:
                self.left = True

    source = Slow()
    async with WireServer([READ_HEAD, Write(answer(b"no", "413 Too Large"))]) as server:
        await rig.ask(server.origin, source)
        assert source.left


async def test_answer_that_overtakes_a_large_body_ends_the_connection(rig: WireRig) -> None:
    """Also when the body is in the transport's buffer already."""
    async with WireServer([READ_HEAD, DEAF, Write(answer(b"no", "413 Too Large"))]) as server:
        recorder = await rig.ask(server.origin, b"x" * 20_000_000)
        assert (recorder.head.status, rig.counts.early_answers, rig.pool()) == (413, 1, EMPTY)


# -- stale connections ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [CLOSE, RESET], ids=["fin", "rst"])
async def test_reused_connection_that_dies_under_the_request_is_replaced_once(rig: WireRig, ending: Step) -> None:
    """The caller of a POST sees one answer; the second sending is counted."""
    stale = served(Write(answer(b"one")), READ, ending)
    async with WireServer(stale, served(Write(answer(b"two")))) as server:
        await rig.ask(server.origin)
        recorder = await rig.ask(server.origin)
        assert (recorder.body, recorder.starts, len(recorder.heads)) == (b"two", 2, 1)
        assert (rig.counts.stale_retries, len(server.requests), rig.pool()) == (1, 3, IDLE)


async def test_retry_takes_a_fresh_connection_and_not_another_idle_one(rig: WireRig) -> None:
    """After a restart of the upstream every pooled connection is stale; the retry must not meet the next one."""
    gates = [Gate("first"), Gate("second")]
    stale = [served(Wait(gate), Write(answer()), READ, RESET) for gate in gates]
    async with WireServer(*stale, served(Write(answer(b"fresh")))) as server:
        exchanges = [rig.begin(server.origin) for _ in gates]
        await server.seen(2)
        for gate in gates:
            gate.open()
        await asyncio.gather(*exchanges)
        recorder = await rig.ask(server.origin)
        assert (recorder.body, recorder.starts, server.opened) == (b"fresh", 2, 3)


async def test_retry_at_the_bound_makes_room_for_its_fresh_connection(frozen_clock: FrozenClock) -> None:
    """With every slot taken by idle connections, the oldest of them goes."""
    rig = WireRig(frozen_clock, limits=Limits(max_connections=2))
    gates = [Gate("first"), Gate("second")]
    stale = [served(Wait(gate), Write(answer()), READ, RESET) for gate in gates]
    async with WireServer(*stale, served(Write(answer(b"fresh")))) as server:
        exchanges = [rig.begin(server.origin) for _ in gates]
        await server.seen(2)
        for gate in gates:
            gate.open()
        await asyncio.gather(*exchanges)
        assert (await rig.ask(server.origin)).body == b"fresh"
        assert server.most_open <= 2
        await rig.wire.close()


async def test_second_death_in_a_row_is_reported(rig: WireRig) -> None:
    """The fresh connection of the retry gets no further retry."""
    stale = served(Write(answer(b"one")), READ, RESET)
    async with WireServer(stale, served(RESET), served(Write(answer()))) as server:
        await rig.ask(server.origin)
        error = await rig.fails(server.origin)
        assert (error.kind, error.why, error.retry) == (Kind.UPSTREAM_RESET, "reset", Retry.NO)
        assert (server.opened, rig.pool()) == (2, EMPTY)


async def test_reused_connection_that_dies_after_a_byte_is_not_retried(rig: WireRig) -> None:
    """One byte of an answer shows that the upstream was at work on this request."""
    broken = served(Write(answer(b"one")), READ, Write(b"H"), CLOSE)
    async with WireServer(broken, served(Write(answer()))) as server:
        await rig.ask(server.origin)
        assert (await rig.fails(server.origin)).kind is Kind.UPSTREAM_RESET
        assert (server.opened, rig.counts.stale_retries) == (1, 0)


async def test_reused_connection_that_dies_later_is_not_retried(rig: WireRig) -> None:
    """After a second the upstream was not stale but at work."""
    goes = Gate("goes")
    async with WireServer(served(Write(answer(b"one")), READ, Wait(goes), RESET), served(Write(answer()))) as server:
        await rig.ask(server.origin)
        exchange = rig.begin(server.origin)
        await goes.reached()
        rig.advance(1.5)
        goes.open()
        with pytest.raises(ProxyError) as caught:
            await exchange
        assert caught.value.kind is Kind.UPSTREAM_RESET
        assert server.opened == 1


async def test_streamed_body_is_not_sent_twice(rig: WireRig) -> None:
    """A body that was read once cannot be sent again, so the exchange fails."""
    async with WireServer(served(Write(answer(b"one")), READ, RESET), served(Write(answer()))) as server:
        await rig.ask(server.origin)
        error = await rig.fails(server.origin, HandFedBody().feed(b"abc", b""))
        assert (error.kind, error.retry) == (Kind.UPSTREAM_RESET, Retry.NO)
        assert (server.opened, rig.counts.stale_retries) == (1, 0)


# -- bounds --------------------------------------------------------------------------------------------------------


async def test_exchanges_above_the_bound_wait_in_line(frozen_clock: FrozenClock) -> None:
    """Two connections carry six exchanges."""
    rig = WireRig(frozen_clock, limits=Limits(max_connections=2))
    starts = Gate("starts")
    async with WireServer([READ, Wait(starts), Write(answer()), Repeat((READ, Write(answer())))]) as server:
        exchanges = [rig.begin(server.origin) for _ in range(6)]
        await server.seen(2)
        await run_ticks()
        assert rig.pool() == {"idle": 0, "busy": 2, "opening": 0, "waiting": 4}
        assert rig.counts.waiting == 4
        starts.open()
        await asyncio.gather(*exchanges)
        assert (server.most_open, len(server.requests)) == (2, 6)
        assert (rig.pool(), rig.counts.waiting) == ({**IDLE, "idle": 2}, 0)
        await rig.wire.close()


async def test_waiting_in_line_has_a_deadline(frozen_clock: FrozenClock) -> None:
    """After a second the exchange is refused, and the line is shorter by one."""
    rig = WireRig(frozen_clock, limits=Limits(max_connections=1))
    never = Gate("never")
    async with WireServer(served(Wait(never))) as server:
        first = rig.begin(server.origin)
        await never.reached()
        second = rig.begin(server.origin)
        await wait_until(lambda: rig.counts.waiting, "the second is in line")
        rig.advance(0.9)
        await run_ticks()
        assert not second.done()
        rig.advance(0.2)
        with pytest.raises(ProxyError) as caught:
            await second
        assert (caught.value.kind, caught.value.why) == (Kind.OVERLOADED, "pool_queue")
        assert (rig.pool()["waiting"], rig.counts.waiting, rig.counts.queue_timeouts) == (0, 0, 1)
        await cancel(first)


async def test_total_deadline_counts_in_line_too(frozen_clock: FrozenClock) -> None:
    """An exchange with less patience than the queue leaves it with a time-out."""
    rig = WireRig(frozen_clock, limits=Limits(max_connections=1))
    never = Gate("never")
    async with WireServer(served(Wait(never))) as server:
        first = rig.begin(server.origin)
        await never.reached()
        second = rig.begin(server.origin, patience=PATIENCE._replace(total_s=0.5))
        await wait_until(lambda: rig.counts.waiting, "the second is in line")
        rig.advance(0.6)
        with pytest.raises(ProxyError) as caught:
            await second
        assert (caught.value.kind, caught.value.why) == (Kind.UPSTREAM_TIMEOUT, "total")
        await cancel(first)


async def test_line_has_a_bound(frozen_clock: FrozenClock) -> None:
    """Beyond it exchanges are refused at once."""
    rig = WireRig(frozen_clock, limits=Limits(max_connections=1, max_waiting=1))
    never = Gate("never")
    async with WireServer(served(Wait(never))) as server:
        running = [rig.begin(server.origin) for _ in range(2)]
        await never.reached()
        error = await rig.fails(server.origin)
        assert (error.kind, error.why) == (Kind.OVERLOADED, "pool_full")
        for exchange in reversed(running):
            await cancel(exchange)
        assert rig.pool() == EMPTY


async def test_exchange_cancelled_in_line_leaves_it(frozen_clock: FrozenClock) -> None:
    """The connection that becomes free goes to whoever is still there."""
    rig = WireRig(frozen_clock, limits=Limits(max_connections=1))
    goes = Gate("goes")
    async with WireServer([READ, Wait(goes), Write(answer(b"one")), READ, Write(answer(b"three"))]) as server:
        exchanges = [rig.begin(server.origin) for _ in range(3)]
        await goes.reached()
        await wait_until(lambda: rig.counts.waiting == 2, "two are in line")
        await cancel(exchanges[1])
        goes.open()
        assert ((await exchanges[0]).body, (await exchanges[2]).body) == (b"one", b"three")
        await rig.wire.close()


async def test_connection_handed_to_an_exchange_that_is_cancelled_in_the_same_tick_is_passed_on(
    frozen_clock: FrozenClock,
) -> None:
    """Between being handed over and waking up an exchange may die; its connection must not get lost."""
    rig = WireRig(frozen_clock, limits=Limits(max_connections=1))
    goes = Gate("goes")
    async with WireServer([READ, Wait(goes), Write(answer(b"one")), READ, Write(answer(b"three"))]) as server:
        waiting: list[asyncio.Task[Recorder]] = []
        # Scheduled before the connection is promised, so it runs after the promise and before its taker wakes.
        soon = asyncio.get_running_loop().call_soon
        first = rig.begin(server.origin, recorder=Recorder(lambda _: soon(waiting[0].cancel)))
        await goes.reached()
        waiting = [rig.begin(server.origin) for _ in range(2)]
        await wait_until(lambda: rig.counts.waiting == 2, "two are in line")
        goes.open()
        assert (await first).body == b"one"
        assert (await waiting[1]).body == b"three"
        assert (rig.pool(), waiting[0].cancelled()) == (IDLE, True)
        await rig.wire.close()


async def test_idle_connections_above_the_bound_are_closed_oldest_first(frozen_clock: FrozenClock) -> None:
    """A burst leaves ``max_idle`` connections behind."""
    rig = WireRig(frozen_clock, limits=Limits(max_idle=2))
    goes = Gate("goes")
    async with WireServer(served(Wait(goes), Write(answer()))) as server:
        exchanges = [rig.begin(server.origin) for _ in range(5)]
        await server.seen(5)
        goes.open()
        await asyncio.gather(*exchanges)
        await wait_until(lambda: server.open == 2, "three were closed")
        assert (rig.pool(), rig.counts.evicted) == ({**IDLE, "idle": 2}, 3)
        await rig.wire.close()


async def test_connection_idle_for_too_long_is_not_used(rig: WireRig) -> None:
    """The upstream may be closing it this very moment."""
    async with WireServer() as server:
        await rig.ask(server.origin)
        rig.clock.advance(15.0)
        await rig.ask(server.origin)
        await server.cut(1)
        assert (server.opened, rig.counts.evicted) == (2, 1)


async def test_sweep_closes_what_is_idle_for_too_long_and_forgets_the_origin(rig: WireRig) -> None:
    """The janitor's duty leaves nothing of an origin that nobody asks any more."""
    async with WireServer() as server:
        await rig.ask(server.origin)
        rig.clock.advance(14.0)
        assert rig.wire.sweep(rig.clock.now()) == 0
        rig.clock.advance(1.0)
        assert rig.wire.sweep(rig.clock.now()) == 1
        await server.cut(1)
        assert rig.wire.describe()["pools"] == []


async def test_old_connection_is_closed_after_its_exchange(frozen_clock: FrozenClock) -> None:
    """Traffic follows the origin's DNS sooner or later, however busy a connection is."""
    rig = WireRig(frozen_clock, limits=Limits(max_age_s=100.0))
    async with WireServer() as server:
        for _ in range(11):
            await rig.ask(server.origin)
            rig.clock.advance(10.0)
        await server.cut(1)
        assert (server.opened, rig.pool()) == (1, EMPTY)


async def test_origins_do_not_share_connections(rig: WireRig) -> None:
    """Each origin has its own pool and its own bound."""
    async with WireServer() as one, WireServer() as other:
        for server in (one, other, one):
            await rig.ask(server.origin)
        assert (one.opened, other.opened, len(rig.wire.describe()["pools"])) == (1, 1, 2)


async def test_close_takes_idle_connections_at_once_and_busy_ones_when_they_end(rig: WireRig) -> None:
    """Draining cuts nothing that is under way."""
    goes, ends = Gate("goes"), Gate("ends")
    timelines = served(Wait(goes), Write(answer())), served(Wait(ends), Write(answer(b"two")))
    async with WireServer(*timelines) as server:
        first = rig.begin(server.origin)
        await goes.reached()
        second = rig.begin(server.origin)
        await ends.reached()
        goes.open()
        await first
        await rig.wire.close()
        await server.cut(1)
        assert (await rig.fails(server.origin)).kind is Kind.DRAINING
        ends.open()
        assert (await second).body == b"two"
        await server.cut(2)
        assert rig.pool() == EMPTY


async def test_stale_connection_is_replaced_for_a_running_exchange_of_a_closed_transport(rig: WireRig) -> None:
    """Draining refuses new exchanges; this one was accepted before."""
    goes = Gate("goes")
    stale = served(Write(answer(b"one")), READ, Wait(goes), RESET)
    async with WireServer(stale, served(Write(answer(b"two")))) as server:
        await rig.ask(server.origin)
        exchange = rig.begin(server.origin)
        await goes.reached()
        await rig.wire.close()
        goes.open()
        assert (await exchange).body == b"two"


# -- deadlines -----------------------------------------------------------------------------------------------------


async def test_connecting_has_a_deadline(frozen_clock: FrozenClock) -> None:
    """Name, TCP and TLS together; nothing was sent, so the same target may be tried again."""
    dialled = Gate("dialled")

    async def never(*_: object, **__: object) -> object:
        return await dialled.wait()

    rig = WireRig(frozen_clock, start_connection=never)
    exchange = rig.begin(Origin("http", "127.0.0.1", 9))
    await dialled.reached()
    rig.advance(4.9)
    await run_ticks()
    assert not exchange.done()
    rig.advance(0.2)
    with pytest.raises(ProxyError) as caught:
        await exchange
    error = caught.value
    assert (error.kind, error.why, error.retry) == (Kind.UPSTREAM_TIMEOUT, "connect", Retry.SAME)
    assert (rig.counts.failed, rig.pool(), rig.deadlines.armed) == (1, EMPTY, 0)


async def test_total_deadline_before_the_connection_is_a_total_one(frozen_clock: FrozenClock) -> None:
    """Whichever deadline comes first gives its name."""
    dialled = Gate("dialled")

    async def never(*_: object, **__: object) -> object:
        return await dialled.wait()

    rig = WireRig(frozen_clock, start_connection=never)
    exchange = rig.begin(Origin("http", "127.0.0.1", 9), patience=PATIENCE._replace(total_s=1.0))
    await dialled.reached()
    rig.advance(1.1)
    with pytest.raises(ProxyError) as caught:
        await exchange
    assert (caught.value.kind, caught.value.why) == (Kind.UPSTREAM_TIMEOUT, "total")


async def test_exchange_cancelled_while_connecting_gives_its_slot_back(frozen_clock: FrozenClock) -> None:
    """Cancellation reaches the attempt to connect, and nothing stays behind."""
    dialled = Gate("dialled")

    async def never(*_: object, **__: object) -> object:
        return await dialled.wait()

    rig = WireRig(frozen_clock, start_connection=never)
    exchange = rig.begin(Origin("http", "127.0.0.1", 9))
    await dialled.reached()
    assert rig.pool() == {**EMPTY, "opening": 1}
    await cancel(exchange)
    assert (rig.pool(), rig.counts.failed, rig.deadlines.armed) == (EMPTY, 0, 0)


class FakeTransport(asyncio.Transport):
    aborted = False

    def abort(self) -> None:
        self.aborted = True


class FakeConnector:
    """Connects at once; what happens next is the test's."""

    def __init__(self, then: Callable[[WireConnection], Awaitable[None]]) -> None:
        self.transport = FakeTransport()
        self._then = then

    async def connect(self, origin: Origin, connection: WireConnection) -> None:
        connection.connection_made(self.transport)
        await self._then(connection)


async def test_exchange_cancelled_in_the_tick_in_which_it_connected_leaves_no_connection(rig: WireRig) -> None:
    """A connection that came about although nobody waits for it any more is closed."""
    connected = Gate("connected")
    connector = FakeConnector(lambda _: connected.wait())
    rig.wire._connector = connector  # type: ignore[assignment]
    exchange = rig.begin(Origin("http", "127.0.0.1", 9))
    await connected.reached()
    await cancel(exchange)
    assert (connector.transport.aborted, rig.pool()) == (True, EMPTY)


async def test_connection_that_is_closed_before_its_first_use_may_be_tried_again(rig: WireRig) -> None:
    """It ended between being opened and being used; nothing was sent, and its slot is free."""

    async def hang_up(connection: WireConnection) -> None:
        connection.eof_received()

    rig.wire._connector = FakeConnector(hang_up)  # type: ignore[assignment]
    error = await rig.fails(Origin("http", "127.0.0.1", 9))
    assert (error.kind, error.why, error.retry) == (Kind.UPSTREAM_UNREACHABLE, "reset", Retry.SAME)
    assert (rig.counts.failed, rig.pool()) == (1, EMPTY)


async def test_deadline_of_one_exchange_never_ends_the_next(rig: WireRig) -> None:
    """The wheel's handle stays with the connection; what it finds there decides."""
    later = Gate("later")
    async with WireServer([READ, Write(answer()), READ, Wait(later), Write(answer(b"two"))]) as server:
        await rig.ask(server.origin, patience=PATIENCE._replace(first_byte_s=10.0))
        rig.advance(9.0)
        exchange = rig.begin(server.origin)
        await later.reached()
        rig.advance(2.0)
        await run_ticks()
        later.open()
        assert (await exchange).body == b"two"


async def test_shorter_deadline_on_a_reused_connection_is_kept(rig: WireRig) -> None:
    """A handle armed for later does not make a shorter patience longer."""
    later = Gate("later")
    async with WireServer([READ, Write(answer()), READ, Wait(later)]) as server:
        await rig.ask(server.origin)
        exchange = rig.begin(server.origin, patience=PATIENCE._replace(first_byte_s=2.0))
        await later.reached()
        rig.advance(2.1)
        with pytest.raises(ProxyError) as caught:
            await exchange
        assert caught.value.why == "first_byte"


async def test_slow_but_steady_upload_is_not_cut_off(rig: WireRig) -> None:
    """Between two accepted writes idle_s may pass; progress in the transport's buffer counts as one."""
    body = b"x" * 40_000_000
    async with WireServer([]) as server:
        exchange = rig.begin(server.origin, body)
        await wait_until(lambda: server.wires, "the connection came")
        wire = server.wires[0]
        for megabytes in (8, 16, 24, 32):
            await wait_until(lambda size=megabytes: wire.received_bytes > size * 1_000_000, "more was taken")
            wire.transport.pause_reading()
            rig.advance(15.0)
            await run_ticks()
            assert not exchange.done()
            wire.transport.resume_reading()
        await wait_until(lambda: wire.received_bytes > len(body), "all was taken")
        await cancel(exchange)


async def test_armed_deadlines_do_not_outlive_their_connections(rig: WireRig) -> None:
    """A closed connection has left the wheel."""
    async with WireServer() as server:
        await rig.ask(server.origin)
        assert rig.deadlines.armed == 1
        await rig.wire.close()
        assert rig.deadlines.armed == 0


# -- cancellation --------------------------------------------------------------------------------------------------


async def test_cancelled_exchange_closes_its_connection_and_frees_its_slot_in_the_same_tick(rig: WireRig) -> None:
    """By the time the cancellation is out, the pool is empty."""
    never = Gate("never")
    async with WireServer(served(Write(CHUNKED + chunk(b"abc")), Wait(never))) as server:
        recorder = Recorder()
        exchange = rig.begin(server.origin, recorder=recorder)
        await recorder.got(3)
        await cancel(exchange)
        assert rig.pool() == EMPTY
        await server.cut(1)


async def test_exchange_cancelled_after_its_answer_leaves_the_connection_alone(rig: WireRig) -> None:
    """The answer ended and the connection is free again, maybe busy with somebody else: it must live."""
    async with WireServer() as server:
        recorder = Recorder()
        exchange = rig.begin(server.origin, recorder=recorder)
        recorder._on_each = lambda _: exchange.cancel()
        await asyncio.gather(exchange, return_exceptions=True)
        assert recorder.ended
        pool = rig.pool()
        assert (pool["busy"], pool["opening"]) == (0, 0)
        assert (await rig.ask(server.origin)).ended


@pytest.mark.parametrize("event", ["data", "end"])
async def test_bytes_that_come_in_the_tick_of_a_cancellation_are_not_delivered(rig: WireRig, event: str) -> None:
    """Between ``cancel`` and the task's last step the loop may still read; the receiver has left by then."""
    never = Gate("never")
    async with WireServer(served(Wait(never))) as server:
        recorder = Recorder()
        exchange = rig.begin(server.origin, recorder=recorder)
        await never.reached()
        assert isinstance(recorder.control, Hold)
        connection = recorder.control.connection
        assert connection is not None
        exchange.cancel()
        if event == "data":
            connection.data_received(answer(b"late"))
        else:
            connection.eof_received()
        assert (recorder.reads, connection.closed, rig.pool()) == ([], True, EMPTY)
        await asyncio.gather(exchange, return_exceptions=True)
        await server.cut(1)


async def test_pause_during_the_last_read_does_not_stop_the_connection(rig: WireRig) -> None:
    """The next exchange on it reads as usual."""
    async with WireServer() as server:
        await rig.ask(server.origin, recorder=Recorder(lambda recorder: recorder.pause()))
        assert (await rig.ask(server.origin)).body == b"ok"
        assert server.opened == 1


async def test_receiver_that_fails_loses_its_connection_and_nothing_else(rig: WireRig) -> None:
    """A receiver may not raise; if it does, its exchange fails and no other is touched."""

    class Broken(Recorder):
        def on_read(self, head: ResponseHead | None, data: bytes, ended: bool) -> None:
            raise ValueError("broken receiver")

    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context["exception"]))
    async with WireServer() as server:
        with pytest.raises(ProxyError) as caught:
            await rig.ask(server.origin, recorder=Broken())
        assert caught.value.kind is Kind.UPSTREAM_RESET
        assert rig.pool() == EMPTY
        assert (await rig.ask(server.origin)).body == b"ok"
    assert [type(error) for error in heard] == [ValueError]


class Echo:
    """Checks that an answer carries the tag of its request, and nothing but."""

    def __init__(self, tag: bytes) -> None:
        self.tag = tag
        self.body = b""

    def on_start(self, control: Control) -> None:
        self.body = b""

    def on_read(self, head: ResponseHead | None, data: bytes, ended: bool) -> None:
        self.body += data
        assert self.tag.startswith(self.body), f"{self.body!r} reached {self.tag!r}"


class EchoServer(asyncio.Protocol):
    """Answers each request with its own body, in one or two writes, now or a few ticks later."""

    def __init__(self, open_connections: set[EchoServer], seed: int) -> None:
        self.all = open_connections
        self.random = random.Random(seed)
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.discard(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"." in self.buffer.partition(b"\r\n\r\n")[2]:
            tag, _, self.buffer = self.buffer.partition(b"\r\n\r\n")[2].partition(b".")
            self.later(self.random.randrange(4), tag + b".")

    def later(self, ticks: int, tag: bytes) -> None:
        if ticks:
            asyncio.get_running_loop().call_soon(self.later, ticks - 1, tag)
        elif self.random.random() < 0.5:
            self.write(answer(tag))
        else:
            self.write(CHUNKED + chunk(tag[:3]))
            asyncio.get_running_loop().call_soon(self.write, chunk(tag[3:]) + LAST_CHUNK)

    def write(self, data: bytes) -> None:
        if self in self.all:
            self.transport.write(data)


@pytest.fixture
async def echo(frozen_clock: FrozenClock) -> AsyncIterator[tuple[WireRig, Origin, set[EchoServer]]]:
    """A transport with forty connections at most, an origin that echoes, and the echoing connections."""
    rig = WireRig(frozen_clock, limits=Limits(max_connections=40))
    alive: set[EchoServer] = set()
    seeds = random.Random(2)
    listener = await asyncio.get_running_loop().create_server(
        lambda: EchoServer(alive, seeds.randrange(2**32)), "127.0.0.1", 0
    )
    yield rig, Origin("http", "127.0.0.1", listener.sockets[0].getsockname()[1]), alive
    await rig.wire.close()
    await wait_until(lambda: not alive, "all connections are closed")
    listener.close()
    await listener.wait_closed()


@pytest.mark.long
async def test_ten_thousand_tagged_exchanges_with_random_cancellations_never_mix(
    echo: tuple[WireRig, Origin, set[EchoServer]],
) -> None:
    """No answer ever reaches another request, and no connection leaks."""
    rig, origin, alive = echo
    chance = random.Random(20)
    answered, cancelled = 0, 0

    async def exchange(number: int) -> None:
        nonlocal answered, cancelled
        tag = b"tag-%d." % number
        receiver = Echo(tag)
        request = UpstreamRequest(origin, "POST", "/", [], tag)
        task = asyncio.get_running_loop().create_task(rig.wire.exchange(request, receiver, PATIENCE))
        if chance.random() < 0.2:
            for _ in range(chance.randrange(8)):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait((task,))
        if task.cancelled():
            cancelled += 1
        else:
            task.result()
            answered += 1
            assert receiver.body == tag

    async def worker(numbers: range) -> None:
        for number in numbers:
            await exchange(number)

    await within(asyncio.gather(*[worker(range(lane, 10_000, 60)) for lane in range(60)]), "all ended", 50.0)
    assert answered + cancelled == 10_000
    assert cancelled > 500
    pool = rig.pool()
    assert (pool["busy"], pool["opening"], pool["waiting"], rig.counts.waiting) == (0, 0, 0, 0)
    assert rig.counts.poison_averted == 0
    await wait_until(lambda: len(alive) == pool["idle"], "only idle connections are left")
    await rig.wire.close()
    assert (rig.pool(), rig.deadlines.armed) == (EMPTY, 0)
