"""How a test waits: at gates and for counters, never for time. Every wait here fails loudly after five seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

LIMIT_S = 5.0

T = TypeVar("T")

_SPINS = 50
_PAUSE_S = 0.001


async def within(awaitable: Awaitable[T], what: str, limit_s: float | None = None) -> T:
    """Await, and raise ``AssertionError`` naming ``what`` if it takes longer than the limit."""
    limit = LIMIT_S if limit_s is None else limit_s
    try:
        async with asyncio.timeout(limit) as scope:
            return await awaitable
    except TimeoutError:
        if not scope.expired():
            raise
        raise AssertionError(f"did not happen within {limit:g} s: {what}") from None


async def wait_until(predicate: Callable[[], object], what: str, limit_s: float | None = None) -> None:
    """Let the loop run until ``predicate()`` is true; raise ``AssertionError`` naming ``what`` if it never is."""
    for _ in range(_SPINS):
        if predicate():
            return
        await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    limit = LIMIT_S if limit_s is None else limit_s
    deadline = loop.time() + limit
    while not predicate():
        if loop.time() >= deadline:
            raise AssertionError(f"did not happen within {limit:g} s: {what}")
        # Sockets need the loop to block in its selector now and then; a timer makes it return soon.
        turn = loop.create_future()
        timer = loop.call_later(_PAUSE_S, turn.set_result, None)
        try:
            await turn
        finally:
            timer.cancel()


async def run_ticks(count: int = 10) -> None:
    """Let everything that is ready run ``count`` times."""
    for _ in range(count):
        await asyncio.sleep(0)


class Gate:
    """Closed until somebody opens it; then it stays open unless closed again.

    ``arrivals`` counts who came, so that a test can wait until somebody stands at the gate.
    """

    def __init__(self, name: str = "gate", *, opened: bool = False) -> None:
        self.name = name
        self.arrivals = 0
        self._event = asyncio.Event()
        if opened:
            self._event.set()

    @property
    def is_open(self) -> bool:
        return self._event.is_set()

    def open(self) -> None:
        self._event.set()

    def close(self) -> None:
        self._event.clear()

    async def wait(self) -> None:
        """Pass the gate once it is open."""
        self.arrivals += 1
        await within(self._event.wait(), f"{self.name} was opened")

    async def reached(self, count: int = 1) -> None:
        """Until ``count`` have arrived at the gate."""
        await wait_until(lambda: self.arrivals >= count, f"{count} arrived at {self.name} (now {self.arrivals})")

    def __repr__(self) -> str:
        return f"<Gate {self.name} {'open' if self.is_open else 'closed'}, {self.arrivals} arrived>"
