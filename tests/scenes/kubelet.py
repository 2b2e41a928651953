"""A kubelet for one container: start-up probe, readiness, endpoints, and the way out.

It does to a real process what the real one does: probes the admin port from outside, lets traffic in while the
process is ready, and on deletion sends SIGTERM and, when the grace is over, SIGKILL. Endpoints follow readiness late,
as they do in a cluster: `endpoint` stays true until the probe after the one that failed.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.fakes.client import RawClient
from tests.fakes.gates import wait_until, within
from tests.scenes.test_process import environment


class Probe(NamedTuple):
    """As in a pod's specification."""

    path: str
    period_s: float
    failures: int
    """Failures in a row after which it has failed."""


STARTUP = Probe("/startupz", 0.1, 300)
READINESS = Probe("/readyz", 0.1, 1)
LIVENESS = Probe("/livez", 0.5, 3)
TIMEOUT_S = 1.0


class Kubelet:
    """One pod with one container. Use as an asynchronous context manager."""

    # Mutable state: the process, what the probes found, and what was done about it in `history`; written by the
    # task that probes and by the methods here.
    def __init__(self, directory: Path, admin_port: int, *arguments: str, grace_s: float = 30.0, **env: str) -> None:
        self.directory = directory
        self.grace_s = grace_s
        self.ready = False
        self.endpoint = False
        """Whether new connections are sent here."""
        self.restarts = 0
        """Times that the liveness probe would have had it restarted."""
        self.history: list[tuple[str, float]] = []
        """What happened, with seconds since the container was started."""
        self.killed = False
        self._admin_port = admin_port
        self._arguments = [*arguments, "--admin-port", str(admin_port)]
        self._env = env
        self._process: asyncio.subprocess.Process
        self._probing: asyncio.Task[None] | None = None
        self._began = 0.0

    async def __aenter__(self) -> Self:
        self._began = time.monotonic()
        with (self.directory / "container.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "proxy", "serve", *self._arguments),
                cwd=self.directory,
                env=environment(**self._env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._probing = asyncio.create_task(self._probe())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait((self._probing,))
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    # -- probes -----------------------------------------------------------------------------------------------

    async def _probe(self) -> None:
        await self._start_up()
        failed = late = 0
        while True:
            ready = await self._ask(READINESS.path)
            self.endpoint, self.ready = self.ready or ready, ready
            self._note("ready" if ready else "unready")
            late = late + 1 if late * READINESS.period_s < LIVENESS.period_s else 0
            if not late:
                failed = 0 if await self._ask(LIVENESS.path) else failed + 1
                self.restarts += failed == LIVENESS.failures
            await pause(READINESS.period_s)

    async def _start_up(self) -> None:
        for _ in range(STARTUP.failures):
            if await self._ask(STARTUP.path):
                self._note("started")
                return
            await pause(STARTUP.period_s)
        self._note("start-up failed")
        self._process.kill()

    async def _ask(self, path: str) -> bool:
        try:
            async with asyncio.timeout(TIMEOUT_S), await RawClient.connect(port=self._admin_port) as client:
                return (await client.request("GET", path)).status == 200
        except (OSError, AssertionError, TimeoutError):
            return False

    def _note(self, what: str) -> None:
        if not self.history or self.history[-1][0] != what:
            self.history.append((what, time.monotonic() - self._began))

    # -- life -------------------------------------------------------------------------------------------------

    async def is_ready(self) -> None:
        await wait_until(lambda: self.endpoint, f"the container is ready: {self.log}", 30.0)

    def delete(self) -> None:
        """The pod is deleted: SIGTERM now. Endpoints hear of it later, from the readiness probe."""
        self._note("terminating")
        self._process.send_signal(signal.SIGTERM)

    async def is_removed(self) -> None:
        """Until no new connections are sent here."""
        await wait_until(lambda: not self.endpoint, "the endpoint is removed")

    async def gone(self) -> int:
        """The exit code; SIGKILL if the grace is over first."""
        try:
            await within(self._process.wait(), "the container ended", self.grace_s)
        except AssertionError:
            self.killed = True
            self._process.kill()
        code = await self._process.wait()
        self._note("gone")
        return code

    def since(self, what: str, until: str) -> float:
        """Seconds from one event to another."""
        times = dict(self.history)
        return times[until] - times[what]

    @property
    def log(self) -> str:
        return (self.directory / "container.log").read_text("utf-8")


async def pause(seconds: float) -> None:
    """A period of a probe: time is what a kubelet goes by."""
    loop = asyncio.get_running_loop()
    turn: asyncio.Future[Any] = loop.create_future()
    timer = loop.call_later(seconds, turn.set_result, None)
    try:
        await turn
    finally:
        timer.cancel()
