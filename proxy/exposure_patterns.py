"""Which numbers of the pattern responder appear as which series."""

from __future__ import annotations

from proxy.responder import Responder
from proxy.telemetry.metrics import Metrics


def expose_patterns(responder: Responder, metrics: Metrics) -> None:
    """Register the counters."""
    metrics.table_from(
        "pattern_requests_total",
        lambda: {
            ("answered",): responder.matched,
            ("passed",): responder.considered - responder.declined - responder.matched,
            ("declined",): responder.declined,
        },
    )
    metrics.table_from(
        "pattern_answers_total", lambda: {(rule,): count for rule, count in responder.answers.items()}
    )
