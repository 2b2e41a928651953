"""The seam to a database: keys, budgets and usage, for SQLite and PostgreSQL alike.

Nothing on a request's path awaits a store: keys come from memory, budgets from leases, usage goes through a spool.
Every method raises ``StoreError`` and nothing else (but ``CancelledError``), within the store's own time-outs. Both
implementations pass ``tests/seams/test_store.py``.

Time in budgets is the store's: windows are named by it, so that no process's clock can open a new one early.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from proxy.accounting.record import UsageRecord
from proxy.config.keys import Allowance, Budget, KeyRecord


class Changes(NamedTuple):
    """What changed since a version."""

    keys: list[KeyRecord]
    allowances: list[Allowance]
    version: int
    """Ask from here the next time."""


class Lease(NamedTuple):
    """A part of a budget that was taken out of it for one process."""

    picodollars: int
    """Granted; 0 when less than was needed is left."""
    rest_picodollars: int
    """What nobody has spent or leased after this."""
    leased_picodollars: int
    """Leased by all holders together and not settled; some of it may come back."""
    window: str
    """``2026-11-21``, ``2026-11`` or ``total``."""
    ends_at: float
    """Unix seconds at which the window ends; infinity for ``total``."""


class Watch(Protocol):
    """A subscription to changes of keys and allowances."""

    @property
    def alive(self) -> bool:
        """Whether news arrive by themselves at the moment; if not, the caller polls."""

    async def close(self) -> None: ...


class Store(Protocol):
    """One database."""

    async def open(self) -> None:
        """Connect and check the schema: an older one is migrated where the store was told so, a newer one is refused
        (``StoreError("schema", transient=False)``)."""

    async def close(self) -> None: ...

    def describe(self) -> dict[str, Any]:
        """For the admin port: kind, whether it answers, schema version, counters. No secret."""

    # -- keys ------------------------------------------------------------------------------------------------

    async def add_key(self, record: KeyRecord) -> KeyRecord:
        """Insert; returns the record with its version. ``StoreError("conflict", transient=False)`` for a known id or
        digest, or a name that a valid key of the same tenant has."""

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        """By what was presented; revoked and expired ones too."""

    async def get_key(self, key_id: str) -> KeyRecord | None: ...

    async def list_keys(
        self,
        *,
        tenant: str | None = None,
        team: str | None = None,
        revoked: bool = False,
        after: str = "",
        limit: int = 1000,
    ) -> list[KeyRecord]:
        """In the order of ids, from the one behind ``after``; with ``revoked`` those as well."""

    async def change_key(self, key_id: str, changes: Mapping[str, Any]) -> KeyRecord | None:
        """Set fields of a record (any but ``id``, ``created_at``, ``version``); ``None`` if there is no such key. A
        revocation sets ``revoked_at``, a rotation adds a record and expires the old one."""

    async def changes_since(self, version: int, limit: int = 1000) -> Changes:
        """Records changed after ``version``, oldest change first."""

    async def set_allowance(self, allowance: Allowance) -> Allowance: ...

    async def list_allowances(self) -> list[Allowance]: ...

    async def watch(self, on_change: Callable[[int], None]) -> Watch:
        """Call back with the newest version whenever it grew, and after every loss of news. The callback runs on the
        caller's loop and must not raise."""

    # -- budgets ---------------------------------------------------------------------------------------------

    async def lease(
        self, account: str, budget: Budget, holder: str, *, need: int, want: int, lasts_s: float
    ) -> Lease:
        """Take between ``need`` and ``want`` picodollars out of the current window of ``account``'s budget, in one
        step: spent + leased + granted never exceeds the limit. The holder's lease grows by it and lasts ``lasts_s``
        seconds from now unless it is extended by another call (``need`` and ``want`` of 0 extend only). What a dead
        holder had leased counts as spent until the usage of its requests is written; see `settle_dead`."""

    async def settle(self, account: str, window: str, holder: str, *, spent: int, returned: int) -> None:
        """Turn ``spent`` of the holder's lease into money spent and give ``returned`` back. Spending more than is
        leased is allowed here (the answer is there and has to be paid) and shows in ``spent``."""

    async def settle_dead(self, account: str, holder: str) -> None:
        """A holder that died: its lease is given back. What its requests spent is added by the caller from their
        usage records with ``settle`` first."""

    async def expired_leases(self) -> list[tuple[str, str, str]]:
        """(account, window, holder) of leases that nobody extended."""

    async def spent(self, account: str, budget: Budget) -> tuple[int, int]:
        """(spent, leased) picodollars in the current window."""

    # -- usage -----------------------------------------------------------------------------------------------

    async def write_usage(self, records: Sequence[UsageRecord]) -> int:
        """Write a batch, exactly once by ``request_id``, in one transaction; returns how many were new. A batch may
        be offered again after any failure."""

    async def report(self, name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Run one of the named reports of `store.sql`."""
