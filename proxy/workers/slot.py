"""One worker's place: its socket, the process that serves it now, and those of former generations that still drain.

A process that ends unasked is started again, after a pause that doubles with each failure from 0.1 s to 30 s and
begins anew after a minute of health. Its callers wait in the queue of its socket meanwhile; if it is not back in a
few seconds the queue is dropped and callers are refused, so that a balancer goes to the next worker.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from proxy.workers.child import Child
from proxy.workers.listening import Listening

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 30.0
HEALTHY_S: Final = 60.0
START_S: Final = 60.0
"""A worker that is not ready within this time is ended."""
QUEUE_S: Final = 5.0
"""How long callers wait in the queue of a worker that has died."""
STUCK_TICKS: Final = 30
"""Ticks of a parent, one a second, without a word of a worker whose loop turns."""


class Office(Protocol):
    """What a slot needs of the parent."""

    log: Any
    starts: Counter[str]
    """Processes that were started, by reason."""

    def orders_for(self, index: int) -> Mapping[str, str]:
        """A worker's settings, by name. Raises ``SettingsError``."""

    def admin_path(self, index: int, generation: int) -> Path: ...

    def ended(self, child: Child) -> None:
        """A process is gone; told once."""


class Slot:
    """One worker through all its generations."""

    # Mutable state: `current` (who serves, if anybody), `starting` and `parting`, all processes alive; `generation`,
    # the last one made; `failures` in a row and `_down_since`; `_closing`. Written by the methods here.
    def __init__(
        self, index: int, parts: int, listening: Listening, office: Office, *, start_s: float = START_S
    ) -> None:
        self.index = index
        self.listening = listening
        self.current: Child | None = None
        self.starting: Child | None = None
        self.parting: list[Child] = []
        self.generation = 0
        self.failures = 0
        self._parts = parts
        self._office = office
        self._start_s = start_s
        self.tried = asyncio.Event()
        """The first attempt to start a process was made, well or not."""
        self._turn = asyncio.Lock()
        self._closing = False
        self._down_since = 0.0
        self._keeping: asyncio.Task[None] | None = None

    # -- starting ---------------------------------------------------------------------------------------------

    async def start(self, reason: str) -> tuple[Child | None, str]:
        """A new generation on the socket: the process once it is ready, or ``None`` and why not."""
        self.generation += 1
        child = Child(self.index, self.generation, self._office.admin_path(self.index, self.generation))
        self._office.starts[reason] += 1
        try:
            flags = self._office.orders_for(self.index)
            await child.start(self.listening.socket, self._parts, flags, self._ended)
        except Exception as error:  # noqa: BLE001 - whatever keeps a process from being made is told and tried again
            return None, str(error)
        self.starting = child
        if self._closing:
            child.kill()
        try:
            async with asyncio.timeout(self._start_s):
                ready = await asyncio.shield(child.settled)
        except TimeoutError:
            child.kill()
            await child.ended
            return None, f"not ready within {self._start_s:g} s"
        finally:
            self.starting = None
        if not ready:
            return None, child.why or f"exit code {child.code}"
        return child, ""

    def _ended(self, child: Child) -> None:
        if child in self.parting:
            self.parting.remove(child)
        self._office.ended(child)

    # -- keeping ----------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """From now on there is a worker here, whatever happens to it."""
        self._down_since = asyncio.get_running_loop().time()
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        while not self._closing:
            child = self.current
            if child is None:
                await self._start_again()
                continue
            await asyncio.wait((child.ended,))
            if child is self.current and not self._closing:
                self._crashed(child)

    def _crashed(self, child: Child) -> None:
        now = asyncio.get_running_loop().time()
        self.current, self._down_since = None, now
        self.failures = 1 if now - child.ready_at >= HEALTHY_S else self.failures + 1
        self._office.log.error(
            "worker_ended", worker=self.index, generation=child.generation, pid=child.pid, code=child.code
        )

    async def _start_again(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.pause_s())
        async with self._turn:
            if self.current is not None or self._closing:
                return
            if self.failures and loop.time() - self._down_since > QUEUE_S:
                self._drop_queue()
            child, why = await self.start("crash" if self.failures else "start")
            if child is None:
                self.failures += 1
                self._office.log.error("worker_failed", worker=self.index, why=why, failures=self.failures)
            else:
                self.current = child
            self.tried.set()

    def pause_s(self) -> float:
        """Until the next attempt."""
        if not self.failures:
            return 0.0
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self.failures - 1, 16))

    def _drop_queue(self) -> None:
        try:
            self.listening.refuse()
        except OSError as error:
            self._office.log.warning("worker_socket_lost", worker=self.index, why=str(error))

    # -- replacing --------------------------------------------------------------------------------------------

    async def replace(self, grace_s: float) -> tuple[Child | None, str]:
        """A new generation, and once it is ready a drain of the old one; the old process, or why there is no new one,
        in which case the old one stays."""
        async with self._turn:
            if self._closing:
                return None, "stopping"
            child, why = await self.start("roll")
            if child is None:
                return None, why
            old, self.current, self.failures = self.current, child, 0
            if old is not None and old.state != "ended":
                self.parting.append(old)
                old.drain(0.0, grace_s)
            return old, ""

    # -- watching ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Once a second: a worker that says nothing any more is ended, and so becomes one that has died."""
        child = self.current
        if child is None:
            return
        child.silent_ticks += 1
        if child.silent_ticks > STUCK_TICKS:
            self._office.log.error("worker_stuck", worker=self.index, pid=child.pid)
            child.kill()

    @property
    def processes(self) -> list[Child]:
        """All that are alive."""
        found = [self.current, self.starting, *self.parting]
        return [child for child in found if child is not None and child.state != "ended"]

    # -- the end ----------------------------------------------------------------------------------------------

    async def drain(self, delay_s: float, grace_s: float) -> None:
        """Until no process is left. Nothing is started any more."""
        self._closing = True
        if self.starting is not None:
            self.starting.kill()
        for child in self.processes:
            child.drain(delay_s if child is self.current else 0.0, grace_s)
        ends = [child.ended for child in self.processes]
        if ends:
            await asyncio.wait(ends)
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait((self._keeping,))

    def hurry(self) -> None:
        for child in self.processes:
            child.hurry()

    def describe(self) -> dict[str, Any]:
        current = self.current or self.starting
        return {
            "address": str(self.listening.address),
            **(current.describe() if current is not None else {"state": "waiting", "ready": False}),
            "failures": self.failures,
            "draining": [child.describe() for child in self.parting],
        }
