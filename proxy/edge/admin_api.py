"""The admin API: JSON over the admin listener, behind a token of its own.

Off until a token is configured. A virtual key, a provider's key or being on the same machine opens nothing here. What
there is to ask and to change are the sections' matter, each of which knows its own pages.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Final, Protocol

import orjson

from proxy.config.keyform import FormError
from proxy.edge import web
from proxy.errors import StoreError

MAX_BODY_BYTES: Final = 64 * 1024
BODY_TIMEOUT_S: Final = 10.0
_STORE_STATUS: Final = {"conflict": 409, "invalid": 400}

ReadForm = Callable[[], Awaitable[dict[str, Any]]]
"""Reads a request's body as a JSON object; an empty one is an empty object. Raises ``ApiError``."""


class Log(Protocol):
    """What the API needs of a logger."""

    def info(self, event: str, /, **fields: Any) -> object: ...


class ApiError(Exception):
    """A request that is not carried out."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers


class Section(Protocol):
    """Some pages below ``/admin/``."""

    @property
    def pages(self) -> Sequence[str]:
        """Their paths, for whoever asks for one that there is not."""

    async def answer(self, request: web.BaseRequest, path: Sequence[str], read: ReadForm) -> web.Response | None:
        """One request with the right token; ``path`` is what follows ``/admin/``, in parts. ``None`` if it is not of
        these pages. Raises ``ApiError``, ``FormError``, ``StoreError``."""


class AdminApi:
    """Answers everything below ``/admin/``."""

    # Mutable: counters.
    def __init__(self, token: str, sections: Sequence[Section], *, body_timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._token = sha256(token.encode()).digest() if token else b""
        self._sections = tuple(sections)
        self._body_timeout_s = body_timeout_s
        self.requests = 0
        self.refused = 0
        """Requests without the right token."""

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """One request. Never raises, but for the cancellation of a client that left."""
        self.requests += 1
        try:
            self.check_token(request)
            return await self._route(request)
        except ApiError as error:
            refusal = _refusal(error.status, error.code, str(error), error.headers)
            if not request.content.is_eof():
                refusal.force_close()  # what is left of the body is no request
            return refusal
        except FormError as error:
            return _refusal(400, "invalid", str(error))
        except StoreError as error:
            return _store_refusal(error)

    @property
    def is_open(self) -> bool:
        """A token is configured."""
        return bool(self._token)

    def check_token(self, request: web.BaseRequest) -> None:
        """Raises ``ApiError`` for a request without the right token, and for all if none is configured."""
        if not self._token:
            text = "The admin API is off. Set SAMEFLIGHT_ADMIN_TOKEN to open it."
            raise ApiError(404, "admin_api_off", text)
        given = request.headers.getall("Authorization", [])
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        presented = sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        if not hmac.compare_digest(presented, self._token) or scheme.lower() != "bearer":
            self.refused += 1
            text = "The admin token is required, as 'Authorization: Bearer …'."
            raise ApiError(401, "admin_token_required", text, **{"WWW-Authenticate": "Bearer"})

    async def _route(self, request: web.BaseRequest) -> web.Response:
        path = request.path.removeprefix("/admin/").split("/")
        read = partial(self._read, request)
        for section in self._sections:
            response = await section.answer(request, path, read)
            if response is not None:
                return response
        pages = [page for section in self._sections for page in section.pages]
        raise ApiError(404, "no_such_page", f"There is no such page; there are {', '.join(pages)}.")

    async def _read(self, request: web.BaseRequest) -> dict[str, Any]:
        """The body as a JSON object; an empty one is an empty object."""
        if request.body_exists and request.content_type != "application/json":
            raise ApiError(415, "not_json", "The body must be application/json.")
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while chunk := await request.content.readany():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise ApiError(413, "too_large", f"The body is larger than {MAX_BODY_BYTES} bytes.")
        except TimeoutError:
            raise ApiError(408, "too_slow", "The body came too slowly.") from None
        try:
            form = orjson.loads(body) if body else {}
        except orjson.JSONDecodeError:
            raise ApiError(400, "not_json", "The body is not valid JSON.") from None
        if not isinstance(form, dict):
            raise ApiError(400, "not_json", "The body must be a JSON object.")
        return form


def check_method(request: web.BaseRequest, *allowed: str) -> None:
    """Raises ``ApiError`` for any other."""
    if request.method not in allowed:
        text = f"Only {', '.join(allowed)} here."
        raise ApiError(405, "method_not_allowed", text, Allow=", ".join(allowed))


def check_query(request: web.BaseRequest, *known: str) -> Mapping[str, str]:
    """The parameters, each at most once. A misspelt filter must not list what it was to leave out."""
    if request.query.keys() - set(known) or len(request.query) != len(set(request.query)):
        text = f"Known parameters are {', '.join(known)}, each once." if known else "No parameters are known here."
        raise ApiError(400, "invalid", text)
    return request.query


def integer(text: str, most: int) -> int:
    """A ``limit``. Raises ``ApiError``."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        raise ApiError(400, "invalid", f"limit is from 1 to {most}.")
    return int(text[:9])


def _store_refusal(error: StoreError) -> web.Response:
    status = _STORE_STATUS.get(error.why, 503)
    text = "The database does not answer; nothing is known to have changed." if status == 503 else "It was refused."
    return _refusal(status, f"store_{error.why}", text)


def _refusal(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return reply(status, {"error": {"code": code, "message": message}}, headers)


def reply(status: int, value: dict[str, Any], headers: Mapping[str, str] | None = None) -> web.Response:
    """``value`` as JSON, which nobody may keep."""
    return web.Response(
        status=status,
        body=orjson.dumps(value),
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )
