"""Connections that are there before the first request, against raw servers and with the clock in the test's hand."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxy.config.settings import Settings
from proxy.protocol.message import HeaderList
from proxy.upstream import warm
from proxy.upstream.base import Origin
from proxy.upstream.connect import make_tls_context
from proxy.upstream.outbound import Outbound
from proxy.upstream.pool import KEEP_S, RENEW_S, Limits
from proxy.upstream.warm import KeepWarm
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, run_ticks, wait_until, within
from tests.fakes.transports import WireRig
from tests.fakes.wire_server import CLOSE, READ, RESET, Repeat, Wait, WireServer, Write, answer

FOREVER = [Repeat((READ, Write(answer())))]


@dataclass(frozen=True)
class Wanted:
    """As much of a provider as keeping it warm takes."""

    origin: Origin
    keep_warm: int = 0
    ping_s: float = 0.0
    ping_path: str = ""
    name: str = "p"
    base_path: str = ""

    @property
    def scheme(self) -> str:
        return self.origin.scheme

    @property
    def host(self) -> str:
        return self.origin.host

    @property
    def port(self) -> int:
        return self.origin.port


def headers_for(wanted: Wanted) -> HeaderList:
    return [(b"authorization", b"Bearer key-of-" + wanted.name.encode())]


class WarmRig(WireRig):
    """A transport that is kept warm; ``pass_s`` plays the janitor."""

    def __init__(self, clock: FrozenClock, **options: Any) -> None:
        super().__init__(clock, **options)
        self.warm = KeepWarm(clock, self.wire, headers_for, spread=lambda: 0.5)

    def sweep(self) -> None:
        self.wire.sweep(self.clock.now())
        self.warm.sweep(self.clock.now())

    def pass_s(self, seconds: float) -> None:
        self.advance(seconds)
        self.sweep()

    async def idle(self, count: int) -> None:
        await wait_until(lambda: self.pool()["idle"] == count, f"{count} connections are idle")
        await wait_until(lambda: not self.pool()["opening"], "none is being opened")

    async def settled(self) -> None:
        await wait_until(lambda: not self.warm._tasks, "nothing is under way")


@pytest.fixture
async def rig(frozen_clock: FrozenClock) -> AsyncIterator[WarmRig]:
    made = WarmRig(frozen_clock)
    yield made
    await made.warm.close()
    await made.wire.close()


# -- connections ---------------------------------------------------------------------------------------------------


async def test_wanted_connections_are_open_before_any_request(rig: WarmRig) -> None:
    """Ten are wanted, more than are opened at once, and all are there without a second sweep."""
    async with WireServer(FOREVER) as server:
        rig.warm.keep([Wanted(server.origin, 10)])
        await rig.idle(10)
        assert (server.opened, server.requests, rig.warm.opened) == (10, [], 10)


async def test_first_request_opens_no_connection(rig: WarmRig) -> None:
    """It leaves on one that is there, and needs no task: that is what they are for."""
    async with WireServer(FOREVER) as server:
        rig.warm.keep([Wanted(server.origin, 2)])
        await rig.idle(2)
        await rig.ask(server.origin)
        assert (server.opened, rig.counts.reused) == (2, 1)


async def test_handshakes_are_done_before_the_first_request(frozen_clock: FrozenClock, tmp_path: Path) -> None:
    """The server has seen TLS to its end and not a byte of HTTP; a request adds no handshake."""
    authority, path = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    rig = WarmRig(frozen_clock, tls=make_tls_context(str(path)))
    async with WireServer(FOREVER, ssl=serving) as server:
        rig.warm.keep([Wanted(server.origin, 2)])
        await rig.idle(2)
        await wait_until(lambda: server.opened == 2, "both handshakes are done")
        assert server.requests == []
        await rig.ask(server.origin)
        assert server.opened == 2
    await rig.warm.close()
    await rig.wire.close()


async def test_busy_connection_is_made_up_for(rig: WarmRig) -> None:
    """What is kept open is spare: the next request finds one although the first has not ended."""
    gate = Gate("answer")
    async with WireServer([READ, Wait(gate), Write(answer()), *FOREVER]) as server:
        rig.warm.keep([Wanted(server.origin, 1)])
        await rig.idle(1)
        exchange = rig.begin(server.origin)
        await server.seen(1)
        rig.pass_s(1.0)
        await rig.idle(1)
        assert (server.opened, rig.pool()["busy"]) == (2, 1)
        gate.open()
        await exchange


async def test_closed_connection_is_opened_again(rig: WarmRig) -> None:
    """The next sweep notices what the upstream closed; one that had lasted is replaced at once."""
    gate = Gate("closing")
    async with WireServer([Wait(gate), CLOSE], FOREVER) as server:
        rig.warm.keep([Wanted(server.origin, 1)])
        await rig.idle(1)
        rig.pass_s(warm.STEADY_S)
        gate.open()
        await rig.idle(0)
        rig.pass_s(1.0)
        await rig.idle(1)
        assert (server.opened, rig.warm.dropped) == (2, 0)


async def test_request_on_a_warm_connection_that_just_died_goes_out_again(rig: WarmRig) -> None:
    """It was idle, so it may have been closed for that: its first request is retried like any on a reused one."""
    async with WireServer([READ, RESET], FOREVER) as server:
        rig.warm.keep([Wanted(server.origin, 1)])
        await rig.idle(1)
        recorder = await rig.ask(server.origin)
        assert (recorder.body, rig.counts.stale_retries, server.opened) == (b"ok", 1, 2)


async def test_warm_connections_outlive_the_pools_limit_and_others_do_not(rig: WarmRig) -> None:
    """Two of three stay when the pool closes what was idle for long."""
    gate = Gate("answers")
    async with WireServer([READ, Wait(gate), Write(answer()), *FOREVER]) as server:
        exchanges = [rig.begin(server.origin) for _ in range(3)]
        await server.seen(3)
        gate.open()
        await asyncio.gather(*exchanges)
        rig.warm.keep([Wanted(server.origin, 2)])
        assert rig.pool()["idle"] == 3
        rig.pass_s(Limits().idle_s)
        assert rig.pool()["idle"] == 2
        await rig.ask(server.origin)
        assert server.opened == 3


async def test_ageing_connections_are_replaced_before_they_go(rig: WarmRig) -> None:
    """Two minutes of sweeps without a request: the number never falls below what is wanted."""
    seen = set()
    async with WireServer(FOREVER) as server:
        rig.warm.keep([Wanted(server.origin, 2)])
        await rig.idle(2)
        for _ in range(120):
            rig.pass_s(1.0)
            await rig.settled()
            seen.add(rig.pool()["idle"])
        assert min(seen) == 2
        assert max(seen) <= 4
        assert server.opened == 2 + 2 * int(120 // RENEW_S)


async def test_connection_that_was_idle_too_long_is_not_used(rig: WarmRig) -> None:
    """Without sweeps (the process stood still) a request would rather open one."""
    async with WireServer(FOREVER) as server:
        rig.warm.keep([Wanted(server.origin, 2)])
        await rig.idle(2)
        rig.advance(KEEP_S)
        await rig.ask(server.origin)
        assert (server.opened, rig.counts.evicted) == (3, 2)


async def test_host_that_is_not_wanted_any_more_grows_cold(rig: WarmRig) -> None:
    """After a reload its connections are idle ones like others, and its pool is forgotten."""
    async with WireServer(FOREVER) as server:
        rig.warm.keep([Wanted(server.origin, 2)])
        await rig.idle(2)
        rig.warm.keep([])
        rig.pass_s(Limits().idle_s)
        assert rig.wire.describe()["pools"] == []
        await server.all_cut()
        assert rig.warm.describe()["hosts"] == []


async def test_providers_of_one_host_share_its_connections(rig: WarmRig) -> None:
    """Two keys at one vendor need no two sets."""
    async with WireServer(FOREVER) as server:
        rig.warm.keep([Wanted(server.origin, 1), Wanted(server.origin, 3, name="q"), Wanted(server.origin, 2)])
        await rig.idle(3)
        assert server.opened == 3


async def test_requests_come_before_warmth_where_slots_are_few(frozen_clock: FrozenClock) -> None:
    """Nothing is opened ahead beyond the origin's limit, nor while a request waits in line."""
    rig = WarmRig(frozen_clock, limits=Limits(max_connections=2, queue_s=60.0))
    gate = Gate("answers")
    async with WireServer([READ, Wait(gate), Write(answer()), *FOREVER]) as server:
        exchanges = [rig.begin(server.origin) for _ in range(3)]
        await server.seen(2)
        rig.warm.keep([Wanted(server.origin, 2)])
        rig.pass_s(1.0)
        assert (rig.pool()["opening"], rig.pool()["waiting"], server.opened) == (0, 1, 2)
        gate.open()
        await asyncio.gather(*exchanges)
        rig.pass_s(1.0)
        await rig.settled()
        assert (server.most_open, rig.pool()["idle"]) == (2, 2)
    await rig.warm.close()
    await rig.wire.close()


