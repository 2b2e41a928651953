"""Shared limits in Valkey or Redis: two scripts under the server's clock.

A bucket is one number, the server's microsecond at which it is empty; slots are a hash of process → count and expiry.
Everything expires by itself. A server that lost its memory starts with empty buckets.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, Final

from proxy.access.limits_shared import RateLevel, SlotsWish, UnitsGrant, UnitsWish
from proxy.config.values import CACHE_SERVERS
from proxy.errors import StoreError

_TAKE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, capacity = tonumber(ARGV[1]), tonumber(ARGV[2])
local need, want, back = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local empty = tonumber(redis.call('GET', KEYS[1]) or '0')
if empty > now and back > 0 then empty = empty - math.min(back * interval, empty - now) end
if empty < now then empty = now end
local full = math.floor(capacity / interval + 0.000001)
local room = math.floor((now + capacity - empty) / interval + 0.000001)
if room < 0 then room = 0 end
local granted, wait = math.min(want, room), 0
if need > full and empty <= now then
  granted = need
elseif need > room then
  granted = 0
  wait = math.min(empty - now + need * interval - capacity, empty - now)
elseif want > room then
  wait = empty - now + (room + 1) * interval - capacity
end
empty = empty + granted * interval
if empty > now then
  redis.call('SET', KEYS[1], string.format('%.0f', empty), 'PX', math.ceil((empty - now) / 1000) + 1000)
end
return {granted, math.max(0, room - granted), math.ceil(empty - now), math.ceil(wait)}
"""

_HOLD: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit, want, lasts = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local others, entries = 0, redis.call('HGETALL', KEYS[1])
for at = 1, #entries, 2 do
  if entries[at] ~= ARGV[1] then
    local count, expires = string.match(entries[at + 1], '^(%d+):(%d+)$')
    if expires and tonumber(expires) > now then
      others = others + tonumber(count)
    else
      redis.call('HDEL', KEYS[1], entries[at])
    end
  end
end
local held = math.max(0, math.min(want, limit - others))
if held > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f:%.0f', held, now + lasts))
  redis.call('PEXPIRE', KEYS[1], lasts)
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return held
"""


def make_rate_level(url: str, prefix: str = "sameflight") -> RateLevel | None:
    """The level at a ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix://`` URL; ``None`` for any
    other. ``prefix`` begins every name there. Connects when it is first asked."""
    if url.partition("://")[0] not in CACHE_SERVERS:
        return None
    return ValkeyLevel(url, prefix)


class ValkeyLevel:
    """A server. Every failure is a ``StoreError``; waiting is bounded by the caller."""

    # Mutable: the connections inside _client.
    __slots__ = ("_client", "_errors", "_holder", "_no_script", "_prefix")

    def __init__(self, url: str, prefix: str = "sameflight") -> None:
        from proxy.valkey import FAILURES, NoScriptError, make_client  # takes a while to load

        self._client = make_client(url, max_connections=4)
        self._errors = FAILURES
        self._no_script = NoScriptError
        self._prefix = f"{prefix}:limit:"
        self._holder = os.urandom(8).hex()
        """Names this process among the holders of slots."""

    async def ask(self, units: list[UnitsWish], slots: list[SlotsWish]) -> tuple[list[UnitsGrant], list[int]]:
        try:
            answers = await self._run(units, slots)
        except self._errors as error:
            raise StoreError("unavailable", type(error).__name__) from None
        for answer in answers:
            if isinstance(answer, Exception):
                raise StoreError("unavailable", type(answer).__name__)
        split = len(units)
        return [UnitsGrant(*answer) for answer in answers[:split]], [int(answer) for answer in answers[split:]]

    async def _run(self, units: list[UnitsWish], slots: list[SlotsWish]) -> list[Any]:
        """All in one round trip, and each of them a step of its own. A script that the server does not know has done
        nothing yet, so what failed for that alone is done once more."""
        commands = [(_TAKE, self._units_words(wish)) for wish in units]
        commands += [(_HOLD, self._slots_words(wish)) for wish in slots]
        answers = await self._send([("EVALSHA", _sha(script), *words) for script, words in commands])
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, self._no_script)]
        if unknown:
            again = await self._send([("EVAL", commands[at][0], *commands[at][1]) for at in unknown])
            for at, answer in zip(unknown, again, strict=True):
                answers[at] = answer
        return answers

    async def _send(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    def _units_words(self, wish: UnitsWish) -> tuple[Any, ...]:
        key = self._prefix + wish.name
        return 1, key, repr(wish.interval_us), repr(wish.capacity_us), wish.need, wish.want, wish.back

    def _slots_words(self, wish: SlotsWish) -> tuple[Any, ...]:
        return 1, f"{self._prefix}{wish.name}:slots", self._holder, wish.limit, wish.want, wish.lasts_ms

    async def close(self) -> None:
        try:
            await self._client.aclose()
        except self._errors:
            return


def _sha(script: str) -> str:
    return _SHAS[script]


# The protocol names a script by its SHA-1; nothing is protected by it.
_SHAS: Final = {script: hashlib.sha1(script.encode()).hexdigest() for script in (_TAKE, _HOLD)}  # noqa: S324
