"""The admin page: static files of the package, and the figures and the state that they show.

The files are the same for everybody and hold nothing. Figures and state are for whoever has the admin token; where
none is configured, for whoever asks a loopback listener by a loopback name, so that no page of the web can have a
browser read them through a name of its own that points here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from proxy.edge import web
from proxy.edge.admin_api import AdminApi, ApiError, check_method, check_query, reply
from proxy.edge.admin_figures import Figures

PAGE: Final = "/dashboard"
ASKED_HOST: Final = "X-Sameflight-Asked-Host"
"""By which name the parent of many workers was asked, for whom it asks over a Unix socket."""
FILES: Final = Path(__file__).parent / "dashboard"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# Scripts and styles are files of ours; nothing may be loaded from, sent to or shown inside anybody else's pages.
_SECURITY: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class _File(NamedTuple):
    body: bytes
    content_type: str
    etag: str


def is_page(path: str) -> bool:
    """Whether a path belongs to the page."""
    return path in ("/", PAGE) or path.startswith(PAGE + "/")


def is_loopback(host: str) -> bool:
    """Whether an address or a name is this machine's own, whatever a name server says."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_loopback(authority: str) -> bool:
    """Whether a ``Host`` field, with or without a port, names this machine."""
    try:
        return is_loopback(urlsplit("//" + authority).hostname or "")
    except ValueError:
        return False


class AdminPage:
    """Answers ``/``, ``/dashboard`` and everything below."""

    # Mutable state: the files, read when the first of them is asked for; `refused`.
    def __init__(
        self, api: AdminApi, figures: Figures, read_live: Callable[[], dict[str, Any]], *, listens_locally: bool
    ) -> None:
        """``listens_locally``: the admin listener is on a loopback address."""
        self._api = api
        self.figures = figures
        self._read_live = read_live
        self._listens_locally = listens_locally
        self._files: dict[str, _File] = {}
        self.refused = 0
        """Requests for figures that were not for whoever asked."""

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """One request. Never raises, but for the cancellation of a client that left."""
        try:
            return await self._answer(request)
        except ApiError as error:
            body = {"error": {"code": error.code, "message": str(error)}}
            return reply(error.status, body, error.headers)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        check_method(request, "GET", "HEAD")
        match request.path.removeprefix(PAGE):
            case "/":
                # Relative, so that it also holds behind a prefix.
                target = "dashboard" if request.path == "/" else "../dashboard"
                return web.Response(status=302, headers={"Location": target, "Cache-Control": "no-store"})
            case "/figures":
                self._admit(request)
                check_query(request)
                return await self._show_figures()
            case "/live":
                self._admit(request)
                check_query(request)
                return reply(200, self._read_live())
        return self._show_file(request)

    def _admit(self, request: web.BaseRequest) -> None:
        """Raises ``ApiError``."""
        if self._api.is_open:
            self._api.check_token(request)
        elif not self._listens_locally:
            self.refused += 1
            text = "Figures are closed: others can reach the admin port, and no SAMEFLIGHT_ADMIN_TOKEN is set."
            raise ApiError(403, "admin_token_not_set", text)
        elif not names_loopback(request.headers.get(ASKED_HOST if _comes_from_parent(request) else "Host", "")):
            self.refused += 1
            text = "Without an admin token, figures are for localhost and 127.0.0.1 by that name only."
            raise ApiError(403, "not_a_local_name", text)

    async def _show_figures(self) -> web.Response:
        figures, trouble = await self.figures.get()
        if not trouble:
            return reply(200, {"figures": figures, "stale": False})
        error = {"code": "figures_unavailable", "message": trouble}
        return reply(503, {"error": error, "figures": figures, "stale": figures is not None})

    # -- files -----------------------------------------------------------------------------------------------------

    def _show_file(self, request: web.BaseRequest) -> web.Response:
        files = self._files
        if not files:
            files = self._files = _read_files()
        name = request.path.removeprefix(PAGE).removeprefix("/") or "index.html"
        file = files.get(name)
        if file is None:
            raise ApiError(404, "no_such_page", "The admin page has no such file.")
        # Asked about each time and sent again only when it has changed: a new release is there at once.
        headers = {"ETag": file.etag, "Cache-Control": "no-cache", **_SECURITY}
        if file.etag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.body, headers={"Content-Type": file.content_type, **headers})


def _comes_from_parent(request: web.BaseRequest) -> bool:
    """Over the Unix socket of a worker."""
    transport = request.transport
    return transport is not None and isinstance(transport.get_extra_info("sockname"), str | bytes)


def _read_files() -> dict[str, _File]:
    """All that may be asked for, by path; a few small files."""
    found = {}
    for path in sorted(FILES.rglob("*")):
        kind = _TYPES.get(path.suffix)
        if kind is not None and path.is_file():
            body = path.read_bytes()
            etag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
            found[path.relative_to(FILES).as_posix()] = _File(body, kind, etag)
    return found
