"""The flight room driven by hand: a runner that only notes, sinks that record, and `check`, which holds the nine
invariants of the table and those of the design against a plain model after any step.

`Bench` ties them together. What the upstream sends goes through its methods, so that the model knows what every
subscriber may have received; what subscribers do goes straight to their subscription.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from proxy.clock import Deadlines
from proxy.errors import Kind, ProxyError
from proxy.flight.flight import Ending, Flight, Phase
from proxy.flight.limits import Limits
from proxy.flight.subscription import Exit, Subscription
from proxy.flight.table import Table
from tests.fakes.clock import FrozenClock

TICK_S = 0.02


class HandRunner:
    """Notes which flights were started and stopped; deferred callbacks wait for `turn`."""

    def __init__(self) -> None:
        self.started: list[Flight] = []
        self.stopped: list[Flight] = []
        self.deferred: list[Callable[[], None]] = []
        self.defers = 0
        self.on_start: Callable[[Flight], None] | None = None

    def start(self, flight: Flight) -> None:
        self.started.append(flight)
        if self.on_start is not None:
            self.on_start(flight)

    def stop(self, flight: Flight) -> None:
        self.stopped.append(flight)

    def defer(self, callback: Callable[[], None]) -> None:
        self.defers += 1
        self.deferred.append(callback)

    def turn(self) -> int:
        """One turn of the loop: run what was deferred before it began."""
        due, self.deferred = self.deferred, []
        for callback in due:
            callback()
        return len(due)

    def settle(self) -> None:
        while self.turn():
            pass


class Valve:
    """A producer that notes whether it was paused."""

    def __init__(self) -> None:
        self.paused = False
        self.pauses = 0
        self.resumes = 0

    def pause(self) -> None:
        assert not self.paused, "paused twice"
        self.paused = True
        self.pauses += 1

    def resume(self) -> None:
        assert self.paused, "resumed twice"
        self.paused = False
        self.resumes += 1


class RecordingSink:
    """Keeps what it was given. With a capacity it pauses itself when full, and `drain` makes room again."""

    def __init__(self, capacity_bytes: int | None = None, *, keeps: bool = True) -> None:
        self.capacity_bytes = capacity_bytes
        self.keeps = keeps
        """Whether the bytes are kept, or only counted."""
        self.held_bytes = 0
        self.subscription: Subscription | None = None
        self.started = False
        self.heads: list[Any] = []
        self.pieces: list[bytes] = []
        self.received = bytearray()
        self.taken_bytes = 0
        self.ends = 0
        self.releases = 0
        self.takes = 0
        self.on_take: Callable[[RecordingSink], None] | None = None
        self.on_released: Callable[[RecordingSink], None] | None = None

    @property
    def place(self) -> Subscription:
        assert self.subscription is not None
        return self.subscription

    @property
    def flight(self) -> Flight:
        return self.place.flight

    @property
    def exit(self) -> Exit | None:
        return self.place.exit

    @property
    def error(self) -> ProxyError | None:
        return self.place.error

    @property
    def body(self) -> bytes:
        return bytes(self.received)

    def take(self, head: Any, data: bytes, ended: bool) -> None:
        assert not self.ends, "something came after the end"
        assert not self.releases, "something came after the release"
        assert self.subscription is None or self.exit is None or ended, "something came after it had left"
        self.takes += 1
        if head is not None:
            assert not self.pieces, "the head came after the body had begun"
            self.heads.append(head)
        if data and self.keeps:
            self.pieces.append(data)
            self.received += data
        self.taken_bytes += len(data)
        self.ends += ended
        if self.capacity_bytes is not None and not ended:
            self.held_bytes += len(data)
            if self.held_bytes >= self.capacity_bytes:
                self.place.pause()
        if self.on_take is not None:
            self.on_take(self)

    def released(self) -> None:
        self.releases += 1
        if self.on_released is not None:
            self.on_released(self)

    def start(self) -> None:
        self.started = True
        self.place.start()

    def drain(self) -> None:
        """The client read everything."""
        self.held_bytes = 0
        self.place.resume()


@dataclass
class Answer:
    """What the upstream sent on one flight, in plain Python."""

    head: Any = None
    body: bytearray = field(default_factory=bytearray)
    flushed_bytes: int = 0
    flushed_head: bool = False
    flushed_end: bool = False
    phase: Phase = Phase.OPENING
    biggest_read_bytes: int = 0
    """The most that came between two flushes: a bound can be overshot by that much."""
    readers_at_end: int | None = None
    obedient: bool = True
    """The upstream never sent while it was paused, so the bounds on memory must hold."""


@dataclass
class Model:
    """What must be true of the table, kept by the bench beside it."""

    runner: HandRunner
    answers: dict[Flight, Answer] = field(default_factory=dict)
    sinks: list[RecordingSink] = field(default_factory=list)


class Bench:
    """A table with everything around it replaced by what a test drives by hand."""

    def __init__(self, limits: Limits = Limits(), *, watched: bool = True) -> None:  # noqa: B008
        self.clock = FrozenClock()
        self.deadlines = Deadlines(self.clock, TICK_S)
        self.runner = HandRunner()
        self.table = Table(self.clock, self.deadlines, self.runner, limits)
        self.model = Model(self.runner)
        self.watched = watched
        """Whether every step is followed by `check`; off where a test makes very many steps."""

    # -- clients ---------------------------------------------------------------------------------------------

    def join(
        self,
        key: bytes | None = b"key",
        *,
        scope: bytes = b"scope",
        capacity_bytes: int | None = None,
        registers: bool = True,
        joins: bool = True,
        start: bool = True,
        sink: RecordingSink | None = None,
        work: Any = "work",
        **more: Any,
    ) -> RecordingSink:
        """A request arrives, joins or leads, and is ready at once unless ``start`` says otherwise."""
        sink = sink or RecordingSink(capacity_bytes)
        place = self.table.join(sink, work, key=key, scope=scope, registers=registers, joins=joins, **more)
        assert place is not None
        sink.subscription = place
        self.model.sinks.append(sink)
        if start:
            sink.start()
        self.check()
        return sink

    def crowd(self, count: int, key: bytes | None = b"key", **more: Any) -> list[RecordingSink]:
        return [self.join(key, **more) for _ in range(count)]

    # -- upstream --------------------------------------------------------------------------------------------

    def answer(self, flight: Flight) -> Answer:
        return self.model.answers.setdefault(flight, Answer())

    def begin(self, flight: Flight, head: Any = "head", *, shareable: bool = True, flush: bool = True) -> None:
        if flight.phase is Phase.OPENING:
            self.answer(flight).head = head
        flight.begin(head, shareable)
        self._after(flight, flush)

    def send(self, flight: Flight, *chunks: bytes, flush: bool = True) -> None:
        """One read from the upstream that brought ``chunks``."""
        answer = self.answer(flight)
        for chunk in chunks:
            if flight.phase is Phase.STREAMING:
                answer.body += chunk
                answer.obedient = answer.obedient and not flight.producer_paused
            flight.append(chunk)
        self._after(flight, flush)

    def end(
        self,
        flight: Flight,
        ending: Ending = Ending.OK,
        error: ProxyError | None = None,
        *,
        filling: bool = False,
        flush: bool = True,
    ) -> None:
        flight.seal(ending, error, filling=filling)
        self._after(flight, flush)

    def last_words(self, flight: Flight, words: bytes) -> None:
        """What the flight says when it breaks."""

        def speak(error: ProxyError) -> bytes:
            if flight.phase is Phase.STREAMING:
                self.answer(flight).body += words
            return words

        flight.last_words = speak

    def whole(self, flight: Flight, *chunks: bytes) -> None:
        """A whole answer from its head to its end."""
        self.begin(flight)
        self.send(flight, *chunks)
        self.end(flight)

    def flush(self, flight: Flight) -> None:
        self._after(flight, True)

    def _after(self, flight: Flight, flush: bool) -> None:
        if flush:
            answer = self.answer(flight)
            answer.biggest_read_bytes = max(answer.biggest_read_bytes, len(answer.body) - answer.flushed_bytes)
            answer.flushed_bytes = len(answer.body)
            answer.flushed_head = answer.head is not None
            answer.flushed_end = flight.phase >= Phase.FILLING
            flight.flush()
        self.check()

    # -- time ------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> int:
        self.clock.advance(seconds)
        fired = self.deadlines.sweep()
        self.check()
        return fired

    def check(self) -> None:
        if self.watched:
            check(self.table, self.model)

    def assert_empty(self) -> None:
        """Nothing is left of any flight: the leak check at the end of a test."""
        table = self.table
        check(table, self.model)
        assert (
            table.live,
            table._primary,
            table._older,
            table._by_scope,
            table._lingering,
        ) == ({}, {}, {}, {}, {})
        assert (table.retained_bytes, table.subscribers, table.lingering, table._mapped) == (0, 0, 0, 0)
        assert (self.deadlines.armed, self.runner.deferred) == (0, [])


def failure(why: str = "connect") -> ProxyError:
    return ProxyError(Kind.UPSTREAM_UNREACHABLE, "The upstream can not be reached.", why=why)


# -- the invariants --------------------------------------------------------------------------------------------


def check(table: Table, model: Model) -> None:
    """Hold every invariant against the table as it is now."""
    _check_map(table)
    _check_counts(table, model)
    for flight in table.live:
        _check_flight(table, model, flight)
    for flight, answer in model.answers.items():
        _check_growth(flight, answer)
    for sink in model.sinks:
        _check_sink(table, model, sink)


def _check_map(table: Table) -> None:
    """Invariants 1 and 7, I1 and I2: what can be found is alive, found once, and under its own key."""
    found: list[Flight] = []
    for key, flight in table._primary.items():
        assert flight.key == key
        found.append(flight)
    for key, older in table._older.items():
        assert 1 <= len(older) <= 3, "an empty slot stayed, or a fourth older flight"
        assert all(flight.key == key for flight in older)
        found.extend(older)
    assert len(found) == len(set(found)), "a flight is mapped twice"
    assert set(found) == {flight for flight in table.live if flight.mapped}, "mapped flights are not those in the map"
    assert all(flight.phase < Phase.ENDED for flight in found), "an ended flight can be found"


def _check_counts(table: Table, model: Model) -> None:
    """I8, I11 and the books: every count equals what it counts."""
    live = table.live
    assert table.retained_bytes == sum(flight.tape.retained_bytes for flight in live)
    by_scope: dict[bytes, int] = {}
    lingering: dict[bytes, int] = {}
    for flight in live:
        by_scope[flight.scope] = by_scope.get(flight.scope, 0) + flight.mapped
        if flight.linger is not None:
            lingering[flight.scope] = lingering.get(flight.scope, 0) + 1
    assert {scope: count for scope, count in by_scope.items() if count} == table._by_scope
    assert sum(by_scope.values()) == table._mapped <= table.limits.max_flights
    assert all(count <= table.limits.max_flights_per_scope for count in by_scope.values())
    assert lingering == table._lingering
    assert all(count <= table.limits.max_lingering_per_scope for count in lingering.values())
    assert table.started == len(model.runner.started) == len(set(model.runner.started))
    assert all(flight in live for flight in model.runner.started if flight.phase < Phase.ENDED), "an unowned flight"
    assert all(flight.phase >= Phase.FILLING for flight in model.runner.stopped), "stopped without an ending"


def _check_flight(table: Table, model: Model, flight: Flight) -> None:
    """Invariants 3, 4, 8 and 9; I3 and I11."""
    subscribers, paused, limits = flight.subscribers, flight.paused, table.limits
    assert all(s.exit is None and s.flight is flight for s in subscribers)
    assert all(s in subscribers for s in paused)
    assert all(s.paused == (s in paused) for s in subscribers)
    assert all((s._stall is not None) == s.paused for s in subscribers), "a pause without a deadline"
    assert flight.phase < Phase.ENDED or subscribers, "an ended flight that nobody reads was not forgotten"
    if flight.linger is not None:
        assert flight.phase < Phase.FILLING
        assert not subscribers, "a flight with a reader lingers"
    if not subscribers and flight.phase < Phase.FILLING:
        waits = flight.linger is not None or flight.leave_s == math.inf
        assert waits, "an unread flight is neither waiting nor cancelled"
        assert flight.finishing or (flight.mapped and flight.retains), "an unread flight that nobody can come back to"
    if flight.producer_paused:
        assert flight.phase is Phase.STREAMING
        assert subscribers, "the upstream of an unread flight is paused"
        reading = [s for s in subscribers if s.sink.started and not s.paused]
        assert not reading, "the upstream is paused although somebody reads"
    if flight.retains:
        assert flight.tape.base == 0
        assert flight.key is None or flight.ending or flight.tape.total_bytes <= limits.max_tape_bytes
    else:
        assert not flight.is_joinable(table.clock.now())
        _check_lag(table, model, flight)


def _check_lag(table: Table, model: Model, flight: Flight) -> None:
    """I11 of a flight that keeps no beginning: bounded by its slowest reader, and that one by the fastest."""
    answer, limits = model.answers.get(flight), table.limits
    if answer is None or not answer.obedient or flight.phase is not Phase.STREAMING or model.runner.deferred:
        return
    if answer.flushed_bytes < len(answer.body) or not all(s.sink.started for s in flight.subscribers):
        return
    backlog_bytes = max((s.backlog_bytes for s in flight.subscribers), default=limits.max_tape_bytes)
    bound = limits.run_ahead_bytes + limits.max_lag_bytes + backlog_bytes + 2 * answer.biggest_read_bytes
    assert flight.tape.retained_bytes <= max(bound, limits.max_tape_bytes + answer.biggest_read_bytes)


def _check_growth(flight: Flight, answer: Answer) -> None:
    """Invariant 5: the phase only grows, nothing is appended after the seal; I3: nobody joins what has ended."""
    assert flight.phase >= answer.phase, "the phase went back"
    answer.phase = flight.phase
    assert flight.tape.total_bytes == len(answer.body), "the tape is not what the upstream sent"
    assert (flight.ending is None) == (flight.phase < Phase.FILLING)
    if flight.phase is Phase.ENDED:
        assert not flight.mapped
        before, answer.readers_at_end = answer.readers_at_end, len(flight.subscribers)
        assert before is None or answer.readers_at_end <= before, "an ended flight was joined"


def _check_sink(table: Table, model: Model, sink: RecordingSink) -> None:
    """Invariants 4 and 6; I4, I5, I6, I7, I12, I14 and I15: a prefix, then exactly one ending, the same for all."""
    place, flight = sink.place, sink.flight
    answer = model.answers.get(flight, _NOTHING)
    assert answer.body.startswith(sink.received), "not a prefix of what the upstream sent"
    assert sink.heads in ([], [answer.head]), "another head, or the head twice"
    assert not sink.pieces or sink.heads, "bytes without a head"
    assert (sink.exit is None) == (place in flight.subscribers), "readers are not the open subscriptions"
    assert all(type(error) is ProxyError for error in (place.error, flight.error) if error is not None)
    if sink.exit is None:
        assert (sink.ends, sink.releases, sink.error) == (0, 0, None)
        assert flight in table.live
        if sink.started and not place.paused and not model.runner.deferred:
            assert not answer.flushed_end, "an ending was not delivered"
            assert len(sink.received) >= answer.flushed_bytes, "bytes were not delivered"
            assert len(sink.heads) >= answer.flushed_head, "a head was not delivered"
    elif sink.exit in (Exit.COMPLETE, Exit.ERROR):
        assert (sink.ends, sink.releases) == (1, 0)
        assert sink.received == answer.body, "ended before everything was delivered"
        assert sink.error is flight.error
        assert (sink.exit is Exit.COMPLETE) == (flight.error is None)
        assert flight.ending is not Ending.ABANDONED, "a reader saw an abandoned flight"
        assert flight.error is not None or flight.ending in (Ending.OK, Ending.CUT), "looks complete and is not"
    elif sink.exit is Exit.EJECTED:
        assert (sink.ends, sink.releases) == (1, 0)
        assert sink.error is not None
    elif sink.exit is Exit.LEFT:
        assert (sink.ends, sink.releases, sink.error) == (0, 0, None)
    else:
        assert (sink.ends, sink.releases, sink.heads, sink.received) == (0, 1, [], b"")


_NOTHING = Answer()


def bodies(sinks: Iterable[RecordingSink]) -> set[bytes]:
    """The different bodies that were received."""
    return {sink.body for sink in sinks}
