"""The spool's thread: everything that may wait for a disk.

It makes the next segment before it is needed, brings what was written to the disk every 100 ms, and gives back the
memory of segments that are full. The spool never waits for it: where no next segment is there, the disk is full, dead
or slow, and the spool does what its policy says.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path
from typing import Final

from proxy.accounting.directory import Home, move_in
from proxy.accounting.segment import Allocate, Segment, Sync, allocate_blocks, may_map, sync_data

SYNC_EVERY_S: Final = 0.1
RETRY_EVERY_S: Final = 1.0
# Longest time for which the loop waits for a segment, once: a healthy disk needs a tenth of it.
_HURRY_S: Final = 0.02


class Disk:
    """What the thread needs to know of the file system, and what a test may replace."""

    __slots__ = ("allocate", "mapped", "sync")

    def __init__(
        self, *, allocate: Allocate = allocate_blocks, sync: Sync = sync_data, mapped: bool | None = None
    ) -> None:
        self.allocate = allocate
        self.sync = sync
        self.mapped = mapped
        """``None``: where the file system allows it."""


class Upkeep:
    """Owns the directory of this process. ``work`` does one round; the thread does one every 100 ms."""

    # Mutable: `home`, `_number`, `_mapped`, `_retry_rounds`, `failing` and `alloc_errors` are written by
    # `_make_spare`, which runs under `_making`; `spare` is put there by it while it is None and taken by the spool
    # while it is not. `current` and `segments` are the spool's to write. `sealed` is filled by the spool and emptied
    # by `_sync_all`, which runs under `_lock`, `suspects` the other way round; so are `syncs` and `sync_errors`.
    # `_slow` says that the spool has waited in vain since the last round.
    __slots__ = (
        "_bound",
        "_disk",
        "_fsync",
        "_lock",
        "_making",
        "_mapped",
        "_number",
        "_retry_rounds",
        "_root",
        "_segment_bytes",
        "_slow",
        "_stop",
        "_thread",
        "_token",
        "alloc_errors",
        "current",
        "failing",
        "home",
        "sealed",
        "segments",
        "spare",
        "suspects",
        "sync_errors",
        "syncs",
        "wake",
    )

    def __init__(
        self, root: Path, token: str, *, segment_bytes: int, bound_bytes: int, fsync: str, disk: Disk
    ) -> None:
        self._root = root
        self._token = token
        self._segment_bytes = segment_bytes
        self._bound = max(2, bound_bytes // segment_bytes)
        self._fsync = fsync
        self._disk = disk
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._slow = False
        self._mapped = False
        self._number = 0
        self._retry_rounds = 0
        self._stop = False
        self._thread: threading.Thread | None = None
        self.wake = threading.Event()
        self.home: Home | None = None
        self.spare: Segment | None = None
        self.current: Segment | None = None
        self.segments = 0
        """How many the spool has, the current one included and the spare not."""
        self.sealed: deque[Segment] = deque()
        self.suspects: deque[Segment] = deque()
        """Segments whose sync failed, with what is in doubt in ``failed``."""
        self.failing = ""
        """Why there is no spare segment, for people: an error, or ``full``; empty while all is well."""
        self.alloc_errors = 0
        self.sync_errors = 0
        self.syncs = 0

    def start(self) -> None:
        """Make the first segment, if that is possible, and begin."""
        self.work()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> bool:
        """End the thread after a last round; ``False`` if it hangs at the disk, where it is left behind."""
        self._stop = True
        self.wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def _run(self) -> None:
        every_s = RETRY_EVERY_S if self._fsync == "never" else SYNC_EVERY_S
        while not self._stop:
            self.wake.wait(every_s)
            self.wake.clear()
            self.work()

    def work(self) -> None:
        """One round. Never raises for what a disk does."""
        with self._making:
            self._make_spare()
            self._slow = False
        with self._lock:
            self._sync_all()

    def hurry(self) -> None:
        """The spool needs the next segment and it is not there: its thread had no time for it, or the disk has none.
        Help in the first case, wait for a moment to find out, and do not ask twice in the second."""
        if self.failing or self._slow:
            return
        if self._making.acquire(timeout=_HURRY_S):
            try:
                self._make_spare()
            finally:
                self._making.release()
        self._slow = self.spare is None

    # -- the next segment -------------------------------------------------------------------------------------

    def _make_spare(self) -> None:
        if self.spare is not None or self._stop:
            return
        if self.segments >= self._bound:
            self.failing = "full"
            return
        if self._retry_rounds > 0:
            self._retry_rounds -= 1
            return
        try:
            if self.home is None:
                self.home = move_in(self._root, self._token)
                self._mapped = may_map(self.home.path) if self._disk.mapped is None else self._disk.mapped
            self._number += 1
            self.spare = Segment.allocate(
                self.home.path, self._number, self._segment_bytes, mapped=self._mapped, allocate=self._disk.allocate
            )
        except (OSError, ValueError) as error:  # mmap says ValueError for a file that shrank
            self.alloc_errors += 1
            self.failing = str(error)
            self._retry_rounds = int(RETRY_EVERY_S / SYNC_EVERY_S) if self._fsync != "never" else 0
        else:
            self.failing = ""

    # -- durability -------------------------------------------------------------------------------------------

    def _sync_all(self) -> None:
        while self.sealed:
            segment = self.sealed.popleft()
            self._sync(segment)
            segment.let_go()
        current = self.current
        if current is not None:
            self._sync(current)

    def _sync(self, segment: Segment) -> None:
        if segment.failed is not None or not segment.frames:
            return  # from a failure on, the frames are the spool's alone
        # The spool copies a frame first and lists it afterwards, so whatever is in the list is in the memory.
        frames, segment.frames = segment.frames, []
        if self._fsync != "never":
            try:
                segment.sync(self._disk.sync)
            except OSError:
                self.sync_errors += 1
                segment.failed = frames
                self.suspects.append(segment)
                return
            self.syncs += 1
        segment.synced += sum(map(len, frames))

    def sync_now(self, segment: Segment) -> None:
        """A round of durability for one segment, in the caller's thread: for ``spool_fsync=always``."""
        with self._lock:
            self._sync(segment)

    # -- the end ----------------------------------------------------------------------------------------------

    def close(self, *, empty: bool) -> None:
        """After `stop`: give the directory up, and remove it if nothing in it is needed any more."""
        spare, self.spare = self.spare, None
        home, self.home = self.home, None
        try:
            if spare is not None:
                spare.let_go()
                spare.remove()
            if home is not None and empty:
                home.demolish()
        except OSError:
            self.alloc_errors += 1
        if home is not None:
            home.leave()


def make_token() -> str:
    """A name for a process, unique over restarts."""
    return os.urandom(6).hex()
