"""``python -m loadtests.drive SPEC``: run one load (JSON, or ``@file``) and print what it found."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from loadtests.drive import wrk
from loadtests.drive.followers import run_followers
from loadtests.drive.marked import run_marked
from loadtests.drive.pressing import run_pressing
from loadtests.drive.spec import Result, Spec, load_spec, make_renderer, make_source, summarize
from loadtests.drive.stalled import run_stalled
from proxy.cli.bench.load import Load, Target
from proxy.cli.loop import new_event_loop


async def run(spec: Spec) -> Result:
    if spec.mode == "stalled":
        return await run_stalled(spec)
    if spec.mode == "followers":
        return await run_followers(spec)
    if spec.mode == "pressing":
        return await run_pressing(spec)
    if spec.mode == "marked":
        return await run_marked(spec)
    load = Load(Target("127.0.0.1", spec.port), spec.connections)
    await load.open()
    try:
        if spec.mode == "closed":
            return summarize(await load.closed(make_source(spec), spec.requests, spec.seconds))
        render = make_renderer(spec)
        arrivals = spec.arrivals or _evenly(spec)
        return summarize(await load.opened([(at, render(number)) for at, number in arrivals]))
    finally:
        await load.close()


def _evenly(spec: Spec) -> tuple[tuple[float, int], ...]:
    numbers = spec.distinct or spec.requests
    return tuple((each / spec.rate, spec.first_number + each % numbers) for each in range(spec.requests))


def main(arguments: list[str]) -> None:
    text, before_s = arguments[0], sum(os.times()[:4])
    spec = load_spec(Path(text[1:]).read_text("utf-8") if text.startswith("@") else text)
    if text.startswith("@") and wrk.is_usable(spec):
        # wrk counts time and not requests; half a minute of any peer is far more than 20,000 of them.
        result = wrk.run(spec, min(spec.seconds, 30.0), Path(text[1:]).with_name("load.lua"))
    else:
        gc.disable()  # a load lives for seconds, makes few cycles, and must not pause
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            result = runner.run(run(spec))
    result.figures["load_cpu_s"] = sum(os.times()[:4]) - before_s  # with wrk, a child
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main(sys.argv[1:])
