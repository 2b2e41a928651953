"""Transports with their clock in the test's hand."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import pytest

from proxy.clock import Deadlines
from proxy.errors import ProxyError
from proxy.upstream.base import BodySource, Origin, Patience, Transport, UpstreamRequest
from proxy.upstream.client import WireTransport
from proxy.upstream.connect import Connector, ResumingContext, make_tls_context
from proxy.upstream.counts import Caps
from proxy.upstream.dns import Lookup, Resolver, look_up
from proxy.upstream.pool import Limits
from proxy.upstream.session import ProxyFor, SessionTransport
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import within
from tests.fakes.receiver import Recorder
from tests.fakes.wire_server import READ, Step

PATIENCE = Patience(connect_s=5.0, first_byte_s=60.0, idle_s=20.0, total_s=300.0)
CAPS = Caps(body_bytes=4 * 1024 * 1024)

_HEADERS = [(b"x-one", b"1"), (b"x-two", b"2")]


@cache
def _system_trust() -> ResumingContext:
    """Reading the system's certificates takes longer than most tests."""
    return make_tls_context()


class Rig:
    """A transport, its clock and its deadlines. ``transport`` is set by the two kinds below."""

    transport: Transport

    def __init__(self, clock: FrozenClock, lookup: Lookup = look_up) -> None:
        self.clock = clock
        self.deadlines = Deadlines(clock)
        self.resolver = Resolver(clock, self.deadlines, lookup)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.deadlines.sweep()

    async def ask(
        self,
        origin: Origin,
        body: bytes | BodySource = b"hello",
        method: str = "POST",
        recorder: Recorder | None = None,
        patience: Patience = PATIENCE,
        target: str = "/v1/things?q=%2F",
    ) -> Recorder:
        """One exchange, from its request to its end."""
        recorder = recorder or Recorder()
        request = UpstreamRequest(origin, method, target, _HEADERS, body)
        await within(self.transport.exchange(request, recorder, patience), "the exchange ended")
        return recorder

    def begin(self, *args: Any, **kwargs: Any) -> asyncio.Task[Recorder]:
        """As ``ask``, in a task of its own."""
        return asyncio.get_running_loop().create_task(self.ask(*args, **kwargs))

    async def fails(self, origin: Origin, *args: Any, **kwargs: Any) -> ProxyError:
        """As ``ask``, but returns how it failed."""
        with pytest.raises(ProxyError) as caught:
            await self.ask(origin, *args, **kwargs)
        return caught.value


class WireRig(Rig):
    """Our own HTTP/1.1."""

    def __init__(
        self,
        clock: FrozenClock,
        *,
        limits: Limits | None = None,
        caps: Caps = CAPS,
        tls: ResumingContext | None = None,
        lookup: Lookup = look_up,
        **connecting: Any,
    ) -> None:
        super().__init__(clock, lookup)
        self.tls = tls or _system_trust()
        connector = Connector(self.resolver, self.tls, **connecting)
        self.transport = self.wire = WireTransport(clock, self.deadlines, connector, limits, caps)
        self.counts = self.wire.counts

    def pool(self) -> dict[str, Any]:
        """The only origin's pool without its name."""
        (described,) = self.wire.describe()["pools"]
        return {name: value for name, value in described.items() if name != "origin"}


class SessionRig(Rig):
    """aiohttp's client."""

    def __init__(
        self,
        clock: FrozenClock,
        *,
        caps: Caps = CAPS,
        tls: ResumingContext | None = None,
        lookup: Lookup = look_up,
        limit: int = 100,
        proxy_for: ProxyFor = lambda _: None,
    ) -> None:
        super().__init__(clock, lookup)
        self.transport = self.session = SessionTransport(
            clock, self.deadlines, self.resolver, tls or _system_trust(), proxy_for, caps=caps, limit=limit
        )


def served(*steps: Step) -> list[Step]:
    """A timeline that reads one request first."""
    return [READ, *steps]


async def cancel(exchange: asyncio.Task[Recorder]) -> None:
    """Cancel, and see that the cancellation is what comes out."""
    exchange.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange
