"""Everybody asks the same at once. The first number is the upstream calls, the second the time."""

from __future__ import annotations

from dataclasses import replace

from loadtests.drive.spec import Spec
from loadtests.peers import Running
from loadtests.stage import Stage, Upstream

ABOUT = "n identical JSON requests in one moment, against one call for each group of max_subscribers (1,000)."
_GROUP = 1000


def run(stage: Stage) -> None:
    with stage.upstream(latency_ms=1000.0) as upstream, stage.peers(("sameflight", "nginx"), upstream) as peers:
        for size in (100, 1000):
            _gather(stage, peers, upstream, size)
    # The answer has to be on its way until the last of them has asked.
    with stage.upstream(latency_ms=8000.0) as upstream, stage.peers(("sameflight",), upstream) as peers:
        _gather(stage, [peer for peer in peers if peer.name == "sameflight"], upstream, 10_000)


def _gather(stage: Stage, peers: list[Running], upstream: Upstream, size: int) -> None:
    variant = f"{size:,} at once"
    spec = Spec("followers", 0, connections=size, requests=size, seconds=30.0)
    stage.describe(variant, spec)
    for number in stage.rounds(1 if stage.scale.quick or size == 10_000 else None):
        for peer in peers:
            row = stage.take(variant, peer, number, stage.aim(replace(spec), peer), upstream)
            row.figures["calls_over_oracle"] = row.figures["upstream_calls"] / -(-size // _GROUP)
