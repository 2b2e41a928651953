"""Flights shared through a real Valkey, without proxies around them: leads, wings, and a server up to no good.

Each formation is what a process has; a `Log` takes the place of the flight that a wing fills.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from proxy.clock import Clock
from proxy.errors import Kind, ProxyError
from proxy.formation.bounds import SLICE_BYTES, Bounds
from proxy.formation.entry import Entry
from proxy.formation.formation import Formation, connect_formation
from proxy.formation.landing import Landing
from proxy.formation.lead import Lead
from proxy.formation.wing import Wing
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.protocol.usage import Usage
from tests.fakes.gates import wait_until, within
from tests.fakes.valkey import ValkeyServer

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
SECRET = b"the secret of this group"
HEAD = ResponseHead(200, [(b"content-type", b"text/event-stream")])
GOES = {b"content-type"}
PATIENT = Bounds(ask_s=2.0, probe_s=2.0, look_s=2.0, open_s=5.0)
"""For a machine that runs other tests as well."""

Opener = Callable[..., Awaitable[Formation]]


class Log:
    """What came of a followed flight. Implements ``wing.Receiver``."""

    def __init__(self, *, holds: bool = False) -> None:
        self.of_our_own: HeaderList = []
        self.holds = holds
        self.head: ResponseHead | None = None
        self.body = b""
        self.ended = False
        self.usage: Usage | None = None
        self.answerer = ""
        self.control: Wing | None = None

    @property
    def has_begun(self) -> bool:
        return self.head is not None and not self.holds

    def follow(self, control: Wing) -> None:
        self.control = control

    def name_answerer(self, target: str) -> None:
        self.answerer = target

    def tell_usage(self, usage: Usage) -> None:
        self.usage = usage

    def on_read(self, head: ResponseHead | None, data: bytes, ended: bool) -> None:
        self.head = self.head or head
        self.body += data
        self.ended = ended


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    """Opens formations as processes would; all are closed at the end."""
    made: list[Formation] = []

    async def open_one(server: ValkeyServer, *, bounds: Bounds = PATIENT, secret: bytes = SECRET) -> Formation:
        formation = connect_formation(server.url, secret, Clock(), bounds=bounds)
        formation.start()
        made.append(formation)
        await wait_until(lambda: formation.up, "the process listens")
        return formation

    yield open_one
    for formation in made:
        await within(formation.close(), "a formation closes")


async def leads(formation: Formation, key: bytes = KEY) -> Lead:
    part = await within(formation.join(key), "it takes part")
    assert isinstance(part, Lead)
    return part


async def follows(formation: Formation, key: bytes = KEY) -> Wing:
    part = await within(formation.join(key), "it takes part")
    assert isinstance(part, Wing)
    return part


def fly(wing: Wing, log: Log) -> asyncio.Task[Landing]:
    return asyncio.get_running_loop().create_task(wing.fly(log, 30.0))


async def told(lead: Lead) -> None:
    """Until the server has everything that was said so far."""
    await wait_until(lambda: not lead.eager, "everything is told")


# -- leading and following -----------------------------------------------------------------------------------------


async def test_the_second_process_hears_what_the_first_is_answered(valkey: ValkeyServer, opened: Opener) -> None:
    """Head, bytes in order, usage and end, whether it was there before or comes in the middle."""
    first, second, third = [await opened(valkey) for _ in range(3)]
    lead = await leads(first)
    early, late = Log(), Log()
    flights = [fly(await follows(second), early)]
    lead.head(HEAD, GOES, [(b"x-own", b"1")], "one/llama")
    lead.append(b"one ")
    await wait_until(lambda: early.body == b"one ", "the first piece came")
    flights.append(fly(await follows(third), late))
    await wait_until(lambda: late.body == b"one ", "the first piece came to the late one as well")
    lead.append(b"two ")
    lead.append(b"three")
    lead.end(Usage(3, 4))

    for log, flight in zip((early, late), flights, strict=True):
        assert await within(flight, "it lands") is Landing.DONE
        assert (log.body, log.ended, log.usage) == (b"one two three", True, Usage(3, 4))
        assert log.head is not None
        assert (log.head.headers, log.of_our_own, log.answerer) == (HEAD.headers, [(b"x-own", b"1")], "one/llama")
    assert (first.led, second.followed, third.followed) == (1, 1, 1)


async def test_names_and_times_on_the_server_say_nothing_and_end_by_themselves(
    valkey: ValkeyServer, opened: Opener
) -> None:
    """A lease while it flies, a stream for a moment afterwards."""
    formation = await opened(valkey)
    lead = await leads(formation)
    lead.append(b"bytes")
    await told(lead)
    stream, lease = sorted(valkey.names(), key=len, reverse=True)

    assert lease == f"sameflight:1:flights:{KEY.hex()}"
    assert stream.startswith(lease + ":")
    for name in (stream, lease):
        left_ms = valkey.ask("PTTL", name)
        assert isinstance(left_ms, int)
        assert 0 < left_ms <= 15_000
    lead.end()
    await wait_until(lambda: lead.over, "the end is told")
    left_ms = valkey.ask("PTTL", stream)
    assert valkey.names() == [stream]
    assert isinstance(left_ms, int)
    assert 0 < left_ms <= 5_000


async def test_a_failed_call_fails_for_all(valkey: ValkeyServer, opened: Opener) -> None:
    """With the same error, without its detail."""
    first, second = [await opened(valkey) for _ in range(2)]
    lead = await leads(first)
    flight = fly(await follows(second), Log())
    lead.fail(ProxyError(Kind.UPSTREAM_TIMEOUT, "Too slow.", detail="10.0.0.1", why="idle"))

    with pytest.raises(ProxyError) as caught:
        await within(flight, "it lands")
    assert (caught.value.kind, caught.value.public, caught.value.why) == (Kind.UPSTREAM_TIMEOUT, "Too slow.", "idle")
    assert "10.0.0.1" not in str(caught.value)


@pytest.mark.parametrize(
    ("why", "landing"),
    [("draining", Landing.AGAIN), ("unshareable", Landing.ALONE), ("too_large", Landing.ALONE)],
)
async def test_a_lead_that_gives_up_is_replaced_or_not(
    valkey: ValkeyServer, opened: Opener, why: str, landing: Landing
) -> None:
    """Where the answer can be shared at all the next one leads at once; what was held is no answer."""
    first, second = [await opened(valkey) for _ in range(2)]
    lead = await leads(first)
    log = Log(holds=True)
    flight = fly(await follows(second), log)
    lead.head(HEAD, GOES, [], "")
    lead.append(b"half")
    await wait_until(lambda: log.body == b"half", "half of it came")
    lead.abandon(why)

    assert await within(flight, "it lands") is landing
    assert isinstance(await second.join(KEY), Lead)


async def test_what_was_begun_breaks_off_with_its_lead(valkey: ValkeyServer, opened: Opener) -> None:
    """As with an upstream."""
    first, second = [await opened(valkey) for _ in range(2)]
    lead = await leads(first)
    log = Log()
    flight = fly(await follows(second), log)
    lead.head(HEAD, GOES, [], "")
    await wait_until(lambda: log.head, "the head came")
    lead.abandon("draining")

    with pytest.raises(ProxyError) as caught:
        await within(flight, "it lands")
    assert caught.value.kind is Kind.UPSTREAM_RESET
    assert second.lost == {"dropped_draining": 1}


async def test_a_process_does_not_follow_itself_nor_whom_it_may_not(valkey: ValkeyServer, opened: Opener) -> None:
    """It had its reasons to begin a second flight."""
    first, second = [await opened(valkey) for _ in range(2)]
    await leads(first)

    assert await first.join(KEY) is None
    assert await second.join(KEY, follows=False) is None
    assert isinstance(await second.join(OTHER_KEY, follows=False), Lead)


async def test_another_secret_is_another_group(valkey: ValkeyServer, opened: Opener) -> None:
    """Even under the same names: each takes the other's lease for nobody's, and neither hears the other."""
    ours, theirs = await opened(valkey), await opened(valkey, secret=b"the secret of other people")
    lead = await leads(ours)
    other = await leads(theirs)
    lead.append(b"ours")
    other.append(b"theirs")
    await told(lead)

    assert lead.closed
    assert theirs.poisoned == 1


async def test_a_reader_that_is_held_up_takes_the_rest_from_the_server(
    valkey: ValkeyServer, opened: Opener
) -> None:
    """Nothing is kept for it in this process meanwhile."""
    first, second = [await opened(valkey) for _ in range(2)]
    lead = await leads(first)
    log = Log()
    flight = fly(await follows(second), log)
    lead.head(HEAD, GOES, [], "")
    await wait_until(lambda: log.head, "the head came")
    assert log.control is not None
    log.control.pause()
    body = bytes(range(256)) * 4 * 1024  # more than one look brings
    for at in range(0, len(body), SLICE_BYTES):
        lead.append(body[at : at + SLICE_BYTES])
        await told(lead)
    lead.end()
    await told(lead)
    assert log.body == b""
    log.control.resume()

    assert await within(flight, "it lands") is Landing.DONE
    assert log.body == body


async def test_who_lags_behind_what_is_kept_breaks_off(valkey: ValkeyServer, opened: Opener) -> None:
    """Rather than to go on with a hole."""
    bounds = PATIENT._replace(max_bytes=2 * SLICE_BYTES)
    first, second = [await opened(valkey, bounds=bounds) for _ in range(2)]
    lead = await leads(first)
    log = Log()
    flight = fly(await follows(second), log)
    lead.head(HEAD, GOES, [], "")
    await wait_until(lambda: log.head, "the head came")
    assert log.control is not None
    log.control.pause()
    for _ in range(6):
        lead.append(b"x" * SLICE_BYTES)
        await told(lead)
    log.control.resume()

    with pytest.raises(ProxyError):
        await within(flight, "it lands")
    assert second.lost == {"gap": 1}
    assert isinstance(await second.join(KEY), Lead)


async def test_a_lease_whose_holder_never_began_is_taken_over(valkey: ValkeyServer, opened: Opener) -> None:
    """It was gone when it won, as after a hang; nobody waits for the lease to end."""
    formation = await opened(valkey, bounds=PATIENT._replace(open_s=0.02))
    lease = formation.seal.lease(KEY, b"g" * 16)
    valkey.ask("SET", f"sameflight:1:flights:{KEY.hex()}", lease)
    wing = await follows(formation)
    assert await within(fly(wing, Log()), "it lands") is Landing.AGAIN

    assert isinstance(await formation.join(KEY, after=wing), Lead)


async def test_all_who_follow_a_dead_lead_turn_to_the_next_one_together(valkey: ValkeyServer, opened: Opener) -> None:
    """Even if that one has landed meanwhile; who has begun waits for the silence of the first, as it may be alive."""
    first, second, third = [await opened(valkey) for _ in range(3)]
    lead = await leads(first)
    log = Log()
    wings = [await follows(formation) for formation in (second, third, third)]
    flights = [fly(wing, each) for wing, each in zip(wings, (Log(holds=True), Log(holds=True), log), strict=True)]
    lead.head(HEAD, GOES, [], "")
    await wait_until(lambda: log.head, "the head came")
    successor = await second.join(KEY, after=wings[0])
    assert isinstance(successor, Lead)
    successor.end()
    await told(successor)

    assert await within(asyncio.gather(*flights[:2]), "they land") == [Landing.AGAIN] * 2
    wing = await third.join(KEY, after=wings[1])
    assert isinstance(wing, Wing)
    assert await within(fly(wing, Log()), "it lands") is Landing.DONE
    lead.end()
    assert await within(flights[2], "it lands") is Landing.DONE


# -- poison --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", ["garbage", "empty", "huge", "list", "copy"])
async def test_a_poisoned_lease_is_taken_over(valkey: ValkeyServer, opened: Opener, poison: str) -> None:
    """Nobody of us made it, so nobody leads."""
    first, second = [await opened(valkey) for _ in range(2)]
    name = f"sameflight:1:flights:{KEY.hex()}"
    if poison == "list":
        valkey.ask("RPUSH", name, "x")
    elif poison == "copy":
        await leads(first, OTHER_KEY)
        other = valkey.ask("GET", f"sameflight:1:flights:{OTHER_KEY.hex()}")
        assert isinstance(other, bytes)
        valkey.ask("SET", name, other)
    else:
        valkey.ask("SET", name, {"garbage": b"\x80\x04" + b"x" * 30, "empty": b"", "huge": b"x" * 500_000}[poison])
    lead = await leads(second)
    lead.append(b"bytes")
    await told(lead)

    assert not lead.closed
    assert not second.breaker.open


@pytest.mark.parametrize("poison", ["garbage", "another's", "type", "other field"])
async def test_a_poisoned_stream_is_left_alone(valkey: ValkeyServer, opened: Opener, poison: str) -> None:
    """Who needs it makes a call of its own; who had heard everything goes on."""
    first, second, third = [await opened(valkey) for _ in range(3)]
    lead = await leads(first)
    there, late = Log(), Log()
    flight = fly(await follows(second), there)
    lead.head(HEAD, GOES, [], "")
    await wait_until(lambda: there.head, "the head came")
    (stream,) = [name for name in valkey.names() if name.count(":") == 4]
    if poison == "type":
        valkey.ask("SET", stream, "x")
    else:
        lies = first.seal.write(OTHER_KEY, b"t" * 16, Entry(2, {}, b"lies"))
        data = lies if poison == "another's" else b"\x80\x04poison"
        valkey.ask("XADD", stream, "9-0", "x" if poison == "other field" else "e", data)
    valkey.ask("PUBLISH", stream, b"\x80\x04poison")
    late_flight = fly(await follows(third), late)
    assert await within(late_flight, "it gives up") is Landing.ALONE
    lead.append(b"true")
    lead.end()

    assert await within(flight, "it lands") is Landing.DONE
    assert (there.body, late.body) == (b"true", b"")
    assert second.poisoned + third.poisoned >= 1


async def test_what_is_said_twice_is_heard_once(valkey: ValkeyServer, opened: Opener) -> None:
    """Whoever copies a message can neither add to an answer nor end it."""
    first, second = [await opened(valkey) for _ in range(2)]
    lead = await leads(first)
    log = Log()
    flight = fly(await follows(second), log)
    lead.head(HEAD, GOES, [], "")
    lead.append(b"once ")
    await wait_until(lambda: log.body == b"once ", "it came")
    (stream,) = [name for name in valkey.names() if name.count(":") == 4]
    entries = valkey.ask("XRANGE", stream, "-", "+")
    assert isinstance(entries, list)
    for _, fields in entries * 3:
        valkey.ask("PUBLISH", stream, fields[1])
    lead.append(b"more")
    lead.end()

    assert await within(flight, "it lands") is Landing.DONE
    assert log.body == b"once more"


# -- trouble -------------------------------------------------------------------------------------------------------


async def test_a_server_that_hangs_costs_three_time_outs_and_then_nothing(
    private_valkey: ValkeyServer, opened: Opener
) -> None:
    """However many ask at once: those who wait for their turn go on as soon as it is known."""
    formation = await opened(private_valkey, bounds=Bounds(probe_s=2.0))
    private_valkey.suspend()
    parts = await within(asyncio.gather(*(formation.join(bytes([n]) * 32) for n in range(100))), "all go on")

    assert set(parts) == {None}
    assert formation.timeouts < formation.bounds.asks + 3  # places that were free again before the third had failed
    assert formation.skipped > 100 - formation.bounds.asks - 3
    assert formation.breaker.open
    assert await formation.join(KEY) is None


async def test_a_lease_that_was_won_too_late_is_given_back(private_valkey: ValkeyServer, opened: Opener) -> None:
    """The server does after its hang what it was asked before; the next one leads at once."""
    first, second = await opened(private_valkey, bounds=Bounds()), await opened(private_valkey)
    private_valkey.suspend()
    assert await first.join(KEY) is None
    assert first.leads == 1
    private_valkey.resume()
    await wait_until(lambda: first.leads == 0, "it has said that it does not lead")
    part = await second.join(KEY)

    assert isinstance(part, Lead)


async def test_whoever_waits_is_let_go_when_the_server_hangs(private_valkey: ValkeyServer, opened: Opener) -> None:
    """It is asked all the time whether it lives; who has begun waits for the lead's silence instead."""
    first, second = await opened(private_valkey), await opened(private_valkey, bounds=PATIENT._replace(probe_s=0.05))
    lead = await leads(first)
    flight = fly(await follows(second), Log(holds=True))
    lead.head(HEAD, GOES, [], "")
    await wait_until(lambda: lead.readers == 1, "it is heard")
    private_valkey.suspend()

    assert await within(flight, "it is let go") is Landing.ALONE
    assert second.lost == {"hung": 1}


