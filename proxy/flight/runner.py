"""The asyncio shell around the flight: an errand or one task each, owned here and by nobody's request.

A task starts in an empty context, so that nothing of the request that happened to come first (a tenant, a trace)
can leak into an answer that others share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Protocol

from proxy.errors import Kind, ProxyError
from proxy.flight.flight import Ending, Flight, Phase

Produce = Callable[[Flight], Coroutine[None, None, None]]


class Errand(Protocol):
    """A flight that is being filled without a task."""

    def cancel(self) -> None:
        """Stop filling and close the upstream now; `TaskRunner.finished` is called on a later turn of the loop."""


class TaskRunner:
    """Runs ``produce(flight)`` as a task for each flight that ``launch`` could not begin without one; both are set
    once, by the app."""

    # Mutable state: _tasks and _errands are the strong references invariant 3 asks for; a task takes itself out when
    # it is done, an errand when `finished` is called. _idle is resolved when both are empty.
    __slots__ = ("_errands", "_idle", "_loop", "_tasks", "bugs", "launch", "produce")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: dict[asyncio.Task[None], Flight] = {}
        self._errands: dict[Flight, Errand] = {}
        self._idle: asyncio.Future[None] | None = None
        self.produce: Produce | None = None
        self.launch: Callable[[Flight], Errand | None] | None = None
        self.bugs = 0

    def start(self, flight: Flight) -> None:
        if self.launch is not None:
            errand = self.launch(flight)
            if errand is not None:
                flight.task = self._errands[flight] = errand
                return
        assert self.produce is not None
        context = Context()
        task = self._loop.create_task(self.produce(flight), context=context)
        self._tasks[task] = flight
        flight.task = task
        task.add_done_callback(self._done, context=context)

    def stop(self, flight: Flight) -> None:
        if flight.task is not None:
            flight.task.cancel()  # nothing, if it is done

    def defer(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon(callback)

    def finished(self, flight: Flight) -> None:
        """The errand of this flight is over."""
        del self._errands[flight]
        flight.task = None
        if flight.phase is not Phase.ENDED:
            self._end_anyhow(flight, "ended without a seal")
        self._rest()

    def _done(self, task: asyncio.Task[None]) -> None:
        flight = self._tasks.pop(task)
        flight.task = None
        failure = None if task.cancelled() else task.exception()
        if flight.phase is not Phase.ENDED or failure is not None:
            self._end_anyhow(flight, repr(failure) if failure is not None else "ended without a seal")
        self._rest()

    def _end_anyhow(self, flight: Flight, detail: str) -> None:
        """Production seals every flight it is given and raises nothing; coming here is a bug, and still nobody may
        hang on it."""
        self.bugs += 1
        if flight.phase is Phase.FILLING:
            flight.filled()
        flight.last_words = None  # nor is it asked for anything more
        flight.seal(Ending.BUG, ProxyError(Kind.BUG, "Internal error.", detail=detail))
        flight.flush()

    def _rest(self) -> None:
        if self._idle is not None and not len(self) and not self._idle.done():
            self._idle.set_result(None)

    def __len__(self) -> int:
        return len(self._tasks) + len(self._errands)

    async def wait(self) -> None:
        """Wait until every flight has ended; the caller bounds it."""
        while len(self):
            self._idle = self._loop.create_future()
            await self._idle
