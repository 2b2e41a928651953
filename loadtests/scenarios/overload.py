"""Four times as many requests as can be served: what is still served, and how fast the others are told."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from loadtests.drive.spec import Spec
from loadtests.peers import Running
from loadtests.quota import Quota, part_of_a_core
from loadtests.stage import Stage, Upstream

ABOUT = (
    "Distinct requests at four times the peak rate, open loop; good is what is whole within a second of when it "
    "should be, the first two seconds apart. Streams (100 events in a second) of callers that ask on whatever they "
    "are told, the proxy with three fifths of a core, so that load and provider are no limit; and small whole "
    "answers of 1,000 callers that come back when they are told to: refusing each of four times as many would cost "
    "more than there is."
)
_SKIP_S = 2.0
_SHARE = 0.6


def run(stage: Stage) -> None:
    with (
        stage.upstream(latency_ms=20.0, pace_ms=10.0, events=100) as upstream,
        part_of_a_core(_SHARE) as quota,
        stage.peers(("sameflight",), upstream) as peers,
    ):
        peer = _ours(peers)
        if not _hold(quota, peer):
            stage.note("the proxy has a whole core, as no control group can be made; the load may be the limit")
        _press(stage, peer, upstream, "streams", Spec("closed", 0, connections=224, stream=True, good_s=2.0), 2000)
    with stage.upstream(latency_ms=20.0) as upstream, stage.peers(("sameflight",), upstream) as peers:
        _press(stage, _ours(peers), upstream, "whole", Spec("closed", 0, connections=64), 1000, heeds=True)


def _hold(quota: Quota | None, peer: Running) -> bool:
    if quota is None or peer.child is None:
        return False
    with suppress(OSError):
        quota.hold(peer.child.pid)
        return True
    return False


def _ours(peers: list[Running]) -> Running:
    return next(peer for peer in peers if peer.name == "sameflight")


def _press(
    stage: Stage, peer: Running, upstream: Upstream, name: str, closed: Spec, callers: int, *, heeds: bool = False
) -> None:
    peak_s, seconds = stage.scale.choose((4.0, 6.0), (15.0, 30.0))
    closed = replace(closed, requests=10 * stage.scale.requests, seconds=peak_s)
    stage.drive(stage.aim(replace(closed, seconds=1.0), peer))
    peak = stage.take(f"{name}, peak", peer, 0, stage.aim(closed, peer), upstream).figures["requests_per_s"]
    pressing = replace(
        closed, mode="pressing", connections=callers, rate=4 * peak, requests=int(4 * peak * (seconds + _SKIP_S)),
        seconds=60.0, skip_s=_SKIP_S, heeds=heeds,
    )  # fmt: skip
    variant = f"{name}, fourfold"
    stage.describe(variant, pressing)
    row = stage.take(variant, peer, 0, stage.aim(pressing, peer), upstream)
    figures, failures = row.figures, row.failures
    # By the time in which they were asked; what comes too late is nobody's good.
    good = figures["in_time"] / seconds
    figures.update(
        offered_per_s=4 * peak,
        goodput_per_s=good,
        goodput_share=good / peak,
        refused=float(failures.get("503", 0)),
        # Let in and not served: late, cut off or never answered.
        in_vain=figures["answered"] - figures["in_time"] + figures["failed"] - failures.get("503", 0),
    )
