"""What each step of memory pressure gives up, on a house with made-up clients."""

from __future__ import annotations

from typing import Any

from loadtests.micro.material import make_cache
from proxy.errors import Kind, ProxyError
from proxy.flight.tape import Tape
from proxy.pressure.gate import Gate
from proxy.pressure.memory import Step
from proxy.relief import Relief


class Subscription:
    """A place on a flight."""

    def __init__(self, waiting_bytes: int) -> None:
        self.flight = self
        self.tape = Tape()
        self.tape.append(bytes(max(1, waiting_bytes)))
        self.position = 0
        self.paused = waiting_bytes > 0
        self.exit: object = None
        self.ejected: ProxyError | None = None

    def eject(self, error: ProxyError) -> None:
        self.ejected = error


class Running:
    """An exchange on a connection."""

    def __init__(self, waiting_bytes: int) -> None:
        self.subscription = Subscription(waiting_bytes)
        self.close_after = False


class Client:
    """A connection, idle or with a relay that has so much to send."""

    def __init__(self, waiting_bytes: int | None = None) -> None:
        self.relay = None if waiting_bytes is None else Running(waiting_bytes)
        self.transport = self
        self.buffered_bytes = 0
        self.closed = False
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.buffered_bytes

    def close_now(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class House:
    """The data listener, as far as relief knows it, with a cache and a gate."""

    def __init__(self, *clients: Client) -> None:
        self.clients: list[Any] = list(clients)
        self.hot = make_cache(100, 0.0)
        self.gate = Gate(lambda: 0, lambda: 0)
        self.relief = Relief(self.hot, self.gate, self)


def test_the_first_step_stores_nothing_and_shrinks_the_cache_bit_by_bit() -> None:
    """Each look gives up a tenth; when it is over, entries are taken as before."""
    house = House()
    entry_bytes, before = house.hot.max_entry_bytes, house.hot.entries
    house.relief(Step.STORE_NOTHING, 0.0)
    first = house.hot.entries
    house.relief(Step.STORE_NOTHING, 0.0)
    second, closed_to = house.hot.entries, house.hot.max_entry_bytes
    house.relief(Step.NONE, 0.0)

    assert before > first > second > 70
    assert (closed_to, house.hot.max_entry_bytes) == (0, entry_bytes)


def test_idle_connections_are_closed_the_faster_the_less_is_left() -> None:
    """The oldest first, and none that is busy."""
    house = House(Client(0), *[Client() for _ in range(100)])
    house.relief(Step.HURRY, 0.1)
    slowly = sum(client.closed for client in house.clients)
    house.relief(Step.HURRY, 1.0)

    assert slowly == 1
    assert [client.closed for client in house.clients[:3]] == [False, True, True]
    assert house.relief.closed == 6


def test_busy_connections_end_with_their_answer_at_the_third_step() -> None:
    """Not before."""
    house = House(Client(0), Client())
    house.relief(Step.HURRY, 0.0)
    before = house.clients[0].relay.close_after
    house.relief(Step.PART, 0.5)

    assert (before, house.clients[0].relay.close_after) == (False, True)


def test_nobody_is_let_in_from_the_fourth_step_until_it_is_over() -> None:
    """503 rather than the kernel's killer."""
    house = House()
    house.relief(Step.REFUSE, 1.0)
    refused = house.gate.admit(0.0)
    house.relief(Step.PART, 0.9)

    assert refused is not None
    assert (refused.kind, house.gate.refused["memory"]) == (Kind.OVERLOADED, 1)
    assert house.gate.admit(0.0) is None


def test_the_answers_that_hold_most_are_dropped_last_of_all() -> None:
    """The heaviest of a hundred, by what waits on the tape and in the connection; light ones never."""
    clients = [Client(100_000 + number) for number in range(40)] + [Client(1000)]
    clients[7].buffered_bytes = 500_000
    house = House(*clients)
    house.relief(Step.REFUSE, 1.0)
    before = house.relief.dropped
    house.relief(Step.DROP, 1.0)
    dropped = [client for client in clients if client.aborted]

    assert (before, house.relief.dropped) == (0, 2)
    assert dropped == [clients[7], clients[39]]
    assert [client.relay.subscription.ejected.why for client in dropped] == ["memory", "memory"]  # type: ignore[union-attr]


def test_with_nothing_heavy_nothing_is_dropped() -> None:
    """It would not help."""
    house = House(Client(1000), Client())
    house.relief(Step.DROP, 1.0)

    assert house.relief.dropped == 0
