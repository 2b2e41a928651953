"""The admin listener: health, metrics and what is in the air, on a port of its own; the admin API where it is open.

Nothing but the admin API may wait for anything but the loop: a probe that asks a database for its opinion takes a
good process out of service with a bad database.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import orjson

from proxy.edge import web
from proxy.edge.admin_api import AdminApi
from proxy.edge.admin_page import PAGE, AdminPage, is_page

_JSON: Final = "application/json"


class Health(NamedTuple):
    """One probe's answer."""

    ok: bool
    facts: dict[str, Any]


class Views(NamedTuple):
    """What the app shows; called for each request."""

    live: Callable[[], Health]
    ready: Callable[[], Health]
    started: Callable[[], Health]
    metrics: Callable[[list[str]], tuple[bytes, str]]
    flights: Callable[[], dict[str, Any]]
    targets: Callable[[], dict[str, Any]]


class AdminServer(web.Server):
    """Answers GET on a handful of paths, hands ``/admin/`` to the API and ``/dashboard`` to the page, refuses the
    rest."""

    def __init__(self, views: Views, api: AdminApi | None = None, page: AdminPage | None = None) -> None:
        super().__init__(self.handle, access_log=None, keepalive_timeout=75.0, lingering_time=1.0)
        self._views = views
        self.api = api
        self.page = page
        probes = {
            "/livez": views.live,
            "/health/liveliness": views.live,
            "/health/liveness": views.live,
            "/readyz": views.ready,
            "/health": views.ready,
            "/health/readiness": views.ready,
            "/startupz": views.started,
        }
        self._probes = probes

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One admin request."""
        if self.api is not None and request.path.startswith("/admin/"):
            return await self.api.handle(request)
        if self.page is not None and is_page(request.path):
            return await self.page.handle(request)
        if request.method not in ("GET", "HEAD"):
            return _json(405, {"error": "only GET is answered here"})
        probe = self._probes.get(request.path)
        if probe is not None:
            health = probe()
            word = "ok" if health.ok else "unavailable"
            return _json(200 if health.ok else 503, {"status": word, **health.facts})
        if request.path == "/metrics":
            body, content_type = self._views.metrics(request.headers.getall("Accept", []))
            return web.Response(body=body, headers={"Content-Type": content_type})
        if request.path == "/flights":
            return _json(200, self._views.flights())
        if request.path == "/targets":
            return _json(200, self._views.targets())
        pages = [*self._probes, "/metrics", "/flights", "/targets", *([PAGE] if self.page is not None else [])]
        return _json(404, {"error": "no such page", "pages": pages})

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the name of the library
        """As the library's; nothing is read for the page any more."""
        await super().shutdown(timeout)
        if self.page is not None:
            await self.page.figures.close()


def _json(status: int, value: dict[str, Any]) -> web.Response:
    return web.Response(
        status=status, body=orjson.dumps(value), content_type=_JSON, headers={"Cache-Control": "no-store"}
    )
