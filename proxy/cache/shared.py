"""The cache level that other processes may share: the seam, and the making of what is behind it.

It is asked from inside a flight, so once for each key and process, and it can only ever be a short cut. aiocache,
redis and asyncpg are loaded only where a URL asks for them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from proxy.cache.generation import Generation
from proxy.cache.level import AiocacheShared, Bounds
from proxy.cache.recording import VERSION, Codec, Recording
from proxy.clock import Clock
from proxy.protocol.usage import Usage

if TYPE_CHECKING:
    from proxy.cache.postgres import Database
    from proxy.cache.watch import Server

__all__ = ["AiocacheShared", "Bounds", "NoSharedCache", "SharedCache", "make_shared_cache"]

_MAX_BYTES: Final = 64 * 1024  # of a value, where the codec does not say
_MOST_DATABASE_CONNECTIONS: Final = 6  # each is a process there


class SharedCache(Protocol):
    """The seam; ``tests/seams/test_shared_cache.py`` holds every implementation to it."""

    @property
    def enabled(self) -> bool:
        """Whether asking it is of any use at all."""

    def start(self, on_purge: Callable[[], object]) -> None:
        """Begin to listen to other processes; ``on_purge`` drops what this one holds. Needs a running loop."""

    async def get(self, key: bytes) -> Recording | None:
        """The recording stored under the fingerprint, or ``None``. Never raises, never waits long."""

    async def put(self, key: bytes, recording: Recording, ttl_s: float) -> None:
        """Keep the recording for ``ttl_s`` seconds, as well as can be done. Never raises, never waits long."""

    def purge(self) -> None:
        """Nothing stored so far is found any more: here at once, by other processes as soon as they can be told.
        What this process holds elsewhere is for the caller to drop."""

    def announce(self, cause: bytes) -> None:
        """Purge for a cause that several processes may report, such as the digest of a changed configuration: it
        counts once, until another cause is reported. ``on_purge`` is called here as well."""

    async def close(self) -> None:
        """Give back connections. Never raises; the cache is not used afterwards."""


class NoSharedCache:
    """No second level: every look-up is a miss and nothing is kept."""

    __slots__ = ()

    enabled = False

    def start(self, on_purge: Callable[[], object]) -> None:
        """There is nobody to listen to."""

    async def get(self, key: bytes) -> Recording | None:
        return None

    async def put(self, key: bytes, recording: Recording, ttl_s: float) -> None:
        """Forget it."""

    def purge(self) -> None:
        """Nothing is stored."""

    def announce(self, cause: bytes) -> None:
        """Nobody would hear it."""

    async def close(self) -> None:
        """Nothing was opened."""


def make_shared_cache(
    url: str,
    secret: bytes,
    clock: Clock | None = None,
    *,
    max_bytes: int = 64 * 1024 * 1024,
    codec: Codec | None = None,
    prefix: str = "sameflight",
    namespace: str = "answers",
    purgeable: bool = True,
    bounds: Bounds | None = None,
    open_database: Callable[[str, int], Database] | None = None,
    table_bytes: int = 1 << 30,
) -> SharedCache:
    """The second level that ``url`` names: nothing for ``""``, a map of at most ``max_bytes`` for ``memory://``, else
    a server (`config.values.parse_cache_url`), to which nothing connects before ``start`` or the first call.
    PostgreSQL is reached through what ``open_database`` makes of the URL and a number of connections, and holds about
    ``table_bytes``.

    ``secret`` authenticates what is stored and must be the same in all processes that share it; the one inside a
    process makes up its own when it is empty. ``codec`` replaces the one for recordings that report a ``Usage``.
    ``prefix`` is the operator's, ``namespace`` that of one kind of value; without ``purgeable`` a server's generation
    is neither asked for nor listened to, as the values are not purged together.
    Raises ``ValueError`` for every other URL, without repeating more of it than its scheme: it may hold a password.
    """
    if not url:
        return NoSharedCache()
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ValueError("the cache URL has no scheme: leave SAMEFLIGHT_CACHE_URL empty or use memory://")
    clock = clock or Clock()
    if codec is None:
        codec = Codec(secret or secrets.token_bytes(32), pack_report=_write_usage, unpack_report=_read_usage)
    names = f"{prefix}:{VERSION}:{namespace}:"
    if scheme == "memory":
        from proxy.cache.memory import BoundedMemory

        return AiocacheShared(BoundedMemory(max_bytes, clock), codec, clock, prefix=names, bounds=bounds)
    bounds = bounds or Bounds()
    # One connection for each call that may run, one that listens and one over which the generation is asked for.
    connections = bounds.gets + bounds.puts + 2
    most_bytes = getattr(codec, "max_bytes", _MAX_BYTES)
    backend: Any
    server: Server
    if scheme in ("postgresql", "postgres") and open_database is not None:
        from proxy.cache.postgres import PostgresBackend, PostgresServer

        database = open_database(url, min(connections, _MOST_DATABASE_CONNECTIONS))
        backend = PostgresBackend(database, max_bytes=most_bytes, table_bytes=table_bytes)
        server = PostgresServer(backend)
    elif scheme in ("redis", "rediss", "valkey", "valkeys", "unix"):
        from proxy.cache.valkey import ValkeyBackend, ValkeyServer

        backend = ValkeyBackend(url, max_bytes=most_bytes, max_connections=connections)
        server = ValkeyServer(backend.client)
    else:
        raise ValueError(
            f"no cache of the kind {scheme}:// is known: leave SAMEFLIGHT_CACHE_URL empty or use memory:// or redis://"
        )
    if not purgeable:
        return AiocacheShared(backend, codec, clock, prefix=names, bounds=bounds)
    from proxy.cache.watch import Watch

    generation = Generation(clock)
    watch = Watch(server, generation, names)
    return AiocacheShared(backend, codec, clock, prefix=names, bounds=bounds, generation=generation, watch=watch)


def _write_usage(report: object) -> object:
    # By name: a field that another release adds or lacks is then noticed, not shifted.
    return report._asdict() if isinstance(report, Usage) else report


def _read_usage(packed: object) -> Usage:
    if not isinstance(packed, dict):
        raise TypeError("not the fields of a usage")
    return Usage(**packed)
