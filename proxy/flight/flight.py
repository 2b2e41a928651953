"""The flight: one upstream answer on its way to any number of subscribers.

A synchronous state machine without I/O. Production puts in what the upstream sent (`begin`, `append`, `seal`, then
`flush`), subscriptions push it into sinks, and the table decides who may join and what an empty flight becomes.
Time comes from `Deadlines`, the upstream from a `Producer` handle, so a test drives every schedule by hand.

Life of a flight (names of the states as `/flights` shows them):

    OPENING ──begin──▶ STREAMING ──seal(OK), cache write pending──▶ FILLING ──filled──▶ DONE
       │                   │  └──seal(OK)──▶ DONE                seal(CUT or error)──▶ BROKEN
       │                   └──begin(unshareable)──▶ SOLO: unmapped, the first subscriber keeps it
       └──seal(error) before a head──▶ FAILED         left by everybody──▶ LINGERING or CANCELLED

The phase only grows. LINGERING, SOLO and the words for endings are views of the phase, the subscribers and the
`Ending`. What the head is, what the bytes mean and what they cost is unknown here.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from proxy.clock import Deadline
from proxy.errors import Kind, ProxyError
from proxy.flight.subscription import Subscription
from proxy.flight.tape import Tape

if TYPE_CHECKING:
    from proxy.flight.table import Table

CATCH_UP_BYTES = 64 * 1024
"""Most bytes handed to a sink in one call while it catches up, so that a late joiner cannot starve the others."""

FAN_OUT = 64
"""Subscribers served before the event loop gets a turn."""


class Phase(IntEnum):
    OPENING = 0
    STREAMING = 1
    FILLING = 2
    ENDED = 3


class Ending(Enum):
    """How a flight ended. OK and CUT look complete to a subscriber; the others carry an error."""

    OK = "ok"
    CUT = "cut"
    """The upstream ended its message properly but not its answer (no terminal event, or an error event inside the
    stream): passed on as it came, never stored."""
    FAULT = "fault"
    BLOCKED = "blocked"
    """A guard did not let the request or its answer pass."""
    OVERRUN = "overrun"
    ABANDONED = "abandoned"
    SHUTDOWN = "shutdown"
    BUG = "bug"


class Producer(Protocol):
    """The flight's hold on whoever fills it."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Flight:
    """One upstream answer. Created and mapped by the table only."""

    # Mutable state, by who writes it:
    #   production     phase, head, tape, ending, error (through begin, append, seal, filled), producer, report,
    #                  finishing, last_words, beyond, is_paid
    #   subscriptions  subscribers, paused (through attach, detach, pause, resume)
    #   table          mapped, solo, linger, retains
    #   runner         task
    #   flush, balance _queue, _again, producer_paused
    __slots__ = (
        "_again",
        "_queue",
        "beyond",
        "born_at",
        "ending",
        "error",
        "finishing",
        "head",
        "id",
        "is_paid",
        "key",
        "last_words",
        "leave_s",
        "linger",
        "mapped",
        "paused",
        "peak",
        "phase",
        "producer",
        "producer_paused",
        "report",
        "retains",
        "scope",
        "solo",
        "subscribers",
        "table",
        "tape",
        "task",
        "unsettled",
        "work",
    )

    def __init__(
        self, table: Table, number: int, *, key: bytes | None, scope: bytes, work: Any, leave_s: float
    ) -> None:
        self.table = table
        self.id = number
        self.key = key
        self.scope = scope
        self.work = work
        """What production needs to fill it; opaque here."""
        self.leave_s = leave_s
        """Seconds to wait for somebody once everybody left; 0 cancels at once, infinity runs to the end."""
        self.born_at = table.clock.now()
        self.phase = Phase.OPENING
        self.head: Any = None
        self.tape = Tape()
        self.ending: Ending | None = None
        self.error: ProxyError | None = None
        self.finishing = False
        """The answer is complete but for its framing: worth a moment's wait even if everybody left."""
        self.report: Any = None
        """What production found out on the way, for whoever accounts; opaque here."""
        self.last_words: Callable[[ProxyError], bytes] | None = None
        """What to end a broken answer with (an error event), if it can be said where the bytes end; opaque here."""
        self.beyond: Callable[[Callable[[], None]], bool] | None = None
        """Whether others than the subscribers may want it. Asked once nobody is subscribed; if so, what it is given
        is called when they do not any more."""
        self.producer: Producer | None = None
        self.producer_paused = False
        self.subscribers: dict[Subscription, None] = {}
        self.paused: dict[Subscription, None] = {}
        self.is_paid = False
        """One of the subscribers, there or gone, `pays` for the call."""
        self.peak = 0
        self.mapped = False
        self.solo = False
        self.retains = True
        """The tape is kept from its beginning, for joiners and for the cache."""
        self.linger: Deadline | None = None
        self.task: Any = None
        self.unsettled: list[Any] = []
        """Whose accounts wait for this flight's end; opaque here."""
        self._queue: list[Subscription] | None = None
        self._again = False

    # -- what production puts in -----------------------------------------------------------------------------

    def begin(self, head: Any, shareable: bool = True) -> None:
        """The answer's head is known. An unshareable one stays with the first subscriber; all others are released
        together, in this tick, because releasing them one after another is the classic outage of coalescers."""
        if self.phase is not Phase.OPENING:
            return
        self.phase = Phase.STREAMING
        self.head = head
        self.charge_earliest()
        if shareable:
            self.table.proved_shareable(self)
        else:
            self.table.isolate(self)

    def charge_earliest(self) -> None:
        """The earliest subscriber that is attached now pays for the call. It is told so, and not kept here: what an
        exchange leaves behind goes with its last reference, and the collector finds nothing."""
        for subscription in self.subscribers:
            subscription.pays = self.is_paid = True
            return

    def append(self, data: bytes) -> None:
        """Add bytes of the body. Nothing is delivered until `flush`."""
        if data and self.phase is Phase.STREAMING:
            self.tape.append(data)
            self.table.grew(self, len(data))

    def seal(self, ending: Ending, error: ProxyError | None = None, *, filling: bool = False) -> None:
        """No byte will follow, but for the last words of an answer that broke. ``filling`` keeps the flight joinable
        while the cache write runs."""
        if self.phase >= Phase.FILLING:
            return
        # Let go of in any case, and before it is asked: should it fail, the next seal goes through.
        speak, self.last_words = self.last_words, None
        if error is not None and speak is not None and self.subscribers:
            words = speak(error)
            if words and self.phase is Phase.STREAMING:
                # Past every bound: reaching one is what most of them are about.
                self.tape.append(words)
                self.table.retained_bytes += len(words)
        self.ending = ending
        self.error = error.freed() if error is not None else None
        self.phase = Phase.FILLING if filling and ending is Ending.OK else Phase.ENDED
        self.table.sealed(self)

    def filled(self) -> None:
        """The cache write is over, however it went."""
        if self.phase is Phase.FILLING:
            self.phase = Phase.ENDED
            self.table.ended(self)

    def flush(self) -> None:
        """Push everything new into every sink that has room: one call for each read from the upstream."""
        subscribers = self.subscribers
        if len(subscribers) <= FAN_OUT:
            for subscription in tuple(subscribers):
                if not subscription.paused and subscription.exit is None:
                    self.serve(subscription)
        elif self._queue is not None:
            self._again = True
        else:
            self._queue = list(subscribers)
            self._fan_out()
        self.balance()

    def _fan_out(self) -> None:
        """Serve ``FAN_OUT`` subscribers, then let the loop turn. Each is served from its own position to the end,
        so a burst that arrives meanwhile is merged into one write and needs no order among the turns."""
        queue = self._queue
        assert queue is not None
        batch, rest = queue[:FAN_OUT], queue[FAN_OUT:]
        for subscription in batch:
            if not subscription.paused and subscription.exit is None:
                self.serve(subscription)
        if not rest and self._again:
            self._again = False
            rest = list(self.subscribers)
        if rest:
            self._queue = rest
            self.table.runner.defer(self._fan_out)
        else:
            self._queue = None
            self.balance()

    # -- what subscriptions take out -------------------------------------------------------------------------

    def attach(self, subscription: Subscription) -> None:
        self.subscribers[subscription] = None
        self.peak = max(self.peak, len(self.subscribers))

    def detach(self, subscription: Subscription) -> None:
        """Forget a subscription that has just been closed; the last one to go decides the flight's fate."""
        self.subscribers.pop(subscription, None)
        self.paused.pop(subscription, None)
        if not self.subscribers:
            self.table.emptied(self)
        elif self.producer_paused:
            self.balance()

    def serve(self, subscription: Subscription) -> None:
        """Hand one sink everything from its position to the live edge, as long as it has room."""
        tape = self.tape
        while True:
            head = None
            if not subscription.head_taken and self.head is not None:
                head = self.head
                subscription.head_taken = True
            data, subscription.position = tape.read(subscription.position, CATCH_UP_BYTES)
            ended = self.phase >= Phase.FILLING and subscription.position == tape.end
            if ended:
                subscription.finish(self.error).take(head, data, True)
                return
            if head is None and not data:
                return
            subscription.sink.take(head, data, False)
            if subscription.exit is not None or subscription.paused or subscription.position == tape.end:
                return

    def balance(self) -> None:
        """Keep memory bounded: pace the upstream by the fastest subscriber, and, unless the whole tape is wanted,
        eject whoever lags too far behind that one and drop what everybody has."""
        if self.phase is Phase.STREAMING and (self.paused or self.producer_paused):
            self._pace()
        if not self.retains and self.subscribers:
            self._trim()

    def _pace(self) -> None:
        """The fastest subscriber sets the pace, and none is waited for. While the tape is kept anyway, for joiners
        and the cache, a laggard costs no memory, and to eject it would make sharing a reason to fail; one that does
        not read at all meets its stall deadline."""
        limits, tape = self.table.limits, self.tape
        lags = [(subscription, tape.lag_bytes(subscription.position)) for subscription in self.paused]
        # Whoever is not paused stands at the live edge, or will before the loop has turned.
        least = min(lag for _, lag in lags) if lags and len(lags) == len(self.subscribers) else 0
        if least > limits.run_ahead_bytes:
            if self.producer is not None and not self.producer_paused:
                self.producer_paused = True
                self.producer.pause()
        elif self.producer_paused and least <= limits.run_ahead_bytes // 2:
            self._resume_producer()
        if not self.retains:
            # Measured from the fastest, because of ten readers held up alike by a burst none is slow; and a late
            # joiner is not behind by what it found on the tape.
            bound = least + limits.max_lag_bytes
            self._eject([subscription for subscription, lag in lags if lag > bound + subscription.backlog_bytes])

    def _eject(self, laggards: list[Subscription]) -> None:
        for subscription in laggards:
            if subscription.exit is None:
                self.table.ejected_lagging += 1
                subscription.eject(ProxyError(Kind.SLOW_READER, "The client reads too slowly.", why="lag"))

    def _resume_producer(self) -> None:
        self.producer_paused = False
        if self.producer is not None:
            self.producer.resume()

    def _trim(self) -> None:
        position = min([subscription.position for subscription in self.subscribers])
        if position > self.tape.base:
            self.table.retained_bytes -= self.tape.trim(position)

    # -- views -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """The state's name, as in the picture above."""
        if self.phase is Phase.ENDED:
            if self.ending is Ending.OK:
                return "DONE"
            if self.ending is Ending.ABANDONED:
                return "CANCELLED"
            return "FAILED" if self.head is None else "BROKEN"
        if self.phase is Phase.FILLING:
            return "FILLING"
        if not self.subscribers:
            return "LINGERING"
        if self.solo:
            return "SOLO"
        return self.phase.name

    def is_joinable(self, now: float) -> bool:
        """Whether a newcomer may still start at byte 0."""
        limits = self.table.limits
        return (
            self.mapped
            and self.retains
            and len(self.subscribers) < limits.max_subscribers
            and now - self.born_at < limits.max_join_age_s
        )

    def describe(self) -> dict[str, Any]:
        """A snapshot for `/flights`; no body, no credential, only a key's first eight hex digits."""
        return {
            "flight": self.id,
            "state": self.state,
            "key": self.key.hex()[:8] if self.key is not None else None,
            "subscribers": len(self.subscribers),
            "paused": len(self.paused),
            "bytes": self.tape.total_bytes,
            "retained_bytes": self.tape.retained_bytes,
            "age_s": round(self.table.clock.now() - self.born_at, 3),
            "ending": self.ending.value if self.ending is not None else None,
        }

    def __repr__(self) -> str:
        return f"<Flight {self.id} {self.state} readers={len(self.subscribers)} bytes={self.tape.total_bytes}>"
