"""Who owns which directory of the spool: a lock that the kernel takes away from a process when it dies.

Each process has one directory below ``spool/``, named by its process id and a token of its own, and holds its
``lock`` file locked as long as it lives. Whoever gets that lock has inherited the directory. A directory is made
under a hidden name and renamed once it is locked, so that nobody inherits one that is just being made.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from proxy.accounting.segment import SUFFIX

_LOCK: Final = "lock"
_HIDDEN: Final = ".new-"
_TRIES: Final = 8


class Home:
    """A directory that this process owns, until `leave` or its death."""

    # Mutable: `_fd`, the descriptor that holds the lock; -1 once it was left.
    __slots__ = ("_fd", "owner", "path")

    def __init__(self, path: Path, owner: str, fd: int) -> None:
        self.path = path
        self.owner = owner
        """``<process id>-<token>``."""
        self._fd = fd

    @property
    def token(self) -> str:
        """What the owner called itself."""
        return self.owner.rpartition("-")[2]

    def segments(self) -> list[Path]:
        """Its files, oldest first."""
        return sorted(self.path.glob(f"*{SUFFIX}"))

    def leave(self) -> None:
        """Give the ownership up; what is left in the directory is for others."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def demolish(self) -> None:
        """Remove the directory with all that is in it, and leave it. Raises ``OSError``."""
        _demolish(self.path)
        self.leave()


def move_in(root: Path, token: str) -> Home:
    """Make a directory of this process's own below ``root``; ``token`` is the process's own and a part of its name.
    Raises ``OSError``."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = f"{os.getpid()}-{token}"
    for _ in range(_TRIES):
        hidden, path = root / (_HIDDEN + owner), root / owner
        hidden.mkdir(mode=0o700)
        fd = _lock(hidden, create=True)
        if fd is None:
            continue  # somebody cleared it away between these two lines
        try:
            hidden.rename(path)
        except FileNotFoundError:
            os.close(fd)
            continue
        except OSError:
            os.close(fd)
            raise
        return Home(path, owner, fd)
    raise OSError(11, "no directory of the spool could be kept", str(root))


def inherit(root: Path, *, known: frozenset[str] = frozenset()) -> Home | None:
    """Take over a directory whose owner is dead, but for those in ``known``; ``None`` if there is none. What died
    while it was being made is removed by the way. Raises ``OSError``."""
    try:
        paths = sorted(path for path in root.iterdir() if path.is_dir() and path.name not in known)
    except FileNotFoundError:
        return None
    for path in paths:
        fd = _lock(path, create=False)
        if fd is None:
            continue
        if path.name.startswith(_HIDDEN):
            with suppress(OSError):
                _demolish(path)
            os.close(fd)
            continue
        return Home(path, path.name, fd)
    return None


def _lock(path: Path, *, create: bool) -> int | None:
    """The descriptor that holds the lock of a directory; ``None`` if somebody else has it or the directory went."""
    try:
        fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:  # else its owner has demolished it since it was opened
            return fd
    except BlockingIOError:
        pass
    except OSError:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _demolish(path: Path) -> None:
    """The lock goes last: while it is there the directory is owned."""
    for each in path.iterdir():
        if each.name != _LOCK:
            each.unlink(missing_ok=True)
    (path / _LOCK).unlink(missing_ok=True)
    path.rmdir()
