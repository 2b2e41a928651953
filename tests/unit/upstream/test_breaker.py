"""When targets are ejected, for how long, and how they come back."""

from __future__ import annotations

import pytest

from proxy.upstream.breaker import Breaker, BreakerRules, State, ThrottleRules, find_spared_share
from proxy.upstream.outcomes import Recent

RULES = BreakerRules()


def make(now=0.0, draw=0.5):
    return Breaker(now, RULES, lambda: draw)


def fail(breaker, now, times=1, *, probe=False, midway=False):
    return [breaker.note_failure(now, probe=probe, midway=midway) for _ in range(times)]


def fail_again(breaker):
    """Wait for the end of the ejection and let the probe fail; returns how long the next one lasts."""
    now = breaker.until
    assert breaker.ripen(now)
    breaker.begin_probe()
    assert fail(breaker, now, probe=True) == [True]
    return breaker.until - now


def test_five_failures_in_a_row_open_it_and_four_do_not():
    """The fifth is told to whoever asks."""
    breaker = make()
    assert fail(breaker, 1.0, 4) == [False] * 4
    assert breaker.state is State.CLOSED
    assert fail(breaker, 1.0) == [True]
    assert breaker.state is State.OPEN
    assert breaker.until == 31.0


def test_a_good_answer_between_failures_begins_the_row_anew():
    """Only an unbroken row proves that nothing works."""
    breaker = make()
    for _ in range(20):
        fail(breaker, 1.0, 4)
        breaker.note_good(1.0)
    assert breaker.state is State.CLOSED


def test_a_throttled_answer_breaks_the_row_as_well():
    """Whoever says 429 is alive."""
    breaker = make()
    fail(breaker, 1.0, 4)
    assert breaker.note_alive(1.0) is False
    fail(breaker, 1.0, 4)
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize(("good", "failed", "state"), [(8, 44, State.CLOSED), (7, 43, State.OPEN)])
def test_most_of_many_failing_opens_it_without_a_row(good, failed, state):
    """86 % of 50 do, 84.6 % of 52 do not; midway failures make no row."""
    breaker = make()
    for _ in range(good):
        breaker.note_good(1.0)
    fail(breaker, 2.0, failed, midway=True)
    assert breaker.state is state


def test_forty_nine_attempts_are_too_few_to_tell():
    """All of them failed midway, and the fiftieth does as well."""
    breaker = make()
    fail(breaker, 1.0, 49, midway=True)
    assert breaker.state is State.CLOSED
    assert fail(breaker, 1.0, midway=True) == [True]


@pytest.mark.parametrize(("apart_s", "state"), [(0.1, State.OPEN), (0.3, State.CLOSED)])
def test_the_share_counts_what_happened_within_ten_seconds_only(apart_s, state):
    """Midway failures make no row: 60 of them 0.1 s apart are many at once, 0.3 s apart they are not."""
    breaker = make()
    for turn in range(60):
        fail(breaker, turn * apart_s, midway=True)
    assert breaker.state is state


def test_streams_that_break_off_all_at_once_eject_nobody():
    """A server behind the target restarts: each had answered, and the next ones are answered elsewhere."""
    breaker = make()
    for _ in range(40):
        breaker.note_good(1.0)
    fail(breaker, 2.0, 40, midway=True)
    assert breaker.state is State.CLOSED


def test_each_ejection_is_longer_than_the_one_before_up_to_a_cap():
    """30 s times their number, 300 s at most."""
    breaker = make()
    fail(breaker, 0.0, 5)
    lengths = [breaker.until] + [fail_again(breaker) for _ in range(11)]
    assert lengths == pytest.approx([30.0 * n for n in range(1, 11)] + [300.0, 300.0])


@pytest.mark.parametrize(("draw", "length_s"), [(0.0, 24.0), (0.5, 30.0), (1.0, 36.0)])
def test_the_length_of_an_ejection_is_jittered(draw, length_s):
    """A fifth up or down, so that processes do not probe all at once."""
    breaker = make(draw=draw)
    fail(breaker, 0.0, 5)
    assert breaker.until == pytest.approx(length_s)


