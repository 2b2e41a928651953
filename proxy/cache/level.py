"""The second level over an aiocache backend: within bounds, behind a breaker, and never an exception.

Whatever goes wrong here (a refusal, a hang, garbage, a crowd) is a miss and a count, and takes no longer than the
time-out. An entry is named ``<prefix>:<format>:<namespace>:<generation>:<fingerprint>``; the fingerprint is a keyed
digest, and the value's own keyed hash covers it and the generation (`recording`, `generation`).
"""

from __future__ import annotations

import asyncio
import random as _random
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol

from proxy.cache.breaker import Breaker
from proxy.cache.gate import Gate
from proxy.cache.generation import Generation
from proxy.cache.recording import VERSION, Codec, Recording
from proxy.clock import Clock

_MIN_TTL_S: Final = 0.001


class Follower(Protocol):
    """Who keeps the generation the same in all processes; `watch.Watch` is one."""

    connected: bool

    @property
    def name(self) -> str:
        """Under which the server holds the generation."""

    def start(self) -> None: ...

    def urge(self) -> None: ...

    async def close(self) -> None: ...


class Bounds(NamedTuple):
    """How long a call may take in seconds, how many calls run at once, and how many more may wait for their turn."""

    get_s: float = 0.05
    put_s: float = 0.5
    gets: int = 12
    waiting_gets: int = 128
    puts: int = 4
    waiting_puts: int = 32


class _UnfitError(Exception):
    """The backend was not asked, for there is nothing to store."""


