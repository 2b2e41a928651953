"""Which numbers of keys, limits, budgets and usage appear as which series."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.accounting.usage import PICODOLLARS
from proxy.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from proxy.vault import Vault


def expose_vault(vault: Vault, metrics: Metrics) -> None:
    """Register the counters of everything around the store."""
    _expose_keys(vault, metrics)
    _expose_limits(vault, metrics)
    _expose_usage(vault, metrics)
    _expose_store(vault, metrics)


def _expose_keys(vault: Vault, metrics: Metrics) -> None:
    ring, feed = vault.ring, vault.feed
    metrics.table_from(
        "key_lookups_total",
        lambda: {
            ("hit",): ring.hits,
            ("stale",): ring.stale_served,
            ("miss",): ring.misses,
            ("unknown",): ring.unknown_hits,
            ("junk",): ring.junk,
            ("turned_away",): ring.turned_away,
        },
    )
    metrics.gauge_from("key_hit_ratio", lambda: ring.hit_rate)
    metrics.counter_from("key_fetches_total", lambda: ring.levels.fetches, "database")
    metrics.counter_from("key_fetches_total", lambda: ring.levels.fetch_failures, "failed")
    metrics.counter_from("key_fetches_total", lambda: ring.levels.shared_hits, "shared")
    metrics.gauge_from("keys_held", lambda: len(ring))
    metrics.counter_from("key_evictions_total", lambda: ring.evictions)
    metrics.gauge_from("keys_version_lag", lambda: ring.version_lag)
    metrics.gauge_from("keys_confirmed_age_seconds", vault.keys_confirmed_age_s)
    metrics.gauge_from("keys_news_alive", lambda: int(feed.alive))
    metrics.gauge_from("keys_database_up", lambda: int(ring.database_up))


def _expose_limits(vault: Vault, metrics: Metrics) -> None:
    limiter, leases, shared = vault.limiter, vault.leases, vault.shared_limits
    metrics.counter_from("limit_requests_total", lambda: limiter.reserved, "passed")
    metrics.counter_from("limit_requests_total", lambda: limiter.refused, "refused")
    metrics.counter_from("limit_requests_total", lambda: limiter.shortages, "waited")
    metrics.counter_from("limit_requests_total", lambda: limiter.unpriced, "unpriced")
    metrics.gauge_from("limit_accounts", lambda: len(limiter))
    metrics.gauge_from("limits_shared_up", lambda: int(shared.up) if shared is not None else 0)
    metrics.counter_from("limits_shared_errors_total", lambda: shared.errors if shared is not None else 0)
    metrics.counter_from("budget_leases_total", lambda: leases.calls, "asked")
    metrics.counter_from("budget_leases_total", lambda: leases.store_errors, "failed")
    metrics.counter_from("budget_leases_total", lambda: leases.reclaimed, "reclaimed")
    metrics.counter_from("budget_requests_total", lambda: leases.waits, "waited")
    metrics.counter_from("budget_requests_total", lambda: leases.refused, "refused")
    metrics.counter_from("budget_requests_total", lambda: leases.unchecked, "unchecked")
    metrics.gauge_from("budget_usd", lambda: leases.free_picodollars / PICODOLLARS, "free")
    metrics.gauge_from("budget_usd", lambda: leases.reserved_picodollars / PICODOLLARS, "reserved")


def _expose_usage(vault: Vault, metrics: Metrics) -> None:
    spool, ledger = vault.spool, vault.ledger
    steps = {
        "opened": lambda: spool.opened,
        "closed": lambda: spool.closed,
        "refused": lambda: spool.refused,
        "dropped": lambda: spool.dropped,
        "flushed": lambda: ledger.flushed,
        "recovered": lambda: ledger.recovered,
        "lost": lambda: ledger.lost,
        "torn": lambda: ledger.torn,
    }
    for step, read in steps.items():
        metrics.counter_from("usage_records_total", read, step)
    metrics.gauge_from("spool_bytes", lambda: spool.size_bytes)
    metrics.gauge_from("spool_pending_records", lambda: spool.pending_records)
    metrics.gauge_from("spool_running_records", lambda: spool.running)
    metrics.counter_from("spool_errors_total", lambda: spool.write_errors, "write")
    metrics.counter_from("spool_errors_total", lambda: spool.upkeep.sync_errors, "sync")
    metrics.counter_from("spool_errors_total", lambda: spool.upkeep.alloc_errors, "alloc")
    metrics.table_from("usage_flush_errors_total", lambda: {(why,): count for why, count in ledger.errors.items()})
    metrics.counter_from("usage_flush_seconds_total", lambda: ledger.flush_s)


def _expose_store(vault: Vault, metrics: Metrics) -> None:
    store = vault.store

    def numbers() -> dict[tuple[str, ...], float]:
        return {
            (name,): value
            for name, value in store.describe().items()
            if isinstance(value, int) and not isinstance(value, bool)
        }

    metrics.table_from("store_state", numbers)