async def test_whoever_waits_is_let_go_when_the_server_stops(private_valkey: ValkeyServer, opened: Opener) -> None:
    """In that moment."""
    first, second = [await opened(private_valkey) for _ in range(2)]
    await leads(first)
    flight = fly(await follows(second), Log())
    await wait_until(lambda: len(second.listener) == 1, "it follows")
    private_valkey.stop()

    assert await within(flight, "it is let go") is Landing.ALONE
    assert await second.join(KEY) is None


async def test_a_full_server_is_a_server_that_is_away(opened: Opener, private_valkey: ValkeyServer) -> None:
    """It refuses to keep anything; nobody fails for it."""
    formation = await opened(private_valkey)
    private_valkey.ask("CONFIG", "SET", "maxmemory", "1mb")

    assert await within(formation.join(KEY), "it goes on") is None
    assert formation.errors == 1


async def test_a_crowd_shares_a_bounded_number_of_connections(valkey: ValkeyServer, opened: Opener) -> None:
    """Whatever the number of flights."""
    first, second = [await opened(valkey) for _ in range(2)]
    keys = [bytes([n, n]) * 16 for n in range(100)]
    all_leads = await asyncio.gather(*(leads(first, key) for key in keys))
    logs = [Log() for _ in keys]
    wings = await asyncio.gather(*(follows(second, key) for key in keys))
    flights = [fly(wing, log) for wing, log in zip(wings, logs, strict=True)]
    for lead in all_leads:
        lead.head(HEAD, GOES, [], "")
        lead.append(b"for all")
        lead.end()

    assert set(await within(asyncio.gather(*flights), "all land", 20.0)) == {Landing.DONE}
    assert {log.body for log in logs} == {b"for all"}
    assert valkey.clients() <= 2 * (4 * PATIENT.asks + 3)


async def test_closing_leaves_neither_connection_nor_task(valkey: ValkeyServer, opened: Opener) -> None:
    """And tells those who follow."""
    first, second = [await opened(valkey) for _ in range(2)]
    before = asyncio.all_tasks()
    third: Any = connect_formation(valkey.url, SECRET, Clock(), bounds=PATIENT)
    third.start()
    await wait_until(lambda: third.up, "the process listens")
    clients = valkey.clients()
    lead = await leads(third)
    flight = fly(await follows(second), Log())
    await wait_until(lambda: len(second.listener) == 1, "it follows")
    lead.abandon("draining")
    await within(third.close(), "it closes")
    await within(third.close(), "twice is as good as once")

    assert await within(flight, "it lands") is Landing.AGAIN
    await wait_until(lambda: asyncio.all_tasks() - {flight} <= before, "no task is left")
    await wait_until(lambda: valkey.clients() < clients, "its connections are closed")
    assert isinstance(await first.join(KEY), Lead)
