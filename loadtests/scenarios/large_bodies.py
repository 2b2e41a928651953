"""Long prompts: every byte is read, keyed and sent on."""

from __future__ import annotations

from loadtests.drive.spec import Spec
from loadtests.stage import Stage

ABOUT = "Distinct JSON requests with prompts of 100 KB and 1 MB, 16 connections."


def run(stage: Stage) -> None:
    names = ("sameflight", "nginx", "envoy", *stage.scale.choose((), ("naive",)))
    with stage.upstream() as upstream, stage.peers(names, upstream) as peers:
        for name, size, quick, full in (("100 KB", 100_000, 3000, 20_000), ("1 MB", 1_000_000, 300, 2000)):
            count = stage.scale.choose(quick, full)
            seconds = stage.scale.choose(2.0, 60.0)
            spec = Spec("closed", 0, connections=16, requests=count, seconds=seconds, prompt_bytes=size)
            stage.measure(name, peers, spec, upstream)
