"""One flight and its subscriptions: what is delivered to whom, when, and how memory stays bounded."""

import tracemalloc

import pytest

import proxy.flight.flight as flight_module
from proxy.errors import Kind, ProxyError
from proxy.flight.flight import CATCH_UP_BYTES, FAN_OUT, Ending, Phase
from proxy.flight.limits import Limits
from proxy.flight.subscription import Exit
from tests.fakes.flight import Bench, RecordingSink, Valve, bodies, failure

KIB = 1024
MIB = 1024 * KIB


@pytest.fixture
def bench():
    return Bench()


# -- delivery --------------------------------------------------------------------------------------------------


def test_fifty_subscribers_before_the_head_get_fifty_equal_answers(bench):
    """TC002: one flight, one upstream call, fifty times head and body."""
    sinks = bench.crowd(50)
    bench.whole(sinks[0].flight, b"one ", b"two ", b"three")
    assert len(bench.runner.started) == 1
    assert {tuple(sink.heads) for sink in sinks} == {("head",)}
    assert bodies(sinks) == {b"one two three"}
    assert {sink.exit for sink in sinks} == {Exit.COMPLETE}
    bench.assert_empty()


def test_head_alone_is_delivered_at_once(bench):
    """Nobody waits for the first byte of the body to learn the status."""
    sink = bench.join()
    bench.begin(sink.flight)
    assert (sink.heads, sink.pieces, sink.takes) == (["head"], [], 1)


def test_first_byte_reaches_leader_and_follower_in_the_same_step(bench):
    """TC069: one flush serves both, nothing is left for a later turn of the loop."""
    leader, follower = bench.crowd(2)
    bench.begin(leader.flight, flush=False)
    bench.send(leader.flight, b"first")
    assert [leader.pieces, follower.pieces] == [[b"first"], [b"first"]]
    assert bench.runner.defers == 0


def test_burst_of_chunks_is_one_take(bench):
    """What one read brought is merged into one write for each subscriber."""
    sinks = bench.crowd(3)
    bench.begin(sinks[0].flight, flush=False)
    bench.send(sinks[0].flight, b"a", b"b", b"c")
    assert [sink.takes for sink in sinks] == [1, 1, 1]
    assert bodies(sinks) == {b"abc"}


def test_nothing_new_means_no_take(bench):
    """A flush without news costs the sinks nothing."""
    sink = bench.join()
    bench.flush(sink.flight)
    bench.begin(sink.flight)
    bench.flush(sink.flight)
    bench.send(sink.flight, b"")
    assert sink.takes == 1


def test_whole_answer_in_one_flush_is_one_take_with_head_body_and_end(bench):
    """The cheapest answer costs one call."""
    sink = bench.join()
    flight = sink.flight
    bench.begin(flight, flush=False)
    bench.send(flight, b"all", flush=False)
    bench.end(flight)
    assert (sink.takes, sink.heads, sink.body, sink.ends) == (1, ["head"], b"all", 1)


@pytest.mark.parametrize("head", ["204", "empty event stream"])
def test_empty_body_completes(bench, head):
    """TC071: a seal without a byte ends everybody, also a late joiner in FILLING."""
    sinks = bench.crowd(3)
    flight = sinks[0].flight
    bench.begin(flight, head)
    bench.end(flight, filling=True)
    sinks.append(bench.join())
    flight.filled()
    assert {(tuple(sink.heads), sink.body, sink.exit) for sink in sinks} == {((head,), b"", Exit.COMPLETE)}
    bench.assert_empty()


@pytest.mark.parametrize("moment", ["opening", "head", "one byte", "mid-event", "all but the end", "filling"])
def test_joiner_at_any_moment_gets_the_whole_answer(bench, moment):
    """TC065: before the head, behind it, between any two bytes, before the seal, and while the cache is written."""
    first = bench.join()
    flight = first.flight
    late = None
    steps = [
        ("opening", lambda: bench.begin(flight)),
        ("head", lambda: bench.send(flight, b"d")),
        ("one byte", lambda: bench.send(flight, b"ata: {")),
        ("mid-event", lambda: bench.send(flight, b"}\n\n")),
        ("all but the end", lambda: bench.end(flight, filling=True)),
        ("filling", flight.filled),
    ]
    for name, step in steps:
        if name == moment:
            late = bench.join()
            assert late.flight is flight
        step()
    assert bodies([first, late]) == {b"data: {}\n\n"}
    assert (first.exit, late.exit) == (Exit.COMPLETE, Exit.COMPLETE)
    assert len(bench.runner.started) == 1
    bench.assert_empty()


def test_joiner_at_every_offset_of_a_thousand_chunks_equals_the_reference():
    """TC066: a thousand late joiners, one behind each chunk, all byte-equal."""
    bench = Bench(watched=False)
    chunks = [b"data: %d\n\n" % number for number in range(1_000)]
    sinks = [bench.join()]
    flight = sinks[0].flight
    bench.begin(flight)
    for chunk in chunks:
        late = bench.join()
        sinks.append(late)
        assert late.body == bytes(bench.answer(flight).body)
        if len(sinks) % 3:
            late.place.leave()
        bench.send(flight, chunk)
    bench.end(flight)
    bench.runner.settle()
    stayed = [sink for sink in sinks if sink.exit is not Exit.LEFT]
    assert len(stayed) > 300
    assert bodies(stayed) == {b"".join(chunks)}
    assert {sink.exit for sink in stayed} == {Exit.COMPLETE}
    bench.assert_empty()


