"""The life of one exchange: one client request, from its head to its account.

accept → authenticate → read and parse → plan → answer at once if the answer is there → look up and join in one
tick → relay → account.

`admit` takes the head, before the body is let in; `serve` takes the whole request and returns as soon as the answer
is on its way: what follows is pushed by the flight into the relay, which calls `account` at the end. Nothing here
awaits, so that the cache look-up, the flight look-up and the insertion are one step. The pipeline never sees a
provider.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Final, Protocol

from proxy.access.identity import Identity, PendingKeyError
from proxy.access.limits import Shortage
from proxy.accounting.report import Report
from proxy.cache.hot import Hit, HotCache
from proxy.clearance import Clearance
from proxy.clock import Clock
from proxy.config.catalog import Catalog
from proxy.config.principal import Principal
from proxy.config.watch import CatalogHolder
from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from proxy.flight.idempotency import IdempotencyIndex, Verdict
from proxy.flight.subscription import Sink, Subscription
from proxy.flight.table import Table
from proxy.policy.plan import Plan
from proxy.policy.planner import Planner, Terms, decoded_for_key
from proxy.pressure.gate import Gate
from proxy.protocol.answer import AnswerHead
from proxy.protocol.ask_usage import ask
from proxy.protocol.call import Call, parse_call
from proxy.protocol.headers import parse_controls
from proxy.protocol.message import RequestHead
from proxy.protocol.routes import Located, Route, locate
from proxy.protocol.usage import Usage
from proxy.work import Work

HELD_BODY_BYTES: Final = 64 * 1024
"""A body of a route that is not understood is held up to this size, so that it can be sent again on a fresh
connection; a longer one is streamed."""


class Intent(Enum):
    """What the lane does with a request's body."""

    HOLD = "hold"
    STREAM = "stream"


class Client(Sink, Protocol):
    """The other end of an exchange, as the pipeline needs it; `edge.relay.Relay` is one."""

    def attach(self, subscription: Subscription, patience_s: float | None, streams: bool) -> None: ...

    def answer(self, head: AnswerHead, body: bytes) -> None: ...

    def fail(self, error: ProxyError) -> None: ...


class Bookkeeper(Protocol):
    """Where a finished exchange is counted and logged."""

    def account(self, exchange: Exchange) -> None:
        """Must not raise and must not wait."""

    def bug(self, where: str, error: BaseException) -> None: ...

    def rejected(self, error: ProxyError) -> None: ...


