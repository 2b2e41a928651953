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
from proxy.config.flag_changes import FlagChange, FlagEdit, FlagMark, StoredFlags
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
    held_picodollars: int
    """What this holder has leased and not settled in this window by the store's books, this grant included: so a
    grant whose answer was lost is not lost, and a holder that was declared dead learns of it."""
    window: str
    """``2026-11-21``, ``2026-11`` or ``total``."""
    ends_at: float
    """Unix seconds at which the window ends; infinity for ``total``."""
    spent_total: int = 0
    """What the store has heard from this holder in this window: whoever forgot its own totals goes on from these."""
    returned_total: int = 0


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

    async def rotate_key(self, key_id: str, record: KeyRecord, expires_at: float) -> KeyRecord | None:
        """Add ``record``, which may have the name of the old key, and let the old one expire at ``expires_at`` (Unix
        seconds) unless it does so before: both or neither. ``None`` if there is no such key; else as `add_key`."""

    async def changes_since(self, version: int, limit: int = 1000) -> Changes:
        """Records changed after ``version``, oldest change first."""

    async def set_allowance(self, allowance: Allowance) -> Allowance: ...

    async def list_allowances(self) -> list[Allowance]: ...

    async def watch(self, on_change: Callable[[int], None]) -> Watch:
        """Call back with the newest version whenever it grew, and after every loss of news. The callback runs on the
        caller's loop and must not raise."""

    # -- flags -----------------------------------------------------------------------------------------------

    async def read_flags(self, seen: FlagMark | None = None) -> StoredFlags | None:
        """All rules; ``None`` if the last change is still the one of ``seen``."""

    async def change_flags(self, edits: Sequence[FlagEdit], *, who: str, why: str = "") -> list[FlagChange]:
        """Make the rules what the edits say, all or none, and write down by whom and why: one change, of which one
        record for each rule comes back that became another. Where none did there is no change.
        ``StoreError("invalid", transient=False)`` for more than `flag_changes.MAX_RULES` rules in all."""

    async def replace_flags(self, edits: Sequence[FlagEdit], *, who: str, why: str = "") -> list[FlagChange]:
        """The same, and rules that the edits do not name go."""

    async def roll_back_flags(self, to: int | None = None, *, who: str, why: str = "") -> list[FlagChange]:
        """Make all rules what they were after change ``to`` (0: before any), or before the change whose rules hold
        now: another rollback without ``to`` goes one change further. It is a change itself.
        ``StoreError("unknown_change", transient=False)`` where there is no such change."""

    async def list_flag_changes(
        self, *, before: int | None = None, name: str = "", limit: int = 100
    ) -> list[FlagChange]:
        """What was changed, the newest of ``limit`` changes first, from the one before ``before``; with ``name``
        only that flag's rules."""

    # -- budgets ---------------------------------------------------------------------------------------------

    async def lease(
        self, account: str, budget: Budget, holder: str, *, need: int, want: int, lasts_s: float
    ) -> Lease:
        """Take between ``need`` and ``want`` picodollars out of the current window of ``account``'s budget, in one
        step: spent + leased + granted never exceeds the limit. The holder's lease grows by it, and all leases it has
        on this account, of earlier windows as well, last ``lasts_s`` seconds from now unless another call extends
        them (``need`` and ``want`` of 0 extend only; ``need`` of 0 takes what there is up to ``want``). What a dead
        holder had leased counts as spent until the usage of its requests is written; see `settle_dead`.

        Accounts are ``key:<id>``, ``team:<tenant>/<team>`` and ``tenant:<tenant>``. A holder is one process: the
        first 16 characters of the ids of its requests (``req_`` and 12 hex digits)."""

    async def settle(
        self, account: str, window: str, holder: str, *, spent_total: int, returned_total: int
    ) -> None:
        """Tell how much the holder's requests have spent in this window and how much of its leases it has given back,
        both since its first lease there: totals, not differences. The store applies what they grew by since it last
        heard (never a decrease), so a call may be repeated after any failure. What a holder has leased at any time is
        ``max(0, granted - spent - returned)`` by its totals: what it spends beyond its lease is spent all the same
        (the answer is there and has to be paid) and comes out of its next grants. A holder that `settle_dead`
        declared dead may turn out to live: what it reports counts from what the store remembers of it."""

    async def settle_dead(self, account: str, holder: str) -> None:
        """A holder that died, once the usage of its requests was written: in each window its ``spent_total`` becomes
        what the usage rows of its requests (by the start of ``request_id``, the account and the window of ``at``) say
        was billed, if that is more than it told itself, and what is left of its lease is given back. Its totals are
        remembered until the window is over, and `expired_leases` names it no longer."""

    async def expired_leases(self, within_s: float = 0.0) -> list[tuple[str, str, str]]:
        """(account, window, holder) of leases that nobody extended, or that end ``within_s`` unless somebody does;
        a thousand at most, the oldest first."""

    async def spent(self, account: str, budget: Budget) -> tuple[int, int]:
        """(spent, leased) picodollars in the current window."""

    # -- usage -----------------------------------------------------------------------------------------------

    async def write_usage(self, records: Sequence[UsageRecord]) -> int:
        """Write a batch, exactly once by ``request_id``, in one transaction; returns how many were new. A batch may
        be offered again after any failure."""

    async def report(self, name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Run one of the named reports of `store.sql`; ``StoreError("unknown_report", transient=False)`` for another.

        ``usage``: one row for each ``by`` (``day``, ``key``, ``team``, ``tenant``, ``model``, ``provider``,
        ``route``, ``class``, ``tier``, ``role`` or ``all``) of the requests admitted from ``since`` up to and without
        ``until`` (Unix seconds; days are UTC). ``key_id``, ``tenant``, ``team`` and ``model`` leave out all others
        where they are given and not empty; ``limit`` (1000) bounds the rows. Days come in their order, others with
        the most requests first.
        Columns: ``label`` (``2026-11-21``, a key id, …), ``requests``, ``calls`` (made upstream), ``saved_calls``
        (followers, hits and rules' answers), ``hits``, ``patterns``, ``input_tokens``, ``output_tokens``,
        ``cached_input_tokens``, ``upstream_tokens``, ``saved_tokens``, ``cost_picodollars``,
        ``upstream_picodollars``, ``saved_picodollars``, ``pruned_tokens``, ``policy_saved_picodollars``,
        ``shadow_saved_picodollars``, ``errors`` (answered with 500 or above, or broken off), ``refused`` (with 400
        to 498), ``estimated``: all ``int``; ``p50_ms``, ``p95_ms`` of the whole time and ``first_byte_p50_ms``,
        ``overhead_p95_ms``: ``float``.

        ``figures``: what the admin page shows, ``by`` one of `figures_sql.FIGURES`, from ``since`` up to and without
        ``until``; ``limit`` bounds the rows. Columns are sums (``int``), ``sum_ms`` the time of all requests together
        (``float``); ``time`` and ``times`` have ``requests``, ``p50_ms`` and ``p95_ms`` alone.
        """
