"""The cache level that other processes may share, behind one seam; the only module that imports aiocache.

It is asked from inside a flight, so once for each key and process, and it can only ever be a short cut: whatever goes
wrong here (a refusal, a hang, garbage) is a miss and a count, never an exception and never more than the time-out.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from typing import Any, Final, Protocol

from aiocache.base import BaseCache
from aiocache.serializers import BaseSerializer

from proxy.cache.breaker import Breaker
from proxy.cache.recording import VERSION, Codec, Recording
from proxy.clock import Clock
from proxy.protocol.usage import Usage

_KEY_PREFIX: Final = f"sameflight:{VERSION}:"


class SharedCache(Protocol):
    """The seam; ``tests/seams/test_shared_cache.py`` holds every implementation to it."""

    @property
    def enabled(self) -> bool:
        """Whether asking it is of any use at all."""

    async def get(self, key: bytes) -> Recording | None:
        """The recording stored under the fingerprint, or ``None``. Never raises, never waits long."""

    async def put(self, key: bytes, recording: Recording, ttl_s: float) -> None:
        """Keep the recording for ``ttl_s`` seconds, as well as can be done. Never raises, never waits long."""

    async def close(self) -> None:
        """Give back connections. Never raises; the cache is not used afterwards."""


class NoSharedCache:
    """No second level: every look-up is a miss and nothing is kept."""

    __slots__ = ()

    enabled = False

    async def get(self, key: bytes) -> Recording | None:
        return None

    async def put(self, key: bytes, recording: Recording, ttl_s: float) -> None:
        """Forget it."""

    async def close(self) -> None:
        """Nothing was opened."""


class AiocacheShared:
    """A shared cache over any aiocache backend that stores bytes.

    aiocache's own time-out is switched off in every call: it is a task for each call on Python 3.11.
    """

    # Mutable: the breaker, and counters that only get and put write.
    __slots__ = (
        "_backend",
        "_clock",
        "_codec",
        "_get_timeout_s",
        "_put_timeout_s",
        "breaker",
        "errors",
        "hits",
        "last_error",
        "misses",
        "refused",
        "rejected",
        "skipped",
        "stored",
        "timeouts",
    )

    enabled = True

    def __init__(
        self,
        backend: BaseCache,
        codec: Codec,
        clock: Clock,
        *,
        get_timeout_s: float = 0.05,
        put_timeout_s: float = 0.5,
        breaker: Breaker | None = None,
    ) -> None:
        self._backend = backend
        self._codec = codec
        self._clock = clock
        self._get_timeout_s = get_timeout_s
        self._put_timeout_s = put_timeout_s
        self.breaker = Breaker() if breaker is None else breaker
        self.hits = 0
        self.misses = 0
        self.stored = 0
        self.refused = 0
        """Recordings not worth storing or too large for it."""
        self.rejected = 0
        """Values that are not ours: garbage, another version, a wrong hash."""
        self.errors = 0
        self.timeouts = 0
        self.skipped = 0
        """Calls not made because the breaker was open."""
        self.last_error = ""
        """Type of the last failure, for people; values and addresses stay out of it."""

    async def get(self, key: bytes) -> Recording | None:
        data = await self._ask(self._backend.get, _name(key), timeout_s=self._get_timeout_s)
        if data is None:
            self.misses += 1
            return None
        now = self._clock.now()
        recording = self._codec.decode(key, data, now, self._clock.wall())
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
        try:
            data = self._codec.encode(key, recording) if ttl_s > 0.0 else None
        except TypeError as error:  # a report that is no JSON: a defect, but not one to fail a flight for
            self._note(error)
            return
        if data is None:
            self.refused += 1
        elif await self._ask(self._backend.set, _name(key), data, timeout_s=self._put_timeout_s, ttl=ttl_s):
            self.stored += 1

    async def close(self) -> None:
        try:
            async with asyncio.timeout(self._put_timeout_s):
                await self._backend.close(timeout=0)
        except (Exception, asyncio.CancelledError) as error:
            if _is_callers(error):
                raise
            self._note(error)

    async def _ask(self, call: Any, *args: object, timeout_s: float, **options: object) -> object:
        """The backend's answer, or ``None`` if it has none in time or may not be asked."""
        if not self.breaker.admit(self._clock.now()):
            self.skipped += 1
            return None
        try:
            async with asyncio.timeout(timeout_s):
                answer: object = await call(*args, timeout=0, **options)
        except (Exception, asyncio.CancelledError) as error:
            if _is_callers(error):
                self.breaker.withdraw()
                raise
            self.breaker.fail(self._clock.now())
            self._note(error)
            return None
        self.breaker.succeed()
        return answer

    def _note(self, error: BaseException) -> None:
        if isinstance(error, TimeoutError):
            self.timeouts += 1
        else:
            self.errors += 1
        self.last_error = type(error).__name__


