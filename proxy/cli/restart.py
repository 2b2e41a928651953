"""``restart``: replace all workers of a running ``serve``, one after the other, and refuse nobody.

The parent is found by its file in the state directory and asked by SIGUSR2. Exit codes: 0 all workers were replaced,
1 there is no such parent, or the old workers go on because a new one could not start, 2 wrong settings.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TextIO

from proxy.config.flags import add_setting_flags, flags_of
from proxy.config.settings import SettingsError, load_settings
from proxy.workers.status import read_status

LOOK_EVERY_S: Final = 0.1


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``restart`` to ``subparsers``."""
    parser = subparsers.add_parser(
        "restart",
        help="replace the workers of a running proxy, one after the other",
        description="Asks the parent of `sameflight serve --workers N` with the same state directory for a rolling "
        "restart: each worker is replaced by a fresh process, which is ready before the old one stops. New secrets "
        "and an upgraded package take effect; flags, listening addresses and the number of workers stay.",
    )
    parser.add_argument("--no-wait", action="store_true", help="ask, and do not wait until it is over")
    parser.add_argument(
        "--timeout-s", type=float, default=600.0, metavar="FLOAT", help="longest wait, in seconds, default 600"
    )
    add_setting_flags(parser, only=("state_dir",))
    parser.set_defaults(run=run)


def run(
    args: argparse.Namespace,
    out: TextIO | None = None,
    err: TextIO | None = None,
    env: Mapping[str, str] | None = None,
    *,
    send: Callable[[int, int], None] = os.kill,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Ask, and wait until all workers were replaced or the parent gave up."""
    try:
        state_dir = load_settings(env, flags_of(args)).settings.state_dir
    except SettingsError as error:
        print(error, file=err or sys.stderr)
        return 2
    why, said = _restart(Waiter(state_dir, time.monotonic() + args.timeout_s, sleep), send, not args.no_wait)
    print(why or said, file=(err or sys.stderr) if why else (out or sys.stdout))
    return 1 if why else 0


class Waiter(NamedTuple):
    """Reads what a parent says about itself."""

    state_dir: str
    until: float
    sleep: Callable[[float], None]

    def read(self) -> dict[str, Any] | None:
        """Once it says something; ``None`` if there is no parent."""
        while (status := read_status(self.state_dir)) == {} and time.monotonic() < self.until:
            self.sleep(0.01)
        return status or None


def _restart(waiter: Waiter, send: Callable[[int, int], None], wait: bool) -> tuple[str, str]:
    """Why it did not go well, and what to say if it did."""
    before = waiter.read()
    if before is None:
        return f"no parent of workers runs with the state directory {waiter.state_dir}", ""
    try:
        send(before["pid"], signal.SIGUSR2)
    except OSError as error:
        return f"process {before['pid']} cannot be asked: {error.strerror}", ""
    if not wait:
        return "", "asked"
    while (now := waiter.read()) is not None and now["pid"] == before["pid"]:
        if now["done"] > before["wanted"]:
            stopped = f"stopped, the old workers go on: {now['why']}" if now["why"] else ""
            return stopped, f"{now['workers']} workers were replaced"
        if time.monotonic() > waiter.until:
            return "it is not over yet, and goes on", ""
        waiter.sleep(LOOK_EVERY_S)
    return "the parent has ended meanwhile", ""
