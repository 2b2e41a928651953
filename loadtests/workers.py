"""``python -m loadtests.workers``: what a second worker brings, where the cores for it are free.

A machine with two cores has none to spare: load and upstream need one. So each worker gets the same part of a core,
by a CPU quota of its control group, small enough that all the rest has room, and the question is what two such parts
do against one. Needs Linux with control groups that may be written (root, outside most containers) and wrk.

    python -m loadtests.workers --share 0.3 --seconds 8 --rounds 3
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final

from loadtests.drive import wrk
from loadtests.drive.spec import Spec
from loadtests.process import REPO, clean_environment, free_port
from loadtests.quota import Quota

_START_S: Final = 60.0
WANTED: Final = 1.7


@contextmanager
def serving(workers: int, upstream: int, share: float) -> Iterator[int]:
    """A proxy of so many workers, each with its share of a core; gives the first one's port; the others'
    follow."""
    port = _free_ports(workers)
    with tempfile.TemporaryDirectory(prefix="loadtests-workers-") as folder:
        env = clean_environment({
            "SAMEFLIGHT_PORT": str(port),
            "SAMEFLIGHT_ADMIN_PORT": str(free_port()),
            "SAMEFLIGHT_STATE_DIR": folder,
            "SAMEFLIGHT_SUPERVISED": "true",
            "SAMEFLIGHT_OPENAI_UPSTREAM": f"http://127.0.0.1:{upstream}",
            # A worker that waits for its next part of a core would tell callers to wait as well.
            "SAMEFLIGHT_SHED_AFTER_MS": "60000",
        })
        command = [sys.executable, "-m", "proxy", "serve", "--workers", str(workers)]
        with (Path(folder) / "log").open("wb") as log:
            parent = subprocess.Popen(command, cwd=REPO, env=env, stdout=log, stderr=log)
        quotas = [Quota(f"sameflight-{parent.pid}-{number}", share) for number in range(workers)]
        try:
            for quota, pid in zip(quotas, _wait_for_workers(parent.pid, port, workers), strict=True):
                quota.__enter__()
                quota.hold(pid)
            yield port
        finally:
            parent.terminate()
            parent.wait(60)
            for quota in quotas:
                quota.__exit__()


def _wait_for_workers(parent: int, port: int, count: int) -> list[int]:
    """Their process ids, once they serve."""
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        listed = [path.read_text("ascii").split() for path in Path(f"/proc/{parent}/task").glob("*/children")]
        pids = [int(pid) for line in listed for pid in line]
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            if len(pids) == count:
                time.sleep(1.0)  # the last of them is ready a moment after the first
                return pids
        time.sleep(0.1)
    raise TimeoutError("the workers did not start")


def measure(workers: int, upstream: int, share: float, seconds: float) -> float:
    """Requests a second of closed loops, one for each worker, as nginx would spread them."""
    with serving(workers, upstream, share) as port, tempfile.TemporaryDirectory() as folder:

        def drive(number: int) -> float:
            script = Path(folder) / f"{number}.lua"
            spec = Spec("closed", port + number, connections=16, requests=1, first_number=number * 10**8)
            wrk.run(spec, 1.0, script)
            found = wrk.run(replace(spec, first_number=spec.first_number + 10**7), seconds, script)
            if found.failures:
                print(f"failures: {found.failures}", file=sys.stderr)
            return found.figures["requests_per_s"]

        with ThreadPoolExecutor(workers) as pool:
            return sum(pool.map(drive, range(workers)))


def _free_ports(count: int) -> int:
    """The first of so many ports in a row."""
    while True:
        first = free_port()
        with ExitStack() as stack, suppress(OSError, OverflowError):
            for number in range(count):
                stack.enter_context(socket.create_server(("127.0.0.1", first + number)))
            return first


def main(arguments: Sequence[str]) -> int:
    """0 if two workers did at least 1.7 times what one did, by the median of the rounds."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.workers", description=__doc__)
    parser.add_argument("--share", type=float, default=0.3, help="of a core, for each worker")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(arguments)
    port = free_port()
    command = [sys.executable, "-m", "loadtests.upstream", "--port", str(port)]
    upstream = subprocess.Popen(command, cwd=REPO, env=clean_environment(), stdout=subprocess.DEVNULL)
    ratios = []
    try:
        for _ in range(args.rounds):
            one, two = (measure(count, port, args.share, args.seconds) for count in (1, 2))
            ratios.append(two / one)
            print(f"one worker {one:.0f}/s, two workers {two:.0f}/s: {ratios[-1]:.2f}")
    finally:
        upstream.terminate()
        upstream.wait(10)
    print(f"two workers ÷ one: {median(ratios):.2f} (wanted {WANTED}); {os.cpu_count()} cores, {args.share} each")
    return 0 if median(ratios) >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
