"""From the start of the process to its first answer, and what it holds before anybody asks."""

from __future__ import annotations

import compileall
import time
from pathlib import Path

import proxy
from loadtests.peers.base import UnavailableError
from loadtests.stage import Stage

ABOUT = "Time from process start until the port accepts, and resident memory a second later."


def run(stage: Stage) -> None:
    compileall.compile_dir(Path(proxy.__file__).parent, quiet=2)  # as an installer does
    with stage.upstream() as upstream:
        for number in range(stage.scale.choose(2, 10)):
            for name in ("sameflight", "nginx", "envoy", "naive"):
                started_at = time.perf_counter()
                try:
                    peer = stage.start(name, upstream)
                except UnavailableError as error:
                    stage.note(f"{name} is left out: {error}")
                    continue
                try:
                    ready_s = time.perf_counter() - started_at
                    assert peer.child is not None
                    time.sleep(1.0)
                    idle = {"idle_rss_mb": peer.child.rss_bytes() / 1e6, "cpu_s": peer.child.cpu_s()}
                    stage.record("start", name, number, {"ready_s": ready_s, **idle})
                finally:
                    peer.stop()
