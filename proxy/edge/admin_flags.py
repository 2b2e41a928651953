"""The admin API's pages for flags: what is on for whom, changing it, going back, and who changed what.

A change says who makes it: ``admin``, and behind it the name in the header ``x-sameflight-actor``, which the holder
of the token vouches for. It is in force in this process when the answer comes, and in the others within a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from proxy.config.feature_flags import Flags
from proxy.config.flag_changes import FlagChange, FlagEdit
from proxy.config.flag_form import (
    check_name,
    check_words,
    configured_names,
    describe_changes,
    describe_flags,
    doubt_of,
    make_edit,
    read_form,
)
from proxy.config.keyform import FormError
from proxy.config.keys import KeyRecord
from proxy.config.watch import CatalogHolder
from proxy.edge import web
from proxy.edge.admin_api import ApiError, Log, ReadForm, check_method, check_query, integer, reply
from proxy.errors import StoreError

ACTOR: Final = "x-sameflight-actor"
MAX_PAGE: Final = 1_000
_SCOPES: Final = ("tenant", "route", "key")


class FlagStore(Protocol):
    """The database, as far as flags are kept in it. Raises ``StoreError``."""

    async def change_flags(self, edits: Sequence[FlagEdit], *, who: str, why: str = "") -> list[FlagChange]: ...

    async def replace_flags(self, edits: Sequence[FlagEdit], *, who: str, why: str = "") -> list[FlagChange]: ...

    async def roll_back_flags(self, to: int | None = None, *, who: str, why: str = "") -> list[FlagChange]: ...

    async def list_flag_changes(
        self, *, before: int | None = None, name: str = "", limit: int = 100
    ) -> list[FlagChange]: ...

    async def get_key(self, key_id: str) -> KeyRecord | None: ...


class FlagNews(Protocol):
    """What this process knows of the store's rules."""

    @property
    def flags(self) -> Flags: ...

    def age_s(self) -> float: ...

    async def confirm(self) -> None: ...