@pytest.mark.parametrize("order", ["append, join, flush", "append, flush, join", "join, append, flush"])
def test_join_in_the_tick_of_an_append_has_no_gap_and_no_repeat(bench, order):
    """TC067: the tape is the one source, so the order of append, flush and join does not matter."""
    first = bench.join()
    flight = first.flight
    bench.begin(flight)
    bench.send(flight, b"old ")
    sinks = [first]
    for step in order.split(", "):
        if step == "append":
            bench.send(flight, b"new ", flush=False)
        elif step == "flush":
            bench.flush(flight)
        else:
            sinks.append(bench.join())
    bench.send(flight, b"last")
    bench.end(flight)
    assert bodies(sinks) == {b"old new last"}


def test_subscription_started_late_misses_nothing(bench):
    """A client whose answer can not begin yet is served from byte 0 once it can."""
    first = bench.join()
    late = bench.join(start=False)
    late.place.pause()
    bench.begin(first.flight)
    bench.send(first.flight, b"ab")
    assert late.takes == 0
    late.start()
    assert late.takes == 0
    late.place.resume()
    assert (late.heads, late.body) == (["head"], b"ab")


def test_start_after_the_end_changes_nothing(bench):
    """Whoever left before it was ready gets nothing any more."""
    first, second = bench.join(), bench.join(start=False)
    second.place.leave()
    bench.whole(first.flight, b"x")
    second.start()
    assert (second.takes, second.exit) == (0, Exit.LEFT)


def test_late_joiner_catches_up_in_bounded_slices():
    """TC070: no call hands over more than 64 KiB of a 5 MiB tape, and a sink that fills up keeps the rest waiting."""
    bench = Bench(watched=False)
    live = [bench.join(sink=RecordingSink(keeps=number == 0)) for number in range(100)]
    flight = live[0].flight
    bench.begin(flight)
    for _ in range(5 * 64):
        bench.send(flight, b"x" * (16 * KIB))
    bench.runner.settle()
    late = bench.join(capacity_bytes=256 * KIB)
    assert max(map(len, late.pieces)) == CATCH_UP_BYTES
    assert len(late.body) == 256 * KIB
    before = [sink.takes for sink in live]
    while late.place.paused:
        late.drain()
    bench.send(flight, b"live")
    bench.runner.settle()
    assert [sink.takes for sink in live] == [count + 1 for count in before]
    assert late.body == live[0].body


# -- endings ---------------------------------------------------------------------------------------------------


def test_failure_before_the_head_is_one_error_for_all_of_them(bench):
    """TC080, T7: twenty wait, one attempt fails, twenty are told and none refetches."""
    sinks = bench.crowd(20)
    flight, error = sinks[0].flight, failure()
    bench.end(flight, Ending.FAULT, error)
    assert {(sink.exit, tuple(sink.heads), sink.body) for sink in sinks} == {(Exit.ERROR, (), b"")}
    assert {id(sink.error) for sink in sinks} == {id(error)}
    assert (len(bench.runner.started), flight.state) == (1, "FAILED")
    bench.assert_empty()


def test_error_shared_by_many_collects_no_traceback(bench):
    """TC089: the error is a value; telling it to a thousand raises it nowhere."""
    bench.watched = False
    sinks = bench.crowd(1_000)
    bench.end(sinks[0].flight, Ending.FAULT, failure())
    bench.runner.settle()
    assert {sink.exit for sink in sinks} == {Exit.ERROR}
    assert sinks[0].error.__traceback__ is None
    assert sinks[0].error.__context__ is None


def test_reset_after_the_first_byte_gives_all_the_same_prefix_and_the_error(bench):
    """TC085, T11: nobody may take a truncated answer for a whole one."""
    sinks = bench.crowd(2)
    flight = sinks[0].flight
    bench.begin(flight)
    bench.send(flight, b"half an ans")
    sinks.append(bench.join())
    error = failure("reset")
    bench.end(flight, Ending.FAULT, error)
    assert bodies(sinks) == {b"half an ans"}
    assert {(sink.exit, sink.error) for sink in sinks} == {(Exit.ERROR, error)}
    assert flight.state == "BROKEN"
    bench.assert_empty()


def test_error_sealed_with_the_last_bytes_comes_behind_them(bench):
    """Bytes that arrived before the fault are delivered before it."""
    sink = bench.join()
    flight = sink.flight
    bench.begin(flight, flush=False)
    bench.send(flight, b"x" * 200_000, b"y", b"z", flush=False)
    bench.end(flight, Ending.FAULT, failure())
    assert (len(sink.body), sink.exit) == (200_002, Exit.ERROR)


def test_cut_answer_is_passed_on_as_it_came(bench):
    """TC072 in the core: no terminal event; the readers get what there was, without an error."""
    sinks = bench.crowd(2)
    bench.begin(sinks[0].flight)
    bench.send(sinks[0].flight, b"data: {}\n\n")
    bench.end(sinks[0].flight, Ending.CUT)
    assert {(sink.exit, sink.error) for sink in sinks} == {(Exit.COMPLETE, None)}
    assert sinks[0].flight.state == "BROKEN"
    assert bench.table.endings[Ending.CUT] == 1


def test_nothing_changes_after_the_seal(bench):
    """Invariant 5: neither a byte nor another ending nor another head."""
    sink = bench.join(capacity_bytes=1)
    flight = sink.flight
    bench.begin(flight)
    bench.begin(flight, "another")
    bench.send(flight, b"body")
    bench.end(flight, filling=True)
    bench.send(flight, b"more")
    bench.end(flight, Ending.FAULT, failure())
    flight.filled()
    flight.filled()
    bench.end(flight, Ending.BUG, failure())
    sink.drain()
    assert (sink.heads, sink.body, sink.exit) == (["head"], b"body", Exit.COMPLETE)
    assert flight.ending is Ending.OK
    assert sum(bench.table.endings.values()) == 1
    bench.assert_empty()


