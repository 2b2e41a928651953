"""Answers that are in the cache already."""

from __future__ import annotations

from loadtests.drive.spec import Spec
from loadtests.stage import Stage

ABOUT = "Hits in the response cache: 100 questions asked again and again, body in the key, 64 connections."
_QUESTIONS = 100


def run(stage: Stage) -> None:
    spec = Spec("closed", 0, requests=stage.scale.requests, seconds=stage.scale.closed_s, distinct=_QUESTIONS)
    with stage.upstream() as upstream, stage.peers(("sameflight", "nginx"), upstream, caches=True) as peers:
        stage.measure("closed", peers, spec, upstream)
    for row in stage.rows:
        if row.scenario == "hot_hit" and row.figures["upstream_calls"]:
            stage.note(f"{row.peer} made {row.figures['upstream_calls']:.0f} upstream calls for what it had")
