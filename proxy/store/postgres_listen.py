"""News of changed records over LISTEN, on a connection of its own that is asked every few seconds whether it hears.

A connection can be open and deaf: cut off in between, or behind a pooler that drops notifications. So the listener
calls out to itself by another one and believes in its own only while it hears the echo.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from proxy.store.postgres_errors import Fate
from proxy.store.postgres_pool import Pool

CHANNEL: Final = "sameflight_changes"
BEAT_EVERY_S: Final = 5.0
ECHO_WITHIN_S: Final = 2.0
_CONNECT_S: Final = 2.0
_PAUSE_LEAST_S: Final = 0.1
_PAUSE_MOST_S: Final = 5.0
# One that was never heard is behind a pooler, which no number of attempts will change.
_DEAF_PAUSE_S: Final = 60.0


class Listener:
    """A ``base.Watch``; its task connects, listens, and connects again until it is closed."""

    # Mutable state: `alive` and the counters are written by the task; `_newest` and `_echoes` by the callbacks of the
    # connection, on the same loop.
    def __init__(
        self,
        pool: Pool,
        read_version: Callable[[], Awaitable[int]],
        on_change: Callable[[int], None],
        forget: Callable[[Listener], None],
        *,
        beat_every_s: float = BEAT_EVERY_S,
        echo_within_s: float = ECHO_WITHIN_S,
    ) -> None:
        self._pool = pool
        self._read_version = read_version
        self._on_change = on_change
        self._forget = forget
        self._beat_every_s = beat_every_s
        self._echo_within_s = echo_within_s
        self._own_channel = f"sameflight_beat_{os.urandom(8).hex()}"
        self._heard = asyncio.Event()
        self._newest = -1
        self.alive = False
        self.losses = 0
        """Times that a connection was given up that had been heard."""
        self.deaf = 0
        """Connections that were never heard."""
        self.beats = 0
        """Times that it heard itself."""
        self.last_error = ""
        self._task = asyncio.get_running_loop().create_task(self._listen_on(), name="store-listen")

    async def close(self) -> None:
        self._forget(self)
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _listen_on(self) -> None:
        pause_s = _PAUSE_LEAST_S
        while True:
            beats = self.beats
            try:
                await self._listen_once()
            except Exception as error:  # noqa: BLE001 - whatever it was, the next connection may hear
                self.last_error = f"{type(error).__name__}: {error}"
            finally:
                was_alive, self.alive = self.alive, False
            self.losses += was_alive
            if self.beats > beats:
                pause_s = _PAUSE_LEAST_S
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
            pause_s = min(pause_s * 2, _PAUSE_MOST_S)

    async def _listen_once(self) -> None:
        """Until the connection is lost or no longer heard."""
        connection = await self._pool.connect(_CONNECT_S)
        ended = asyncio.get_running_loop().create_future()
        try:
            connection.add_termination_listener(lambda _: None if ended.done() else ended.set_result(None))
            async with asyncio.timeout(self._echo_within_s):
                await connection.add_listener(CHANNEL, self._tell)
                await connection.add_listener(self._own_channel, self._echo)
            if not await self._hears():
                self.deaf += 1
                await asyncio.wait((ended,), timeout=_DEAF_PAUSE_S if self.losses == 0 else _PAUSE_LEAST_S)
                return
            self.alive = True
            # What happened while nobody listened.
            self._newest = -1
            self._tell(connection, 0, CHANNEL, str(await self._read_version()))
            while not ended.done():
                await asyncio.wait((ended,), timeout=self._beat_every_s)
                if ended.done() or not await self._hears():
                    return
        finally:
            connection.terminate()

    async def _hears(self) -> bool:
        """Call out on a channel of our own and wait for it.

        From another connection: a pooler passes on what a connection says to itself, and nothing else.
        """
        self._heard.clear()
        try:
            async with asyncio.timeout(self._echo_within_s):
                await self._call_out()
                await self._heard.wait()
        except TimeoutError:
            return False
        self.beats += 1
        return True

    async def _call_out(self) -> None:
        connection = await self._pool.acquire(asyncio.get_running_loop().time() + self._echo_within_s)
        fate = Fate.DROP
        try:
            # A standby cannot notify: after a failover this fails, and the next connection looks for the primary.
            await connection.execute(f"NOTIFY {self._own_channel}")
            fate = Fate.KEEP
        finally:
            self._pool.release(connection, fate)

    def _echo(self, _connection: Any, _pid: int, _channel: str, _payload: str) -> None:
        self._heard.set()

    def _tell(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        version = int(payload) if payload.isascii() and payload.isdigit() else 0
        if version != self._newest:
            self._newest = version
            self._on_change(version)
