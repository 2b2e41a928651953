"""The methods of a store, each bound to its steps; what runs steps in a transaction is the database's own matter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from proxy.accounting.record import UsageRecord
from proxy.config.flag_changes import FlagChange, FlagEdit, FlagMark, StoredFlags
from proxy.config.keys import Allowance, Budget, KeyRecord
from proxy.errors import StoreError
from proxy.store import flag_steps, steps
from proxy.store.base import Changes, Lease, Watch
from proxy.store.rows import Values, fitting, usage_rows

T = TypeVar("T")

MAX_BATCH: Final = 50_000
"""Most usage records in one call."""


class Work(NamedTuple):
    """How steps want to be run."""

    timeout_s: float
    """From the call to its result; waiting for a connection is part of it."""
    writes: bool = False
    repeatable: bool = True
    """It may be run again when the answer to its commit was lost: twice does no harm that once does not."""


LOOK: Final = Work(1.0)
"""A read for which somebody waits: an unknown key."""
READ: Final = Work(5.0)
CHANGE: Final = Work(3.0, writes=True)
ADD: Final = Work(3.0, writes=True, repeatable=False)
SWITCH: Final = Work(10.0, writes=True, repeatable=False)
MONEY: Final = Work(3.0, writes=True)
BATCH: Final = Work(15.0, writes=True)
REPORT: Final = Work(60.0)


class DrivenStore(ABC):
    """Everything of ``base.Store`` but how it is run."""

    # Mutable state: counters, written on the loop's thread only.
    def __init__(self) -> None:
        self.rows_written = 0
        self.rows_replayed = 0
        """Usage rows that were there already."""
        self.rows_mended = 0
        """Usage rows that the database took only after what it cannot hold was replaced."""
        self.errors: dict[str, int] = {}
        """``StoreError.why`` → how often."""

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    def describe(self) -> dict[str, Any]: ...

    @abstractmethod
    async def watch(self, on_change: Callable[[int], None]) -> Watch: ...

    @abstractmethod
    async def _drive(self, make_steps: Callable[[], steps.Steps[T]], work: Work) -> T:
        """Run steps in one transaction. Raises ``StoreError``."""

    @abstractmethod
    async def _insert_usage(self, rows: list[Values]) -> int:
        """Write rows in one transaction; how many were new. ``StoreError("invalid")`` for what does not fit."""

    async def _run(self, make_steps: Callable[[], steps.Steps[T]], work: Work) -> T:
        try:
            return await self._drive(make_steps, work)
        except StoreError as error:
            self._count(error)
            raise

    def _count(self, error: StoreError) -> None:
        self.errors[error.why] = self.errors.get(error.why, 0) + 1

    def _counters(self) -> dict[str, Any]:
        return {
            "rows_written": self.rows_written,
            "rows_replayed": self.rows_replayed,
            "rows_mended": self.rows_mended,
            "errors": dict(self.errors),
        }

    # -- keys ------------------------------------------------------------------------------------------------

    async def add_key(self, record: KeyRecord) -> KeyRecord:
        return await self._run(partial(steps.add_key, record), ADD)

    async def rotate_key(self, key_id: str, record: KeyRecord, expires_at: float) -> KeyRecord | None:
        return await self._run(partial(steps.rotate_key, key_id, record, expires_at), ADD)

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        return await self._run(partial(steps.find_key, digest), LOOK)

    async def get_key(self, key_id: str) -> KeyRecord | None:
        return await self._run(partial(steps.get_key, key_id), READ)

    async def list_keys(
        self,
        *,
        tenant: str | None = None,
        team: str | None = None,
        revoked: bool = False,
        after: str = "",
        limit: int = 1000,
    ) -> list[KeyRecord]:
        return await self._run(partial(steps.list_keys, tenant, team, revoked, after, limit), READ)

    async def change_key(self, key_id: str, changes: Mapping[str, Any]) -> KeyRecord | None:
        return await self._run(partial(steps.change_key, key_id, dict(changes)), CHANGE)

    async def changes_since(self, version: int, limit: int = 1000) -> Changes:
        return await self._run(partial(steps.changes_since, version, limit), READ)

    async def set_allowance(self, allowance: Allowance) -> Allowance:
        return await self._run(partial(steps.set_allowance, allowance), CHANGE)

    async def list_allowances(self) -> list[Allowance]:
        return await self._run(steps.list_allowances, READ)

    # -- flags -----------------------------------------------------------------------------------------------

    async def read_flags(self, seen: FlagMark | None = None) -> StoredFlags | None:
        return await self._run(partial(flag_steps.read_flags, seen), READ)

    async def change_flags(self, edits: Sequence[FlagEdit], *, who: str, why: str = "") -> list[FlagChange]:
        return await self._run(partial(flag_steps.change_flags, tuple(edits), who, why), SWITCH)

    async def replace_flags(self, edits: Sequence[FlagEdit], *, who: str, why: str = "") -> list[FlagChange]:
        return await self._run(partial(flag_steps.replace_flags, tuple(edits), who, why), SWITCH)

    async def roll_back_flags(self, to: int | None = None, *, who: str, why: str = "") -> list[FlagChange]:
        return await self._run(partial(flag_steps.roll_back_flags, to, who, why), SWITCH)

    async def list_flag_changes(
        self, *, before: int | None = None, name: str = "", limit: int = 100
    ) -> list[FlagChange]:
        return await self._run(partial(flag_steps.list_flag_changes, before, name, limit), READ)

    # -- budgets ---------------------------------------------------------------------------------------------

    async def lease(
        self, account: str, budget: Budget, holder: str, *, need: int, want: int, lasts_s: float
    ) -> Lease:
        return await self._run(
            partial(steps.lease, account, budget, holder, need=need, want=want, lasts_s=lasts_s), MONEY
        )

    async def settle(
        self, account: str, window: str, holder: str, *, spent_total: int, returned_total: int
    ) -> None:
        totals = {"spent_total": spent_total, "returned_total": returned_total}
        await self._run(partial(steps.settle, account, window, holder, **totals), MONEY)

    async def settle_dead(self, account: str, holder: str) -> None:
        await self._run(partial(steps.settle_dead, account, holder), BATCH)

    async def expired_leases(self, within_s: float = 0.0) -> list[tuple[str, str, str]]:
        return await self._run(partial(steps.expired_leases, within_s), READ)

    async def spent(self, account: str, budget: Budget) -> tuple[int, int]:
        return await self._run(partial(steps.spent, account, budget), READ)

    # -- usage -----------------------------------------------------------------------------------------------

    async def write_usage(self, records: Sequence[UsageRecord]) -> int:
        if len(records) > MAX_BATCH:
            raise StoreError("invalid", f"a batch is at most {MAX_BATCH} records", transient=False)
        if not records:
            return 0
        rows = usage_rows(records)
        try:
            new = await self._write(rows)
        except StoreError as error:
            self._count(error)
            raise
        self.rows_written += new
        self.rows_replayed += len(rows) - new
        return new

    async def _write(self, rows: list[Values]) -> int:
        try:
            return await self._insert_usage(rows)
        except StoreError as error:
            if error.why != "invalid":
                raise
        mended = [fitting(row) for row in rows]
        self.rows_mended += sum(before != after for before, after in zip(rows, mended, strict=True))
        return await self._insert_usage(mended)

    async def report(self, name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        query = steps.report_query(name, parameters)
        return await self._run(partial(steps.report, query), REPORT)
