"""Every statement that the code runs, with the plan that it must have; tests hold PostgreSQL to it.

Both databases understand ``$1``, PostgreSQL by position and SQLite as a name. Where they differ a statement has two
texts.
"""

from __future__ import annotations

from typing import Final, NamedTuple

KINDS: Final = ("postgres", "sqlite")


class Statement(NamedTuple):
    """One statement. ``plan`` is what ``EXPLAIN`` must mention on PostgreSQL: the index that serves it, or for
    statements that cannot have one, the node that does."""

    name: str
    postgres: str
    sqlite: str
    plan: tuple[str, ...]


ALL: Final[dict[str, Statement]] = {}
"""By name, in the order of this file."""


def _statement(name: str, text: str, *plan: str, sqlite: str = "") -> Statement:
    assert name not in ALL
    assert plan
    made = ALL[name] = Statement(name, text, sqlite or text, plan)
    return made


# -- time ------------------------------------------------------------------------------------------------------

NOW: Final = _statement(
    "now",
    "SELECT extract(epoch FROM clock_timestamp())::float8 AS now",
    "Result",
    sqlite="SELECT (julianday('now') - 2440587.5) * 86400.0 AS now",
)

# -- keys ------------------------------------------------------------------------------------------------------

KEY_COLUMNS: Final = (
    "id",
    "digest",
    "name",
    "tenant",
    "team",
    "models",
    "routes",
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent",
    "budget_picodollars",
    "budget_period",
    "scope",
    "cache",
    "charge",
    "expires_at",
    "tags",
    "created_at",
    "revoked_at",
)
_KEY: Final = ", ".join((*KEY_COLUMNS, "version"))
_KEY_VALUES: Final = ", ".join(f"${n}" for n in range(1, len(KEY_COLUMNS) + 1))

# Held to the end of the transaction; SQLite has one writer at a time anyway.
LOCK_RECORDS: Final = _statement(
    "lock_records", "SELECT pg_advisory_xact_lock(6013409, 2)", "Result", sqlite="SELECT 1"
)
VALID_NAME: Final = _statement(
    "valid_name",
    "SELECT id FROM api_keys WHERE tenant = $1 AND name = $2 AND id <> $4 AND revoked_at = 0"
    " AND (expires_at = 0 OR expires_at > $3) LIMIT 1",
    "api_keys_name",
)
ADD_KEY: Final = _statement(
    "add_key",
    f"INSERT INTO api_keys ({', '.join(KEY_COLUMNS)}) VALUES ({_KEY_VALUES})",
    "Insert on api_keys",
)
FIND_KEY: Final = _statement("find_key", f"SELECT {_KEY} FROM api_keys WHERE digest = $1", "api_keys_digest")
GET_KEY: Final = _statement("get_key", f"SELECT {_KEY} FROM api_keys WHERE id = $1", "api_keys_pkey")
LOCK_KEY: Final = _statement(
    "lock_key",
    f"SELECT {_KEY} FROM api_keys WHERE id = $1 FOR UPDATE",
    "api_keys_pkey",
    sqlite=f"SELECT {_KEY} FROM api_keys WHERE id = $1",
)
_ASSIGNMENTS: Final = ", ".join(f"{name} = ${n}" for n, name in enumerate(KEY_COLUMNS[1:], 2))
CHANGE_KEY: Final = _statement(
    "change_key",
    f"UPDATE api_keys SET {_ASSIGNMENTS} WHERE id = $1",
    "api_keys_pkey",
)
LIST_KEYS: Final = _statement(
    "list_keys",
    f"SELECT {_KEY} FROM api_keys WHERE id > $1 AND (revoked_at = 0 OR $2 = 1) ORDER BY id LIMIT $3",
    "api_keys_pkey",
)
LIST_KEYS_OF_TENANT: Final = _statement(
    "list_keys_of_tenant",
    f"SELECT {_KEY} FROM api_keys WHERE tenant = $4 AND id > $1 AND (revoked_at = 0 OR $2 = 1)"
    " ORDER BY id LIMIT $3",
    "api_keys_tenant",
)
LIST_KEYS_OF_TEAM: Final = _statement(
    "list_keys_of_team",
    f"SELECT {_KEY} FROM api_keys WHERE team = $4 AND id > $1 AND (revoked_at = 0 OR $2 = 1)"
    " ORDER BY id LIMIT $3",
    "api_keys_team",
)
LIST_KEYS_OF_TENANTS_TEAM: Final = _statement(
    "list_keys_of_tenants_team",
    f"SELECT {_KEY} FROM api_keys WHERE tenant = $4 AND team = $5 AND id > $1"
    " AND (revoked_at = 0 OR $2 = 1) ORDER BY id LIMIT $3",
    "api_keys_te",  # by tenant or by team, whichever is the rarer
)