class Pipeline:
    """Carries exchanges. One for the process; everything about a request is on its exchange."""

    # Mutable state: _waiting holds the tasks of the few that wait for their budget; draining is set once.
    __slots__ = (
        "_catalogs",
        "_clearance",
        "_clock",
        "_hot",
        "_idempotency",
        "_identity",
        "_planner",
        "_table",
        "_via_mark",
        "_waiting",
        "books",
        "draining",
        "gate",
    )

    def __init__(
        self,
        *,
        clock: Clock,
        catalogs: CatalogHolder,
        identity: Identity,
        clearance: Clearance,
        planner: Planner,
        hot: HotCache,
        table: Table,
        idempotency: IdempotencyIndex,
        books: Bookkeeper,
        via_mark: bytes,
        gate: Gate | None = None,
    ) -> None:
        self._clock = clock
        self._catalogs = catalogs
        self._identity = identity
        self._clearance = clearance
        self._waiting: dict[Exchange, asyncio.Task[None]] = {}
        self._planner = planner
        self._hot = hot
        self._table = table
        self._idempotency = idempotency
        self.books = books
        self._via_mark = via_mark
        """This process's name in ``Via``; a request that carries it came from here."""
        self.draining: ProxyError | None = None
        self.gate = gate
        """Who is let in when there are more requests than can be served; asked by the lanes at a request's head."""

    # -- from the head alone ---------------------------------------------------------------------------------

    def admit(self, exchange: Exchange) -> Intent:
        """Say who asks for what, before the body is let in. Raises ``ProxyError`` to refuse."""
        head = exchange.head
        terms: Terms | None = head.terms
        if terms is None or terms.catalog is not self._catalogs.current:
            located = self._read(exchange)
        else:
            located = terms.located
            self._look_at_the_door(exchange)
            if terms.principal.key is None:
                exchange.terms = terms
                exchange.principal = terms.principal
            else:
                self._authenticate(exchange, located)  # the key may have been revoked or changed since
        route = located.route
        if route.upload:
            return Intent.STREAM
        if route.understood:
            return Intent.HOLD
        length = head.get(b"content-length")
        if length.isdigit() and int(length) <= HELD_BODY_BYTES:
            return Intent.HOLD
        return Intent.STREAM if b"transfer-encoding" in head.headers or length else Intent.HOLD

    def _read(self, exchange: Exchange) -> Located:
        """What the head means, worked out and kept with it. A refusal is worked out anew each time."""
        head = exchange.head
        located = exchange.located = locate(head)
        self._look_at_the_door(exchange)
        if self._via_mark in head.get(b"via"):
            raise ProxyError(Kind.PROXY_LOOP, "The request has passed through this proxy already.")
        self._authenticate(exchange, located)
        return located

    def _authenticate(self, exchange: Exchange, located: Located) -> None:
        catalog = self._catalogs.current
        try:
            principal = self._identity.authenticate(exchange.head, located.provider, catalog)
        except PendingKeyError as pending:
            exchange.wait = self._identify(exchange, located, catalog, pending)
        else:
            self._agree(exchange, located, catalog, principal)

    def _look_at_the_door(self, exchange: Exchange) -> None:
        """Raise ``ProxyError`` if nobody is let in any more, or not now. One error for all must not collect their
        frames."""
        exchange.located = exchange.located or exchange.head.terms.located
        if self.draining is not None:
            raise self.draining.with_traceback(None)
        if self.gate is not None and (busy := self.gate.admit(exchange.received_at)) is not None:
            raise busy.with_traceback(None)

    async def _identify(
        self, exchange: Exchange, located: Located, catalog: Catalog, pending: PendingKeyError
    ) -> None:
        """The key is not in memory: the one look-up that a request waits for. Raises ``ProxyError``."""
        self._agree(exchange, located, catalog, await pending.resolve())

    def _agree(self, exchange: Exchange, located: Located, catalog: Catalog, principal: Principal) -> None:
        head = exchange.head
        terms: Terms | None = head.terms
        if terms is None or terms.catalog is not catalog or terms.principal is not principal:
            terms = head.terms = Terms(head, located, parse_controls(head), principal, catalog)
        exchange.terms = terms
        exchange.principal = principal

    # -- the whole request -----------------------------------------------------------------------------------

    def serve(self, exchange: Exchange, client: Client) -> None:
        """Put the answer on its way to ``client``. Every failure ends in `Client.fail`."""
        exchange.served_at = self._clock.now()
        try:
            self._serve(exchange, client)
        except ProxyError as error:
            client.fail(error)
        except Exception as bug:  # noqa: BLE001 - one of the two places that may
            self._stumble(exchange, client, bug)

    def _stumble(self, exchange: Exchange, client: Client, bug: Exception) -> None:
        self.books.bug("pipeline", bug)
        if exchange.subscription is not None:
            exchange.subscription.leave()  # nobody reads it
        client.fail(ProxyError(Kind.BUG, "Internal error.", detail=repr(bug)))

    def _serve(self, exchange: Exchange, client: Client) -> None:
        assert exchange.principal is not None
        if exchange.principal.key is not None:
            self._identity.confirm(exchange.principal.key)
        exchange.plan = self.plan(exchange)
        shortage = self._clearance.ask(exchange)
        if shortage is None:
            self._go_on(exchange, client)
        else:
            waiting = asyncio.get_running_loop().create_task(self._wait(exchange, client, shortage))
            self._waiting[exchange] = waiting
            waiting.add_done_callback(lambda _: self._waiting.pop(exchange, None))

    async def _wait(self, exchange: Exchange, client: Client, shortage: Shortage) -> None:
        """A budget's lease or a shared limit has to be asked for: the one other look-up that a request waits for."""
        try:
            await self._clearance.wait(exchange, shortage)
            if not exchange.accounted:
                self._go_on(exchange, client)
        except ProxyError as error:
            client.fail(error)
        except Exception as bug:  # noqa: BLE001 - as in `serve`
            self._stumble(exchange, client, bug)

    def _go_on(self, exchange: Exchange, client: Client) -> None:
        """Answer at once or join: one step, from the look-up to the insertion."""
        plan = exchange.plan
        assert plan is not None
        if plan.key is not None and self._may_have(exchange, plan, plan.key):
            hit = self._hot.lookup(plan.key, self._clock.now())
            if hit is not None and _is_usable(hit, plan):
                self._clearance.open_hit(exchange)
                self._answer_from_cache(exchange, client, plan, hit)
                return
        self._clearance.open(exchange)
        self._join(exchange, client, plan)

    def _may_have(self, exchange: Exchange, plan: Plan, key: bytes) -> bool:
        """Whether the hot cache is worth a look: the plan reads it, or it said a moment ago that there is no such
        model."""
        if plan.caching.reads:
            return True
        assert exchange.terms is not None
        controls = exchange.terms.controls
        wary = controls.cache in ("off", "refresh") or controls.max_age_s == 0
        return plan.sharing.joins and not wary and self._hot.is_missing(key, self._clock.now())

    def plan(self, exchange: Exchange) -> Plan:
        """Read what is asked for and decide everything about it. Raises ``ProxyError`` for what cannot be read."""
        terms, head = exchange.terms, exchange.head
        assert terms is not None
        body = exchange.body if type(exchange.body) is bytes else None
        call = exchange.call = None if body is None else _parse(terms.located.route, head, body)
        plan = self._planner.plan(head, terms, call, body)
        if plan.asks_usage and body is not None:
            exchange.body = ask(body)
        return plan

    async def clear(self, exchange: Exchange) -> None:
        """Ask for clearance for a request that is not served from here (a WebSocket). Raises ``ProxyError``."""
        shortage = self._clearance.ask(exchange)
        if shortage is not None:
            await self._clearance.wait(exchange, shortage)
        if not exchange.accounted:
            self._clearance.open(exchange)

    def _answer_from_cache(self, exchange: Exchange, client: Client, plan: Plan, hit: Hit) -> None:
        recording = hit.recording
        report = Report(recording.stored_at)
        report.usage = recording.report if isinstance(recording.report, Usage) else None
        exchange.report = report
        exchange.role = "hit"
        exchange.hit_age_s = hit.age_s
        exchange.hit_ttl_s = hit.ttl_left_s
        if hit.ttl_left_s <= 0:
            exchange.detail = "stale-while-revalidate"
            self._refresh(plan, exchange)
        client.answer(recording.head, recording.body)

    def _refresh(self, plan: Plan, exchange: Exchange) -> None:
        """Renew a stale entry behind the answer; at most one refresh of a key is in the air."""
        assert plan.key is not None
        if self._hot.begin_refresh(plan.key, self._clock.now()):
            work = self._work(plan, exchange, renews=True)
            if self._table.refresh(work, key=plan.key, scope=plan.scope) is None:
                self._hot.end_refresh(plan.key, self._clock.now(), ok=True)

    def _join(self, exchange: Exchange, client: Client, plan: Plan, *, alone: bool = False) -> None:
        """Join the flight of the plan's key or start one: one step, nothing may come between."""
        sharing = plan.sharing
        if plan.idempotency is not None and not alone:
            self._check_idempotency(plan)
        gate = self.gate
        leads = sharing.leads and (gate is None or gate.has_slot)
        subscription = self._table.join(
            client,
            self._work(plan, exchange),
            key=plan.key,
            scope=plan.scope,
            registers=sharing.registers and not alone,
            joins=sharing.joins and not alone,
            retry=sharing.retry and not alone,
            leads=leads,
            keeps=plan.caching.writes,
            leave_s=plan.leave_s,
        )
        if subscription is None and gate is not None and sharing.leads:
            raise gate.refuse_lead().with_traceback(None)
        if subscription is None:
            raise ProxyError(Kind.NOT_CACHED, "The answer is neither cached nor on its way.")
        if plan.idempotency is not None and plan.idempotency_print is not None:
            self._idempotency.record(plan.idempotency, plan.idempotency_print, subscription.flight)
        if not subscription.leads and _is_other_body(exchange, subscription):
            self.books.bug("key_mismatch", ValueError("two bodies of different lengths under one fingerprint"))
            subscription.leave()
            self._join(exchange, client, plan, alone=True)
            return
        exchange.subscription = subscription
        exchange.joined_at = self._clock.now()
        exchange.call = None  # all that matters of it is in the plan
        if not subscription.leads:
            exchange.role = "follower"
            exchange.body = subscription.flight.work.body  # equal, by its key: a thousand callers hold one prompt
        else:
            exchange.role = "leader" if subscription.flight.mapped else "alone"
        assert exchange.terms is not None
        client.attach(subscription, exchange.terms.controls.patience_s, plan.streams)
        subscription.start()

    def _work(self, plan: Plan, exchange: Exchange, *, renews: bool = False) -> Work:
        terms = exchange.terms
        assert terms is not None
        price = terms.catalog.prices.find(plan.model) if plan.model else None
        return Work(plan, exchange.body, self._hot.generation, price, terms.principal, renews)

    def _check_idempotency(self, plan: Plan) -> None:
        assert plan.idempotency is not None
        assert plan.idempotency_print is not None
        verdict = self._idempotency.check(plan.idempotency, plan.idempotency_print)
        if verdict is Verdict.MISMATCH:
            raise ProxyError(Kind.IDEMPOTENCY_MISMATCH, "This Idempotency-Key was used for a different request.")
        if verdict is Verdict.BUSY:
            raise _still_running()

    # -- what the relay calls --------------------------------------------------------------------------------

    def rejoin(self, exchange: Exchange, client: Client) -> None:
        """The flight turned out not to be shareable: a call of one's own."""
        plan = exchange.plan
        assert plan is not None
        exchange.subscription = None  # nothing of that answer is on its bill
        if plan.idempotency is not None:
            client.fail(_still_running())  # a call of its own would do the operation twice
            return
        try:
            self._join(exchange, client, plan, alone=True)
        except ProxyError as error:
            client.fail(error)
        except Exception as bug:  # noqa: BLE001 - the others that were released wait behind this one
            self._stumble(exchange, client, bug)

    def account(self, exchange: Exchange) -> None:
        """The exchange is over: count it and log it, once."""
        if not exchange.accounted:
            exchange.accounted = True
            if self._waiting:
                waiting = self._waiting.get(exchange)
                if waiting is not None:
                    waiting.cancel()
            if self._pays_later(exchange):
                return
            try:
                self.books.account(exchange)
            except Exception as bug:  # noqa: BLE001 - a line that is lost must not take an answer with it
                self.books.bug("books", bug)

    def _pays_later(self, exchange: Exchange) -> bool:
        """Whether the price is not known yet, because who has to pay left before the answer's end, or others that
        share it are still reading: the flight then carries the exchange to its own end, where `Books.flown` books
        it."""
        subscription, report = exchange.subscription, exchange.facts
        if subscription is None or report is None or report.booked:
            return False
        flight = subscription.flight
        work: Work = flight.work
        if work.charge != "split":
            if report.ended_at or flight.task is None:
                return False
            if work.charge != "each" and flight.payer is not subscription:
                return False
        exchange.ended_at = self._clock.now()
        flight.unsettled.append(exchange)
        return True

    def bug(self, where: str, error: BaseException) -> None:
        self.books.bug(where, error)

    def count_rejection(self, error: ProxyError) -> None:
        self.books.rejected(error)


def _parse(route: Route, head: RequestHead, body: bytes) -> Call | None:
    if not route.has_json_body:
        return None
    text = decoded_for_key(head, body)
    return None if text is None else parse_call(route, text)


def _is_other_body(exchange: Exchange, subscription: Subscription) -> bool:
    """A second look at what the fingerprint says is equal; 256 bits never collide, code that makes them may err.
    Encoded bodies are equal when decoded, whatever their lengths."""
    own, flown = exchange.body, subscription.flight.work.body
    if exchange.head.get(b"content-encoding") or not isinstance(own, bytes) or not isinstance(flown, bytes):
        return False
    return len(own) != len(flown)


def _still_running() -> ProxyError:
    message = "The request with this Idempotency-Key is still running."
    return ProxyError(Kind.IDEMPOTENCY_BUSY, message, retry_after_s=1.0)


def _is_usable(hit: Hit, plan: Plan) -> bool:
    """Whether this caller takes an entry of this age."""
    caching = plan.caching
    if caching.max_age_s is not None and hit.age_s > caching.max_age_s:
        return False
    if hit.ttl_left_s > 0:
        return True
    if caching.max_stale_s is not None and -hit.ttl_left_s <= caching.max_stale_s:
        return True
    return hit.may_serve
