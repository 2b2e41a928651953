"""What the store does, statement by statement, for every database alike.

Each function is a generator: it yields a statement with its values, is sent the rows, and returns the result. A
driver runs it inside one transaction and may run it anew from the start when that failed.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from proxy.config.keys import Allowance, Budget, KeyRecord
from proxy.errors import StoreError
from proxy.store import sql
from proxy.store.base import Changes, Lease
from proxy.store.figures_sql import FIGURES
from proxy.store.rows import Row, Values, allowance_of, allowance_values, key_of, key_values, report_of
from proxy.store.windows import Window, bounds_of, window_at

T = TypeVar("T")
Steps = Generator[tuple[sql.Statement, Values], list[Row], T]

MAX_PAGE: Final = 10_000
MAX_REPORT_ROWS: Final = 100_000
_EXPIRED_AT_ONCE: Final = 1_000
_WINDOWS_KEPT_S: Final = 100 * 86_400.0
_LEASES_KEPT_S: Final = 400 * 86_400.0
_FAR: Final = 1e15
# Request ids go on in hexadecimal digits behind the sixteen characters of their process.
_BEYOND_HEX: Final = "g"
_FIXED: Final = frozenset(("id", "created_at", "version"))


def now() -> Steps[float]:
    return float((yield sql.NOW, ())[0]["now"])


# -- keys ------------------------------------------------------------------------------------------------------


def add_key(record: KeyRecord) -> Steps[KeyRecord]:
    yield sql.LOCK_RECORDS, ()
    yield from _check_name(record)
    yield sql.ADD_KEY, key_values(record)
    return key_of((yield sql.GET_KEY, (record.id,))[0])


def rotate_key(key_id: str, record: KeyRecord, expires_at: float) -> Steps[KeyRecord | None]:
    yield sql.LOCK_RECORDS, ()
    rows = yield sql.LOCK_KEY, (key_id,)
    if not rows:
        return None
    old = key_of(rows[0])
    until = min(expires_at, old.expires_at or math.inf)
    yield sql.CHANGE_KEY, key_values(_replace(old, {"expires_at": until}))
    yield from _check_name(record, but=key_id)
    yield sql.ADD_KEY, key_values(record)
    return key_of((yield sql.GET_KEY, (record.id,))[0])


def _check_name(record: KeyRecord, but: str = "") -> Steps[None]:
    at = yield from now()
    for holder in (yield sql.VALID_NAME, (record.tenant, record.name, at, but or record.id)):
        raise StoreError("conflict", f"{holder['id']} has the name {record.name!r}", transient=False)


def change_key(key_id: str, changes: Mapping[str, Any]) -> Steps[KeyRecord | None]:
    wrong = _FIXED.intersection(changes) or set(changes).difference(KeyRecord.__struct_fields__)
    if wrong:
        raise StoreError("invalid", f"cannot change {', '.join(sorted(wrong))}", transient=False)
    yield sql.LOCK_RECORDS, ()
    rows = yield sql.LOCK_KEY, (key_id,)
    if not rows:
        return None
    old = key_of(rows[0])
    record = _replace(old, changes)
    if (record.tenant, record.name) != (old.tenant, old.name) and not record.revoked_at:
        yield from _check_name(record)
    yield sql.CHANGE_KEY, key_values(record)
    return key_of((yield sql.GET_KEY, (key_id,))[0])


def _replace(record: KeyRecord, changes: Mapping[str, Any]) -> KeyRecord:
    return KeyRecord(**{name: changes.get(name, getattr(record, name)) for name in KeyRecord.__struct_fields__})


def find_key(digest: bytes) -> Steps[KeyRecord | None]:
    rows = yield sql.FIND_KEY, (digest,)
    return key_of(rows[0]) if rows else None


def get_key(key_id: str) -> Steps[KeyRecord | None]:
    rows = yield sql.GET_KEY, (key_id,)
    return key_of(rows[0]) if rows else None


def list_keys(tenant: str | None, team: str | None, revoked: bool, after: str, limit: int) -> Steps[list[KeyRecord]]:
    page = (after, int(revoked), max(0, min(limit, MAX_PAGE)))
    if tenant is not None and team is not None:
        rows = yield sql.LIST_KEYS_OF_TENANTS_TEAM, (*page, tenant, team)
    elif tenant is not None:
        rows = yield sql.LIST_KEYS_OF_TENANT, (*page, tenant)
    elif team is not None:
        rows = yield sql.LIST_KEYS_OF_TEAM, (*page, team)
    else:
        rows = yield sql.LIST_KEYS, page
    return [key_of(row) for row in rows]


def newest_version() -> Steps[int]:
    return int((yield sql.NEWEST_VERSION, ())[0]["version"])


def changes_since(version: int, limit: int) -> Steps[Changes]:
    newest = yield from newest_version()
    # A database that was set back to an earlier state is read from its beginning.
    since = version if version <= newest else 0
    limit = max(1, min(limit, MAX_PAGE))
    keys = [key_of(row) for row in (yield sql.CHANGED_KEYS, (since, newest, limit))]
    allowances = [allowance_of(row) for row in (yield sql.CHANGED_ALLOWANCES, (since, newest, limit))]
    versions = sorted([*(key.version for key in keys), *(each.version for each in allowances)])
    if len(versions) >= limit:
        newest = versions[limit - 1]
    return Changes(
        [key for key in keys if key.version <= newest],
        [allowance for allowance in allowances if allowance.version <= newest],
        newest,
    )


def set_allowance(allowance: Allowance) -> Steps[Allowance]:
    yield sql.LOCK_RECORDS, ()
    yield sql.SET_ALLOWANCE, allowance_values(allowance)
    return allowance_of((yield sql.GET_ALLOWANCE, (allowance.kind, allowance.name))[0])


def list_allowances() -> Steps[list[Allowance]]:
    return [allowance_of(row) for row in (yield sql.LIST_ALLOWANCES, ())]


# -- budgets ---------------------------------------------------------------------------------------------------


class _Held(NamedTuple):
    """A holder's totals in a window."""

    granted: int = 0
    spent: int = 0
    returned: int = 0

    @property
    def rest(self) -> int:
        """Below 0: it spent more than it had leased."""
        return self.granted - self.spent - self.returned

    @property
    def leased(self) -> int:
        return max(0, self.rest)


def lease(
    account: str, budget: Budget, holder: str, *, need: int, want: int, lasts_s: float
) -> Steps[Lease]:
    at = yield from now()
    window = window_at(at, budget.period)
    expires_at = at + lasts_s
    row = yield from _lock_window(account, window, at)
    held = yield from _held(account, holder, window.name)
    left = budget.picodollars - row["spent"] - row["leased"]
    # What it spent beyond its lease is in `spent` already and must not be held against it twice.
    room = left + max(0, -held.rest)
    granted = min(max(need, want), room) if need <= room and room > 0 else 0
    after = held._replace(granted=held.granted + granted)
    more = after.leased - held.leased
    yield sql.EXTEND_LEASES, (account, holder, expires_at)
    if granted:
        if not held.granted:
            yield sql.FORGET_LEASES, (account, at - _LEASES_KEPT_S)
        yield sql.PUT_LEASE, (account, holder, window.name, *after, expires_at)
        yield sql.BOOK, (account, window.name, 0, more)
    leased = row["leased"] + more
    rest = max(0, left - more)
    totals = after.spent, after.returned
    return Lease(granted, rest, leased, after.leased, window.name, window.ends_at, *totals)


def _lock_window(account: str, window: Window, at: float) -> Steps[Row]:
    """The row of a window, which begins with the first that asks for it; nobody else changes it until the end."""
    rows = yield sql.LOCK_BUDGET, (account, window.name)
    if not rows:
        yield sql.BEGIN_WINDOW, (account, window.name, 0.0 if math.isinf(window.ends_at) else window.ends_at)
        yield sql.FORGET_WINDOWS, (account, at - _WINDOWS_KEPT_S)
        rows = yield sql.LOCK_BUDGET, (account, window.name)
    return rows[0]


def _held(account: str, holder: str, window: str) -> Steps[_Held]:
    rows = yield sql.GET_LEASE, (account, holder, window)
    return _Held(rows[0]["granted"], rows[0]["spent"], rows[0]["returned"]) if rows else _Held()


