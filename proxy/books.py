"""The account of every exchange and every flight: counted in plain numbers, written as one line, never waited for.

The charge policy is `first`: the earliest subscriber at the head pays the upstream's usage, everybody else on the
flight, and every cache hit, is booked with zero cost and with what it saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

from proxy.access.limits_reservation import UNLIMITED, Reservation
from proxy.access_line import Times, write_line
from proxy.accounting.record import UsageRecord
from proxy.accounting.report import Report
from proxy.accounting.usage import NOTHING, Account, divide_usage, pay, save
from proxy.clearance import Clearance
from proxy.clock import Clock
from proxy.config.prices import Price
from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from proxy.flight.flight import Ending, Flight
from proxy.policy_books import appraise, count_policies
from proxy.protocol.usage import Usage
from proxy.telemetry.log import AccessLog, AccessRecord
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tallies import CallTally, Tally
from proxy.usage_row import find_provider, make_overhead_row, make_row
from proxy.work import Work

_MOST_UNPOSTED: Final = 256
_POST_WITHIN_S: Final = 0.02


class Books:
    """Counts and logs. Implements what pipeline and production ask of a bookkeeper."""

    # Mutable state: the numbers inside `metrics`, the tallies found so far, what waits to be posted, and by flights
    # that went on what the last to leave them had reserved.
    __slots__ = (
        "_access",
        "_calls",
        "_clearance",
        "_clock",
        "_finished",
        "_later",
        "_log",
        "_pledges",
        "_slow_overhead_s",
        "_tallies",
        "metrics",
    )

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        access: AccessLog | None,
        clearance: Clearance,
        *,
        later: Callable[[float, Callable[[], None]], object],
        slow_overhead_s: float,
        log: Any,
    ) -> None:
        self._clock = clock
        self._clearance = clearance
        self._later = later
        self._finished: list[tuple[Exchange, Report | None, Account, Times, Tally]] = []
        self._access = access
        self._slow_overhead_s = slow_overhead_s
        self._log = log
        self._tallies: dict[tuple[str, str, str], Tally] = {}
        self._calls: dict[tuple[str, str], CallTally] = {}
        self._pledges: dict[Flight, Reservation] = {}
        self.metrics = metrics
        metrics.before_render.append(self.post)

    # -- exchanges --------------------------------------------------------------------------------------------

    def account(self, exchange: Exchange) -> None:
        """Book one finished exchange. What it owes and its usage record at once, because they must not be lost; what
        is only counted and logged with the next `post`."""
        try:
            self._account(exchange)
        except Exception as bug:  # noqa: BLE001 - one account that fails must not take others with it
            self.bug("books", bug)
            self._clearance.abandon(exchange)

    def _account(self, exchange: Exchange) -> None:
        now = exchange.ended_at or self._clock.now()
        report = exchange.facts
        account, billed, upstream = _charge(exchange, report)
        if exchange.shaped is not None:
            if report is not None and report.flagged:
                exchange.shaped.flagged = (*exchange.shaped.flagged, *report.flagged)
            account = appraise(exchange, report, account, payer=upstream is not None)
        times = _measure(exchange, report, now)
        if exchange.admitted_at:
            times_ms = times.first_byte_s * 1e3, times.total_s * 1e3, times.overhead_s * 1e3
            row = make_row(exchange, report, account, billed, upstream, times_ms)
            self._keep_pledge(exchange, report)
            self._clearance.settle(exchange, account, row)
        if type(exchange.body) is bytes:  # an upload is closed by who opened it
            exchange.body = b""
        finished = self._finished
        if not finished:
            self._later(_POST_WITHIN_S, self.post)
        finished.append((exchange, report, account, times, self._tally(exchange)))
        if len(finished) >= _MOST_UNPOSTED:
            self.post()

    def _keep_pledge(self, exchange: Exchange, report: Report | None) -> None:
        """Whoever is the last to leave a call before its head has nothing to pay yet, and may never have: what it
        reserved is kept until the call is over. Else who hangs up at once would pay nothing from a budget."""
        subscription = exchange.subscription
        if subscription is None or report is None or report.ended_at or report.booked:
            return
        flight = subscription.flight
        if not flight.is_paid and not flight.subscribers and flight.task is not None:
            before, self._pledges[flight] = self._pledges.get(flight), _take_reservation(exchange)
            if before is not None:
                before.refund()

    def post(self) -> None:
        """Count and log what has finished since the last time. Done for many at once, as it costs each of them less
        than it would alone."""
        finished, self._finished = self._finished, []
        for exchange, report, account, times, tally in finished:
            try:
                self._count(exchange, report, account, times, tally)
                if self._access is not None:
                    self._log_access(self._access, exchange, report, account, times)
                if times.overhead_s > self._slow_overhead_s:
                    self._log_slow(exchange, times)
            except Exception as bug:  # noqa: BLE001 - as in `account`
                self.bug("books", bug)

    def _log_access(
        self, access: AccessLog, exchange: Exchange, report: Report | None, account: Account, times: Times
    ) -> None:
        level = exchange.error.kind.value.level if exchange.error is not None else "info"
        text = write_line(exchange, report, account, times)
        if access.takes_text:
            access.write_text(text, level)
        else:  # for people
            record: AccessRecord = orjson.loads(f"{{{text}}}")
            access.write(record, level)

    def _log_slow(self, exchange: Exchange, times: Times) -> None:
        self._log.warning(
            "slow_request",
            request_id=exchange.request_id,
            overhead_ms=round(times.overhead_s * 1e3, 2),
            queue_ms=round(times.queue_s * 1e3, 2),
            upstream_ms=round(times.upstream_s * 1e3, 2),
            total_ms=round(times.total_s * 1e3, 2),
            body_bytes=exchange.bytes_in,
            role=exchange.role,
        )

    def _count(
        self, exchange: Exchange, report: Report | None, account: Account, times: Times, tally: Tally
    ) -> None:
        plan, metrics = exchange.plan, self.metrics
        tally.count(exchange.status, exchange.outcome)
        tally.duration.observe(times.total_s)
        tally.overhead.observe(times.overhead_s)
        if exchange.first_byte_at:
            tally.observe_first_token(times.first_byte_s)
        if exchange.role == "follower":
            metrics.collapse_saved_total.value += 1
        if account.tokens_saved and report is not None and report.usage is not None:
            given = report.usage.input_tokens
            tally.save(given, account.tokens_saved - given, account.saved_usd)
        if plan is not None and plan.sharing.why:
            metrics.coalesce_bypass_total.at(plan.sharing.why).value += 1
        if exchange.shaped is not None:
            count_policies(metrics, exchange)
        if exchange.outcome != "ok" or exchange.detail:
            self._count_ending(exchange)

    def _count_ending(self, exchange: Exchange) -> None:
        metrics, plan, error = self.metrics, exchange.plan, exchange.error
        if plan is not None and plan.streams:
            if exchange.outcome == "stream_broken":
                metrics.streams_truncated_total.at("upstream").value += 1
            elif exchange.outcome == "client_gone":
                metrics.streams_truncated_total.at("client").value += 1
        if error is not None and exchange.subscription is None and error.kind is not Kind.CLIENT_GONE:
            metrics.rejections_total.at(error.kind.code).value += 1
        if exchange.detail.startswith("stale"):
            metrics.stale_served_total.at(exchange.detail).value += 1

    def _tally(self, exchange: Exchange) -> Tally:
        located, plan = exchange.located, exchange.plan
        model = plan.model if plan is not None else ""
        if located is None:
            labels = ("none", "none", "other")
        else:
            answered = 200 <= exchange.status < 300
            provider = find_provider(exchange.facts, located.provider)
            labels = (provider, located.route.name, self.metrics.model_label(model, answered))
        tally = self._tallies.get(labels)
        if tally is None:
            tally = self._tallies[labels] = Tally(self.metrics, *labels)
        return tally

    # -- flights ----------------------------------------------------------------------------------------------

    def flown(self, flight: Flight, report: Report) -> None:
        """Book one finished flight: the upstream call and what it cost, once, whoever is left to pay for it."""
        work: Work = flight.work
        report.booked = True
        unsettled, flight.unsettled = flight.unsettled, []
        orphaned = not flight.is_paid and report.attempts > 0 and report.usage is not None
        pledge = self._pledges.pop(flight, None)
        if orphaned and pledge is None and unsettled and work.charge == "split":
            pledge = _take_reservation(unsettled[-1])
        if work.charge == "split" and flight.is_paid:
            sharers = [each for each in unsettled if each.subscription.pays or _got_some(each)]
            report.parts = len(sharers) + len(flight.subscribers)
        for exchange in unsettled:
            self.account(exchange)
        if orphaned:
            self._clearance.note(self._overhead(flight, report))
        if pledge is not None:
            paid = _paid(report, work) if orphaned else NOTHING
            pledge.settle(paid.tokens, paid.picodollars)
        self._count_flight(flight, report, work)

    def _overhead(self, flight: Flight, report: Report) -> UsageRecord:
        """Nobody was there to pay for this call; the sum of all records is still what the upstream charges."""
        total_ms = ((report.ended_at or self._clock.now()) - report.started_at) * 1e3
        upstream = _paid(report, flight.work)
        return make_overhead_row(flight, report, upstream, self._clock.wall(), total_ms)

    def _count_flight(self, flight: Flight, report: Report, work: Work) -> None:
        metrics = self.metrics
        provider = find_provider(report, work.plan.target.provider)
        metrics.coalesce_followers.observe(max(0, flight.peak - 1))
        if report.attempts:
            self._count_call(flight, report, provider)
        elif flight.error is not None and flight.ending is Ending.FAULT:
            metrics.upstream_connect_errors_total.at(flight.error.why).value += 1
        head = report.head
        if head is not None and head.status in (401, 403) and not work.principal.own and not report.tries:
            # Nobody's request will work until the operator acts.
            self._log.error("provider_key_refused", provider=provider, status=head.status)

    def _count_call(self, flight: Flight, report: Report, provider: str) -> None:
        work: Work = flight.work
        answered = report.usage is not None and flight.ending is Ending.OK
        labels = (provider, self.metrics.model_label(work.plan.model, answered))
        tally = self._calls.get(labels)
        if tally is None:
            tally = self._calls[labels] = CallTally(self.metrics, *labels)
        why = "refresh" if work.renews else "flight" if flight.key is not None else "pass"
        tally.count(why, report.attempts)
        calls = sum(each.sent for each in report.tries) or 1
        if report.attempts > calls:
            self.metrics.upstream_retries_total.at("stale_connection").value += report.attempts - calls
        tally.duration.observe((report.ended_at or self._clock.now()) - report.started_at)
        usage = report.usage
        if usage is not None:
            cost_usd = _paid(report, work).cost_usd
            tally.spend(usage.input_tokens, usage.output_tokens, usage.source, cost_usd)

    def rejected(self, error: ProxyError) -> None:
        """A request that was refused before it was one."""
        self.metrics.rejections_total.at(error.why).value += 1

    def bug(self, where: str, error: BaseException) -> None:
        self.metrics.bug(where, error)
        self._log.error("bug", where=where, exc_info=error)


def _charge(exchange: Exchange, report: Report | None) -> tuple[Account, Usage | None, Account | None]:
    """What the request is billed or saved, at the prices of the catalog it began with; the tokens on its bill; and
    the upstream's charge if it is the one that pays it."""
    plan, terms = exchange.plan, exchange.terms
    if report is None or report.usage is None or plan is None or terms is None:
        return NOTHING, None, None
    usage, subscription = report.usage, exchange.subscription
    if subscription is None or report.is_gift:
        key = terms.principal.key
        policy = "each" if key is not None and key.charge == "each" else "first"
        price = terms.catalog.prices.find(plan.model) if plan.routed is None else plan.routed.usual
        if report.answered_by is not None:
            price = report.price
        whole = exchange.outcome == "ok" or not report.relayed
        return save(usage, price, whole=whole, policy=policy), usage if policy == "each" else None, None
    flight = subscription.flight
    work: Work = flight.work
    leads = subscription.pays
    upstream = _paid(report, work) if leads else None
    still_read = not exchange.ended_at  # when the call was divided
    if report.parts and (leads or still_read or _got_some(exchange)):
        return _share(exchange, report, work, leads=leads), _part(usage, report.parts, leads), upstream
    if upstream is not None:
        return upstream, usage, upstream
    policy = "each" if work.charge == "each" else "first"
    account = save(usage, _price(report, work), whole=exchange.outcome == "ok", policy=policy)
    return account, usage if policy == "each" else None, None


