"""The life of one exchange: one client request, from its head to its account.

accept → authenticate → read and parse → plan → answer at once if the answer is there → look up and join in one
tick → relay → account.

`Admission.admit` takes the head, before the body is let in; `serve` takes the whole request and returns as soon as
the answer is on its way: what follows is pushed by the flight into the relay, which calls `account` at the end.
Nothing here awaits, so that the cache look-up, the flight look-up and the insertion are one step. The pipeline never
sees a provider.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from proxy.access.identity import Identity, demand_provider_key
from proxy.access.limits import Shortage
from proxy.accounting.report import Report
from proxy.admission import Admission
from proxy.cache.hot import Hit, HotCache
from proxy.clearance import Clearance
from proxy.clock import Clock
from proxy.config.watch import CatalogHolder
from proxy.counterparts import Bookkeeper, Client
from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from proxy.flight.idempotency import IdempotencyIndex, Verdict
from proxy.flight.subscription import Subscription
from proxy.flight.table import Table
from proxy.listing import Listing
from proxy.policy.plan import Plan
from proxy.policy.planner import Planner, Terms
from proxy.pressure.gate import Gate
from proxy.protocol.ask_usage import ask
from proxy.protocol.usage import Usage
from proxy.reading import read_call
from proxy.shaping import Shaper
from proxy.work import Work


class Pipeline:
    """Carries exchanges. One for the process; everything about a request is on its exchange."""

    # Mutable state: _waiting holds the tasks of the few that wait for their budget or a list.
    __slots__ = (
        "_clearance",
        "_clock",
        "_hot",
        "_idempotency",
        "_identity",
        "_listing",
        "_planner",
        "_shaper",
        "_table",
        "_waiting",
        "admission",
        "admit",
        "books",
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
        shaper: Shaper,
        gate: Gate | None = None,
        listing: Listing | None = None,
    ) -> None:
        self._clock = clock
        self._identity = identity
        self._clearance = clearance
        self._waiting: dict[Exchange, asyncio.Task[None]] = {}
        self._listing = listing
        self._planner = planner
        self._shaper = shaper
        self._hot = hot
        self._table = table
        self._idempotency = idempotency
        self.books = books
        self.admission = Admission(catalogs, identity, via_mark, gate, lists=listing is not None)
        self.admit = self.admission.admit
        """Takes an exchange of which there is the head; the lanes call it before the body is let in."""
        self.gate = gate
        """Who is let in when there are more requests than can be served; asked by the lanes at a request's head."""

    # -- the whole request -----------------------------------------------------------------------------------

    def serve(self, exchange: Exchange, client: Client) -> None:
        """Put the answer on its way to ``client``. Every failure ends in `Client.fail`."""
        exchange.served_at = self._clock.now()
        try:
            if exchange.terms is not None and exchange.terms.policies is not None:
                self._shape(exchange, client, exchange.terms)
            else:
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

    def _shape(self, exchange: Exchange, client: Client, terms: Terms) -> None:
        """Let policies make of the request what they will, then serve that."""
        call, _ = read_call(exchange, terms)
        step = self._shaper.shape(exchange, terms, call)
        if step is None:
            self._serve(exchange, client)
        else:
            self._wait(exchange, client, self._serve_later(exchange, client, step))

    async def _serve_later(self, exchange: Exchange, client: Client, step: Coroutine[Any, Any, None]) -> None:
        """What the request is to say has to be asked for first."""
        await step
        if not exchange.accounted:
            self._serve(exchange, client)

    def _serve(self, exchange: Exchange, client: Client) -> None:
        assert exchange.principal is not None
        if exchange.principal.key is not None:
            self._identity.confirm(exchange.principal.key)
        exchange.plan = self.plan(exchange)
        shortage = self._clearance.ask(exchange)
        if shortage is None:
            if exchange.terms is not None and exchange.terms.lists:
                self._list(exchange, client, exchange.terms)
            else:
                self._go_on(exchange, client)
        else:
            self._wait(exchange, client, self._obtain(exchange, client, shortage))

    async def _obtain(self, exchange: Exchange, client: Client, shortage: Shortage) -> None:
        """A budget's lease or a shared limit has to be asked for."""
        await self._clearance.wait(exchange, shortage)
        if exchange.accounted:
            return
        if exchange.terms is not None and exchange.terms.lists:
            self._list(exchange, client, exchange.terms)
        else:
            self._go_on(exchange, client)

    def _wait(self, exchange: Exchange, client: Client, step: Coroutine[Any, Any, None]) -> None:
        """Go on when ``step`` is done; it ends with the exchange."""
        waiting = asyncio.get_running_loop().create_task(self._carry(exchange, client, step))
        self._waiting[exchange] = waiting
        waiting.add_done_callback(lambda _: self._waiting.pop(exchange, None))

    async def _carry(self, exchange: Exchange, client: Client, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
        except ProxyError as error:
            client.fail(error)
        except Exception as bug:  # noqa: BLE001 - as in `serve`
            self._stumble(exchange, client, bug)

    def _go_on(self, exchange: Exchange, client: Client) -> None:
        """Answer at once or join: one step, from the look-up to the insertion."""
        plan, shaped = exchange.plan, exchange.shaped
        assert plan is not None
        if shaped is not None and shaped.answer is not None:
            self._clearance.open_hit(exchange)
            exchange.role = exchange.detail = "pattern"
            client.answer(*shaped.answer)
            return
        if plan.key is not None and self._may_have(exchange, plan, plan.key):
            hit = self._hot.lookup(plan.key, self._clock.now())
            if hit is not None and _is_usable(hit, plan):
                self._clearance.open_hit(exchange)
                self._answer_from_cache(exchange, client, plan, hit)
                return
        self._clearance.open(exchange)
        self._join(exchange, client, plan)

    def _list(self, exchange: Exchange, client: Client, terms: Terms) -> None:
        """Say what the caller may name here. Raises ``ProxyError``."""
        assert self._listing is not None
        renew = terms.controls.cache == "refresh" or terms.controls.max_age_s == 0
        query = exchange.head.query
        listed = self._listing.look(terms.catalog, terms.principal, terms.located, query, renew=renew)
        if listed is None:
            self._wait(exchange, client, self._list_later(exchange, client, terms, renew))
        else:
            self._clearance.open_hit(exchange)
            exchange.role = "local"
            client.answer(listed.head, listed.body)

    async def _list_later(self, exchange: Exchange, client: Client, terms: Terms, renew: bool) -> None:
        """The providers' lists have to be fetched first; where they say nothing, the provider asked answers."""
        assert self._listing is not None
        query = exchange.head.query
        listed = await self._listing.wait(terms.catalog, terms.principal, terms.located, query, renew=renew)
        if exchange.accounted:
            return
        if listed is None:
            self._go_on(exchange, client)
            return
        self._clearance.open_hit(exchange)
        exchange.role = "local"
        client.answer(listed.head, listed.body)

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
        """Read what is asked for and decide everything about it. Raises ``ProxyError`` for what cannot be read and
        for what the caller's credential is no good for."""
        terms, head = exchange.terms, exchange.head
        assert terms is not None
        shaped = exchange.shaped
        if shaped is None:
            call, body = read_call(exchange, terms)
        else:
            call, body = exchange.call, exchange.body if type(exchange.body) is bytes else None
        plan = self._planner.plan(head, terms, call, body, shaped)
        if plan.routed is None and terms.principal.lacks and not (terms.lists or (shaped and shaped.answer)):
            demand_provider_key(terms.principal, terms.located.provider)
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
        price = terms.catalog.prices.find(plan.model) if plan.model and plan.routed is None else None
        patience_s, call, fields = terms.controls.patience_s, exchange.call, None
        if plan.routed is not None and call is not None and call.body is exchange.body:
            fields = call.fields
        return Work(
            plan, exchange.body, self._hot.generation, price, terms.principal, patience_s, fields, renews
        )

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
            if work.charge != "each" and not subscription.pays:
                return False
        exchange.ended_at = self._clock.now()
        flight.unsettled.append(exchange)
        return True

    def bug(self, where: str, error: BaseException) -> None:
        self.books.bug(where, error)

    def count_rejection(self, error: ProxyError) -> None:
        self.books.rejected(error)


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
