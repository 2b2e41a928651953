"""What is asked of the Valkey server for shared flights: five steps, each of them one script.

A lease names who leads a key; it ends by itself. A stream holds what that lead has told, in order; its name is the
token's, so that two who take themselves for the lead never write into each other's answer. Each entry is also
published under the stream's name, and the number of those who heard it is how the lead knows that it is needed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine
from typing import Any, Final, NamedTuple, TypeVar

from proxy.formation.entry import LEASE_BYTES, MAX_ENTRY_BYTES, VERSION
from proxy.valkey import FAILURES, NoScriptError, make_client

T = TypeVar("T")

# KEYS: lease. ARGV: our value, ms, the value that we take it from ('' for nobody's), that one's stream, and what
# those who follow it are told then. What is no string, or not as long as a lease, is nobody's and is taken over.
_TAKE: Final = f"""
local held = redis.pcall('GETRANGE', KEYS[1], 0, {LEASE_BYTES})
if type(held) ~= 'string' then redis.call('DEL', KEYS[1]) held = '' end
if held ~= '' and held ~= ARGV[3] and #held == {LEASE_BYTES} then return held end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if ARGV[5] ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
return ''
"""

# KEYS: stream, lease. ARGV: number, entry, the stream's ms, our lease, its ms (0: give it up), the number before
# which nothing is kept. Answers how many heard it, whether it is kept, and whether the lease is ours. Saying it twice
# is as good as once.
_TELL: Final = """
local kept, mine = 1, 0
if ARGV[1] ~= '0' then
  local id = ARGV[1] .. '-0'
  if type(redis.pcall('XADD', KEYS[1], id, 'e', ARGV[2])) ~= 'string' then
    local found = redis.pcall('XRANGE', KEYS[1], id, id)
    if found.err or #found ~= 1 or found[1][2][2] ~= ARGV[2] then kept = 0 end
  end
  if tonumber(ARGV[6]) > 1 then redis.pcall('XTRIM', KEYS[1], 'MINID', ARGV[6] .. '-0') end