# Read first, and nothing above it is handed out: what was committed up to it is complete.
NEWEST_VERSION: Final = _statement(
    "newest_version",
    "SELECT greatest((SELECT coalesce(max(version), 0) FROM api_keys),"
    " (SELECT coalesce(max(version), 0) FROM allowances),"
    " (SELECT coalesce(max(change), 0) FROM flag_audit)) AS version",
    "api_keys_version",
    "allowances_version",
    "flag_audit_pkey",
    sqlite="SELECT max((SELECT coalesce(max(version), 0) FROM api_keys),"
    " (SELECT coalesce(max(version), 0) FROM allowances),"
    " (SELECT coalesce(max(change), 0) FROM flag_audit)) AS version",
)
CHANGED_KEYS: Final = _statement(
    "changed_keys",
    f"SELECT {_KEY} FROM api_keys WHERE version > $1 AND version <= $2 ORDER BY version LIMIT $3",
    "api_keys_version",
)

# -- allowances ------------------------------------------------------------------------------------------------

_ALLOWANCE: Final = (
    "kind, name, requests_per_minute, tokens_per_minute, concurrent, budget_picodollars, budget_period, version"
)
SET_ALLOWANCE: Final = _statement(
    "set_allowance",
    "INSERT INTO allowances (kind, name, requests_per_minute, tokens_per_minute, concurrent, budget_picodollars,"
    " budget_period) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (kind, name) DO UPDATE SET"
    " requests_per_minute = excluded.requests_per_minute, tokens_per_minute = excluded.tokens_per_minute,"
    " concurrent = excluded.concurrent, budget_picodollars = excluded.budget_picodollars,"
    " budget_period = excluded.budget_period",
    "Conflict Arbiter Indexes: allowances_pkey",
)
GET_ALLOWANCE: Final = _statement(
    "get_allowance",
    f"SELECT {_ALLOWANCE} FROM allowances WHERE kind = $1 AND name = $2",
    "allowances_pkey",
)
LIST_ALLOWANCES: Final = _statement(
    "list_allowances",
    f"SELECT {_ALLOWANCE} FROM allowances ORDER BY kind, name",
    "allowances_pkey",
)
CHANGED_ALLOWANCES: Final = _statement(
    "changed_allowances",
    f"SELECT {_ALLOWANCE} FROM allowances WHERE version > $1 AND version <= $2 ORDER BY version LIMIT $3",
    "allowances_version",
)

# -- budgets ---------------------------------------------------------------------------------------------------
# The row of the window is locked before those of its leases are read or written: nobody waits in a circle.

