"""A backend for aiocache inside the process, and the serializer of all backends."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from aiocache.base import BaseCache
from aiocache.serializers import BaseSerializer

from proxy.clock import Clock


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
