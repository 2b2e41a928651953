"""Names to addresses: a bounded cache that survives a dead resolver.

``getaddrinfo`` runs in the loop's executor and cannot be cancelled, so a resolver that hangs would eat its threads:
at most one look-up of a name and ``running`` look-ups in all are under way, however many ask and however long it
takes. Whoever asks waits ``lookup_s`` at most and then gets the last good answer, if it is not too old.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from proxy.clock import Clock, Deadlines
from proxy.upstream import faults
from proxy.upstream.until import Until

AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]
"""As ``socket.getaddrinfo`` has it: family, type, protocol, canonical name, address."""
Addresses = tuple[str, ...]
Lookup = Callable[[str], Addresses]
"""Blocking; runs in a thread. Raises ``OSError`` (``socket.gaierror``)."""

# A name that does not exist may appear any time; a resolver in trouble is asked again sooner.
_UNKNOWN_S = 5.0
_TROUBLE_S = 1.0
_NO_SUCH_NAME = frozenset((socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)))


class Terms(NamedTuple):
    """Bounds and times of the cache, in seconds."""

    names: int = 1024
    running: int = 4
    ttl_s: float = 30.0
    lookup_s: float = 2.0
    stale_s: float = 600.0
    """How old the last good answer may be when the resolver fails."""


def look_up(host: str) -> Addresses:
    """The system's resolver, in its order of preference (RFC 6724)."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


class _Name:
    """What is known about one name."""

    # Written by Resolver alone. `running` is set from the moment a look-up is queued until it ends, even if
    # everybody has stopped waiting for it.
    __slots__ = ("addresses", "asked_at", "failed_at", "failure", "good_at", "hold_s", "running")

    def __init__(self) -> None:
        self.addresses: Addresses = ()
        self.good_at = 0.0
        self.asked_at = 0.0
        self.failure = ""
        self.failed_at = 0.0
        self.hold_s = 0.0
        self.running: asyncio.Future[None] | None = None


class Resolver:
    """The process's names. Not for other threads."""

    # _names is written by `_know` (LRU), _line and _busy by `_start` and `_run_next`.
    __slots__ = (
        "_busy",
        "_clock",
        "_deadlines",
        "_line",
        "_lookup",
        "_names",
        "_terms",
        "changes",
        "failures",
        "lookups",
        "stale_used",
    )

    def __init__(
        self, clock: Clock, deadlines: Deadlines, lookup: Lookup = look_up, terms: Terms | None = None
    ) -> None:
        self._clock = clock
        self._deadlines = deadlines
        self._lookup = lookup
        self._terms = terms or Terms()
        self._names: OrderedDict[str, _Name] = OrderedDict()
        self._line: deque[tuple[str, _Name]] = deque()
        self._busy = 0
        self.lookups = 0
        self.failures = 0
        self.stale_used = 0
        """Answers given although the resolver had failed or hung."""
        self.changes = 0
        """Look-ups that brought other addresses than the time before."""

    async def resolve(self, host: str, port: int) -> list[AddressInfo]:
        """Addresses to dial, best first. Literals and ``localhost`` never reach the resolver.

        Raises ``ProxyError`` (``UPSTREAM_UNREACHABLE``, why ``dns``).
        """
        return [_info(address, port) for address in _known_without_asking(host) or await self._addresses(host)]

    async def _addresses(self, host: str) -> Addresses:
        name = self._know(host)
        now = self._clock.now()
        if name.addresses and now - name.good_at < self._terms.ttl_s:
            return name.addresses
        if name.failure and now - name.failed_at < name.hold_s:
            return self._stale(host, name)
        if name.running is None:
            self._start(host, name)
        running = name.running
        assert running is not None
        give_up_at = name.asked_at + self._terms.lookup_s
        if now >= give_up_at:
            return self._stale(host, name)  # known to hang; whoever asked first has waited for all
        try:
            async with Until(self._deadlines, give_up_at):
                await asyncio.shield(running)
        except TimeoutError:
            # The look-up goes on and will be heard when it ends; nobody waits for it again for a while.
            self._note_failure(name, "no answer in time", _TROUBLE_S)
        if name.failure:
            return self._stale(host, name)
        return name.addresses

    def _know(self, host: str) -> _Name:
        name = self._names.get(host)
        if name is None:
            name = self._names[host] = _Name()
            if len(self._names) > self._terms.names:
                self._names.popitem(last=False)
        else:
            self._names.move_to_end(host)
        return name

    def _stale(self, host: str, name: _Name) -> Addresses:
        if name.addresses and self._clock.now() - name.good_at < self._terms.stale_s:
            self.stale_used += 1
            return name.addresses
        raise faults.unresolved(f"{host}: {name.failure}")

    def _start(self, host: str, name: _Name) -> None:
        name.running = asyncio.get_running_loop().create_future()
        name.asked_at = self._clock.now()
        self._line.append((host, name))
        self._run_next()

    def _run_next(self) -> None:
        while self._line and self._busy < self._terms.running:
            host, name = self._line.popleft()
            self._busy += 1
            self.lookups += 1
            ended = asyncio.get_running_loop().run_in_executor(None, self._lookup, host)
            ended.add_done_callback(partial(self._on_end, name))

    def _on_end(self, name: _Name, ended: asyncio.Future[Addresses]) -> None:
        self._busy -= 1
        running, name.running = name.running, None
        error = None if ended.cancelled() else ended.exception()
        if ended.cancelled() or error is not None:
            unknown = isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME
            self._note_failure(name, repr(error), _UNKNOWN_S if unknown else _TROUBLE_S)
        elif not ended.result():
            self._note_failure(name, "no addresses", _UNKNOWN_S)
        else:
            self._note_success(name, ended.result())
        if running is not None and not running.done():
            running.set_result(None)
        self._run_next()

    def _note_success(self, name: _Name, addresses: Addresses) -> None:
        if name.addresses and set(name.addresses) != set(addresses):
            self.changes += 1
        name.addresses = addresses
        name.good_at = self._clock.now()
        name.failure = ""

    def _note_failure(self, name: _Name, failure: str, hold_s: float) -> None:
        self.failures += 1
        name.failure = failure
        name.failed_at = self._clock.now()
        name.hold_s = hold_s


def _known_without_asking(host: str) -> Addresses:
    """Literals, and the names that RFC 6761 gives to the loopback."""
    if host == "localhost" or host.endswith(".localhost"):
        return ("127.0.0.1", "::1")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return ()
    return (host,)


def _info(address: str, port: int) -> AddressInfo:
    """``address`` as something to connect to; a scope (``fe80::1%eth0``) becomes a number."""
    if ":" not in address:
        return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
    plain, _, scope = address.partition("%")
    scope_id = 0
    if scope:
        scope_id = int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
    return (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (plain, port, 0, scope_id))