GET_BUDGET: Final = _statement(
    "get_budget", "SELECT spent, leased FROM budgets WHERE account = $1 AND period = $2", "budgets_pkey"
)
LOCK_BUDGET: Final = _statement(
    "lock_budget",
    "SELECT spent, leased FROM budgets WHERE account = $1 AND period = $2 FOR UPDATE",
    "budgets_pkey",
    sqlite="SELECT spent, leased FROM budgets WHERE account = $1 AND period = $2",
)
BEGIN_WINDOW: Final = _statement(
    "begin_window",
    "INSERT INTO budgets (account, period, ends_at) VALUES ($1, $2, $3) ON CONFLICT (account, period) DO NOTHING",
    "Conflict Arbiter Indexes: budgets_pkey",
)
FORGET_WINDOWS: Final = _statement(
    "forget_windows",
    "DELETE FROM budgets WHERE account = $1 AND ends_at > 0 AND ends_at < $2 AND leased = 0",
    "budgets_pkey",
)
# $3 more spent, $4 more leased.
BOOK: Final = _statement(
    "book",
    "UPDATE budgets SET spent = spent + $3, leased = leased + $4 WHERE account = $1 AND period = $2",
    "budgets_pkey",
)
GET_LEASE: Final = _statement(
    "get_lease",
    "SELECT granted, spent, returned FROM leases WHERE account = $1 AND holder = $2 AND period = $3",
    "leases_pkey",
)
# All that the holder has of the account.
EXTEND_LEASES: Final = _statement(
    "extend_leases", "UPDATE leases SET expires_at = $3 WHERE account = $1 AND holder = $2", "leases_pkey"
)
PUT_LEASE: Final = _statement(
    "put_lease",
    "INSERT INTO leases (account, holder, period, granted, spent, returned, expires_at)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (account, holder, period)"
    " DO UPDATE SET granted = excluded.granted, spent = excluded.spent, returned = excluded.returned",
    "Conflict Arbiter Indexes: leases_pkey",
)
FORGET_LEASES: Final = _statement(
    "forget_leases",
    "DELETE FROM leases WHERE account = $1 AND expires_at < $2 AND granted = spent + returned",
    "leases_pkey",
)
LEASES_OF: Final = _statement(
    "leases_of", "SELECT period FROM leases WHERE account = $1 AND holder = $2 ORDER BY period", "leases_pkey"
)
EXPIRED_LEASES: Final = _statement(
    "expired_leases",
    "SELECT account, period, holder FROM leases WHERE granted <> spent + returned AND expires_at < $1"
    " ORDER BY expires_at LIMIT $2",
    "leases_open",
)
# What the usage of one process says that an account was billed in a window: $1 is the beginning of its request ids,
# $2 the first id beyond them, $3 and $4 the window, $5 and $6 the account.
BILLED: Final = _statement(
    "billed",
    "SELECT coalesce(sum(cost_picodollars), 0) AS billed FROM usage"
    " WHERE request_id >= $1 AND request_id < $2 AND substr(request_id, 1, 16) = $1 AND at >= $3 AND at < $4"
    " AND (($5 = 'key' AND key_id = $6) OR ($5 = 'team' AND tenant || '/' || team = $6)"
    " OR ($5 = 'tenant' AND tenant = $6))",
    "usage_pkey",
)

# -- usage -----------------------------------------------------------------------------------------------------

_TEXT, _FLOAT, _INT, _SMALL, _FLAG = "text", "float8", "int8", "int4", "bool"
USAGE_COLUMNS: Final = {
    "request_id": _TEXT,
    "at": _FLOAT,
    "key_id": _TEXT,
    "tenant": _TEXT,
    "team": _TEXT,
    "provider": _TEXT,
    "route": _TEXT,
    "model": _TEXT,
    "role": _TEXT,
    "outcome": _TEXT,
    "status": _SMALL,
    "streams": _FLAG,
    "estimated": _FLAG,
    "input_tokens": _INT,
    "output_tokens": _INT,
    "cached_input_tokens": _INT,
    "upstream_tokens": _INT,
    "saved_tokens": _INT,
    "cost_picodollars": _INT,
    "upstream_picodollars": _INT,
    "saved_picodollars": _INT,
    "first_byte_ms": _FLOAT,
    "total_ms": _FLOAT,
    "overhead_ms": _FLOAT,
    "flight_id": _INT,
    "tags": _TEXT,
    "tier": _TEXT,
    "cache_class": _TEXT,
    "pruned_tokens": _INT,
    "policy_saved_picodollars": _INT,
    "shadow_saved_picodollars": _INT,
    "flagged": _TEXT,
}
"""In the order of the fields of ``UsageRecord``."""

_USAGE: Final = ", ".join(USAGE_COLUMNS)
# PostgreSQL takes a batch as one array for each column: one statement and one round trip, whatever its size.
WRITE_USAGE: Final = _statement(
    "write_usage",
    f"INSERT INTO usage ({_USAGE}) SELECT * FROM unnest("
    + ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(USAGE_COLUMNS.values(), 1))
    + ") ON CONFLICT (request_id) DO NOTHING",
    "Conflict Arbiter Indexes: usage_pkey",
    sqlite=f"INSERT INTO usage ({_USAGE}) VALUES ("
    + ", ".join("?" for _ in USAGE_COLUMNS)
    + ") ON CONFLICT (request_id) DO NOTHING",
)



def repeat_values(statement: str, times: int) -> str:
    """An insertion of one row as one of several."""
    start, _, rest = statement.partition(" VALUES ")
    row, _, end = rest.partition(")")
    return f"{start} VALUES {', '.join([row + ')'] * times)}{end}"


# -- reports ---------------------------------------------------------------------------------------------------
# $1 since, $2 until, then key, tenant, team and model (empty for all), then the most rows.

