"""Numbers about summaries of conversations."""

from __future__ import annotations

from proxy.summaries import Summaries
from proxy.telemetry.metrics import Metrics


def expose_summaries(summaries: Summaries, metrics: Metrics) -> None:
    """Register them with the metrics."""
    metrics.counter_from("summaries_total", lambda: summaries.made, "made")
    metrics.counter_from("summaries_total", lambda: summaries.reused, "reused")
    metrics.counter_from("summaries_total", lambda: summaries.waited, "waited")
    metrics.table_from("summary_failures_total", lambda: {(why,): count for why, count in summaries.failed.items()})
    metrics.counter_from("summary_evictions_total", lambda: summaries.evictions)
    metrics.gauge_from("summary_bytes", lambda: summaries.size_bytes)
    metrics.gauge_from("summaries_in_making", lambda: summaries.making)
