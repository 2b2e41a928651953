"""Which numbers of the rooms appear as which series: read when somebody scrapes, never copied before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from proxy.cache.shared import AiocacheShared
from proxy.exposure_flags import expose_flags
from proxy.exposure_formation import expose_formation
from proxy.exposure_patterns import expose_patterns
from proxy.exposure_retries import expose_retries
from proxy.exposure_summaries import expose_summaries
from proxy.exposure_tiers import expose_tiers
from proxy.exposure_upstream import expose_health
from proxy.exposure_vault import expose_vault

if TYPE_CHECKING:
    from proxy.app import App
    from proxy.edge.server import DataServer


def expose(app: App) -> None:
    """Register every room's counters with the metrics."""
    _expose_flights(app)
    expose_formation(app.formation, app.metrics)
    _expose_caches(app)
    _expose_upstream(app)
    _expose_process(app)
    _expose_pressure(app)
    expose_health(app.fleet.health, app.metrics)
    _expose_batches(app)
    failover = app.fleet.failover
    app.metrics.counter_from("hedges_total", lambda: failover.hedges_won, "won")
    app.metrics.counter_from("hedges_total", lambda: failover.hedges_started - failover.hedges_won, "lost")
    expose_retries(app.fleet.gates, app.fleet.credentials, app.metrics)
    expose_patterns(app.shaper.responder, app.metrics)
    expose_tiers(app.shaper.tiering.memory, app.metrics)
    expose_summaries(app.summaries, app.metrics)
    expose_vault(app.vault, app.metrics)
    expose_flags(app.vault.flags, app.metrics)
    api = app.admin.api
    app.metrics.counter_from("admin_refused_total", lambda: api.refused if api is not None else 0)


def _expose_flights(app: App) -> None:
    metrics, table = app.metrics, app.table
    metrics.table_from("flights_total", lambda: {(ending.value,): count for ending, count in table.endings.items()})
    metrics.gauge_from("flights_in_air", lambda: len(table.live))
    metrics.gauge_from("flight_subscribers", lambda: table.subscribers)
    metrics.table_from("joins_total", lambda: {(state,): count for state, count in table.joins.items()})
    metrics.table_from("join_refused_total", lambda: {(why,): count for why, count in table.refused.items()})
    metrics.counter_from("released_total", lambda: table.released, "unshareable")
    metrics.table_from("linger_total", lambda: {(result,): count for result, count in table.lingers.items()})
    metrics.counter_from("detached_total", lambda: table.ejected_lagging, "lag")
    metrics.counter_from("detached_total", lambda: table.ejected_stalled, "stall")
    metrics.gauge_from("retained_bytes", lambda: table.retained_bytes)
    metrics.gauge_from("pass_markers", lambda: table.pass_markers)
    metrics.counter_from("flight_watchdog_total", lambda: table.watchdog)


def _expose_caches(app: App) -> None:
    metrics, hot, shared = app.metrics, app.hot, app.shared
    metrics.counter_from("cache_hits_total", lambda: hot.hits + hot.stale_hits, "hot")
    metrics.counter_from("cache_misses_total", lambda: hot.misses, "hot")
    metrics.counter_from("cache_evictions_total", lambda: hot.evictions, "hot")
    metrics.gauge_from("cache_bytes", lambda: hot.size_bytes, "hot")
    metrics.counter_from("cache_hits_total", lambda: getattr(shared, "hits", 0), "shared")
    metrics.counter_from("cache_misses_total", lambda: getattr(shared, "misses", 0), "shared")
    metrics.counter_from("cache_stores_total", lambda: getattr(shared, "stored", 0), "shared")
    metrics.gauge_from("cache_up", lambda: int(getattr(shared, "up", False)), "shared")
    reasons = ("errors", "timeouts", "skipped", "crowded", "rejected", "refused", "outdated")
    metrics.table_from(
        "cache_failures_total", lambda: {("shared", reason): getattr(shared, reason, 0) for reason in reasons}
    )
    if isinstance(shared, AiocacheShared):
        metrics.gauge_from("cache_bytes", lambda: shared.size_bytes, "shared")
        metrics.counter_from("cache_evictions_total", lambda: shared.evictions, "shared")
        metrics.counter_from("cache_purges_total", lambda: shared.generation.changes, "shared")


def _expose_upstream(app: App) -> None:
    metrics, transport = app.metrics, app.transport

    def connections() -> dict[tuple[str, ...], float]:
        return {
            (pool["origin"], state): pool[state]
            for pool in transport.describe()["pools"]
            for state in ("idle", "busy", "opening", "waiting")
        }

    metrics.table_from("upstream_connections", connections)
    metrics.counter_from("dns_stale_used_total", lambda: transport.dns_stale_used)


def _expose_batches(app: App) -> None:
    metrics, batcher = app.metrics, app.fleet.batcher
    for name, read in (
        ("embedding_batches_total", batcher.counts.batches),
        ("embedding_batched_requests_total", batcher.counts.requests),
        ("embedding_batch_state", batcher.gauges),
    ):
        metrics.table_from(name, partial(_widen, read))


def _widen(read: Callable[[], dict[tuple[str], float]]) -> dict[tuple[str, ...], float]:
    return {(*labels,): value for labels, value in read().items()}


def _expose_process(app: App) -> None:
    metrics, server, catalogs = app.metrics, app.server, app.catalogs
    metrics.gauge_from("connections", lambda: len(server.connections), "open")
    metrics.gauge_from("connections", lambda: server.running, "busy")
    metrics.gauge_from("connections", lambda: app.sockets.open, "websocket")
    metrics.gauge_from("streams_inflight", lambda: _count_streams(server))
    metrics.table_from(
        "connections_closed_total", lambda: {(why,): count for why, count in server.closed_why.items()}
    )
    metrics.gauge_from("config_last_reload_successful", lambda: int(catalogs.last_reload_ok))
    metrics.counter_from("config_reload_failures_total", lambda: catalogs.reload_failures)
    logging = app.logging
    if logging is not None:
        metrics.counter_from("log_lines_dropped_total", lambda: logging.sink.dropped)


def _expose_pressure(app: App) -> None:
    metrics, gate, memory = app.metrics, app.gate, app.memory
    metrics.gauge_from("queue_delay_seconds", lambda: gate.delay_s)
    metrics.table_from("shed_total", lambda: {(why,): count for why, count in gate.refused.items()})
    metrics.gauge_from("shed_level", lambda: int(gate.level))
    metrics.counter_from("connections_held_total", lambda: gate.held)
    metrics.counter_from("accept_pauses_total", lambda: app.doors.pauses if app.doors is not None else 0)
    metrics.gauge_from("memory_limit_bytes", lambda: memory.limit_bytes)
    metrics.gauge_from("memory_step", lambda: int(memory.step))
    metrics.counter_from("memory_relief_total", lambda: app.relief.closed, "connections")
    metrics.counter_from("memory_relief_total", lambda: app.relief.dropped, "answers")
    metrics.gauge_from("tasks", lambda: len(asyncio.all_tasks()))


def _count_streams(server: DataServer) -> int:
    """Event streams whose head is out and whose end is not."""
    relays = [getattr(connection, "relay", None) for connection in server.connections]
    exchanges = [relay.exchange for relay in relays if relay is not None and not relay.done]
    return sum(1 for each in exchanges if each.head_out_at and each.plan is not None and each.plan.streams)
