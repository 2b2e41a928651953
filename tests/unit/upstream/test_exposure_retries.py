"""What the series of retries and provider keys say when they are scraped."""

from __future__ import annotations

import random

from proxy.exposure_retries import expose_retries
from proxy.protocol.events import Cause
from proxy.telemetry.metrics import Metrics
from proxy.upstream.credentials import Credentials
from proxy.upstream.retries import RetryGates
from tests.fakes.clock import FrozenClock
from tests.unit.upstream.test_credentials import Key


def test_the_series_show_retries_refusals_and_the_state_of_each_key_and_no_secret() -> None:
    """Numbers are read when somebody scrapes; retries of stale connections are counted in the same series."""
    clock, metrics = FrozenClock(), Metrics()
    gates, credentials = RetryGates(clock), Credentials(clock, random.Random(1))
    credentials.keep({"openai": [Key("main", "sk-secret-1"), Key("spare", "sk-secret-2")]})
    expose_retries(gates, credentials, metrics)
    metrics.upstream_retries_total.at("stale_connection").value += 2
    for _ in range(40):
        gates.began()
    for _ in range(5):
        gates.take("a", "failed")
    choice = credentials.pick("openai")
    assert choice is not None
    credentials.refused("openai", choice, Cause.DEAD_KEY)
    text = metrics.render([])[0].decode()

    key = choice.name
    for line in (
        'upstream_retries_total{reason="failed"} 4',
        'upstream_retries_total{reason="stale_connection"} 2',
        'upstream_retries_denied_total{gate="share",reason="failed"} 1',
        "upstream_retries_under_way 4",
        "upstream_retry_share 0.1",
        f'provider_key_state{{key="{key}",provider="openai"}} 3',
        f'provider_key_uses_total{{key="{key}",provider="openai"}} 1',
        f'provider_key_refusals_total{{key="{key}",provider="openai",state="dead"}} 1',
    ):
        assert f"sameflight_{line}\n" in text
    assert "secret" not in text
