"""Small JSON requests, each a new one: nothing to share, so all that the proxy costs is on the table."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from loadtests.drive.spec import Spec
from loadtests.peers import Running
from loadtests.stage import Stage, Upstream

ABOUT = "Distinct JSON requests (832 bytes, answer 1,042 bytes, upstream answers at once), 64 connections."


def run(stage: Stage) -> None:
    spec = Spec("closed", 0, requests=stage.scale.requests, seconds=stage.scale.closed_s)
    with stage.upstream() as upstream, stage.peers(("sameflight", "nginx", "envoy", "naive"), upstream) as peers:
        stage.measure("closed", peers, spec, upstream)
        _measure_half_load(stage, peers, upstream)


def _measure_half_load(stage: Stage, peers: list[Running], upstream: Upstream) -> None:
    """Latency in an open loop at half of what one core of this proxy can do, against no proxy at all."""
    peaks = [row.figures["requests_per_s"] for row in stage.rows if row[:3] == ("distinct", "closed", "sameflight")]
    rate = median(peaks) / 2
    lines = [Running("direct", upstream.port), *[peer for peer in peers if peer.name in ("sameflight", "envoy")]]
    spec = Spec("open", 0, connections=256, rate=rate, requests=int(rate * stage.scale.choose(2.0, 20.0)))
    stage.measure("half load", lines, replace(spec, seconds=60.0), upstream)
