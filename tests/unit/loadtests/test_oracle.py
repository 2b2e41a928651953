"""The fewest calls a trace could have cost."""

from __future__ import annotations

from loadtests.oracle import describe, fewest_calls, make_zipf_trace


def test_different_questions_need_a_call_each() -> None:
    """There is nothing to share."""
    assert fewest_calls([(0.0, 1), (0.0, 2), (0.0, 3)], 1.0) == 3


def test_a_question_that_is_on_its_way_needs_no_call() -> None:
    """However many ask, as long as the first one's answer lasts."""
    assert fewest_calls([(0.0, 1), (0.5, 1), (0.999, 1)], 1.0) == 1


def test_a_question_that_was_answered_is_asked_again() -> None:
    """Answers are not kept; the new call starts when it is asked for, not when the old one ended."""
    assert fewest_calls([(0.0, 1), (1.0, 1), (1.5, 1), (1.9, 1), (2.0, 1)], 1.0) == 3


def test_a_group_that_is_full_leaves_the_next_one_a_call() -> None:
    """Ten callers in groups of four: three calls."""
    assert fewest_calls([(0.0, 1)] * 10, 1.0, group=4) == 3


def test_a_trace_is_the_same_for_the_same_seed() -> None:
    """Peers of one round are asked the same."""
    options = {"requests": 200, "questions": 50, "exponent": 1.0, "rate": 100.0}

    assert make_zipf_trace(**options, seed=3) == make_zipf_trace(**options, seed=3)
    assert make_zipf_trace(**options, seed=3) != make_zipf_trace(**options, seed=4)


def test_a_trace_ascends_at_its_rate() -> None:
    """Arrivals come in order, on average as often as asked for."""
    trace = make_zipf_trace(requests=5000, questions=10, exponent=1.0, rate=100.0, seed=1)
    times = [at for at, _ in trace]

    assert times == sorted(times)
    assert 45.0 < times[-1] < 55.0


def test_a_higher_exponent_repeats_more() -> None:
    """With 0 all questions are alike, with 2 one of them is most of the traffic."""
    shares = []
    for exponent in (0.0, 1.0, 2.0):
        trace = make_zipf_trace(requests=2000, questions=100, exponent=exponent, rate=100.0, seed=1)
        shares.append(describe(trace, 1.0, exponent).most_of_one)

    assert shares == sorted(shares)
    assert shares[0] < 60
    assert shares[2] > 1000


def test_questions_begin_at_the_number_they_are_told() -> None:
    """Rounds that must not repeat one another's questions get numbers of their own."""
    trace = make_zipf_trace(requests=100, questions=5, exponent=1.0, rate=100.0, seed=1, first_number=700)

    assert {question for _, question in trace} <= set(range(700, 705))


def test_the_shape_tells_what_is_at_once_on_its_way() -> None:
    """Three requests of one question within a second, five of it altogether."""
    trace = [(0.0, 1), (0.4, 1), (0.9, 1), (1.5, 2), (3.0, 1), (4.0, 1)]

    assert describe(trace, 1.0, 0.7) == (6, 2, 0.7, 5, 3)
