"""Many expositions as one: what may be added is added and never falls, what may not is told apart."""

from __future__ import annotations

from proxy.telemetry.metrics import Metrics
from proxy.workers.merge import Totals, parse, series_group

FIRST = """# HELP a_total Things.
# TYPE a_total counter
a_total{kind="x"} 3
a_total{kind="y"} 0.5
# HELP b_seconds Times.
# TYPE b_seconds histogram
b_seconds_bucket{le="0.1"} 1
b_seconds_bucket{le="+Inf"} 2
b_seconds_count 2
b_seconds_sum 1.25
# HELP c Now.
# TYPE c gauge
c 7
# HELP d Now, by kind.
# TYPE d gauge
d{kind="x"} 1
"""
SECOND = FIRST.replace('a_total{kind="x"} 3', 'a_total{kind="x"} 4').replace("c 7", "c 8")


def samples_of(text: str) -> dict[str, float]:
    return {sample: value for group in parse(text).values() for sample, value in group.samples.items()}


def test_counters_and_histograms_are_added_and_gauges_are_told_apart() -> None:
    """As if it were one program with several parts."""
    totals = Totals()
    totals.hear("0.1", FIRST)
    totals.hear("1.1", SECOND)
    text = totals.merge({"0.1": "0", "1.1": "1"})
    samples = samples_of(text)

    assert samples['a_total{kind="x"}'] == 7
    assert samples['a_total{kind="y"}'] == 1
    assert samples['b_seconds_bucket{le="+Inf"}'] == 4
    assert (samples["b_seconds_count"], samples["b_seconds_sum"]) == (4, 2.5)
    assert (samples['c{worker="0"}'], samples['c{worker="1"}']) == (7, 8)
    assert samples['d{worker="1",kind="x"}'] == 1
    assert "c" not in samples
    assert text.count("# TYPE a_total counter\n") == 1


def test_what_the_dead_had_counted_stays_counted() -> None:
    """Else a sum would fall with each restart, and a rate made of it would leap."""
    totals = Totals()
    totals.hear("0.1", FIRST)
    totals.bury("0.1", final=FIRST.replace('a_total{kind="x"} 3', 'a_total{kind="x"} 9'))
    totals.hear("0.2", SECOND)
    samples = samples_of(totals.merge({"0.2": "0"}))

    assert samples['a_total{kind="x"}'] == 13
    assert samples['c{worker="0"}'] == 8


def test_a_killed_worker_counts_as_it_did_when_it_last_said() -> None:
    """It could not say a last word; one that was never heard of counts nothing."""
    totals = Totals()
    totals.hear("0.1", FIRST)
    totals.bury("0.1")
    totals.bury("1.1")

    assert samples_of(totals.merge({}))['a_total{kind="x"}'] == 3


def test_a_worker_that_does_not_answer_counts_as_before_and_shows_no_gauges() -> None:
    """Its numbers of now are not known, and its counts are not gone."""
    totals = Totals()
    totals.hear("0.1", FIRST)
    totals.hear("1.1", SECOND)
    samples = samples_of(totals.merge({"0.1": "0"}))

    assert samples['a_total{kind="x"}'] == 7
    assert 'c{worker="1"}' not in samples


def test_the_parents_own_series_come_from_the_table() -> None:
    """With the type and the meaning that README lists."""
    totals = Totals()
    text = totals.merge({}, [series_group("workers", {"ready": 2.0})])

    assert text.splitlines()[1:] == ["# TYPE sameflight_workers gauge", 'sameflight_workers{state="ready"} 2']


def test_what_a_real_worker_says_is_understood_to_the_last_line() -> None:
    """No sample of the exposition is lost on the way."""
    metrics = Metrics()
    metrics.requests_total.at("openai", "chat", "m", "200", "ok").value += 2
    metrics.request_duration_seconds.at("openai", "chat").observe(0.3)
    text = metrics.render(["text/plain"])[0].decode()
    totals = Totals()
    totals.hear("0.1", text)
    merged = samples_of(totals.merge({"0.1": "0"}))

    assert len(merged) == len([line for line in text.splitlines() if line and not line.startswith("#")])
    assert [value for sample, value in merged.items() if sample.startswith("sameflight_requests_total{")] == [2]