def _is_callers(error: BaseException) -> bool:
    """Whether this is the cancellation of the calling task, not of something inside the backend."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _name(key: bytes) -> str:
    return _KEY_PREFIX + key.hex()


class BytesSerializer(BaseSerializer):  # type: ignore[misc]
    """Hands bytes through, and tells Redis backends not to decode them as text."""

    DEFAULT_ENCODING = None

    def dumps(self, value: bytes) -> bytes:
        return value

    def loads(self, value: bytes | None) -> bytes | None:
        return value


class BoundedMemory(BaseCache):  # type: ignore[misc]
    """An aiocache backend inside the process, bounded in bytes, without timers.

    aiocache's ``SimpleMemoryCache`` has no bound and arms one timer for each key. Here a value goes when it is looked
    up too late, or when room is needed and it is the least recently used.
    """

    # Mutable: _held (key -> value and its end, oldest use first) and size_bytes, its weight; written by _set, _get,
    # _delete and _clear.
    NAME = "bounded-memory"
    _KEY_BYTES: Final = 350  # key text, tuple, float, bytes header and the place in the map

    def __init__(self, max_bytes: int, clock: Clock) -> None:
        super().__init__(serializer=BytesSerializer(), timeout=0)
        self.max_bytes = max_bytes
        self._clock = clock
        self._held: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self.size_bytes = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._held)

    async def _get(self, key: str, encoding: str | None = None, _conn: object = None) -> bytes | None:
        held = self._held.get(key)
        if held is None:
            return None
        if self._clock.now() >= held[1]:
            self._drop(key)
            return None
        self._held.move_to_end(key)
        return held[0]

    async def _set(
        self, key: str, value: bytes, ttl: float | None = None, _cas_token: object = None, _conn: object = None
    ) -> bool:
        self._drop(key)
        weight = len(value) + self._KEY_BYTES
        if weight > self.max_bytes:
            return False
        self._held[key] = (value, self._clock.now() + ttl if ttl else float("inf"))
        self.size_bytes += weight
        while self.size_bytes > self.max_bytes:
            self._drop(next(iter(self._held)))
            self.evictions += 1
        return True

    async def _delete(self, key: str, _conn: object = None) -> int:
        return self._drop(key)

    async def _clear(self, namespace: str | None = None, _conn: object = None) -> bool:
        for key in [key for key in self._held if key.startswith(namespace or "")]:
            self._drop(key)
        return True

    def _drop(self, key: str) -> int:
        held = self._held.pop(key, None)
        if held is None:
            return 0
        self.size_bytes -= len(held[0]) + self._KEY_BYTES
        return 1


def make_shared_cache(
    url: str,
    secret: bytes,
    clock: Clock | None = None,
    *,
    max_bytes: int = 64 * 1024 * 1024,
    codec: Codec | None = None,
) -> SharedCache:
    """The second level that ``url`` names: nothing for ``""``, a bounded map for ``memory://``.

    ``secret`` authenticates what is stored and must be the same in all processes that share it; the one inside a
    process makes up its own when it is empty. ``codec`` replaces the one for recordings that report a ``Usage``.
    Raises ``ValueError`` for every other URL, without repeating more of it than its scheme: it may hold a password.
    """
    if not url:
        return NoSharedCache()
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ValueError("the cache URL has no scheme: leave SAMEFLIGHT_CACHE_URL empty or use memory://")
    if scheme != "memory":
        raise ValueError(f"no cache of the kind {scheme}:// is known: leave SAMEFLIGHT_CACHE_URL empty or use memory://")
    clock = clock or Clock()
    if codec is None:
        # orjson writes the dataclass as it is.
        codec = Codec(secret or secrets.token_bytes(32), unpack_report=_read_usage)
    return AiocacheShared(BoundedMemory(max_bytes, clock), codec, clock)


def _read_usage(packed: object) -> Usage:
    if not isinstance(packed, dict):
        raise TypeError("not the fields of a usage")
    return Usage(**packed)
