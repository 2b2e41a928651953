"""Keep-alive connections, one pool for each origin: newest first, bounded, with a short queue.

A slot is the right to have one connection; ``max_connections`` slots exist for an origin. A slot is used by an idle
connection, by a busy one, or by somebody who is opening one. Whoever finds no slot waits in line, and a slot or a
connection that becomes free goes to the head of the line, never past it.

An origin may be kept warm: then so many idle connections outlive the others, for as long as servers are known to keep
them, and `warm` opens the next ones before those are too old. They are idle connections like any other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from math import inf
from typing import Any, Final, NamedTuple

from proxy.clock import Deadlines
from proxy.upstream import faults
from proxy.upstream.base import Origin
from proxy.upstream.compose import make_line_end
from proxy.upstream.counts import Counts
from proxy.upstream.wire import WireConnection

KEEP_S: Final = 50.0
"""How long a connection of a warm origin may be idle: below the limit of the servers in front of vendors' APIs."""
RENEW_S: Final = 40.0
"""From this age on it counts as missing, so that the next one is there when it goes."""


class Limits(NamedTuple):
    """Bounds of one origin's pool."""

    max_connections: int = 1000
    max_idle: int = 256
    max_waiting: int = 1000
    queue_s: float = 1.0
    """How long an exchange waits for a slot before it is refused."""
    idle_s: float = 15.0
    """Below the idle limit of every server in front of a vendor's API (60 s and more), so that we close first."""
    max_age_s: float = 600.0
    """Connections older than this are not used again, so that traffic follows the origin's DNS."""