def test_bytes_before_the_head_are_refused(bench):
    """A body without a status can not be delivered."""
    sink = bench.join()
    sink.flight.append(b"too early")
    assert sink.flight.tape.total_bytes == 0


def test_answer_above_its_bound_ends_in_overrun():
    """``max_answer_bytes``: the upstream is stopped and every reader told that it is not whole."""
    bench = Bench(Limits(max_answer_bytes=100, max_tape_bytes=1_000))
    sinks = bench.crowd(2)
    flight = sinks[0].flight
    bench.begin(flight)
    bench.send(flight, b"x" * 99)
    assert flight.phase is Phase.STREAMING
    bench.send(flight, b"yy", b"z")
    assert {(len(sink.body), sink.exit) for sink in sinks} == {(101, Exit.ERROR)}
    assert {sink.error.kind for sink in sinks} == {Kind.UPSTREAM_TOO_LARGE}
    assert (flight.ending, bench.runner.stopped) == (Ending.OVERRUN, [flight])
    bench.assert_empty()


def test_last_words_of_a_broken_answer_come_behind_its_bytes_for_all(bench):
    """An error event in the dialect of the answer: late joiners and slow readers get the same one."""
    sinks = [bench.join(), bench.join(capacity_bytes=1)]
    flight = sinks[0].flight
    bench.last_words(flight, b"event: error\n\n")
    bench.begin(flight)
    bench.send(flight, b"data: {}\n\n")
    bench.send(flight, b"data: {}\n\n")
    sinks.append(bench.join())
    bench.end(flight, Ending.FAULT, failure("reset"))
    sinks[1].drain()
    assert bodies(sinks) == {b"data: {}\n\ndata: {}\n\nevent: error\n\n"}
    assert {sink.exit for sink in sinks} == {Exit.ERROR}
    bench.assert_empty()


@pytest.mark.parametrize("state", ["no head", "whole", "cut", "unread"])
def test_last_words_are_kept_back_where_they_do_not_belong(bench, state):
    """A failure before the head has an answer of its own; a whole answer ends by itself; nobody speaks to nobody."""
    sink = bench.join(leave_s=3.0)
    flight = sink.flight
    bench.last_words(flight, b"event: error\n\n")
    if state != "no head":
        bench.begin(flight)
    if state == "unread":
        sink.place.leave()
    ending = {"whole": Ending.OK, "cut": Ending.CUT}.get(state, Ending.FAULT)
    bench.end(flight, ending, failure() if ending is Ending.FAULT else None)
    assert (sink.body, flight.tape.total_bytes) == (b"", 0)
    bench.assert_empty()


def test_last_words_are_said_past_the_bound_that_broke_the_answer():
    """OVERRUN is told like every other fault, and the books stay even."""
    bench = Bench(Limits(max_answer_bytes=10))
    sink = bench.join()
    bench.last_words(sink.flight, b" too large")
    bench.begin(sink.flight)
    bench.send(sink.flight, b"x" * 11)
    assert (sink.body, sink.exit) == (b"x" * 11 + b" too large", Exit.ERROR)
    bench.assert_empty()


def test_last_words_that_fail_are_not_asked_for_again(bench):
    """The failure shows where the seal was tried, and the next seal tells the readers."""
    sink = bench.join()
    flight = sink.flight
    bench.begin(flight)
    flight.last_words = lambda error: 1 / 0
    with pytest.raises(ZeroDivisionError):
        flight.seal(Ending.FAULT, failure())
    bench.end(flight, Ending.BUG, failure("bug"))
    assert (sink.exit, flight.ending) == (Exit.ERROR, Ending.BUG)
    bench.assert_empty()


# -- one subscriber among others -------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before the head", "mid-stream"])
@pytest.mark.parametrize("who", [0, 1, 2])
def test_departure_of_any_one_is_invisible_to_the_others(bench, moment, who):
    """TC045, TC046, TC047: leader or follower, before the head or mid-stream."""
    sinks = bench.crowd(3)
    flight = sinks[0].flight
    if moment == "before the head":
        sinks[who].place.leave()
        bench.begin(flight)
        bench.send(flight, b"one ")
    else:
        bench.begin(flight)
        bench.send(flight, b"one ")
        sinks[who].place.leave()
    bench.send(flight, b"two")
    bench.end(flight)
    stayed = [sink for sink in sinks if sink is not sinks[who]]
    assert bodies(stayed) == {b"one two"}
    assert {sink.exit for sink in stayed} == {Exit.COMPLETE}
    assert (sinks[who].exit, sinks[who].ends) == (Exit.LEFT, 0)
    assert len(bench.runner.started) == 1
    assert bench.runner.stopped == []


def test_one_out_of_patience_gets_its_own_error_and_the_others_their_answer(bench):
    """TC062, TC063: a caller's deadline bounds that caller alone."""
    hasty, calm = bench.crowd(2)
    error = ProxyError(Kind.PATIENCE, "Too slow for you.")
    hasty.place.eject(error)
    bench.whole(calm.flight, b"late but whole")
    assert (hasty.exit, hasty.error, hasty.ends, hasty.heads) == (Exit.EJECTED, error, 1, [])
    assert (calm.exit, calm.body) == (Exit.COMPLETE, b"late but whole")