class AiocacheShared:
    """A shared cache over any aiocache backend that stores bytes.

    aiocache's own time-out is switched off in every call: it is a task for each call on Python 3.11. ``prefix``
    begins every name. With a ``watch`` each look-up asks for the generation in the same round trip.
    """

    # Mutable: the breaker, the gates, and counters that only get and put write.
    __slots__ = (
        "_backend",
        "_bounds",
        "_clock",
        "_codec",
        "_gets",
        "_prefix",
        "_puts",
        "_random",
        "breaker",
        "crowded",
        "errors",
        "generation",
        "hits",
        "last_error",
        "misses",
        "outdated",
        "refused",
        "rejected",
        "skipped",
        "stored",
        "timeouts",
        "watch",
    )

    enabled = True

    def __init__(
        self,
        backend: Any,
        codec: Codec,
        clock: Clock,
        *,
        prefix: str = f"sameflight:{VERSION}:answers:",
        bounds: Bounds | None = None,
        generation: Generation | None = None,
        watch: Follower | None = None,
        breaker: Breaker | None = None,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._backend = backend
        self._codec = codec
        self._clock = clock
        self._prefix = prefix
        self._bounds = bounds = Bounds() if bounds is None else bounds
        self._gets = Gate(bounds.gets, bounds.waiting_gets)
        self._puts = Gate(bounds.puts, bounds.waiting_puts)
        self._random = random
        self.generation = Generation(clock, 1) if generation is None else generation
        self.watch = watch
        self.breaker = Breaker() if breaker is None else breaker
        self.hits = 0
        self.misses = 0
        self.stored = 0
        self.refused = 0
        """Recordings not worth storing or too large for it."""
        self.rejected = 0
        """Values that are not ours: garbage, another version, a wrong hash, too large."""
        self.outdated = 0
        """Look-ups that met another generation than the one known here."""
        self.errors = 0
        self.timeouts = 0
        self.skipped = 0
        """Calls not made because the breaker was open."""
        self.crowded = 0
        """Calls not made because too many were waiting."""
        self.last_error = ""
        """Type of the last failure, for people; values and addresses stay out of it."""

    @property
    def up(self) -> bool:
        """Whether it can be counted on at the moment."""
        return not self.breaker.open and (self.watch is None or self.watch.connected)

    @property
    def size_bytes(self) -> int:
        """Of what the backend holds, as far as it knows."""
        return getattr(self._backend, "size_bytes", 0)

    @property
    def evictions(self) -> int:
        """Entries that this process removed there because there were too many."""
        return getattr(self._backend, "evicted", 0)

    def start(self, on_purge: Callable[[], object]) -> None:
        self.generation.on_change = on_purge
        if self.watch is not None:
            self.watch.start()

    def purge(self) -> None:
        self.generation.advance()
        if self.watch is not None:
            self.watch.urge()

    def announce(self, cause: bytes) -> None:
        if self.watch is not None:
            self.generation.announce(blake2b(cause, digest_size=16).hexdigest())
            self.watch.urge()

    async def get(self, key: bytes) -> Recording | None:
        generation = self.generation.value
        data = await self._read(generation, key)
        if data is None:
            self.misses += 1
            return None
        now = self._clock.now()
        recording = self._codec.decode(_bound(generation, key), data, now, self._clock.wall())
        if recording is None:
            self.rejected += 1
            self.misses += 1
            return None
        if recording.age_s(now) >= recording.keeps_s:
            self.misses += 1
            return None
        self.hits += 1
        return recording

    async def put(self, key: bytes, recording: Recording, ttl_s: float) -> None:
        generation = self.generation.value  # of the call: what is purged while it waits its turn is not stored anew
        if ttl_s <= 0.0 or generation == 0:
            self.refused += 1
            return
        # Never longer than asked for, and not all of a burst at the same moment.
        ttl_s = max(ttl_s * (1.0 - 0.1 * self._random()), _MIN_TTL_S)

        def store() -> Awaitable[object]:
            data = self._encode(_bound(generation, key), recording)
            options = {"timeout": 0, "ttl": ttl_s}
            return self._backend.set(self._name(generation, key), data, **options)  # type: ignore[no-any-return]

        if await self._ask(store, self._puts, self._bounds.put_s):
            self.stored += 1

    async def close(self) -> None:
        if self.watch is not None:
            await self.watch.close()
        try:
            async with asyncio.timeout(self._bounds.put_s):
                await self._backend.close(timeout=0)
        except (Exception, asyncio.CancelledError) as error:
            if _is_callers(error):
                raise
            self._note(error)

    def describe(self) -> dict[str, Any]:
        """Its state for the admin listener."""
        return {
            "up": self.up,
            "generation": self.generation.value,
            "waiting": self._gets.waiting + self._puts.waiting,
            "failures_in_a_row": self.breaker.failures,
            "last_error": self.last_error,
        }

    async def _read(self, generation: int, key: bytes) -> object:
        """What is stored under the key in this generation, provided that it is everybody's."""
        name = self._name(generation, key)
        if self.watch is None:
            return await self._ask(lambda: self._backend.get(name, timeout=0), self._gets, self._bounds.get_s)
        names = [self.watch.name, name]
        found = await self._ask(lambda: self._backend.multi_get(names, timeout=0), self._gets, self._bounds.get_s)
        if not isinstance(found, list) or len(found) != 2:
            return None
        if not self.generation.agrees(found[0]) or self.generation.value != generation:
            self.outdated += 1
            self.watch.urge()
            return None
        return found[1]

    async def _ask(self, call: Callable[[], Awaitable[object]], gate: Gate, timeout_s: float) -> object:
        """The backend's answer, or ``None`` if it has none in time or may not be asked."""
        if not self.breaker.admit(self._clock.now()):
            self.skipped += 1
            return None
        if gate.full:
            self.breaker.withdraw()
            self.crowded += 1
            return None
        try:
            async with asyncio.timeout(timeout_s), gate:
                answer = await call()
        except _UnfitError:
            self.breaker.withdraw()
            return None
        except (Exception, asyncio.CancelledError) as error:
            if _is_callers(error):
                self.breaker.withdraw()
                raise
            self.breaker.fail(self._clock.now())
            self._note(error)
            return None
        self.breaker.succeed()
        return answer

    def _encode(self, key: bytes, recording: Recording) -> bytes:
        try:
            data = self._codec.encode(key, recording)
        except TypeError as error:  # a report that is no JSON: a defect, but not one to fail a flight for
            self._note(error)
            raise _UnfitError from None
        if data is None:
            self.refused += 1
            raise _UnfitError
        return data

    def _note(self, error: BaseException) -> None:
        if isinstance(error, TimeoutError):
            self.timeouts += 1
        else:
            self.errors += 1
        self.last_error = type(error).__name__

    def _name(self, generation: int, key: bytes) -> str:
        return f"{self._prefix}{generation:x}:{key.hex()}"


def _bound(generation: int, key: bytes) -> bytes:
    """What a value's hash is bound to: an old value copied under a new name is not believed."""
    return key + generation.to_bytes(8, "big")


def _is_callers(error: BaseException) -> bool:
    """Whether this is the cancellation of the calling task, not of something inside the backend."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
