"""The access line of one finished exchange, as the text of its fields."""

from __future__ import annotations

from typing import NamedTuple

from proxy.accounting.report import Report
from proxy.accounting.usage import Account
from proxy.exchange import Exchange
from proxy.policy.shaped import Shaped
from proxy.telemetry.line import quoted, quoted_id, word


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


def write_line(exchange: Exchange, report: Report | None, account: Account, times: Times) -> str:
    """The access line's fields as JSON text, in the order of `AccessRecord`."""
    plan, error = exchange.plan, exchange.error
    usage = report.usage if report is not None else None
    head = report.head if report is not None else None
    flight_id: object = exchange.subscription.flight.id if exchange.subscription is not None else "null"
    if usage is None:
        tokens = '"tokens_in":null,"tokens_out":null'
    else:
        tokens = f'"tokens_in":{usage.input_tokens},"tokens_out":{usage.output_tokens}'
    upstream_id = quoted_id(head.request_id) if head is not None else "null"
    cache = exchange.detail or (exchange.role if exchange.role == "hit" else None)
    model = quoted(plan.model) if plan is not None else '""'
    return (
        f'"request_id":"{exchange.request_id}","upstream_request_id":{upstream_id},{_standing_fields(exchange)},'
        f'"model":{model},"stream":{"true" if plan is not None and plan.streams else "false"},'
        f'"status":{exchange.status},"outcome":"{exchange.outcome}","role":"{exchange.role}",'
        f'"flight_id":{flight_id},"cache":{word(cache)},'
        f'"queue_ms":{times.queue_s * 1e3:.3f},"ttft_ms":{times.first_byte_s * 1e3:.3f},'
        f'"upstream_ms":{times.upstream_s * 1e3:.3f},"total_ms":{times.total_s * 1e3:.3f},'
        f'"overhead_ms":{times.overhead_s * 1e3:.3f},'
        f'"bytes_in":{exchange.bytes_in},"bytes_out":{exchange.bytes_out},{tokens},'
        f'"tokens_saved":{account.tokens_saved},"cost_usd":{account.cost_usd!r},"saved_usd":{account.saved_usd!r},'
        f'"error_type":{word(error.why if error is not None else None)}'
        f"{_tries(report)}"
        f"{_policies(exchange.shaped) if exchange.shaped is not None else ''}"
    )


def _policies(shaped: Shaped) -> str:
    """What policies made of the request."""
    text = f',"pattern":{quoted(shaped.pattern)}' if shaped.pattern else ""
    if shaped.tier:
        reasons = quoted("+".join(shaped.tier_why))
        text += f',"tier":{quoted(shaped.tier)},"tier_why":{reasons}'
        text += f',"tier_shadow":{"true" if shaped.shadow else "false"}'
    if shaped.pruned_messages or shaped.slimmed_tokens:
        text += (
            f',"pruned_messages":{shaped.pruned_messages},"pruned_tokens":{shaped.pruned_tokens},'
            f'"summarised":{"true" if shaped.summarised else "false"},"slimmed_tokens":{shaped.slimmed_tokens}'
        )
    if shaped.cache_class is not None:
        text += f',"cache_class":{quoted(shaped.cache_class.name)}'
    if shaped.flagged:
        text += f',"flagged":{quoted(",".join(shaped.flagged))}'
    return text


def _tries(report: Report | None) -> str:
    """Whose answer it was and what was tried before, where the catalog had a choice."""
    if report is None or report.answered_by is None:
        return ""
    failed = ",".join(f"{each.target}:{each.why}" for each in report.tries if each.why)
    left_out = f',"left_out":{quoted(report.left_out)}' if report.left_out else ""
    target = quoted(report.answered_by.id)
    return f',"target":{target},"attempts":{len(report.tries)},"failed":{quoted(failed)}{left_out}'


def _standing_fields(exchange: Exchange) -> str:
    """The fields that are the same for every request with this head; kept with its terms."""
    terms = exchange.terms
    if terms is None:
        located = exchange.located
        provider, route = (located.provider, located.route.name) if located is not None else ("none", "none")
        trace = word(_trace_id(exchange))
        return f'"trace_id":{trace},"provider":"{provider}","route":"{route}","key_id":null,"client_retry_count":0'
    if not terms.line:
        terms.line = (
            f'"trace_id":{word(_trace_id(exchange))},"provider":{quoted(terms.located.provider)},'
            f'"route":"{terms.located.route.name}","key_id":"{terms.principal.key_id}",'
            f'"client_retry_count":{terms.controls.retry_count}'
        )
    return terms.line


def _trace_id(exchange: Exchange) -> str | None:
    """The caller's trace, from its ``traceparent`` (W3C Trace Context: version, trace, parent, flags)."""
    parts = exchange.head.get(b"traceparent").split(b"-")
    if len(parts) < 4 or len(parts[1]) != 32 or parts[1].strip(b"0123456789abcdef"):
        return None
    return parts[1].decode()
