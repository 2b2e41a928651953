"""A few connections to PostgreSQL, shared by all that the store does; nobody waits for one without a bound.

No connection keeps a state of its own between transactions: no prepared statements, no settings, no session locks. So
a pooler in transaction mode may stand in between. LISTEN is the one exception and has a connection to itself.
"""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import suppress
from typing import Any, Final

import asyncpg

from proxy.errors import StoreError
from proxy.store.postgres_errors import Fate, Verdict, store_error, verdict_on

_BACKOFF_LEAST_S: Final = 0.05
_BACKOFF_MOST_S: Final = 1.0
_CLOSE_S: Final = 1.0
# A peer that answers nothing is given up by the kernel before that: data on the way, and idle.
_USER_TIMEOUT_MS: Final = 8_000
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 2))


class Pool:
    """At most ``size`` connections, the warmest first."""

    # Mutable state, all of the loop's thread: `_idle` (a stack), `_waiting`, `_generation` (raised to give up all
    # connections of before), `_retry_at` with `_failures` (no attempt to connect before that time), and counters.
    def __init__(self, url: str, *, size: int = 4, max_waiting: int = 64, connect_timeout_s: float = 2.0) -> None:
        self._url = url
        self._attributes = None if "target_session_attrs" in url else "read-write"
        self._connect_timeout_s = connect_timeout_s
        self.size = size
        self._max_waiting = max_waiting
        self._slots = asyncio.Semaphore(size)
        self._idle: list[tuple[Any, int]] = []
        self._generation = 0
        self._retry_at = 0.0
        self._probing = False
        self._failures = 0
        self._last_failure: StoreError | None = None
        self._closed = False
        self.waiting = 0
        self.in_use = 0
        self.connects = 0
        self.connect_errors = 0
        self.refused = 0
        """Calls that found too many others waiting."""

    @property
    def answers(self) -> bool:
        """Whether the last attempt to reach the database succeeded."""
        return self.connects > 0 and self._failures == 0

    @property
    def idle(self) -> int:
        return len(self._idle)

    async def acquire(self, deadline: float) -> Any:
        """A connection until ``release``; ``deadline`` is a time of the loop. Raises ``StoreError``."""
        if self._closed:
            raise StoreError("closed", transient=False)
        if self._slots.locked() and self.waiting >= self._max_waiting:
            self.refused += 1
            raise StoreError("busy", f"{self.waiting} calls wait for a connection")
        self.waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError:
            raise StoreError("timeout", "no connection became free") from None
        finally:
            self.waiting -= 1
        try:
            connection = self._pop() or await self._reconnect(deadline)
        except BaseException:
            self._slots.release()
            raise
        self.in_use += 1
        return connection

    def _pop(self) -> Any | None:
        while self._idle:
            connection, generation = self._idle.pop()
            if generation == self._generation and not connection.is_closed():
                return connection
            connection.terminate()
        return None

    async def _reconnect(self, deadline: float) -> Any:
        """While the database is away one call tries at a time, after a pause; all others are told at once."""
        now = asyncio.get_running_loop().time()
        if self._last_failure is not None and self._probing:
            raise _again(self._last_failure)
        self.check_pause()
        self._probing = True
        try:
            return await self.connect(min(self._connect_timeout_s, max(0.0, deadline - now)))
        finally:
            self._probing = False

    def check_pause(self) -> None:
        """Raise the last failure to connect again until the pause after it is over."""
        if self._last_failure is not None and asyncio.get_running_loop().time() < self._retry_at:
            raise _again(self._last_failure)

    async def connect(self, timeout_s: float) -> Any:
        """A connection outside of the pool: for listening and for migrations."""
        try:
            async with asyncio.timeout(timeout_s):
                connection = await asyncpg.connect(
                    self._url,
                    timeout=timeout_s,
                    statement_cache_size=0,
                    server_settings={"application_name": "sameflight"},
                    target_session_attrs=self._attributes,
                )
        except Exception as error:
            raise self._failed(error) from error
        self.connects += 1
        self._failures, self._last_failure = 0, None
        _guard_socket(connection)
        return connection

    def _failed(self, error: Exception) -> StoreError:
        self.connect_errors += 1
        pause_s = min(_BACKOFF_MOST_S, _BACKOFF_LEAST_S * 2 ** min(self._failures, 10))
        self._failures += 1
        self._retry_at = asyncio.get_running_loop().time() + pause_s * random.uniform(0.5, 1.0)  # noqa: S311
        verdict = verdict_on(error)
        if verdict.why == "timeout":
            verdict = Verdict("unavailable")
        self._last_failure = store_error(error, verdict)
        return self._last_failure

    def release(self, connection: Any, fate: Fate = Fate.KEEP) -> None:
        """Give a connection back, in order (between transactions) unless it is dropped."""
        self.in_use -= 1
        self._slots.release()
        if fate is Fate.DROP_ALL:
            self.expire()
        if fate is Fate.KEEP and not self._closed and not connection.is_closed():
            self._idle.append((connection, self._generation))
        else:
            connection.terminate()

    def expire(self) -> None:
        """Give up what is idle: the place it leads to has gone or changed its nature."""
        self._generation += 1
        while self._idle:
            self._idle.pop()[0].terminate()

    async def close(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            with suppress(Exception):
                await connection.close(timeout=_CLOSE_S)
            connection.terminate()


def _again(failure: StoreError) -> StoreError:
    """The same for another caller; an exception carries the traceback of the one it was raised for."""
    return StoreError(failure.why, failure.args[0].partition(": ")[2], transient=failure.transient)


def _guard_socket(connection: Any) -> None:
    """Let the kernel notice a peer that went without a word."""
    transport = getattr(connection, "_transport", None)
    guarded = transport.get_extra_info("socket") if transport is not None else None
    if guarded is None or guarded.family not in (socket.AF_INET, socket.AF_INET6):
        return
    guarded.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in _KEEPALIVE:
        if hasattr(socket, name):
            guarded.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        guarded.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
