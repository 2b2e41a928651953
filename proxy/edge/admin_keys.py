"""The admin API for virtual keys and allowances: JSON over the admin listener, behind a token of its own.

Off until a token is configured. A virtual key, a provider's key or being on the same machine opens nothing here. Each
change is logged with the key's id; a key itself is in one answer, once.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final, Protocol

import orjson
from aiohttp import web

from proxy.access.issuing import Issuer, NoSuchKeyError
from proxy.clock import Clock
from proxy.config.keyform import FormError, describe_allowance, describe_key, parse_age_s
from proxy.config.keys import KeyRecord
from proxy.errors import StoreError

MAX_BODY_BYTES: Final = 64 * 1024
BODY_TIMEOUT_S: Final = 10.0
MAX_PAGE: Final = 1000
_STORE_STATUS: Final = {"conflict": 409, "invalid": 400}


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


class AdminApi:
    """Answers everything below ``/admin/``."""

    # Mutable: counters.
    def __init__(
        self, token: str, issuer: Issuer, clock: Clock, log: Log, *, body_timeout_s: float = BODY_TIMEOUT_S
    ) -> None:
        self._token = sha256(token.encode()).digest() if token else b""
        self._issuer = issuer
        self._clock = clock
        self._log = log
        self._body_timeout_s = body_timeout_s
        self.requests = 0
        self.refused = 0
        """Requests without the right token."""

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """One request. Never raises, but for the cancellation of a client that left."""
        self.requests += 1
        try:
            self._check_token(request)
            return await self._route(request)
        except ApiError as error:
            refusal = _refusal(error.status, error.code, str(error), error.headers)
            if not request.content.is_eof():
                refusal.force_close()  # what is left of the body is no request
            return refusal
        except FormError as error:
            return _refusal(400, "invalid", str(error))
        except NoSuchKeyError as error:
            return _refusal(404, "no_such_key", str(error))
        except StoreError as error:
            return _store_refusal(error)

    def _check_token(self, request: web.BaseRequest) -> None:
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
        match request.path.removeprefix("/admin/").split("/"):
            case ["keys"]:
                return await self._keys(request)
            case ["keys", key_id] if key_id:
                return await self._key(request, key_id)
            case ["keys", key_id, "rotate"] if key_id:
                return await self._rotate(request, key_id)
            case ["allowances"]:
                return await self._allowances(request)
        pages = ["/admin/keys", "/admin/keys/{id}", "/admin/keys/{id}/rotate", "/admin/allowances"]
        raise ApiError(404, "no_such_page", f"There is no such page; there are {', '.join(pages)}.")

    # -- keys ------------------------------------------------------------------------------------------------

    async def _keys(self, request: web.BaseRequest) -> web.Response:
        _check_method(request, "GET", "POST")
        if request.method == "POST":
            form = await self._read(request)
            _check_query(request)
            issued = await self._issuer.create(form)
            self._tell("key_created", issued.record)
            return _answer(201, {**self._describe(issued.record), "key": issued.token})
        query = _check_query(request, "tenant", "team", "revoked", "after", "limit")
        limit = _integer(query.get("limit", "100"), MAX_PAGE)
        page = await self._issuer.keys(
            tenant=query.get("tenant"),
            team=query.get("team"),
            revoked=query.get("revoked", "") in ("1", "true"),
            after=query.get("after", ""),
            limit=limit,
        )
        following = page[-1].id if len(page) == limit else None
        return _answer(200, {"keys": [self._describe(record) for record in page], "next": following})

    async def _key(self, request: web.BaseRequest, key_id: str) -> web.Response:
        _check_method(request, "GET", "PATCH", "DELETE")
        _check_query(request)
        if not key_id.startswith("key_"):
            raise NoSuchKeyError("keys go by their id here")
        if request.method == "GET":
            return _answer(200, self._describe(await self._issuer.find(key_id)))
        if request.method == "PATCH":
            form = await self._read(request)
            record = await self._issuer.change(key_id, form)
            self._tell("key_changed", record, fields=sorted(form))
            return _answer(200, self._describe(record))
        record = await self._issuer.revoke(key_id)
        self._tell("key_revoked", record)
        return _answer(200, self._describe(record))

    async def _rotate(self, request: web.BaseRequest, key_id: str) -> web.Response:
        _check_method(request, "POST")
        _check_query(request)
        if not key_id.startswith("key_"):
            raise NoSuchKeyError("keys go by their id here")
        form = await self._read(request)
        grace = form.get("grace", "0")
        if form.keys() - {"grace"} or not isinstance(grace, str):
            raise FormError("only 'grace' is expected, a time such as '24h'")
        issued = await self._issuer.rotate(key_id, parse_age_s(grace))
        self._tell("key_rotated", issued.record, replaces=key_id)
        return _answer(201, {**self._describe(issued.record), "key": issued.token})

    # -- allowances ------------------------------------------------------------------------------------------

    async def _allowances(self, request: web.BaseRequest) -> web.Response:
        _check_method(request, "GET", "PUT")
        _check_query(request)
        if request.method == "GET":
            known = await self._issuer.allowances()
            return _answer(200, {"allowances": [describe_allowance(each) for each in known]})
        allowance = await self._issuer.set_allowance(await self._read(request))
        self._log.info("allowance_set", kind=allowance.kind, name=allowance.name, via="admin")
        return _answer(200, describe_allowance(allowance))

    # -- both ------------------------------------------------------------------------------------------------

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

    def _describe(self, record: KeyRecord) -> dict[str, Any]:
        return describe_key(record, self._clock.wall())

    def _tell(self, event: str, record: KeyRecord, **more: Any) -> None:
        self._log.info(event, key_id=record.id, tenant=record.tenant, version=record.version, via="admin", **more)


def _check_method(request: web.BaseRequest, *allowed: str) -> None:
    if request.method not in allowed:
        text = f"Only {', '.join(allowed)} here."
        raise ApiError(405, "method_not_allowed", text, Allow=", ".join(allowed))


def _check_query(request: web.BaseRequest, *known: str) -> Mapping[str, str]:
    """The parameters, each at most once. A misspelt filter must not list what it was to leave out."""
    if request.query.keys() - set(known) or len(request.query) != len(set(request.query)):
        text = f"Known parameters are {', '.join(known)}, each once." if known else "No parameters are known here."
        raise ApiError(400, "invalid", text)
    return request.query


def _integer(text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        raise ApiError(400, "invalid", f"limit is from 1 to {most}.")
    return int(text[:9])


def _store_refusal(error: StoreError) -> web.Response:
    if error.why == "conflict":
        return _refusal(409, "conflict", "A valid key of that name exists in this tenant already.")
    status = _STORE_STATUS.get(error.why, 503)
    text = "The database does not answer; nothing is known to have changed." if status == 503 else "It was refused."
    return _refusal(status, f"store_{error.why}", text)


def _refusal(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return _answer(status, {"error": {"code": code, "message": message}}, headers)


def _answer(status: int, value: dict[str, Any], headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=orjson.dumps(value),
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )
