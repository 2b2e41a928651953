"""Rows of the tables and the records that they are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Final

from proxy.accounting.record import UsageRecord
from proxy.config.keys import Allowance, Budget, KeyRecord, Limits
from proxy.store.sql import USAGE_COLUMNS

Row = Mapping[str, Any]
Values = tuple[Any, ...]

_FIELDS: Final = attrgetter(*USAGE_COLUMNS)
_FIRST: Final = itemgetter(0)
_MOST: Final = {"int8": (1 << 63) - 1, "int4": (1 << 31) - 1}


def key_values(record: KeyRecord) -> Values:
    """In the order of ``sql.KEY_COLUMNS``."""
    return (
        record.id,
        record.digest,
        record.name,
        record.tenant,
        record.team,
        json.dumps(record.models),
        json.dumps(record.routes),
        *_limit_values(record.limits, record.budget),
        record.scope,
        record.cache,
        record.charge,
        float(record.expires_at),
        json.dumps(record.tags),
        float(record.created_at),
        float(record.revoked_at),
    )


def _limit_values(limits: Limits, budget: Budget | None) -> Values:
    money = (None, None) if budget is None else (budget.picodollars, budget.period)
    return limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent, *money


def key_of(row: Row) -> KeyRecord:
    return KeyRecord(
        id=row["id"],
        digest=bytes(row["digest"]),
        name=row["name"],
        tenant=row["tenant"],
        team=row["team"],
        models=tuple(json.loads(row["models"])),
        routes=tuple(json.loads(row["routes"])),
        limits=_limits_of(row),
        budget=_budget_of(row),
        scope=row["scope"],
        cache=row["cache"],
        charge=row["charge"],
        expires_at=row["expires_at"],
        tags=tuple(json.loads(row["tags"])),
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
        version=row["version"],
    )


def allowance_values(allowance: Allowance) -> Values:
    return allowance.kind, allowance.name, *_limit_values(allowance.limits, allowance.budget)


def allowance_of(row: Row) -> Allowance:
    return Allowance(row["kind"], row["name"], _limits_of(row), _budget_of(row), row["version"])


def _limits_of(row: Row) -> Limits:
    return Limits(row["requests_per_minute"], row["tokens_per_minute"], row["concurrent"])


def _budget_of(row: Row) -> Budget | None:
    money = row["budget_picodollars"]
    return None if money is None else Budget(money, row["budget_period"])


def usage_rows(records: Sequence[UsageRecord]) -> list[Values]:
    """One row for each request, in the order of request ids: two writers of the same ones never wait in a circle."""
    return sorted(map(_FIELDS, records), key=_FIRST)


def fitting(row: Values) -> Values:
    """What a database takes in place of what it refuses: a name that a client chose or a number that an upstream made
    up must not keep all other rows of a batch from being written."""
    return tuple(_fit(value, kind) for value, kind in zip(row, USAGE_COLUMNS.values(), strict=True))


def _fit(value: Any, kind: str) -> Any:
    if kind == "text":
        return str(value).replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    if kind == "bool":
        return bool(value)
    if kind == "float8":
        return float(value) if math.isfinite(value) else 0.0
    most = _MOST[kind]
    return max(-most, min(int(value), most))


def report_of(row: Row) -> dict[str, Any]:
    """Times stay floats, all other numbers are whole ones, whatever type the database sums in."""
    return {name: value if name in ("label", "kind") else _number(name, value) for name, value in dict(row).items()}


def _number(name: str, value: Any) -> int | float:
    return float(value or 0.0) if name.endswith("_ms") else int(value or 0)
