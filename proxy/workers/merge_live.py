"""What happens right now in all workers, as if they were one process: for the admin page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# From the best to the worst: a target is as bad as any worker finds it.
_STATES: Final = ("closed", "half_open", "open")
# Each worker has its own latencies; what adds up is counted, of the rest the slowest is shown.
_SLOWEST: Final = ("first_byte_ms", "p95_first_byte_ms")
MOST_FLIGHTS: Final = 20


def merge_live(views: Mapping[str, Mapping[str, Any]], silent: Mapping[str, str]) -> dict[str, Any]:
    """``views`` by worker; ``silent`` are those that did not answer, and why. Each flight says whose it is."""
    merged: dict[str, Any] = {}
    for section in ("flights", "requests", "hot_cache", "usage"):
        sums: dict[str, Any] = {}
        for view in views.values():
            for name, value in view.get(section, {}).items():
                if not isinstance(value, list):
                    sums[name] = sums.get(name, 0) + value
        merged[section] = sums
    oldest = [
        {**flight, "worker": worker}
        for worker, view in views.items()
        for flight in view.get("flights", {}).get("oldest", ())
    ]
    oldest.sort(key=lambda flight: -float(flight.get("age_s", 0.0)))
    merged["flights"]["oldest"] = oldest[:MOST_FLIGHTS]
    merged["at"] = max((view.get("at", 0.0) for view in views.values()), default=0.0)
    merged["phase"] = "serving" if any(view.get("phase") == "serving" for view in views.values()) else "away"
    merged["targets"] = _merge_targets(views)
    merged["workers"] = {**dict.fromkeys(views, ""), **silent}
    return merged


def _merge_targets(views: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    targets: dict[str, dict[str, Any]] = {}
    for view in views.values():
        for target in view.get("targets", ()):
            known = targets.get(target["target"])
            if known is None:
                targets[target["target"]] = dict(target)
                continue
            for name, value in target.items():
                if name == "state":
                    known[name] = max(known[name], value, key=_badness)
                elif name in _SLOWEST:
                    known[name] = max(known[name], value)
                elif name != "target":
                    known[name] += value
    return [targets[name] for name in sorted(targets)]


def _badness(state: str) -> int:
    return _STATES.index(state) if state in _STATES else len(_STATES)