# -- failures ------------------------------------------------------------------------------------------------------


def closed_port() -> Origin:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Origin("http", "127.0.0.1", probe.getsockname()[1])


async def test_dead_host_is_tried_ever_more_rarely_and_one_at_a_time(rig: WarmRig) -> None:
    """Ten minutes of sweeps cost some twenty attempts; the first four came together."""
    rig.warm.keep([Wanted(closed_port(), 16)])
    await rig.settled()
    assert rig.warm.failed == warm.AT_ONCE_EACH
    at = []
    start = rig.clock.now()
    for _ in range(600):
        before = rig.warm.failed
        rig.pass_s(1.0)
        await rig.settled()
        at += [rig.clock.now() - start] * (rig.warm.failed - before)
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert gaps[:6] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert set(gaps[6:]) == {60.0}


async def test_host_that_comes_back_is_warm_within_a_sweep_of_its_hold(rig: WarmRig) -> None:
    """The first success brings the rest with it."""
    origin = closed_port()
    rig.warm.keep([Wanted(origin, 3)])
    await rig.settled()
    server = WireServer(FOREVER)
    server.port = origin.port
    async with server:
        rig.pass_s(warm.FIRST_HOLD_S)
        await rig.idle(3)
        rig.pass_s(warm.STEADY_S)
        assert rig.warm.describe()["hosts"][0]["failures"] == 0


