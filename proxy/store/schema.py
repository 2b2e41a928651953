"""Numbered migrations: ``0001_keys.sql`` for every database, ``0002_versions.postgres.sql`` for one of them.

Each is applied in one transaction together with its row in ``sameflight_schema``, under a lock, so a schema is at one
version or at the next and never between them. They only go forward: a newer schema than the code knows is refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from proxy.errors import StoreError

CREATE_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS sameflight_schema"
    " (version integer PRIMARY KEY, name text NOT NULL, applied_at double precision NOT NULL)"
)
READ_VERSION: Final = "SELECT coalesce(max(version), 0) FROM sameflight_schema"
RECORD_VERSION: Final = "INSERT INTO sameflight_schema (version, name, applied_at) VALUES ($1, $2, $3)"


class Migration(NamedTuple):
    """One step of the schema."""

    number: int
    name: str
    script: str


@cache
def migrations(kind: str) -> tuple[Migration, ...]:
    """Those of a database (``postgres``, ``sqlite``) in their order, numbered from 1 without a gap."""
    found = []
    for entry in files("proxy.store").joinpath("migrations").iterdir():
        name, _, rest = entry.name.partition(".")
        if rest in ("sql", f"{kind}.sql"):
            found.append(Migration(int(name[:4]), name, entry.read_text("utf-8")))
    found.sort()
    assert [each.number for each in found] == list(range(1, len(found) + 1))
    return tuple(found)


def check_version(version: int, known: int) -> None:
    """Raises ``StoreError`` unless the database's schema is the one that the code knows."""
    if version > known:
        raise StoreError(
            "schema", f"the database has schema {version}, this version knows {known}: update it", transient=False
        )
    if version < known:
        needed = f"the database has schema {version}, {known} is needed: run `sameflight migrate`"
        raise StoreError("schema", needed, transient=False)


def statements_of(script: str) -> Iterator[str]:
    """Split a script where SQLite ends a statement; a trigger with its body is one."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if line.rstrip().endswith(";") and sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    assert not statement.strip()
