"""One worker process as its parent sees it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import sysconfig
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import proxy
from proxy.workers.channel import Channel, Orders, pack
from proxy.workers.listening import bind_path

_OVER_S: Final = 15.0
"""What a drain may take beyond its delay and its grace before the process is killed."""
_MAX_PATH_BYTES: Final = 100
"""Longest path of a Unix socket that every system takes."""


class Child:
    """A process from its birth to its end."""

    # Mutable state, written by what is heard from it and by the methods here: `state`, `ready_now`, `facts`,
    # `silent_ticks` (a parent's ticks since it said anything), `why`, `final`, the process and the channel.
    def __init__(self, index: int, generation: int, admin_path: Path) -> None:
        self.index = index
        self.generation = generation
        self.admin_path = admin_path
        self.state = "starting"
        """``starting``, ``ready``, ``draining``, ``ended``."""
        self.ready_now = False
        """What it last said about its readiness."""
        self.facts: dict[str, Any] = {}
        self.silent_ticks = 0
        self.why = ""
        """Why it could not start, in its own words."""
        self.final = ""
        """Its last metrics."""
        self.requests = ""
        """What its request ids begin with."""
        self.ready_at = 0.0
        self.code: int | None = None
        loop = asyncio.get_running_loop()
        self.settled: asyncio.Future[bool] = loop.create_future()
        """Whether it became ready; resolved as well when it ends before."""
        self.ended: asyncio.Future[int] = loop.create_future()
        """Its exit code; negative for a signal."""
        self._process: Process | None = None
        self._channel: Channel | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._kill_timer: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        return f"{self.index}.{self.generation}"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def start(
        self, data: socket.socket, parts: int, flags: Mapping[str, str], on_end: Callable[[Child], None]
    ) -> None:
        """Start the process and tell it its orders. Raises ``OSError``."""
        self.admin_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        admin = bind_path(str(self.admin_path), "600")
        ours, theirs = socket.socketpair()
        try:
            fds = (theirs.fileno(), data.fileno(), admin.fileno())
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "proxy.workers.worker", str(theirs.fileno())),
                pass_fds=fds,
                stdin=asyncio.subprocess.DEVNULL,
                env=environment(),
            )
            orders = Orders(
                index=self.index, generation=self.generation, parts=parts, flags=dict(flags),
                data_fd=data.fileno(), admin_fd=admin.fileno(),
            )  # fmt: skip
            ours.setblocking(True)
            ours.sendall(pack(orders))
            self._channel = await Channel.over(ours)
        except BaseException:
            ours.close()
            if self._process is not None:
                self.kill()
            self.admin_path.unlink(missing_ok=True)
            raise
        finally:
            theirs.close()
            admin.close()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._watch(on_end))]

    async def _watch(self, on_end: Callable[[Child], None]) -> None:
        assert self._channel is not None
        assert self._process is not None
        while (message := await self._channel.hear()) is not None:
            self._heed(message)
        self.code = await self._process.wait()
        await self._channel.close()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self.state, self.ready_now = "ended", False
        self.admin_path.unlink(missing_ok=True)
        if not self.settled.done():
            self.settled.set_result(False)
        self.ended.set_result(self.code)
        on_end(self)

    def _heed(self, message: dict[str, Any]) -> None:
        self.silent_ticks = 0
        if "ready" in message and "alive" not in message:
            self.requests = str(message.get("requests", ""))
            if self.state == "starting":
                self.state, self.ready_now = "ready", True
                self.ready_at = asyncio.get_running_loop().time()
                if not self.settled.done():
                    self.settled.set_result(True)
        elif "alive" in message:
            self.facts = message.get("facts") or {}
            self.ready_now = bool(message.get("ready")) and self.state == "ready"
        elif "failed" in message:
            self.why = str(message["failed"])
        elif "final" in message:
            self.final = str(message["final"])

    # -- orders -----------------------------------------------------------------------------------------------

    def drain(self, delay_s: float, grace_s: float) -> None:
        """Let it end by itself, and kill it if it does not."""
        if self.state == "ended":
            return
        self.state, self.ready_now = "draining", False
        self._say({"do": "drain", "delay_s": delay_s, "grace_s": grace_s})
        self._kill_after(delay_s + grace_s + _OVER_S)

    def hurry(self) -> None:
        """End what runs, now."""
        if self.state != "ended":
            self.state, self.ready_now = "draining", False
            self._say({"do": "hurry"})
            self._kill_after(_OVER_S)

    def _kill_after(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        timer = self._kill_timer
        if timer is None or loop.time() + delay_s < timer.when():
            if timer is not None:
                timer.cancel()
            self._kill_timer = loop.call_later(delay_s, self.kill)

    def reload(self) -> None:
        self._say({"do": "reload"})

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            if self._process is not None:
                self._process.kill()

    def _say(self, message: dict[str, Any]) -> None:
        if self._channel is not None:
            self._channel.say(message)

    def describe(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "ready": self.ready_now,
            "pid": self.pid,
            "generation": self.generation,
            "requests": self.requests,
            **({"silent_s": self.silent_ticks} if self.silent_ticks > 3 else {}),
        }


def environment() -> dict[str, str]:
    """Ours, and where the package is if it is not installed. A worker takes nothing from the directory that it
    happens to be started in (``-P``), because a parent that was started as an installed command does not either."""
    home = str(Path(proxy.__file__).parents[1])
    if home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(os.environ)
    paths = [home, *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != home)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def fits(path: Path) -> bool:
    """Whether a Unix socket can have this path."""
    return len(os.fsencode(path)) <= _MAX_PATH_BYTES
