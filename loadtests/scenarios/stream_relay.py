"""Streams that nobody shares: what it costs to pass on an event, and when the first one comes."""

from __future__ import annotations

from loadtests.drive.spec import Spec
from loadtests.stage import Stage

ABOUT = "Distinct server-sent event streams: 300 at once (100 events, one each 10 ms), and 500 starting in a second."


def run(stage: Stage) -> None:
    names = ("sameflight", "nginx", "envoy", "naive")
    with stage.upstream(pace_ms=10.0) as upstream, stage.peers(names, upstream) as peers:
        spec = Spec("closed", 0, connections=300, requests=stage.scale.choose(450, 1500), seconds=60.0, stream=True)
        stage.measure("300 streams", peers, spec, upstream, warm=0.0)
    with (
        stage.upstream(latency_ms=50.0, pace_ms=50.0, events=20) as upstream,
        stage.peers(("direct", "sameflight", "nginx"), upstream) as peers,
    ):
        spec = Spec("open", 0, connections=600, rate=500.0, requests=500, stream=True)
        stage.measure("first event", peers, spec, upstream, warm=0.0)