def test_no_jitter_goes_beyond_the_cap():
    """300 s is what the operator counts on."""
    breaker = make(draw=1.0)
    fail(breaker, 0.0, 5)
    assert max(fail_again(breaker) for _ in range(15)) == pytest.approx(300.0)


def test_it_ripens_when_the_ejection_is_over_and_not_before():
    """One probe is wanted then, and no second one while it is under way."""
    breaker = make()
    fail(breaker, 0.0, 5)
    assert not breaker.ripen(29.99)
    assert not breaker.wants_probe
    assert breaker.ripen(30.0)
    assert breaker.wants_probe
    breaker.begin_probe()
    assert not breaker.wants_probe
    breaker.withdraw()
    assert breaker.wants_probe


@pytest.mark.parametrize("note", ["note_good", "note_alive"])
def test_a_probe_that_is_answered_closes_it_with_a_clean_slate(note):
    """Four failures after it are four, whatever there was before."""
    breaker = make()
    fail(breaker, 0.0, 5)
    breaker.ripen(30.0)
    breaker.begin_probe()
    assert getattr(breaker, note)(30.0) is True
    assert breaker.state is State.CLOSED
    assert breaker.recent.is_empty
    assert fail(breaker, 30.0, 4) == [False] * 4


def test_failures_of_others_say_nothing_while_a_probe_is_to_decide():
    """Those without another target fail as well; that does not lengthen the ejection."""
    breaker = make()
    fail(breaker, 0.0, 5)
    until = breaker.until
    assert fail(breaker, 10.0, 20) == [False] * 20
    breaker.ripen(30.0)
    assert fail(breaker, 30.0, 20) == [False] * 20
    assert (breaker.state, breaker.until) == (State.HALF_OPEN, until)


def test_a_good_answer_while_it_is_open_closes_it():
    """Somebody without another target tried, and it worked: better than a probe."""
    breaker = make()
    fail(breaker, 0.0, 5)
    assert breaker.note_good(3.0) is True
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize(("healthy_s", "length_s"), [(59.0, 90.0), (60.0, 60.0), (200.0, 30.0)])
def test_time_without_an_ejection_takes_one_after_the_other_off_the_count(healthy_s, length_s):
    """A minute each; a target that was well for long starts with 30 s again."""
    breaker = make()
    fail(breaker, 0.0, 5)
    fail_again(breaker)
    now = breaker.until
    breaker.ripen(now)
    breaker.note_good(now)
    now += healthy_s
    fail(breaker, now, 5)
    assert breaker.until - now == pytest.approx(length_s)


def test_each_change_begins_an_epoch_but_the_half_open_state_does_not():
    """The probe belongs to the ejection that it ends."""
    breaker = make()
    epochs = [breaker.epoch]
    fail(breaker, 0.0, 5)
    epochs.append(breaker.epoch)
    breaker.ripen(30.0)
    epochs.append(breaker.epoch)
    breaker.note_good(30.0)
    epochs.append(breaker.epoch)
    assert epochs == [0, 1, 1, 2]


def recent_of(good, failed):
    recent = Recent(0.0)
    for _ in range(good):
        recent.note_good(0.0)
    for _ in range(failed):
        recent.note_failure(0.0)
    return recent


@pytest.mark.parametrize(
    ("good", "failed", "share"),
    [
        (1000, 0, 0.0),
        (950, 50, 0.0),
        (900, 100, (1000 - 900 / 0.95) / 1001),
        (500, 500, (1000 - 500 / 0.95) / 1001),
        (100, 900, 0.8),
        (0, 1000, 0.8),
        (0, 149, 0.0),
    ],
)
def test_a_degrading_target_is_spared_by_the_published_formula(good, failed, share):
    """Nothing from 95 % on or below 5 attempts per second, 80 % at most."""
    assert find_spared_share(recent_of(good, failed), ThrottleRules()) == pytest.approx(share)


def test_more_aggression_spares_more():
    """The exponent is one over it."""
    recent = recent_of(900, 100)
    mild = find_spared_share(recent, ThrottleRules())
    assert find_spared_share(recent, ThrottleRules(aggression=2.0)) == pytest.approx(mild**0.5)
