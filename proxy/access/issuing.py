"""Making, changing and ending keys: what the command line and the admin API do, once.

A key's text exists in two places only: the answer to whoever made it, and wherever that person puts it.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

from proxy.access.token import Digester, mint
from proxy.clock import Clock
from proxy.config.keyform import FormError, allowance_of, key_fields, state_of
from proxy.config.keys import Allowance, KeyRecord
from proxy.errors import StoreError

PAGE: Final = 1000


class KeyStore(Protocol):
    """The database, as far as keys and allowances are kept in it. Raises ``StoreError``."""

    async def add_key(self, record: KeyRecord) -> KeyRecord: ...

    async def get_key(self, key_id: str) -> KeyRecord | None: ...

    async def list_keys(
        self,
        *,
        tenant: str | None = None,
        team: str | None = None,
        revoked: bool = False,
        after: str = "",
        limit: int = PAGE,
    ) -> list[KeyRecord]: ...

    async def change_key(self, key_id: str, changes: Mapping[str, Any]) -> KeyRecord | None: ...

    async def set_allowance(self, allowance: Allowance) -> Allowance: ...

    async def list_allowances(self) -> list[Allowance]: ...


class NoSuchKeyError(Exception):
    """There is no key of that id or name, or several of that name; the text says which."""


class Issued(NamedTuple):
    """A new key."""

    record: KeyRecord
    token: str
    """The key itself. Shown once, kept nowhere."""

    def __repr__(self) -> str:
        return f"<Issued {self.record.id}>"


class Issuer:
    """Works on one store; no state. ``on_change`` hears of every record that was written, before the answer is
    given, so that this process does not have to wait for the news."""

    __slots__ = ("_clock", "_digester", "_on_change", "_store")

    def __init__(
        self,
        store: KeyStore,
        digester: Digester,
        clock: Clock,
        on_change: Callable[[KeyRecord], None] | None = None,
    ) -> None:
        self._store = store
        self._digester = digester
        self._clock = clock
        self._on_change = on_change

    async def create(self, form: Mapping[str, Any]) -> Issued:
        """A new key. Raises ``FormError``, and ``StoreError("conflict")`` for a name that is taken."""
        now = self._clock.wall()
        blank = KeyRecord(id="", digest=b"", name="", created_at=now)
        return await self._add(blank, key_fields(form, blank, now))

    async def change(self, name: str, form: Mapping[str, Any], tenant: str | None = None) -> KeyRecord:
        """Change what is said about a key. Raises ``FormError``, ``NoSuchKeyError``, ``StoreError``."""
        record = await self.find(name, tenant)
        fields = key_fields(form, record, self._clock.wall())
        return await self._change(record.id, fields) if fields else record

    async def revoke(self, name: str, tenant: str | None = None) -> KeyRecord:
        """End a key for good; again is no error. Raises ``NoSuchKeyError``, ``StoreError``."""
        record = await self.find(name, tenant)
        if record.revoked_at:
            return record
        return await self._change(record.id, {"revoked_at": self._clock.wall()})

    async def rotate(self, name: str, grace_s: float, tenant: str | None = None) -> Issued:
        """A new key in place of an old one, which ends after ``grace_s`` seconds (0: now) under another name.

        The new one is there before the old one changes: whatever fails in between, somebody has a key that works.
        Raises ``FormError`` for a key that has ended, ``NoSuchKeyError``, ``StoreError``.
        """
        old = await self.find(name, tenant)
        now = self._clock.wall()
        if state_of(old, now) != "valid":
            raise FormError("a key that has ended cannot be rotated; make a new one")
        blank = KeyRecord(id="", digest=b"", name="", created_at=now)
        fields = {each: getattr(old, each) for each in _COPIED}
        new = await self._add(blank, {**fields, "name": f"{old.name[:150]} (new {secrets.token_hex(4)})"})
        ends_at = min(now + grace_s, old.expires_at or now + grace_s)
        ending = {"expires_at": ends_at} if grace_s else {"revoked_at": now}
        try:
            await self._change(old.id, {**ending, "name": f"{old.name[:150]} (until rotated, {old.id[-8:]})"})
        except StoreError:
            with suppress(StoreError):
                await self._change(new.record.id, {"revoked_at": now})
            raise
        try:
            return Issued(await self._change(new.record.id, {"name": old.name}), new.token)
        except StoreError:
            return new  # works as well under the name that it has

    async def find(self, name: str, tenant: str | None = None) -> KeyRecord:
        """The key of an id, revoked or not, or the one of this name that is not revoked. Raises ``NoSuchKeyError``,
        ``StoreError``."""
        record = await self._store.get_key(name) if name.startswith("key_") else None
        if record is not None and tenant in (None, record.tenant):
            return record
        now = self._clock.wall()
        named = [each async for each in self._all(tenant) if each.name == name]
        found = [each for each in named if state_of(each, now) == "valid"] or named
        if len(found) == 1:
            return found[0]
        if found:
            raise NoSuchKeyError(f"several keys are called '{name}': {', '.join(each.id for each in found)}")
        raise NoSuchKeyError(f"there is no key '{name}' that is not revoked")

    async def _all(self, tenant: str | None) -> AsyncIterator[KeyRecord]:
        after = ""
        while page := await self._store.list_keys(tenant=tenant, after=after, limit=PAGE):
            for record in page:
                yield record
            after = page[-1].id

    # -- allowances ------------------------------------------------------------------------------------------

    async def set_allowance(self, form: Mapping[str, Any]) -> Allowance:
        """Set limits and budget of a team or tenant; what the form leaves out stays. Raises ``FormError``,
        ``StoreError``."""
        known = {(each.kind, each.name): each for each in await self._store.list_allowances()}
        return await self._store.set_allowance(allowance_of(form, known))

    async def allowances(self) -> list[Allowance]:
        """All of them. Raises ``StoreError``."""
        return await self._store.list_allowances()

    async def keys(
        self, *, tenant: str | None, team: str | None, revoked: bool, after: str, limit: int
    ) -> list[KeyRecord]:
        """A page in the order of ids. Raises ``StoreError``."""
        return await self._store.list_keys(tenant=tenant, team=team, revoked=revoked, after=after, limit=limit)

    # -- writing ---------------------------------------------------------------------------------------------

    async def _add(self, blank: KeyRecord, fields: Mapping[str, Any]) -> Issued:
        token = mint()
        values = {name: getattr(blank, name) for name in KeyRecord.__struct_fields__} | dict(fields)
        values |= {"id": f"key_{secrets.token_hex(8)}", "digest": self._digester.digest(token)}
        record = await self._store.add_key(KeyRecord(**values))
        self._tell(record)
        return Issued(record, token.decode())

    async def _change(self, key_id: str, changes: Mapping[str, Any]) -> KeyRecord:
        record = await self._store.change_key(key_id, changes)
        if record is None:
            raise NoSuchKeyError(f"there is no key '{key_id}'")
        self._tell(record)
        return record

    def _tell(self, record: KeyRecord) -> None:
        if self._on_change is not None:
            self._on_change(record)


_COPIED: Final = (
    "tenant", "team", "models", "routes", "limits", "budget", "scope", "cache", "charge", "expires_at", "tags",
)
