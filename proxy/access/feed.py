"""Keeps the ring current: hears of changes, asks what changed, and asks anyway every few seconds.

One question, "what changed behind version n", serves for everything: the first load, a notification, the poll that
stands in for notifications that never come, and the check after a suspension. An answer that nothing (else) changed
vouches for every key in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from proxy.access.keyring import Keyring
from proxy.clock import Clock
from proxy.config.keys import Allowance, KeyRecord
from proxy.errors import StoreError

PAGE: Final = 1000


class Changes(Protocol):
    """`store.base.Changes`."""

    @property
    def keys(self) -> Sequence[KeyRecord]: ...

    @property
    def allowances(self) -> Sequence[Allowance]: ...

    @property
    def version(self) -> int: ...


class Watch(Protocol):
    """`store.base.Watch`."""

    @property
    def alive(self) -> bool: ...

    async def close(self) -> None: ...


class ChangeSource(Protocol):
    """The database, as far as it is asked for changes. Raises ``StoreError``."""

    async def changes_since(self, version: int, limit: int = 1000) -> Changes: ...

    async def watch(self, on_change: Callable[[int], None]) -> Watch: ...


class Log(Protocol):
    """What the feed needs of a logger."""

    def warning(self, event: str, /, **fields: Any) -> object: ...

    def info(self, event: str, /, **fields: Any) -> object: ...


class KeyFeed:
    """Drives one ring. `tick` is a duty of the janitor, every half second."""

    # Mutable state: _task is the run in the air, _again whether it has to ask once more, _next_poll_at, _watch once
    # the database took the subscription, _started and _closed. Written by start, wake, tick, close and the run.
    def __init__(
        self,
        ring: Keyring,
        source: ChangeSource,
        clock: Clock,
        log: Log,
        *,
        poll_s: float = 5.0,
        answer_s: float = 5.0,
        on_allowance: Callable[[Allowance], None] | None = None,
    ) -> None:
        self._ring = ring
        self._source = source
        self._clock = clock
        self._log = log
        self._poll_s = poll_s
        self._answer_s = answer_s
        """Longest wait for one answer of the database."""
        self._on_allowance = on_allowance
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._next_poll_at = 0.0
        self._watch: Watch | None = None
        self._closed = False
        self._told_down = False
        self.polls = 0
        """Questions asked."""
        self.changes = 0
        """Records that came with the answers."""
        self.failures = 0
        """Questions without an answer."""
        self.resets = 0
        """Times the database turned out to be an older copy of itself."""
        self.on_news: Callable[[], None] | None = None
        """Hears with the feed that something changed, or may have, whatever it was."""
        ring.confirm = self.confirm

    @property
    def alive(self) -> bool:
        """Whether changes are told; if not, they are found by asking."""
        return self._watch is not None and self._watch.alive

    def start(self) -> None:
        """Begin to listen and to load. Needs a running loop."""
        self._ring.tick()
        self.wake()

    def tick(self) -> None:
        """Ask if it is time to. On the loop, short."""
        slept = self._ring.tick()
        if slept or self._clock.now() >= self._next_poll_at:
            self.wake()

    def wake(self) -> None:
        """Ask now, or once more when the question in the air has been answered."""
        self._again = True
        if not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run())

    def heard(self, version: int) -> None:
        """The database's news: there is something newer."""
        self._ring.newest_version = max(self._ring.newest_version, version)
        self.wake()
        self._pass_on()

    async def confirm(self) -> None:
        """Until a question that was asked after this call has been answered, or failed."""
        self.wake()
        while self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))

    async def close(self) -> None:
        """Stop listening and asking."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._watch is not None:
            await self._watch.close()
            self._watch = None

    # -- the run ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while self._again and not self._closed:
            self._again = False
            self._next_poll_at = self._clock.now() + self._poll_s
            try:
                await self._catch_up()
                await self._listen()
            except Exception as error:  # noqa: BLE001 - the next poll tries again; who waits finds keys unconfirmed
                self._fail(error)
                return
            if self._told_down:
                self._told_down = False
                self._log.info("keys_confirmed_again", version=self._ring.version)

    async def _catch_up(self) -> None:
        ring = self._ring
        while True:
            began, since = self._clock.now(), ring.version
            async with asyncio.timeout(self._answer_s):
                changes = await self._source.changes_since(since, PAGE)
            self.polls += 1
            if changes.version < since:
                self.resets += 1
                self._log.warning("key_versions_went_back", held=since, database=changes.version)
                ring.forget()
                continue
            self._apply(changes, began)
            if len(changes.keys) + len(changes.allowances) < PAGE or changes.version == since:
                ring.confirmed(changes.version, began)
                return
            ring.version = changes.version

    def _apply(self, changes: Changes, read_at: float) -> None:
        for record in changes.keys:
            self._ring.apply(record, read_at)
        if self._on_allowance is not None:
            for allowance in changes.allowances:
                self._on_allowance(allowance)
        self.changes += len(changes.keys) + len(changes.allowances)

    async def _listen(self) -> None:
        """Subscribe, once; what happened before the subscription is asked for after it."""
        if self._watch is None:
            async with asyncio.timeout(self._answer_s):
                self._watch = await self._source.watch(self.heard)
            self._again = True
            self._pass_on()

    def _pass_on(self) -> None:
        if self.on_news is not None:
            self.on_news()

    def _fail(self, error: Exception) -> None:
        self.failures += 1
        self._ring.levels.failed()
        if not self._told_down:
            self._told_down = True
            why = error.why if isinstance(error, StoreError) else type(error).__name__
            self._log.warning("keys_unconfirmed", why=why, held=len(self._ring), version=self._ring.version)
