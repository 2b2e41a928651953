"""TC161, TC171: random clients, upstreams, timers and operators on one table; every invariant holds after every step.

The bounds are tiny and a fan-out takes three at a time, so that short runs reach all of them. Beside the invariants
of `tests.fakes.flight.check`, a plain model here says which flight a request must join.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import proxy.flight.flight as flight_module
from proxy.errors import Kind, ProxyError
from proxy.flight.flight import Ending, Flight, Phase
from proxy.flight.limits import Limits
from proxy.flight.subscription import Exit
from tests.fakes.flight import Bench, RecordingSink, Valve, check, failure

LIMITS = Limits(
    max_subscribers=5,
    max_tape_bytes=120,
    max_answer_bytes=400,
    max_lag_bytes=40,
    run_ahead_bytes=40,
    max_stall_s=10.0,
    retained_bytes=300,
    max_flights=8,
    max_flights_per_scope=5,
    max_lingering_per_scope=2,
    max_join_age_s=20.0,
    max_flight_age_s=60.0,
    pass_marker_s=5.0,
)
KEYS = [(b"k1", b"s1"), (b"k2", b"s1"), (b"k3", b"s1"), (b"k1", b"s2")]

chosen = st.integers(min_value=0, max_value=1_000)
seconds = st.sampled_from([0.02, 0.5, 1.0, 3.0, 7.0, 25.0])
chunk_sizes = st.lists(st.integers(min_value=1, max_value=30), min_size=1, max_size=4)


class FlightMachine(RuleBasedStateMachine):
    """One table from its start to its shutdown."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(flight_module, "FAN_OUT", 3)
        self.patch.setattr(flight_module, "CATCH_UP_BYTES", 16)
        self.bench = Bench(LIMITS, watched=False)
        self.mapped: dict[bytes, list[Flight]] = {}
        self.primary: dict[bytes, Flight] = {}
        self.closed = False
        self.letter = 0

    # -- what a request must meet ----------------------------------------------------------------------------

    def joinable(self, flight: Flight) -> bool:
        """In words of the design: can be found, has all its bytes, is neither full nor old."""
        return (
            flight.phase is not Phase.ENDED
            and not flight.solo
            and flight.tape.base == 0
            and flight.retains
            and len(flight.subscribers) < LIMITS.max_subscribers
            and self.bench.clock.now() - flight.born_at < LIMITS.max_join_age_s
        )

    def expected(self, key: bytes, joins: bool, retry: bool) -> Flight | None:
        known = [flight for flight in self.mapped.get(key, []) if self.joinable(flight)][::-1]
        primary = self.primary.get(key)
        if retry and known:
            unread = [flight for flight in known if not flight.subscribers and flight.phase < Phase.FILLING]
            return (unread or known)[0]
        return primary if joins and primary in known else None

    def forget_the_gone(self) -> None:
        for key, flights in list(self.mapped.items()):
            flights[:] = [flight for flight in flights if flight.phase is not Phase.ENDED and not flight.solo][-4:]
            if self.primary.get(key) not in flights:
                self.primary.pop(key, None)

    def new_is_mapped(self, flight: Flight, key: bytes) -> None:
        self.forget_the_gone()
        flights = self.mapped.setdefault(key, [])
        if key not in self.primary:
            flights[:] = flights[-3:]
        flights.append(flight)
        self.primary[key] = flight
        self.forget_the_gone()

    # -- clients ---------------------------------------------------------------------------------------------

    @rule(
        which=st.sampled_from(KEYS),
        keyed=st.sampled_from([True, True, True, True, False]),
        registers=st.sampled_from([True, True, True, False]),
        joins=st.sampled_from([True, True, False]),
        retry=st.sampled_from([False, False, True]),
        leads=st.sampled_from([True, True, True, False]),
        keeps=st.booleans(),
        leave_s=st.sampled_from([0.0, 3.0, math.inf]),
        capacity_bytes=st.sampled_from([None, None, 1, 8, 64]),
        start=st.sampled_from([True, True, True, False]),
    )
    def join(self, which, keyed, registers, joins, retry, leads, keeps, leave_s, capacity_bytes, start):
        name, scope = which
        key = scope + name if keyed else None
        table, sink = self.bench.table, RecordingSink(capacity_bytes)
        options = {
            "key": key,
            "scope": scope,
            "registers": registers,
            "joins": joins,
            "retry": retry,
            "leads": leads,
            "keeps": keeps,
            "leave_s": leave_s,
        }
        started = table.started
        if self.closed:
            with pytest.raises(ProxyError):
                table.join(sink, "work", **options)
            return
        expected = self.expected(key, joins, retry) if key is not None else None
        marked = key is not None and table.has_pass(key)
        place = table.join(sink, "work", **options)
        if expected is not None:
            assert place is not None
            assert (place.flight, table.started) == (expected, started)
            assert not place.leads
        elif not leads:
            assert place is None
            return
        else:
            assert place is not None
            assert (place.leads, table.started) == (True, started + 1)
            assert not (marked and place.flight.mapped), "a marked key was registered"
            if place.flight.mapped:
                assert registers
                assert key is not None
                self.new_is_mapped(place.flight, key)
        assert place.flight.scope == scope, "I14: a flight of another scope"
        assert place.flight.key == key
        sink.subscription = place
        self.bench.model.sinks.append(sink)
        if start:
            sink.start()

    @rule(which=st.sampled_from(KEYS))
    def refresh(self, which):
        name, scope = which
        key = scope + name
        self.forget_the_gone()
        running = key in self.primary
        flight = self.bench.table.refresh("work", key=key, scope=scope)
        if flight is not None:
            assert not running
            self.new_is_mapped(flight, key)

    def open_sinks(self) -> list[RecordingSink]:
        return [sink for sink in self.bench.model.sinks if sink.exit is None]

    @precondition(lambda self: self.open_sinks())
    @rule(
        number=chosen,
        act=st.sampled_from(["leave", "pause", "drain", "drain", "start", "eject"]),
    )
    def client_acts(self, number, act):
        sinks = self.open_sinks()
        sink = sinks[number % len(sinks)]
        if act == "leave":
            sink.place.leave()
        elif act == "pause":
            sink.place.pause()
        elif act == "drain":
            sink.drain()
        elif act == "start":
            sink.start()
        else:
            sink.place.eject(ProxyError(Kind.PATIENCE, "Too slow for you."))

    @precondition(lambda self: self.open_sinks())
    @rule(number=chosen, act=st.sampled_from(["leave", "pause", "bounce", "eject", "other leaves", "other resumes"]))
    def client_will_act_while_served(self, number, act):
        """The next delivery to this one does something from the inside, once."""
        sinks = self.open_sinks()
        sink, other = sinks[number % len(sinks)], sinks[(number + 1) % len(sinks)]

        def interfere(sink):
            sink.on_take = None
            if act == "leave":
                sink.place.leave()
            elif act == "pause":
                sink.place.pause()
            elif act == "bounce":
                sink.place.pause()
                sink.drain()
            elif act == "eject":
                sink.place.eject(failure("interfered"))
            elif act == "other leaves":
                other.place.leave()
            else:
                other.drain()

        sink.on_take = interfere

    # -- upstreams -------------------------------------------------------------------------------------------

    def running(self) -> list[Flight]:
        return [flight for flight in self.bench.runner.started if flight.phase < Phase.ENDED]

    @precondition(lambda self: self.running())
    @rule(number=chosen, shareable=st.sampled_from([True, True, True, False]), flush=st.booleans())
    def head(self, number, shareable, flush):
        flights = self.running()
        flight = flights[number % len(flights)]
        if flight.producer is None and flight.phase is Phase.OPENING:
            flight.producer = Valve()
            if number % 2:
                self.bench.last_words(flight, b"(broken)")
        self.bench.begin(flight, f"head of {flight.id}", shareable=shareable, flush=flush)
        self.forget_the_gone()

    @precondition(lambda self: self.running())
    @rule(number=chosen, sizes=chunk_sizes, flush=st.sampled_from([True, True, True, False]), rude=st.booleans())
    def chunks(self, number, sizes, flush, rude):
        flights = self.running()
        flight = flights[number % len(flights)]
        if flight.producer_paused and not rude:
            return
        data = []
        for size in sizes:
            self.letter += 1
            data.append(bytes([97 + self.letter % 26]) * size)
        self.bench.send(flight, *data, flush=flush)
        self.forget_the_gone()

    @precondition(lambda self: self.running())
    @rule(number=chosen, ending=st.sampled_from([Ending.OK, Ending.OK, *Ending]), filling=st.booleans())
    def end(self, number, ending, filling):
        flights = self.running()
        flight = flights[number % len(flights)]
        if ending is Ending.ABANDONED:
            return  # the table's alone
        if ending in (Ending.OK, Ending.CUT) and flight.phase is Phase.OPENING:
            return  # no answer is whole without a head
        error = None if ending in (Ending.OK, Ending.CUT) else failure(ending.value)
        self.bench.end(flight, ending, error, filling=filling)
        self.forget_the_gone()

    @precondition(lambda self: self.running())
    @rule(number=chosen, act=st.sampled_from(["filled", "finishing", "flush"]))
    def production_acts(self, number, act):
        flights = self.running()
        flight = flights[number % len(flights)]
        if act == "filled":
            flight.filled()
        elif act == "finishing":
            flight.finishing = flight.finishing or flight.phase is Phase.STREAMING
        else:
            self.bench.flush(flight)
        self.forget_the_gone()

    # -- the loop, time, operators ---------------------------------------------------------------------------

    @precondition(lambda self: self.bench.runner.deferred)
    @rule(number=chosen)
    def one_deferred(self, number):
        """In any order, one at a time."""
        deferred = self.bench.runner.deferred
        deferred.pop(number % len(deferred))()

    @precondition(lambda self: self.bench.runner.deferred)
    @rule()
    def turn(self):
        self.bench.runner.turn()

    @rule(seconds=seconds, swept=st.booleans())
    def time_passes(self, seconds, swept):
        self.bench.advance(seconds)
        if swept:
            self.bench.table.sweep()
            for flight in self.running():
                assert self.bench.clock.now() - flight.born_at <= LIMITS.max_flight_age_s
        self.forget_the_gone()

    @rule(scope=st.sampled_from([b"s1", b"s2"]))
    def revoke(self, scope):
        mine = [sink for sink in self.open_sinks() if sink.flight.scope == scope]
        others = [(sink, sink.exit) for sink in self.open_sinks() if sink.flight.scope != scope]
        for sink in self.open_sinks():
            sink.on_take = None
        assert self.bench.table.revoke(scope, failure("revoked")) == len(mine)
        assert {sink.exit for sink in mine} <= {Exit.EJECTED}
        assert all(sink.exit is before for sink, before in others)
        self.forget_the_gone()

    @precondition(lambda self: self.bench.table.started > 8)
    @rule()
    def close(self):
        self.bench.table.close(failure("closed"))
        self.closed = True

    @invariant()
    def every_invariant_holds(self):
        check(self.bench.table, self.bench.model)

    def teardown(self):
        """The end of a drain: everything ends, every reader is told within its deadline, and nothing is left."""
        try:
            for sink in self.bench.model.sinks:
                sink.on_take = None
            self.bench.table.shut(failure("shut"))
            for sink in self.open_sinks():
                sink.start()
            self.bench.runner.settle()
            assert all(sink.place.paused for sink in self.open_sinks())
            self.bench.advance(LIMITS.max_stall_s + 0.1)
            assert self.open_sinks() == []
            self.bench.assert_empty()
        finally:
            self.patch.undo()


TestFlightMachine = FlightMachine.TestCase
TestFlightMachine.settings = settings(
    max_examples=250,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