def test_subscription_closes_exactly_once(bench):
    """TC102, invariant 4: whatever follows the first ending is without effect."""
    first, second, third = bench.crowd(3)
    second.place.leave()
    second.place.eject(failure())
    second.place.leave()
    third.place.eject(failure())
    third.place.leave()
    third.place.pause()
    third.place.resume()
    bench.whole(first.flight, b"x")
    for sink in (first, second, third):
        sink.place.leave()
        sink.place.eject(failure("again"))
        sink.place.resume()
    assert [sink.exit for sink in (first, second, third)] == [Exit.COMPLETE, Exit.LEFT, Exit.EJECTED]
    assert [sink.ends for sink in (first, second, third)] == [1, 0, 1]
    assert (second.heads, third.heads) == ([], [])
    bench.assert_empty()


def test_payer_is_the_earliest_who_is_there_when_the_head_comes(bench):
    """The first subscriber has left before the head; later departures change nothing."""
    first, second, third = bench.crowd(3)
    flight = second.flight
    first.place.leave()
    bench.begin(flight)
    assert second.place.pays
    second.place.leave()
    assert [sink.place.pays for sink in (first, second, third)] == [False, True, False]
    assert flight.is_paid
    assert third.exit is None


def test_unread_flight_has_no_payer(bench):
    """TC110 in the core: everybody left before the head, so nobody is charged."""
    sink = bench.join(leave_s=3.0)
    sink.place.leave()
    bench.begin(sink.flight)
    assert not sink.flight.is_paid


def test_peak_counts_the_most_that_were_there_at_once(bench):
    """Joins and departures do not add up."""
    sinks = bench.crowd(3)
    sinks[0].place.leave()
    bench.join()
    assert sinks[1].flight.peak == 3


# -- calls from inside a delivery ------------------------------------------------------------------------------


def test_sink_that_leaves_while_it_is_served_ends_alone(bench):
    """The middle one of three leaves inside its own `take`; the flush goes on with the third."""
    sinks = bench.crowd(3)
    sinks[1].on_take = lambda sink: sink.place.leave()
    bench.whole(sinks[0].flight, b"ab", b"cd")
    assert [sink.exit for sink in sinks] == [Exit.COMPLETE, Exit.LEFT, Exit.COMPLETE]
    assert sinks[1].takes == 1
    assert bodies([sinks[0], sinks[2]]) == {b"abcd"}
    bench.assert_empty()


def test_last_sink_that_leaves_while_it_is_served_cancels_the_flight(bench):
    """The flight ends inside its own flush, and what the upstream sends afterwards is dropped."""
    sink = bench.join()
    flight = sink.flight
    sink.on_take = lambda sink: sink.place.leave()
    bench.begin(flight)
    bench.send(flight, b"nobody wants it")
    bench.end(flight)
    assert (flight.ending, bench.runner.stopped) == (Ending.ABANDONED, [flight])
    bench.assert_empty()


def test_sink_that_makes_another_leave_while_it_is_served(bench):
    """The one that is gone before its turn in the flush gets nothing."""
    sinks = bench.crowd(3)
    sinks[0].on_take = lambda _: sinks[1].place.leave()
    bench.whole(sinks[0].flight, b"x")
    assert [sink.exit for sink in sinks] == [Exit.COMPLETE, Exit.LEFT, Exit.COMPLETE]
    assert sinks[1].takes == 0


def test_sink_that_ejects_another_while_it_is_served(bench):
    """Ejecting from inside a flush tells the other at once and only once."""
    sinks = bench.crowd(3)
    sinks[0].on_take = lambda _: sinks[2].place.eject(failure())
    bench.whole(sinks[0].flight, b"x")
    assert [sink.exit for sink in sinks] == [Exit.COMPLETE, Exit.COMPLETE, Exit.EJECTED]
    assert sinks[2].ends == 1


def test_sink_that_ejects_itself_while_it_is_served(bench):
    """A client whose transport broke inside the write."""
    sinks = bench.crowd(2)

    def eject_once(sink):
        if sink.exit is None:
            sink.place.eject(failure())

    sinks[0].on_take = eject_once
    bench.whole(sinks[0].flight, b"x")
    assert [sink.exit for sink in sinks] == [Exit.EJECTED, Exit.COMPLETE]
    assert (sinks[0].heads, sinks[0].ends) == (["head"], 1)


def test_sink_that_pauses_and_resumes_while_it_is_served_keeps_the_order(bench):
    """A nested delivery takes up where the outer one is, so nothing comes twice or late."""
    first, second = bench.crowd(2)

    def bounce(sink):
        sink.place.pause()
        sink.place.resume()

    second.on_take = bounce
    flight = first.flight
    bench.begin(flight)
    bench.send(flight, b"x" * CATCH_UP_BYTES, b"y" * CATCH_UP_BYTES, b"z")
    bench.end(flight)
    assert second.body == first.body
    assert second.exit is Exit.COMPLETE


def test_sink_that_joins_again_from_inside_its_ending_gets_a_new_flight(bench):
    """The ended flight can not be found any more when its readers are told."""
    sink = bench.join()
    flight = sink.flight
    again = []
    sink.on_take = lambda sink: again.append(bench.join()) if sink.ends else None
    bench.end(flight, Ending.FAULT, failure())
    assert again[0].flight is not flight
    bench.whole(again[0].flight, b"second time lucky")
    assert again[0].body == b"second time lucky"
    bench.assert_empty()


def test_newcomer_that_joins_in_the_middle_of_a_flush_gets_the_whole_answer(bench):
    """A join from inside a `take` of the same flight, before others were served."""
    sinks = bench.crowd(3)
    flight = sinks[0].flight
    late = []
    sinks[1].on_take = lambda sink: late.append(bench.join()) if not late else None
    bench.watched = False  # in the middle of a flush the later ones are not served yet
    bench.begin(flight)
    bench.send(flight, b"one ", b"two ")
    bench.watched = True
    bench.send(flight, b"three")
    bench.end(flight)
    assert bodies([*sinks, *late]) == {b"one two three"}


