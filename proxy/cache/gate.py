"""How many may be at something at once, and how many more may wait for it."""

from __future__ import annotations

import asyncio


class Gate:
    """``places`` callers inside, at most ``most_waiting`` before it. Use as an asynchronous context manager, and only
    if it is not ``full``."""

    # Mutable: waiting, the callers before the gate; written by entering.
    __slots__ = ("_most_waiting", "_places", "waiting")

    def __init__(self, places: int, most_waiting: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._most_waiting = most_waiting
        self.waiting = 0

    @property
    def full(self) -> bool:
        return self.waiting >= self._most_waiting and self._places.locked()

    async def __aenter__(self) -> None:
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._places.release()
