"""The name cache: bounded, one look-up at a time, and alive when the resolver is not."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from proxy.clock import Deadlines
from proxy.errors import Kind, ProxyError, Retry
from proxy.upstream.dns import Addresses, Resolver, Terms, look_up
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks, wait_until, within


class FakeLookup:
    """Answers from a table, in a thread; ``hang`` makes it wait until ``let_go``."""

    def __init__(self, **table: Addresses | Exception) -> None:
        self.table = table
        self.asked: list[str] = []
        self._free = threading.Event()
        self._free.set()

    def __call__(self, host: str) -> Addresses:
        self.asked.append(host)
        # A test that forgets to let go must not hang the interpreter's exit.
        self._free.wait(20.0)
        answer = self.table[host]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def hang(self) -> None:
        self._free.clear()

    def let_go(self) -> None:
        self._free.set()


class Rig:
    def __init__(self, clock: FrozenClock, lookup: FakeLookup, terms: Terms | None = None) -> None:
        self.clock = clock
        self.deadlines = Deadlines(clock)
        self.resolver = Resolver(clock, self.deadlines, lookup, terms)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.deadlines.sweep()

    async def addresses(self, host: str) -> list[str]:
        return [address[0] for *_, address in await within(self.resolver.resolve(host, 443), "the name resolved")]

    async def fails(self, host: str) -> ProxyError:
        with pytest.raises(ProxyError) as caught:
            await self.addresses(host)
        return caught.value


NO_NAME = socket.gaierror(socket.EAI_NONAME, "no such name")
TROUBLE = socket.gaierror(socket.EAI_AGAIN, "try again")


async def test_addresses_come_in_the_resolvers_order_ready_to_dial(frozen_clock: FrozenClock) -> None:
    """IPv4 and IPv6 with the port, as a socket wants them."""
    rig = Rig(frozen_clock, FakeLookup(a=("2001:db8::1", "192.0.2.1")))
    assert await rig.resolver.resolve("a", 443) == [
        (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("2001:db8::1", 443, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("192.0.2.1", 443)),
    ]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.7", ["192.0.2.7"]),
        ("2001:db8::7", ["2001:db8::7"]),
        ("localhost", ["127.0.0.1", "::1"]),
        ("api.localhost", ["127.0.0.1", "::1"]),
    ],
)
async def test_literals_and_localhost_never_reach_the_resolver(
    frozen_clock: FrozenClock, host: str, expected: list[str]
) -> None:
    """Nor can a resolver send localhost anywhere else."""
    lookup = FakeLookup()
    assert await Rig(frozen_clock, lookup).addresses(host) == expected
    assert lookup.asked == []


async def test_scoped_address_keeps_its_scope(frozen_clock: FrozenClock) -> None:
    """A link-local address without its interface leads nowhere."""
    found = await Rig(frozen_clock, FakeLookup()).resolver.resolve("fe80::1%1", 80)
    assert found[0][4] == ("fe80::1", 80, 0, 1)


async def test_answer_is_used_until_it_is_too_old(frozen_clock: FrozenClock) -> None:
    """Thirty seconds, whichever port is asked for; then the new answer is used and the change counted."""
    lookup = FakeLookup(a=("192.0.2.1",))
    rig = Rig(frozen_clock, lookup)
    await rig.addresses("a")
    rig.advance(29.9)
    await rig.resolver.resolve("a", 80)
    lookup.table["a"] = ("192.0.2.2",)
    assert lookup.asked == ["a"]
    rig.advance(0.2)
    assert await rig.addresses("a") == ["192.0.2.2"]
    assert (lookup.asked, rig.resolver.changes) == (["a", "a"], 1)


async def test_callers_at_once_share_one_lookup(frozen_clock: FrozenClock) -> None:
    """However many ask, the resolver hears it once."""
    lookup = FakeLookup(a=("192.0.2.1",))
    rig = Rig(frozen_clock, lookup)
    answers = await asyncio.gather(*[rig.addresses("a") for _ in range(50)])
    assert (answers, lookup.asked) == ([["192.0.2.1"]] * 50, ["a"])


async def test_caller_that_leaves_does_not_take_the_lookup_along(frozen_clock: FrozenClock) -> None:
    """The others still get their answer."""
    lookup = FakeLookup(a=("192.0.2.1",))
    lookup.hang()
    rig = Rig(frozen_clock, lookup)
    first, second = [asyncio.ensure_future(rig.addresses("a")) for _ in range(2)]
    await wait_until(lambda: lookup.asked, "the resolver was asked")
    first.cancel()
    await run_ticks()
    lookup.let_go()
    assert await second == ["192.0.2.1"]
    assert first.cancelled()


async def test_unknown_name_is_a_failure_that_only_another_target_helps(frozen_clock: FrozenClock) -> None:
    """It is remembered for five seconds, then asked again."""
    lookup = FakeLookup(a=NO_NAME)
    rig = Rig(frozen_clock, lookup)
    error = await rig.fails("a")
    assert (error.kind, error.why, error.retry) == (Kind.UPSTREAM_UNREACHABLE, "dns", Retry.OTHER)
    rig.advance(4.9)
    await rig.fails("a")
    assert lookup.asked == ["a"]
    lookup.table["a"] = ("192.0.2.1",)
    rig.advance(0.2)
    assert await rig.addresses("a") == ["192.0.2.1"]


async def test_empty_answer_is_an_unknown_name(frozen_clock: FrozenClock) -> None:
    """No addresses, no connection."""
    assert (await Rig(frozen_clock, FakeLookup(a=())).fails("a")).why == "dns"


async def test_dead_resolver_leaves_the_last_good_answer_in_use(frozen_clock: FrozenClock) -> None:
    """For ten minutes, and counted; after that the name has no address."""
    lookup = FakeLookup(a=("192.0.2.1",))
    rig = Rig(frozen_clock, lookup)
    await rig.addresses("a")
    lookup.table["a"] = TROUBLE
    rig.advance(31.0)
    assert await rig.addresses("a") == ["192.0.2.1"]
    assert await rig.addresses("a") == ["192.0.2.1"]
    assert (rig.resolver.stale_used, lookup.asked) == (2, ["a", "a"])
    rig.advance(560.0)
    assert await rig.addresses("a") == ["192.0.2.1"]
    rig.advance(10.0)
    assert (await rig.fails("a")).why == "dns"


async def test_hanging_resolver_never_holds_the_loop_and_the_last_good_answer_is_used(
    frozen_clock: FrozenClock,
) -> None:
    """Whoever asks first waits two seconds; the others do not wait at all, and no further thread is spent."""
    lookup = FakeLookup(a=("192.0.2.1",))
    rig = Rig(frozen_clock, lookup)
    await rig.addresses("a")
    lookup.hang()
    rig.advance(31.0)
    asking = asyncio.ensure_future(rig.addresses("a"))
    await wait_until(lambda: len(lookup.asked) == 2, "the resolver was asked")
    rig.advance(1.9)
    await run_ticks()
    assert not asking.done()
    rig.advance(0.2)
    assert await asking == ["192.0.2.1"]
    assert await rig.addresses("a") == ["192.0.2.1"]
    rig.advance(1.5)
    assert await rig.addresses("a") == ["192.0.2.1"]
    assert (len(lookup.asked), rig.resolver.stale_used) == (2, 3)
    lookup.table["a"] = ("192.0.2.2",)
    lookup.let_go()
    await wait_until(lambda: rig.resolver.changes, "the late answer was heard")
    assert await rig.addresses("a") == ["192.0.2.2"]


async def test_hanging_resolver_without_a_good_answer_fails_after_two_seconds(frozen_clock: FrozenClock) -> None:
    """There is nothing to fall back on."""
    lookup = FakeLookup(a=("192.0.2.1",))
    lookup.hang()
    rig = Rig(frozen_clock, lookup)
    asking = asyncio.ensure_future(rig.addresses("a"))
    await wait_until(lambda: lookup.asked, "the resolver was asked")
    rig.advance(2.1)
    with pytest.raises(ProxyError, match="no answer in time"):
        await asking
    lookup.let_go()
    await wait_until(lambda: not rig.resolver._busy, "the look-up ended")


async def test_lookups_under_way_are_bounded(frozen_clock: FrozenClock) -> None:
    """The others stand in line, and get their turn."""
    lookup = FakeLookup(**{name: (f"192.0.2.{number}",) for number, name in enumerate("abcd")})
    lookup.hang()
    rig = Rig(frozen_clock, lookup, Terms(running=2))
    asking = [asyncio.ensure_future(rig.addresses(name)) for name in "abcd"]
    await wait_until(lambda: len(lookup.asked) == 2, "two look-ups run")
    await run_ticks()
    assert (sorted(lookup.asked), rig.resolver.lookups) == (["a", "b"], 2)
    lookup.let_go()
    assert await asyncio.gather(*asking) == [["192.0.2.0"], ["192.0.2.1"], ["192.0.2.2"], ["192.0.2.3"]]


async def test_names_kept_are_bounded(frozen_clock: FrozenClock) -> None:
    """The name used least recently is forgotten."""
    lookup = FakeLookup(a=("192.0.2.1",), b=("192.0.2.2",), c=("192.0.2.3",))
    rig = Rig(frozen_clock, lookup, Terms(names=2))
    for name in "abaca":
        await rig.addresses(name)
    assert lookup.asked == ["a", "b", "c"]
    await rig.addresses("b")
    assert lookup.asked == ["a", "b", "c", "b"]


async def test_systems_resolver_knows_the_loopback() -> None:
    """The default look-up returns plain addresses without repeats."""
    assert look_up("127.0.0.1") == ("127.0.0.1",)
