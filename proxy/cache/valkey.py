"""The second level on a Valkey or Redis server: aiocache's backend with bounds, and the watch over a generation."""

from __future__ import annotations

import asyncio
import hashlib
import random as _random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from aiocache.backends.redis import RedisCache

from proxy.cache.generation import Generation
from proxy.cache.memory import BytesSerializer
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


class Watch:
    """Keeps a namespace's generation equal to the server's: listens for changes, and asks every few seconds in case
    a message was lost. It has one connection of its own; another one is asked over, and thereby kept ready."""

    # Mutable: the tasks between start and close; connected says whether the server was told and listened to;
    # counters. Written by the tasks.
    __slots__ = (
        "_cause_name",
        "_channel",
        "_client",
        "_every_s",
        "_generation",
        "_listening",
        "_lock",
        "_name",
        "_patience_s",
        "_random",
        "_settling",
        "connected",
        "errors",
        "last_error",
        "settled",
    )

    def __init__(
        self,
        client: Any,
        generation: Generation,
        prefix: str,
        *,
        every_s: float = 5.0,
        patience_s: float = 2.0,
        random: Callable[[], float] = _random.random,
    ) -> None:
        """``prefix`` begins the names of the namespace."""
        self._client = client
        self._generation = generation
        self._name = prefix + "generation"
        self._cause_name = prefix + "cause"
        self._channel = prefix + "purges"
        self._every_s = every_s
        self._patience_s = patience_s
        self._random = random
        self._lock = asyncio.Lock()  # or the same purge would be told twice
        self._listening: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None
        self.connected = False
        self.settled = 0
        self.errors = 0
        self.last_error = ""

    @property
    def name(self) -> str:
        """Under which the server holds the generation."""
        return self._name

    def start(self) -> None:
        """Begin to listen. Needs a running loop; may be called again."""
        if self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen(), name="cache-watch")

    def urge(self) -> None:
        """Something is to be told or does not agree: ask the server now. One at a time."""
        if self._settling is None or self._settling.done():
            self._settling = asyncio.get_running_loop().create_task(self._settle_once(), name="cache-settle")

    async def close(self) -> None:
        """Tell the server what it was not told yet, if it listens; end the tasks. Bounded; never raises."""
        if self.connected and self._generation.owes:
            self.urge()
        if self._settling is not None:
            await asyncio.wait((self._settling,), timeout=0.5)
        tasks = [task for task in (self._listening, self._settling) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self.connected = False

    async def _listen(self) -> None:
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 - whatever a server sends, the watch goes on
                self._note(error)
            self.connected = False
            await asyncio.sleep(0.5 + self._random())

    async def _follow(self) -> None:
        """One connection's life. A message is only a hint: what counts is what the server says when asked."""
        subscription = self._client.pubsub(ignore_subscribe_messages=True)
        try:
            async with asyncio.timeout(self._patience_s):
                await subscription.subscribe(self._channel)
            await self._settle()
            self.connected = True
            while True:
                message = await subscription.get_message(timeout=self._every_s)
                if message is None or not self._generation.agrees(message.get("data")):
                    await self._settle()
        finally:
            with suppress(*FAILURES):
                await subscription.aclose()

    async def _settle_once(self) -> None:
        try:
            await self._settle()
            while self._generation.owes:
                await self._settle()
        except Exception as error:  # noqa: BLE001 - the listener tries again
            self._note(error)

    async def _settle(self) -> None:
        async with asyncio.timeout(self._patience_s), self._lock:
            debt = self._generation.debt()
            words = (debt.known, int(debt.is_purge), debt.cause, self._channel)
            value = int(await self._client.eval(_SETTLE, 2, self._name, self._cause_name, *words))
            self.settled += 1
            self._generation.settle(debt, value)

    def _note(self, error: Exception) -> None:
        self.errors += 1
        self.last_error = type(error).__name__
