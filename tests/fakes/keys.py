"""Keys without a database: a source that counts its questions, waits at gates and fails when it is told to."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import msgspec

from proxy.access.token import Digester, mint
from proxy.config.keys import Allowance, KeyRecord
from proxy.errors import StoreError
from proxy.store.base import Changes

PEPPER = b"a pepper for tests only"
DIGESTER = Digester(PEPPER)


def make_token(number: int) -> bytes:
    """The same well-formed key for the same number."""
    return mint(number.to_bytes(32, "big"))


class FakeWatch:
    """A subscription whose death a test decides."""

    def __init__(self) -> None:
        self.alive = True
        self.closed = False

    async def close(self) -> None:
        self.closed = True


class QuietLog:
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, /, **fields: Any) -> None:
        self.events.append((event, fields))

    warning = error = info

    @property
    def names(self) -> list[str]:
        return [event for event, _ in self.events]


class FakeKeys:
    """The part of a store that deals with keys and allowances, in memory."""

    def __init__(self) -> None:
        self.by_id: dict[str, KeyRecord] = {}
        self._ids: dict[bytes, str] = {}
        self._history: list[tuple[int, str]] = []
        self.allowances: dict[tuple[str, str], Allowance] = {}
        self.version = 0
        self.finds = 0
        self.questions = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        """Raised by every question while it is set."""
        self.listeners: list[Callable[[int], None]] = []
        self.watches: list[FakeWatch] = []
        self.deaf = False
        """Changes are not told."""

    # -- for tests -------------------------------------------------------------------------------------------------

    def put(self, token: bytes, **fields: Any) -> KeyRecord:
        """Add or replace the key of a token, behind everybody's back."""
        digest = DIGESTER.digest(token)
        key_id = self._ids.get(digest, f"key_{len(self.by_id):016x}")
        base = self.by_id.get(key_id) or KeyRecord(id=key_id, digest=digest, name=key_id)
        return self._store(msgspec.structs.replace(base, **fields))

    def _store(self, record: KeyRecord) -> KeyRecord:
        self.version += 1
        record = msgspec.structs.replace(record, version=self.version)
        self.by_id[record.id] = record
        self._ids[record.digest] = record.id
        self._history.append((record.version, record.id))
        return record

    def tell(self) -> None:
        """Tell everybody who listens that something changed."""
        if not self.deaf:
            for listener in list(self.listeners):
                listener(self.version)

    async def _answer(self) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    # -- store.base.Store ------------------------------------------------------------------------------------------

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        self.finds += 1
        found = self.by_id.get(self._ids.get(digest, ""))
        await self._answer()
        return found

    async def get_key(self, key_id: str) -> KeyRecord | None:
        await self._answer()
        return self.by_id.get(key_id)

    async def add_key(self, record: KeyRecord) -> KeyRecord:
        await self._answer()
        for each in self.by_id.values():
            same_name = (each.tenant, each.name) == (record.tenant, record.name) and not each.revoked_at
            if each.id == record.id or each.digest == record.digest or same_name:
                raise StoreError("conflict", transient=False)
        stored = self._store(record)
        self.tell()
        return stored

    async def list_keys(
        self,
        *,
        tenant: str | None = None,
        team: str | None = None,
        revoked: bool = False,
        after: str = "",
        limit: int = 1000,
    ) -> list[KeyRecord]:
        await self._answer()
        found = [
            each
            for key_id, each in sorted(self.by_id.items())
            if key_id > after
            and (tenant is None or each.tenant == tenant)
            and (team is None or each.team == team)
            and (revoked or not each.revoked_at)
        ]
        return found[:limit]

    async def change_key(self, key_id: str, changes: Mapping[str, Any]) -> KeyRecord | None:
        await self._answer()
        if key_id not in self.by_id:
            return None
        changed = self._store(msgspec.structs.replace(self.by_id[key_id], **changes))
        self.tell()
        return changed

    async def changes_since(self, version: int, limit: int = 1000) -> Changes:
        self.questions += 1
        now = self.version
        page: list[KeyRecord] = []
        for made, key_id in islice(self._history, bisect_right(self._history, (version, "~")), None):
            record = self.by_id.get(key_id)
            if record is not None and record.version == made:
                page.append(record)
                if len(page) == limit:
                    break
        allowances = [each for each in self.allowances.values() if each.version > version]
        await self._answer()
        return Changes(page, allowances, page[-1].version if len(page) == limit else now)

    async def set_allowance(self, allowance: Allowance) -> Allowance:
        await self._answer()
        self.version += 1
        stored = msgspec.structs.replace(allowance, version=self.version)
        self.allowances[stored.kind, stored.name] = stored
        self.tell()
        return stored

    async def list_allowances(self) -> list[Allowance]:
        await self._answer()
        return [each for _, each in sorted(self.allowances.items())]

    async def watch(self, on_change: Callable[[int], None]) -> FakeWatch:
        await self._answer()
        self.listeners.append(on_change)
        watch = FakeWatch()
        self.watches.append(watch)
        return watch

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to give back."""
