"""From what is known of a finished exchange or flight to its usage record."""

from __future__ import annotations

from proxy.accounting.record import UsageRecord
from proxy.accounting.report import Report
from proxy.accounting.spared import SPARED_NOTHING, Spared
from proxy.accounting.usage import Account
from proxy.exchange import Exchange, make_request_id
from proxy.flight.flight import Flight
from proxy.policy.shaped import Shaped
from proxy.protocol.usage import Usage
from proxy.work import Work


def make_row(  # noqa: PLR0917 - by position, for each request
    exchange: Exchange,
    report: Report | None,
    account: Account,
    billed: Usage | None,
    upstream: Account | None,
    times_ms: tuple[float, float, float],
) -> UsageRecord:
    """The record of an exchange. ``billed`` are the tokens on its bill, ``upstream`` the cost of the call where this
    is the row of the one that pays it, ``times_ms`` to the first byte, in all, and inside the proxy."""
    principal, plan, located = exchange.principal, exchange.plan, exchange.located
    key = principal.key if principal is not None else None
    usage = report.usage if report is not None else None
    subscription = exchange.subscription
    shaped = exchange.shaped
    return UsageRecord(
        exchange.request_id,
        exchange.admitted_at,
        principal.key_id if principal is not None else "",
        key.tenant if key is not None else "",
        key.team if key is not None else "",
        find_provider(report, located.provider) if located is not None else "none",
        located.route.name if located is not None else "none",
        plan.model if plan is not None else "",
        exchange.role,
        exchange.outcome,
        exchange.status,
        plan is not None and plan.streams,
        usage.source != "upstream" if usage is not None else exchange.role == "pattern",
        billed.input_tokens if billed is not None else 0,
        billed.output_tokens if billed is not None else 0,
        billed.cached_input_tokens if billed is not None else 0,
        upstream.tokens if upstream is not None else 0,
        account.tokens_saved,
        account.picodollars,
        upstream.picodollars if upstream is not None else 0,
        account.picodollars_saved,
        *times_ms,
        subscription.flight.id if subscription is not None else 0,
        ",".join(key.tags) if key is not None and key.tags else "",
        *(() if shaped is None else _of_policies(shaped)),
    )


def _of_policies(shaped: Shaped) -> tuple[str, str, int, int, int, str]:
    """The fields from ``tier`` on."""
    spared: Spared = shaped.spared or SPARED_NOTHING
    return (
        shaped.tier,
        shaped.cache_class.name if shaped.cache_class is not None else "",
        shaped.pruned_tokens + shaped.slimmed_tokens,
        spared.total,
        spared.shadow,
        ",".join(shaped.flagged),
    )


def make_overhead_row(flight: Flight, report: Report, upstream: Account, at: float, total_ms: float) -> UsageRecord:
    """The record of a call that no subscriber pays: nobody was there when its head came, or it renewed a cache entry.
    Its cost stands with the key for which it was made."""
    work: Work = flight.work
    plan, principal = work.plan, work.principal
    key, usage = principal.key, report.usage
    return UsageRecord(
        make_request_id(),
        at,
        principal.key_id,
        key.tenant if key is not None else "",
        key.team if key is not None else "",
        find_provider(report, plan.target.provider),
        plan.route.name,
        plan.model,
        "refresh" if work.renews else "none",
        "ok" if report.head is not None and report.head.status < 400 else "upstream_error",
        report.head.status if report.head is not None else 0,
        plan.streams,
        usage is not None and usage.source != "upstream",
        usage.input_tokens if usage is not None else 0,
        usage.output_tokens if usage is not None else 0,
        usage.cached_input_tokens if usage is not None else 0,
        upstream.tokens,
        0,
        upstream.picodollars,
        upstream.picodollars,
        0,
        0.0,
        total_ms,
        0.0,
        flight.id,
        ",".join(key.tags) if key is not None and key.tags else "",
    )


def find_provider(report: Report | None, asked: str) -> str:
    """Who answered, where the catalog had a choice; else who was asked."""
    return asked if report is None or report.answered_by is None else report.answered_by.provider.name
