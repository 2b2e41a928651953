"""A request of the proxy's own on a caller's behalf: it goes through the pipeline as the caller's would, under the
caller's principal, so that it is charged, shared, retried and accounted like any other, and has its own request id,
usage record and access line. Within limits on requests it is part of the caller's. No policy shapes it; the caller's
guards look at it beside the call, because what it says is the caller's and may not be said elsewhere any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from proxy.clock import Clock, Deadlines
from proxy.config.guards import GuardSet, make_guard_set
from proxy.counterparts import Client
from proxy.errors import Kind, ProxyError, Side
from proxy.exchange import Exchange
from proxy.flight.subscription import Subscription
from proxy.policy.planner import Terms
from proxy.policy.shaped import Shaped
from proxy.protocol.answer import AnswerHead
from proxy.protocol.call import parse_call
from proxy.protocol.headers import Controls
from proxy.protocol.message import RequestHead
from proxy.upstream.until import Until

MAX_ANSWER_BYTES: Final = 1 << 20

# What says who asks, through whom and as part of what.
_CARRIED: Final = (
    *(b"authorization", b"x-api-key", b"api-key", b"anthropic-version", b"openai-organization", b"openai-project"),
    *(b"via", b"traceparent", b"tracestate", b"x-sameflight-attempt"),
)


class Desk(Protocol):
    """What an errand needs of the pipeline."""

    def serve(self, exchange: Exchange, client: Client) -> None: ...

    def rejoin(self, exchange: Exchange, client: Client) -> None: ...

    def account(self, exchange: Exchange) -> None: ...


def make_errand(caller: Exchange, terms: Terms, body: bytes, controls: Controls, now: float) -> Exchange:
    """An exchange of the caller's route and dialect that says ``body``, which names a model of the catalog's. Whoever
    may use the model that the caller asked for may use that one: the operator means it to serve the other."""
    head = caller.head
    lines = [(b"content-type", b"application/json")]
    lines += [(name, head.headers[name]) for name in _CARRIED if name in head.headers]
    exchange = Exchange(RequestHead("POST", head.path, "", dict(lines), lines), now)
    own = Terms(exchange.head, terms.located, controls, terms.principal, terms.catalog)
    own.policies = None
    exchange.terms = own
    exchange.located = terms.located
    exchange.principal = terms.principal
    exchange.shaped = Shaped()  # it is read already
    exchange.shaped.guards = _guards_of(caller)
    exchange.shaped.own = True
    exchange.call = parse_call(terms.located.route, body)
    exchange.asked = caller.asked
    exchange.body = body
    exchange.bytes_in = len(body)
    return exchange


def _guards_of(caller: Exchange) -> GuardSet | None:
    """Those of the request, but for what was looked for before it was made shorter; its answer is for nobody's eyes,
    and it may be longer than a caller's."""
    guards = caller.shaped.guards if caller.shaped is not None else None
    if guards is None:
        return None
    remote = [each for each in guards.before if each.is_remote]
    return make_guard_set([*remote, *(each for each in guards.during if each.kind != "size")])


async def run_errand(  # noqa: PLR0917 - what it runs on
    exchange: Exchange, desk: Desk, clock: Clock, deadlines: Deadlines, timeout_s: float, detail: str
) -> bytes:
    """The whole body of its answer. ``detail`` says in the access line what it was for. Raises ``ProxyError`` where
    there is no good answer within ``timeout_s``; whoever cancels this leaves the flight."""
    answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    client = _Errand(exchange, desk, clock, answered, detail)
    try:
        async with Until(deadlines, clock.now() + timeout_s):
            desk.serve(exchange, client)
            return await answered
    except TimeoutError:
        raise ProxyError(Kind.PATIENCE, "The proxy's own question was not answered in time.") from None
    finally:
        client.leave()
        if answered.done() and not answered.cancelled():
            answered.exception()  # somebody has looked at it


class _Errand:
    """The client's end. Implements `counterparts.Client`."""

    # Mutable state: _subscription, _status and _body are written by what the flight calls; _answered is set once.
    __slots__ = ("_answered", "_body", "_clock", "_desk", "_detail", "_exchange", "_status", "_subscription")

    def __init__(
        self, exchange: Exchange, desk: Desk, clock: Clock, answered: asyncio.Future[bytes], detail: str
    ) -> None:
        self._exchange = exchange
        self._desk = desk
        self._clock = clock
        self._answered = answered
        self._detail = detail
        self._subscription: Subscription | None = None
        self._status = 0
        self._body = bytearray()

    def attach(self, subscription: Subscription, patience_s: float | None, streams: bool) -> None:
        self._subscription = subscription

    def released(self) -> None:
        self._exchange.released = True
        self._desk.rejoin(self._exchange, self)

    def take(self, head: AnswerHead | None, data: bytes, ended: bool) -> None:
        if self._exchange.accounted:
            return
        if head is not None:
            self._begin(head)
        if data:
            self._body += data
            self._exchange.bytes_out += len(data)
            self._exchange.first_byte_at = self._exchange.first_byte_at or self._clock.now()
        subscription = self._subscription
        if ended:
            error = subscription.error if subscription is not None else None
            if error is not None:
                self.fail(error)
            else:
                self._end()
        elif len(self._body) > MAX_ANSWER_BYTES:
            if subscription is not None:
                subscription.leave()
            self.fail(ProxyError(Kind.UPSTREAM_TOO_LARGE, "The answer to the proxy's own question is too long."))

    def answer(self, head: AnswerHead, body: bytes) -> None:
        self._begin(head)
        self._body += body
        self._exchange.bytes_out = len(body)
        self._end()

    def fail(self, error: ProxyError) -> None:
        exchange = self._exchange
        if exchange.accounted:
            return
        exchange.error = error.freed()
        if not exchange.status:
            exchange.status = error.kind.status
        upstream = error.kind.side is Side.UPSTREAM
        self._finish("upstream_failed" if upstream else error.kind.code)
        self._resolve(lambda: self._answered.set_exception(error))

    def leave(self) -> None:
        """Nobody waits for it any more."""
        exchange = self._exchange
        if exchange.accounted:
            return
        if self._subscription is not None:
            self._subscription.leave()
        exchange.error = ProxyError(Kind.CLIENT_GONE, "Nobody waits for it any more.")
        self._finish("client_gone")

    def _begin(self, head: AnswerHead) -> None:
        exchange = self._exchange
        self._status = exchange.status = head.status
        if exchange.role == "leader" and exchange.facts is not None and exchange.facts.relayed:
            exchange.role = "follower"  # of another process's flight
        exchange.head_out_at = self._clock.now()

    def _end(self) -> None:
        good = self._status < 400
        self._finish("ok" if good else "upstream_error")
        if good:
            self._resolve(lambda: self._answered.set_result(bytes(self._body)))
        else:
            said = ProxyError(Kind.UPSTREAM_BAD_RESPONSE, f"An upstream answered {self._status}.", why="status")
            self._resolve(lambda: self._answered.set_exception(said))

    def _finish(self, outcome: str) -> None:
        exchange = self._exchange
        exchange.outcome = outcome
        exchange.detail = exchange.detail or self._detail
        self._desk.account(exchange)

    def _resolve(self, settle: Callable[[], None]) -> None:
        if not self._answered.done():
            settle()
