"""Flights that fly together: identical requests at several processes share one upstream call through Valkey.

The first process takes the key's lease and makes the call; beside filling its own flight it tells the others of the
answer. They follow: each fills its own flight with what it is told, so that callers join, lag and leave as ever. It
is meant for places where equal requests cannot be led to one process (`nginx hash`); it is never a condition. Where
the server is away, slow, empty or full of nonsense, a flight is this process's own, as if there were no other.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from proxy.cache.breaker import Breaker
from proxy.cache.gate import Gate
from proxy.clock import Clock
from proxy.formation.bounds import Bounds
from proxy.formation.entry import BEAT, LEASE_BYTES, REPLACED, TOKEN_BYTES, Entry, Seal
from proxy.formation.landing import Landing
from proxy.formation.lead import Lead
from proxy.formation.listener import Listener
from proxy.formation.server import Instead, Look, Server
from proxy.formation.wing import Wing
from proxy.formation.writer import Writer
from proxy.valkey import FAILURES

__all__ = ["Bounds", "Formation", "Landing", "Lead", "Wing", "connect_formation"]


class Formation:
    """This process among those that share flights. One for the process.

    Connects when `start` was called or a flight first asks; owns its tasks until `close`.
    """

    # Mutable: _wings, written by follow and leave; the probing task while somebody waits; counters.
    __slots__ = (
        "_gate",
        "_looks",
        "_probing",
        "_process",
        "_wings",
        "bounds",
        "breaker",
        "clock",
        "crowded",
        "errors",
        "followed",
        "last_error",
        "led",
        "listener",
        "lost",
        "poisoned",
        "seal",
        "server",
        "skipped",
        "timeouts",
        "writer",
    )

    def __init__(self, server: Server, secret: bytes, clock: Clock, bounds: Bounds, breaker: Breaker) -> None:
        self.server = server
        self.seal = Seal(secret)
        self.clock = clock
        self.bounds = bounds
        self.breaker = breaker
        self.writer = Writer(server, clock, bounds)
        self.listener = Listener(server.client, f"{server.prefix}all", lambda: server.warm(bounds.asks))
        self._gate = Gate(bounds.asks, bounds.waiting_asks)
        self._looks = asyncio.Semaphore(bounds.asks)
        self._process = os.urandom(TOKEN_BYTES // 2)
        """Begins the tokens of this process."""
        self._wings: dict[Wing, None] = {}
        self._probing: asyncio.Task[None] | None = None
        self.led = 0
        """Flights that were told to others."""
        self.followed = 0
        """Flights that were filled with what others told."""
        self.lost: dict[str, int] = {}
        """Followed leads that came to nothing, by why."""
        self.skipped = 0
        """Flights that went alone because the server had failed a moment ago."""
        self.crowded = 0
        """The same because there were too many."""
        self.errors = 0
        self.timeouts = 0
        self.poisoned = 0
        """Leases and entries that nobody of us made."""
        self.last_error = ""

    @property
    def up(self) -> bool:
        return self.listener.connected and not self.breaker.open

    @property
    def leads(self) -> int:
        return len(self.writer)

    @property
    def wings(self) -> int:
        return len(self._wings)

    def start(self) -> None:
        """Begin to listen. Needs a running loop."""
        self.listener.start()

    async def close(self) -> None:
        """Tell what is left to tell; give back connections. Never raises."""
        if self._probing is not None:
            self._probing.cancel()
        await self.writer.close()
        await self.listener.close()
        await self.server.close(self.bounds.write_s)

    async def join(self, key: bytes, *, follows: bool = True, after: Wing | None = None) -> Lead | Wing | None:
        """Take part in the flight of ``key``: lead it, follow whoever does, or, ``None``, have nothing to do with
        others. ``after`` is a lead that was followed in vain. Never raises, never waits long.

        A lead must be told of the end in any case: `Lead.end`, `Lead.fail` or `Lead.abandon`.
        """
        tries = self.breaker.open
        if not self.listener.connected or not self.breaker.admit(self.clock.now()):
            self.skipped += 1
            return None
        if self._full or self._gate.full:
            self.breaker.withdraw()
            self.crowded += 1
            return None
        if after is not None and (wing := self._choose_next(key, after)) is not None:
            self.breaker.withdraw()
            return wing
        lead = self._make_lead(key)
        try:
            held = await self._take(key, lead, self._replace(key, after, lead), tries=tries)
        except asyncio.CancelledError:
            self.breaker.withdraw()
            lead.abandon("late")
            self.writer.add(lead)
            raise
        if held == b"":
            self.led += 1
            self.writer.add(lead)
            return lead
        return self._choose(key, held, follows=follows)

    @property
    def _full(self) -> bool:
        writer, bounds = self.writer, self.bounds
        most = writer.stored_bytes + writer.pending_bytes >= bounds.total_bytes
        return most or len(writer) >= bounds.max_leads or len(self._wings) >= bounds.max_wings

    def _make_lead(self, key: bytes) -> Lead:
        token = self._process + os.urandom(TOKEN_BYTES - len(self._process))
        return Lead(self.server, self.writer, self.seal, self.bounds, self.clock.now(), key, token)

    def _choose_next(self, key: bytes, after: Wing) -> Wing | None:
        """Who took over, where somebody said so: it may have landed already, and holds no lease then."""
        token = self.seal.token(key, after.successor)
        if token is None:
            return None
        self.followed += 1
        return Wing(self, key, token, after.successor)

    def _replace(self, key: bytes, after: Wing | None, lead: Lead) -> Instead:
        """Those who still wait for a lead that is dead are told of it by the one who comes after it."""
        if after is None:
            return Instead()
        entry = Entry(BEAT, {"dropped": REPLACED, "by": lead.holder.hex()}, b"")
        return Instead(after.holder, after.stream, self.seal.write(key, after.token, entry))

    async def _take(self, key: bytes, lead: Lead, instead_of: Instead, *, tries: bool) -> object:
        """Whoever holds the lease, ``b""`` for ``lead``, ``None`` if it cannot be told. ``tries``: it is the one that
        finds out whether the server is well again."""
        bounds, lease_ms = self.bounds, round(self.bounds.lease_s * 1e3)
        name = lead.lease_name
        try:
            async with self._gate:
                if self.breaker.open and not tries:  # it failed those who came before
                    self.skipped += 1
                    return None
                held = await self.server.take(name, lead.holder, lease_ms, instead_of, bounds.ask_s)
                if isinstance(held, bytes) and len(held) == LEASE_BYTES and self.seal.token(key, held) is None:
                    self.poisoned += 1
                    held = await self.server.take(name, lead.holder, lease_ms, Instead(held), bounds.ask_s)
        except FAILURES as error:
            self.breaker.fail(self.clock.now())
            self.note_failure(error)
            lead.abandon("late")  # the server may have done it, or do it yet
            self.writer.add(lead)
            return None
        self.breaker.succeed()
        return held

    def _choose(self, key: bytes, held: object, *, follows: bool) -> Wing | None:
        token = self.seal.token(key, held)
        if token is None or not follows or not isinstance(held, bytes):
            return None
        if token.startswith(self._process):
            return None  # a flight of our own, and the table had its reasons
        self.followed += 1
        return Wing(self, key, token, held)

    # -- what wings ask ----------------------------------------------------------------------------------------

    def follow(self, stream: str, wing: Wing) -> None:
        self._wings[wing] = None
        self.listener.follow(stream, wing)
        if self._probing is None or self._probing.done():
            self._probing = asyncio.get_running_loop().create_task(self._probe(), name="shared-flights-probe")

    def leave(self, stream: str, wing: Wing) -> None:
        self._wings.pop(wing, None)
        self.listener.leave(stream, wing)

    async def look(self, names: tuple[str, str], first: int, holder: bytes, most: int) -> Look:
        """What the server has of a flight from entry ``first`` on. Raises ``FAILURES``."""
        keep_ms, within_s = round(self.bounds.keep_s * 1e3), self.bounds.look_s
        async with self._looks:
            return await self.server.look(names, first, most, holder, keep_ms, within_s=within_s)

    def note_lost(self, why: str) -> None:
        self.lost[why] = self.lost.get(why, 0) + 1

    def note_failure(self, error: BaseException) -> None:
        if isinstance(error, TimeoutError):
            self.timeouts += 1
        else:
            self.errors += 1
        self.last_error = type(error).__name__

    async def _probe(self) -> None:
        """While somebody waits for a first byte from elsewhere: see that the server lives, so that one that hangs
        costs them no more than one that is asked for a lease."""
        while waiting := [wing for wing in self._wings if wing.waits]:
            try:
                await self.server.probe(self.bounds.probe_s)
            except FAILURES as error:
                self.note_failure(error)
                self.breaker.fail(self.clock.now())
                for wing in waiting:
                    wing.lose("hung")
            await asyncio.sleep(self.bounds.probe_every_s)

    def describe(self) -> dict[str, Any]:
        """Its state for the admin listener."""
        return {
            "up": self.up,
            "leads": self.leads,
            "wings": self.wings,
            "stored_bytes": self.writer.stored_bytes,
            "pending_bytes": self.writer.pending_bytes,
            "lost": dict(self.lost),
            "last_error": self.last_error,
        }


def connect_formation(
    url: str, secret: bytes, clock: Clock, *, prefix: str = "sameflight", bounds: Bounds | None = None
) -> Formation:
    """The formation around a Valkey or Redis server (`config.values.parse_cache_url`). ``secret`` must be the same in
    all processes that share; one of fewer than 16 bytes raises ``ValueError``."""
    bounds = Bounds() if bounds is None else bounds
    # Those that ask and look, as many again that are being closed, the writer, the listener, the probe.
    server = Server(url, prefix, max_connections=4 * bounds.asks + 3)
    return Formation(server, secret, clock, bounds, Breaker())
