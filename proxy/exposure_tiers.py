"""Which numbers of tiers appear as which series."""

from __future__ import annotations

from proxy.policy.tier_memory import TierMemory
from proxy.telemetry.metrics import Metrics


def expose_tiers(memory: TierMemory, metrics: Metrics) -> None:
    """Register the counters; labels are the catalog's names of virtual models and tiers."""
    metrics.table_from("tier_requests_total", lambda: {(*labels,): n for labels, n in memory.chosen.items()})
    metrics.counter_from("tier_choices_reused_total", lambda: memory.reused)
    metrics.counter_from("tier_memory_evictions_total", lambda: memory.evicted)
    metrics.table_from("tier_memory_entries", lambda: {(what,): n for what, n in memory.sizes().items()})
