"""The memory of the last seconds."""

from __future__ import annotations

import random

from proxy.upstream.outcomes import LONG_S, SHORT_S, Recent


def test_the_windows_hold_what_a_log_of_all_events_holds():
    """Sums over a ring agree with counting, through bursts, lulls and pauses longer than the ring."""
    chance = random.Random(7)
    now, log = 1000.0, []
    recent = Recent(now)
    for _ in range(2000):
        now += chance.choice((0.0, 0.0, 0.1, 0.4, 1.0, 3.0, 29.0, 31.0, 95.0)) if chance.random() < 0.3 else 0.0
        good = chance.random() < 0.6
        (recent.note_good if good else recent.note_failure)(now)
        log.append((int(now), good))
        log = [(at, each) for at, each in log if int(now) - at < LONG_S]
        short = [each for at, each in log if int(now) - at < SHORT_S]
        assert (recent.good_short, recent.failed_short) == (sum(short), len(short) - sum(short))
        assert recent.good_long == sum(each for _, each in log)
        assert recent.failed_long == len(log) - recent.good_long


def test_time_alone_empties_the_windows():
    """Nobody has to ask for old events to be forgotten."""
    recent = Recent(5.0)
    recent.note_failure(5.5)
    recent.turn(5.0 + SHORT_S)
    assert (recent.failed_short, recent.failed_long) == (0, 1)
    recent.turn(5.0 + LONG_S)
    assert recent.is_empty
