"""Keep-warm: connections to configured upstreams are opened ahead of the first request, and hosts that sleep are
woken by a cheap request after a time of silence.

The janitor sweeps once a second. What is missing is opened by tasks, a few at a time and fewer for each host, so that
one that does not answer keeps nobody from the others. A host that cannot be reached, or that closes what was opened
for it at once, is left alone for a time that doubles from one second to a minute. The pools own the connections: how
long they live and who gets them is their matter (see ``pool``).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol, TypeVar

from proxy.clock import Clock
from proxy.errors import ProxyError
from proxy.protocol.message import HeaderList
from proxy.upstream.base import Origin, Patience, Receiver, UpstreamRequest
from proxy.upstream.fetch import fetch
from proxy.upstream.wire import WireConnection

AT_ONCE: Final = 8
"""Connections being opened at the same time, over all hosts."""
AT_ONCE_EACH: Final = 4
"""For one host; one while it is failing."""
PINGS_AT_ONCE: Final = 8
FIRST_HOLD_S: Final = 1.0
MOST_HOLD_S: Final = 60.0
STEADY_S: Final = 2.0
"""A connection that was closed before anybody used it and before this age speaks against opening the next."""
PING_BYTES: Final = 1024 * 1024
PING_PATH: Final = "/v1/models"

OPENING: Final = Patience(connect_s=5.0, total_s=5.0)
PINGING: Final = Patience(connect_s=5.0, first_byte_s=60.0, idle_s=10.0, total_s=60.0)
"""A host that sleeps takes its time, and waking it is the purpose."""

_MOST_DOUBLINGS: Final = 16

T = TypeVar("T")


class WarmProvider(Protocol):
    """What is read of a provider; ``config.catalog.Provider``."""

    @property
    def name(self) -> str: ...
    @property
    def scheme(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def base_path(self) -> str: ...
    @property
    def keep_warm(self) -> int:
        """Idle connections to hold open; providers at one origin have the largest of their numbers in common."""

    @property
    def ping_s(self) -> float:
        """Seconds of silence after which the host is pinged; 0: never."""

    @property
    def ping_path(self) -> str:
        """Behind the base path; empty for ``PING_PATH``."""


class WarmTransport(Protocol):
    """What is needed of a transport; ``outbound.Outbound`` and ``client.WireTransport``."""

    def exchange(self, request: UpstreamRequest, receiver: Receiver, patience: Patience) -> Awaitable[None]: ...

    def keep_idle(self, origin: Origin, connections: int) -> None: ...

    def missing_idle(self, origin: Origin, now: float) -> int: ...

    def open_idle(self, origin: Origin, patience: Patience) -> Awaitable[WireConnection | None]: ...

    def silent_since(self, origin: Origin) -> float: ...


P = TypeVar("P", bound=WarmProvider)
HeadersFor = Callable[[P], HeaderList]


class _Host:
    """One origin that is kept warm; written by `KeepWarm` only."""

    __slots__ = ("allowed", "connections", "failures", "fresh", "not_before", "opened", "opening", "origin")

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.connections = 0
        """Idle ones wanted."""
        self.opening = 0
        self.allowed = 0
        """How many may be begun before the next sweep, so that a host which closes them at once is not hammered."""
        self.opened = 0
        self.failures = 0
        """In a row."""
        self.not_before = 0.0
        """Monotonic seconds: the end of the present hold."""
        self.fresh: list[WireConnection] = []
        """Opened here, and not known yet to have been worth it; at most as many as a sweep allows."""


class _Ping:
    """The pings of one provider; written by `KeepWarm` only."""

    __slots__ = ("every_s", "heard_at", "ok", "origin", "request", "running", "status")

    def __init__(self, origin: Origin, request: UpstreamRequest, every_s: float, heard_at: float) -> None:
        self.origin = origin
        self.request = request
        self.every_s = every_s
        self.heard_at = heard_at
        """When the host was last in use, or pinged, or first wanted."""
        self.running = False
        self.ok: bool | None = None
        self.status = ""
        """Of the last one: a status code, or why there was none."""


class KeepWarm:
    """Opens connections ahead and pings. ``headers_for`` makes the headers of a provider's ping: its credential, and
    what its dialect demands besides. ``bug`` is told of what should not have happened.

    ``spread`` gives numbers in [0, 1): holds differ by ±10 %.
    """

    # Mutable state: _hosts and _pings, replaced by `keep`; _tasks, at most AT_ONCE + PINGS_AT_ONCE, each of which
    # takes itself out; _turn rotates whose turn it is; _stopped is set once. The counters only grow.
    __slots__ = (
        "_bug",
        "_clock",
        "_headers_for",
        "_hosts",
        "_opening",
        "_pinging",
        "_pings",
        "_spread",
        "_stopped",
        "_tasks",
        "_transport",
        "_turn",
        "dropped",
        "failed",
        "opened",
        "pings_failed",
        "pings_ok",
    )

    def __init__(
        self,
        clock: Clock,
        transport: WarmTransport,
        headers_for: HeadersFor[Any],
        *,
        bug: Callable[[str, BaseException], None] | None = None,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._transport = transport
        self._headers_for = headers_for
        self._bug = bug
        self._spread = spread
        self._hosts: dict[Origin, _Host] = {}
        self._pings: dict[str, _Ping] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening = self._pinging = 0
        self._turn = 0
        self._stopped = False
        self.opened = 0
        self.failed = 0
        """Connections that could not be opened."""
        self.dropped = 0
        """Connections that the host closed before anybody used them, and early."""
        self.pings_ok = 0
        self.pings_failed = 0

    # -- what is wanted -----------------------------------------------------------------------------------------

    def keep(self, providers: Iterable[WarmProvider]) -> None:
        """These are the providers from now on; to be called whenever the catalog was loaded. What is missing begins
        to be opened at once. What is known of a host is kept as long as somebody wants it."""
        hosts: dict[Origin, _Host] = {}
        pings: dict[str, _Ping] = {}
        for provider in providers:
            origin = Origin(provider.scheme, provider.host, provider.port)
            if provider.keep_warm > 0:
                wanted = hosts.get(origin)
                host = hosts[origin] = self._hosts.get(origin) or _Host(origin)
                host.connections = max(provider.keep_warm, wanted.connections if wanted is not None else 0)
            if provider.ping_s > 0:
                pings[provider.name] = self._ping_of(provider, origin)
        for origin in self._hosts.keys() - hosts.keys():
            self._transport.keep_idle(origin, 0)
        for origin, host in hosts.items():
            self._transport.keep_idle(origin, host.connections)
        self._hosts, self._pings = hosts, pings
        self.sweep(self._clock.now())

    def _ping_of(self, provider: WarmProvider, origin: Origin) -> _Ping:
        target = provider.base_path + (provider.ping_path or PING_PATH)
        request = UpstreamRequest(origin, "GET", target, self._headers_for(provider), b"")
        ping = self._pings.get(provider.name)
        if ping is None or ping.origin != origin:
            return _Ping(origin, request, provider.ping_s, self._clock.now())
        ping.request, ping.every_s = request, provider.ping_s
        return ping

    # -- the janitor's duty -------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Begin what is due. Nothing here waits."""
        if self._stopped:
            return
        hosts = list(self._hosts.values())
        self._turn = (self._turn + 1) % len(hosts) if hosts else 0
        for host in hosts[self._turn :] + hosts[: self._turn]:
            self._judge(host, now)
            host.allowed = self._transport.missing_idle(host.origin, now)
            self._open_missing(host, now)
        for ping in self._pings.values():
            self._ping_if_due(ping, now)

    def _judge(self, host: _Host, now: float) -> None:
        """What became of the connections that were opened here."""
        unsure = []
        for connection in host.fresh:
            lasted = now - connection.opened_at >= STEADY_S
            if connection.served or lasted:
                host.failures = 0
            elif connection.closed:
                self.dropped += 1
                self._hold_off(host, now)
            else:
                unsure.append(connection)
        host.fresh = unsure

    def _hold_off(self, host: _Host, now: float) -> None:
        """Twice as long as the last time; failures that come together count once."""
        if now < host.not_before:
            return
        hold_s = min(FIRST_HOLD_S * 2.0 ** min(host.failures, _MOST_DOUBLINGS), MOST_HOLD_S)
        host.failures += 1
        host.not_before = now + hold_s * (0.9 + 0.2 * self._spread())

    def _open_missing(self, host: _Host, now: float) -> None:
        if now < host.not_before:
            return
        each = 1 if host.failures else AT_ONCE_EACH
        for _ in range(min(host.allowed, each - host.opening, AT_ONCE - self._opening)):
            host.allowed -= 1
            host.opening += 1
            self._opening += 1
            self._begin(self._open(host))

    def _ping_if_due(self, ping: _Ping, now: float) -> None:
        # Kept here as well, because a pool that is empty is forgotten.
        ping.heard_at = max(ping.heard_at, min(now, self._transport.silent_since(ping.origin)))
        if ping.running or self._pinging >= PINGS_AT_ONCE or now - ping.heard_at < ping.every_s:
            return
        ping.running = True
        ping.heard_at = now
        self._pinging += 1
        self._begin(self._ping(ping))

    # -- tasks --------------------------------------------------------------------------------------------------

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, host: _Host) -> None:
        """One connection; and then the next, so that many are there before the next sweep."""
        try:
            connection = await self._transport.open_idle(host.origin, OPENING)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next sweep must not meet it at once
            self.failed += 1
            self._hold_off(host, self._clock.now())
            self._tell(error)
        else:
            if connection is not None:
                self.opened += 1
                host.opened += 1
                host.fresh.append(connection)
        finally:
            host.opening -= 1
            self._opening -= 1
        if not self._stopped:
            self._open_more(host)

    def _open_more(self, host: _Host) -> None:
        """A place is free: for the same host, else for whoever had none."""
        now = self._clock.now()
        if self._hosts.get(host.origin) is host:
            self._open_missing(host, now)
        for other in self._hosts.values():
            if self._opening >= AT_ONCE:
                break
            self._open_missing(other, now)

    async def _ping(self, ping: _Ping) -> None:
        ok = False
        try:
            answer = await fetch(self._transport, ping.request, PINGING, PING_BYTES, keep=False)
            ping.status, ok = str(answer.status), answer.status < 400
        except Exception as error:  # noqa: BLE001 - as above
            ping.status = error.why if isinstance(error, ProxyError) else "bug"
            self._tell(error)
        finally:
            ping.running = False
            self._pinging -= 1
        ping.ok = ok
        self.pings_ok += ok
        self.pings_failed += not ok

    def _tell(self, error: Exception) -> None:
        if self._bug is not None and not isinstance(error, ProxyError):
            self._bug("keep_warm", error)

    # -- the end ------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """The process drains: open nothing more, ping nobody. What is idle is the transport's to close."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Stop, and wait for what was under way to end."""
        self.stop()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def describe(self) -> dict[str, Any]:
        """What is kept warm, and how that goes."""
        now = self._clock.now()
        return {
            "hosts": [
                {
                    "origin": str(host.origin),
                    "connections": host.connections,
                    "missing": self._transport.missing_idle(host.origin, now),
                    "opening": host.opening,
                    "opened": host.opened,
                    "failures": host.failures,
                    "held_for_s": round(max(0.0, host.not_before - now), 3),
                }
                for host in self._hosts.values()
            ],
            "pings": {
                name: {"ok": ping.ok, "status": ping.status, "every_s": ping.every_s, "running": ping.running}
                for name, ping in self._pings.items()
            },
            "counts": {
                name: getattr(self, name) for name in ("opened", "failed", "dropped", "pings_ok", "pings_failed")
            },
        }
