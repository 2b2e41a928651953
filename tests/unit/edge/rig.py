"""A relay between a table that is driven by hand and a wire that only notes what was done to it."""

from __future__ import annotations

from proxy.clock import Deadlines
from proxy.edge.relay import EdgeTools, Relay
from proxy.errors import ProxyError
from proxy.exchange import Exchange
from proxy.flight.flight import Ending, Flight
from proxy.flight.table import Table
from proxy.protocol.answer import AnswerHead
from proxy.protocol.message import RequestHead, make_request_head
from proxy.protocol.routes import locate
from tests.fakes.clock import FrozenClock
from tests.fakes.flight import HandRunner

JSON_HEAD = AnswerHead(200, [(b"content-type", b"application/json")])
STREAM_HEAD = AnswerHead(200, [(b"content-type", b"text/event-stream")], streams=True)


class NotingWire:
    """Implements `relay.Wire`."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.aborts = 0
        self.closes = 0
        self.full = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def abort(self) -> None:
        self.aborts += 1

    def close_now(self) -> None:
        self.closes += 1

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)

    @property
    def head(self) -> list[bytes]:
        """The lines of the response's head."""
        return self.sent.partition(b"\r\n\r\n")[0].split(b"\r\n")

    @property
    def body(self) -> bytes:
        """Everything behind the head, chunks as they are framed."""
        return self.sent.partition(b"\r\n\r\n")[2]


class NotingDesk:
    """Implements `relay.Desk`."""

    def __init__(self) -> None:
        self.accounted: list[Exchange] = []
        self.rejoined: list[Relay] = []

    def rejoin(self, exchange: Exchange, relay: Relay) -> None:
        self.rejoined.append(relay)

    def account(self, exchange: Exchange) -> None:
        self.accounted.append(exchange)


def head_of(path: str, method: str = "POST") -> RequestHead:
    return make_request_head(method, path, [(b"Host", b"h")])


class RelayRig:
    """One relay and everything around it."""

    def __init__(
        self,
        path: str = "/v1/chat/completions",
        method: str = "POST",
        *,
        http10: bool = False,
        close_after: bool = False,
        heartbeat_after_s: float = 10.0,
    ) -> None:
        self.clock = FrozenClock()
        self.deadlines = Deadlines(self.clock)
        self.runner = HandRunner()
        self.table = Table(self.clock, self.deadlines, self.runner)
        self.tools = EdgeTools(
            self.clock, self.deadlines, heartbeat_after_s=heartbeat_after_s, heartbeat_every_s=15.0
        )
        self.wire = NotingWire()
        self.desk = NotingDesk()
        self.exchange = Exchange(head_of(path, method), self.clock.now())
        self.exchange.located = locate(self.exchange.head)
        self.done = 0
        self.relay = Relay(
            self.exchange,
            self.wire,
            self.desk,
            self.tools,
            http10=http10,
            close_after=close_after,
            on_done=self._count,
        )

    def _count(self) -> None:
        self.done += 1

    def fly(self, *, patience_s: float | None = None, streams: bool = False) -> Flight:
        """Put the relay on a flight of its own."""
        subscription = self.table.join(
            self.relay, None, key=b"key", scope=b"scope", registers=True, joins=True
        )
        assert subscription is not None
        self.exchange.subscription = subscription
        self.relay.attach(subscription, patience_s, streams)
        subscription.start()
        return subscription.flight

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.deadlines.sweep()

    def ended_once(self, outcome: str) -> None:
        """Assert that the exchange is over, with this outcome, accounted once, and that no deadline is left."""
        assert (self.done, self.relay.done) == (1, True)
        assert self.desk.accounted == [self.exchange]
        assert self.exchange.outcome == outcome
        assert self.deadlines.armed == 0


def failed(error: ProxyError, flight: Flight) -> None:
    """End a flight with an error, as production does."""
    flight.seal(Ending.FAULT, error)
    flight.flush()
