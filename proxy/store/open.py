"""Which store a process uses, by configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.store.base import Store
from proxy.store.sqlite import FILE, SqliteStore

if TYPE_CHECKING:
    from proxy.store.postgres_cache import CacheDatabase


def open_store(database_url: str, state_dir: Path, *, migrate: bool = True, **options: Any) -> Store:
    """The store of ``SAMEFLIGHT_DATABASE_URL``, not connected yet (``Store.open`` does that).

    ``postgresql://…`` or ``postgres://…`` is PostgreSQL, empty is a SQLite file in ``state_dir``. With ``migrate``
    an older schema is brought up to date when it is opened. ``options`` are those of the store's class. Raises
    ``ValueError`` for any other URL. Needs no running loop.
    """
    if database_url.startswith(("postgresql://", "postgres://")):
        from proxy.store.postgres import PostgresStore  # the driver is loaded by who needs it

        return PostgresStore(database_url, migrate=migrate, **options)
    if database_url:
        raise ValueError("the database's URL begins with postgresql:// or is empty")
    return SqliteStore(state_dir / FILE, migrate=migrate, **options)


def open_cache_database(url: str, connections: int) -> CacheDatabase:
    """The database of a ``SAMEFLIGHT_CACHE_URL`` of PostgreSQL, not connected yet."""
    from proxy.store.postgres_cache import CacheDatabase

    return CacheDatabase(url, connections)
