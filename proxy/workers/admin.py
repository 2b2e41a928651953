"""The one admin listener of many workers: probes from what the parent knows, views from all, the admin API from one.

No probe asks a worker anything: each tells its parent every second how it is. A view asks all of them at once and
names those that do not answer in time; it is never an error.

- ``/livez``: the parent's loop turns. It starts dead workers again and ends stuck ones, so no probe need do that.
- ``/readyz``: at least one worker is ready and nothing drains. With all it would turn one worker's trouble, around
  which a balancer goes, into everybody's.
- ``/startupz``: one worker has been ready once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import orjson

from proxy.edge import web
from proxy.edge.admin_page import ASKED_HOST, PAGE, is_page
from proxy.workers.asking import Reply, UnansweredError, ask
from proxy.workers.child import Child
from proxy.workers.merge import CONTENT_TYPE, Group, Totals, series_group
from proxy.workers.merge_live import merge_live

API_S: Final = 15.0
MAX_API_BYTES: Final = 128 * 1024
_VIEWS: Final = ("/flights", "/targets")
_LIVE: Final = PAGE + "/live"
_HOP: Final = frozenset(
    ("connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect")
)


class Team(Protocol):
    """What the admin listener needs of the parent."""

    def is_live(self) -> bool: ...

    def is_ready(self) -> bool: ...

    def has_started(self) -> bool: ...

    def serving(self) -> dict[str, Child]:
        """Worker's label → the process that serves; those that drain as ``<number>-draining…``."""

    def describe(self) -> dict[str, Any]: ...

    def own_series(self) -> Iterable[Group]: ...


class ParentAdmin(web.Server):
    """Answers for all workers."""

    def __init__(self, team: Team, totals: Totals) -> None:
        super().__init__(self.handle, access_log=None, keepalive_timeout=75.0, lingering_time=1.0)
        self._team = team
        self._totals = totals
        self._probes: dict[str, Callable[[], bool]] = {
            "/livez": team.is_live,
            "/health/liveliness": team.is_live,
            "/health/liveness": team.is_live,
            "/readyz": team.is_ready,
            "/health": team.is_ready,
            "/health/readiness": team.is_ready,
            "/startupz": team.has_started,
        }

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """One admin request."""
        path = request.path
        if path.startswith("/admin/"):
            return await self._forward(request)
        if is_page(path):
            return await self._page(request)
        if request.method not in ("GET", "HEAD"):
            return _json(405, {"error": "only GET is answered here"})
        probe = self._probes.get(path)
        if probe is not None:
            ok = probe()
            facts = self._team.describe()
            return _json(200 if ok else 503, {"status": "ok" if ok else "unavailable", **facts})
        if path == "/metrics":
            return await self._metrics()
        if path in _VIEWS:
            return _json(200, {"workers": await self._view(path)})
        if path == "/workers":
            return _json(200, self._team.describe())
        return _json(404, {"error": "no such page", "pages": [*self._probes, "/metrics", *_VIEWS, "/workers", PAGE]})

    async def _metrics(self) -> web.Response:
        workers = self._team.serving()
        replies = await self._ask_all("/metrics", workers)
        up = series_group("worker_up")
        shown = {}
        for label, child in workers.items():
            reply = replies[label]
            up.samples[f'sameflight_worker_up{{worker="{label}"}}'] = float(isinstance(reply, Reply))
            if isinstance(reply, Reply) and child.state != "ended":
                self._totals.hear(child.name, reply.body.decode("utf-8", "replace"))
                shown[child.name] = label
        text = self._totals.merge(shown, (*self._team.own_series(), up))
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _view(self, path: str) -> dict[str, Any]:
        replies = await self._ask_all(path, self._team.serving())
        return {
            label: orjson.loads(reply.body) if isinstance(reply, Reply) else {"error": reply}
            for label, reply in replies.items()
        }

    async def _page(self, request: web.BaseRequest) -> web.Response:
        """The admin page of one worker, whose figures are the store's and so everybody's; what is live, of all."""
        if request.path != _LIVE or request.method != "GET":
            return await self._forward(request)
        replies = await self._ask_all(request.raw_path, self._team.serving(), _pass_on(request))
        views = {label: orjson.loads(reply.body) for label, reply in replies.items() if isinstance(reply, Reply)}
        if not views:
            return await self._forward(request)  # whoever refuses says why
        silent = {label: reply for label, reply in replies.items() if isinstance(reply, str)}
        return _json(200, merge_live(views, silent))

    async def _ask_all(
        self, path: str, workers: dict[str, Child], headers: Iterable[tuple[str, str]] = ()
    ) -> dict[str, Reply | str]:
        """Each worker's reply, or in words why there is none."""
        replies = await asyncio.gather(*(_ask_or_say(child, path, headers) for child in workers.values()))
        return dict(zip(workers, replies, strict=True))

    async def _forward(self, request: web.BaseRequest) -> web.Response:
        """The admin API of whichever worker takes the request; another one is asked only if it did not."""
        try:
            async with asyncio.timeout(API_S):
                body = await request.content.read(MAX_API_BYTES + 1)
                while len(body) <= MAX_API_BYTES and not request.content.at_eof():
                    body += await request.content.read(MAX_API_BYTES + 1 - len(body))
        except TimeoutError:
            return _refusal(408, "request_timeout", "The request's body came too slowly.")
        if len(body) > MAX_API_BYTES:
            return _refusal(413, "too_large", "The request's body is too large.")
        headers = _pass_on(request)
        # A reply to HEAD has a length and no body, which looks like one that was cut off.
        method = "GET" if request.method == "HEAD" else request.method
        for child in [each for each in self._team.serving().values() if each.ready_now]:
            try:
                reply = await ask(
                    child.admin_path,
                    request.raw_path,
                    method=method,
                    headers=headers,
                    body=body,
                    timeout_s=API_S,
                )
            except UnansweredError as error:
                if error.sent:
                    return _refusal(504, "worker_unanswered", f"Worker {child.index} did not answer: {error}.")
                continue
            kept = [(name, value) for name, value in reply.headers if name.lower() not in _HOP]
            response = web.Response(status=reply.status, body=reply.body)
            response.headers.clear()
            response.headers.extend(kept)
            return response
        return _refusal(503, "no_worker", "No worker is ready.")


def _pass_on(request: web.BaseRequest) -> list[tuple[str, str]]:
    """The fields of a request for a worker, and the name we were asked by, which no connection to it says."""
    named = ASKED_HOST.lower()
    kept = [(name, value) for name, value in request.headers.items() if name.lower() not in (*_HOP, named)]
    return [*kept, (ASKED_HOST, request.headers.get("Host", ""))]


async def _ask_or_say(child: Child, path: str, headers: Iterable[tuple[str, str]] = ()) -> Reply | str:
    try:
        reply = await ask(child.admin_path, path, headers=headers)
    except UnansweredError as error:
        return str(error)
    return reply if reply.status == 200 else f"status {reply.status}"


def _refusal(status: int, code: str, message: str) -> web.Response:
    response = _json(status, {"error": {"code": code, "message": message}})
    if status in (408, 413):
        response.force_close()
    return response


def _json(status: int, value: dict[str, Any]) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    return web.Response(
        status=status, body=orjson.dumps(value), content_type="application/json", headers=headers
    )
