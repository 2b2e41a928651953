"""The limit of concurrency that a target teaches, and the turns of those who wait for a place."""

from __future__ import annotations

from proxy.upstream.concurrency import FairLine, Limit, LimitRules, Waiter

RULES = LimitRules()


def grow(limit, answers):
    for _ in range(answers):
        limit.grow(limit.most)
    return limit.most


def test_it_rises_by_one_for_each_limits_worth_of_good_answers():
    """From 64: the 64th answer makes it 65, and 65 more make it 66."""
    limit = Limit(RULES, 0)
    assert grow(limit, 63) == 64
    assert grow(limit, 1) == 65
    assert grow(limit, 64) == 65
    assert grow(limit, 1) == 66


def test_a_limit_that_is_not_used_does_not_rise():
    """Thirty at a time say nothing about whether sixty-five are borne."""
    limit = Limit(RULES, 0)
    for _ in range(1000):
        limit.grow(31)
    assert limit.most == 64


def test_it_is_cut_at_most_once_a_second_and_never_below_the_floor():
    """A burst of refusals is one sign."""
    limit = Limit(RULES, 0)
    for _ in range(50):
        limit.cut(10.0)
    assert limit.most == 44
    limit.cut(10.99)
    assert limit.most == 44
    for second in range(11, 40):
        limit.cut(float(second))
    assert limit.most == 2


def test_it_never_rises_beyond_what_the_operator_allows():
    """Nor does it start there."""
    limit = Limit(RULES, 10)
    assert limit.most == 10
    assert grow(limit, 1000) == 10


def test_without_a_bound_of_its_own_it_stops_at_two_thousand():
    """However well the target does."""
    limit = Limit(LimitRules(start=1999), 0)
    assert grow(limit, 10_000) == 2000


def test_a_target_for_one_at_a_time_stays_that_after_cuts():
    """The floor does not lift a bound."""
    limit = Limit(RULES, 1)
    limit.cut(1.0)
    assert limit.most == 1


def test_after_a_spell_of_cuts_it_comes_back_fast_to_the_first_cut_and_slowly_from_there():
    """Ten seconds of 429s from a target that bears 64: 42 answers later it has 44 again, and then 1 per limit's
    worth."""
    limit = Limit(RULES, 0)
    for second in range(10):
        limit.cut(float(second))
    assert limit.most == 2
    assert grow(limit, 42) == 44
    assert grow(limit, 43) == 44
    assert grow(limit, 1) == 45


def test_a_cut_on_the_way_back_makes_the_way_back_shorter():
    """A target that says it is too much after twenty answers, every second, is not flooded every second."""
    limit, peaks = Limit(RULES, 0), []
    for second in range(5):
        limit.cut(float(second))
    for second in range(5, 35):
        peaks.append(grow(limit, 20))
        limit.cut(float(second))
    assert peaks[0] > 25
    assert max(peaks[10:]) <= 10


def test_another_bound_applies_at_once():
    """A lower one cuts, a higher one is grown into fast."""
    limit = Limit(RULES, 100)
    limit.bound(5)
    assert limit.most == 5
    limit.bound(100)
    assert grow(limit, 59) == 64
    assert grow(limit, 1) == 64


async def queue(line, scopes):
    waiters = [Waiter(scope.encode(), last=False) for scope in scopes]
    for waiter in waiters:
        line.join(waiter)
    return waiters


def take_all(line):
    taken = []
    while (waiter := line.take()) is not None:
        taken.append(waiter.scope.decode())
    return "".join(taken)


async def test_scopes_take_turns():
    """Whoever asks once does not wait for all of somebody who asked six times before."""
    line = FairLine()
    await queue(line, "aaaaaabbc")
    assert take_all(line) == "abcabaaaa"
    assert line.size == 0


async def test_a_cancelled_waiter_is_passed_over():
    """Its turn is not lost for the others."""
    line = FairLine()
    waiters = await queue(line, "aab")
    waiters[0].future.cancel()
    assert take_all(line) == "ba"


async def test_who_leaves_the_line_is_out_of_it():
    """Once: a second time there is nobody to leave."""
    line = FairLine()
    first, second = await queue(line, "ab")
    assert line.leave(first) is True
    assert line.leave(first) is False
    assert [*line] == [second]
    assert line.size == 1


async def test_a_scope_with_less_than_the_longest_line_makes_room_for_itself():
    """The youngest of the longest line goes."""
    line = FairLine()
    waiters = await queue(line, "aaaab")
    assert line.make_room(b"c") is waiters[3]
    assert line.make_room(b"b") is waiters[2]
    assert line.make_room(b"b") is None
    assert line.make_room(b"a") is None