async def test_host_that_closes_at_once_is_not_hammered(rig: WarmRig) -> None:
    """It can be reached, and still nothing comes of it: as good as a failure."""
    async with WireServer([CLOSE]) as server:
        rig.warm.keep([Wanted(server.origin, 2)])
        await wait_until(lambda: server.opened == 2, "both were opened")
        await server.all_cut()
        await rig.idle(0)
        for _ in range(300):
            rig.pass_s(1.0)
            await rig.settled()
            await server.all_cut()
            await rig.idle(0)
        assert server.opened < 30
        assert rig.warm.dropped > 5


async def test_bug_is_told_and_held_off_like_a_failure(rig: WarmRig) -> None:
    """No sweep meets it again at once, for a connection or for a ping."""
    bugs: list[BaseException] = []

    async def opens(*_: Any) -> None:
        raise KeyError("bug")

    transport = _Replaced(rig.wire, opens)
    transport.exchange = opens
    rig.warm = KeepWarm(
        rig.clock, transport, headers_for, bug=lambda _, error: bugs.append(error), spread=lambda: 0.5
    )
    rig.warm.keep([Wanted(Origin("http", "h", 80), 2, ping_s=1.0)])
    await rig.settled()
    assert (rig.warm.failed, len(bugs)) == (2, 2)
    rig.pass_s(0.5)
    await rig.settled()
    assert len(bugs) == 2
    rig.pass_s(0.5)
    await rig.settled()
    assert (rig.warm.failed, rig.warm.pings_failed, len(bugs)) == (3, 1, 4)


async def test_host_that_does_not_answer_keeps_nobody_from_the_others(rig: WarmRig) -> None:
    """A quarter of a second, or for ever: the others are served meanwhile."""
    gate = Gate("connect")

    class Stuck:
        """A connector's way out where nobody is at home."""

        origin = Origin("http", "stuck.invalid", 80)

    async with WireServer(FOREVER) as server:
        open_idle = rig.wire.open_idle

        async def opens(origin: Origin, patience: Any) -> Any:
            if origin == Stuck.origin:
                await gate.wait()
                return None
            return await open_idle(origin, patience)

        transport = _Replaced(rig.wire, opens)
        rig.warm = KeepWarm(rig.clock, transport, headers_for)
        rig.warm.keep([Wanted(Stuck.origin, 64), Wanted(server.origin, 16)])
        await wait_until(lambda: server.opened == 16, "the other host is warm")
        assert gate.arrivals == warm.AT_ONCE_EACH
        gate.open()
        await rig.warm.close()


class _Replaced:
    """A transport with another ``open_idle``."""

    def __init__(self, wire: Any, open_idle: Any) -> None:
        self._wire = wire
        self.open_idle = open_idle
        self.exchange = wire.exchange

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)


# -- pings ---------------------------------------------------------------------------------------------------------


async def test_silent_host_is_pinged_with_its_key(rig: WarmRig) -> None:
    """A cheap GET after the interval, and again after the next one."""
    async with WireServer(FOREVER) as server:
        rig.warm.keep([Wanted(server.origin, ping_s=30.0, base_path="/base")])
        rig.pass_s(29.0)
        await rig.settled()
        assert server.requests == []
        for _ in range(61):
            rig.pass_s(1.0)
            await rig.settled()
        lines = [request.line for request in server.requests]
        assert lines == [b"GET /base/v1/models HTTP/1.1"] * 3
        assert server.requests[0].header(b"authorization") == [b"Bearer key-of-p"]
        assert (rig.warm.pings_ok, rig.warm.pings_failed) == (3, 0)


