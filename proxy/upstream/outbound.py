"""The way out: our own wire for everything direct, aiohttp's client where an outbound proxy stands in between and for
WebSockets. The latter is only made when it is first needed: most processes never do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from proxy.clock import Clock, Deadlines
from proxy.config.settings import Settings
from proxy.protocol.message import HeaderList
from proxy.upstream.base import Call, Origin, Over, Patience, Receiver, UpstreamRequest
from proxy.upstream.client import WireTransport
from proxy.upstream.connect import Connector, make_tls_context
from proxy.upstream.counts import Caps
from proxy.upstream.dns import Resolver
from proxy.upstream.pool import Limits
from proxy.upstream.proxies import ProxyRules
from proxy.upstream.session import SessionTransport
from proxy.upstream.websocket import UpstreamSocket
from proxy.upstream.wire import WireConnection

_MAX_BODY_BYTES: Final = 1 << 40
"""Of one answer: a bound for a broken upstream. Downloads are not held, and flights bound what is."""


class Outbound:
    """A transport over two transports. Needs a running loop; raises ``OSError`` or ``ValueError`` for a CA file or an
    outbound proxy that cannot be used."""

    # Mutable state: _session, made by `_proxied` once.
    __slots__ = ("_clock", "_deadlines", "_limits", "_may_proxy", "_resolver", "_rules", "_session", "_tls", "wire")

    def __init__(
        self, settings: Settings, clock: Clock, deadlines: Deadlines, environment: Mapping[str, str]
    ) -> None:
        self._clock = clock
        self._deadlines = deadlines
        self._limits = Limits(max_connections=settings.pool_max_connections, idle_s=settings.pool_idle_s)
        self._resolver = Resolver(clock, deadlines)
        self._tls = make_tls_context(settings.ca_file or None)
        self._rules = ProxyRules.from_environment(environment)
        self._may_proxy = bool(self._rules.http or self._rules.https)
        self._session: SessionTransport | None = None
        connector = Connector(self._resolver, self._tls)
        self.wire = WireTransport(clock, deadlines, connector, self._limits, Caps(body_bytes=_MAX_BODY_BYTES))

    async def exchange(self, request: UpstreamRequest, receiver: Receiver, patience: Patience) -> None:
        """See ``base.Transport``."""
        if self._is_proxied(request.origin):
            await self._proxied().exchange(request, receiver, patience)
        else:
            await self.wire.exchange(request, receiver, patience)

    def start(self, request: UpstreamRequest, receiver: Receiver, patience: Patience, over: Over) -> Call | None:
        """See ``base.Transport``."""
        if self._may_proxy and self._rules.proxy_for(request.origin) is not None:
            return None
        return self.wire.start(request, receiver, patience, over)

    def keep_idle(self, origin: Origin, connections: int) -> None:
        """See ``client.WireTransport``. Behind an outbound proxy every exchange has a connection of its own, so there
        is none to keep."""
        self.wire.keep_idle(origin, 0 if self._is_proxied(origin) else connections)

    def missing_idle(self, origin: Origin, now: float) -> int:
        """See ``client.WireTransport``."""
        return self.wire.missing_idle(origin, now)

    async def open_idle(self, origin: Origin, patience: Patience) -> WireConnection | None:
        """See ``client.WireTransport``."""
        return await self.wire.open_idle(origin, patience)

    def silent_since(self, origin: Origin) -> float:
        """See ``client.WireTransport``; 0.0 behind an outbound proxy."""
        return self.wire.silent_since(origin)

    def _is_proxied(self, origin: Origin) -> bool:
        return self._may_proxy and self._rules.proxy_for(origin) is not None

    async def connect_websocket(
        self, origin: Origin, target: str, headers: HeaderList, protocols: Sequence[str], patience: Patience
    ) -> UpstreamSocket:
        """Open a WebSocket. Raises ``HandshakeRefusedError`` or another ``ProxyError``."""
        return await self._proxied().connect_websocket(origin, target, headers, protocols, patience)

    def _proxied(self) -> SessionTransport:
        if self._session is None:
            self._session = SessionTransport(
                self._clock,
                self._deadlines,
                self._resolver,
                self._tls,
                self._rules.proxy_for,
                limit=self._limits.max_connections,
                caps=Caps(body_bytes=_MAX_BODY_BYTES),
            )
        return self._session

    def prepare(self, schemes: Iterable[str]) -> None:
        """Do now what the first call to an upstream of these schemes would have to wait for."""
        if "https" in schemes:
            self._tls.trust_system()

    @property
    def dns_stale_used(self) -> int:
        """Look-ups answered with an outdated address because the resolver failed."""
        return self._resolver.stale_used

    def sweep(self, now: float) -> None:
        """Close what was idle too long; the janitor's duty."""
        self.wire.sweep(now)

    def describe(self) -> dict[str, Any]:
        """What is open right now."""
        view = self.wire.describe()
        if self._session is not None:
            view["proxied"] = self._session.running
        return view

    async def close(self) -> None:
        """Refuse new exchanges; running ones go on."""
        await self.wire.close()
        if self._session is not None:
            await self._session.close()
