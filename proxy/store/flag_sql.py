"""The statements about flags; see `sql`. Changes are numbered from the versions of records, under the same lock: a
lower number is never committed after a higher one."""

from __future__ import annotations

from typing import Final

from proxy.store.sql import _statement

LIST_FLAGS: Final = _statement(
    "list_flags", "SELECT name, scope, subject, percent FROM flags ORDER BY name, scope, subject", "flags_pkey"
)
PUT_FLAG: Final = _statement(
    "put_flag",
    "INSERT INTO flags (name, scope, subject, percent) VALUES ($1, $2, $3, $4)"
    " ON CONFLICT (name, scope, subject) DO UPDATE SET percent = excluded.percent",
    "Conflict Arbiter Indexes: flags_pkey",
)
DROP_FLAG: Final = _statement(
    "drop_flag", "DELETE FROM flags WHERE name = $1 AND scope = $2 AND subject = $3", "flags_pkey"
)
NEXT_VERSION: Final = _statement(
    "next_version",
    "SELECT nextval('record_version') AS version",
    "Result",
    sqlite="UPDATE record_version SET last_value = last_value + 1 RETURNING last_value AS version",
)
RECORD_CHANGE: Final = _statement(
    "record_change",
    "INSERT INTO flag_audit (change, name, scope, subject, percent_before, percent_after, at, who, why, restores)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    "Insert on flag_audit",
)
LAST_CHANGE: Final = _statement(
    "last_change",
    "SELECT change, at, restores FROM flag_audit WHERE change <= $1 ORDER BY change DESC LIMIT 1",
    "flag_audit_pkey",
)
# What every rule was after change $1: what the first change behind that one found. A rule that no later change
# touched is not among them.
WAS_AFTER: Final = _statement(
    "was_after",
    "SELECT name, scope, subject, percent_before FROM flag_audit AS first WHERE change > $1 AND NOT EXISTS"
    " (SELECT 1 FROM flag_audit AS earlier WHERE earlier.name = first.name AND earlier.scope = first.scope"
    " AND earlier.subject = first.subject AND earlier.change > $1 AND earlier.change < first.change)"
    " ORDER BY name, scope, subject",
    "flag_audit_pkey|flag_audit_rule",
)
# Whole changes only: $2 of them, and of each those rows that are asked for.
LIST_CHANGES: Final = _statement(
    "list_changes",
    "SELECT change, name, scope, subject, percent_before, percent_after, at, who, why, restores FROM flag_audit"
    " WHERE change IN (SELECT DISTINCT change FROM flag_audit WHERE change < $1 ORDER BY change DESC LIMIT $2)"
    " ORDER BY change DESC, name, scope, subject",
    "flag_audit_pkey",
)
LIST_CHANGES_OF: Final = _statement(
    "list_changes_of",
    "SELECT change, name, scope, subject, percent_before, percent_after, at, who, why, restores FROM flag_audit"
    " WHERE name = $3 AND change IN"
    " (SELECT DISTINCT change FROM flag_audit WHERE change < $1 AND name = $3 ORDER BY change DESC LIMIT $2)"
    " ORDER BY change DESC, name, scope, subject",
    "flag_audit_pkey|flag_audit_rule",
)
