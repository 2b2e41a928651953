"""The account of every exchange and every flight: counted in plain numbers, written as one line, never waited for.

The charge policy is `first`: the earliest subscriber at the head pays the upstream's usage, everybody else on the
flight, and every cache hit, is booked with zero cost and with what it saved.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from proxy.accounting.report import Report
from proxy.accounting.usage import NOTHING, Account, pay, save
from proxy.clock import Clock
from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from proxy.flight.flight import Ending, Flight
from proxy.telemetry.log import AccessLog, AccessRecord
from proxy.telemetry.metrics import Metrics


class Times(NamedTuple):
    """Where one request's time went, in seconds."""

    total_s: float
    queue_s: float
    """Between joining and the request being on an upstream connection."""
    upstream_s: float
    """What was left of the upstream's time to the head when this one joined."""
    first_byte_s: float
    overhead_s: float
    """Inside the proxy: from the whole request to joining, and from the answer's arrival to its first write."""


class Books:
    """Counts and logs. Implements what pipeline and production ask of a bookkeeper."""

    # Mutable state: only the numbers inside `metrics`.
    __slots__ = ("_access", "_clock", "_log", "_slow_overhead_s", "metrics")

    def __init__(
        self, clock: Clock, metrics: Metrics, access: AccessLog | None, *, slow_overhead_s: float, log: Any
    ) -> None:
        self._clock = clock
        self._access = access
        self._slow_overhead_s = slow_overhead_s
        self._log = log
        self.metrics = metrics

    # -- exchanges --------------------------------------------------------------------------------------------

    def account(self, exchange: Exchange) -> None:
        """Book one finished exchange."""
        now = exchange.ended_at or self._clock.now()
        account = self._charge(exchange)
        times = _measure(exchange, now)
        self._count(exchange, account, times)
        if self._access is not None:
            self._write(exchange, account, times)
        if times.overhead_s > self._slow_overhead_s:
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

    def _charge(self, exchange: Exchange) -> Account:
        """What the request pays or saved, at the prices of the catalog it began with."""
        report, plan, catalog = exchange.facts, exchange.plan, exchange.catalog
        if report is None or report.usage is None or plan is None or catalog is None:
            return NOTHING
        price = catalog.prices.find(plan.model)
        subscription = exchange.subscription
        if exchange.role == "hit" or report.remark in ("shared", "stale-if-error"):
            return save(report.usage, price)
        if subscription is not None and subscription.flight.payer is subscription:
            return pay(report.usage, price)
        return save(report.usage, price, whole=exchange.outcome == "ok")

    def _count(self, exchange: Exchange, account: Account, times: Times) -> None:
        metrics = self.metrics
        provider, route, model = self._labels(exchange)
        metrics.requests_total.at(provider, route, model, str(exchange.status), exchange.outcome).value += 1
        metrics.request_duration_seconds.at(provider, route).observe(times.total_s)
        metrics.overhead_seconds.at(route).observe(times.overhead_s)
        if exchange.first_byte_at:
            metrics.time_to_first_token_seconds.at(provider, route).observe(times.first_byte_s)
        if exchange.role == "follower":
            metrics.collapse_saved_total.value += 1
        report = exchange.facts
        if account.tokens_saved and report is not None and report.usage is not None:
            given = report.usage.input_tokens
            metrics.tokens_saved_total.at("input", model).value += given
            metrics.tokens_saved_total.at("output", model).value += account.tokens_saved - given
            metrics.saved_usd_total.at(provider, model).value += account.saved_usd
        plan = exchange.plan
        if plan is not None and plan.sharing.why:
            metrics.coalesce_bypass_total.at(plan.sharing.why).value += 1
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

    def _labels(self, exchange: Exchange) -> tuple[str, str, str]:
        located, plan = exchange.located, exchange.plan
        if located is None:
            return "none", "none", "other"
        model = plan.model if plan is not None else ""
        return located.provider, located.route.name, self.metrics.model_label(model, 200 <= exchange.status < 300)

    def _write(self, exchange: Exchange, account: Account, times: Times) -> None:
        """The access line."""
        assert self._access is not None
        report, located, plan, error = exchange.facts, exchange.located, exchange.plan, exchange.error
        usage = report.usage if report is not None else None
        head = report.head if report is not None else None
        subscription = exchange.subscription
        record: AccessRecord = {
            "request_id": exchange.request_id,
            "upstream_request_id": head.request_id.decode("latin-1") if head is not None else None,
            "trace_id": _trace_id(exchange),
            "provider": located.provider if located is not None else "none",
            "route": located.route.name if located is not None else "none",
            "model": plan.model if plan is not None else "",
            "stream": plan.streams if plan is not None else False,
            "status": exchange.status,
            "outcome": exchange.outcome,
            "role": exchange.role,
            "flight_id": subscription.flight.id if subscription is not None else None,
            "cache": exchange.detail or (exchange.role if exchange.role == "hit" else None),
            "key_id": exchange.principal.key_id if exchange.principal is not None else None,
            "client_retry_count": exchange.controls.retry_count if exchange.controls is not None else 0,
            "queue_ms": round(times.queue_s * 1e3, 3),
            "ttft_ms": round(times.first_byte_s * 1e3, 3),
            "upstream_ms": round(times.upstream_s * 1e3, 3),
            "total_ms": round(times.total_s * 1e3, 3),
            "overhead_ms": round(times.overhead_s * 1e3, 3),
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
            "tokens_in": usage.input_tokens if usage is not None else None,
            "tokens_out": usage.output_tokens if usage is not None else None,
            "tokens_saved": account.tokens_saved,
            "cost_usd": account.cost_usd,
            "saved_usd": account.saved_usd,
            "error_type": error.why if error is not None else None,
        }
        self._access.write(record, error.kind.value.level if error is not None else "info")

    # -- flights ----------------------------------------------------------------------------------------------

    def flown(self, flight: Flight, report: Report) -> None:
        """Book one finished flight: the upstream call and what it cost, once, whoever is left to pay for it."""
        if flight.unsettled is not None:
            self.account(flight.unsettled)
        metrics = self.metrics
        plan = flight.work.plan
        provider = plan.target.provider
        metrics.coalesce_followers.observe(max(0, flight.peak - 1))
        if report.attempts:
            why = "refresh" if flight.work.renews else "flight" if flight.key is not None else "pass"
            metrics.upstream_requests_total.at(provider, why).value += report.attempts
            if report.attempts > 1:
                metrics.upstream_retries_total.at("stale_connection").value += report.attempts - 1
            ended_at = report.ended_at or self._clock.now()
            metrics.upstream_duration_seconds.at(provider).observe(ended_at - report.started_at)
        if flight.error is not None and not report.attempts and flight.ending is Ending.FAULT:
            metrics.upstream_connect_errors_total.at(flight.error.why).value += 1
        head, usage = report.head, report.usage
        if head is not None and head.status in (401, 403) and not flight.work.own_credential:
            # Nobody's request will work until the operator acts.
            self._log.error("provider_key_refused", provider=provider, status=head.status)
        if usage is not None and report.attempts:
            model = metrics.model_label(plan.model, flight.ending is Ending.OK)
            metrics.tokens_total.at("input", model, usage.source).value += usage.input_tokens
            metrics.tokens_total.at("output", model, usage.source).value += usage.output_tokens
            account = pay(usage, flight.work.price)
            metrics.cost_usd_total.at(provider, model).value += account.cost_usd

    def rejected(self, error: ProxyError) -> None:
        """A request that was refused before it was one."""
        self.metrics.rejections_total.at(error.why).value += 1

    def bug(self, where: str, error: BaseException) -> None:
        self.metrics.bug(where, error)
        self._log.error("bug", where=where, exc_info=error)


def _trace_id(exchange: Exchange) -> str | None:
    """The caller's trace, from its ``traceparent`` (W3C Trace Context: version, trace, parent, flags)."""
    parts = exchange.head.get(b"traceparent").split(b"-")
    if len(parts) < 4 or len(parts[1]) != 32 or parts[1].strip(b"0123456789abcdef"):
        return None
    return parts[1].decode()


def _measure(exchange: Exchange, now: float) -> Times:
    report = exchange.facts
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
