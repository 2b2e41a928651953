"""One file of the spool: made at its full size, written through shared memory, read back in pieces, then removed.

A record is safe from the death of the process the moment it is copied into the mapping, because the pages belong to
the kernel; `sync` makes it safe from the death of the machine. All blocks are allocated before the first byte is
written, so that a full disk is an error of `allocate` and never a SIGBUS. Where a file system does not keep that
promise (it copies on write, or lies across a network), the segment is written by system calls instead.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from proxy.accounting.frame import ACKED_AT, HEADER_BYTES, LIMIT_AT, OFFSET, Header, pack_header, parse_header

SUFFIX: Final = ".seg"
_ZEROS: Final = bytes(1 << 16)
# File systems on which allocated blocks stay allocated for a rewrite in place.
_KEEP_THEIR_WORD: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "tmpfs", "ramfs", "overlay", "f2fs", "jfs"})

Allocate = Callable[[int, int], None]
"""(descriptor, bytes): reserve the blocks of a new file, or raise ``OSError``."""
Sync = Callable[[int], None]
"""(descriptor): bring what was written to the disk, or raise ``OSError``."""

sync_data: Final[Sync] = getattr(os, "fdatasync", os.fsync)


def allocate_blocks(fd: int, size_bytes: int) -> None:
    """Reserve the blocks of a file, written out as zeros where the system knows no other way."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size_bytes)
        return
    for at in range(0, size_bytes, len(_ZEROS)):
        os.pwrite(fd, _ZEROS[: size_bytes - at], at)


def may_map(directory: Path) -> bool:
    """Whether allocated blocks are a promise on the file system of ``directory``. Where that cannot be found out,
    they are not."""
    try:
        device = os.stat(directory).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        mounts = Path("/proc/self/mountinfo").read_text("utf-8").splitlines()
    except (OSError, UnicodeError):
        return False
    kinds = [line.partition(" - ")[2].split(" ", 1)[0] for line in mounts if line.split(" ", 3)[2] == wanted]
    return bool(kinds) and kinds[-1] in _KEEP_THEIR_WORD


class _Written:
    """Stands in for the mapping: the one form of assignment that the spool uses, as a system call."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __setitem__(self, where: slice, frame: bytes) -> None:
        if os.pwrite(self._fd, frame, where.start) != len(frame):
            raise OSError(28, "the disk took only a part of a record")

    def close(self) -> None:
        pass


class Segment:
    """One file. Offsets count from its beginning, header included."""

    # Who writes what: the spool `written`, `limit`, `sealed` and `frames.append`; the spool's thread `frames` (takes
    # the list and puts a new one), `synced`, `failed` and, once it is sealed, `memory`; the reader `taken`, `acked`.
    __slots__ = (
        "_fd",
        "_read_fd",
        "acked",
        "failed",
        "frames",
        "memory",
        "number",
        "path",
        "salt",
        "sealed",
        "size_bytes",
        "synced",
        "taken",
        "written",
    )

    def __init__(self, path: Path, number: int, salt: int, size_bytes: int, fd: int) -> None:
        self.path = path
        self.number = number
        self.salt = salt
        self.size_bytes = size_bytes
        self._fd = fd
        self._read_fd = -1
        self.memory: mmap.mmap | _Written | None = None
        self.written = HEADER_BYTES
        """Up to here there are frames."""
        self.taken = HEADER_BYTES
        """Up to here the reader has taken them."""
        self.acked = HEADER_BYTES
        """Up to here they are in the store."""
        self.synced = HEADER_BYTES
        """Up to here they are on the disk."""
        self.frames: list[bytes] = []
        """What was written since the last sync, in case that one fails: then nobody knows what the disk has."""
        self.failed: list[bytes] | None = None
        """What a failed sync left in doubt, from ``synced`` on."""
        self.sealed = False
        """Nothing is written to it any more."""

    @classmethod
    def allocate(
        cls, directory: Path, number: int, size_bytes: int, *, mapped: bool, allocate: Allocate = allocate_blocks
    ) -> Segment:
        """Make a new file of zeros behind a header. Raises ``OSError`` and leaves nothing behind."""
        path = directory / f"{number:010d}{SUFFIX}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            allocate(fd, size_bytes)
            salt = int.from_bytes(os.urandom(4), "little")
            os.pwrite(fd, pack_header(number, salt), 0)
            segment = cls(path, number, salt, size_bytes, fd)
            segment.memory = _map(fd, size_bytes) if mapped else _Written(fd)
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        return segment

    # -- for the spool's thread -------------------------------------------------------------------------------

    def sync(self, sync: Sync) -> None:
        """Bring all to the disk. Raises ``OSError``, after which this file is not to be trusted."""
        sync(self._fd)

    def let_go(self) -> None:
        """Give back memory and descriptor of a sealed segment; it can still be read."""
        memory, self.memory = self.memory, None
        if memory is not None:
            memory.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Delete the file. Raises ``OSError``."""
        self.close_reading()
        self.path.unlink(missing_ok=True)

    def trim(self) -> None:
        """Give back the blocks behind the last frame."""
        os.truncate(self.path, self.written)

    # -- for readers ------------------------------------------------------------------------------------------

    def read(self, start: int, stop: int) -> bytes:
        """What lies between two offsets. Raises ``OSError``."""
        if self._read_fd < 0:
            self._read_fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        return os.pread(self._read_fd, stop - start, start)

    def note_acked(self) -> None:
        """Keep in the file how far the store has it, so that a successor need not offer it again. Best effort."""
        with suppress(OSError):
            self._note(ACKED_AT, self.acked)

    def note_limit(self) -> None:
        """Keep in the file that it was cut off at ``written``. Best effort."""
        with suppress(OSError):
            self._note(LIMIT_AT, self.written)

    def _note(self, at: int, value: int) -> None:
        if self._read_fd < 0:
            self._read_fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        os.pwrite(self._read_fd, OFFSET.pack(value), at)

    def close_reading(self) -> None:
        if self._read_fd >= 0:
            os.close(self._read_fd)
            self._read_fd = -1

    @property
    def is_done(self) -> bool:
        """Sealed, and everything in it is in the store."""
        return self.sealed and self.acked == self.written


def _map(fd: int, size_bytes: int) -> mmap.mmap:
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
    return mmap.mmap(fd, size_bytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def open_left_behind(path: Path) -> Segment | None:
    """A segment of a dead process, to be read up to its limit or its end; ``None`` if its header is no good. Raises
    ``OSError``."""
    size_bytes = path.stat().st_size
    segment = Segment(path, -1, 0, size_bytes, -1)
    header: Header | None = parse_header(segment.read(0, HEADER_BYTES))
    if header is None:
        segment.close_reading()
        return None
    segment.number, segment.salt = header.number, header.salt
    segment.acked = max(HEADER_BYTES, header.acked)
    segment.written = min(size_bytes, header.limit) if header.limit else size_bytes
    segment.sealed = True
    return segment
