"""The asyncio shell around the flight: one task each, owned here and by nobody's request.

The task starts in an empty context, so that nothing of the request that happened to come first (a tenant, a trace)
can leak into an answer that others share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context

from proxy.errors import Kind, ProxyError
from proxy.flight.flight import Ending, Flight, Phase

Produce = Callable[[Flight], Coroutine[None, None, None]]


class TaskRunner:
    """Runs ``produce(flight)`` as a task for each flight; ``produce`` is set once, by the app."""

    # Mutable state: _tasks is the strong reference invariant 3 asks for; a task takes itself out when it is done.
    __slots__ = ("_loop", "_tasks", "bugs", "produce")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: dict[asyncio.Task[None], Flight] = {}
        self.produce: Produce | None = None
        self.bugs = 0

    def start(self, flight: Flight) -> None:
        assert self.produce is not None
        context = Context()
        task = self._loop.create_task(self.produce(flight), context=context)
        self._tasks[task] = flight
        flight.task = task
        task.add_done_callback(self._done, context=context)

    def stop(self, flight: Flight) -> None:
        task = flight.task
        if task is not None and not task.done():
            task.cancel()

    def defer(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon(callback)

    def _done(self, task: asyncio.Task[None]) -> None:
        flight = self._tasks.pop(task)
        flight.task = None
        failure = None if task.cancelled() else task.exception()
        if flight.phase is Phase.ENDED and failure is None:
            return
        # Production seals every flight it is given and raises nothing; reaching this line is a bug, and still nobody
        # may hang on it.
        self.bugs += 1
        if flight.phase is Phase.FILLING:
            flight.filled()
        flight.last_words = None  # nor is it asked for anything more
        detail = repr(failure) if failure is not None else "ended without a seal"
        flight.seal(Ending.BUG, ProxyError(Kind.BUG, "Internal error.", detail=detail))
        flight.flush()

    def __len__(self) -> int:
        return len(self._tasks)

    async def wait(self) -> None:
        """Wait until every task has ended; the caller bounds it."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))
