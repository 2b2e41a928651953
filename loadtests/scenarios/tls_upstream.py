"""The upstream speaks TLS, as every real one does."""

from __future__ import annotations

from loadtests.drive.spec import Spec
from loadtests.stage import Stage

ABOUT = "Distinct JSON requests as in `distinct`, to an upstream that speaks TLS with a verified certificate."


def run(stage: Stage) -> None:
    spec = Spec("closed", 0, requests=stage.scale.requests, seconds=stage.scale.closed_s)
    names = ("sameflight", "nginx", "envoy", "naive")
    with stage.upstream(secure=True) as upstream, stage.peers(names, upstream) as peers:
        stage.measure("closed", peers, spec, upstream)
