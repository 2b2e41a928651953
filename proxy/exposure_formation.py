"""Which numbers of flights that processes share appear as which series."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from proxy.formation.formation import Formation


def expose_formation(formation: Formation | None, metrics: Metrics) -> None:
    """Register the counters; without a formation all of them are 0."""

    def read(name: str) -> int:
        return getattr(formation, name, 0)

    writer = formation.writer if formation is not None else None
    metrics.table_from(
        "shared_flights_total", lambda: {(part,): read(part) for part in ("led", "followed", "skipped", "crowded")}
    )
    metrics.table_from(
        "shared_flights_lost_total",
        lambda: {(why,): count for why, count in (formation.lost if formation is not None else {}).items()},
    )
    metrics.table_from(
        "shared_flights_failures_total",
        lambda: {
            **{(name,): read(name) for name in ("errors", "timeouts", "poisoned")},
            ("write",): writer.errors if writer is not None else 0,
            ("listen",): formation.listener.errors if formation is not None else 0,
        },
    )
    metrics.gauge_from("shared_flights_in_air", lambda: read("leads"), "leads")
    metrics.gauge_from("shared_flights_in_air", lambda: read("wings"), "wings")
    metrics.gauge_from("shared_flights_bytes", lambda: writer.stored_bytes if writer is not None else 0, "stored")
    metrics.gauge_from("shared_flights_bytes", lambda: writer.pending_bytes if writer is not None else 0, "pending")
    metrics.gauge_from("shared_flights_up", lambda: int(read("up")))
