"""One stream with a thousand readers, and with ten thousand."""

from __future__ import annotations

from dataclasses import replace

from loadtests.drive.spec import Spec
from loadtests.peers import Running
from loadtests.stage import Stage, Upstream, Watch

ABOUT = "n readers of one stream: upstream calls, CPU for each delivered event, jitter, memory for each reader."
_GROUP = 1000


def run(stage: Stage) -> None:
    with (
        stage.upstream(latency_ms=1500.0, pace_ms=50.0, events=stage.scale.choose(60, 100)) as upstream,
        stage.peers(("sameflight", "nginx"), upstream) as peers,
    ):
        # nginx knows no flights: it relays as many separate streams.
        _read(stage, peers, upstream, 1000, rounds=stage.scale.choose(1, 5), pace_ms=50.0)
    with (
        stage.upstream(latency_ms=9000.0, pace_ms=1000.0, events=stage.scale.choose(8, 60)) as upstream,
        stage.peers(("sameflight",), upstream) as peers,
    ):
        _read(stage, peers, upstream, 10_000, rounds=1, pace_ms=1000.0)


def _read(
    stage: Stage, peers: list[Running], upstream: Upstream, size: int, *, rounds: int, pace_ms: float
) -> None:
    variant = f"{size:,} readers"
    spec = Spec("followers", 0, connections=size, requests=size, seconds=120.0, stream=True)
    stage.describe(variant, spec, pace_ms=pace_ms)
    for number in stage.rounds(rounds):
        for peer in peers:
            if peer.child is None or peer.name not in ("sameflight", "nginx"):
                continue
            aimed = stage.aim(replace(spec, distinct=size if peer.name == "nginx" else 0), peer)
            upstream.reset()
            idle_bytes, before_s = peer.child.rss_bytes(), peer.child.cpu_s()
            with Watch(peer.child) as watch:
                result = stage.drive(aimed)
            spent_s, grown_bytes = peer.child.cpu_s() - before_s, watch.peak_rss_bytes - idle_bytes
            stats = upstream.stats()
            more = {"peak_rss_mb": watch.peak_rss_bytes / 1e6}
            if not number:  # later rounds find the memory of the first one in the allocator
                more["rss_per_reader_kib"] = grown_bytes / size / 1024
            if peer.name == "sameflight":
                more["calls_over_oracle"] = stats["calls"] / -(-size // _GROUP)
            for share in ("p50", "p99", "p999"):
                if f"gap_{share}_ms" in result.figures:
                    more[f"jitter_{share}_ms"] = result.figures[f"gap_{share}_ms"] - pace_ms
            stage.add(variant, peer, number, result, spent_s, stats, **more)
            if result.figures["different_answers"] != 1:
                stage.note(f"{peer.name}: {result.figures['different_answers']:.0f} different answers to {variant}")
