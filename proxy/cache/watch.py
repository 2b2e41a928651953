"""The watch over a namespace's generation: this process's number is kept equal to the server's."""

from __future__ import annotations

import asyncio
import random as _random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from proxy.cache.generation import Debt, Generation


class Names(NamedTuple):
    """Under which a server holds what belongs to a namespace's generation."""

    generation: str
    cause: str
    channel: str


News = Callable[[float], Awaitable[object]]
"""Waits so many seconds for a message: the generation as text in bytes, or ``None``. Raises when the connection is
lost."""


class Server(Protocol):
    """Where the generation is held. Failures are exceptions of any kind."""

    async def settle(self, names: Names, debt: Debt) -> int:
        """Tell it what it was not told yet; returns the number that everybody agrees on."""

    def listen(self, names: Names, patience_s: float) -> AbstractAsyncContextManager[News]:
        """Hear of changes from now on, after at most ``patience_s``."""


class Watch:
    """Keeps a namespace's generation equal to the server's: listens for changes, and asks every few seconds in case
    a message was lost. It has one connection of its own; another one is asked over, and thereby kept ready."""

    # Mutable: the tasks between start and close; connected says whether the server was told and listened to;
    # counters. Written by the tasks.
    __slots__ = (
        "_every_s",
        "_generation",
        "_listening",
        "_lock",
        "_names",
        "_patience_s",
        "_random",
        "_server",
        "_settling",
        "connected",
        "errors",
        "last_error",
        "settled",
    )

    def __init__(
        self,
        server: Server,
        generation: Generation,
        prefix: str,
        *,
        every_s: float = 5.0,
        patience_s: float = 2.0,
        random: Callable[[], float] = _random.random,
    ) -> None:
        """``prefix`` begins the names of the namespace."""
        self._server = server
        self._generation = generation
        self._names = Names(prefix + "generation", prefix + "cause", prefix + "purges")
        self._every_s = every_s
        self._patience_s = patience_s
        self._random = random
        self._lock = asyncio.Lock()  # or the same purge would be told twice
        self._listening: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None
        self.connected = False
        self.settled = 0
        self.errors = 0
        self.last_error = ""

    @property
    def name(self) -> str:
        """Under which the server holds the generation."""
        return self._names.generation

    def start(self) -> None:
        """Begin to listen. Needs a running loop; may be called again."""
        if self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen(), name="cache-watch")

    def urge(self) -> None:
        """Something is to be told or does not agree: ask the server now. One at a time."""
        if self._settling is None or self._settling.done():
            self._settling = asyncio.get_running_loop().create_task(self._settle_once(), name="cache-settle")

    async def close(self) -> None:
        """Tell the server what it was not told yet, if it listens; end the tasks. Bounded; never raises."""
        if self.connected and self._generation.owes:
            self.urge()
        if self._settling is not None:
            await asyncio.wait((self._settling,), timeout=0.5)
        tasks = [task for task in (self._listening, self._settling) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self.connected = False

    async def _listen(self) -> None:
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 - whatever a server sends, the watch goes on
                self._note(error)
            self.connected = False
            await asyncio.sleep(0.5 + self._random())

    async def _follow(self) -> None:
        """One connection's life. A message is only a hint: what counts is what the server says when asked."""
        async with self._server.listen(self._names, self._patience_s) as wait:
            await self._settle()
            self.connected = True
            while True:
                said = await wait(self._every_s)
                if said is None or not self._generation.agrees(said):
                    await self._settle()

    async def _settle_once(self) -> None:
        try:
            await self._settle()
            while self._generation.owes:
                await self._settle()
        except Exception as error:  # noqa: BLE001 - the listener tries again
            self._note(error)

    async def _settle(self) -> None:
        async with asyncio.timeout(self._patience_s), self._lock:
            debt = self._generation.debt()
            value = await self._server.settle(self._names, debt)
            self.settled += 1
            self._generation.settle(debt, value)

    def _note(self, error: Exception) -> None:
        self.errors += 1
        self.last_error = type(error).__name__
