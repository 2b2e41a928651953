"""The table: which flight a request joins, what becomes of unread flights, and that none of them leaves a trace."""

import inspect
import math
import weakref

import pytest

from proxy.errors import Kind, ProxyError
from proxy.flight.flight import Ending, Phase
from proxy.flight.limits import Limits
from proxy.flight.passes import PassMarkers
from proxy.flight.subscription import Exit
from proxy.flight.table import Table
from tests.fakes.clock import FrozenClock
from tests.fakes.flight import Bench, RecordingSink, bodies, failure


@pytest.fixture
def bench():
    return Bench()


def flights_of(sinks):
    """The different flights of some sinks, in the order in which they were started."""
    return sorted({sink.flight for sink in sinks}, key=lambda flight: flight.id)


# -- joining ---------------------------------------------------------------------------------------------------


def test_single_request_is_one_upstream_call(bench):
    """TC001, T1, T9: one flight, led by its request; nothing is left of it."""
    sink = bench.join()
    assert (sink.place.leads, sink.place.joined_state) == (True, "OPENING")
    bench.whole(sink.flight, b"answer")
    assert (sink.body, sink.exit) == (b"answer", Exit.COMPLETE)
    assert (bench.table.started, bench.table.joins) == (1, {})
    bench.assert_empty()


def test_fifty_different_keys_are_fifty_flights(bench):
    """TC003: none waits for another."""
    sinks = [bench.join(b"key%d" % number) for number in range(50)]
    assert len(flights_of(sinks)) == 50
    bench.whole(sinks[49].flight, b"last first")
    assert (sinks[49].exit, sinks[0].exit) == (Exit.COMPLETE, None)
    for sink in sinks[:49]:
        bench.whole(sink.flight)
    bench.assert_empty()


def test_ended_flight_is_no_cache(bench):
    """TC004: the same request once more is a second call."""
    for _ in range(2):
        sink = bench.join()
        bench.whole(sink.flight, b"x")
    assert bench.table.started == 2


@pytest.mark.parametrize("ended", [False, True])
def test_request_in_the_tick_in_which_the_flight_ends_joins_fully_or_starts_anew(bench, ended):
    """TC005: before the seal it gets the whole answer, behind it a flight of its own; never an error."""
    first = bench.join()
    bench.begin(first.flight)
    bench.send(first.flight, b"x")
    if ended:
        bench.end(first.flight, flush=False)
    second = bench.join()
    assert (second.flight is first.flight) is not ended
    bench.end(first.flight)
    if ended:
        bench.whole(second.flight, b"x")
    assert (first.body, second.body) == (b"x", b"x")
    assert (first.exit, second.exit) == (Exit.COMPLETE, Exit.COMPLETE)
    bench.assert_empty()


def test_join_has_no_point_at_which_another_task_could_run():
    """TC006, TC007, invariant 2: look-up and insertion are one synchronous call, and so is all that may be joined."""
    methods = [value for _, value in inspect.getmembers(Table, inspect.isfunction)]
    assert Table.join in methods
    assert not any(inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method) for method in methods)


def test_flight_can_be_found_before_its_task_is_started(bench):
    """TC006: whatever the start of the task brings about, the next request meets the flight."""
    met = []

    def note(flight):
        met.append((bench.table.primary(b"key") is flight, len(flight.subscribers)))

    bench.runner.on_start = note
    bench.join()
    assert met == [(True, 1)]


def test_request_that_arrives_while_the_task_is_started_joins(bench):
    """TC006: a second request in the very call that starts the first one's flight."""
    second = RecordingSink()

    def join_too(flight):
        bench.runner.on_start = None
        bench.watched = False
        bench.join(sink=second)
        bench.watched = True

    bench.runner.on_start = join_too
    first = bench.join()
    assert second.flight is first.flight
    assert bench.table.started == 1


def test_flight_fails_inside_its_start_and_its_leader_is_told(bench):
    """A runner that ends the flight at once leaves nobody hanging."""

    def fail(flight):
        flight.seal(Ending.BUG, failure())
        flight.flush()

    bench.runner.on_start = fail
    sink = RecordingSink()
    place = bench.table.join(sink, "work", key=b"key", scope=b"s", registers=True, joins=True)
    place.start()
    assert (place.exit, sink.ends) == (Exit.ERROR, 1)
    assert bench.table.live == {}


def test_twenty_five_requests_at_ten_to_a_flight_are_three_calls():
    """TC010: groups of ten, ten and five, all right."""
    bench = Bench(Limits(max_subscribers=10))
    sinks = bench.crowd(25)
    flights = flights_of(sinks)
    assert [len(flight.subscribers) for flight in flights] == [10, 10, 5]
    for number, flight in enumerate(flights):
        bench.whole(flight, b"%d" % number)
    assert [sink.body for sink in sinks] == [b"0"] * 10 + [b"1"] * 10 + [b"2"] * 5
    assert bench.table.refused == {"full": 2}
    assert bench.table.superseded == 2
    bench.assert_empty()


