"""The level that processes share, as the ring sees it: records sealed under a derived secret, in any cache of bytes.

Write access to that cache must not be a way to make keys, so nothing is taken from it that was not sealed here. The
names are digests of digests: a list of names is of no use to anybody.
"""

from __future__ import annotations

import hmac
from typing import Any, Final, Protocol

from proxy.access.levels import Reading
from proxy.access.sealed import seal, unseal
from proxy.clock import Clock
from proxy.config.keypack import SharedKey, pack, unpack_shared

_LABEL: Final = b"shared-key/"


class Level(Protocol):
    """A cache such as `cache.shared.AiocacheShared` with a `KeyCodec`. Never raises, never waits long."""

    async def get(self, key: bytes) -> Any: ...

    async def put(self, key: bytes, value: Any, ttl_s: float) -> None: ...


class SharedReading:
    """A reading as the cache hands it over, with the age that the cache asks for."""

    __slots__ = ("keeps_s", "reading")

    def __init__(self, reading: Reading, keeps_s: float) -> None:
        self.reading = reading
        self.keeps_s = keeps_s

    def age_s(self, now: float) -> float:
        return max(0.0, now - self.reading.read_at)


class KeyCodec:
    """Readings to sealed bytes and back; stands in for `cache.recording.Codec`."""

    __slots__ = ("_clock", "_keeps_s", "_secret")

    max_bytes = 256 * 1024
    """Longer values are not looked into; a record with all that a form can say is shorter."""

    def __init__(self, secret: bytes, clock: Clock, keeps_s: float) -> None:
        self._secret = secret
        self._clock = clock
        self._keeps_s = keeps_s

    def encode(self, key: bytes, value: Any) -> bytes:
        reading: Reading = value
        read_wall = self._clock.wall() - (self._clock.now() - reading.read_at)
        return seal(self._secret, _LABEL + key, pack(SharedKey(reading.record, reading.as_of, read_wall)))

    def decode(self, key: bytes, data: object, now: float, wall: float) -> SharedReading | None:
        """The reading stored under ``key``, or ``None`` for anything that is not ours."""
        payload = unseal(self._secret, _LABEL + key, data) if isinstance(data, bytes) else None
        if payload is None:
            return None
        try:
            shared = unpack_shared(payload)
        except ValueError:
            return None  # of another release
        read_at = now - max(0.0, wall - shared.read_wall)
        return SharedReading(Reading(shared.record, shared.as_of, read_at), self._keeps_s)


class SharedKeyring:
    """Implements `levels.SharedKeys` over a cache."""

    __slots__ = ("_level", "_names", "_ttl_s")

    def __init__(self, level: Level, secret: bytes, ttl_s: float) -> None:
        self._level = level
        self._names = secret
        self._ttl_s = ttl_s

    async def get(self, digest: bytes) -> Reading | None:
        found: SharedReading | None = await self._level.get(self._name(digest))
        if found is None or not hmac.compare_digest(found.reading.record.digest, digest):
            return None
        return found.reading

    async def put(self, reading: Reading) -> None:
        await self._level.put(self._name(reading.record.digest), reading, self._ttl_s)

    def _name(self, digest: bytes) -> bytes:
        return hmac.digest(self._names, digest, "sha256")
