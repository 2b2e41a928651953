"""``WireTransport``: our own HTTP/1.1 client, the transport for everything hot.

An exchange on an idle connection has no await before its write, no task and no timer: it takes the connection used
last, writes, and waits for one future. Opening a connection, queueing for one and sending a streamed body are the
slow paths.

Redirects are answers like any other; nothing is ever followed.
"""

from __future__ import annotations

import asyncio
from typing import Any

from proxy.clock import Clock, Deadlines
from proxy.upstream import faults
from proxy.upstream.base import BodySource, Origin, Patience, Receiver, UpstreamRequest
from proxy.upstream.compose import make_head
from proxy.upstream.connect import Connector
from proxy.upstream.counts import Caps, Counts
from proxy.upstream.pool import Limits, OriginPool
from proxy.upstream.until import Until
from proxy.upstream.wire import StaleError, WireConnection


class WireTransport:
    """Carries requests over pooled connections of our own."""

    # _pools is written by `_pool` and `sweep`, _refusing by `close`; counts by everybody in the room.
    __slots__ = ("_caps", "_clock", "_connector", "_deadlines", "_limits", "_loop", "_pools", "_refusing", "counts")

    def __init__(
        self,
        clock: Clock,
        deadlines: Deadlines,
        connector: Connector,
        limits: Limits | None = None,
        caps: Caps | None = None,
    ) -> None:
        self._clock = clock
        self._deadlines = deadlines
        self._connector = connector
        self._limits = limits or Limits()
        self._caps = caps or Caps()
        self._loop = asyncio.get_running_loop()
        self._pools: dict[Origin, OriginPool] = {}
        self._refusing = False
        self.counts = Counts()

    async def exchange(self, request: UpstreamRequest, receiver: Receiver, patience: Patience) -> None:
        """See ``base.Transport``. Sends once more, on a fresh connection, if a reused one turns out to be dead."""
        now = self._clock.now()
        pool = self._pools.get(request.origin) or self._pool(request.origin)
        head = make_head(request, pool.line_end)
        connection = pool.take(now)
        if connection is None:
            connection = await self._open(pool, patience, now, fresh=False)
        waiter = connection.send(request, head, receiver, patience, now)
        try:
            if isinstance(request.body, bytes):
                await waiter
            else:
                await self._upload(connection, request.body, waiter)
        except asyncio.CancelledError:
            connection.leave(waiter)
            raise
        except StaleError:
            if not isinstance(request.body, bytes):
                raise faults.reset("reset", "a reused connection died, and the body cannot be sent again") from None
            await self._send_again(request, head, receiver, patience, started_at=now)

    async def _send_again(
        self, request: UpstreamRequest, head: bytes, receiver: Receiver, patience: Patience, *, started_at: float
    ) -> None:
        """The one transparent retry. On a fresh connection nothing counts as stale, so there is no third time."""
        self.counts.stale_retries += 1
        pool = self._pools.get(request.origin) or self._pool(request.origin)
        connection = await self._open(pool, patience, started_at, fresh=True)
        waiter = connection.send(request, head, receiver, patience, started_at)
        try:
            await waiter
        except asyncio.CancelledError:
            connection.leave(waiter)
            raise

    async def _upload(self, connection: WireConnection, body: BodySource, waiter: asyncio.Future[None]) -> None:
        """Send a streamed body while the answer may already be coming; the exchange's end ends the sending."""
        upload = connection.upload(body)
        try:
            await waiter
        except asyncio.CancelledError:
            connection.leave(waiter)
            raise
        finally:
            if not upload.done():
                upload.cancel()
                await asyncio.wait((upload,))

    async def _open(self, pool: OriginPool, patience: Patience, started_at: float, *, fresh: bool) -> WireConnection:
        """A connection for one exchange: a new one, or (unless ``fresh``) one that became free while queueing."""
        if self._refusing and not fresh:  # a retry belongs to an exchange that was accepted before
            raise faults.draining()
        total_at = started_at + patience.total_s
        connection = await pool.reserve(self._clock.now(), total_at, fresh=fresh)
        if connection is None:
            connection = await self._connect(pool, patience, total_at)
        return connection

    async def _connect(self, pool: OriginPool, patience: Patience, total_at: float) -> WireConnection:
        """Open a connection in a slot that is already ours; the slot is given back if that fails."""
        connection = WireConnection(pool, self._clock, self._deadlines, self.counts, self._caps, loop=self._loop)
        connect_at = self._clock.now() + patience.connect_s
        until = Until(self._deadlines, min(connect_at, total_at))
        try:
            async with until:
                await self._connector.connect(pool.origin, connection)
        except BaseException as error:
            pool.abandon()
            if connection.connected:
                connection.abort()
            if isinstance(error, Exception):
                self.counts.failed += 1
            if until.expired:
                raise faults.timed_out("connect" if connect_at <= total_at else "total", str(pool.origin)) from None
            raise
        connection.opened_at = self._clock.now()
        pool.adopt(connection)
        if connection.closed:
            self.counts.failed += 1
            raise faults.unreachable("reset", f"{pool.origin} closed the connection at once")
        return connection

    def _pool(self, origin: Origin) -> OriginPool:
        pool = self._pools[origin] = OriginPool(origin, self._limits, self.counts, self._deadlines)
        return pool

    def sweep(self, now: float) -> int:
        """Close connections that were idle for too long and forget origins without any; the janitor's duty."""
        closed = 0
        for origin, pool in list(self._pools.items()):
            closed += pool.sweep(now)
            if pool.is_empty:
                del self._pools[origin]
        return closed

    def describe(self) -> dict[str, Any]:
        """What the pools hold right now, and the counts."""
        return {"pools": [pool.describe() for pool in self._pools.values()], "counts": self.counts.describe()}

    async def close(self) -> None:
        """Close idle connections, busy ones as they end, and refuse new exchanges."""
        self._refusing = True
        for pool in self._pools.values():
            pool.drain()
