"""Traffic with repeated questions as it might be, against the fewest calls it could have cost."""

from __future__ import annotations

from loadtests import oracle
from loadtests.drive.spec import Spec
from loadtests.stage import Stage

ABOUT = "A Poisson process of JSON requests with Zipf-distributed questions; upstream calls ÷ the oracle's minimum."
_LATENCY_S = 0.25
_RATE = 1000.0
_QUESTIONS = 2000


def run(stage: Stage) -> None:
    requests = stage.scale.choose(3_000, 60_000)
    with (
        stage.upstream(latency_ms=_LATENCY_S * 1000) as upstream,
        stage.peers(("sameflight", "nginx"), upstream) as peers,
    ):
        for exponent in (0.7, 1.1):
            variant = f"exponent {exponent}"
            for number in stage.rounds(1 if stage.scale.quick else None):
                trace = oracle.make_zipf_trace(
                    requests=requests, questions=_QUESTIONS, exponent=exponent, rate=_RATE, seed=number
                )
                fewest = oracle.fewest_calls(trace, _LATENCY_S, 1000)
                shape = oracle.describe(trace, _LATENCY_S, exponent)
                spec = Spec("open", 0, connections=1024, rate=_RATE, requests=requests, arrivals=tuple(trace))
                stage.describe(variant, spec, trace=shape._asdict(), oracle_calls=fewest, answer_s=_LATENCY_S)
                for peer in peers:
                    row = stage.take(variant, peer, number, stage.aim(spec, peer), upstream)
                    row.figures["calls_over_oracle"] = row.figures["upstream_calls"] / fewest
