"""Readers that stop reading: what they hold in memory, and what others feel of them."""

from __future__ import annotations

import time

from loadtests.drive.spec import Spec
from loadtests.peers import Running
from loadtests.stage import Stage, Upstream, Watch

ABOUT = "n readers of large streams (2 MB) that stop reading, beside 200 other requests a second."
_SETTLE_S = 2.0
_GATHER_S = 60.0
"""How long it may take until all of them are connected."""


def run(stage: Stage) -> None:
    for size in stage.scale.choose((10_000,), (1000, 10_000)):
        with (
            stage.upstream(latency_ms=20.0, events=2000, event_bytes=1000) as upstream,
            stage.peers(("sameflight",), upstream) as peers,
        ):
            _stall(stage, next(peer for peer in peers if peer.name == "sameflight"), upstream, size)


def _stall(stage: Stage, peer: Running, upstream: Upstream, size: int) -> None:
    assert peer.child is not None
    variant = f"{size:,} stalled"
    seconds = stage.scale.choose(3.0, 20.0)
    others = Spec("open", 0, connections=64, rate=200.0, requests=int(200 * seconds))
    stalled = Spec("stalled", 0, connections=size, requests=size, seconds=seconds + _SETTLE_S + 3.0, stream=True)
    stage.describe(variant, stalled)
    stage.drive(stage.aim(others, peer))
    before = stage.drive(stage.aim(others, peer))
    idle_bytes = peer.child.rss_bytes()
    upstream.reset()
    readers = stage.begin(stage.aim(stalled, peer))
    try:
        with Watch(peer.child) as watch:
            _gather(peer, size)
            beside = stage.drive(stage.aim(others, peer))
            result = readers.end()
    except BaseException:
        readers.stop()
        raise
    figures = {
        **result.figures,
        "upstream_calls": float(upstream.stats()["calls"]),
        "rss_mib": watch.peak_rss_bytes / (1 << 20),
        "rss_per_reader_kib": (watch.peak_rss_bytes - idle_bytes) / size / 1024,
        "others_p99_before_ms": before.figures["latency_p99_ms"],
        "others_p99_ms": beside.figures["latency_p99_ms"],
        "others_p99_growth": beside.figures["latency_p99_ms"] / before.figures["latency_p99_ms"],
        "others_failed": beside.figures["failed"],
    }
    stage.record(variant, peer.name, 0, figures)


def _gather(peer: Running, size: int) -> None:
    """Until all readers are connected, and a moment longer. What others feel then is not the crowd's arrival."""
    assert peer.child is not None
    until = time.monotonic() + _GATHER_S
    while peer.child.open_files() < size and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(_SETTLE_S)