class FlagPages:
    """Everything about flags. No state."""

    __slots__ = ("_catalogs", "_log", "_news", "_store")

    pages: Final = (
        *("/admin/flags", "/admin/flags/{name}"),
        *("/admin/flags/rollback", "/admin/flags/audit"),
    )

    def __init__(self, store: FlagStore, news: FlagNews, catalogs: CatalogHolder, log: Log) -> None:
        self._store = store
        self._news = news
        self._catalogs = catalogs
        self._log = log

    async def answer(self, request: web.BaseRequest, path: Sequence[str], read: ReadForm) -> web.Response | None:
        """See `Section`."""
        try:
            match path:
                case ["flags"]:
                    return await self._flags(request, read)
                case ["flags", "rollback"]:
                    return await self._roll_back(request, read)
                case ["flags", "audit"]:
                    return await self._audit(request)
                case ["flags", name] if name:
                    return await self._flag(request, name)
        except StoreError as error:
            text = str(error).partition(": ")[2]
            if error.why == "unknown_change":
                raise ApiError(409, "no_such_change", text) from None
            if error.why == "invalid":
                raise FormError(text) from None
            raise
        return None

    async def _flags(self, request: web.BaseRequest, read: ReadForm) -> web.Response:
        check_method(request, "GET", "PATCH", "PUT", "DELETE")
        if request.method == "GET":
            check_query(request)
            return reply(200, self._describe())
        if request.method == "DELETE":
            who, why = _words(request, check_query(request, "why").get("why", ""))
            return await self._done(await self._store.replace_flags((), who=who, why=why), ())
        check_query(request)
        form = await read()
        _check_fields(form, "flags", "why")
        who, why = _words(request, form.get("why", ""))
        edits = read_form(form.get("flags"), empty=request.method == "PUT")
        await self._check_keys(edits)
        change = self._store.replace_flags if request.method == "PUT" else self._store.change_flags
        return await self._done(await change(edits, who=who, why=why), edits)

    async def _flag(self, request: web.BaseRequest, name: str) -> web.Response:
        check_method(request, "GET", "DELETE")
        check_name(name)
        if request.method == "GET":
            check_query(request)
            described = self._describe()
            found = [flag for flag in described["flags"] if flag["name"] == name]
            if not found:
                raise ApiError(404, "no_such_flag", "The catalog has no such guard, and nobody made a rule for it.")
            return reply(200, found[0])
        query = check_query(request, "why", "scope", *_SCOPES)
        who, why = _words(request, query.get("why", ""))
        await self._news.confirm()
        edits = self._to_clear(name, query)
        return await self._done(await self._store.change_flags(edits, who=who, why=why), ())

    def _to_clear(self, name: str, query: Mapping[str, str]) -> list[FlagEdit]:
        """One rule, or without a word about which, every rule of the flag."""
        subjects = [(scope, query[scope]) for scope in _SCOPES if scope in query]
        if "scope" in query:
            if query["scope"] != "global":
                raise FormError("scope: only 'global' stands alone; the others are tenant=…, route=… and key=…")
            subjects.append(("global", ""))
        if subjects:
            return [make_edit(name, scope, subject, None) for scope, subject in subjects]
        rules = self._news.flags.rules()
        return [FlagEdit(name, rule.scope, rule.subject, None) for rule in rules if rule.name == name]

    async def _roll_back(self, request: web.BaseRequest, read: ReadForm) -> web.Response:
        check_method(request, "POST")
        check_query(request)
        form = await read()
        _check_fields(form, "to", "why")
        to = form.get("to")
        if to is not None and (not isinstance(to, int) or isinstance(to, bool) or not 0 <= to < 1 << 63):
            raise FormError("to: the number of a change, or 0 for before any")
        who, why = _words(request, form.get("why", ""))
        return await self._done(await self._store.roll_back_flags(to, who=who, why=why), ())

    async def _audit(self, request: web.BaseRequest) -> web.Response:
        check_method(request, "GET")
        query = check_query(request, "name", "before", "limit")
        limit = integer(query.get("limit", "100"), MAX_PAGE)
        if query.get("name"):
            check_name(query["name"])
        before = query.get("before")
        if before is not None and not (before.isascii() and before.isdigit() and len(before) < 19):
            raise FormError("before: the number of a change")
        changes = describe_changes(
            await self._store.list_flag_changes(
                before=None if before is None else int(before), name=query.get("name", ""), limit=limit
            )
        )
        following = changes[-1]["change"] if len(changes) == limit else None
        return reply(200, {"changes": changes, "next": following})

    # -- both ------------------------------------------------------------------------------------------------

    def _describe(self) -> dict[str, Any]:
        filed, stored = self._catalogs.filed, self._news.flags
        return {
            "version": stored.version,
            "age_s": round(self._news.age_s(), 3),
            "flags": describe_flags(filed.savings, filed.flags, stored),
        }

    async def _check_keys(self, edits: Sequence[FlagEdit]) -> None:
        named = (edit.subject for edit in edits if edit.scope == "key" and edit.percent is not None)
        for key_id in dict.fromkeys(named):
            if await self._store.get_key(key_id) is None:
                raise FormError(f"there is no key {key_id}")

    async def _done(self, changes: Sequence[FlagChange], edits: Sequence[FlagEdit]) -> web.Response:
        """Once this process goes by it."""
        described = describe_changes(changes)
        if changes:
            await self._news.confirm()
            first = changes[0]
            self._log.info(
                "flags_set", change=first.change, rules=len(changes), who=first.who, why=first.why,
                restores=first.restores, via="admin",
            )  # fmt: skip
        configured = configured_names(self._catalogs.current.savings)
        doubts = [doubt_of(name, configured) for name in dict.fromkeys(edit.name for edit in edits)]
        return reply(
            200,
            {
                "change": described[0] if described else None,
                "warnings": [doubt for doubt in doubts if doubt],
                "version": self._news.flags.version,
            },
        )


def _check_fields(form: Mapping[str, Any], *known: str) -> None:
    unknown = sorted(form.keys() - set(known))
    if unknown:
        raise FormError(f"no such field: {', '.join(unknown)[:200]}; there are {', '.join(known)}")


def _words(request: web.BaseRequest, why: object) -> tuple[str, str]:
    """Who makes a change, and why. Raises ``FormError``."""
    given = request.headers.getall(ACTOR, [])
    if len(given) > 1:
        raise FormError(f"{ACTOR}: once")
    if not isinstance(why, str):
        raise FormError("why: text")
    actor = given[0].strip() if given else ""
    try:
        return check_words(f"admin:{actor}" if actor else "admin", why)
    except FormError as error:
        raise FormError(str(error).replace("who:", f"{ACTOR}:")) from None
