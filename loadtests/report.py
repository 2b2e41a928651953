"""Writes a run's folder: ``raw.json``, ``report.md`` and the pictures that it shows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from loadtests import plots
from loadtests.budgets import Judged
from loadtests.rows import Row, Summary, gather, summarize


class About(NamedTuple):
    """What was run where."""

    started: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    scenarios: dict[str, str]


class Found(Protocol):
    """What a run found; `stage.Stage` is one."""

    rows: list[Row]
    notes: list[str]
    loads: dict[str, dict[str, object]]
    latencies: dict[tuple[str, str, str], list[tuple[float, int]]]
    series: dict[str, list[tuple[float, float]]]


# The columns of a scenario's table, in this order, as far as anybody has them.
_COLUMNS = {
    "cpu_us_per_request": "CPU µs/request",
    "cpu_us_per_event": "CPU µs/event",
    "requests_per_s": "requests/s",
    "goodput_per_s": "goodput/s",
    "goodput_share": "goodput ÷ peak",
    "latency_p50_ms": "p50 ms",
    "latency_p99_ms": "p99 ms",
    "latency_p999_ms": "p99.9 ms",
    "first_event_p50_ms": "first event p50 ms",
    "first_event_p99_ms": "first event p99 ms",
    "jitter_p99_ms": "jitter p99 ms",
    "gap_p99_ms": "gap p99 ms",
    "load_busy": "load core busy",
    "stolen": "cores kept by host",
    "upstream_calls": "upstream calls",
    "calls_over_oracle": "calls ÷ oracle",
    "key_hit_rate": "key hits",
    "failure_share": "failed ÷ asked",
    "extra_load": "extra load",
    "mixed": "mixed answers",
    "recovery_share": "until served ÷ ejection",
    "recovery_s": "until served s",
    "ejection_s": "ejection s",
    "retries": "retries",
    "denied_by_share": "denied by share",
    "denied_by_tokens": "denied by tokens",
    "shed": "shed",
    "dropped": "dropped",
    "reloads": "reloads",
    "bad_reloads": "bad files",
    "rss_mb": "RSS MB",
    "rss_mib": "peak RSS MiB",
    "peak_rss_mb": "peak RSS MB",
    "rss_per_reader_kib": "RSS KiB/reader",
    "others_p99_before_ms": "others' p99 before ms",
    "others_p99_ms": "others' p99 ms",
    "refused_p99_ms": "refused p99 ms",
    "ready_s": "ready s",
    "idle_rss_mb": "idle RSS MB",
    "rss_slope_mb_per_hour": "RSS slope MB/h",
    "rss_slope_error": "± MB/h",
    "files_slope_per_hour": "files slope /h",
    "tasks_slope_per_hour": "tasks slope /h",
    "refused": "refused",
    "in_vain": "let in in vain",
    "refused_p50_ms": "refused p50 ms",
    "answered": "answered",
    "failed": "failed",
}
_RATE = "fault_percent"
"""The figure of a row that is one point of a sweep over failure rates."""
_MOST_EXTRA_PERCENT = 20.0
_METHOD = """\
The proxy under test runs on one core, load and upstream on another; peers take turns in every round, in reverse order
every other round. Figures are medians over the rounds, with the lowest and highest in brackets. CPU is user + system
time of the process under test from `/proc/PID/stat`, divided by the answers it gave. Latency counts from the intended
start of a request. Everything runs on loopback, before a fake provider. Requests a second of peers that are cheaper
than load and provider together are those of the load, no limit of theirs.
"""


def write(folder: Path, about: About, found: Found, judged: Sequence[Judged]) -> None:
    """Write the folder; what is in it from an earlier run of the same name is overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "raw.json").write_text(json.dumps(_make_raw(about, found), indent=1), "utf-8")
    pictures = draw(found)
    for name, text in pictures.items():
        (folder / name).write_text(text, "utf-8")
    (folder / "report.md").write_text(render(about, found, judged, list(pictures)), "utf-8")


def read_rows(folder: Path) -> list[Row]:
    """The rows of a run. Raises ``OSError`` and ``ValueError``."""
    raw = json.loads((folder / "raw.json").read_text("utf-8"))
    return [Row(**row) for row in raw["rows"]]


def _make_raw(about: About, found: Found) -> dict[str, Any]:
    return {
        "about": about._asdict(),
        "loads": found.loads,
        "notes": found.notes,
        "rows": [row._asdict() for row in found.rows],
        "series": found.series,
    }


