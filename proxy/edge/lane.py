"""The fast lane: plain requests from the wire to the pipeline without a task, a future or an object of aiohttp's.

It stands in front of `Connection`. A plain request (see `heads`) is read here, admitted, and its answer is relayed as
on the other lane; the first request that is not plain goes to a `Connection`, with all its bytes and the connection,
before anything else was done about it. So nothing is decided here about requests that are odd: they are refused,
limited and timed out in one place. A `Connection` gives back what it was given with the next plain request, if it can
be sure where the last one ended.

What a connection waits for (its first head, the next one, a body, the client's window) is looked at by one recurring
deadline, often enough to be in time for each; a request arms and cancels none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Final, cast

from proxy.clock import Deadline
from proxy.edge.body import Pace
from proxy.edge.heads import PlainHead
from proxy.edge.relay import Relay
from proxy.edge.sockets import PARTING_S, has_hung_up, reset, tune
from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange

if TYPE_CHECKING:
    from proxy.edge.server import DataServer

EARLY_BYTES: Final = 64 * 1024
"""How much of the next request is taken before the answer to the last has ended; then the client is not read."""


class Lane(asyncio.Protocol):
    """One client connection with plain requests. Implements `relay.Wire` for the exchange that runs on it."""

    # Mutable state: transport (until the connection is lost or handed over), relay (while an exchange runs), _known
    # (the head of the last request), _pieces, _missing_bytes and _pace (while a body is read), _waiting (the task
    # that waits for an admission), _early (what came behind the running request), _full_since (while the client
    # takes nothing), _held (while it is not read because it was turned away), _idle_since and _silent (no request
    # yet), _parting_at (since what still comes is thrown away).
    # Written by the loop's calls, by the relay's and by _look, all in this class.
    __slots__ = (
        "_early",
        "_full_since",
        "_held",
        "_idle_since",
        "_known",
        "_missing_bytes",
        "_pace",
        "_parting_at",
        "_pieces",
        "_server",
        "_silent",
        "_waiting",
        "_watch",
        "relay",
        "transport",
    )

    def __init__(self, server: DataServer) -> None:
        self._server = server
        self.transport: asyncio.Transport | None = None
        self.relay: Relay | None = None
        self._known: PlainHead | None = None
        self._pieces: list[bytes] = []
        self._missing_bytes = 0
        self._pace: Pace | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._early: list[bytes] = []
        self._full_since: float | None = None
        self._held: Deadline | None = None
        self._idle_since = 0.0
        self._silent = True
        self._parting_at: float | None = None
        self._watch: Deadline | None = None

    # -- the transport's calls -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._server.opened += 1
        self._take_up(cast("asyncio.Transport", transport))
        tune(cast("asyncio.Transport", transport))

    def adopt(self, transport: asyncio.Transport, data: bytes) -> None:
        """Take a connection back from aiohttp, with the request that makes it worth while."""
        transport.set_protocol(self)
        self._take_up(transport)
        self._take_request(data)

    def _take_up(self, transport: asyncio.Transport) -> None:
        server = self._server
        self.transport = transport
        server.enter(self, transport)
        self._idle_since = now = server.clock.now()
        self._watch = server.tools.deadlines.arm_at(now + server.look_every_s, self._look)

    def data_received(self, data: bytes) -> None:
        if self.relay is None:
            if self._full_since is not None:
                self._take_early(data)  # else whoever sends and does not read makes us hold every answer
            elif self._parting_at is None:
                self._take_request(data)
        elif self._missing_bytes:
            self._take_body(data)
        else:
            self._take_early(data)

    def eof_received(self) -> bool:
        # As in `Connection`: FIN counts as gone unless the operator says otherwise.
        if self._server.abort_on_half_close or self.relay is None:
            return False
        self.relay.close_after = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is None:
            return  # it was handed over
        self._let_go()
        if self.relay is not None:
            self.relay.lost()

    def pause_writing(self) -> None:
        self._full_since = self._server.clock.now()
        if self.relay is not None:
            self.relay.pause()

    def resume_writing(self) -> None:
        self._full_since = None
        if self.relay is not None:
            self.relay.resume()
        elif self._early:
            self._go_on()

    # -- requests --------------------------------------------------------------------------------------------

    def _take_request(self, data: bytes) -> None:
        """The first bytes of a request, nearly always all of them."""
        server = self._server
        self._silent = False
        known = self._known
        measured = known.measure(data) if known is not None else None
        if measured is None:
            known = self._known = server.heads.read(data)
            measured = known.measure(data) if known is not None else None
        if known is None or measured is None:
            self._hand_over([data])
            return
        length, at = measured
        missing = length - len(data) + at
        if missing < 0 or length > server.limits.max_bytes:
            self._hand_over([data])  # pipelined, or to be refused
            return
        exchange = Exchange(known.head, server.clock.now())
        self.relay = relay = Relay(
            exchange,
            self,
            server.pipeline,
            server.tools,
            http10=False,
            close_after=server.draining,
            on_done=self._on_done,
        )
        server.running += 1
        self._missing_bytes = missing
        try:
            self._admit(exchange, relay, data[at:] if at < len(data) else b"")
        except ProxyError as error:
            self._refuse(error)
        except Exception as bug:  # noqa: BLE001 - whatever it is, the client gets an answer and the books get a line
            self._stumble(bug)

    def _admit(self, exchange: Exchange, relay: Relay, body: bytes) -> None:
        server = self._server
        server.pipeline.admit(exchange)
        if exchange.wait is not None:
            self._pieces.append(body)
            self._pause_reading()
            self._waiting = server.loop.create_task(self._wait(exchange.wait))
        elif self._missing_bytes:
            self._expect_body(body)
        else:
            exchange.body = body
            exchange.bytes_in = len(body)
            server.pipeline.serve(exchange, relay)

    async def _wait(self, admission: Awaitable[object]) -> None:
        """Go on where `_admit` stopped, once it is known whether it may."""
        relay = self.relay
        assert relay is not None
        try:
            await admission
            if not relay.done:
                body = self._pieces.pop()
                if self._missing_bytes:
                    self._expect_body(body)
                else:
                    self._serve(body)
        except ProxyError as error:
            if not relay.done:
                self._refuse(error)
        except Exception as bug:  # noqa: BLE001 - as above
            self._stumble(bug)
        finally:
            self._waiting = None
            self._resume_reading()

    def _expect_body(self, body: bytes) -> None:
        server = self._server
        now = server.clock.now()
        self._pace = Pace(server.limits, now, bounded=True)
        self._pace.ask(now)
        self._pieces = [body] if body else []

    def _take_body(self, data: bytes) -> None:
        size, missing = len(data), self._missing_bytes
        if size < missing:
            self._missing_bytes = missing - size
            self._pieces.append(data)
            if self._pace is not None:
                self._pace.count(size)
            return
        if size > missing:
            self._take_early(data[missing:])
            data = data[:missing]
        pieces = self._pieces
        if pieces:
            pieces.append(data)
            data = b"".join(pieces)
            pieces.clear()
        self._missing_bytes = 0
        self._pace = None
        self._serve(data)

    def _serve(self, body: bytes) -> None:
        relay = self.relay
        assert relay is not None
        exchange = relay.exchange
        exchange.body = body
        exchange.bytes_in = len(body)
        self._server.pipeline.serve(exchange, relay)

    def _refuse(self, error: ProxyError) -> None:
        relay = self.relay
        assert relay is not None
        if self._missing_bytes:
            relay.close_after = True  # an unread body is in the way of the next request
        relay.fail(error)

    def _stumble(self, bug: Exception) -> None:
        self._server.pipeline.books.bug("edge", bug)
        relay = self.relay
        if relay is not None:
            relay.close_after = True
            relay.fail(ProxyError(Kind.BUG, "Internal error.", detail=repr(bug)))

    def _take_early(self, data: bytes) -> None:
        self._early.append(data)
        if sum(map(len, self._early)) > EARLY_BYTES:
            self._pause_reading()

    # -- between two requests --------------------------------------------------------------------------------

    def _on_done(self) -> None:
        """The relay's last call."""
        server, relay = self._server, self.relay
        assert relay is not None
        self.relay = None
        self._idle_since = server.clock.now()
        server.end_exchange()
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self._missing_bytes:
            self._part(transport)
        elif relay.close_after:
            transport.close()
        elif relay.exchange.error is not None and self._hold(relay.exchange.error):
            return
        elif self._early and self._full_since is None:
            self._go_on()

    def _hold(self, error: ProxyError) -> bool:
        """Do not read whoever was just turned away until it was told to come back, where turning away has become a
        burden of its own; the request that it sends meanwhile waits in the kernel."""
        server = self._server
        gate = server.pipeline.gate
        if error.kind is not Kind.OVERLOADED or gate is None:
            return False
        hold_s = gate.hold_s(error, self._idle_since)
        if hold_s > 0.0:
            self._pause_reading()
            self._held = server.tools.deadlines.arm(hold_s, self._release)
        return hold_s > 0.0

    def _release(self) -> None:
        self._held = None
        if self._early:
            self._go_on()
        else:
            self._resume_reading()

    def _go_on(self) -> None:
        """There is a next request already: the client pipelines, and somebody else keeps the order."""
        self._resume_reading()
        early, self._early = self._early, []
        self._hand_over(early)

    def _hand_over(self, reads: list[bytes]) -> None:
        """The next request, as it was read, and everything after it is aiohttp's."""
        transport = self.transport
        assert transport is not None
        self._let_go()
        self._server.make_connection().adopt(transport, reads)

    def _let_go(self) -> None:
        self.transport = self._known = None
        self._server.leave(self)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._held is not None:
            self._held.cancel()
            self._held = None

    def _part(self, transport: asyncio.Transport) -> None:
        """Close after an answer that the client did not wait for."""
        self._parting_at = self._server.clock.now()
        self._missing_bytes = 0
        self._pieces.clear()
        self._pace = None
        try:
            transport.write_eof()
            self._resume_reading()
        except OSError:  # the client is gone, and the loop has not said so yet
            transport.abort()

    def _pause_reading(self) -> None:
        transport = self.transport
        if transport is not None and self not in self._server.deaf and not transport.is_closing():
            self._server.deaf[self] = None
            transport.pause_reading()

    def _resume_reading(self) -> None:
        transport = self.transport
        if transport is not None and self._server.deaf.pop(self, self) is None and not transport.is_closing():
            transport.resume_reading()

    def has_hung_up(self) -> bool:
        return has_hung_up(self.transport)

    # -- deadlines -------------------------------------------------------------------------------------------

    def _look(self) -> float:
        """See what is overdue. Returns when to look again: for whatever begins meanwhile that is early enough."""
        now = self._server.clock.now()
        for at, act in list(self._dues()):
            if at <= now:
                act()
        return min([now + self._server.look_every_s, *(at for at, _ in self._dues() if at > now)])

    def _dues(self) -> Iterator[tuple[float, Callable[[], None]]]:
        """What this connection waits for, and what is to be done when it does not come."""
        server = self._server
        if self._full_since is not None:
            yield self._full_since + server.write_stall_s, self._stalled
        if self.transport is None or self.transport.is_closing():
            return
        if self._parting_at is not None:
            yield self._parting_at + PARTING_S, self.close_now
        elif self._pace is not None:
            yield self._pace.due_at, self._check_pace
        elif self._silent:
            yield self._idle_since + server.head_timeout_s, self._close_silent
        elif self.relay is None:
            yield self._idle_since + server.keepalive_s, self.close_now

    def _stalled(self) -> None:
        self._server.count_closed("write_stall")
        self.abort()

    def _close_silent(self) -> None:
        self._server.count_closed("idle")
        self.close_now()

    def _check_pace(self) -> None:
        assert self._pace is not None
        error = self._pace.check(self._server.clock.now())
        if error is not None:
            self._refuse(error)

    # -- relay.Wire ------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def abort(self) -> None:
        if self.transport is not None:
            reset(self.transport)

    def close_now(self) -> None:
        if self.transport is not None:
            self.transport.close()

    @property
    def full(self) -> bool:
        return self._full_since is not None

    # -- the server's call -----------------------------------------------------------------------------------

    async def shutdown(self, _timeout: float | None = None) -> None:
        """The process ends; called for both kinds of connections."""
        waiting = self._waiting
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait((waiting,))
        self.close_now()
