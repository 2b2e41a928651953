"""Mixed traffic for a long time: what grows, grows here."""

from __future__ import annotations

import http.client
import re
import time

from loadtests.drive.spec import Spec
from loadtests.peers import Running
from loadtests.rows import slope
from loadtests.stage import Stage, Watch

_LONG_S = 300.0
ABOUT = "New and repeated questions, streams, and callers that stall and leave, mixed; slopes of the second half."


def run(stage: Stage) -> None:
    seconds = stage.scale.soak_s
    with (
        stage.upstream(latency_ms=20.0, pace_ms=5.0, events=40, fault="500", fault_every=997) as upstream,
        stage.peers(("sameflight",), upstream) as peers,
    ):
        peer = next(each for each in peers if each.name == "sameflight")
        assert peer.child is not None
        many = 2_000_000_000
        loads = (
            Spec("closed", 0, connections=16, requests=many, seconds=seconds, mix=0.5),
            Spec("closed", 0, connections=64, requests=many, seconds=seconds, mix=0.5, stream=True),
        )
        for name, spec in zip(("whole", "streams"), loads, strict=True):
            stage.describe(name, spec)
        before_s = peer.child.cpu_s()
        with Watch(peer.child, every_s=max(0.25, seconds / 2000)) as watch:
            drives = [stage.begin(_aim(stage, spec, peer)) for spec in loads]
            # Callers that leave in the middle, again and again.
            until = time.monotonic() + seconds - 3.0
            while time.monotonic() < until:
                spec = Spec("stalled", 0, connections=20, requests=20, seconds=0.1, stream=True)
                stage.drive(stage.aim(spec, peer))
                time.sleep(min(0.5, max(0.0, until - time.monotonic())))
            results = [drive.end() for drive in drives]
        spent_s = peer.child.cpu_s() - before_s
        time.sleep(5.0)  # what lingers has gone by then
        figures = {**_slopes(watch), **_left(peer), "cpu_s": spent_s, "soaked_s": seconds}
        for name in ("asked", "answered", "failed", "events"):
            figures[name] = sum(result.figures[name] for result in results)
        figures["rss_mb"] = peer.child.rss_bytes() / 1e6
        figures["threads"] = float(peer.child.threads())
        failures = {key: value for result in results for key, value in result.failures.items()}
        # The slope of a few seconds is noise, so the budget judges longer ones only.
        stage.record("mixed" if seconds >= _LONG_S else "mixed, short", peer.name, 0, figures, failures)
        stage.series["resident memory, MB"] = [(at, rss / 1e6) for at, rss, _ in watch.samples]
        stage.series["open files"] = [(at, float(files)) for at, _, files in watch.samples]
        stage.note(
            f"{seconds:.0f} s; slopes of the second half: {figures['rss_slope_mb_per_hour']:.1f} MB/h, "
            f"{figures['files_slope_per_hour']:.1f} files/h; flights left: {figures.get('flights_left', 0):.0f}"
        )


def _aim(stage: Stage, spec: Spec, peer: Running) -> Spec:
    stage.number(Spec("closed", 0, requests=5_000_000))  # room, as nobody knows how many will be asked
    return stage.aim(spec, peer)


def _slopes(watch: Watch) -> dict[str, float]:
    """Growth for an hour, from the second half, when pools and allocators have reached their size."""
    half = [sample for sample in watch.samples if sample[0] >= watch.samples[-1][0] / 2]
    return {
        "rss_slope_mb_per_hour": slope([(at, rss / 1e6) for at, rss, _ in half]) * 3600,
        "files_slope_per_hour": slope([(at, float(files)) for at, _, files in half]) * 3600,
        "peak_rss_mb": watch.peak_rss_bytes / 1e6,
    }


def _left(peer: Running) -> dict[str, float]:
    """What the process says it still holds after everybody has gone."""
    connection = http.client.HTTPConnection("127.0.0.1", peer.admin_port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    found = {}
    for name, label in (("flights_in_air", "flights_left"), ("retained_bytes", "retained_bytes_left")):
        value = re.search(rf"^sameflight_{name}(?:{{[^}}]*}})? ([\d.e+-]+)$", text, re.MULTILINE)
        if value is not None:
            found[label] = float(value[1])
    defects = r"^sameflight_(?:bugs_total|flight_watchdog_total)(?:{[^}]*})? ([\d.e+-]+)$"
    found["bugs"] = sum(float(each) for each in re.findall(defects, text, re.MULTILINE))
    return found
