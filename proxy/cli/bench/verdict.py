"""What was found, as a table of direct, through and difference, and whether it keeps its targets. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.cli.bench.load import Outcome


class Targets(NamedTuple):
    """What a gateway may add; shares are between 0 and 1."""

    p50_ms: float = 5.0
    p99_ms: float = 25.0
    failures: float = 0.0
    hit_rate: float = 0.9
    """Of the requests that could have been spared their upstream call, those that were."""


@dataclass(frozen=True, slots=True)
class Herds:
    """Identical requests, all of a group at once."""

    groups: int
    size: int
    outcome: Outcome
    calls: int | None
    """What the upstream counted; unknown for one that does not tell."""

    @property
    def hit_rate(self) -> float | None:
        """Requests without a call of their own, of those that needed none; 1 is perfect."""
        asked = self.groups * self.size
        spared = self.outcome.shared if self.calls is None else asked - self.calls
        possible = asked - self.groups
        return max(0.0, spared / possible) if possible else None


@dataclass(slots=True)
class Findings:
    """Outcomes by way (``direct``, ``through``) and load (``whole``, ``streams``, ``busy``)."""

    outcomes: dict[tuple[str, str], Outcome] = field(default_factory=dict)
    herds: Herds | None = None

    def failures(self, way: str) -> float:
        """The share of requests that got no good answer."""
        found = [outcome for (each, _), outcome in self.outcomes.items() if each == way]
        if way == "through" and self.herds is not None:
            found.append(self.herds.outcome)
        asked = sum(outcome.asked for outcome in found)
        return sum(outcome.failed for outcome in found) / asked if asked else 0.0


class Line(NamedTuple):
    """A row of the table; ``added`` is missing where a difference says nothing."""

    name: str
    direct: float | None
    through: float | None
    added: float | None
    unit: str


class Verdict(NamedTuple):
    """A target and what was found; ``met`` is ``None`` for what could not be found out."""

    name: str
    found: float | None
    target: float
    unit: str
    met: bool | None


def tabulate(findings: Findings) -> list[Line]:
    """The rows that have something to say."""
    lines = []
    for load, title, figure in (
        ("whole", "answer", "latency"),
        ("streams", "first event", "first"),
        ("streams", "whole stream", "latency"),
    ):
        for label, share in (("P50", 0.5), ("P99", 0.99)):
            direct = _quantile_ms(findings.outcomes.get(("direct", load)), figure, share)
            through = _quantile_ms(findings.outcomes.get(("through", load)), figure, share)
            if direct is not None or through is not None:
                lines.append(Line(f"{title}, {label}", direct, through, _difference(direct, through), "ms"))
    busy = [_rate(findings.outcomes.get((way, "busy"))) for way in ("direct", "through")]
    lines.append(Line("answers a second, closed loop", busy[0], busy[1], None, ""))
    lines.append(Line("failed", 100 * findings.failures("direct"), 100 * findings.failures("through"), None, "%"))
    if findings.herds is not None and findings.herds.hit_rate is not None:
        lines.append(Line("identical requests spared a call", None, 100 * findings.herds.hit_rate, None, "%"))
    return lines


def judge(findings: Findings, targets: Targets) -> list[Verdict]:
    """One verdict for each target."""
    added = {line.name: line.added for line in tabulate(findings)}
    p50, p99 = added.get("answer, P50"), added.get("answer, P99")
    failures = findings.failures("through")
    rate = findings.herds.hit_rate if findings.herds is not None else None
    return [
        Verdict("added at P50", p50, targets.p50_ms, "ms", None if p50 is None else p50 <= targets.p50_ms),
        Verdict("added at P99", p99, targets.p99_ms, "ms", None if p99 is None else p99 <= targets.p99_ms),
        Verdict("failures", 100 * failures, 100 * targets.failures, "%", failures <= targets.failures),
        Verdict(
            "hit rate",
            None if rate is None else 100 * rate,
            100 * targets.hit_rate,
            "%",
            None if rate is None else rate >= targets.hit_rate,
        ),
    ]


def render(findings: Findings, targets: Targets) -> str:
    """Table and verdicts for a terminal."""
    rows = [("", "direct", "through", "difference")]
    rows += [
        (line.name, _show(line.direct, line.unit), _show(line.through, line.unit), _show(line.added, line.unit, "+"))
        for line in tabulate(findings)
    ]
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    table = "\n".join(
        "  ".join([row[0].ljust(widths[0]), *[row[place].rjust(widths[place]) for place in (1, 2, 3)]]).rstrip()
        for row in rows
    )
    verdicts = "\n".join(_tell(verdict) for verdict in judge(findings, targets))
    return f"{table}\n\n{verdicts}"


def as_data(findings: Findings, targets: Targets) -> dict[str, object]:
    """The same for programs."""
    return {
        "table": [line._asdict() for line in tabulate(findings)],
        "verdicts": [verdict._asdict() for verdict in judge(findings, targets)],
        "failures": {f"{way} {load}": each.failures for (way, load), each in findings.outcomes.items()},
    }


def _tell(verdict: Verdict) -> str:
    word = {True: "met", False: "MISSED", None: "unknown"}[verdict.met]
    sign = "at least" if verdict.name == "hit rate" else "at most"
    found, target = _show(verdict.found, verdict.unit), _show(verdict.target, verdict.unit)
    return f"{word:<8}{verdict.name}: {found}, {sign} {target}"


def _show(value: float | None, unit: str, sign: str = "") -> str:
    if value is None:
        return ""
    digits = 0 if abs(value) >= 1000 else 2
    return f"{value:{sign},.{digits}f} {unit}".rstrip()


def _quantile_ms(outcome: Outcome | None, figure: str, share: float) -> float | None:
    histogram = getattr(outcome, figure, None)
    return histogram.quantile(share) / 1000 if histogram is not None and histogram.count else None


def _difference(direct: float | None, through: float | None) -> float | None:
    return None if direct is None or through is None else through - direct


def _rate(outcome: Outcome | None) -> float | None:
    return outcome.answered / outcome.seconds if outcome is not None and outcome.seconds else None
