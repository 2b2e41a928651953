"""Everything about guards that lives as long as the process: made once by the app, joined with its transport, and
exposed as series."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final
from urllib.parse import urlsplit

from proxy.clock import Clock
from proxy.config.catalog import Catalog
from proxy.guard.remote import MAX_ANSWER_BYTES, Post, RemoteGuards
from proxy.guard.run import GuardRunner
from proxy.protocol.message import HeaderList
from proxy.screening import Screening
from proxy.telemetry.metrics import Metrics
from proxy.upstream.base import Origin, Patience, UpstreamRequest
from proxy.upstream.fetch import Asks, fetch
from proxy.vetting import Vetting

_MOST_URLS: Final = 1_000


class Guarding:
    """Needs a running loop."""

    # Mutable state: none of its own.
    __slots__ = ("runner", "screening", "vetting")

    def __init__(self, clock: Clock, transport: Asks, metrics: Metrics, log: Any) -> None:
        self.runner = GuardRunner(RemoteGuards(make_post(transport), clock), clock, log, metrics.bug)
        self.screening = Screening(self.runner, metrics.bug)
        self.vetting = Vetting(self.runner)
        self._expose(metrics)

    def prepare(self, catalog: Catalog) -> None:
        """Import what its guards need, before requests do: a proxy without any starts 12 ms earlier."""
        guards = catalog.savings.guards if catalog.savings is not None else ()
        if not all(guard.is_remote for guard in guards):
            import_module("proxy.guard.kinds")

    def _expose(self, metrics: Metrics) -> None:
        runner, vetting, held = self.runner, self.vetting, self.screening.held
        metrics.table_from("guard_results_total", lambda: {(*labels,): n for labels, n in runner.results.items()})
        metrics.table_from("guard_failures_total", lambda: {(*labels,): n for labels, n in runner.failures.items()})
        metrics.table_from("guard_seconds_total", lambda: {(name,): s for name, s in runner.seconds.items()})
        remote = runner.remote
        metrics.table_from(
            "guard_breaker_openings_total", lambda: {(name,): count for name, count in remote.opened.items()}
        )
        metrics.table_from(
            "guard_breaker_open", lambda: {(name,): int(is_open) for name, is_open in remote.is_open().items()}
        )
        metrics.counter_from("guard_vetted_total", lambda: vetting.checked, "checked")
        metrics.counter_from("guard_vetted_total", lambda: vetting.remembered, "remembered")
        metrics.gauge_from("guard_held_bytes", lambda: held.bytes)
        metrics.counter_from("guard_upstream_pauses_total", lambda: held.paused)


def make_post(transport: Asks) -> Post:
    """The way of remote guards over the transport to upstreams: its connections are kept and its CA file is used."""
    places: dict[str, tuple[Origin, str]] = {}

    async def post(url: str, headers: HeaderList, body: bytes, deadline_s: float) -> tuple[int, bytes]:
        place = places.get(url)
        if place is None:
            if len(places) >= _MOST_URLS:
                places.clear()
            place = places[url] = _read_url(url)
        request = UpstreamRequest(place[0], "POST", place[1], headers, body)
        patience = Patience(deadline_s, deadline_s, deadline_s, deadline_s)
        fetched = await fetch(transport, request, patience, MAX_ANSWER_BYTES)
        return fetched.status, fetched.body

    return post


def _read_url(url: str) -> tuple[Origin, str]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Origin(parts.scheme, parts.hostname or "", port), target
