"""``WireTransport``: our own HTTP/1.1 client, the transport for everything hot.

An exchange on an idle connection has no await before its write, no task and no timer: it takes the connection used
last, writes, and waits for one future, or (`start`) for nothing at all. Opening a connection, queueing for one and
sending a streamed body are the slow paths.

Redirects are answers like any other; nothing is ever followed.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from math import inf
from typing import Any

from proxy.clock import Clock, Deadlines
from proxy.upstream import faults
from proxy.upstream.base import Origin, Over, Patience, Receiver, UpstreamRequest
from proxy.upstream.compose import make_head
from proxy.upstream.connect import Connector
from proxy.upstream.counts import Caps, Counts
from proxy.upstream.pool import Limits, OriginPool
from proxy.upstream.sending import send_until
from proxy.upstream.until import Until
from proxy.upstream.wire import Hold, StaleError, WireConnection


class DirectCall(Hold):
    """An exchange that left on an idle connection in its caller's tick: no task, no future. Only the retry of one
    whose connection turned out to be dead needs a task. Implements ``base.Call``."""

    # Mutable state: the hold on the connection for the first try, and _task for the second; _over is None once told.
    __slots__ = ("_head", "_over", "_patience", "_receiver", "_request", "_started_at", "_task", "_transport")

    def __init__(  # noqa: PLR0917 - by position, for each request
        self,
        transport: WireTransport,
        request: UpstreamRequest,
        head: bytes,
        receiver: Receiver,
        patience: Patience,
        started_at: float,
        over: Over,
    ) -> None:
        self._transport = transport
        self._request = request
        self._head = head
        self._receiver = receiver
        self._patience = patience
        self._started_at = started_at
        self._over: Over | None = over
        self._task: asyncio.Task[None] | None = None
        self.connection = None
        self.waiter = None

    def end(self, error: BaseException | None) -> None:
        """Called by the connection, once."""
        if type(error) is StaleError:
            self._task = asyncio.get_running_loop().create_task(self._send_again(), context=Context())
            self._task.add_done_callback(self._sent_again)
        else:
            self._tell(error)

    async def _send_again(self) -> None:
        await self._transport.send_again(
            self._request, self._head, self._receiver, self._patience, started_at=self._started_at
        )

    def _sent_again(self, task: asyncio.Task[None]) -> None:
        self._tell(asyncio.CancelledError() if task.cancelled() else task.exception())

    def _tell(self, error: BaseException | None) -> None:
        over, self._over = self._over, None
        if over is not None:
            over(error)

    def cancel(self) -> None:
        self._over = None
        if self._task is not None:
            self._task.cancel()
        else:
            self.leave()


async def _end_of(hold: Hold) -> None:
    """Wait for the end of an exchange; whoever is cancelled meanwhile leaves it."""
    waiter = hold.waiter
    assert waiter is not None
    try:
        await waiter
    except asyncio.CancelledError:
        hold.leave()
        if waiter.done() and not waiter.cancelled():
            waiter.exception()  # nobody will ask for it; say so
        raise


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
        hold = self._send(connection, request, head, receiver, patience, now)
        try:
            if isinstance(request.body, bytes):
                await _end_of(hold)
            else:
                await send_until(connection.upload(request.body), _end_of(hold))
        except StaleError:
            if not isinstance(request.body, bytes):
                raise faults.reset("reset", "a reused connection died, and the body cannot be sent again") from None
            await self.send_again(request, head, receiver, patience, started_at=now)

    def start(
        self, request: UpstreamRequest, receiver: Receiver, patience: Patience, over: Over
    ) -> DirectCall | None:
        """See ``base.Transport``."""
        pool = self._pools.get(request.origin)
        if pool is None or type(request.body) is not bytes:
            return None
        head = make_head(request, pool.line_end)
        now = self._clock.now()
        connection = pool.take(now)
        if connection is None:
            return None
        call = DirectCall(self, request, head, receiver, patience, now, over)
        try:
            connection.send(request, head, receiver, patience, call, now, now)
        except BaseException:
            connection.abort()  # else its slot would be taken for ever
            raise
        return call

    def _send(  # noqa: PLR0917 - what `WireConnection.send` takes
        self,
        connection: WireConnection,
        request: UpstreamRequest,
        head: bytes,
        receiver: Receiver,
        patience: Patience,
        started_at: float,
    ) -> Hold:
        """Send with a future to wait for."""
        hold = Hold(self._loop.create_future())
        connection.send(request, head, receiver, patience, hold, started_at, self._clock.now())
        return hold

    async def send_again(
        self, request: UpstreamRequest, head: bytes, receiver: Receiver, patience: Patience, *, started_at: float
    ) -> None:
        """The one transparent retry. On a fresh connection nothing counts as stale, so there is no third time."""
        self.counts.stale_retries += 1
        pool = self._pools.get(request.origin) or self._pool(request.origin)
        connection = await self._open(pool, patience, started_at, fresh=True)
        await _end_of(self._send(connection, request, head, receiver, patience, started_at))

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

    # -- ahead of the first request ------------------------------------------------------------------------------

    def keep_idle(self, origin: Origin, connections: int) -> None:
        """Let so many idle connections to ``origin`` outlive the usual limit; 0 ends that."""
        pool = self._pools.get(origin)
        if pool is None and connections:
            pool = self._pool(origin)
        if pool is not None:
            pool.keep(connections)

    def missing_idle(self, origin: Origin, now: float) -> int:
        """How many are to be opened now, for ``keep_idle`` to be true."""
        pool = self._pools.get(origin)
        return 0 if pool is None or self._refusing else pool.missing(now)

    async def open_idle(self, origin: Origin, patience: Patience) -> WireConnection | None:
        """Open a connection and put it aside; ``None`` where no slot is free. Raises ``ProxyError``."""
        pool = self._pools.get(origin) or self._pool(origin)
        if self._refusing or not pool.claim():
            return None
        connection = await self._connect(pool, patience, self._clock.now() + patience.total_s)
        pool.rest(connection, self._clock.now())
        return connection

    def silent_since(self, origin: Origin) -> float:
        """When an exchange ended there last, in monotonic seconds; infinite while one is under way, 0.0 if none is
        known."""
        pool = self._pools.get(origin)
        if pool is None:
            return 0.0
        return inf if pool.busy else pool.used_at

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
