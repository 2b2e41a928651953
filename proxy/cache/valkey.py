"""The second level on a Valkey or Redis server: aiocache's backend with bounds, and how its generation is watched."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from aiocache.backends.redis import RedisCache

from proxy.cache.generation import Debt
from proxy.cache.memory import BytesSerializer
from proxy.cache.watch import Names, News
from proxy.valkey import FAILURES, NoScriptError, make_pool

_READ: Final = """
local values = {}
for at, key in ipairs(KEYS) do
  local value = redis.pcall('GETRANGE', key, 0, ARGV[1])
  values[at] = type(value) == 'string' and value or '?'
end
return values
"""
# The protocol names a script by its SHA-1; nothing is protected by it.
_READ_SHA: Final = hashlib.sha1(_READ.encode()).hexdigest()  # noqa: S324

# KEYS: the generation, the last cause. ARGV: the number we know, whether it must grow, a cause, the channel.
# The greatest number wins, so nothing is lost with a server's memory or a replica's lag. Nonsense counts as nothing.
_SETTLE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function sane(number)
  if number and number >= 0 and number <= now + 86400000000 then return number end
  return 0
end
local held, known, cause = sane(tonumber(redis.pcall('GET', KEYS[1]))), sane(tonumber(ARGV[1])), ARGV[3]
local new = math.max(held, known)
if cause ~= '' and redis.pcall('GET', KEYS[2]) ~= cause then
  redis.call('SET', KEYS[2], cause)
  new = math.max(now, new + 1)
elseif ARGV[2] == '1' and known <= held then
  new = math.max(now, held + 1)
elseif new == 0 then
  new = now
end
if new ~= held then
  redis.call('SET', KEYS[1], string.format('%.0f', new))
  redis.call('PUBLISH', ARGV[4], string.format('%.0f', new))
end
return string.format('%.0f', new)
"""


class ValkeyBackend(RedisCache):  # type: ignore[misc]
    """aiocache's backend over our connections. What is read is cut off past ``max_bytes``, by the server."""

    NAME = "valkey"

    def __init__(self, url: str, *, max_bytes: int, max_connections: int) -> None:
        pool = make_pool(url, max_connections=max_connections)
        # aiocache knows how to make connections from a host and a port only.
        super().__init__(serializer=BytesSerializer(), timeout=0, connection_pool_class=lambda **_: pool)
        self._last_byte = max_bytes

    async def _get(self, key: str, encoding: str | None = None, _conn: object = None) -> bytes | None:
        return (await self._multi_get([key]))[0]

    async def _multi_get(
        self, keys: list[str], encoding: str | None = None, _conn: object = None
    ) -> list[bytes | None]:
        """All in one command, which costs half of what a pipeline does. One of another type reads as ``b"?"``."""
        words = (len(keys), *keys, self._last_byte)
        try:
            values = await self.client.evalsha(_READ_SHA, *words)
        except NoScriptError:  # the server is new to us, or new itself
            values = await self.client.eval(_READ, *words)
        return [value or None for value in values]  # an absent value reads as an empty one

    async def _close(self, *args: object, _conn: object = None, **options: object) -> None:
        await self.client.connection_pool.disconnect()


class ValkeyServer:
    """What the watch asks of a server (`watch.Server`)."""

    __slots__ = ("_client",)

    def __init__(self, client: Any) -> None:
        self._client = client

    async def settle(self, names: Names, debt: Debt) -> int:
        words = (debt.known, int(debt.is_purge), debt.cause, names.channel)
        return int(await self._client.eval(_SETTLE, 2, names.generation, names.cause, *words))

    @asynccontextmanager
    async def listen(self, names: Names, patience_s: float) -> AsyncIterator[News]:
        subscription = self._client.pubsub(ignore_subscribe_messages=True)

        async def wait(timeout_s: float) -> object:
            message = await subscription.get_message(timeout=timeout_s)
            return None if message is None else message.get("data")

        try:
            async with asyncio.timeout(patience_s):
                await subscription.subscribe(names.channel)
            yield wait
        finally:
            with suppress(*FAILURES):
                await subscription.aclose()
