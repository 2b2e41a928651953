"""What a scrape tells about the health of targets."""

from __future__ import annotations

import pytest

from proxy.clock import Deadlines
from proxy.errors import ProxyError
from proxy.exposure_upstream import expose_health
from proxy.telemetry.metrics import MAX_TABLE_ROWS, Metrics
from proxy.upstream.health import Health, Outcome, TargetLimits
from tests.fakes.clock import FrozenClock


@pytest.fixture
def health():
    clock = FrozenClock()
    return Health(clock, Deadlines(clock), rng=lambda: 0.5)


def scrape(health):
    metrics = Metrics()
    expose_health(health, metrics)
    lines = metrics.render(["text/plain"])[0].decode().splitlines()
    return {
        line.rpartition(" ")[0].removeprefix("sameflight_target_"): float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("sameflight_target_")
    }


def test_a_target_that_nobody_asked_has_no_series(health):
    """A thousand configured models do not make a thousand rows of nothing."""
    health.keep({"openai/gpt": TargetLimits()})
    assert scrape(health) == {}


async def test_each_number_of_a_target_is_told(health):
    """Two answers, five failures, one throttled, one under way, one sent elsewhere."""
    health.keep({"p/m": TargetLimits()})
    for outcome in (Outcome.OK, Outcome.OK, Outcome.THROTTLED, *[Outcome.FAILED] * 4):
        place = health.try_enter("p/m", b"")
        if outcome is Outcome.OK:
            place.answered(0.5)
        place.leave(outcome)
    under_way = health.try_enter("p/m", b"")
    health.try_enter("p/m", b"").leave(Outcome.FAILED)
    with pytest.raises(ProxyError):
        await health.enter("p/m", b"", 1e9)
    assert under_way is not None
    target = 'target="p/m"'
    assert scrape(health) == {
        f"state{{{target}}}": 2,
        f"in_flight{{{target}}}": 1,
        f"limit{{{target}}}": 44,
        f"queued{{{target}}}": 0,
        f"first_byte_seconds{{{target}}}": 0.5,
        f"spared_share{{{target}}}": 0,
        f"throttles_total{{{target}}}": 1,
        f"limit_cuts_total{{{target}}}": 1,
        f"ejections_total{{{target}}}": 1,
        f'attempts_total{{outcome="ok",{target}}}': 2,
        f'attempts_total{{outcome="failed",{target}}}': 5,
        f'attempts_total{{outcome="throttled",{target}}}': 1,
        f'refused_total{{reason="target_open",{target}}}': 1,
    }


def test_with_more_targets_than_rows_the_ejected_ones_are_told_and_no_gauge_is_added_up(health):
    """What matters is seen, and the limits of a thousand targets are no limit."""
    names = [f"p/m{number}" for number in range(MAX_TABLE_ROWS + 50)]
    health.keep(dict.fromkeys(names, TargetLimits()))
    for name in names:
        health.try_enter(name, b"").leave(Outcome.OK)
    for _ in range(5):
        health.try_enter(names[-1], b"").leave(Outcome.FAILED)
    told = scrape(health)
    assert told[f'state{{target="{names[-1]}"}}'] == 2
    limits = {name: value for name, value in told.items() if name.startswith("limit{")}
    assert len(limits) == MAX_TABLE_ROWS
    assert set(limits.values()) == {64}
    assert sum(value for name, value in told.items() if name.startswith("attempts_total")) == len(names) + 5
