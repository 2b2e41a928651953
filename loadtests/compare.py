"""``python -m loadtests.compare BEFORE AFTER``: what changed between two result folders, and whether it got worse.

A figure has changed if it moved by more than the threshold and the two spreads do not overlap. Figures of different
machines do not compare; ratios to the peers of the same run (``--against``) do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from loadtests.report import read_rows, show
from loadtests.rows import Row, Summary, gather, summarize

# Figures that are judged, and whether more of it is better.
JUDGED = {
    "cpu_us_per_request": False,
    "cpu_us_per_event": False,
    "requests_per_s": True,
    "latency_p99_ms": False,
    "first_event_p99_ms": False,
    "calls_over_oracle": False,
    "rss_per_reader_kib": False,
    "ready_s": False,
    "idle_rss_mb": False,
    "goodput_share": True,
    "failed": False,
}


class Change(NamedTuple):
    """One figure in two runs."""

    place: str
    figure: str
    before: Summary
    after: Summary
    verdict: str
    """``better``, ``worse`` or nothing."""


def compare(before: Sequence[Row], after: Sequence[Row], threshold: float, against: str = "") -> list[Change]:
    """Every judged figure that both runs have, of this proxy; divided by that of the peer ``against`` if given."""
    old, new = _figures(before, against), _figures(after, against)
    changes = []
    for key in old.keys() & new.keys():
        place, figure = key
        changes.append(Change(place, figure, old[key], new[key], _judge(figure, old[key], new[key], threshold)))
    return sorted(changes)


def _figures(rows: Sequence[Row], against: str) -> dict[tuple[str, str], Summary]:
    places = gather(rows)
    found = {}
    for (scenario, variant, peer), figures in places.items():
        if peer != "sameflight":
            continue
        other = places.get((scenario, variant, against), {}) if against else {}
        for figure in JUDGED.keys() & figures.keys():
            values = figures[figure]
            if against:
                base = other.get(figure, {})
                values = {each: values[each] / base[each] for each in values.keys() & base.keys() if base[each]}
            if values:
                found[(f"{scenario}, {variant}", figure)] = summarize(list(values.values()))
    return found


def _judge(figure: str, before: Summary, after: Summary, threshold: float) -> str:
    if abs(after.median - before.median) <= threshold * abs(before.median):
        return ""
    if before.rounds > 1 and after.rounds > 1 and after.low <= before.high and before.low <= after.high:
        return ""
    return "better" if (after.median > before.median) == JUDGED[figure] else "worse"


def render(changes: Sequence[Change]) -> str:
    lines = ["| | figure | before | after | change | |", "|---|---|--:|--:|--:|---|"]
    for place, figure, before, after, verdict in changes:
        moved = f"{after.median / before.median - 1:+.1%}" if before.median else "–"
        lines.append(f"| {place} | {figure} | {show(before)} | {show(after)} | {moved} | {verdict} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """0 if nothing is worse, 1 if something is, 2 for folders that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.compare", description="Compare two result folders.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--threshold", type=float, default=0.05, help="smallest change that counts (%(default)s)")
    parser.add_argument("--against", default="", metavar="PEER", help="compare ratios to this peer of the same run")
    args = parser.parse_args(arguments)
    try:
        changes = compare(read_rows(args.before), read_rows(args.after), args.threshold, args.against)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    print(render(changes))
    worse = [change for change in changes if change.verdict == "worse"]
    print(f"\n{len(changes)} figures, {len(worse)} worse")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
