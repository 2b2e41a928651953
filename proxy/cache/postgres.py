"""The second level in PostgreSQL, for people who have one and no Valkey: aiocache's backend over a table, and how a
generation is watched there.

A look-up is one statement, generation included, and no more of a value crosses the wire than it may have bytes. Rows
whose time is over are swept in small batches by whichever process comes first, and so is what is beyond the table's
bound, soonest to end first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from hashlib import blake2b
from typing import Final, Protocol

from aiocache.base import BaseCache

from proxy.cache.generation import Debt
from proxy.cache.memory import BytesSerializer
from proxy.cache.watch import Names, News

SWEEP_EVERY_S: Final = 10.0
SWEEP_ROWS: Final = 500
"""Removed by one statement, so that none of them holds others up."""
SWEEP_BATCHES: Final = 40
"""Of one sweep."""


class Database(Protocol):
    """What is needed of a database; `store.postgres_cache.CacheDatabase` is one. Failures are exceptions of any kind.
    Times to live are in seconds, 0 for no end."""

    async def make(self) -> None:
        """Make the tables, if they are not there."""

    async def read(self, names: Sequence[str], most_bytes: int) -> dict[str, bytes | None]:
        """The values, or as much of them, and the numbers of generations as text; ``None`` for what is not there."""

    async def write(self, name: str, value: bytes, ttl_s: float) -> None: ...

    async def add(self, name: str, value: bytes, ttl_s: float) -> bool:
        """Whether there was none."""

    async def delete(self, name: str) -> int: ...

    async def exists(self, name: str) -> bool: ...

    async def expire(self, name: str, ttl_s: float) -> bool: ...

    async def clear(self, prefix: str) -> None: ...

    async def sweep(self, rows: int) -> int:
        """Remove up to so many rows that have ended; how many."""

    async def weigh(self) -> int:
        """Bytes of all values."""

    async def evict(self, rows: int, size_bytes: int) -> tuple[int, int]:
        """Remove those soonest to end, up to so many and until they weigh so much; their number and bytes."""

    async def settle(self, names: Names, debt: Debt, channel: str) -> int:
        """As `watch.Server`; what changes is notified on the channel."""

    def listen(self, channel: str, on_message: Callable[[str], object]) -> AbstractAsyncContextManager[asyncio.Event]:
        """Hear what is notified on the channel, on a connection of its own; the event says that it was lost."""

    async def close(self) -> None: ...


class PostgresBackend(BaseCache):  # type: ignore[misc]
    """An aiocache backend over a database; values are bytes of at most ``max_bytes``."""

    # Mutable: counters, and the weight as it was found; written by `sweep`.
    NAME = "postgres"

    def __init__(self, database: Database, *, max_bytes: int, table_bytes: int) -> None:
        super().__init__(serializer=BytesSerializer(), timeout=0)
        self.database = database
        self._max_bytes = max_bytes
        self._table_bytes = table_bytes
        self.swept = 0
        """Rows removed after their time."""
        self.evicted = 0
        """Rows removed because the table was too large."""
        self.size_bytes = 0
        """Of all values, when they were last weighed."""

    async def sweep(self) -> None:
        """Remove what has ended, and what is too much: a bounded number of rows."""
        database, batches = self.database, 0
        while batches < SWEEP_BATCHES:
            batches += 1
            gone = await database.sweep(SWEEP_ROWS)
            self.swept += gone
            if gone < SWEEP_ROWS:
                break
        self.size_bytes = await database.weigh()
        while self.size_bytes > self._table_bytes and batches < SWEEP_BATCHES:
            batches += 1
            gone, gone_bytes = await database.evict(SWEEP_ROWS, self.size_bytes - self._table_bytes)
            if not gone:
                break
            self.evicted += gone
            self.size_bytes -= gone_bytes

    async def _get(self, key: str, encoding: str | None = None, _conn: object = None) -> bytes | None:
        return (await self._multi_get([key]))[0]

    async def _multi_get(
        self, keys: list[str], encoding: str | None = None, _conn: object = None
    ) -> list[bytes | None]:
        found = await self.database.read(keys, self._max_bytes + 1)
        return [found.get(key) for key in keys]

    async def _set(
        self, key: str, value: bytes, ttl: float | None = None, _cas_token: object = None, _conn: object = None
    ) -> bool:
        if len(value) > self._max_bytes:
            return False
        await self.database.write(key, value, ttl or 0.0)
        return True

    async def _multi_set(
        self, pairs: Sequence[tuple[str, bytes]], ttl: float | None = None, _conn: object = None
    ) -> bool:
        return all([await self._set(key, value, ttl) for key, value in pairs])

    async def _add(self, key: str, value: bytes, ttl: float | None = None, _conn: object = None) -> bool:
        if len(value) > self._max_bytes or not await self.database.add(key, value, ttl or 0.0):
            raise ValueError(f"Key {key} already exists, use .set to update the value")  # as aiocache's own say
        return True

    async def _delete(self, key: str, _conn: object = None) -> int:
        return await self.database.delete(key)

    async def _exists(self, key: str, _conn: object = None) -> bool:
        return await self.database.exists(key)

    async def _expire(self, key: str, ttl: float, _conn: object = None) -> bool:
        return await self.database.expire(key, ttl or 0.0)

    async def _clear(self, namespace: str | None = None, _conn: object = None) -> bool:
        await self.database.clear(namespace or "")
        return True

    async def _close(self, *args: object, _conn: object = None, **options: object) -> None:
        await self.database.close()


class PostgresServer:
    """What the watch asks of a server (`watch.Server`). Between two messages the backend's table is swept."""

    # Mutable: _made, whether the tables are known to be there, and _sweep_at, the loop's time of the next sweep.
    __slots__ = ("_backend", "_database", "_made", "_sweep_at")

    def __init__(self, backend: PostgresBackend) -> None:
        self._backend = backend
        self._database = backend.database
        self._made = False
        self._sweep_at = 0.0

    async def settle(self, names: Names, debt: Debt) -> int:
        if not self._made:
            await self._database.make()
            self._made = True
        try:
            return await self._database.settle(names, debt, channel_of(names))
        except Exception:
            self._made = False  # somebody may have dropped the tables
            raise

    @asynccontextmanager
    async def listen(self, names: Names, patience_s: float) -> AsyncIterator[News]:
        said: list[str] = []
        news = asyncio.Event()

        def note(message: str) -> None:
            said[:] = [message]  # only the last one matters
            news.set()

        async def wait(timeout_s: float) -> object:
            await self._sweep_if_due(patience_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await news.wait()
            news.clear()
            if lost.is_set():
                raise ConnectionResetError("the connection that listened was lost")
            return said.pop().encode() if said else None

        async with self._database.listen(channel_of(names), note) as lost:
            losing = asyncio.get_running_loop().create_task(_pass_on(lost, news), name="cache-loss")
            try:
                yield wait
            finally:
                losing.cancel()

    async def _sweep_if_due(self, patience_s: float) -> None:
        """One that fails ends the connection's life; the next one begins with another."""
        now = asyncio.get_running_loop().time()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY_S
            async with asyncio.timeout(patience_s):
                await self._backend.sweep()


async def _pass_on(lost: asyncio.Event, news: asyncio.Event) -> None:
    await lost.wait()
    news.set()


def channel_of(names: Names) -> str:
    """Names of channels are short there."""
    return "sameflight_" + blake2b(names.channel.encode(), digest_size=16).hexdigest()