# -- many subscribers ------------------------------------------------------------------------------------------


def test_thousand_subscribers_are_served_in_batches_with_turns_for_others():
    """TC079: 64 at once; the other 936 in fifteen turns of the loop."""
    bench = Bench(watched=False)
    sinks = bench.crowd(1_000)
    flight = sinks[0].flight
    bench.begin(flight)
    assert sum(sink.takes for sink in sinks) == FAN_OUT
    turns = 0
    while bench.runner.deferred:
        assert len(bench.runner.deferred) == 1
        before = sum(sink.takes for sink in sinks)
        bench.runner.turn()
        turns += 1
        assert sum(sink.takes for sink in sinks) - before <= FAN_OUT
    assert turns == bench.runner.defers == 15
    assert {sink.takes for sink in sinks} == {1}


def test_flush_during_a_fan_out_is_merged_into_it():
    """TC079: while a fan-out is under way, news wait for its end instead of starting a second one."""
    bench = Bench(watched=False)
    sinks = bench.crowd(200)
    flight = sinks[0].flight
    bench.begin(flight)
    for number in range(100):
        bench.send(flight, b"%d," % number)
        assert len(bench.runner.deferred) == 1
    bench.end(flight)
    bench.runner.settle()
    assert bodies(sinks) == {b"".join(b"%d," % number for number in range(100))}
    assert {sink.exit for sink in sinks} == {Exit.COMPLETE}
    assert max(sink.takes for sink in sinks) <= 3
    bench.assert_empty()


@pytest.mark.parametrize("count", [63, 64, 65, 128, 129])
def test_fan_out_at_the_edges_of_its_batches(count):
    """Nobody is left out or served twice where a batch ends."""
    bench = Bench(watched=False)
    sinks = bench.crowd(count)
    bench.whole(sinks[0].flight, b"a", b"b")
    bench.runner.settle()
    assert bodies(sinks) == {b"ab"}
    assert {sink.ends for sink in sinks} == {1}
    assert bench.runner.defers >= (count - 1) // FAN_OUT
    bench.assert_empty()


def test_those_who_leave_or_join_between_the_batches_are_treated_right():
    """A sink in the queue leaves, another pauses, a newcomer joins, and then the loop turns."""
    bench = Bench(watched=False)
    sinks = bench.crowd(100)
    flight = sinks[0].flight
    bench.begin(flight, flush=False)
    bench.send(flight, b"one ")
    sinks[80].place.leave()
    sinks[81].place.pause()
    late = bench.join()
    bench.send(flight, b"two ")
    bench.runner.settle()
    assert (sinks[80].takes, sinks[81].takes) == (0, 0)
    sinks[81].place.resume()
    bench.end(flight)
    bench.runner.settle()
    stayed = [sink for sink in [*sinks, late] if sink is not sinks[80]]
    assert bodies(stayed) == {b"one two "}
    assert {sink.exit for sink in stayed} == {Exit.COMPLETE}
    bench.assert_empty()


def test_sink_that_leaves_in_the_middle_of_a_fan_out_stops_nobody():
    """The 70th of 100 leaves inside its own `take`, in the second batch."""
    bench = Bench(watched=False)
    sinks = bench.crowd(100)
    sinks[70].on_take = lambda sink: sink.place.leave()
    flight = sinks[0].flight
    bench.begin(flight)
    assert sinks[70].takes == 0
    bench.runner.settle()
    bench.send(flight, b"x")
    bench.end(flight)
    bench.runner.settle()
    assert (sinks[70].exit, sinks[70].takes) == (Exit.LEFT, 1)
    assert {sink.exit for sink in sinks if sink is not sinks[70]} == {Exit.COMPLETE}
    bench.assert_empty()


def test_crowd_that_shrinks_during_a_fan_out_is_still_served():
    """All but ten leave while the queue waits: flushes serve the ten at once, the stale queue harms nothing."""
    bench = Bench(watched=False)
    sinks = bench.crowd(100)
    flight = sinks[0].flight
    bench.begin(flight)
    for sink in sinks[:90]:
        sink.place.leave()
    bench.send(flight, b"for ten")
    assert bodies(sinks[90:]) == {b"for ten"}
    bench.end(flight)
    bench.runner.settle()
    assert {sink.exit for sink in sinks[90:]} == {Exit.COMPLETE}
    bench.assert_empty()


def test_follower_costs_less_than_a_kibibyte_of_memory():
    """TC100 in the core: place, position and the entry on the flight, whatever the length of the answer."""
    bench = Bench(watched=False)

    class Silent:
        __slots__ = ()

        def take(self, head, data, ended):
            pass

        def released(self):
            pass

    sink = Silent()
    leader = bench.join()
    bench.begin(leader.flight)
    options = {"key": b"key", "scope": b"scope", "registers": True, "joins": True}
    places = [None] * 900
    tracemalloc.start()
    try:
        for number in range(900):
            places[number] = bench.table.join(sink, "work", **options)
            places[number].start()
        for _ in range(1_000):
            leader.flight.append(b"data: token\n\n")
        leader.flight.flush()
        bench.runner.settle()
        used_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(leader.flight.subscribers) == 901
    assert used_bytes < 900 * KIB


# -- slow readers ----------------------------------------------------------------------------------------------

SMALL = Limits(max_lag_bytes=100, run_ahead_bytes=100, max_stall_s=10.0, max_tape_bytes=10_000)


