"""What the admin page shows of this process: what happens right now, read from memory whenever it is asked for, and
the figures of its store."""

from __future__ import annotations

from functools import partial
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Final

from proxy.accounting.figures import Targets
from proxy.edge.admin_api import AdminApi
from proxy.edge.admin_figures import Figures
from proxy.edge.admin_page import AdminPage, is_loopback

if TYPE_CHECKING:
    from proxy.app import App

MOST_FLIGHTS: Final = 20
"""Shown one by one: the oldest."""
_OF_TARGET: Final = (
    *("target", "state", "in_flight", "queued", "first_byte_ms", "p95_first_byte_ms"),
    *("good_10s", "failed_10s", "ejections"),
)


def describe_live(app: App) -> dict[str, Any]:
    """Counts add up over processes, lists can be put together; see `workers.merge_live`."""
    table, hot, server = app.table, app.hot, app.server
    oldest = nsmallest(MOST_FLIGHTS, table.live, key=lambda flight: flight.born_at)
    return {
        "at": app.clock.wall(),
        "phase": app.phase,
        "flights": {
            "in_air": len(table.live),
            "started": table.started,
            "joins": sum(table.joins.values()),
            "subscribers": table.subscribers,
            "retained_bytes": table.retained_bytes,
            "oldest": [flight.describe() for flight in oldest],
        },
        "requests": {"running": server.running, "connections": len(server.connections)},
        "hot_cache": {
            "entries": hot.entries,
            "size_bytes": hot.size_bytes,
            "limit_bytes": app.settings.hot_cache_bytes,
            "hits": hot.hits + hot.stale_hits,
            "misses": hot.misses,
        },
        "usage": {"pending": app.vault.spool.pending_records},
        "targets": [{name: target[name] for name in _OF_TARGET} for target in app.fleet.health.describe()],
    }


def make_page(app: App, api: AdminApi) -> AdminPage:
    """The admin page, with its counters."""
    settings = app.settings
    targets = Targets(
        settings.target_error_percent,
        settings.target_hit_percent,
        settings.target_p95_ms,
        settings.target_usd_per_1000,
    )
    figures = Figures(app.vault.store, app.clock, targets)
    page = AdminPage(
        api, figures, partial(describe_live, app), listens_locally=is_loopback(settings.admin_host)
    )
    count = partial(app.metrics.counter_from, "figures_readings_total")
    count(lambda: figures.readings - figures.failures, "good")
    count(lambda: figures.failures, "failed")
    return page