def _take_reservation(exchange: Exchange) -> Reservation:
    """Settling the exchange leaves it alone from now on."""
    taken, exchange.reservation = exchange.reservation, UNLIMITED
    return taken


def _got_some(exchange: Exchange) -> bool:
    """Whether it got any of the flight's answer; the body of a refusal is none."""
    subscription = exchange.subscription
    return bool(exchange.bytes_out) and subscription is not None and subscription.head_taken


def _share(exchange: Exchange, report: Report, work: Work, *, leads: bool) -> Account:
    """One of ``report.parts`` parts of the bill; the payer's takes what does not divide."""
    assert report.usage is not None
    whole, parts = _paid(report, work), report.parts
    tokens, picodollars = whole.tokens // parts, whole.picodollars // parts
    if leads:
        return Account(whole.tokens - tokens * (parts - 1), whole.picodollars - picodollars * (parts - 1))
    alone = save(report.usage, _price(report, work), whole=exchange.outcome == "ok")
    saved_tokens, saved = alone.tokens_saved - tokens, alone.picodollars_saved - picodollars
    return Account(tokens, picodollars, max(0, saved_tokens), max(0, saved))


def _part(usage: Usage, parts: int, leads: bool) -> Usage:
    return divide_usage(usage, parts)[0 if leads or parts == 1 else 1]