def render(about: About, found: Found, judged: Sequence[Judged], pictures: Sequence[str] = ()) -> str:
    """The whole report as Markdown."""
    parts = [
        f"# Load test of {about.started}\n",
        f"`{about.command}`\n",
        _facts("Machine", about.machine),
        _facts("Versions", about.versions),
        f"## Method\n\n{_METHOD}",
        f"## Budgets\n\n{render_budgets(judged)}",
    ]
    if found.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in found.notes) + "\n")
    for name, sentence in about.scenarios.items():
        parts.append(_render_scenario(name, sentence, found, [each for each in pictures if each.startswith(name)]))
    return "\n".join(parts)


def _facts(title: str, facts: dict[str, str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n"


def render_budgets(judged: Sequence[Judged]) -> str:
    """The table of budgets, those that were measured first."""
    lines = ["| budget | found | first | goal | verdict |", "|---|--:|--:|--:|---|"]
    for budget, found, verdict in sorted(judged, key=lambda each: each.found is None):
        sign = "≥" if budget.at_least else "≤"
        shown = f"{show(found)} {budget.unit}".strip() if found is not None else "–"
        limits = f"{sign} {budget.first:g} | {sign} {budget.goal:g}"
        lines.append(f"| {budget.name} | {shown} | {limits} | {verdict.value} |")
    return "\n".join(lines) + "\n"


def _render_scenario(name: str, sentence: str, found: Found, pictures: Sequence[str]) -> str:
    places = {place: figures for place, figures in gather(found.rows).items() if place[0] == name}
    parts = [f"## {name}\n", f"{sentence}\n"]
    columns = [column for column in _COLUMNS if any(column in figures for figures in places.values())]
    if places:
        parts.append("| | " + " | ".join(_COLUMNS[column] for column in columns) + " |")
        parts.append("|---|" + "--:|" * len(columns))
        for (_, variant, peer), figures in places.items():
            cells = [show(summarize(list(figures[each].values()))) if each in figures else "" for each in columns]
            parts.append(f"| {variant}: {peer} | " + " | ".join(cells) + " |")
        parts.append("")
    parts += [f"![{each}]({each})\n" for each in pictures]
    if name in found.loads:
        parts += ["Load:\n", "```json", json.dumps(found.loads[name], indent=1), "```", ""]
    return "\n".join(parts)


def show(found: Summary) -> str:
    """Median, and the spread if there was more than one round."""
    text = _number(found.median)
    if found.rounds == 1 or found.low == found.high:
        return text
    return f"{text} ({_number(found.low)}–{_number(found.high)})"


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def draw(found: Found) -> dict[str, str]:
    """The pictures by file name, each beginning with the name of its scenario."""
    pictures = {}
    places = gather(found.rows)
    for figure, unit in (("cpu_us_per_event", "µs/event"), ("cpu_us_per_request", "µs/request")):
        for scenario, variant in dict.fromkeys(place[:2] for place in places):
            values = {
                peer: tuple(summarize(list(figures[figure].values())))[:3]
                for (s, v, peer), figures in places.items()
                if (s, v) == (scenario, variant) and figure in figures
            }
            name = _file_name(scenario, variant, "cpu")
            if len(values) > 1 and name not in pictures:
                pictures[name] = plots.bars(f"{scenario}, {variant}: CPU", values, unit)  # type: ignore[arg-type]
    for scenario, variant in dict.fromkeys(place[:2] for place in found.latencies):
        curves = {peer: buckets for (s, v, peer), buckets in found.latencies.items() if (s, v) == (scenario, variant)}
        pictures[_file_name(scenario, variant, "latency")] = plots.quantiles(
            f"{scenario}, {variant}: latency of the last round", curves
        )
    for scenario in dict.fromkeys(row.scenario for row in found.rows if _RATE in row.figures):
        pictures[_file_name(scenario, "sweep")] = _draw_sweep(scenario, found.rows)
    for title, points in found.series.items():
        pictures[_file_name("soak", title, "series")] = plots.over_time(f"soak: {title}", points)
    return pictures


def _draw_sweep(scenario: str, rows: Sequence[Row]) -> str:
    swept = [row.figures for row in rows if row.scenario == scenario and _RATE in row.figures]
    return plots.percentages(
        f"{scenario}: all targets fail alike",
        {
            title: sorted((figures[_RATE], figures[name]) for figures in swept)
            for title, name in (("answered", "success_percent"), ("extra load", "extra_load_percent"))
        },
        "calls that fail",
        _MOST_EXTRA_PERCENT,
    )


def _file_name(*words: str) -> str:
    return "-".join(re.sub(r"[^a-z0-9]+", "_", word.lower()).strip("_") for word in words) + ".svg"
