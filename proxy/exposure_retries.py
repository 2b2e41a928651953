"""Which numbers of retries and of provider keys appear as which series."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from proxy.upstream.credentials import Credentials
    from proxy.upstream.retries import RetryGates


def expose_retries(gates: RetryGates, credentials: Credentials, metrics: Metrics) -> None:
    """Register the counters of the gates and how the operator's keys fare; keys appear by their names."""
    metrics.table_from("upstream_retries_total", lambda: {(why,): count for why, count in gates.made.items()})
    metrics.table_from("upstream_retries_denied_total", lambda: {(*what,): n for what, n in gates.denied.items()})
    metrics.gauge_from("upstream_retries_under_way", lambda: gates.under_way)
    metrics.gauge_from("upstream_retry_share", lambda: gates.share)
    metrics.table_from(
        "provider_key_state", lambda: {(provider, key): state for provider, key, state in credentials.states()}
    )
    metrics.table_from(
        "provider_key_uses_total", lambda: {(provider, key): count for provider, key, count in credentials.uses()}
    )
    metrics.table_from(
        "provider_key_refusals_total",
        lambda: {(provider, key, state): count for provider, key, state, count in credentials.refusals()},
    )
