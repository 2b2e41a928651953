"""Takes closed records out of the spool of this process, a batch at a time, and removes what the store has.

Bytes are read in a thread, so that a slow disk stops nobody, and decoded on the loop in small pieces, so that the
loop stops for none of them longer than a fraction of a millisecond.
"""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.accounting.frame import CLOSE, Scan, decode_close
from proxy.accounting.record import UsageRecord
from proxy.accounting.segment import Segment
from proxy.accounting.spool import Spool

CHUNK_BYTES: Final = 32 * 1024


class SpoolReader:
    """One batch is out at a time: `read` it, then `acknowledge` it or `give_back`."""

    # Mutable: _reached says up to where each segment was read for the batch that is out, _from_ring what of it only
    # memory has, _count how many records it has.
    __slots__ = ("_count", "_from_ring", "_reached", "_spool", "torn", "unreadable")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._reached: dict[Segment, int] = {}
        self._from_ring: list[bytes] = []
        self._count = 0
        self.torn = 0
        """Segments with a place that cannot be read; what lies behind it is lost."""
        self.unreadable = 0
        """Intact records of a shape that is not known."""

    async def read(self, most: int) -> list[UsageRecord]:
        """At least ``most`` records where there are as many, and not many more. Raises ``OSError``, and then nothing
        is out."""
        try:
            return await self._read(most)
        except BaseException:
            self.give_back()
            raise

    async def _read(self, most: int) -> list[UsageRecord]:
        records: list[UsageRecord] = []
        for segment in list(self._spool.segments):
            while segment.taken < segment.written and len(records) < most:
                records += await self._read_chunk(segment)
            if len(records) >= most:
                return records
        self._from_ring = self._spool.ring.take(most - len(records))
        self._count += len(self._from_ring)
        return records + self._decode(self._from_ring)

    async def _read_chunk(self, segment: Segment) -> list[UsageRecord]:
        start, stop = segment.taken, min(segment.written, segment.taken + CHUNK_BYTES)
        self._spool.read_busy = True
        try:
            if segment is self._spool.newest:
                data = segment.read(start, stop)  # mapped at this moment, so in memory; a thread would cost far more
            else:
                data = await asyncio.to_thread(segment.read, start, stop)
        finally:
            self._spool.read_busy = False
        scan = Scan(data, segment.salt)
        payloads = [frame.payload for frame in scan if frame.kind == CLOSE]
        self._count += len(payloads)
        if not scan.end:
            self._skip(segment)
        else:
            segment.taken = start + scan.end
        self._reached[segment] = segment.taken
        return self._decode(payloads)

    def _skip(self, segment: Segment) -> None:
        """Our own frames are not to be read: the disk has changed them. The rest of the segment goes with them."""
        self.torn += 1
        segment.taken = segment.written

    def _decode(self, payloads: list[bytes]) -> list[UsageRecord]:
        decoded = [decode_close(payload) for payload in payloads]
        records = [record for record in decoded if record is not None]
        self.unreadable += len(payloads) - len(records)
        return records

    @property
    def has_moved(self) -> bool:
        """A batch is out, be it that it has nothing but open records."""
        return bool(self._reached or self._from_ring)

    async def acknowledge(self) -> None:
        """The store has the batch: remember it, and remove segments that have nothing else. Raises ``OSError``."""
        reached, self._reached, self._from_ring = self._reached, {}, []
        for segment, offset in reached.items():
            segment.acked = offset
        self._spool.note_done(self._count)
        self._count = 0
        done = self._spool.drop_done()
        await asyncio.to_thread(_clear_away, [each for each in reached if each not in done], done)

    def give_back(self) -> None:
        """The store will not have the batch from this process: its successor will."""
        for segment in self._reached:
            segment.taken = segment.acked
        self._reached, self._count = {}, 0
        self._spool.ring.give_back(self._from_ring)
        self._from_ring = []


def _clear_away(read: list[Segment], done: list[Segment]) -> None:
    for segment in read:
        segment.note_acked()
        if segment.sealed:
            segment.close_reading()
    for segment in done:
        segment.remove()
