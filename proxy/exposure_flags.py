"""Which numbers of the flags appear as which series."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from proxy.flag_feed import FlagFeed


def expose_flags(feed: FlagFeed, metrics: Metrics) -> None:
    """Register what is known of the store's rules, and since when."""
    metrics.gauge_from("flags_version", lambda: feed.flags.version)
    metrics.gauge_from("flags_age_seconds", feed.age_s)
    metrics.gauge_from("flags_rules", lambda: feed.held)
    metrics.counter_from("flags_changes_total", lambda: feed.changes)
    metrics.counter_from("flags_reads_total", lambda: feed.reads, "answered")
    metrics.counter_from("flags_reads_total", lambda: feed.failures, "failed")