def test_flight_that_is_too_old_is_superseded_and_ends_well():
    """TC011, T4: the newcomer starts the flight that later ones join; the old one completes for its readers."""
    bench = Bench(Limits(max_join_age_s=600))
    old = bench.join()
    bench.advance(599)
    assert bench.join().flight is old.flight
    bench.advance(1)
    new = bench.join()
    later = bench.join()
    assert new.flight is later.flight is not old.flight
    bench.whole(old.flight, b"old")
    assert bench.join().flight is new.flight
    bench.whole(new.flight, b"new")
    assert (old.body, new.body, later.body) == (b"old", b"new", b"new")
    assert bench.table.refused == {"not_joinable": 1}
    bench.assert_empty()


def test_fourth_older_flight_pushes_the_oldest_out_of_the_map_only(bench):
    """TC012, T4: its readers complete; nobody, not even a marked retry, finds it any more."""
    sinks = bench.crowd(5, joins=False)
    flights = flights_of(sinks)
    assert [flight.mapped for flight in flights] == [False, True, True, True, True]
    assert bench.runner.stopped == []
    for flight in flights[1:]:
        bench.end(flight, Ending.FAULT, failure())
    retry = bench.join(retry=True)
    assert retry.flight not in flights
    bench.whole(flights[0], b"oldest")
    assert (sinks[0].exit, sinks[0].body) == (Exit.COMPLETE, b"oldest")
    bench.whole(retry.flight)
    bench.assert_empty()


@pytest.mark.parametrize("leave_s", [3.0, math.inf])
def test_unread_flight_pushed_out_of_the_map_is_cancelled(bench, leave_s):
    """T4 with T14: nobody can come back to it, so its upstream is closed."""
    oldest = bench.join(leave_s=leave_s)
    flight = oldest.flight
    oldest.place.leave()
    bench.crowd(3, joins=False)
    assert flight.ending is None
    bench.join(joins=False)
    assert (flight.ending, bench.runner.stopped) == (Ending.ABANDONED, [flight])
    assert bench.table.lingering == 0


def test_filling_flight_pushed_out_of_the_map_still_fills(bench):
    """The cache write of a complete answer is not called off."""
    oldest = bench.join()
    bench.begin(oldest.flight)
    bench.end(oldest.flight, filling=True)
    newer = bench.crowd(4, joins=False)
    assert (oldest.flight.mapped, bench.runner.stopped) == (False, [])
    oldest.flight.filled()
    for sink in newer:
        bench.whole(sink.flight)
    bench.assert_empty()


def test_ten_thousand_keys_leave_no_trace():
    """TC013, I2: flights come, are shared, fail, are left or refused, and every structure is as it was."""
    bench = Bench(watched=False)
    for number in range(10_000):
        key, scope = b"key%d" % number, b"scope%d" % (number % 7)
        sink = bench.join(key, scope=scope, leave_s=3.0 if number % 5 == 0 else 0.0)
        flight = sink.flight
        bench.join(key, scope=scope, joins=number % 2 == 0).place.leave()
        if number % 5 in (0, 1):
            sink.place.leave()
        elif number % 5 == 2:
            bench.end(flight, Ending.FAULT, failure())
        else:
            bench.whole(flight, b"x")
        bench.model.sinks.clear()
        bench.model.answers.clear()
        bench.runner.started.clear()
        bench.runner.stopped.clear()
        bench.table.started = 0
        if number % 100 == 99:
            bench.advance(4)
    bench.assert_empty()
    assert bench.deadlines._slots == {}
    assert bench.table.pass_markers == 0


def test_table_starts_empty_whatever_other_tables_hold():
    """TC014: a forked or second process shares nothing through the module."""
    one, other = Bench(), Bench()
    one.join()
    assert other.table.primary(b"key") is None
    assert (len(one.table), len(other.table)) == (1, 0)


def test_follower_s_request_is_not_kept(bench):
    """TC101: of n requests with a large prompt one body stays, the leader's."""

    class Work:
        pass

    works = [Work() for _ in range(3)]
    alive = [weakref.ref(work) for work in works]
    for work in works:
        bench.join(work=work)
    del works, work
    assert [ref() is not None for ref in alive] == [True, False, False]


def test_request_that_may_not_lead_joins_or_gets_nothing(bench):
    """``only-if-cached``: no flight is started for it."""
    sink = RecordingSink()
    options = {"key": b"key", "scope": b"scope", "registers": True, "joins": True, "leads": False}
    assert bench.table.join(sink, "work", **options) is None
    assert bench.table.started == 0
    first = bench.join()
    assert bench.join(leads=False).flight is first.flight


def test_request_that_does_not_register_can_not_be_found(bench):
    """``no-store``: it joins nobody and nobody joins it."""
    first = bench.join()
    private = bench.join(registers=False, joins=False)
    third = bench.join()
    assert private.flight is not first.flight
    assert third.flight is first.flight
    assert len(bench.table) == 1


def test_requests_without_a_key_never_meet(bench):
    """Bypassed requests are flights of their own, in nobody's way."""
    sinks = bench.crowd(3, None)
    assert len(flights_of(sinks)) == 3
    assert len(bench.table) == 0
    for sink in sinks:
        bench.whole(sink.flight, b"x")
    bench.assert_empty()