@pytest.fixture
def small_slices(monkeypatch):
    """Sinks catch up in slices of 20 bytes instead of 64 KiB."""
    monkeypatch.setattr(flight_module, "CATCH_UP_BYTES", 20)


def streaming(bench, *capacities, valve=True):
    """A flight past its head with one sink for each capacity."""
    sinks = [bench.join(capacity_bytes=capacity) for capacity in capacities]
    flight = sinks[0].flight
    if valve:
        flight.producer = Valve()
    bench.begin(flight)
    return flight, sinks


def forgetful(bench, *capacities):
    """The same with a tape that is no longer kept for joiners: another three flights of the key superseded it."""
    flight, sinks = streaming(bench, *capacities)
    for _ in range(4):
        bench.join(joins=False)
    assert not flight.retains
    return flight, sinks


def test_sink_that_is_full_keeps_its_place_and_catches_up():
    """Pause and resume lose nothing and repeat nothing."""
    bench = Bench(SMALL)
    flight, (slow, fast) = streaming(bench, 1, None)
    for number in range(5):
        bench.send(flight, b"%d" % number)
    assert (slow.body, fast.body) == (b"0", b"01234")
    slow.drain()
    assert slow.body == b"01234"
    bench.end(flight)
    slow.drain()
    assert (slow.exit, fast.exit) == (Exit.COMPLETE, Exit.COMPLETE)
    bench.assert_empty()


def test_upstream_is_paused_when_even_the_fastest_is_too_far_behind():
    """TC096: all readers stand; the upstream waits at ``run_ahead`` and goes on when one of them reads."""
    bench = Bench(SMALL)
    flight, sinks = streaming(bench, 10, 10)
    sent = 0
    while not flight.producer.paused:
        bench.send(flight, b"x" * 10)
        sent += 10
    assert sent == 10 + 100 + 10
    assert [sink.exit for sink in sinks] == [None, None]
    sinks[0].drain()
    assert not flight.producer.paused
    assert (flight.producer.pauses, flight.producer.resumes) == (1, 1)


def test_paused_upstream_goes_on_only_when_the_fastest_is_within_half_of_the_bound(small_slices):
    """Hysteresis: no flapping between two chunks."""
    bench = Bench(SMALL)
    flight, (sink,) = streaming(bench, 10)
    for _ in range(13):
        bench.send(flight, b"x" * 10)
    lags = []
    while flight.producer.paused:
        lags.append(flight.tape.lag_bytes(sink.place.position))
        sink.drain()
        assert sink.place.paused
    assert lags == [120, 100, 80, 60]


def test_slow_leader_does_not_slow_a_fast_follower():
    """TC097: the pace is the fastest reader's, whoever came first."""
    bench = Bench(SMALL)
    flight, (slow_leader, fast) = streaming(bench, 1, None)
    for _ in range(100):
        bench.send(flight, b"x" * 10)
    assert len(fast.body) == 1_000
    assert len(slow_leader.body) == 10
    assert flight.producer.pauses == 0


def test_laggard_is_ejected_and_the_fastest_is_not():
    """TC095: one never reads; it alone is cut, at the bound, with an ending that does not look complete."""
    bench = Bench(SMALL)
    flight, (slow, fast) = forgetful(bench, 1, None)
    for _ in range(11):
        bench.send(flight, b"x" * 10)
    assert slow.exit is None
    bench.send(flight, b"x" * 10)
    assert (slow.exit, slow.error.kind, slow.error.why, slow.ends) == (Exit.EJECTED, Kind.SLOW_READER, "lag", 1)
    assert (fast.exit, len(fast.body)) == (None, 120)
    assert bench.table.ejected_lagging == 1
    assert flight.tape.retained_bytes == 0
    bench.end(flight)
    assert fast.exit is Exit.COMPLETE


def test_laggard_is_no_burden_while_the_tape_is_kept_anyway():
    """R9: a fast reader on the same flight must not be the reason why a slower one fails."""
    bench = Bench(SMALL)
    flight, (slow, fast) = streaming(bench, 10, None)
    for _ in range(50):
        bench.send(flight, b"x" * 10)
    bench.end(flight)
    assert (slow.exit, fast.exit) == (None, Exit.COMPLETE)
    slow.drain()
    assert (slow.exit, slow.body) == (Exit.COMPLETE, fast.body)
    bench.assert_empty()


def test_laggard_meets_the_bound_when_the_tape_outgrows_its_own():
    """TC098 and TC095 together: from there on it would cost memory."""
    bench = Bench(SMALL._replace(max_tape_bytes=500))
    flight, (slow, fast) = streaming(bench, 10, None)
    for _ in range(50):
        bench.send(flight, b"x" * 10)
    assert slow.exit is None
    bench.send(flight, b"x")
    assert (slow.exit, fast.exit) == (Exit.EJECTED, None)
    assert flight.tape.retained_bytes == 0


def test_readers_held_up_alike_by_a_burst_are_no_laggards():
    """Ten readers stand within a chunk of each other while the upstream runs ahead of all: none is ejected."""
    bench = Bench(SMALL)
    flight, sinks = forgetful(bench, *[10] * 5, *[20] * 5)
    while not flight.producer.paused:
        bench.send(flight, b"x" * 10)
    bench.send(flight, b"y" * 15)  # what was on its way already
    assert {sink.exit for sink in sinks} == {None}
    assert bench.table.ejected_lagging == 0


