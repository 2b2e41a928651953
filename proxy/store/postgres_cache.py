"""The database of the shared cache, where that is PostgreSQL: connections of its own, apart from the store's, for it
may be another server, and keys and budgets do not wait behind answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from proxy.store import cache_sql
from proxy.store.postgres_errors import Fate, verdict_on
from proxy.store.postgres_pool import Pool

_CONNECT_S: Final = 2.0
_WAIT_S: Final = 5.0
"""For a connection; those that call have shorter bounds of their own."""


class Names(Protocol):
    """`cache.watch.Names`."""

    @property
    def generation(self) -> str: ...


class Debt(Protocol):
    """`cache.generation.Debt`."""

    @property
    def known(self) -> int: ...

    @property
    def is_purge(self) -> bool: ...

    @property
    def cause(self) -> str: ...


class CacheDatabase:
    """Implements `cache.postgres.Database`. A call that is cancelled takes its connection with it."""

    # Mutable state: that of its pool.
    __slots__ = ("pool",)

    def __init__(self, url: str, size: int) -> None:
        """Nothing connects before the first call."""
        self.pool = Pool(url, size=size, connect_timeout_s=_CONNECT_S, max_waiting=256)

    async def make(self) -> None:
        if not (await self._fetch(cache_sql.MADE))[0]["made"]:
            async with asyncio.timeout(_WAIT_S):
                script = "; ".join(cache_sql.MAKE)
                await self._use(lambda connection: connection.execute(f"BEGIN; {script}; COMMIT"))

    async def read(self, names: Sequence[str], most_bytes: int) -> dict[str, bytes | None]:
        return {row["name"]: row["value"] for row in await self._fetch(cache_sql.READ, list(names), most_bytes)}

    async def write(self, name: str, value: bytes, ttl_s: float) -> None:
        await self._fetch(cache_sql.WRITE, name, ttl_s or cache_sql.FOREVER, value)

    async def add(self, name: str, value: bytes, ttl_s: float) -> bool:
        return bool(await self._fetch(cache_sql.ADD, name, ttl_s or cache_sql.FOREVER, value))

    async def delete(self, name: str) -> int:
        return len(await self._fetch(cache_sql.DELETE, name))

    async def exists(self, name: str) -> bool:
        return bool(await self._fetch(cache_sql.EXISTS, name))

    async def expire(self, name: str, ttl_s: float) -> bool:
        return bool(await self._fetch(cache_sql.EXPIRE, name, ttl_s or cache_sql.FOREVER))

    async def clear(self, prefix: str) -> None:
        await self._fetch(cache_sql.CLEAR, prefix)

    async def sweep(self, rows: int) -> int:
        return len(await self._fetch(cache_sql.SWEEP, rows))

    async def weigh(self) -> int:
        return int((await self._fetch(cache_sql.WEIGH))[0]["size_bytes"])

    async def evict(self, rows: int, size_bytes: int) -> tuple[int, int]:
        gone = await self._fetch(cache_sql.EVICT, rows, size_bytes)
        return len(gone), sum(row["size_bytes"] for row in gone)

    async def settle(self, names: Names, debt: Debt, channel: str) -> int:
        """Asked every few seconds by every process: nothing is written where there is nothing to say."""
        rows = await self._fetch(cache_sql.TELL, names.generation)
        if rows and not debt.is_purge and rows[0]["cause"] == (debt.cause or rows[0]["cause"]):
            value = int(rows[0]["value"])
            if value == debt.known > 0:
                return value
        words = (names.generation, debt.known, debt.is_purge, debt.cause, channel)
        return int((await self._fetch(cache_sql.SETTLE, *words))[0]["value"])

    @asynccontextmanager
    async def listen(self, channel: str, on_message: Callable[[str], object]) -> AsyncIterator[asyncio.Event]:
        connection = await self.pool.connect(_CONNECT_S)
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            async with asyncio.timeout(_CONNECT_S):
                await connection.add_listener(channel, lambda _connection, _pid, _channel, said: on_message(said))
            yield lost
        finally:
            connection.terminate()

    async def close(self) -> None:
        await self.pool.close()

    async def _fetch(self, text: str, *values: object) -> list[Any]:
        rows: list[Any] = await self._use(lambda connection: connection.fetch(text, *values))
        return rows

    async def _use(self, call: Callable[[Any], Any]) -> Any:
        connection = await self.pool.acquire(asyncio.get_running_loop().time() + _WAIT_S)
        fate = Fate.DROP
        try:
            answer = await call(connection)
            fate = Fate.KEEP
        except Exception as error:
            fate = verdict_on(error).fate
            if fate is Fate.KEEP and connection.is_in_transaction():
                fate = Fate.DROP
            raise
        finally:
            self.pool.release(connection, fate)
        return answer
