"""The report of a run: complete, readable back, and comparable with another one."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadtests import compare, report
from loadtests.budgets import Budget, judge
from loadtests.rows import Row, gather, slope, summarize

ABOUT = report.About("2026-01-02 03:04", "python -m loadtests", {"cores": "2"}, {"python": "3"}, {"distinct": "New."})


def rows(ours: float = 40.0, spread: float = 1.0) -> list[Row]:
    found = []
    for number in (0, 1, 2):
        drift = (number - 1) * spread
        figures = {"cpu_us_per_request": ours + drift, "rss_mb": 50.0}
        found.append(Row("distinct", "closed", "sameflight", number, figures))
        found.append(Row("distinct", "closed", "envoy", number, {"cpu_us_per_request": 20.0}, {"500": 1}))
    return found


def found_of(these: list[Row]) -> SimpleNamespace:
    latencies = {("distinct", "closed", "sameflight"): [(100.0, 90), (1000.0, 9), (20_000.0, 1)]}
    return SimpleNamespace(
        rows=these,
        notes=["distinct: a <note>"],
        loads={"distinct": {"closed": {"connections": 64}}},
        latencies=latencies,
        series={"resident memory, MB": [(0.0, 50.0), (10.0, 51.0)]},
    )


BUDGETS = [
    Budget("cpu ÷ envoy", "distinct", "closed", "cpu_us_per_request", 1.4, 0.85, how="ratio", against="envoy"),
    Budget("start", "cold_start", "start", "ready_s", 0.8, 0.4, unit="s"),
]


def write(folder: Path, these: list[Row] | None = None) -> str:
    found = found_of(these if these is not None else rows())
    report.write(folder, ABOUT, found, judge(BUDGETS, found.rows))
    return (folder / "report.md").read_text("utf-8")


def test_the_report_tells_machine_method_budgets_notes_figures_and_load(tmp_path: Path) -> None:
    """Whoever reads a figure can see how it came about."""
    text = write(tmp_path)

    assert "- cores: 2" in text
    assert "## Method" in text
    assert "| cpu ÷ envoy | 2 (1.95–2.05) | ≤ 1.4 | ≤ 0.85 | missed |" in text
    assert "| start | – | ≤ 0.8 | ≤ 0.4 | not measured |" in text
    assert "- distinct: a <note>" in text
    assert "| closed: sameflight | 40 (39–41) | 50 |" in text
    assert '"connections": 64' in text


def test_every_picture_that_the_report_shows_is_there_and_is_a_picture(tmp_path: Path) -> None:
    """Bars of CPU, a curve of latency."""
    text = write(tmp_path)
    pictures = sorted(path.name for path in tmp_path.glob("*.svg"))

    assert pictures == [
        "distinct-closed-cpu.svg",
        "distinct-closed-latency.svg",
        "soak-resident_memory_mb-series.svg",
    ]
    assert [name for name in pictures if f"({name})" in text] == pictures[:2]
    for name in pictures:
        assert ET.parse(tmp_path / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_raw_rows_can_be_read_back(tmp_path: Path) -> None:
    """A later program compares with them."""
    write(tmp_path)

    assert report.read_rows(tmp_path) == rows()


def test_a_run_without_rows_still_has_a_report(tmp_path: Path) -> None:
    """All scenarios failed; the notes say why."""
    assert "| cpu ÷ envoy | – |" in write(tmp_path, [])


@pytest.mark.parametrize(
    ("after", "spread", "verdict"), [(40.5, 1.0, ""), (60.0, 1.0, "worse"), (30.0, 1.0, "better"), (50.0, 15.0, "")]
)
def test_a_figure_has_changed_if_it_moved_further_than_threshold_and_spread(
    after: float, spread: float, verdict: str
) -> None:
    """Noise is no regression."""
    changes = compare.compare(rows(40.0, spread), rows(after, spread), 0.05)

    assert [(change.figure, change.verdict) for change in changes] == [("cpu_us_per_request", verdict)]


def test_ratios_compare_where_machines_differ() -> None:
    """Twice the cost on a machine on which Envoy costs twice as much is no change."""
    slow = [row._replace(figures={name: 2 * value for name, value in row.figures.items()}) for row in rows()]

    assert [change.verdict for change in compare.compare(rows(), slow, 0.05, against="envoy")] == [""]
    assert [change.verdict for change in compare.compare(rows(), slow, 0.05)] == ["worse"]


def test_comparing_tells_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 for nothing worse, 1 for something worse, 2 for a folder that is none."""
    before, after = tmp_path / "before", tmp_path / "after"
    write(before)
    write(after, rows(80.0))

    assert compare.main([str(before), str(before)]) == 0
    assert compare.main([str(before), str(after)]) == 1
    printed = capsys.readouterr().out
    assert "| distinct, closed | cpu_us_per_request | 40 (39–41) | 80 (79–81) | +100.0% | worse |" in printed
    assert compare.main([str(before), str(tmp_path / "none")]) == 2


def test_a_summary_is_the_median_with_its_spread() -> None:
    """One outlier moves the spread and not the figure."""
    assert summarize([5.0, 1.0, 3.0]) == (3.0, 1.0, 5.0, 3)


def test_rows_are_gathered_by_place_figure_and_round() -> None:
    """What ratios need."""
    assert gather(rows())[("distinct", "closed", "envoy")] == {"cpu_us_per_request": {0: 20.0, 1: 20.0, 2: 20.0}}


@pytest.mark.parametrize(
    ("points", "found"), [([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)], 2.0), ([(1.0, 4.0)], 0.0), ([(1.0, 2.0)] * 3, 0.0)]
)
def test_the_slope_is_that_of_the_line_of_least_squares(points: list[tuple[float, float]], found: float) -> None:
    """And nothing where there is no line."""
    assert slope(points) == pytest.approx(found)
