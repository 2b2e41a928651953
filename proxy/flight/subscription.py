"""The subscription: one sink's place on one flight, and the ways in which it ends.

A subscription owns nothing but a position, whether its sink has room, and one deadline while it has none. What it
does to the flight goes through `Flight.serve`, `Flight.detach` and `Flight.balance`; nobody else on the flight can
tell from the bytes that it was ever there.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol

from proxy.clock import Deadline
from proxy.errors import Kind, ProxyError

if TYPE_CHECKING:
    from proxy.flight.flight import Flight


class Exit(Enum):
    """How a subscription ended; exactly one each."""

    COMPLETE = "complete"
    ERROR = "error"
    EJECTED = "ejected"
    LEFT = "left"
    RELEASED = "released"


class Sink(Protocol):
    """Where a subscription's bytes go: one client connection, or a recorder in a test. Must not raise."""

    def take(self, head: Any, data: bytes, ended: bool) -> None:
        """The head if it was not taken yet (else ``None``), the next bytes, and whether this is the end; at the
        end ``Subscription.error`` says whether the answer is whole. May pause or leave its subscription."""

    def released(self) -> None:
        """The answer can not be shared and belongs to somebody else: make a call of your own."""


class _Nobody:
    """The sink of a subscription that was closed."""

    def take(self, head: Any, data: bytes, ended: bool) -> None:
        """Nobody is there."""

    def released(self) -> None:
        """Nobody is there."""


_NOBODY: Final = _Nobody()


class Subscription:
    """One sink's place on one flight. Closed exactly once, by an ending, `leave`, `eject` or a release; whoever
    closes it is handed the sink. From then on it leads to the flight alone, so that what is left of an exchange goes
    with the last reference to it, and no collector has to look for it."""

    # Mutable state: sink goes when it is closed; position, head_taken and pays are written by the flight; paused,
    # exit, error and _stall by the methods here. The rest is fixed when it joins.
    __slots__ = (
        "_stall",
        "backlog_bytes",
        "error",
        "exit",
        "flight",
        "head_taken",
        "joined_at",
        "joined_state",
        "leads",
        "paused",
        "pays",
        "position",
        "sink",
    )

    def __init__(self, flight: Flight, sink: Sink, leads: bool, joined_at: float, joined_state: str) -> None:
        self.flight = flight
        self.sink: Sink = sink
        self.leads = leads
        """A label: the flight was started for this one. Nothing branches on it here."""
        self.joined_at = joined_at
        self.joined_state = joined_state
        self.backlog_bytes = flight.tape.total_bytes
        """What was on the tape already when it joined."""
        self.position = 0
        self.paused = False
        self.pays = False
        """The call is on its bill: it was the earliest when the head came."""
        self.head_taken = False
        self.exit: Exit | None = None
        self.error: ProxyError | None = None
        self._stall: Deadline | None = None

    def start(self) -> None:
        """Deliver what is on the tape already. Called once, after whoever joined is ready to take it."""
        if self.exit is None and not self.paused:
            flight = self.flight
            flight.serve(self)
            if flight.producer_paused:  # the newcomer may be the fastest now
                flight.balance()

    def pause(self) -> None:
        """The sink is full: keep my place."""
        if self.exit is None and not self.paused:
            self.paused = True
            table = self.flight.table
            self.flight.paused[self] = None
            self._stall = table.deadlines.arm(table.limits.max_stall_s, self._stalled)

    def resume(self) -> None:
        """The sink has room again: catch up from my place."""
        if self.exit is None and self.paused:
            self.paused = False
            self._disarm()
            flight = self.flight
            flight.paused.pop(self, None)
            flight.serve(self)
            flight.balance()

    def leave(self) -> None:
        """The client went away. Invisible to everybody else on the flight."""
        if self.exit is None:
            self._close(Exit.LEFT, None)

    def eject(self, error: ProxyError) -> None:
        """End this one only, with an error of its own: too slow, out of patience, revoked."""
        if self.exit is None:
            self._close(Exit.EJECTED, error).take(None, b"", True)

    def _close(self, how: Exit, error: ProxyError | None) -> Sink:
        sink, self.sink = self.sink, _NOBODY
        self.exit = how
        self.error = error
        if self._stall is not None:
            self._disarm()
        self.flight.detach(self)
        return sink

    def _stalled(self) -> None:
        self._stall = None
        self.flight.table.ejected_stalled += 1
        self.eject(ProxyError(Kind.SLOW_READER, "The client stopped reading.", why="stall"))

    def _disarm(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def finish(self, error: ProxyError | None) -> Sink:
        """The flight ended and everything was read: who is to be told, by the flight, with the last `Sink.take`."""
        return self._close(Exit.COMPLETE if error is None else Exit.ERROR, error)

    def release(self) -> Sink:
        """The flight turned out to belong to another subscriber alone."""
        return self._close(Exit.RELEASED, None)
