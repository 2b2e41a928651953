"""The ledger: moves usage records from spools to the store, behind everybody's back.

One task takes batches out of this process's spool and writes them to the store; what the store has acknowledged is
removed. While the store is away the records wait on the disk, tried again with a growing pause. Between batches it
looks for spools whose process has died and moves them as well. A row is written once however often it is offered: the
store knows its id. A record that the store refuses for what it is, while it takes others, is set aside in a file.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from proxy.accounting.directory import inherit
from proxy.accounting.reader import SpoolReader
from proxy.accounting.record import UsageRecord
from proxy.accounting.recovery import Estate
from proxy.accounting.refused import RefusedFile
from proxy.accounting.spool import Spool
from proxy.clock import Clock
from proxy.errors import StoreError

# A driver takes some ten microseconds of the loop to encode a row, at one stretch for a batch: small ones while the
# ledger keeps up, so that no request waits for them, large ones while it has to catch up.
BATCH_RECORDS: Final = 100
LARGE_BATCH_RECORDS: Final = 1_000
_BEHIND_RECORDS: Final = 4_000
FLUSH_EVERY_S: Final = 0.5
ADOPT_EVERY_S: Final = 10.0
WRITE_TIMEOUT_S: Final = 60.0
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_TELL_EVERY_S: Final = 60.0
# A batch that the store refused so often for what is in it is looked through record by record.
_REFUSALS: Final = 3
_READ_TRIES: Final = 5
# Words of a `StoreError` that say nothing about the records, though trying again does not help by itself.
_NOT_THE_RECORDS: Final = frozenset({"schema", "closed", "read_only", "full"})


class UsageStore(Protocol):
    """Where rows go; ``Store`` is one."""

    async def write_usage(self, records: Sequence[UsageRecord], /) -> int: ...


class Source(Protocol):
    """Where records come from: the spool of this process or of a dead one."""

    async def read(self, most: int) -> list[UsageRecord]: ...

    async def acknowledge(self) -> None: ...


class Ledger:
    """The flusher. ``step`` does what there is to do; the task calls it again and again."""

    # Mutable: _batch is what was read and is not acknowledged, of _source; _estate the inheritance being moved, with
    # _read_failures; _hopeless names those that could not be read. All are written by the one step that runs, and so
    # are the counters.
    __slots__ = (
        "_adopt_at",
        "_batch",
        "_clock",
        "_estate",
        "_hopeless",
        "_log",
        "_longest_s",
        "_on_dead",
        "_own_first",
        "_pause_s",
        "_read_failures",
        "_reader",
        "_refusals",
        "_refused",
        "_root",
        "_source",
        "_spool",
        "_stopping",
        "_store",
        "_task",
        "_tell_at",
        "_wake",
        "adopted",
        "batches",
        "errors",
        "flush_s",
        "flushed",
        "last_error",
        "lost",
        "new_rows",
        "recovered",
        "torn",
        "unreadable",
    )

    def __init__(
        self,
        root: Path,
        spool: Spool,
        store: UsageStore,
        *,
        clock: Clock,
        log: Any,
        on_dead: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """``root`` is the directory of all spools. ``on_dead`` is told the token of a dead process once all its rows
        are in the store, and again until it succeeds: it may raise ``StoreError``."""
        self._root = root
        self._spool = spool
        self._store = store
        self._clock = clock
        self._log = log
        self._on_dead = on_dead
        self._reader = SpoolReader(spool)
        self._refused = RefusedFile(root / "refused.jsonl")
        self._source: Source | None = None
        self._batch: list[UsageRecord] = []
        self._own_first = True
        self._estate: Estate | None = None
        self._read_failures = 0
        self._hopeless: frozenset[str] = frozenset()
        self._adopt_at = clock.now()
        self._pause_s = self._longest_s = 0.0
        self._refusals = 0
        self._tell_at = 0.0
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self.flushed = 0
        """Records that the store has acknowledged."""
        self.new_rows = 0
        """Rows among them that it did not have before."""
        self.batches = 0
        self.flush_s = 0.0
        """Seconds spent in the store, all batches together."""
        self.errors: dict[str, int] = {}
        """Batches that did not get through, by the error's word."""
        self.last_error = ""
        """Empty while all is well."""
        self.adopted = 0
        """Spools of dead processes that were moved to the store."""
        self.recovered = 0
        """Closed records found in them."""
        self.lost = 0
        """Requests in them that had never ended."""
        self.torn = 0
        """Segments with a place that could not be read."""
        self.unreadable = 0
        """Intact records of a shape that this version does not know."""

    # -- the task ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to move records. The store may be away."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="ledger")

    async def _run(self) -> None:
        while not self._stopping:
            full = await self.step()
            if full:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s or FLUSH_EVERY_S):
                    await self._wake.wait()

    async def close(self, within_s: float = 2.0) -> bool:
        """Move what is there, for at most ``within_s``, and stop; ``False`` if something is left for the next
        process. The spool is not closed."""
        self._stopping = True
        self._wake.set()
        done = False
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                if self._task is not None:
                    await self._task
                self._pause_s = 0.0
                while not self._pause_s and not (done := self.is_empty):
                    await self.step()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._estate is not None:
            self._estate.leave()
        if self._source is self._reader and self._batch:
            self._reader.give_back()
        self._source, self._batch, self._estate = None, [], None
        return done and self.is_empty

    @property
    def is_empty(self) -> bool:
        """Nothing is left to be moved out of this process's spool."""
        return not self._batch and self._spool.is_drained

    # -- one step ---------------------------------------------------------------------------------------------

    async def step(self) -> bool:
        """Move one batch; whether there is probably another right behind it. Never raises: what fails is counted and
        tried again by the next step."""
        self._spool.tend()
        try:
            return await self._move()
        except StoreError as error:
            self._failed(error.why, error)
        except TimeoutError as error:
            self._failed("timeout", error)
        except OSError as error:
            self._failed("disk", error)
        except Exception as error:  # noqa: BLE001 - whatever a store does, the records are safe where they are
            self._failed("bug", error)
        return False

    async def _move(self) -> bool:
        if self._source is None:
            await self._take_batch()
        if self._source is None:
            return False
        count = len(self._batch)
        if self._batch:
            await self._write()
        source = self._source
        # From here on a failure of the disk loses nothing: what the store has may be offered again.
        self._source, self._batch, self._refusals, self.last_error = None, [], 0, ""
        self._pause_s = self._longest_s = 0.0
        self.flushed += count
        await source.acknowledge()
        return count >= BATCH_RECORDS or self._estate is not None

    @property
    def _batch_records(self) -> int:
        return LARGE_BATCH_RECORDS if self._spool.pending_records > _BEHIND_RECORDS else BATCH_RECORDS

    async def _take_batch(self) -> None:
        """The own spool and those of the dead take turns, so that neither starves."""
        own_first, self._own_first = self._own_first, True
        if own_first and await self._take_own():
            return
        if await self._take_inherited() or own_first:
            return
        await self._take_own()

    async def _take_own(self) -> bool:
        batch = await self._reader.read(self._batch_records)
        self.torn += self._reader.torn
        self.unreadable += self._reader.unreadable
        self._reader.torn = self._reader.unreadable = 0
        if not self._reader.has_moved:
            return False
        self._source, self._batch, self._own_first = self._reader, batch, False
        return True

    async def _take_inherited(self) -> bool:
        if self._estate is None:
            self._estate = await self._adopt()
        estate = self._estate
        if estate is None:
            return False
        try:
            batch = await estate.read(self._batch_records)
        except OSError:
            self._give_up(estate)
            raise
        if not batch:
            await self._bury(estate)
            return False
        self._source, self._batch = estate, batch
        return True

    async def _adopt(self) -> Estate | None:
        now = self._clock.now()
        if now < self._adopt_at:
            return None
        self._adopt_at = now + ADOPT_EVERY_S
        home = await asyncio.to_thread(inherit, self._root, known=self._spool.known | self._hopeless)
        return None if home is None else Estate(home)

    def _give_up(self, estate: Estate) -> None:
        """A directory that cannot be read stays where it is, for somebody to look at, and holds up no other."""
        self._read_failures += 1
        if self._read_failures >= _READ_TRIES:
            self._read_failures = 0
            self._hopeless |= {estate.owner}
            estate.leave()
            self._estate = None
            self._log.error("spool_unreadable", owner=estate.owner)

    async def _bury(self, estate: Estate) -> None:
        if self._on_dead is not None:
            await self._on_dead(estate.token)
        await estate.bury()
        self._estate, self._read_failures = None, 0
        self._adopt_at = self._clock.now()  # there may be more
        self.adopted += 1
        self.recovered += estate.recovered
        self.lost += estate.lost
        self.torn += estate.torn
        self.unreadable += estate.unreadable
        self._log.info(
            "spool_recovered", owner=estate.owner, records=estate.recovered, lost=estate.lost, torn=estate.torn
        )

    # -- the store --------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        if self._refusals >= _REFUSALS:
            await self._sift()
            return
        try:
            await self._write_some(self._batch)
        except StoreError as error:
            if not error.transient and error.why not in _NOT_THE_RECORDS:
                self._refusals += 1
            raise
        except (TimeoutError, OSError):
            raise
        except Exception:
            self._refusals += 1
            raise

    async def _write_some(self, records: list[UsageRecord]) -> None:
        began = self._clock.now()
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            self.new_rows += await self._store.write_usage(records)
        self.flush_s += self._clock.now() - began
        self.batches += 1

    async def _sift(self) -> None:
        """Find the records that the store refuses while it takes others, and set them aside."""
        good, bad = await self._halve(self._batch)
        if bad and not good and len(self._batch) > 1:
            raise StoreError("refused", "the store refuses every record of a batch", transient=False)
        await asyncio.to_thread(self._refused.add, bad)
        self._batch = []
        if bad:
            self._log.error("usage_refused", records=len(bad), kept_in=str(self._refused.path))

    async def _halve(self, records: list[UsageRecord]) -> tuple[int, list[UsageRecord]]:
        """How many the store took, and those it refused alone."""
        try:
            await self._write_some(records)
        except (TimeoutError, OSError):
            raise
        except Exception as error:
            if isinstance(error, StoreError) and (error.transient or error.why in _NOT_THE_RECORDS):
                raise
            if len(records) == 1:
                return 0, records
        else:
            return len(records), []
        middle = len(records) // 2
        good, bad = await self._halve(records[:middle])
        more, worse = await self._halve(records[middle:])
        return good + more, bad + worse

    def _failed(self, why: str, error: Exception) -> None:
        self.errors[why] = self.errors.get(why, 0) + 1
        self.last_error = why
        self._longest_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, self._longest_s * 2))
        self._pause_s = self._longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads processes, guards nothing
        now = self._clock.now()
        if now >= self._tell_at:
            self._tell_at = now + _TELL_EVERY_S
            self._log.warning("usage_not_flushed", why=why, error=str(error), pending=self._spool.pending_records)

    @property
    def refused(self) -> int:
        """Records that the store refuses, set aside in ``refused.jsonl``."""
        return self._refused.added

    @property
    def retry_in_s(self) -> float:
        """How long the ledger waits after a failure; 0 while all is well."""
        return self._pause_s