class OriginPool:
    """The connections to one origin."""

    # _idle is a stack, oldest first (a dictionary, so that a connection that dies in the middle leaves in one step);
    # _slots counts slots in use, _opening those without a connection yet, _swapped is a connection whose slot is
    # kept while it closes. take, adopt, abandon, release, discard, sweep and drain write them, all from the loop's
    # thread and none with an await inside. A future in _waiters is resolved with a connection, or None for a slot.
    # _warm and _idle_s are written by keep, used_at by release.
    __slots__ = (
        "_closing",
        "_counts",
        "_deadlines",
        "_idle",
        "_idle_s",
        "_limits",
        "_opening",
        "_slots",
        "_swapped",
        "_waiters",
        "_warm",
        "line_end",
        "origin",
        "used_at",
    )

    def __init__(self, origin: Origin, limits: Limits, counts: Counts, deadlines: Deadlines) -> None:
        self.origin = origin
        self.line_end = make_line_end(origin)
        """See ``compose``; kept here because it is the same for every request."""
        self._limits = limits
        self._counts = counts
        self._deadlines = deadlines
        self._idle: dict[WireConnection, None] = {}
        self._swapped: WireConnection | None = None
        self._slots = 0
        self._opening = 0
        self._waiters: deque[asyncio.Future[WireConnection | None]] = deque()
        self._closing = False
        self._warm = 0
        self._idle_s = limits.idle_s
        """How long a connection that is taken may have been idle."""
        self.used_at = 0.0
        """When an exchange gave a connection back last."""

    @property
    def is_empty(self) -> bool:
        """Nothing is lost if it is forgotten."""
        return not self._slots and not self._waiters and not self._warm

    @property
    def busy(self) -> int:
        """Connections that carry an exchange."""
        return self._slots - len(self._idle) - self._opening

    def take(self, now: float) -> WireConnection | None:
        """The idle connection used last, or ``None``. Synchronous: the common case has no await."""
        idle = self._idle
        if not idle:
            return None
        connection = idle.popitem()[0]
        if now - connection.idle_since >= self._idle_s:
            # The newest is too old, so all are.
            idle[connection] = None
            self._evict(inf)
            return None
        self._counts.reused += 1
        return connection

    async def reserve(self, now: float, give_up_at: float, *, fresh: bool) -> WireConnection | None:
        """A slot to open a connection in (``None``), or a connection that became free meanwhile.

        ``fresh`` insists on a slot. The caller owes ``adopt`` or ``abandon`` for a slot. Raises ``ProxyError``
        (``OVERLOADED``) when the queue is full or ``queue_s`` has passed, ``UPSTREAM_TIMEOUT`` if ``give_up_at``
        came first.
        """
        if self._slots >= self._limits.max_connections and fresh and self._idle:
            self._evict_oldest()
        while self._slots >= self._limits.max_connections or self._waiters:
            connection = await self._wait(now, give_up_at)
            if connection is None:
                return None  # the slot is already ours
            if connection.closed:
                continue  # it died between being handed over and our turn; its slot went to the next in line
            if not fresh:
                self._counts.reused += 1
                return connection
            self._swapped = connection
            connection.abort()
            return None
        self._slots += 1
        self._opening += 1
        return None

    async def _wait(self, now: float, give_up_at: float) -> WireConnection | None:
        if len(self._waiters) >= self._limits.max_waiting:
            raise faults.overloaded("pool_full", str(self.origin))
        waiter: asyncio.Future[WireConnection | None] = asyncio.get_running_loop().create_future()
        queue_until = now + self._limits.queue_s

        def give_up() -> None:
            if not waiter.done():
                self._counts.queue_timeouts += 1
                late = give_up_at < queue_until
                error = faults.timed_out("total") if late else faults.overloaded("pool_queue", str(self.origin))
                waiter.set_exception(error)

        deadline = self._deadlines.arm_at(min(queue_until, give_up_at), give_up)
        self._waiters.append(waiter)
        self._counts.waiting += 1
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_back(waiter.result())
            raise
        finally:
            self._counts.waiting -= 1
            deadline.cancel()
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _give_back(self, granted: WireConnection | None) -> None:
        """What a cancelled waiter had been handed goes to the next in line."""
        if granted is None:
            self.abandon()
        elif not granted.closed:
            self._put(granted, granted.idle_since)

    def adopt(self, connection: WireConnection) -> None:
        """The slot's connection is open, and busy from now on; unless it is closed already."""
        self._opening -= 1
        self._counts.opened += 1
        connection.adopted = True
        if connection.closed:
            self._free_slot()

    def abandon(self) -> None:
        """No connection came of the slot."""
        self._opening -= 1
        self._free_slot()

    def release(self, connection: WireConnection, now: float) -> None:
        connection.idle_since = self.used_at = now
        self._put(connection, now)

    def _put(self, connection: WireConnection, now: float) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if self._closing or now - connection.opened_at >= self._limits.max_age_s:
            connection.abort()
            return
        self._idle[connection] = None
        if len(self._idle) > self._limits.max_idle:
            self._evict_oldest()

    def discard(self, connection: WireConnection) -> None:
        """Called by a connection in the tick in which it closed."""
        if not connection.adopted:
            return  # whoever is opening it still holds the slot
        if self._idle.pop(connection, self) is None:
            self._counts.evicted += 1
        if connection is self._swapped:
            self._swapped = None
            self._opening += 1
        else:
            self._free_slot()

    def _free_slot(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._opening += 1
                waiter.set_result(None)
                return
        self._slots -= 1

    def sweep(self, now: float) -> int:
        """Close what has been idle for too long; the janitor's duty. Returns how many were closed."""
        evicted = self._evict(now - self._idle_s)
        spare = len(self._idle) - self._warm  # the oldest go first
        return evicted + self._evict(now - self._limits.idle_s, spare) if spare > 0 else evicted

    def drain(self) -> None:
        """Close idle connections, and busy ones as they become free."""
        self._closing = True
        self._evict(inf)

    def _evict(self, idle_since: float, most: float = inf) -> int:
        evicted = 0
        while evicted < most and self._idle and next(iter(self._idle)).idle_since <= idle_since:
            self._evict_oldest()
            evicted += 1
        return evicted

    def _evict_oldest(self) -> None:
        next(iter(self._idle)).abort()  # comes back through `discard`

    # -- kept warm -----------------------------------------------------------------------------------------------

    def keep(self, warm: int) -> None:
        """Let so many idle connections live for ``KEEP_S``; 0: none. At most ``max_idle``."""
        self._warm = min(warm, self._limits.max_idle)
        self._idle_s = max(KEEP_S, self._limits.idle_s) if warm else self._limits.idle_s

    def missing(self, now: float) -> int:
        """How many connections are to be opened for the origin to be warm. None while exchanges wait for a slot, and
        no more than there are slots."""
        if self._closing or self._waiters or not self._warm:
            return 0
        young = self._opening
        for connection in reversed(self._idle):
            if young >= self._warm or now - connection.idle_since >= RENEW_S:
                break
            young += 1
        return min(self._warm - young, self._limits.max_connections - self._slots) if young < self._warm else 0

    def claim(self) -> bool:
        """A slot, if there is one at once and nobody waits. The caller owes ``adopt`` or ``abandon`` for it."""
        if self._closing or self._waiters or self._slots >= self._limits.max_connections:
            return False
        self._slots += 1
        self._opening += 1
        return True

    def rest(self, connection: WireConnection, now: float) -> None:
        """An adopted connection that nobody has used is free."""
        connection.idle_since = now
        self._put(connection, now)

    def describe(self) -> dict[str, Any]:
        return {
            "origin": str(self.origin),
            "idle": len(self._idle),
            "busy": self.busy,
            "opening": self._opening,
            "waiting": len(self._waiters),
        }