def test_joins_are_counted_by_the_state_they_met(bench):
    """`joins_total{state}`."""
    first = bench.join(leave_s=3.0)
    bench.join()
    bench.begin(first.flight)
    bench.join()
    for place in tuple(first.flight.subscribers):
        place.leave()
    last = bench.join()
    assert last.place.joined_state == "LINGERING"
    bench.end(first.flight, filling=True)
    bench.join()
    assert bench.table.joins == {"OPENING": 1, "STREAMING": 1, "LINGERING": 1, "FILLING": 1}


# -- marked retries --------------------------------------------------------------------------------------------


def test_marked_retry_prefers_the_flight_whose_client_just_left(bench):
    """TC051 and 2.4: an older flight that lingers comes before the primary that is read."""
    lost = bench.join(joins=False, leave_s=3.0)
    other = bench.join(joins=False, leave_s=3.0)
    lost.place.leave()
    retry = bench.join(joins=False, retry=True)
    assert retry.flight is lost.flight
    bench.whole(lost.flight, b"what I asked for")
    bench.whole(other.flight, b"something else")
    assert retry.body == b"what I asked for"
    bench.assert_empty()


def test_marked_retry_without_a_lingering_flight_joins_the_newest(bench):
    """2.4: the primary first, then the older ones from the newest on."""
    sinks = bench.crowd(3, joins=False)
    assert bench.join(joins=False, retry=True).flight is sinks[2].flight
    bench.end(sinks[2].flight, Ending.FAULT, failure())
    assert bench.table.primary(b"key") is None
    assert bench.join(joins=False, retry=True).flight is sinks[1].flight


def test_marked_retry_does_not_prefer_an_answer_that_is_complete_already(bench):
    """A flight in FILLING has no reader either, but it is not the one that was lost."""
    full = bench.join(joins=False)
    bench.begin(full.flight)
    bench.end(full.flight, filling=True)
    running = bench.join(joins=False)
    assert bench.join(joins=False, retry=True).flight is running.flight


def test_ordinary_request_does_not_join_an_older_flight(bench):
    """Only the primary accepts ordinary joins, and when it has ended the next request starts a new one."""
    old, new = bench.crowd(2, joins=False)
    bench.whole(new.flight)
    newest = bench.join()
    assert newest.flight not in (old.flight, new.flight)
    assert bench.table.superseded == 1


def test_marked_retry_with_nothing_to_find_leads(bench):
    """A retry that comes too late is a request like any other."""
    retry = bench.join(retry=True)
    assert retry.place.leads


# -- departures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_upstream_is_closed_in_the_step_in_which_the_last_one_leaves(bench, head, at_once):
    """TC048, TC049, T12: once, and the flight can not be found any more."""
    sinks = bench.crowd(3)
    flight = sinks[0].flight
    if head:
        bench.begin(flight)
    for sink in sinks:
        assert bench.runner.stopped == []
        sink.place.leave()
        if not at_once:
            bench.runner.settle()
            bench.check()
    assert bench.runner.stopped == [flight]
    assert (flight.state, bench.table.primary(b"key")) == ("CANCELLED", None)
    bench.assert_empty()


def test_request_in_the_tick_of_the_last_departure_gets_a_new_flight(bench):
    """TC050: never the dying one."""
    first = bench.join()
    first.place.leave()
    second = bench.join()
    assert second.flight is not first.flight
    bench.end(first.flight, Ending.FAULT, failure())
    bench.whole(second.flight, b"fine")
    assert (second.exit, second.body) == (Exit.COMPLETE, b"fine")


def test_retry_within_the_linger_gets_the_whole_answer_of_the_first_call(bench):
    """TC051, T13, T3: the client left mid-stream and comes back; one call in total."""
    first = bench.join(leave_s=3.0)
    flight = first.flight
    bench.begin(flight)
    bench.send(flight, b"one ")
    first.place.leave()
    bench.send(flight, b"two ")
    bench.advance(2.9)
    assert flight.state == "LINGERING"
    again = bench.join(retry=True)
    assert (again.flight, again.body) == (flight, b"one two ")
    bench.advance(100)
    bench.send(flight, b"three")
    bench.end(flight)
    assert (again.exit, again.body) == (Exit.COMPLETE, b"one two three")
    assert len(bench.runner.started) == 1
    assert bench.table.lingers["joined"] == 1
    bench.assert_empty()


@pytest.mark.parametrize("first", ["timer", "join"])
def test_linger_ends_and_a_request_comes_in_the_same_tick(bench, first):
    """TC052: in either order no subscriber is lost and nothing is closed twice."""
    left = bench.join(leave_s=3.0)
    left.place.leave()
    bench.clock.advance(3.05)
    if first == "timer":
        bench.deadlines.sweep()
        back = bench.join()
        assert back.flight is not left.flight
        assert bench.runner.stopped == [left.flight]
    else:
        back = bench.join()
        bench.deadlines.sweep()
        assert back.flight is left.flight
        assert bench.runner.stopped == []
    bench.whole(back.flight, b"x")
    assert (back.exit, back.body) == (Exit.COMPLETE, b"x")
    bench.assert_empty()


