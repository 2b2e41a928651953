"""TC162, TC165, TC052: every order of a few events, not a random one.

`explore` visits all schedules of three clients, two keys and four chunks breadth first: whatever can happen next
happens, from every state that can be reached, and the invariants are held against each. States that can not be told
apart are explored once, so each alphabet of events is exhausted and not merely sampled. The last tests add one more
client at every moment of a small flight; nobody else may notice.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.flight.flight import Ending, Flight, Phase
from proxy.flight.limits import Limits
from proxy.flight.subscription import Exit
from tests.fakes.flight import Bench, RecordingSink, Valve, check, failure

CHUNKS = (b"a", b"bb", b"ccc", b"dddd")
KEYS = (b"A", b"A", b"B")
LIMITS = Limits(max_tape_bytes=8, max_lag_bytes=3, run_ahead_bytes=3, max_stall_s=100.0)

Event = tuple[str, int]
Schedule = tuple[Event, ...]


class World:
    """A bench after a schedule, and what may happen next to it."""

    def __init__(self, alphabet: dict[str, int], schedule: Schedule) -> None:
        self.alphabet = alphabet
        self.bench = Bench(LIMITS, watched=False)
        self.sinks: list[RecordingSink | None] = [None, None, None]
        self.happened: Counter[str] = Counter()
        for event in schedule:
            self.happen(event)

    def happen(self, event: Event) -> None:
        what, which = event
        bench = self.bench
        self.happened[what] += 1
        if what in ("join", "join alone", "join again"):
            how = {"joins": what != "join alone", "retry": what == "join again"}
            self.sinks[which] = bench.join(KEYS[which], **how, leave_s=3.0 if which == 1 else 0.0)
        elif what == "leave":
            self.sinks[which].place.leave()
        elif what == "pause":
            self.sinks[which].place.pause()
        elif what == "resume":
            self.sinks[which].place.resume()
        elif what == "timer":
            bench.advance(3.1)
        else:
            self.upstream(what, bench.runner.started[which])

    def upstream(self, what: str, flight: Flight) -> None:
        if what == "head":
            flight.producer = Valve()
            self.bench.begin(flight)
        elif what == "unshareable":
            self.bench.begin(flight, shareable=False)
        elif what == "chunk":
            self.bench.send(flight, CHUNKS[self.happened["chunk"] - 1])
        elif what == "ok":
            self.bench.end(flight, filling=True)
        elif what == "fault":
            self.bench.end(flight, Ending.FAULT, failure())
        else:
            flight.filled()

    def next_events(self) -> Iterator[Event]:
        for event in self._possible():
            if self.happened[event[0]] < self.alphabet.get(event[0], 0):
                yield event

    def _possible(self) -> Iterator[Event]:
        for which, sink in enumerate(self.sinks):
            if sink is None:
                yield "join", which
                yield "join alone", which
            elif sink.exit is Exit.LEFT:
                yield "join again", which
            elif sink.exit is None:
                yield "leave", which
                yield ("resume" if sink.place.paused else "pause"), which
        for which, flight in enumerate(self.bench.runner.started):
            if flight.phase is Phase.OPENING:
                yield from (("head", which), ("unshareable", which), ("fault", which))
            elif flight.phase is Phase.STREAMING:
                if not flight.producer_paused:
                    yield "chunk", which
                yield from (("ok", which), ("fault", which))
            elif flight.phase is Phase.FILLING:
                yield "filled", which
        if self.bench.deadlines.armed:
            yield "timer", 0

    def fingerprint(self) -> tuple[Any, ...]:
        """Everything that can make a difference to what happens next, or has happened to anybody."""
        flights, table = self.bench.runner.started, self.bench.table
        now = self.bench.clock.now()
        return (
            tuple(sorted(self.happened.items())),
            tuple(self._fingerprint_of(sink) for sink in self.sinks),
            tuple(
                (
                    flight.key,
                    flight.phase,
                    flight.ending,
                    flight.mapped,
                    flight.retains,
                    flight.solo,
                    flight.linger is not None and round(flight.linger.at - now, 3),
                    flight.leave_s,
                    flight.producer_paused,
                    flight.tape.base,
                    bytes(self.bench.answer(flight).body),
                    tuple(self.bench.model.sinks.index(place.sink) for place in flight.subscribers),
                )
                for flight in flights
            ),
            tuple(sorted((key, flight.id) for key, flight in table._primary.items())),
            tuple(sorted((key, tuple(flight.id for flight in older)) for key, older in table._older.items())),
            table.pass_markers,
        )

    def _fingerprint_of(self, sink: RecordingSink | None) -> tuple[Any, ...] | None:
        if sink is None:
            return None
        place = sink.place
        numbers = (sink.flight.id, place.position, place.backlog_bytes, len(sink.heads))
        return (*numbers, place.paused, place.exit, sink.body)


def explore(alphabet: dict[str, int]) -> int:
    """Visit every state that some order of these events leads to, and return how many there are."""
    start = World(alphabet, ())
    seen = {start.fingerprint()}
    frontier: list[tuple[Schedule, tuple[Event, ...]]] = [((), tuple(start.next_events()))]
    while frontier:
        following = []
        for schedule, events in frontier:
            for event in events:
                reached = (*schedule, event)
                world = World(alphabet, reached)
                mark = world.fingerprint()
                if mark in seen:
                    continue
                seen.add(mark)
                try:
                    check(world.bench.table, world.bench.model)
                except AssertionError as broken:
                    raise AssertionError(f"{broken} after {reached}") from broken
                following.append((reached, tuple(world.next_events())))
        frontier = following
    return len(seen)


ARRIVALS = {"join": 3, "head": 2, "chunk": 4, "ok": 2, "filled": 1}
DEPARTURES = {"join": 3, "leave": 2, "join again": 1, "timer": 1, "head": 1, "chunk": 1, "ok": 1}
SLOW_READERS = {"join": 2, "pause": 2, "resume": 2, "head": 1, "chunk": 4, "ok": 1}
ENDINGS = {"join": 2, "join alone": 1, "head": 1, "unshareable": 1, "chunk": 1, "fault": 1, "ok": 1, "filled": 1}


@pytest.mark.long
@pytest.mark.parametrize(
    ("alphabet", "least_states"),
    [(ARRIVALS, 5_000), (DEPARTURES, 5_000), (SLOW_READERS, 3_000), (ENDINGS, 6_000)],
    ids=["arrivals", "departures", "slow readers", "endings"],
)
def test_every_schedule_of_a_few_events_keeps_every_invariant(alphabet, least_states):
    """TC162: exhaustive; the number of states shows that the exploration did not come to nothing."""
    assert explore(alphabet) >= least_states


STEPS = ("join", "join", "head", b"a", b"bb", "flush", b"ccc", "ok", "filled")


def others_with_a_guest(arrives: int | None, departs: int, pauses: bool, how: str) -> list[tuple[Any, ...]]:
    """What two ordinary clients got from a small flight, with or without a third that comes and goes."""
    bench = Bench(watched=False)
    hosts: list[RecordingSink] = []
    guest: RecordingSink | None = None
    for moment, step in enumerate(STEPS):
        if moment == arrives:
            guest = bench.join()
            if pauses:
                guest.place.pause()
        if guest is not None and moment == departs and guest.exit is None:
            guest.place.leave() if how == "leaves" else guest.place.eject(failure())
        if step == "join":
            hosts.append(bench.join())
        elif isinstance(step, bytes):
            bench.send(hosts[0].flight, step, flush=step != b"bb")
        elif step == "head":
            bench.begin(hosts[0].flight)
        elif step == "flush":
            bench.flush(hosts[0].flight)
        elif step == "ok":
            bench.end(hosts[0].flight, filling=True)
        else:
            hosts[0].flight.filled()
    assert bench.table.started == 1
    return [(tuple(host.heads), tuple(host.pieces), host.ends, host.exit, host.error) for host in hosts]


@pytest.mark.parametrize("how", ["leaves", "is ejected"])
@pytest.mark.parametrize("pauses", [False, True])
def test_one_more_client_that_comes_and_goes_at_any_moment_is_never_noticed(pauses, how):
    """TC165, I6: the others get the same pieces in the same order and the same ending."""
    alone = others_with_a_guest(None, 0, False, how)
    assert {outcome[3] for outcome in alone} == {Exit.COMPLETE}
    for arrives in range(1, len(STEPS)):
        for departs in range(arrives, len(STEPS) + 1):
            assert others_with_a_guest(arrives, departs, pauses, how) == alone


@pytest.mark.parametrize("order", list(itertools.permutations(["timer", "retry", "head", "leave again"])))
def test_linger_retry_head_and_departure_in_one_tick_in_any_order(order):
    """TC052: whatever comes first, the retry gets the whole of one answer and nothing is closed twice."""
    bench = Bench()
    first = bench.join(leave_s=3.0)
    lost, back = first.flight, None
    first.place.leave()
    bench.clock.advance(3.05)
    for event in order:
        if event == "timer":
            bench.deadlines.sweep()
        elif event == "retry":
            back = bench.join(retry=True, leave_s=3.0)
        elif event == "head":
            bench.begin(lost)
        else:
            first.place.leave()
        bench.check()
    assert back is not None
    assert (back.flight is lost) == (order.index("retry") < order.index("timer"))
    bench.whole(back.flight, b"whole")
    assert (back.exit, back.body) == (Exit.COMPLETE, b"whole")
    assert bench.runner.stopped == ([] if back.flight is lost else [lost])
    bench.assert_empty()
