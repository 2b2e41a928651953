"""Averages and percentiles of the time to the first byte."""

from __future__ import annotations

import random

import pytest

from proxy.upstream.latency import Latency


def test_nothing_is_known_before_the_first_answer():
    """Zero, which means that."""
    latency = Latency()
    assert (latency.average_s, latency.p95_s) == (0.0, 0.0)


def test_the_first_answer_is_the_average():
    """It does not start from zero."""
    latency = Latency()
    latency.note(10.0, 0.4)
    assert latency.average_s == 0.4


def test_many_answers_move_the_average_slowly_and_a_rare_one_moves_it_at_once():
    """One of a thousand per second is noise; the first after half a minute is the news."""
    busy, rare = Latency(), Latency()
    for latency in (busy, rare):
        latency.note(0.0, 1.0)
    busy.note(0.001, 3.0)
    rare.note(30.0, 3.0)
    assert busy.average_s == pytest.approx(1.1)
    assert rare.average_s == pytest.approx(2.9, abs=0.01)


def test_an_average_is_forgotten_after_a_minute_of_silence():
    """A target that was slow once gets another chance."""
    latency = Latency()
    latency.note(100.0, 9.0)
    latency.forget(159.0)
    assert latency.average_s == 9.0
    latency.forget(160.0)
    assert latency.average_s == 0.0


def test_the_percentile_needs_twenty_answers_and_then_follows_the_last_128():
    """What was before is gone from it."""
    latency = Latency()
    for turn in range(19):
        latency.note(float(turn), 5.0)
    assert latency.p95_s == 0.0
    latency.note(20.0, 5.0)
    assert latency.p95_s == 5.0
    times = [turn / 100 for turn in range(128)]
    random.Random(3).shuffle(times)
    for each in times:
        latency.note(30.0, each)
    assert latency.p95_s == pytest.approx(1.21, abs=0.011)
