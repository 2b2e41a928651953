"""Which numbers of the targets' health appear as which series."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from proxy.telemetry.metrics import MAX_TABLE_ROWS, Metrics
from proxy.upstream.outcomes import WORDS

if TYPE_CHECKING:
    from proxy.upstream.health import Health, TargetHealth

Read = Callable[["TargetHealth"], float]
Labels = tuple[str, ...]

_GAUGES: Final[dict[str, Read]] = {
    "target_state": lambda target: int(target.breaker.state),
    "target_in_flight": lambda target: target.in_flight,
    "target_limit": lambda target: target.limit.most,
    "target_queued": lambda target: target.line.size,
    "target_first_byte_seconds": lambda target: target.latency.average_s,
    "target_spared_share": lambda target: target.spared,
}
_COUNTERS: Final[dict[str, Read]] = {
    "target_throttles_total": lambda target: target.throttles,
    "target_ejections_total": lambda target: target.breaker.opened,
    "target_limit_cuts_total": lambda target: target.limit.cuts,
}


def expose_health(health: Health, metrics: Metrics) -> None:
    """Register the health of every target that was ever asked."""
    for name, read in (_GAUGES | _COUNTERS).items():
        metrics.table_from(name, partial(_read_each, health, read))
    metrics.table_from("target_attempts_total", partial(_read_attempts, health))
    metrics.table_from("target_refused_total", partial(_read_refused, health))


def _pick(targets: Iterable[TargetHealth]) -> list[TargetHealth]:
    """Those with something to tell, as many as a table has rows: who is ejected first, then by how much they are
    used. Gauges of the others must not be added up as counters are."""
    used = [target for target in targets if target.watched or any(target.counts)]
    if len(used) > MAX_TABLE_ROWS:
        used.sort(key=lambda target: (target.breaker.state, sum(target.counts)), reverse=True)
    return used


def _read_each(health: Health, read: Read) -> dict[Labels, float]:
    return {(target.id,): read(target) for target in _pick(health.targets.values())[:MAX_TABLE_ROWS]}


def _read_attempts(health: Health) -> dict[Labels, float]:
    return {
        (target.id, word): count
        for target in _pick(health.targets.values())
        for word, count in zip(WORDS, target.counts, strict=True)
        if count
    }


def _read_refused(health: Health) -> dict[Labels, float]:
    return {
        (target.id, why): count
        for target in _pick(health.targets.values())
        for why, count in target.refused.items()
        if count
    }