def test_late_joiner_is_no_laggard_for_what_was_there_before_it(small_slices):
    """TC070: whoever joined 500 bytes behind, with a small window, is given the time to catch up."""
    bench = Bench(SMALL)
    flight, (live,) = streaming(bench, None)
    bench.send(flight, *[b"x" * 10] * 50)
    late = bench.join(capacity_bytes=20)
    bench.crowd(4, joins=False)
    assert not flight.retains
    assert late.place.paused
    for _ in range(10):
        bench.send(flight, b"y" * 10)
    assert (late.exit, len(late.body)) == (None, 20)
    while late.place.paused:
        late.drain()
    assert late.body == live.body


def test_late_joiner_that_falls_further_back_is_a_laggard(small_slices):
    """The backlog it found is its own, but not a licence to stop reading."""
    bench = Bench(SMALL)
    flight, _ = streaming(bench, None)
    bench.send(flight, *[b"x" * 10] * 50)
    late = bench.join(capacity_bytes=20)
    bench.crowd(4, joins=False)
    while late.exit is None:
        bench.send(flight, b"y" * 10)
    assert (late.exit, late.error.why) == (Exit.EJECTED, "lag")
    assert flight.tape.total_bytes == 20 + 500 + 100 + 10


def test_nobody_is_ejected_for_lagging_once_the_answer_has_ended(small_slices):
    """The tape grows no more: two slow readers finish at their own speed, however far apart."""
    bench = Bench(SMALL)
    flight, (slow, slower) = streaming(bench, 10, 10)
    for _ in range(10):
        bench.send(flight, b"x" * 30)
    bench.end(flight)
    assert not flight.retains
    for _ in range(6):
        slow.drain()
    assert len(slow.body) - len(slower.body) > SMALL.max_lag_bytes
    for sink in (slower, slow):
        while sink.place.paused:
            sink.drain()
    assert bodies([slow, slower]) == {b"x" * 300}
    assert (slow.exit, slower.exit) == (Exit.COMPLETE, Exit.COMPLETE)
    bench.assert_empty()


def test_newcomer_that_reads_fast_sets_a_paused_upstream_going():
    """All readers stand and the upstream is paused; a fast newcomer must not wait for them."""
    bench = Bench(SMALL)
    flight, _ = streaming(bench, 10)
    while not flight.producer.paused:
        bench.send(flight, b"x" * 10)
    fast = bench.join()
    assert not flight.producer.paused
    bench.send(flight, b"on we go")
    assert fast.body.endswith(b"on we go")


def test_departure_of_the_last_reader_that_stood_frees_the_upstream():
    """A paused upstream whose only reader leaves goes on for the one who may come back."""
    bench = Bench(SMALL)
    flight, (sink,) = streaming(bench, 10)
    flight.leave_s = 3.0
    while not flight.producer.paused:
        bench.send(flight, b"x" * 10)
    valve = flight.producer
    sink.place.leave()
    assert not valve.paused
    assert flight.state == "LINGERING"


def test_laggards_ejected_together_are_counted_once_each(small_slices):
    """The upstream stays paused while three are ejected, and each ejection looks at the balance again."""
    bench = Bench(SMALL)
    flight, (*slow, fast) = forgetful(bench, 10, 10, 10, 90)
    while not flight.producer.paused:
        bench.send(flight, b"x" * 10)
    fast.capacity_bytes = 10
    fast.drain()
    assert {sink.exit for sink in slow} == {None}
    fast.drain()
    assert flight.producer.paused
    assert {sink.exit for sink in slow} == {Exit.EJECTED}
    assert (fast.exit, bench.table.ejected_lagging) == (None, 3)


def test_reader_that_makes_no_progress_is_ejected_at_its_deadline():
    """TC095: ``max_stall``, also when it is the only one and so is never a laggard."""
    bench = Bench(SMALL)
    flight, (sink,) = streaming(bench, 10)
    bench.send(flight, b"x" * 50)
    bench.advance(9.9)
    assert sink.exit is None
    bench.advance(0.2)
    assert (sink.exit, sink.error.kind, sink.error.why) == (Exit.EJECTED, Kind.SLOW_READER, "stall")
    assert bench.table.ejected_stalled == 1
    assert flight.ending is Ending.ABANDONED
    bench.assert_empty()


def test_stall_deadline_starts_anew_with_every_pause():
    """A reader that is slow but reads is never ejected for stalling."""
    bench = Bench(SMALL)
    flight, (sink,) = streaming(bench, 10)
    for _ in range(20):
        bench.send(flight, b"x" * 10)
        assert sink.place.paused
        bench.advance(7)
        sink.drain()
    assert (sink.exit, len(sink.body)) == (None, 200)
    bench.advance(100)
    assert sink.exit is None


def test_stalled_reader_of_an_ended_flight_frees_its_tape():
    """I11, I12: an answer that ended long ago is not kept for somebody who does not read."""
    bench = Bench(SMALL)
    flight, (sink,) = streaming(bench, 10)
    bench.send(flight, b"x" * 50)
    bench.send(flight, b"y" * 50)
    bench.end(flight)
    assert bench.table.retained_bytes == 50
    bench.advance(10.1)
    assert sink.exit is Exit.EJECTED
    bench.assert_empty()


def test_pause_before_the_head_holds_the_head_back():
    """A sink without room gets nothing at all, and then the head first."""
    bench = Bench(SMALL)
    sink = bench.join()
    sink.place.pause()
    bench.whole(sink.flight, b"x")
    assert sink.takes == 0
    sink.place.resume()
    assert (sink.heads, sink.body, sink.exit) == (["head"], b"x", Exit.COMPLETE)


def test_flight_without_a_producer_to_pause_goes_on():
    """Production may have nothing to hold on to, for example in the cache's replay."""
    bench = Bench(SMALL)
    flight, _ = streaming(bench, 10, valve=False)
    bench.send(flight, b"x" * 500)
    assert not flight.producer_paused