def test_linger_that_expires_cancels(bench):
    """TC053, T14: not before its time, and the deadline is the last that is left of it."""
    sink = bench.join(leave_s=3.0)
    sink.place.leave()
    bench.advance(2.99)
    assert bench.runner.stopped == []
    bench.advance(0.05)
    assert bench.runner.stopped == [sink.flight]
    assert not sink.flight.is_paid
    assert bench.table.lingers["cancelled"] == 1
    bench.assert_empty()


def test_linger_starts_anew_with_each_departure(bench):
    """A client that comes back and leaves again is given the full time again."""
    sink = bench.join(leave_s=3.0)
    for _ in range(5):
        sink.place.leave()
        bench.advance(2.5)
        sink = bench.join(retry=True)
    sink.place.leave()
    bench.advance(2.9)
    assert bench.runner.stopped == []
    assert bench.table.started == 1


def test_lingering_budget_of_a_scope_is_used_up():
    """TC054: over the budget a flight is cancelled at once; another scope has its own."""
    bench = Bench(Limits(max_lingering_per_scope=2))
    sinks = [bench.join(b"key%d" % number, leave_s=3.0) for number in range(3)]
    other = bench.join(b"other", scope=b"other", leave_s=3.0)
    for sink in [*sinks, other]:
        sink.place.leave()
    assert [sink.flight.ending for sink in sinks] == [None, None, Ending.ABANDONED]
    assert other.flight.ending is None
    assert bench.table.lingers["over_budget"] == 1
    bench.join(b"key0")
    again = bench.join(b"key9", leave_s=3.0)
    again.place.leave()
    assert again.flight.ending is None


def test_flight_that_finishes_alone_fills_the_cache(bench):
    """TC055, T15, T8, T10: leave rule ``finish``; nobody reads, and the answer is whole when it is done."""
    sink = bench.join(leave_s=math.inf)
    flight = sink.flight
    bench.begin(flight)
    bench.send(flight, b"eighty percent ")
    sink.place.leave()
    bench.advance(500)
    bench.send(flight, b"the rest")
    assert flight.tape.chunks() == (b"eighty percent ", b"the rest")
    bench.end(flight, filling=True)
    late = bench.join()
    assert late.exit is Exit.COMPLETE
    flight.filled()
    assert bench.runner.stopped == []
    bench.assert_empty()


def test_lingering_answer_that_completes_stops_its_timer(bench):
    """T15: what was finished in time is not cancelled afterwards."""
    sink = bench.join(leave_s=3.0)
    bench.begin(sink.flight)
    sink.place.leave()
    bench.end(sink.flight)
    assert (bench.deadlines.armed, bench.table.lingers["finished"]) == (0, 1)
    bench.assert_empty()


def test_lingering_answer_that_fails_ends_quietly(bench):
    """T16: unmapped, nobody to tell."""
    sink = bench.join(leave_s=3.0)
    sink.place.leave()
    bench.end(sink.flight, Ending.FAULT, failure())
    assert (sink.ends, sink.flight.state) == (0, "FAILED")
    bench.assert_empty()


def test_answer_that_lacks_only_its_framing_gets_a_moment(bench):
    """``finishing``: the last event has come, the connection can be saved; but for one second only."""
    sinks = [bench.join(b"a"), bench.join(b"b")]
    for sink in sinks:
        bench.begin(sink.flight)
        bench.send(sink.flight, b"data: [DONE]\n\n")
        sink.flight.finishing = True
        sink.place.leave()
    bench.end(sinks[0].flight)
    assert sinks[0].flight.ending is Ending.OK
    bench.advance(0.99)
    assert sinks[1].flight.ending is None
    bench.advance(0.05)
    assert sinks[1].flight.ending is Ending.ABANDONED
    bench.assert_empty()


@pytest.mark.parametrize("leave_s", [3.0, math.inf])
def test_moment_for_the_framing_never_shortens_the_leave_rule(bench, leave_s):
    """A flight that may run on by its own rule does so when it is finishing, too."""
    sink = bench.join(leave_s=leave_s)
    bench.begin(sink.flight)
    sink.flight.finishing = True
    sink.place.leave()
    bench.advance(2.9)
    assert sink.flight.ending is None


@pytest.mark.parametrize("keeps", [False, True])
def test_private_flight_is_cancelled_by_its_reader_s_departure_whatever_the_rule(bench, keeps):
    """Nobody could come back to it."""
    sink = bench.join(registers=False, keeps=keeps, leave_s=math.inf)
    sink.place.leave()
    assert bench.runner.stopped == [sink.flight]
    bench.assert_empty()


