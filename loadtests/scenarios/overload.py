"""Four times as many requests as can be served: what is still served, and how fast the others are told."""

from __future__ import annotations

from loadtests.drive.spec import Spec
from loadtests.stage import Stage

ABOUT = "Distinct JSON requests at four times the peak rate, open loop; good is what is answered within a second."


def run(stage: Stage) -> None:
    seconds = stage.scale.choose(3.0, 20.0)
    with stage.upstream(latency_ms=20.0) as upstream, stage.peers(("sameflight", "envoy"), upstream) as peers:
        for peer in peers:
            if peer.name not in ("sameflight", "envoy"):
                continue
            closed_s = stage.scale.choose(3.0, 15.0)
            spec = Spec("closed", 0, connections=256, requests=stage.scale.requests, seconds=closed_s)
            peak = stage.take("peak", peer, 0, stage.aim(spec, peer), upstream).figures["requests_per_s"]
            offered = int(4 * peak * seconds)
            spec = Spec("open", 0, connections=2000, rate=4 * peak, requests=offered, seconds=60.0)
            stage.describe("fourfold", spec)
            row = stage.take("fourfold", peer, 0, stage.aim(spec, peer), upstream)
            # By the time in which they were asked; what is answered later than a second after is nobody's good.
            good = row.figures["within_1s"] / seconds
            row.figures.update(offered_per_s=4 * peak, goodput_per_s=good)
            row.figures["goodput_share"] = good / peak
