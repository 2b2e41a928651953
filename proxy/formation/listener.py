"""The one connection over which this process hears what leads elsewhere tell."""

from __future__ import annotations

import asyncio
import random as _random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, Protocol

from proxy.valkey import FAILURES

_CONNECT_S: Final = 2.0


class Hearer(Protocol):
    """Who follows a lead; `wing.Wing` is one."""

    def heard(self, data: object) -> None: ...

    def tuned(self) -> None:
        """From here on everything is heard; what came before has to be looked for."""

    def deaf(self) -> None:
        """Nothing is heard any more, until it is ``tuned`` again."""


class Listener:
    """Listens to the streams of the hearers, by name. Connects between `start` and `close`, again and again."""

    # Mutable: _hearers by the names of their streams, written by follow and leave; _confirmed, the streams that the
    # server knows we listen to; _subscription while connected; the tasks; counters.
    __slots__ = (
        "_base",
        "_client",
        "_confirmed",
        "_hearers",
        "_prepare",
        "_random",
        "_sending",
        "_subscription",
        "_task",
        "connected",
        "errors",
        "last_error",
    )

    def __init__(
        self,
        client: Any,
        base: str,
        prepare: Callable[[], Coroutine[Any, Any, None]],
        random: Callable[[], float] = _random.random,
    ) -> None:
        """``base`` is a name to listen to while there is nobody to hear; ``prepare`` is what else is to be done when
        the server is met, before it is counted on."""
        self._prepare = prepare
        self._client = client
        self._base = base.encode()
        self._random = random
        self._hearers: dict[bytes, dict[Hearer, None]] = {}
        self._confirmed: set[bytes] = set()
        self._subscription: Any = None
        self._sending: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.connected = False
        self.errors = 0
        self.last_error = ""

    def __len__(self) -> int:
        return len(self._hearers)

    def start(self) -> None:
        """Needs a running loop; may be called again."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="shared-flights-listener")

    async def close(self) -> None:
        tasks = [task for task in (self._task, *self._sending) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self._task = None
        self.connected = False

    def follow(self, stream: str, hearer: Hearer) -> None:
        """``tuned`` is called as soon as the server has confirmed it."""
        name = stream.encode()
        hearers = self._hearers.setdefault(name, {})
        hearers[hearer] = None
        if name in self._confirmed:
            hearer.tuned()
        elif len(hearers) == 1 and self.connected:
            self._send(self._subscription.subscribe, name)

    def leave(self, stream: str, hearer: Hearer) -> None:
        name = stream.encode()
        hearers = self._hearers.get(name, {})
        if hearers.pop(hearer, self) is self or hearers:
            return
        del self._hearers[name]
        self._confirmed.discard(name)
        if self.connected:
            self._send(self._subscription.unsubscribe, name)

    def _send(self, command: Callable[[bytes], Any], name: bytes) -> None:
        async def send() -> None:
            with suppress(*FAILURES):  # the reader meets the same
                await command(name)

        task = asyncio.get_running_loop().create_task(send())
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except Exception as error:  # noqa: BLE001 - whatever a server sends, listening goes on
                self.errors += 1
                self.last_error = type(error).__name__
            self._lose()
            await asyncio.sleep(0.1 + 0.2 * self._random())

    async def _listen(self) -> None:
        """One connection's life."""
        subscription = self._subscription = self._client.pubsub()
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._prepare()
                await subscription.subscribe(self._base, *self._hearers)
            self.connected = True
            while True:
                message = await subscription.get_message(timeout=None)
                if message is not None:
                    self._hand_on(message)
        finally:
            with suppress(*FAILURES):
                await subscription.aclose()

    def _hand_on(self, message: dict[str, Any]) -> None:
        name, kind = message.get("channel") or b"", message.get("type")
        hearers = self._hearers.get(name)
        if hearers is None:
            return
        if kind == "message":
            for hearer in tuple(hearers):
                hearer.heard(message.get("data"))
        elif kind == "subscribe":
            self._confirmed.add(name)
            for hearer in tuple(hearers):
                hearer.tuned()

    def _lose(self) -> None:
        self.connected = False
        self._subscription = None
        self._confirmed.clear()
        for hearer in [hearer for hearers in self._hearers.values() for hearer in hearers]:
            hearer.deaf()
