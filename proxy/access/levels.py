"""Where keys come from that are not in memory: the shared level if there is one, and the database.

Few questions at a time, and none for a moment after the database failed: a database that struggles is not helped by
a question for each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from proxy.clock import Clock
from proxy.config.keys import KeyRecord
from proxy.errors import Kind, ProxyError

_FIRST_HOLD_OFF_S: Final = 0.2
_LONGEST_HOLD_OFF_S: Final = 5.0


class KeySource(Protocol):
    """The database, as far as it is asked for one key."""

    async def find_key(self, digest: bytes, /) -> KeyRecord | None:
        """Raises ``StoreError``."""


class Reading(NamedTuple):
    """What the shared level knows of a key."""

    record: KeyRecord
    as_of: int
    read_at: float
    """On this process's monotonic clock."""


class SharedKeys(Protocol):
    """The level that processes share. Never raises, never waits long."""

    async def get(self, digest: bytes) -> Reading | None: ...

    async def put(self, reading: Reading) -> None: ...


class Tuning(NamedTuple):
    """Bounds and times of the ring, in seconds."""

    fresh_s: float = 30.0
    stale_s: float = 900.0
    unknown_s: float = 5.0
    """Least time for which an unknown key is not looked up again; twice that is the most."""
    lookup_s: float = 5.0
    """Longest look-up, whatever the levels below it do."""
    unwatched_s: float = 2.0
    """A process that was not ticked for this long was suspended, and does not know what it missed."""
    max_keys: int = 100_000
    max_unknown: int = 10_000
    max_lookups: int = 256
    """Keys that are looked up at the same time; who comes beyond that is turned away."""
    max_queries: int = 16
    """Queries at the same time."""


class Levels:
    """Reads one key at a time. Knows whether the database answers, whoever asked it last."""

    # Mutable state: _failures in a row, _retry_at, and the counters; written by read, fail_fetch, failed, succeeded.
    __slots__ = (
        "_clock", "_failures", "_jitter", "_queries", "_retry_at", "_shared", "_source",
        "fetch_failures", "fetches", "shared_hits",
    )

    def __init__(
        self,
        source: KeySource,
        clock: Clock,
        shared: SharedKeys | None,
        max_queries: int,
        jitter: Callable[[], float],
    ) -> None:
        self._source = source
        self._clock = clock
        self._shared = shared
        self._jitter = jitter
        self._queries = asyncio.Semaphore(max_queries)
        self._failures = 0
        self._retry_at = 0.0
        self.fetches = 0
        """Queries of the database, for keys one by one."""
        self.fetch_failures = 0
        self.shared_hits = 0

    @property
    def up(self) -> bool:
        """Whether the last question to the database was answered."""
        return not self._failures

    def may_ask(self, now: float) -> bool:
        """Not for a moment after a failure."""
        return now >= self._retry_at

    async def read(
        self, digest: bytes, version: Callable[[], int], is_usable: Callable[[Reading], bool]
    ) -> Reading | None:
        """The key, ``None`` if there is none. ``version`` is how far changes have been applied, ``is_usable`` judges
        what the shared level has. Raises whatever the database raises."""
        shared = self._shared
        if shared is not None:
            reading = await shared.get(digest)
            if reading is not None and is_usable(reading):
                self.shared_hits += 1
                return reading
        async with self._queries:
            as_of, began = version(), self._clock.now()
            self.fetches += 1
            record = await self._source.find_key(digest)
        self.succeeded()
        if record is None:
            return None
        reading = Reading(record, as_of, began)
        if shared is not None:
            await shared.put(reading)
        return reading

    def fail_fetch(self) -> None:
        """A key could not be read."""
        self.fetch_failures += 1
        self.failed()

    def failed(self) -> None:
        """The database did not answer: it is left alone for a moment, longer each time."""
        self._failures += 1
        pause_s = min(_LONGEST_HOLD_OFF_S, _FIRST_HOLD_OFF_S * 2.0 ** min(self._failures - 1, 10))
        self._retry_at = self._clock.now() + pause_s * (0.9 + 0.2 * self._jitter())

    def succeeded(self) -> None:
        """The database answered."""
        self._failures = 0
        self._retry_at = 0.0


def unknown_key() -> ProxyError:
    """The one refusal of everything that is not a key anybody knows."""
    return ProxyError(Kind.INVALID_KEY, "This Sameflight key is not known here.")


def unavailable(detail: str) -> ProxyError:
    """Nobody can tell whether the key is valid."""
    return ProxyError(
        Kind.AUTH_UNAVAILABLE,
        "Keys cannot be checked at the moment; try again.",
        detail=detail,
        retry_after_s=1.0,
    )
