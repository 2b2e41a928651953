"""Mixed traffic for a long time: what grows, grows here."""

from __future__ import annotations

import http.client
import itertools
import math
import re
import time

from loadtests.drive.spec import Spec
from loadtests.peers import Running
from loadtests.rows import Trend, trend
from loadtests.stage import Stage, Watch

_LONG_S = 300.0
_LOOKS = 240
ABOUT = (
    "New and repeated questions, hits, herds, streams, callers that stall and leave, and errors of the upstream, "
    "mixed; growth of the second half with its 95 % interval."
)


def run(stage: Stage) -> None:
    seconds = stage.scale.soak_s
    with (
        stage.upstream(latency_ms=20.0, pace_ms=5.0, events=40, fault="500", fault_every=997) as upstream,
        stage.peers(("sameflight",), upstream) as peers,
    ):
        peer = next(each for each in peers if each.name == "sameflight")
        assert peer.child is not None
        many = 2_000_000_000
        loads = {
            "whole": Spec("closed", 0, connections=16, requests=many, seconds=seconds, mix=0.5),
            "streams": Spec("closed", 0, connections=48, requests=many, seconds=seconds, mix=0.5, stream=True),
            "hits": Spec(
                "closed", 0, connections=4, requests=many, seconds=seconds, distinct=50,
                headers=("x-sameflight-cache: on",),
            ),
        }  # fmt: skip
        for name, spec in loads.items():
            stage.describe(name, spec)
        before_s, told = peer.child.cpu_s(), []
        with Watch(peer.child, every_s=max(0.25, seconds / 2000)) as watch:
            drives = [stage.begin(_aim(stage, spec, peer)) for spec in loads.values()]
            until = time.monotonic() + seconds - 3.0
            for crowd in itertools.cycle((_leavers, _herd)):
                if time.monotonic() >= until:
                    break
                stage.drive(stage.aim(crowd(), peer))
                told.append((time.monotonic() - watch.started_at, _read_series(peer)))
                time.sleep(min(max(0.5, seconds / _LOOKS), max(0.0, until - time.monotonic())))
            results = [drive.end() for drive in drives]
        spent_s = peer.child.cpu_s() - before_s
        time.sleep(5.0)  # what lingers has gone by then
        left = _read_series(peer)
        trends = _find_trends(watch, told)
        figures = {
            "cpu_s": spent_s,
            "soaked_s": seconds,
            "peak_rss_mb": watch.peak_rss_bytes / 1e6,
            "rss_mb": peer.child.rss_bytes() / 1e6,
            "threads": float(peer.child.threads()),
            "flights_left": left.get("flights_in_air", 0.0),
            "retained_bytes_left": left.get("retained_bytes", 0.0),
            "bugs": left.get("bugs_total", 0.0) + left.get("flight_watchdog_total", 0.0),
        }
        for name, found in trends.items():
            figures[f"{name}_slope_per_hour"] = found.slope
            if not math.isinf(found.error):
                figures[f"{name}_slope_error"] = found.error
        figures["rss_slope_mb_per_hour"] = figures.pop("rss_slope_per_hour")
        for name in ("asked", "answered", "failed", "events"):
            figures[name] = sum(result.figures.get(name, 0.0) for result in results)
        failures = {key: value for result in results for key, value in result.failures.items()}
        # The slope of a few seconds is noise, so the budget judges longer ones only.
        stage.record("mixed" if seconds >= _LONG_S else "mixed, short", peer.name, 0, figures, failures)
        stage.series["resident memory, MB"] = [(at, rss / 1e6) for at, rss, _ in watch.samples]
        stage.series["open files"] = [(at, float(files)) for at, _, files in watch.samples]
        stage.note(
            f"{seconds:.0f} s; growth an hour in the second half: "
            + "; ".join(_tell(name, found) for name, found in trends.items())
            + f"; flights left: {figures['flights_left']:.0f}, defects: {figures['bugs']:.0f}"
        )


def _leavers() -> Spec:
    """Twenty that take the beginning of a stream, stall, and leave."""
    return Spec("stalled", 0, connections=20, requests=20, seconds=0.1, stream=True)


def _herd() -> Spec:
    """Two hundred that ask the same at once."""
    return Spec("followers", 0, connections=200, requests=200, seconds=10.0, stream=True)


def _aim(stage: Stage, spec: Spec, peer: Running) -> Spec:
    stage.number(Spec("closed", 0, requests=5_000_000))  # room, as nobody knows how many will be asked
    return stage.aim(spec, peer)


def _find_trends(watch: Watch, told: list[tuple[float, dict[str, float]]]) -> dict[str, Trend]:
    """Growth for an hour, from the second half, when pools and allocators have reached their size."""
    half_s = watch.samples[-1][0] / 2
    points = {
        "rss": [(at / 3600, rss / 1e6) for at, rss, _ in watch.samples if at >= half_s],
        "files": [(at / 3600, float(files)) for at, _, files in watch.samples if at >= half_s],
    }
    for name in ("tasks", "flights_in_air", "retained_bytes"):
        found = [(at / 3600, series[name]) for at, series in told if at >= half_s and name in series]
        if found:
            points[name] = found
    return {name: trend(found) for name, found in points.items()}


def _tell(name: str, found: Trend) -> str:
    unit = " MB" if name == "rss" else ""
    return f"{name} {found.slope:+.2f}{unit} ± {found.error:.2f} ({'grows' if found.grows else 'flat within that'})"


def _read_series(peer: Running) -> dict[str, float]:
    """Some series of the process, each added up over its labels; those that it does not have are missing."""
    connection = http.client.HTTPConnection("127.0.0.1", peer.admin_port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    wanted = "tasks|flights_in_air|retained_bytes|bugs_total|flight_watchdog_total"
    found: dict[str, float] = {}
    for name, value in re.findall(rf"^sameflight_({wanted})(?:{{[^}}]*}})? ([\d.e+-]+)$", text, re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    return found