def _book(account: str, holder: str, window: str, *, before: _Held, after: _Held, at: float) -> Steps[None]:
    if after != before:
        yield sql.PUT_LEASE, (account, holder, window, *after, at)
        yield sql.BOOK, (account, window, after.spent - before.spent, after.leased - before.leased)


def settle(account: str, window: str, holder: str, *, spent_total: int, returned_total: int) -> Steps[None]:
    at = yield from now()
    yield from _lock_window(account, Window(window, bounds_of(window)[1]), at)
    before = yield from _held(account, holder, window)
    after = before._replace(
        spent=max(before.spent, spent_total), returned=max(before.returned, returned_total)
    )
    yield from _book(account, holder, window, before=before, after=after, at=at)


def settle_dead(account: str, holder: str) -> Steps[None]:
    at = yield from now()
    kind, _, name = account.partition(":")
    for row in (yield sql.LEASES_OF, (account, holder)):
        window = row["period"]
        begins_at, ends_at = bounds_of(window)
        yield from _lock_window(account, Window(window, ends_at), at)
        before = yield from _held(account, holder, window)
        ids = (holder, holder + _BEYOND_HEX)
        billed = int((yield sql.BILLED, (*ids, begins_at, min(ends_at, _FAR), kind, name))[0]["billed"])
        spent = max(before.spent, billed)
        # Nothing is open any more: neither money nor debt.
        granted = max(before.granted, spent + before.returned)
        yield from _book(account, holder, window, before=before, after=_Held(granted, spent, granted - spent), at=at)


def expired_leases(within_s: float) -> Steps[list[tuple[str, str, str]]]:
    at = yield from now()
    rows = yield sql.EXPIRED_LEASES, (at + within_s, _EXPIRED_AT_ONCE)
    return [(row["account"], row["period"], row["holder"]) for row in rows]


def spent(account: str, budget: Budget) -> Steps[tuple[int, int]]:
    at = yield from now()
    rows = yield sql.GET_BUDGET, (account, window_at(at, budget.period).name)
    return (rows[0]["spent"], rows[0]["leased"]) if rows else (0, 0)


# -- reports ---------------------------------------------------------------------------------------------------


class ReportQuery(NamedTuple):
    """A report that can be run."""

    statement: sql.Statement
    values: Values


def report_query(name: str, parameters: Mapping[str, Any]) -> ReportQuery:
    """Check the name and the parameters of a report; raises ``StoreError``."""
    if name == "figures":
        return _figures_query(parameters)
    statements = sql.REPORTS.get(name)
    if statements is None:
        raise StoreError("unknown_report", f"there is no report {name!r}", transient=False)
    statement = statements.get(parameters.get("by", "all"))
    if statement is None:
        raise StoreError("invalid", f"a report is by one of {', '.join(statements)}", transient=False)
    unknown = set(parameters).difference(("since", "until", "by", "key_id", "tenant", "team", "model", "limit"))
    if unknown:
        raise StoreError("invalid", f"no such parameter: {', '.join(sorted(unknown))}", transient=False)
    limit = max(1, min(int(parameters.get("limit", 1000)), MAX_REPORT_ROWS))
    chosen = tuple(parameters.get(each) or "" for each in ("key_id", "tenant", "team", "model"))
    return ReportQuery(statement, (float(parameters["since"]), float(parameters["until"]), *chosen, limit))


def _figures_query(parameters: Mapping[str, Any]) -> ReportQuery:
    statement = FIGURES.get(parameters.get("by", "all"))
    if statement is None or parameters.keys() - {"since", "until", "by", "limit"}:
        text = f"figures are by one of {', '.join(FIGURES)}, with since, until and limit"
        raise StoreError("invalid", text, transient=False)
    limit = max(1, min(int(parameters.get("limit", 1000)), MAX_REPORT_ROWS))
    return ReportQuery(statement, (float(parameters["since"]), float(parameters["until"]), limit))


def report(query: ReportQuery) -> Steps[list[dict[str, Any]]]:
    return [report_of(row) for row in (yield query.statement, query.values)]