def test_unread_flight_whose_tape_is_lost_is_cancelled():
    """Leave rule ``finish`` over ``max_tape_bytes``: neither a joiner nor the cache could have it."""
    bench = Bench(Limits(max_tape_bytes=10))
    before, after = bench.join(b"before", leave_s=math.inf), bench.join(b"after", leave_s=math.inf)
    for sink in (before, after):
        bench.begin(sink.flight)
    before.place.leave()
    bench.send(before.flight, b"x" * 11)
    bench.send(after.flight, b"x" * 11)
    assert after.flight.ending is None
    after.place.leave()
    assert bench.runner.stopped == [before.flight, after.flight]
    bench.assert_empty()


# -- identity --------------------------------------------------------------------------------------------------


def test_old_flight_that_fails_after_it_was_superseded_leaves_the_new_one_mapped(bench):
    """TC060, invariant 7: the ABA case of async-lru."""
    old = bench.join()
    new = bench.join(joins=False)
    bench.end(old.flight, Ending.FAULT, failure())
    assert bench.table.primary(b"key") is new.flight
    assert bench.join().flight is new.flight


def test_last_reader_of_a_superseded_flight_leaves_and_the_new_one_stays_mapped(bench):
    """TC061: its cancel takes out itself only."""
    old = bench.join()
    new = bench.join(joins=False)
    old.place.leave()
    assert old.flight.ending is Ending.ABANDONED
    assert bench.table.primary(b"key") is new.flight
    assert bench.join().flight is new.flight


def test_flight_that_ended_before_a_newer_one_began_takes_nothing_out_later(bench):
    """TC061: late events of the dead flight (seal, filled, deadline, watchdog) never touch its successor."""
    old = bench.join(leave_s=3.0)
    bench.begin(old.flight)
    bench.end(old.flight, Ending.FAULT, failure())
    new = bench.join()
    old.flight.filled()
    old.flight.seal(Ending.BUG, failure())
    old.flight.begin("again", shareable=False)
    old.place.leave()
    bench.advance(5)
    bench.table._unmap(old.flight)
    assert bench.table.primary(b"key") is new.flight
    assert new.exit is None


def test_filled_of_a_superseded_flight_leaves_the_new_one_mapped(bench):
    """T10 of an old flight whose cache write was slow."""
    old = bench.join()
    bench.begin(old.flight)
    bench.end(old.flight, filling=True)
    new = bench.join(joins=False)
    old.flight.filled()
    assert bench.table.primary(b"key") is new.flight
    bench.whole(new.flight)
    bench.assert_empty()


# -- heads that can not be shared --------------------------------------------------------------------------------


def test_unshareable_head_releases_all_others_together(bench):
    """TC091, T6: thirty wait, the first keeps the stream, 29 start calls of their own in the same step."""
    sinks = bench.crowd(30)
    flight = sinks[0].flight
    released_before = []

    def call_alone(sink):
        released_before.append(sum(s.exit is Exit.RELEASED for s in sinks))
        alone.append(bench.join())

    alone = []
    bench.watched = False  # between the release and the head the model has nothing to say
    for sink in sinks:
        sink.on_released = call_alone
    bench.begin(flight, "Vary: *", shareable=False)
    bench.watched = True
    assert released_before == [29] * 29
    assert len({sink.flight for sink in alone}) == 29
    assert [sink.releases for sink in sinks] == [0] + [1] * 29
    assert (sinks[0].heads, bench.table.released) == (["Vary: *"], 29)
    bench.send(flight, b"mine")
    bench.end(flight)
    assert (sinks[0].exit, sinks[0].body) == (Exit.COMPLETE, b"mine")
    for sink in alone:
        assert not sink.flight.mapped
        bench.whole(sink.flight, b"own")
    assert bodies(alone) == {b"own"}
    bench.assert_empty()


def test_unshareable_head_of_an_unread_flight_cancels_it(bench):
    """T6 with nobody there: there is nobody who could keep the stream."""
    sink = bench.join(leave_s=3.0)
    sink.place.leave()
    bench.begin(sink.flight, shareable=False)
    assert bench.runner.stopped == [sink.flight]
    assert bench.table.lingers["cancelled"] == 1
    assert bench.table.has_pass(b"key")
    bench.assert_empty()


def test_paused_subscriber_is_released_like_the_others(bench):
    """Its stall deadline goes with it."""
    sinks = bench.crowd(2)
    sinks[1].place.pause()
    bench.begin(sinks[0].flight, shareable=False)
    assert (sinks[1].exit, sinks[1].releases) == (Exit.RELEASED, 1)
    assert bench.deadlines.armed == 0


def test_released_subscriber_that_makes_the_owner_leave(bench):
    """From inside `released` the only reader of the flight goes: it is cancelled and the others are still told."""
    sinks = bench.crowd(3)
    sinks[1].on_released = lambda _: sinks[0].place.leave()
    bench.begin(sinks[0].flight, shareable=False)
    assert [sink.exit for sink in sinks] == [Exit.LEFT, Exit.RELEASED, Exit.RELEASED]
    assert [sink.releases for sink in sinks] == [0, 1, 1]
    assert bench.runner.stopped == [sinks[0].flight]
    bench.assert_empty()