# -- memory ----------------------------------------------------------------------------------------------------


def test_private_answer_of_100_mib_passes_in_bounded_memory():
    """A flight that nobody can join keeps no more than its reader lags behind."""
    bench = Bench(watched=False)
    sink = bench.join(None, registers=False, joins=False, sink=RecordingSink(keeps=False))
    flight = sink.flight
    flight.producer = Valve()
    flight.begin("head")
    chunk, most = b"x" * (256 * KIB), 0
    for number in range(400):
        if number % 10 == 5:
            sink.place.pause()
        flight.append(chunk)
        flight.flush()
        most = max(most, bench.table.retained_bytes)
        if flight.producer.paused or number % 10 == 9:
            sink.place.resume()
    flight.seal(Ending.OK)
    flight.flush()
    assert sink.taken_bytes == 100 * MIB
    assert most <= 1 * MIB + len(chunk)
    assert sink.exit is Exit.COMPLETE
    assert bench.table.retained_bytes == 0


def test_shared_answer_above_its_tape_is_trimmed_behind_the_slowest_and_joined_no_more():
    """TC098: present readers complete, a newcomer supersedes, memory falls to what the slowest has still to read."""
    bench = Bench(Limits(max_tape_bytes=100, max_lag_bytes=100))
    flight, (slow, fast) = streaming(bench, 60, None)
    for number in range(10):
        bench.send(flight, b"%d" % number * 10)
    assert flight.is_joinable(bench.clock.now())
    bench.send(flight, b"over")
    assert not flight.is_joinable(bench.clock.now())
    assert flight.tape.retained_bytes == 44
    newcomer = bench.join()
    assert newcomer.flight is not flight
    assert bench.table.refused == {"not_joinable": 1}
    slow.capacity_bytes = None
    slow.drain()
    assert flight.tape.retained_bytes == 0
    bench.end(flight)
    assert slow.body == fast.body == b"".join(b"%d" % number * 10 for number in range(10)) + b"over"
    bench.whole(newcomer.flight, b"x")
    bench.assert_empty()


def test_books_of_retained_bytes_are_even_after_every_kind_of_flight(bench):
    """I11: what was added is taken away exactly once, for shared, private, filling, broken and cancelled ones."""
    kinds = [
        ({}, {"ending": Ending.OK}),
        ({"registers": False}, {"ending": Ending.OK}),
        ({"registers": False, "keeps": True}, {"ending": Ending.OK, "filling": True}),
        ({}, {"ending": Ending.OK, "filling": True}),
        ({}, {"ending": Ending.FAULT, "error": failure()}),
    ]
    for number, (how, ending) in enumerate(kinds):
        sink = bench.join(b"key%d" % number, capacity_bytes=4, **how)
        flight = sink.flight
        bench.begin(flight)
        bench.send(flight, b"four", b"more", b"last")
        bench.end(flight, **ending)
        flight.filled()
        sink.drain()
        sink.drain()
        assert sink.body == b"fourmorelast"
        assert bench.table.retained_bytes == 0
    bench.assert_empty()


def test_private_flight_that_keeps_holds_the_whole_answer_for_the_cache(bench):
    """``keeps``: nobody can join it and still the tape is whole when the cache asks."""
    sink = bench.join(registers=False, keeps=True)
    flight = sink.flight
    bench.begin(flight)
    bench.send(flight, b"a")
    bench.send(flight, b"b")
    assert flight.tape.chunks() == (b"a", b"b")
    assert not flight.is_joinable(bench.clock.now())


def test_flight_without_a_key_keeps_nothing_even_when_asked(bench):
    """An answer that is passed through unread has no place in a cache, and no bound on its size."""
    sink = bench.join(None, keeps=True)
    bench.begin(sink.flight)
    bench.send(sink.flight, b"passes")
    assert bench.table.retained_bytes == 0


# -- views -----------------------------------------------------------------------------------------------------


def test_states_have_their_names(bench):
    """The words of `/flights` follow the picture in the module."""
    seen = []
    sink = bench.join(leave_s=3.0)
    flight = sink.flight
    seen.append(flight.state)
    bench.begin(flight)
    seen.append(flight.state)
    sink.place.leave()
    seen.append(flight.state)
    sink = bench.join()
    seen.append(flight.state)
    bench.end(flight, filling=True)
    seen.append(flight.state)
    flight.filled()
    seen.append(flight.state)
    assert seen == ["OPENING", "STREAMING", "LINGERING", "STREAMING", "FILLING", "DONE"]
    alone = bench.join(b"other")
    bench.begin(alone.flight, shareable=False)
    assert alone.flight.state == "SOLO"
    alone.place.leave()
    assert alone.flight.state == "CANCELLED"


def test_description_shows_no_body_and_only_the_beginning_of_the_key(bench):
    """What an operator sees can be pasted into a ticket."""
    sink = bench.join(bytes(range(32)), capacity_bytes=1)
    bench.begin(sink.flight)
    bench.send(sink.flight, b"secret")
    bench.advance(1.5)
    assert bench.table.describe() == [
        {
            "flight": 1,
            "state": "STREAMING",
            "key": "00010203",
            "subscribers": 1,
            "paused": 1,
            "bytes": 6,
            "retained_bytes": 6,
            "age_s": 1.5,
            "ending": None,
        }
    ]
    assert repr(sink.flight) == "<Flight 1 STREAMING readers=1 bytes=6>"
    bench.end(sink.flight)
    assert bench.table.describe()[0]["ending"] == "ok"