async def test_host_in_use_is_not_pinged(rig: WarmRig) -> None:
    """While a request runs, and for the interval after it."""
    gate = Gate("answer")
    async with WireServer([READ, Wait(gate), Write(answer()), *FOREVER]) as server:
        rig.warm.keep([Wanted(server.origin, ping_s=30.0, ping_path="/health")])
        exchange = rig.begin(server.origin)
        await server.seen(1)
        rig.pass_s(45.0)
        gate.open()
        await exchange
        rig.pass_s(29.0)
        await rig.settled()
        assert len(server.requests) == 1
        rig.pass_s(1.0)
        await server.seen(2)
        await rig.settled()
        assert server.requests[1].line == b"GET /health HTTP/1.1"


@pytest.mark.parametrize(
    ("answered", "status"),
    [
        (answer(status="503 Waking Up"), "503"),
        (answer(b"x" * (warm.PING_BYTES + 1)), "upstream_response_too_large"),
    ],
)
async def test_ping_that_fails_is_counted_and_repeated_after_its_interval(
    rig: WarmRig, answered: bytes, status: str
) -> None:
    """A host that is waking says so with a 503; an answer without end is cut off."""
    async with WireServer([READ, Write(answered), *FOREVER], FOREVER) as server:
        rig.warm.keep([Wanted(server.origin, ping_s=30.0)])
        rig.pass_s(30.0)
        await rig.settled()
        assert (rig.warm.pings_ok, rig.warm.pings_failed) == (0, 1)
        assert rig.warm.describe()["pings"]["p"]["status"] == status
        rig.pass_s(29.0)
        await rig.settled()
        assert len(server.requests) == 1
        rig.pass_s(1.0)
        await rig.settled()
        assert rig.warm.pings_ok == 1


async def test_ping_without_answer_ends_and_is_alone(rig: WarmRig) -> None:
    """One at a time for a host, however long the first takes, and it ends by its deadline."""
    gate = Gate("never")
    async with WireServer([READ, Wait(gate)]) as server:
        rig.warm.keep([Wanted(server.origin, ping_s=1.0)])
        rig.pass_s(1.0)
        await server.seen(1)
        for _ in range(50):
            rig.pass_s(1.0)
        assert len(server.requests) == 1
        rig.advance(warm.PINGING.total_s)
        await rig.settled()
        assert rig.warm.pings_failed == 1
        gate.open()


# -- the end -------------------------------------------------------------------------------------------------------


async def test_draining_process_opens_nothing_more(rig: WarmRig) -> None:
    """What was being opened is given up, what is idle is closed by the transport, and no sweep brings it back."""
    async with WireServer(FOREVER) as server:
        rig.warm.keep([Wanted(server.origin, 4, ping_s=1.0)])
        await rig.idle(4)
        rig.warm.stop()
        await rig.wire.close()
        await server.all_cut()
        for _ in range(5):
            rig.pass_s(1.0)
        await within(rig.warm.close(), "everything has ended")
        await wait_until(lambda: not server.open, "no connection is left")
        assert (server.opened, server.requests) == (4, [])


async def test_stop_in_the_middle_leaves_no_slot_behind(rig: WarmRig) -> None:
    """Tasks that are cancelled while they connect give their slots back."""
    async with WireServer(FOREVER) as server:
        rig.warm.keep([Wanted(server.origin, 4)])
        await run_ticks(1)
        await rig.warm.close()
        assert rig.pool() | {"idle": 0} == {"idle": 0, "busy": 0, "opening": 0, "waiting": 0}


async def test_closed_transport_opens_nothing(rig: WarmRig) -> None:
    """Whoever asks it all the same gets nothing, and no error."""
    async with WireServer(FOREVER) as server:
        rig.wire.keep_idle(server.origin, 2)
        assert rig.wire.missing_idle(server.origin, rig.clock.now()) == 2
        await rig.wire.close()
        assert rig.wire.missing_idle(server.origin, rig.clock.now()) == 0
        assert await rig.wire.open_idle(server.origin, warm.OPENING) is None


async def test_origin_behind_an_outbound_proxy_has_no_connections_to_keep(frozen_clock: FrozenClock) -> None:
    """Each of its exchanges has one of its own; the way out says so, and keeps direct origins warm."""
    rig = WireRig(frozen_clock)
    outbound = Outbound(Settings(), frozen_clock, rig.deadlines, {"HTTP_PROXY": "http://127.0.0.1:9"})
    far, near = Origin("http", "far.example", 80), Origin("http", "127.0.0.1", 80)
    for origin in (far, near):
        outbound.keep_idle(origin, 2)
    assert [outbound.missing_idle(origin, frozen_clock.now()) for origin in (far, near)] == [0, 2]
    assert outbound.silent_since(far) == 0.0
    await outbound.close()
