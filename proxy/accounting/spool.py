"""The spool: where the record of a request is safe, two copies into shared memory and no system call.

`open_record` when a request is admitted, `close_record` before the end of its answer leaves: a process that is killed
in between leaves the first, and its heir makes a row of it. Records wait in segments, in the order they came, until
the ledger has moved them to the store; a segment goes when all of it is in the store, oldest first. Requests that
are still open then are written again into the newest one, so that a stream of an hour pins nothing.

When there is no segment to write to (the disk is full, dead or slow, or the store was away for too long), the policy
decides: ``available`` keeps closed records in a bounded ring in memory, from where they reach the store or the next
segment, and counts what falls out; ``strict`` refuses new work before that, with room kept for what runs already.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final
from zlib import crc32

from proxy.accounting.frame import (
    CLOSE,
    MAX_PAYLOAD_BYTES,
    OPEN,
    PREFIX_BYTES,
    Opened,
    encode,
    encode_tamed,
    make_frame,
)
from proxy.accounting.record import UsageRecord
from proxy.accounting.ring import Ring
from proxy.accounting.segment import Segment
from proxy.accounting.upkeep import Disk, Upkeep, make_token
from proxy.errors import Kind, ProxyError

SEGMENT_BYTES: Final = 1 << 20
RING_BYTES: Final = 16 << 20
# Strict: what is kept free for the end of each request that runs.
_CLOSE_ROOM_BYTES: Final = 384
# Up to so many segments open requests may pin; one more and they are written again.
_PINNED_SEGMENTS: Final = 4

_pack: Final = Struct("<II").pack


class Spool:
    """Written by the loop's thread alone; `upkeep` is its other thread."""

    # Mutable: _segment, _memory, _at, _end, _salt are the segment being written, unpacked for speed; _end is 0 while
    # there is none. _running maps the ids of open requests to their segment (None: written nowhere) and payload.
    # `ring` holds closed records that are in no segment. _done counts closed records that are in the store.
    __slots__ = (
        "_at",
        "_done",
        "_end",
        "_homeless",
        "_memory",
        "_running",
        "_salt",
        "_segment",
        "_strict",
        "_syncs_each",
        "carried",
        "closed",
        "opened",
        "read_busy",
        "refused",
        "rewritten",
        "ring",
        "segments",
        "token",
        "upkeep",
        "write_errors",
    )

    def __init__(
        self,
        root: Path,
        *,
        token: str = "",
        policy: str = "available",
        fsync: str = "interval",
        bound_bytes: int = 1 << 30,
        segment_bytes: int = SEGMENT_BYTES,
        ring_bytes: int = RING_BYTES,
        disk: Disk | None = None,
    ) -> None:
        """``root`` is the directory of all spools; ``token`` names this process: take what its request ids begin
        with, so that whoever holds something in its name can be told of its death. ``policy`` is ``available`` or
        ``strict``, ``fsync`` is ``interval``, ``always`` or ``never``."""
        if segment_bytes < 2 * (MAX_PAYLOAD_BYTES + PREFIX_BYTES):
            raise ValueError("a segment must hold two of the largest records")
        self.token = token or make_token()
        self._strict = policy == "strict"
        self._syncs_each = fsync == "always"
        self.upkeep = Upkeep(
            root,
            self.token,
            segment_bytes=segment_bytes,
            bound_bytes=bound_bytes,
            fsync=fsync,
            disk=disk or Disk(),
        )
        self._segment: Segment | None = None
        self._memory: object = None
        self._at = self._end = self._salt = 0
        self._running: dict[str, tuple[Segment | None, bytes]] = {}
        self._homeless = 0
        self.ring = Ring(ring_bytes)
        self.segments: deque[Segment] = deque()
        """All that are not removed, oldest first; the last is the one being written unless it is sealed."""
        self.read_busy = False
        """Set by the reader while it reads outside the loop's thread: the ends of segments must stand still."""
        self._done = 0
        self.opened = 0
        self.closed = 0
        self.refused = 0
        """Requests refused by the policy."""
        self.write_errors = 0
        """Records that a segment refused, and that went elsewhere."""
        self.carried = 0
        """Open records that were written again, so that an old segment could go."""
        self.rewritten = 0
        """Frames written again because a sync had failed."""

    def start(self) -> None:
        """Take a directory and the first segment. A disk that refuses is the policy's business, not an error."""
        self.upkeep.start()
        self._rotate()

    # -- the request's path -----------------------------------------------------------------------------------

    def open_record(  # noqa: PLR0917 - by position, because names cost a tenth of a microsecond
        self,
        request_id: str,
        at: float,
        key_id: str,
        tenant: str,
        team: str,
        provider: str,
        route: str,
        model: str,
        input_tokens: int = 0,
        reserved_picodollars: int = 0,
        streams: bool = False,
    ) -> None:
        """A request was admitted: see `Opened`. Raises ``ProxyError`` (``USAGE_UNAVAILABLE``) where the policy is
        ``strict`` and nothing can be kept; the request must then not run."""
        if self._strict:
            self.demand_room()
        fields = (
            request_id, at, key_id, tenant, team, provider, route, model, input_tokens, reserved_picodollars, streams
        )  # fmt: skip
        try:
            payload = encode(fields)
        except (ValueError, OverflowError, UnicodeEncodeError):
            payload = encode_tamed(Opened(*fields))
        size = len(payload)
        if size > MAX_PAYLOAD_BYTES:
            payload = encode_tamed(Opened(*fields))
            size = len(payload)
        self.opened += 1
        start = self._at
        end = start + PREFIX_BYTES + size
        if end > self._end:
            self._open_elsewhere(request_id, payload)
            return
        word = size << 4 | OPEN
        frame = _pack(crc32(payload, self._salt ^ word), word) + payload
        segment = self._segment
        try:
            self._memory[start:end] = frame  # type: ignore[index]
        except OSError:
            self._abandon()
            self._open_elsewhere(request_id, payload)
            return
        self._at = segment.written = end  # type: ignore[union-attr]
        segment.frames.append(frame)  # type: ignore[union-attr]
        self._running[request_id] = segment, payload

    def demand_room(self) -> None:
        """Raise ``ProxyError`` (``USAGE_UNAVAILABLE``) where the policy is ``strict`` and there may be no room for
        one more record: for requests that are closed without having been opened."""
        if self._strict and not self._has_room():
            self.refused += 1
            message = "Usage cannot be recorded at the moment; try again later."
            raise ProxyError(Kind.USAGE_UNAVAILABLE, message, detail=self.trouble or "no room", retry_after_s=1.0)

    def close_record(self, record: UsageRecord) -> None:
        """A request is over. Must be called before the end of its answer leaves. Never raises for the disk's sake."""
        try:
            payload = encode(record)
        except (ValueError, OverflowError, UnicodeEncodeError):
            payload = encode_tamed(record)
        size = len(payload)
        if size > MAX_PAYLOAD_BYTES:
            payload = encode_tamed(record)
            size = len(payload)
        self.closed += 1
        was = self._running.pop(record.request_id, None)
        if was is not None and was[0] is None:
            self._homeless -= 1
        start = self._at
        end = start + PREFIX_BYTES + size
        if end > self._end:
            self._close_elsewhere(payload)
            return
        word = size << 4 | CLOSE
        frame = _pack(crc32(payload, self._salt ^ word), word) + payload
        segment = self._segment
        try:
            self._memory[start:end] = frame  # type: ignore[index]
        except OSError:
            self._abandon()
            self._close_elsewhere(payload)
            return
        self._at = segment.written = end  # type: ignore[union-attr]
        segment.frames.append(frame)  # type: ignore[union-attr]
        if self._syncs_each:
            self.upkeep.sync_now(segment)  # type: ignore[arg-type]

    def _append(self, kind: int, payload: bytes) -> bool:
        """The same for what is not a request's own path; ``False`` if it did not go in."""
        segment, end = self._segment, self._at + PREFIX_BYTES + len(payload)
        if segment is None or end > self._end:
            return False
        frame = make_frame(kind, payload, segment.salt)
        try:
            self._memory[self._at : end] = frame  # type: ignore[index]
        except OSError:
            self._abandon()
            return False
        self._at = segment.written = end
        segment.frames.append(frame)
        return True

    def _abandon(self) -> None:
        """The segment, written by system calls, refused a record: whatever of it went in is behind the limit."""
        segment = self._segment
        self.write_errors += 1
        self._seal()
        if segment is not None:
            segment.note_limit()

    # -- when the segment is full, or there is none -----------------------------------------------------------

    def _open_elsewhere(self, request_id: str, payload: bytes) -> None:
        if self._rotate() and self._append(OPEN, payload):
            self._running[request_id] = self._segment, payload
        else:
            self._running[request_id] = None, payload
            self._homeless += 1

    def _close_elsewhere(self, payload: bytes) -> None:
        if not (self._rotate() and self._append(CLOSE, payload)):
            self.ring.put(payload)
        elif self._syncs_each and self._segment is not None:
            self.upkeep.sync_now(self._segment)

    def _rotate(self) -> bool:
        """Go on in the spare segment; ``False`` if there is none. What had no segment gets into this one."""
        if self.upkeep.spare is None:
            self.upkeep.hurry()
        spare = self.upkeep.spare
        if spare is None:
            self.upkeep.wake.set()
            return False
        self.upkeep.spare = None
        self._seal()
        self.segments.append(spare)
        self.upkeep.segments = len(self.segments)
        self.upkeep.current = self._segment = spare
        self._memory = spare.memory
        self._at, self._end, self._salt = spare.written, spare.size_bytes, spare.salt
        self.upkeep.wake.set()
        if self._homeless or self.ring:
            self._bring_home()
        # What was brought home may have filled it: the caller's record must fit as well.
        return self._end - self._at > MAX_PAYLOAD_BYTES + PREFIX_BYTES

    def _seal(self) -> None:
        segment, self._segment = self._segment, None
        self._memory, self._at, self._end = None, 0, 0
        if segment is not None:
            segment.sealed = True
            self.upkeep.current = None
            self.upkeep.sealed.append(segment)

    def _bring_home(self) -> None:
        """Write what is in no segment into the new one, as far as there is room beside the next record."""
        if self._homeless:
            for request_id, (home, payload) in list(self._running.items()):
                if home is None and self._append(OPEN, payload):
                    self._running[request_id] = self._segment, payload
                    self._homeless -= 1
        while self.ring and self._append(CLOSE, self.ring.first()):
            self.ring.pop()

    def _has_room(self) -> bool:
        """Whether one more request may run: beside its own records, the end of everyone that runs must find room in
        the segments that are there already."""
        if self.upkeep.suspects:
            self.tend()
        spare = self.upkeep.spare
        free = self._end - self._at + (0 if spare is None else spare.size_bytes)
        return free > (len(self._running) + 2) * _CLOSE_ROOM_BYTES

    # -- for the reader and for the ledger --------------------------------------------------------------------

    def tend(self) -> None:
        """What has to be done now and then, by the loop's thread: write again what a failed sync left in doubt, and
        come back to the disk when it is back. Does nothing while the reader reads."""
        if self.read_busy:
            return
        while self.upkeep.suspects:
            segment = self.upkeep.suspects[0]
            if segment is self._segment and not self._rotate():
                return
            self.upkeep.suspects.popleft()
            self._rewrite(segment)
        if self.ring or self._homeless:
            self._rotate()

    def _rewrite(self, segment: Segment) -> None:
        """Cut a segment whose sync failed at what is surely on the disk or was taken by the reader, and write the
        rest again elsewhere."""
        frames = [*(segment.failed or ()), *segment.frames]
        segment.frames = []
        at = segment.synced
        segment.written = max(segment.synced, segment.taken)
        segment.note_limit()
        for frame in frames:
            if at >= segment.written and frame[4] & 0xF == CLOSE:
                self.rewritten += 1
                if not self._append(CLOSE, frame[PREFIX_BYTES:]):
                    self._close_elsewhere(frame[PREFIX_BYTES:])
            at += len(frame)
        self._carry_over(segment)

    def drop_done(self) -> list[Segment]:
        """The oldest segments, as far as all in them is in the store; they are the caller's to remove. Where open
        requests pin too many, their records are written again first."""
        done: list[Segment] = []
        while self.segments and self.segments[0].is_done:
            first, few = self.segments[0], len(self.segments) <= _PINNED_SEGMENTS
            if self._is_pinned(first) and (few or not self._carry_over(first)):
                break
            done.append(self.segments.popleft())
        if done:
            self.upkeep.segments = len(self.segments)
            self.upkeep.wake.set()
        return done

    def _is_pinned(self, first: Segment) -> bool:
        return any(home is first for home, _ in self._running.values())

    def _carry_over(self, first: Segment) -> bool:
        """Write the open records of a segment again into the one being written; ``False`` if they found no room."""
        for request_id, (home, payload) in list(self._running.items()):
            if home is not first:
                continue
            if not self._append(OPEN, payload) and not (self._rotate() and self._append(OPEN, payload)):
                return False
            del self._running[request_id]
            self._running[request_id] = self._segment, payload
            self.carried += 1
        return True

    # -- what it holds ----------------------------------------------------------------------------------------

    @property
    def newest(self) -> Segment | None:
        """The segment that is being written."""
        return self._segment

    @property
    def running(self) -> int:
        """Requests that are open."""
        return len(self._running)

    @property
    def known(self) -> frozenset[str]:
        """The name of the own directory."""
        home = self.upkeep.home
        return frozenset() if home is None else frozenset((home.owner,))

    def note_done(self, count: int) -> None:
        """So many closed records more are in the store."""
        self._done += count
        if self.is_drained:  # whatever was unreadable is not waited for
            self._done = self.closed - self.ring.dropped

    @property
    def is_drained(self) -> bool:
        """Nothing waits for the store."""
        return not self.ring and all(segment.acked == segment.written for segment in self.segments)

    @property
    def pending_records(self) -> int:
        """Closed records that the store does not have yet."""
        return 0 if self.is_drained else max(0, self.closed - self.ring.dropped - self._done)

    @property
    def dropped(self) -> int:
        """Closed records that are lost: neither disk nor store would have them, and memory was full."""
        return self.ring.dropped

    @property
    def pending_bytes(self) -> int:
        """Bytes that the store does not have yet, open records included."""
        return self.ring.size_bytes + sum(segment.written - segment.acked for segment in self.segments)

    @property
    def size_bytes(self) -> int:
        """What the spool takes on the disk."""
        return sum(segment.size_bytes for segment in self.segments)

    @property
    def trouble(self) -> str:
        """Why records cannot be kept on the disk at the moment; empty while they are."""
        return self.upkeep.failing or ("slow disk" if self.ring or self._homeless else "")

    # -- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Bring everything to the disk and give the directory up. What the store does not have is left there, for the
        next process; nothing may be written afterwards."""
        self.tend()
        self._seal()
        hung = not self.upkeep.stop()
        empty = not self._running and not self.ring and all(segment.is_done for segment in self.segments)
        for segment in self.segments:
            segment.close_reading()
            if not empty and not hung:
                with suppress(OSError):
                    segment.trim()
        if not hung:
            self.upkeep.close(empty=empty)
