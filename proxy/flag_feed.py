"""Keeps the flags current: hears of changes with the feed of keys, and asks by itself.

Where news arrive by themselves it asks every few seconds all the same; where they do not, every half second, so that
a flip is everywhere within a second either way. A store that is away changes nothing: the last known rules stay, in
memory and, for a process that starts meanwhile, on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from proxy.clock import Clock
from proxy.config.feature_flags import NO_FLAGS, Flag, Flags
from proxy.config.flag_changes import FlagMark, StoredFlags
from proxy.config.flag_form import spell_percent
from proxy.errors import StoreError
from proxy.flag_snapshot import FlagSnapshot

MAX_TOLD: Final = 20
"""Rules in one line of the log."""


class FlagSource(Protocol):
    """The database, as far as it is asked for flags. Raises ``StoreError``."""

    async def read_flags(self, seen: FlagMark | None = None) -> StoredFlags | None: ...


class Log(Protocol):
    """What the feed needs of a logger."""

    def warning(self, event: str, /, **fields: Any) -> object: ...

    def info(self, event: str, /, **fields: Any) -> object: ...


class FlagFeed:
    """Hands the store's rules to ``adopt`` when they changed. `tick` is a duty of the janitor, every half second."""

    # Mutable state: `flags` and `_mark` are what was last read, `_confirmed_at` when; _task is the question in the
    # air, _again whether another is wanted, _asked_at, _told_down and _closed; _unwritten is what the disk does not
    # have yet, _writing its way there. Written by start, wake, tick, close and the run.
    def __init__(
        self,
        source: FlagSource,
        adopt: Callable[[Flags], bool],
        clock: Clock,
        log: Log,
        *,
        hears: Callable[[], bool],
        snapshot: FlagSnapshot | None = None,
        poll_s: float = 5.0,
        blind_poll_s: float = 0.5,
        answer_s: float = 5.0,
    ) -> None:
        """``hears`` says whether news arrive by themselves; ``answer_s`` is the longest wait for one answer."""
        self._source = source
        self._adopt = adopt
        self._clock = clock
        self._log = log
        self._hears = hears
        self._snapshot = snapshot
        self._poll_s = poll_s
        self._blind_poll_s = blind_poll_s
        self._answer_s = answer_s
        self.flags = NO_FLAGS
        """The store's rules."""
        self._mark: FlagMark | None = None
        self._confirmed_at = clock.now()
        self._asked_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._told_down = False
        self._closed = False
        self.known = False
        """The store, or what an earlier process knew of it, was read."""
        self.reads = 0
        """Questions that were answered."""
        self.failures = 0
        self.changes = 0
        """Times that the rules were other ones."""
        self.held = 0
        """Rules."""
        self._unwritten: StoredFlags | None = None
        self._writing: asyncio.Task[None] | None = None

    def age_s(self) -> float:
        """Seconds since the store last confirmed the rules; since the start where it never has."""
        return self._clock.now() - self._confirmed_at

    async def start(self, *, wait: bool) -> None:
        """Read the rules before anybody is served; without ``wait``, or where the store does not answer, take those
        that the last process knew."""
        if wait:
            await self.confirm()
        if not self.known and self._snapshot is not None:
            stored = await asyncio.to_thread(self._snapshot.read)
            if stored is not None and not self.known:
                self._log.info("flags_restored", version=stored.flags.version)
                # Without its mark: the store is asked for all rules, whatever it has become.
                await self._take(stored.flags)

    def tick(self) -> None:
        """Ask if it is time to. On the loop, short."""
        every_s = self._poll_s if self._hears() else self._blind_poll_s
        # A tick that comes a little early is not to wait for the next one.
        if self._clock.now() - self._asked_at >= every_s - 0.1:
            self.wake()
        if self._unwritten is not None and (self._writing is None or self._writing.done()):
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="flag-snapshot")

    def wake(self) -> None:
        """Ask now, or once more when the question in the air has been answered."""
        self._again = True
        if not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run(), name="flag-feed")

    async def confirm(self) -> None:
        """Until a question that was asked after this call has been answered, or failed."""
        self.wake()
        while self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))

    async def close(self) -> None:
        """Stop asking; what is known is on disk then, for the next start."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._write()

    async def _write(self) -> None:
        """Apart from the asking: no disk holds up a flip."""
        stored, self._unwritten = self._unwritten, None
        if stored is not None and self._snapshot is not None:
            await asyncio.to_thread(self._snapshot.write, stored)

    async def _run(self) -> None:
        while self._again and not self._closed:
            self._again = False
            self._asked_at = began = self._clock.now()
            try:
                async with asyncio.timeout(self._answer_s):
                    stored = await self._source.read_flags(self._mark)
                self.reads += 1
                if stored is not None:
                    await self._take(stored.flags)
                    self._mark, self._unwritten = stored.mark, stored
            except Exception as error:  # noqa: BLE001 - the next poll tries again; what is known stays in force
                self._fail(error)
                return
            self._confirmed_at, self.known = began, True
            if self._told_down:
                self._told_down = False
                self._log.info("flags_confirmed_again", version=self.flags.version)

    async def _take(self, flags: Flags) -> None:
        """Go by these rules. In a thread: ten thousand of them take a tenth of a second to sort and compare."""
        in_effect, told, self.held = await asyncio.to_thread(self._apply, self.flags, flags)
        self.flags, self.known = flags, True
        if told:
            self.changes += 1
            self._log.info(
                "flags_changed", version=flags.version, rules=told[:MAX_TOLD], more=max(0, len(told) - MAX_TOLD),
                in_effect=in_effect,
            )  # fmt: skip

    def _apply(self, before: Flags, flags: Flags) -> tuple[bool, list[str], int]:
        return self._adopt(flags), _differences(before, flags), len(flags.rules())

    def _fail(self, error: Exception) -> None:
        self.failures += 1
        if not self._told_down:
            self._told_down = True
            why = error.why if isinstance(error, StoreError) else type(error).__name__
            self._log.warning("flags_unconfirmed", why=why, version=self.flags.version)


def _differences(before: Flags, after: Flags) -> list[str]:
    """``pruning tenant acme: on → off``, for every rule that is another one."""
    was, became = ({_name(rule): spell_percent(rule.percent) for rule in flags.rules()} for flags in (before, after))
    return [
        f"{name}: {was.get(name, 'none')} → {became.get(name, 'none')}"
        for name in dict.fromkeys((*was, *became))
        if was.get(name) != became.get(name)
    ]


def _name(rule: Flag) -> str:
    return f"{rule.name} {rule.scope} {rule.subject}".rstrip()