end
redis.pcall('PEXPIRE', KEYS[1], ARGV[3])
if redis.pcall('GETRANGE', KEYS[2], 0, #ARGV[4]) == ARGV[4] then
  mine = 1
  if ARGV[5] == '0' then redis.call('DEL', KEYS[2]) else redis.call('PEXPIRE', KEYS[2], ARGV[5]) end
end
return {redis.call('PUBLISH', KEYS[1], ARGV[2]), kept, mine}
"""

# KEYS: stream, lease. ARGV: a beat, number and entry of the farewell, the stream's ms, our lease. Answers how many
# still listen; if it is nobody, whoever comes later finds the farewell before anything else.
_PART: Final = """
local heard = redis.call('PUBLISH', KEYS[1], ARGV[1])
if heard == 0 then
  redis.pcall('XADD', KEYS[1], ARGV[2] .. '-0', 'e', ARGV[3])
  redis.pcall('PEXPIRE', KEYS[1], ARGV[4])
  if redis.pcall('GETRANGE', KEYS[2], 0, #ARGV[5]) == ARGV[5] then redis.call('DEL', KEYS[2]) end
end
return heard
"""

# KEYS: stream, lease. ARGV: first number, how many, the longest entry, whose lease, how long the stream is to stay.
# Answers whether the lead has its lease, and the entries, each cut off past the longest.
_LOOK: Final = """
local answer = {0}
if redis.pcall('GETRANGE', KEYS[2], 0, #ARGV[4]) == ARGV[4] then answer[1] = 1 end
local found = redis.pcall('XRANGE', KEYS[1], ARGV[1] .. '-0', '+', 'COUNT', ARGV[2])
if found.err then return {answer[1], '?'} end
for at, entry in ipairs(found) do answer[at + 1] = string.sub(entry[2][2], 1, tonumber(ARGV[3])) end
local left = redis.call('PTTL', KEYS[1])
if left >= 0 and left < tonumber(ARGV[5]) then redis.call('PEXPIRE', KEYS[1], ARGV[5]) end
return answer
"""

# The protocol names a script by its SHA-1; nothing is protected by it.
_SHAS: Final = {script: hashlib.sha1(script.encode()).hexdigest() for script in (_TAKE, _TELL, _PART, _LOOK)}  # noqa: S324

_PUNCTUAL_S: Final = 0.002

_TURNS: Final = 6
"""Turns of the loop in which an answer that is there already gets through redis to whoever waits for it."""


class Telling(NamedTuple):
    """One entry to be told, and what is to become of stream and lease with it."""

    stream: str
    lease: str
    number: int
    entry: bytes
    stream_ms: int
    holder: bytes
    lease_ms: int
    keep_from: int


class Told(NamedTuple):
    """What came of a `Telling`."""

    heard: int
    kept: bool
    mine: bool


class Farewell(NamedTuple):
    """The last words of a lead that nobody needs; see ``_PART``."""

    stream: str
    lease: str
    beat: bytes
    number: int
    entry: bytes
    stream_ms: int
    holder: bytes


class Instead(NamedTuple):
    """Whose lease is taken over, and what those who follow that one are told."""

    holder: bytes = b""
    stream: str = ""
    entry: bytes = b""


class Look(NamedTuple):
    """What the server has of a flight."""

    held: bool
    entries: list[bytes]


class Server:
    """The server, with every wait bounded by the caller. Failures are ``FAILURES`` (time-outs among them)."""

    # Mutable: the connections inside `client`.
    __slots__ = ("client", "prefix")

    def __init__(self, url: str, prefix: str, *, max_connections: int) -> None:
        self.client: Any = make_client(url, max_connections=max_connections)
        self.prefix = f"{prefix}:{VERSION}:flights:"

    def names(self, key: bytes, token: bytes) -> tuple[str, str]:
        """Of the stream and of the lease."""
        lease = self.prefix + key.hex()
        return f"{lease}:{token.hex()}", lease

    async def take(self, lease: str, holder: bytes, lease_ms: int, instead_of: Instead, within_s: float) -> object:
        """Take the lease, if it is nobody's or ``instead_of``'s: ``b""`` if it is ours, else whoever has it."""
        return await bounded(self._run(_TAKE, (lease,), (holder, lease_ms, *instead_of)), within_s)

    async def tell(self, tellings: list[Telling], within_s: float) -> list[Told | None]:
        """All in one round trip, each a step of its own; ``None`` where the server would not."""
        return await bounded(self._tell(tellings), within_s)

    async def part(self, farewell: Farewell, within_s: float) -> int:
        """How many listen; if nobody does the farewell was said."""
        words = farewell.beat, farewell.number, farewell.entry, farewell.stream_ms, farewell.holder
        return int(await bounded(self._run(_PART, (farewell.stream, farewell.lease), words), within_s))

    async def look(
        self, names: tuple[str, str], first: int, most: int, holder: bytes, keep_ms: int, *, within_s: float
    ) -> Look:
        """At most ``most`` entries from number ``first`` on; the stream stays for ``keep_ms`` more at least."""
        words = first, most, MAX_ENTRY_BYTES, holder, keep_ms
        held, *entries = await bounded(self._run(_LOOK, names, words), within_s)
        return Look(bool(held), entries)

    async def warm(self, connections: int) -> None:
        """Open so many connections and teach the server the scripts, so that the first who asks waits for neither."""
        await asyncio.gather(*(self.client.script_load(_TAKE) for _ in range(connections)))
        for script in (_TELL, _PART, _LOOK):
            await self.client.script_load(script)

    async def probe(self, within_s: float) -> None:
        """Whether it answers at all."""
        await bounded(self.client.ping(), within_s)

    async def close(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                await self.client.aclose()
        except FAILURES:
            return

    async def _run(self, script: str, keys: tuple[str, ...], words: tuple[Any, ...]) -> Any:
        try:
            return await self.client.evalsha(_SHAS[script], len(keys), *keys, *words)
        except NoScriptError:  # the server is new to us, or new itself; nothing was done yet
            return await self.client.eval(script, len(keys), *keys, *words)

    async def _tell(self, tellings: list[Telling]) -> list[Told | None]:
        answers = await self._send("EVALSHA", _SHAS[_TELL], tellings)
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            again = await self._send("EVAL", _TELL, [tellings[at] for at in unknown])
            for at, answer in zip(unknown, again, strict=True):
                answers[at] = answer
        return [None if isinstance(a, Exception) else Told(int(a[0]), bool(a[1]), bool(a[2])) for a in answers]

    async def _send(self, command: str, script: str, tellings: list[Telling]) -> list[Any]:
        async with self.client.pipeline(transaction=False) as pipeline:
            for t in tellings:
                words = t.number, t.entry, t.stream_ms, t.holder, t.lease_ms, t.keep_from
                pipeline.execute_command(command, script, 2, t.stream, t.lease, *words)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers


async def bounded(call: Coroutine[Any, Any, T], within_s: float) -> T:
    """The call's result, or ``TimeoutError``. A loop that was late itself waits as long once more, and looks again
    before it blames the server: timer and answer are then ready in the same turn, and the timer would always win."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(call)
    try:
        until = loop.time() + within_s
        await asyncio.wait((task,), timeout=within_s)
        late_s = loop.time() - until
        if not task.done() and late_s > _PUNCTUAL_S:
            await asyncio.wait((task,), timeout=min(late_s, within_s))
        for _ in range(_TURNS):
            if task.done():
                return task.result()
            await asyncio.sleep(0)
        raise TimeoutError
    finally:
        if not task.done():
            task.add_done_callback(_forget)
            task.cancel()


def _forget(task: asyncio.Task[Any]) -> None:
    """Whatever closing a connection came to; asked for, so that asyncio does not report it."""
    if not task.cancelled():
        task.exception()
