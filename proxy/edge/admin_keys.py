"""The admin API's pages for virtual keys and allowances.

Each change is logged with the key's id; a key itself is in one answer, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from proxy.access.issuing import Issuer, NoSuchKeyError
from proxy.clock import Clock
from proxy.config.keyform import FormError, describe_allowance, describe_key, parse_age_s
from proxy.config.keys import KeyRecord
from proxy.edge import web
from proxy.edge.admin_api import ApiError, Log, ReadForm, check_method, check_query, integer, reply
from proxy.errors import StoreError

MAX_PAGE: Final = 1000


class KeyPages:
    """Everything about keys and allowances. No state."""

    __slots__ = ("_clock", "_issuer", "_log")

    pages: Final = ("/admin/keys", "/admin/keys/{id}", "/admin/keys/{id}/rotate", "/admin/allowances")

    def __init__(self, issuer: Issuer, clock: Clock, log: Log) -> None:
        self._issuer = issuer
        self._clock = clock
        self._log = log

    async def answer(self, request: web.BaseRequest, path: Sequence[str], read: ReadForm) -> web.Response | None:
        """See `Section`."""
        try:
            return await self._route(request, path, read)
        except NoSuchKeyError as error:
            raise ApiError(404, "no_such_key", str(error)) from None
        except StoreError as error:
            if error.why != "conflict":
                raise
            raise ApiError(409, "conflict", "A valid key of that name exists in this tenant already.") from None

    async def _route(self, request: web.BaseRequest, path: Sequence[str], read: ReadForm) -> web.Response | None:
        match path:
            case ["keys"]:
                return await self._keys(request, read)
            case ["keys", key_id] if key_id:
                return await self._key(request, key_id, read)
            case ["keys", key_id, "rotate"] if key_id:
                return await self._rotate(request, key_id, read)
            case ["allowances"]:
                return await self._allowances(request, read)
        return None

    # -- keys ------------------------------------------------------------------------------------------------

    async def _keys(self, request: web.BaseRequest, read: ReadForm) -> web.Response:
        check_method(request, "GET", "POST")
        if request.method == "POST":
            form = await read()
            check_query(request)
            issued = await self._issuer.create(form)
            self._tell("key_created", issued.record)
            return reply(201, {**self._describe(issued.record), "key": issued.token})
        query = check_query(request, "tenant", "team", "revoked", "after", "limit")
        limit = integer(query.get("limit", "100"), MAX_PAGE)
        page = await self._issuer.keys(
            tenant=query.get("tenant"),
            team=query.get("team"),
            revoked=query.get("revoked", "") in ("1", "true"),
            after=query.get("after", ""),
            limit=limit,
        )
        following = page[-1].id if len(page) == limit else None
        return reply(200, {"keys": [self._describe(record) for record in page], "next": following})

    async def _key(self, request: web.BaseRequest, key_id: str, read: ReadForm) -> web.Response:
        check_method(request, "GET", "PATCH", "DELETE")
        check_query(request)
        if not key_id.startswith("key_"):
            raise NoSuchKeyError("keys go by their id here")
        if request.method == "GET":
            return reply(200, self._describe(await self._issuer.find(key_id)))
        if request.method == "PATCH":
            form = await read()
            record = await self._issuer.change(key_id, form)
            self._tell("key_changed", record, fields=sorted(form))
            return reply(200, self._describe(record))
        record = await self._issuer.revoke(key_id)
        self._tell("key_revoked", record)
        return reply(200, self._describe(record))

    async def _rotate(self, request: web.BaseRequest, key_id: str, read: ReadForm) -> web.Response:
        check_method(request, "POST")
        check_query(request)
        if not key_id.startswith("key_"):
            raise NoSuchKeyError("keys go by their id here")
        form = await read()
        grace = form.get("grace", "0")
        if form.keys() - {"grace"} or not isinstance(grace, str):
            raise FormError("only 'grace' is expected, a time such as '24h'")
        issued = await self._issuer.rotate(key_id, parse_age_s(grace))
        self._tell("key_rotated", issued.record, replaces=key_id)
        return reply(201, {**self._describe(issued.record), "key": issued.token})

    # -- allowances ------------------------------------------------------------------------------------------

    async def _allowances(self, request: web.BaseRequest, read: ReadForm) -> web.Response:
        check_method(request, "GET", "PUT")
        check_query(request)
        if request.method == "GET":
            known = await self._issuer.allowances()
            return reply(200, {"allowances": [describe_allowance(each) for each in known]})
        allowance = await self._issuer.set_allowance(await read())
        self._log.info("allowance_set", kind=allowance.kind, name=allowance.name, via="admin")
        return reply(200, describe_allowance(allowance))

    # -- both ------------------------------------------------------------------------------------------------

    def _describe(self, record: KeyRecord) -> dict[str, Any]:
        return describe_key(record, self._clock.wall())

    def _tell(self, event: str, record: KeyRecord, **more: Any) -> None:
        self._log.info(event, key_id=record.id, tenant=record.tenant, version=record.version, via="admin", **more)