def test_requests_of_a_marked_key_go_alone_without_waiting_until_the_marker_expires(bench):
    """TC092: ten start at once; afterwards sharing resumes."""
    first = bench.join()
    bench.begin(first.flight, shareable=False)
    alone = bench.crowd(10)
    assert len(flights_of(alone)) == 10
    assert not any(sink.flight.mapped for sink in alone)
    assert bench.table.refused["pass_marker"] == 10
    bench.advance(11.1)
    sinks = bench.crowd(10)
    assert len(flights_of(sinks)) == 1
    assert bench.table.pass_markers == 0


def test_answer_that_turns_out_shareable_clears_the_marker(bench):
    """TC093: the next burst shares."""
    first = bench.join()
    bench.begin(first.flight, shareable=False)
    alone = bench.join()
    assert bench.table.has_pass(b"key")
    bench.begin(alone.flight)
    assert not bench.table.has_pass(b"key")
    assert len(flights_of(bench.crowd(5))) == 1
    assert bench.table.refused["pass_cleared"] == 1


def test_private_flight_with_an_unshareable_head_marks_its_key(bench):
    """The next one that would share learns of it."""
    sink = bench.join(registers=False)
    bench.begin(sink.flight, shareable=False)
    assert bench.table.has_pass(b"key")
    keyless = bench.join(None)
    bench.begin(keyless.flight, shareable=False)
    assert bench.table.pass_markers == 1


def test_markers_expire_with_jitter_and_are_swept():
    """Between nine and eleven seconds for ten, so that a burst does not return at once."""
    clock = FrozenClock()
    markers = PassMarkers(clock, 10.0)
    for number in range(1_000):
        markers.mark(b"%d" % number)
    clock.advance(8.99)
    markers.sweep()
    assert len(markers) == 1_000
    clock.advance(1.01)
    markers.sweep()
    assert 300 < len(markers) < 700
    clock.advance(1.01)
    markers.sweep()
    assert len(markers) == 0


def test_markers_are_bounded_and_drop_their_oldest():
    """10,000 keys; one that was marked anew is not the oldest any more."""
    markers = PassMarkers(FrozenClock(), 10.0)
    for number in range(10_000):
        markers.mark(b"%d" % number)
    markers.mark(b"0")
    markers.mark(b"one too many")
    assert len(markers) == 10_000
    assert (markers.has(b"0"), markers.has(b"1"), markers.has(b"2")) == (True, False, True)


# -- caps ------------------------------------------------------------------------------------------------------


def test_flights_of_the_process_are_capped_and_nothing_fails():
    """R9: over the bound requests go alone, and joins go on."""
    bench = Bench(Limits(max_flights=2))
    shared = bench.join(b"a")
    bench.join(b"b")
    alone = bench.crowd(2, b"c")
    assert len(flights_of(alone)) == 2
    assert bench.join(b"a").flight is shared.flight
    assert bench.table.refused == {"max_flights": 2}
    bench.whole(shared.flight)
    for sink in alone:
        bench.whole(sink.flight, b"x")
    assert bodies(alone) == {b"x"}
    assert len(flights_of(bench.crowd(2, b"d"))) == 1


def test_one_scope_can_not_use_up_the_table():
    """TC141: an attacker with 10,000 keys fills its own share; others still share their flights."""
    bench = Bench(Limits(max_flights_per_scope=50), watched=False)
    for number in range(10_000):
        bench.join(b"attack%d" % number, scope=b"attacker")
    assert len(bench.table) == 50
    sinks = bench.crowd(10, b"honest", scope=b"honest")
    assert len(flights_of(sinks)) == 1
    assert bench.table.refused == {"max_flights_per_scope": 9_950}
    for flight in tuple(bench.table.live):
        bench.end(flight, Ending.FAULT, failure())
    bench.assert_empty()


def test_above_the_high_water_of_memory_new_requests_go_alone():
    """TC099: nothing fails, and sharing resumes when the tapes are gone."""
    bench = Bench(Limits(retained_bytes=100, max_tape_bytes=1_000))
    first = bench.join(b"a")
    bench.begin(first.flight)
    bench.send(first.flight, b"x" * 101)
    alone = bench.crowd(2, b"b")
    assert len(flights_of(alone)) == 2
    assert bench.table.refused == {"memory": 2}
    assert bench.join(b"a").flight is first.flight
    for flight in tuple(bench.table.live):
        bench.begin(flight)
        bench.end(flight)
    assert len(flights_of(bench.crowd(2, b"b"))) == 1


def test_at_twice_the_high_water_what_grows_keeps_no_beginning():
    """I11: the tapes of flights that still grow are trimmed, and the unread ones are shed."""
    bench = Bench(Limits(retained_bytes=100, max_tape_bytes=1_000))
    sinks = [bench.join(b"a"), bench.join(b"b"), bench.join(b"unread", leave_s=math.inf)]
    sinks[2].place.leave()
    for sink in sinks:
        bench.begin(sink.flight)
        bench.send(sink.flight, b"x" * 66)
    assert bench.table.retained_bytes == 198
    bench.send(sinks[2].flight, b"yyy")
    assert sinks[2].flight.ending is Ending.ABANDONED
    assert bench.table.retained_bytes == 132
    bench.send(sinks[0].flight, b"x" * 69)
    assert bench.table.retained_bytes == 66
    assert not sinks[0].flight.is_joinable(bench.clock.now())
    assert sinks[1].flight.is_joinable(bench.clock.now())
    for sink in sinks[:2]:
        bench.end(sink.flight)
    bench.assert_empty()


# -- herds -----------------------------------------------------------------------------------------------------


def test_failing_upstream_sees_one_call_for_each_wave(bench):
    """TC082: twenty wait for the first failure, twenty arrive after it: two calls in total."""
    waves = []
    for _ in range(2):
        sinks = bench.crowd(20)
        waves.extend(sinks)
        bench.end(sinks[0].flight, Ending.FAULT, failure())
    assert {sink.exit for sink in waves} == {Exit.ERROR}
    assert len(bench.runner.started) == 2
    bench.assert_empty()


def test_two_keys_failing_in_turn_for_ten_thousand_rounds_leave_memory_flat():
    """TC090: no error, flight or subscription outlives its round."""
    bench = Bench(watched=False)
    alive = []
    for number in range(10_000):
        sink = bench.join(b"key%d" % (number % 2))
        bench.end(sink.flight, Ending.FAULT, failure())
        if number % 1_000 == 0:
            alive.append(weakref.ref(sink))
        for kept in (bench.model.sinks, bench.model.answers, bench.runner.started):
            kept.clear()
    del sink
    bench.table.started = 0
    assert [ref() for ref in alive] == [None] * 10
    bench.assert_empty()


# -- background refresh ----------------------------------------------------------------------------------------


def test_refresh_runs_for_the_cache_alone_and_can_be_joined(bench):
    """T1b: no reader, no linger timer; a request that comes meanwhile gets the fresh answer."""
    flight = bench.table.refresh("work", key=b"key", scope=b"scope")
    bench.check()
    assert (flight.state, bench.deadlines.armed) == ("LINGERING", 0)
    assert bench.table.refresh("work", key=b"key", scope=b"scope") is None
    bench.begin(flight)
    sink = bench.join()
    assert sink.flight is flight
    sink.place.leave()
    bench.advance(100)
    bench.send(flight, b"fresh")
    bench.end(flight, filling=True)
    flight.filled()
    assert bench.runner.stopped == []
    bench.assert_empty()


def test_refresh_is_refused_where_a_request_would_go_alone():
    """A refresh has no caller to answer, so it is simply not made."""
    bench = Bench(Limits(max_flights=1))
    bench.join(b"a")
    assert bench.table.refresh("work", key=b"b", scope=b"scope") is None
    assert bench.table.started == 1
    bench.table.close(failure("draining"))
    assert bench.table.refresh("work", key=b"a", scope=b"scope") is None


# -- operations ------------------------------------------------------------------------------------------------


def test_watchdog_ends_what_nobody_ended_and_counts_it():
    """TC094, T18: after ``max_flight_age`` every flight has an end; the counter shows that something is wrong."""
    bench = Bench(Limits(max_flight_age_s=100))
    hung, filling, unread = bench.join(b"hung"), bench.join(b"filling"), bench.join(b"unread", leave_s=math.inf)
    unread.place.leave()
    bench.begin(hung.flight)
    bench.begin(filling.flight)
    bench.end(filling.flight, filling=True)
    bench.advance(99)
    fresh = bench.join(b"fresh")
    bench.table.sweep()
    assert bench.table.watchdog == 0
    bench.advance(2)
    bench.table.sweep()
    assert bench.table.watchdog == 3
    assert (hung.exit, hung.error.why, hung.flight.ending) == (Exit.ERROR, "watchdog", Ending.OVERRUN)
    assert (filling.flight.ending, filling.flight.phase) == (Ending.OK, Phase.ENDED)
    assert fresh.exit is None
    assert list(bench.table.live) == [fresh.flight]


def test_flight_that_ends_by_its_own_deadline_never_meets_the_watchdog():
    """TC094: the counter stays 0."""
    bench = Bench(Limits(max_flight_age_s=100))
    sink = bench.join()
    bench.begin(sink.flight)
    bench.advance(99)
    bench.end(sink.flight, Ending.FAULT, failure("idle"))
    bench.advance(100)
    bench.table.sweep()
    assert bench.table.watchdog == 0


def test_sweep_drops_markers_of_keys_that_never_come_back(bench):
    """No growth with the number of keys ever seen."""
    for number in range(10):
        sink = bench.join(b"key%d" % number)
        bench.begin(sink.flight, shareable=False)
    bench.advance(12)
    bench.table.sweep()
    assert bench.table.pass_markers == 0


