"""The table: which flight a request joins, and what becomes of flights that nobody reads.

The nine invariants (property-tested in tests/property/test_flight_machine.py):

1. At most one joinable primary flight for each key in a process.
2. No ``await`` between the hot-cache look-up, the look-up here and the insertion: `join` is synchronous.
3. The table holds a strong reference to the task that fills a flight until the flight has ended.
4. A subscription closes exactly once, and a flight's readers are its open subscriptions.
5. The phase only grows; nothing is appended after the seal.
6. A reader sees a prefix of the tape: no hole, no reordering, no repeat.
7. Removal compares identity: a flight takes out itself, never a newer one under its key.
8. One client's departure reaches the flight only through the count of its readers.
9. The producer never waits for a reader; it is paused when even the fastest is too far behind.

Why `join` may not be split in two steps, as two tasks show:

    task 1: look up K, nothing            task 2:
    task 1: await something               task 2: look up K, nothing
    task 1: insert K -> flight 1          task 2: insert K -> flight 2     # two upstream calls, one of them orphaned

| state | kept in | ends by |
|---|---|---|
| primary flight of a key | ``_primary`` | seal, cancel, supersede, isolation |
| older flights of a key, at most three | ``_older`` | the same, or a fourth one coming |
| every flight with a reader or an unfinished task | ``live`` | ended and read to the end |
| keys whose answers could not be shared | ``_passes`` | time, or an answer that can |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from proxy.clock import Clock, Deadlines
from proxy.errors import Kind, ProxyError
from proxy.flight.flight import Ending, Flight, Phase
from proxy.flight.limits import Limits
from proxy.flight.passes import PassMarkers
from proxy.flight.subscription import Sink, Subscription

_OLDER = 3
_FINISH_S = 1.0
"""How long an answer that lacks only its framing may run on without a reader."""


class Runner(Protocol):
    """The asyncio side of a flight; tests replace it by one that is driven by hand."""

    def start(self, flight: Flight) -> None:
        """Begin to fill the flight."""

    def stop(self, flight: Flight) -> None:
        """Stop filling and close the upstream now."""

    def defer(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` on the next turn of the loop."""