def _price(report: Report, work: Work) -> Price | None:
    """Of whoever answered."""
    if report.answered_by is not None:
        return report.price
    routed = work.plan.routed
    return work.price if routed is None else routed.usual


def _paid(report: Report, work: Work) -> Account:
    """What the call cost, worked out once for the payer's books and the flight's."""
    if report.paid is None:
        report.paid = pay(report.usage, _price(report, work))
    return report.paid


def _measure(exchange: Exchange, report: Report | None, now: float) -> Times:
    received_at = exchange.received_at
    total_s = now - received_at
    first_byte_s = exchange.first_byte_at - received_at if exchange.first_byte_at else 0.0
    if not exchange.served_at:
        # What came before the whole request is the client's time, and a socket's life is nobody's.
        return Times(total_s, 0.0, 0.0, first_byte_s, 0.0)
    began_at = exchange.served_at
    if report is None or exchange.role == "hit" or not exchange.joined_at:
        answered_at = exchange.head_out_at or now
        return Times(total_s, 0.0, 0.0, first_byte_s, max(0.0, answered_at - began_at))
    joined_at = exchange.joined_at
    sent_at = max(report.request_sent_at, joined_at) if report.request_sent_at else joined_at
    # A whole answer is handed on when it is complete, a stream when its head is there.
    whole = report.head is None or not report.head.streams
    there_at = max((report.ended_at if whole else report.head_at) or sent_at, sent_at)
    overhead_s = joined_at - began_at
    if exchange.head_out_at:
        overhead_s += max(0.0, exchange.head_out_at - there_at)
    return Times(total_s, sent_at - joined_at, there_at - sent_at, first_byte_s, max(0.0, overhead_s))