def test_revoked_scope_loses_its_readers_and_its_flights_and_others_nothing(bench):
    """T17: readers are told, lingering calls are not paid for any longer."""
    mine = [*bench.crowd(2, b"a", scope=b"mine"), bench.join(b"b", scope=b"mine", leave_s=math.inf)]
    unread = bench.join(b"c", scope=b"mine", leave_s=math.inf)
    unread.place.leave()
    theirs = bench.join(b"a2", scope=b"theirs")
    error = ProxyError(Kind.INVALID_KEY, "This key was revoked.")
    assert bench.table.revoke(b"mine", error) == 3
    assert {(sink.exit, sink.error, sink.ends) for sink in mine} == {(Exit.EJECTED, error, 1)}
    assert list(bench.table.live) == [theirs.flight]
    assert set(bench.runner.stopped) == {mine[0].flight, mine[2].flight, unread.flight}
    assert theirs.exit is None
    assert bench.table.revoke(b"nobody", error) == 0


def test_revoke_does_not_call_off_a_cache_write(bench):
    """An answer in FILLING is complete already."""
    sink = bench.join()
    bench.begin(sink.flight)
    bench.end(sink.flight, filling=True)
    bench.table.revoke(b"scope", failure("revoked"))
    assert (bench.runner.stopped, sink.flight.phase) == ([], Phase.FILLING)
    sink.flight.filled()
    bench.assert_empty()


def test_revoke_counts_a_reader_that_left_meanwhile_as_gone(bench):
    """One reader's ending makes another leave: that one was not ejected."""
    sinks = bench.crowd(2)
    sinks[0].on_take = lambda _: sinks[1].place.leave()
    assert bench.table.revoke(b"scope", failure("revoked")) == 1
    assert [sink.exit for sink in sinks] == [Exit.EJECTED, Exit.LEFT]


def test_closed_table_admits_nobody_and_lets_flights_end(bench):
    """Drain: what is in the air goes on."""
    sink = bench.join()
    error = ProxyError(Kind.DRAINING, "Going away.")
    bench.table.close(error)
    with pytest.raises(ProxyError) as refused:
        bench.join()
    assert refused.value is error
    bench.whole(sink.flight, b"still served")
    assert sink.body == b"still served"
    bench.assert_empty()


def test_refusals_of_a_closed_table_collect_no_frames(bench):
    """TC089: the one error of a drain is raised to thousands and stays as small as it was."""
    error = ProxyError(Kind.DRAINING, "Going away.")
    bench.table.close(error)
    depths = []
    for _ in range(100):
        with pytest.raises(ProxyError) as refused:
            bench.join()
        depth, frame = 0, refused.value.__traceback__
        while frame is not None:
            depth, frame = depth + 1, frame.tb_next
        depths.append(depth)
    assert len(set(depths)) == 1


def test_shut_ends_every_flight_in_every_state(bench):
    """TC058, I7: whether opening, streaming, filling, unread or solo; readers get an error value or the answer."""
    opening, streaming, filling, solo = (bench.join(key) for key in (b"a", b"b", b"c", b"d"))
    unread = bench.join(b"e", leave_s=math.inf)
    unread.place.leave()
    bench.begin(streaming.flight)
    bench.send(streaming.flight, b"half")
    bench.begin(filling.flight)
    bench.end(filling.flight, filling=True)
    bench.begin(solo.flight, shareable=False)
    error = ProxyError(Kind.DRAINING, "Going away.")
    bench.table.shut(error)
    assert {(sink.exit, sink.error) for sink in (opening, streaming, solo)} == {(Exit.ERROR, error)}
    assert (filling.exit, filling.flight.ending) == (Exit.COMPLETE, Ending.OK)
    assert bench.table.endings[Ending.SHUTDOWN] == 4
    assert filling.flight not in bench.runner.stopped
    with pytest.raises(ProxyError):
        bench.join()
    bench.assert_empty()


def test_reader_that_stands_when_the_table_is_shut_gets_what_there_is_and_the_error(bench):
    """Never a truncation that looks complete; and one that does not read meets its stall deadline."""
    reader, dead = bench.join(capacity_bytes=1), bench.join(capacity_bytes=1)
    bench.begin(reader.flight)
    bench.send(reader.flight, b"a")
    bench.send(reader.flight, b"b")
    bench.table.shut(failure("draining"))
    reader.drain()
    assert (reader.exit, reader.body) == (Exit.ERROR, b"ab")
    bench.advance(60.1)
    assert dead.exit is Exit.EJECTED
    bench.assert_empty()


def test_shut_keeps_the_error_that_close_was_given(bench):
    """Whoever knocks learns why the door was closed first."""
    closed = ProxyError(Kind.DRAINING, "Going away.")
    bench.table.close(closed)
    bench.table.shut(failure("over"))
    with pytest.raises(ProxyError) as refused:
        bench.join()
    assert refused.value is closed


def test_counts_for_operators_follow_the_flights(bench):
    """Gauges are read from the structures themselves."""
    sinks = [*bench.crowd(3, b"a"), bench.join(b"b", leave_s=3.0)]
    sinks[3].place.leave()
    old = bench.join(b"a", joins=False)
    table = bench.table
    assert (len(table), table.subscribers, table.lingering, len(table.live)) == (2, 4, 1, 3)
    assert [row["flight"] for row in table.describe()] == [1, 2, 3]
    assert old.flight.id == 3
