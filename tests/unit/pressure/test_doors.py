"""The listening socket at its bound: who comes waits, who leaves makes room, and nothing spins meanwhile."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import cast

import pytest

from proxy.pressure.doors import Doors, choose_bound, raise_file_limit
from tests.fakes.gates import run_ticks, wait_until


class Guest(asyncio.Protocol):
    """An accepted connection."""

    def __init__(self, inside: set[Guest]) -> None:
        self.inside = inside
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.inside.add(self)
        self.transport.write(b"in")

    def connection_lost(self, exc: Exception | None) -> None:
        self.inside.discard(self)


class House:
    """Doors with a bound, and callers."""

    def __init__(self, most: int, path: str = "") -> None:
        self.inside: set[Guest] = set()
        listening = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        listening.bind(path or ("127.0.0.1", 0))
        listening.setblocking(False)
        self.doors = Doors(listening, lambda: Guest(self.inside), lambda: len(self.inside), most)
        self.callers: list[socket.socket] = []

    async def call(self, count: int = 1) -> None:
        """Connect; the kernel takes everybody for whom there is room in its queue."""
        loop = asyncio.get_running_loop()
        for _ in range(count):
            address = cast("tuple[str, int] | str", self.doors.address)
            caller = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
            caller.setblocking(False)
            await loop.sock_connect(caller, address)
            self.callers.append(caller)

    async def has(self, count: int) -> None:
        await wait_until(lambda: len(self.inside) == count, f"{count} are inside (now {len(self.inside)})")
        await run_ticks(20)
        assert len(self.inside) == count

    def leave(self, count: int) -> None:
        for _ in range(count):
            self.callers.pop(0).close()

    def close(self) -> None:
        self.doors.close()
        for guest in list(self.inside):
            guest.transport.abort()
        for caller in self.callers:
            caller.close()


@pytest.fixture(params=["tcp", "unix"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    """Doors for five, on each kind of socket."""
    house = House(5, str(tmp_path / "doors.sock") if request.param == "unix" else "")
    await house.doors.open()
    yield house
    house.close()
    await run_ticks()


async def test_at_the_bound_nobody_is_taken_in_and_nobody_is_turned_away(house: House) -> None:
    """The sixth caller is connected, and waits."""
    for _ in range(5):
        await house.call()
        await house.has(len(house.callers))
    await house.call(3)
    await house.has(5)
    house.doors.sweep()

    assert (house.doors.is_open, house.doors.pauses) == (False, 1)


async def test_who_waited_comes_in_when_somebody_left(house: House) -> None:
    """Without connecting again."""
    for _ in range(5):
        await house.call()
        await house.has(len(house.callers))
    await house.call(2)
    house.leave(2)
    await house.has(3)
    house.doors.sweep()
    await house.has(5)
    waited = house.callers[-1]

    assert await asyncio.get_running_loop().sock_recv(waited, 2) == b"in"
    assert house.doors.pauses == 2


async def test_a_crowd_that_comes_at_once_overshoots_the_bound_by_one_queue_at_most(house: House) -> None:
    """What the loop accepts in one turn is counted before it is inside."""
    await house.call(50)
    await wait_until(lambda: not house.doors.is_open, "the doors are shut")

    def are_inside() -> bool:
        house.doors.sweep()  # some were counted twice while they came in
        return len(house.inside) >= 5

    await wait_until(are_inside, "five are inside")
    await run_ticks(20)
    inside = len(house.inside)

    assert inside <= 50
    house.leave(inside)
    await house.has(0)
    house.doors.sweep()
    await wait_until(lambda: len(house.inside) >= min(5, 50 - inside), "more come in")


async def test_closed_doors_stay_closed_and_let_the_address_go(house: House) -> None:
    """Also if they were about to open."""
    house.doors.sweep()
    house.doors.close()
    house.doors.sweep()
    await run_ticks()

    assert (house.doors.is_open, house.doors.address) == (False, None)


def test_the_bound_is_what_is_wanted_or_below_half_of_the_file_descriptors() -> None:
    """The other half is for upstreams."""
    limit = raise_file_limit()

    assert choose_bound(7) == 7
    assert choose_bound(0) == int(0.45 * limit)


async def test_whoever_waits_when_the_doors_close_for_good_is_taken_in_as_far_as_there_is_room(house: House) -> None:
    """They were not refused, so nobody drops them; whoever comes afterwards is refused."""
    house.doors._shut()
    await house.call(3)
    await house.doors.take_in()
    inside = len(house.inside)
    house.doors.close()
    await run_ticks(20)

    assert inside == 3
    assert len(house.inside) == 3
    assert not house.doors.is_open