class Table:
    """Flights by key. All methods run on the loop's thread and none of them awaits."""

    def __init__(self, clock: Clock, deadlines: Deadlines, runner: Runner, limits: Limits = Limits()) -> None:  # noqa: B008
        # For the process.
        self.clock = clock
        self.deadlines = deadlines
        self.runner = runner
        self.limits = limits
        # Mutable state; see the table above. Written here and through the callbacks flights make.
        self.live: dict[Flight, None] = {}
        self.retained_bytes = 0
        self._primary: dict[bytes, Flight] = {}
        self._older: dict[bytes, list[Flight]] = {}
        self._passes = PassMarkers(clock, limits.pass_marker_s)
        self._mapped = 0
        self._by_scope: dict[bytes, int] = {}  # mapped flights; what goes alone takes no place from others
        self._lingering: dict[bytes, int] = {}
        self._number = 0
        self._closed: ProxyError | None = None
        # Counters, read at scrape time.
        self.started = 0
        self.joins: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.endings: dict[Ending, int] = dict.fromkeys(Ending, 0)
        self.lingers: dict[str, int] = {"joined": 0, "finished": 0, "cancelled": 0, "over_budget": 0, "shared": 0}
        self.superseded = 0
        self.released = 0
        self.ejected_lagging = 0
        self.ejected_stalled = 0
        self.watchdog = 0

    # -- joining ---------------------------------------------------------------------------------------------

    def join(
        self,
        sink: Sink,
        work: Any,
        *,
        key: bytes | None,
        scope: bytes,
        registers: bool,
        joins: bool,
        retry: bool = False,
        leads: bool = True,
        keeps: bool = False,
        leave_s: float = 0.0,
    ) -> Subscription | None:
        """Attach ``sink`` to the flight of ``key``, or to a new one that ``work`` describes.

        ``keeps`` asks for the whole tape to be kept for the cache even if the flight stays private.
        Call `Subscription.start` on the result once the sink is ready. ``None`` only if there was nothing to join
        and the request may not lead. Raises ``ProxyError(DRAINING)`` after `close`.
        """
        if self._closed is not None:
            raise self._closed.with_traceback(None)  # one error for all, so it must not collect their frames
        if key is not None and (joins or retry):
            flight = self._find(key, joins, retry)
            if flight is not None:
                return self._board(flight, sink)
        if not leads:
            return None
        mapped = registers and key is not None and self._may_register(key, scope)
        flight = self._new(key, scope, work, leave_s)
        if mapped:
            self._map(flight)
        else:
            flight.retains = keeps and key is not None
        subscription = Subscription(flight, sink, True, flight.born_at, "OPENING")
        flight.attach(subscription)
        self.runner.start(flight)
        return subscription

    def refresh(self, work: Any, *, key: bytes, scope: bytes) -> Flight | None:
        """Start a flight that nobody waits for, to renew what the cache holds; ``None`` if one is in the air."""
        if self._closed is not None or key in self._primary or not self._may_register(key, scope):
            return None
        flight = self._new(key, scope, work, math.inf)
        self._map(flight)
        self.runner.start(flight)
        return flight

    def has_pass(self, key: bytes) -> bool:
        """Whether answers of this key were unshareable a moment ago, so that waiting for one would be in vain."""
        return self._passes.has(key)

    def primary(self, key: bytes) -> Flight | None:
        return self._primary.get(key)

    def _find(self, key: bytes, joins: bool, retry: bool) -> Flight | None:
        now = self.clock.now()
        primary = self._primary.get(key)
        if retry:
            # A flight whose client just left is most likely the one this retry is looking for.
            flights = ([primary] if primary is not None else []) + self._older.get(key, [])[::-1]
            candidates = [flight for flight in flights if flight.is_joinable(now)]
            for flight in candidates:
                if not flight.subscribers and flight.phase < Phase.FILLING:
                    return flight
            if candidates:
                return candidates[0]
        if joins and primary is not None:
            if primary.is_joinable(now):
                return primary
            self._refuse("full" if len(primary.subscribers) >= self.limits.max_subscribers else "not_joinable")
        return None

    def _board(self, flight: Flight, sink: Sink) -> Subscription:
        state = flight.state
        self.joins[state] = self.joins.get(state, 0) + 1
        if flight.linger is not None:
            self._stop_lingering(flight, "joined")
        subscription = Subscription(flight, sink, False, self.clock.now(), state)
        flight.attach(subscription)
        return subscription

    def _new(self, key: bytes | None, scope: bytes, work: Any, leave_s: float) -> Flight:
        self._number += 1
        self.started += 1
        flight = Flight(self, self._number, key=key, scope=scope, work=work, leave_s=leave_s)
        self.live[flight] = None
        return flight

    def _may_register(self, key: bytes, scope: bytes) -> bool:
        """Sharing is an optimisation: over a bound the request goes alone instead of failing."""
        if self._passes.has(key):
            return self._refuse("pass_marker")
        if self._mapped >= self.limits.max_flights:
            return self._refuse("max_flights")
        if self._by_scope.get(scope, 0) >= self.limits.max_flights_per_scope:
            return self._refuse("max_flights_per_scope")
        if self.retained_bytes > self.limits.retained_bytes:
            return self._refuse("memory")
        return True

    def _refuse(self, why: str) -> bool:
        self.refused[why] = self.refused.get(why, 0) + 1
        return False

    def _map(self, flight: Flight) -> None:
        key = flight.key
        assert key is not None
        previous = self._primary.get(key)
        if previous is not None:
            self.superseded += 1
            older = self._older.setdefault(key, [])
            older.append(previous)
            if len(older) > _OLDER:
                oldest = older[0]
                self._unmap(oldest)
                if not oldest.subscribers and oldest.phase < Phase.FILLING:
                    self._cancel(oldest)
        self._primary[key] = flight
        flight.mapped = True
        self._mapped += 1
        self._by_scope[flight.scope] = self._by_scope.get(flight.scope, 0) + 1

    def _unmap(self, flight: Flight) -> None:
        """Take this very flight out of the map; a newer one under the same key stays (invariant 7)."""
        if not flight.mapped:
            return
        flight.mapped = False
        flight.retains = False
        self._mapped -= 1
        _count_down(self._by_scope, flight.scope)
        key = flight.key
        assert key is not None
        if self._primary.get(key) is flight:
            del self._primary[key]
            return
        older = self._older[key]
        older.remove(flight)
        if not older:
            del self._older[key]

    # -- what flights report ---------------------------------------------------------------------------------

    def proved_shareable(self, flight: Flight) -> None:
        if flight.key is not None and self._passes.clear(flight.key):
            self._refuse("pass_cleared")

    def isolate(self, flight: Flight) -> None:
        """The head cannot be shared: mark the key, keep the first subscriber, release the others in one go."""
        self._unmap(flight)
        flight.solo = True
        flight.retains = False
        if flight.key is not None:
            self._passes.mark(flight.key)
        if not flight.subscribers:
            self._cancel(flight)
            return
        _, *others = flight.subscribers
        released = [subscription.release() for subscription in others]
        self.released += len(released)
        for sink in released:
            sink.released()

    def grew(self, flight: Flight, count: int) -> None:
        """Account for bytes that were appended, and stop keeping them all where a bound is reached."""
        self.retained_bytes += count
        if flight.key is None:
            return  # passed through unread, held only as far as its reader lags
        limits, total_bytes = self.limits, flight.tape.total_bytes
        if total_bytes > limits.max_answer_bytes:
            error = ProxyError(Kind.UPSTREAM_TOO_LARGE, "The upstream's answer is too large.", why="answer_bytes")
            flight.seal(Ending.OVERRUN, error)
            self.runner.stop(flight)
        elif total_bytes > limits.max_tape_bytes or self.retained_bytes > 2 * limits.retained_bytes:
            flight.retains = False
            if not flight.subscribers:
                self._cancel(flight)  # neither a joiner nor the cache can have it any more

    def sealed(self, flight: Flight) -> None:
        self.endings[flight.ending or Ending.BUG] += 1
        flight.producer = None
        flight.producer_paused = False
        if flight.linger is not None:
            self._stop_lingering(flight, "finished")
        if flight.phase is Phase.ENDED:
            self.ended(flight)

    def ended(self, flight: Flight) -> None:
        self._unmap(flight)
        if not flight.subscribers:
            self._forget(flight)

    def emptied(self, flight: Flight) -> None:
        """The last subscriber went. An unfinished answer lingers, runs on, or is cancelled in this very step."""
        if flight.phase is Phase.ENDED:
            self._forget(flight)
        elif flight.phase is not Phase.FILLING:
            if flight.producer_paused:
                flight.balance()
            wait_s = flight.leave_s if flight.mapped and flight.retains else 0.0
            if flight.finishing:
                wait_s = max(wait_s, _FINISH_S)
            if wait_s <= 0:
                self._let_go(flight)
            elif wait_s != math.inf:
                self._linger(flight, wait_s)

    def _linger(self, flight: Flight, wait_s: float) -> None:
        count = self._lingering.get(flight.scope, 0)
        if count >= self.limits.max_lingering_per_scope:
            self.lingers["over_budget"] += 1
            self._cancel(flight)
            return
        self._lingering[flight.scope] = count + 1
        flight.linger = self.deadlines.arm(wait_s, lambda: self._let_go(flight))

    def _let_go(self, flight: Flight) -> None:
        """Nobody here reads it: it is cancelled, unless it is told to others who do."""
        if flight.beyond is None or not flight.beyond(lambda: self._unwanted(flight)):
            self._cancel(flight)
        elif flight.linger is not None:
            self._stop_lingering(flight, "shared")

    def _unwanted(self, flight: Flight) -> None:
        if not flight.subscribers and flight.phase < Phase.FILLING:
            self._cancel(flight)

    def _stop_lingering(self, flight: Flight, result: str) -> None:
        assert flight.linger is not None
        flight.linger.cancel()
        flight.linger = None
        self.lingers[result] += 1
        _count_down(self._lingering, flight.scope)

    def _cancel(self, flight: Flight) -> None:
        """Nobody wants it: unmapped and stopped in one step, so that a newcomer never meets a dying flight."""
        if flight.linger is not None:
            self._stop_lingering(flight, "cancelled")
        flight.seal(Ending.ABANDONED, ProxyError(Kind.CLIENT_GONE, "Everybody left.", why="abandoned"))
        self.runner.stop(flight)

    def _forget(self, flight: Flight) -> None:
        """Ended and read to the end: free its bytes and drop the last reference to it."""
        if self.live.pop(flight, self) is None:
            self.retained_bytes -= flight.tape.trim(flight.tape.end)

    # -- operations ------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """End flights that nobody ended, and drop old pass markers. The counter `watchdog` must stay 0: deadlines of
        the attempt end every flight long before."""
        now = self.clock.now()
        overdue = now - self.limits.max_flight_age_s
        for flight in [flight for flight in self.live if flight.born_at < overdue and flight.phase < Phase.ENDED]:
            self.watchdog += 1
            error = ProxyError(Kind.UPSTREAM_TIMEOUT, "The answer took too long.", why="watchdog")
            flight.seal(Ending.OVERRUN, error)
            flight.filled()
            flight.flush()
            self.runner.stop(flight)
        self._passes.sweep()

    def revoke(self, scope: bytes, error: ProxyError) -> int:
        """Take every subscriber of a scope off its flight, and return how many there were. Its flights are cancelled:
        nobody who may come back to them is left."""
        ejected = 0
        for flight in [flight for flight in self.live if flight.scope == scope]:
            for subscription in tuple(flight.subscribers):
                if subscription.exit is None:
                    subscription.eject(error)
                    ejected += 1
            if not flight.subscribers and flight.phase < Phase.FILLING:
                self._cancel(flight)
        return ejected

    def close(self, error: ProxyError) -> None:
        """Admit nobody any more; flights in the air go on."""
        self._closed = error

    def shut(self, error: ProxyError) -> None:
        """End every flight in the air with ``error``: the last step of a drain whose grace is over."""
        self._closed = self._closed or error
        for flight in tuple(self.live):
            if flight.phase < Phase.FILLING:
                flight.seal(Ending.SHUTDOWN, error)
                self.runner.stop(flight)
            flight.filled()
            flight.flush()

    @property
    def lingering(self) -> int:
        return sum(self._lingering.values())

    @property
    def pass_markers(self) -> int:
        return len(self._passes)

    @property
    def subscribers(self) -> int:
        return sum(len(flight.subscribers) for flight in self.live)

    def describe(self) -> list[dict[str, Any]]:
        return [flight.describe() for flight in self.live]

    def __len__(self) -> int:
        """Keys with a flight that can be found."""
        return len(self._primary.keys() | self._older.keys())


def _count_down(counts: dict[bytes, int], scope: bytes) -> None:
    """One less; the entry goes with the last one, so that nothing grows with the scopes ever seen."""
    left = counts[scope] - 1
    if left:
        counts[scope] = left
    else:
        del counts[scope]