LABELS: Final = {
    "day": "day",
    "key": "key_id",
    "team": "CASE WHEN tenant = '' OR team = '' THEN team ELSE tenant || '/' || team END",
    "tenant": "tenant",
    "model": "model",
    "provider": "provider",
    "route": "route",
    "class": "cache_class",
    "tier": "tier",
    "role": "role",
    "all": "'all'",
}
"""What the reports can be by → what names a row."""

_CHOSEN: Final = (
    "FROM usage_requests WHERE at >= $1 AND at < $2 AND ($3 = '' OR key_id = $3) AND ($4 = '' OR tenant = $4)"
    " AND ($5 = '' OR team = $5) AND ($6 = '' OR model = $6)"
)
# Column of the report → what it is the sum of.
_SUMMED: Final = {
    "calls": "called",
    "saved_calls": "saved",
    "hits": "hit",
    "patterns": "patterned",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cached_input_tokens": "cached_input_tokens",
    "upstream_tokens": "upstream_tokens",
    "saved_tokens": "saved_tokens",
    "cost_picodollars": "cost_picodollars",
    "upstream_picodollars": "upstream_picodollars",
    "saved_picodollars": "saved_picodollars",
    "pruned_tokens": "pruned_tokens",
    "policy_saved_picodollars": "policy_saved_picodollars",
    "shadow_saved_picodollars": "shadow_saved_picodollars",
    "errors": "failed",
    "refused": "refused",
    "estimated": "guessed",
}
_SUMS: Final = ", ".join(("count(*) AS requests", *(f"sum({of}) AS {name}" for name, of in _SUMMED.items())))
# SQLite's sum fails beyond 64 bits, and one absurd number of an upstream must not break a report for ever.
_SUMS_IN_SQLITE: Final = ", ".join(
    (
        "count(*) AS requests",
        *(f"sum({of} / 1000000) * 1000000 + sum({of} % 1000000) AS {name}" for name, of in _SUMMED.items()),
    )
)
# Column of the table → the columns of the report that are picked from it, each with its per cent.
_PERCENTILES: Final = {
    "total_ms": {"p50_ms": 50, "p95_ms": 95},
    "first_byte_ms": {"first_byte_p50_ms": 50},
    "overhead_ms": {"overhead_p95_ms": 95},
}


def _report_by(by: str, label: str) -> Statement:
    order = "label" if by == "day" else "requests DESC, label"
    return _statement(
        f"usage_by_{by}",
        _report_for_postgres(label, order),
        "usage_at|usage_key",
        sqlite=_report_for_sqlite(label, order),
    )


def _report_for_postgres(label: str, order: str) -> str:
    picked = ", ".join(
        f"percentile_disc({per_cent / 100}) WITHIN GROUP (ORDER BY {column}) AS {name}"
        for column, names in _PERCENTILES.items()
        for name, per_cent in names.items()
    )
    return f"SELECT {label} AS label, {_SUMS}, {picked} {_CHOSEN} GROUP BY 1 ORDER BY {order} LIMIT $7"


def _report_for_sqlite(label: str, order: str) -> str:
    """SQLite has no ordered-set aggregates: each value has its place among those of its label, and the first one that
    has the wanted share up to it is picked, as ``percentile_disc`` does."""
    tables = [f"sums AS (SELECT {label} AS label, {_SUMS_IN_SQLITE} {_CHOSEN} GROUP BY 1)"]
    joins = ""
    columns: list[str] = []
    for column, names in _PERCENTILES.items():
        place = f"row_number() OVER (PARTITION BY {label} ORDER BY {column}) AS place"
        placed = f"SELECT {label} AS label, {column}, {place} {_CHOSEN}"
        picked = ", ".join(
            f"max(CASE WHEN place = (requests * {per_cent} + 99) / 100 THEN {column} END) AS {name}"
            for name, per_cent in names.items()
        )
        tables.append(
            f"{column}_picked AS (SELECT label, {picked} FROM ({placed}) AS placed JOIN sums USING (label)"
            " GROUP BY label)"
        )
        joins += f" JOIN {column}_picked USING (label)"
        columns += names
    return (
        f"WITH {', '.join(tables)} SELECT sums.*, {', '.join(columns)} FROM sums{joins}"
        f" ORDER BY {order} LIMIT $7"
    )


USAGE_BY: Final = {by: _report_by(by, label) for by, label in LABELS.items()}
REPORTS: Final = {"usage": USAGE_BY}
"""Name of a report → what it is by → its statement."""
