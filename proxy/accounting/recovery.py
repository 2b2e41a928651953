"""What a dead process left in its spool, turned into rows: its closed records, and ``lost`` ones for the requests
that it did not bring to their end.

Everything is read from the beginning each time, so that an heir that dies as well has an heir in turn; what the store
has acknowledged is noted in the segments and not offered again. Files go when all rows are in the store.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from proxy.accounting.directory import Home
from proxy.accounting.frame import CLOSE, OPEN, Opened, Scan, decode_close, decode_open, lost_record
from proxy.accounting.reader import CHUNK_BYTES
from proxy.accounting.record import UsageRecord
from proxy.accounting.segment import Segment, open_left_behind


class Estate:
    """A directory that was inherited. Use: `read` and `acknowledge` until `read` returns nothing, then `bury`."""

    # Mutable: _paths are the segments still to be read, _segment is the one being read; _open maps the ids of the
    # requests that were opened and not closed so far; _losses are the rows made of them at the end, None until then.
    __slots__ = (
        "_home",
        "_losses",
        "_open",
        "_out",
        "_paths",
        "_segment",
        "lost",
        "recovered",
        "torn",
        "unreadable",
    )

    def __init__(self, home: Home) -> None:
        self._home = home
        self._paths: list[Path]
        self._segment: Segment | None = None
        self._open: dict[str, Opened]
        self._losses: list[UsageRecord] | None
        self._out: list[Segment] = []
        self.recovered: int
        """Rows made of closed records that the store was not known to have."""
        self.lost: int
        """Rows made of requests that never ended."""
        self.torn: int
        """Segments that end in the middle of something."""
        self.unreadable: int
        """Intact records of a shape that is not known."""
        self._restart()

    @property
    def owner(self) -> str:
        return self._home.owner

    @property
    def token(self) -> str:
        """What the dead process called itself: see `Spool`."""
        return self._home.token

    def _restart(self) -> None:
        """From the first byte again."""
        self._close_files()
        self._paths, self._segment, self._out = self._home.segments(), None, []
        self._open, self._losses = {}, None
        self.recovered = self.lost = self.torn = self.unreadable = 0

    async def read(self, most: int) -> list[UsageRecord]:
        """At least ``most`` rows as long as there are as many, and not many more. Raises ``OSError``; the next call
        begins at the beginning then."""
        records: list[UsageRecord] = []
        try:
            while len(records) < most:
                if self._segment is None and not await self._next_segment():
                    break
                assert self._segment is not None
                records += await self._read_chunk(self._segment)
        except BaseException:
            self._restart()
            raise
        self.recovered += len(records)
        if self._segment is None and not self._paths and len(records) < most:
            records += self._take_losses(most - len(records))
        return records

    async def _next_segment(self) -> bool:
        while self._paths:
            path = self._paths.pop(0)
            self._segment = await asyncio.to_thread(open_left_behind, path)
            if self._segment is not None:
                return True
            self.torn += 1
        return False

    async def _read_chunk(self, segment: Segment) -> list[UsageRecord]:
        start = segment.taken
        stop = min(segment.written, start + CHUNK_BYTES)
        data = await asyncio.to_thread(segment.read, start, stop)
        scan = Scan(data, segment.salt)
        records = [record for frame in scan if (record := self._take(frame.kind, frame.payload, start + frame.end,
                                                                      segment.acked)) is not None]  # fmt: skip
        segment.taken = start + scan.end
        if scan.torn or not scan.end:
            # The end, or a place that cannot be read: what lies behind it is not to be trusted.
            self.torn += scan.torn or any(data)
            await asyncio.to_thread(_cut, segment)
            self._out.append(segment)
            self._segment = None
        elif segment.taken >= segment.written:
            self._out.append(segment)
            self._segment = None
        return records

    def _take(self, kind: int, payload: bytes, end: int, acked: int) -> UsageRecord | None:
        if kind == OPEN:
            opened = decode_open(payload)
            if opened is not None:
                self._open[opened.request_id] = opened
                return None
        elif kind == CLOSE:
            record = decode_close(payload)
            if record is not None:
                self._open.pop(record.request_id, None)
                return record if end > acked else None
        self.unreadable += 1
        return None

    def _take_losses(self, most: int) -> list[UsageRecord]:
        if self._losses is None:
            self._losses = [lost_record(opened) for opened in self._open.values()]
            self._open = {}
        taken, self._losses = self._losses[:most], self._losses[most:]
        self.lost += len(taken)
        return taken

    async def acknowledge(self) -> None:
        """The store has what was read."""
        out, self._out = self._out, []
        segment = self._segment
        for each in out if segment is None else [*out, segment]:
            each.acked = max(each.acked, each.taken)
        await asyncio.to_thread(_note, out, segment)

    async def bury(self) -> None:
        """Everything is in the store: remove the directory. Raises ``OSError``."""
        await asyncio.to_thread(self._home.demolish)

    def leave(self) -> None:
        """Leave the rest to the next heir."""
        self._close_files()
        self._home.leave()

    def _close_files(self) -> None:
        for segment in (*self._out, *([self._segment] if self._segment is not None else ())):
            segment.close_reading()


def _cut(segment: Segment) -> None:
    """Give back the blocks that were never used, in case the store stays away for long."""
    segment.written = segment.taken
    os.truncate(segment.path, segment.written)


def _note(out: list[Segment], segment: Segment | None) -> None:
    for each in out:
        each.note_acked()
        each.close_reading()
    if segment is not None:
        segment.note_acked()
