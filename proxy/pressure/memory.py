"""How near the process is to the memory it may have, and which step of relief that asks for.

The limit is the control group's (version 2 or 1, the lowest on the way to the root), as in a container, or what the
operator says. Without either there is none and no step is ever taken. What a step does is the matter of whoever is
told: each is begun at a share of the limit and ended a little below it, so that none flickers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_NO_LIMIT: Final = 1 << 60
"""Version 1 says "none" by a number near 2^63."""
_SLACK: Final = 0.02
_LOOK_AGAIN: Final = 40
"""Looks after which the limit is read again: containers are resized while they run."""


class Step(IntEnum):
    """What is done, each beside those before it."""

    NONE = 0
    STORE_NOTHING = 1
    """Nothing new is cached, and caches shrink."""
    HURRY = 2
    """Idle connections are closed, the sooner the less is left."""
    PART = 3
    """Connections end with the answer they are at."""
    REFUSE = 4
    """New requests are refused."""
    DROP = 5
    """The answers that hold most are broken off."""


_SHARES: Final = (0.0, 0.80, 0.88, 0.92, 0.95, 0.98)


class MemoryWatch:
    """Compares what is resident with the limit; `look` is a duty of the janitor."""

    # Mutable state, written by `look` alone: the limit, in how many looks it is read again, the step and the share.
    __slots__ = (
        "_given_bytes",
        "_left",
        "_on_step",
        "_read_limit",
        "_read_rss",
        "changes",
        "limit_bytes",
        "share",
        "step",
    )

    def __init__(
        self,
        on_step: Callable[[Step, float], object],
        *,
        limit_bytes: int = 0,
        read_rss: Callable[[], float],
        read_limit: Callable[[], int],
    ) -> None:
        """``on_step`` is told the step and the `haste`: at each look while there is a step, because relief is given
        piece by piece, and once more when it is over. ``limit_bytes`` of 0: ask ``read_limit``."""
        self._on_step = on_step
        self._given_bytes = limit_bytes
        self._read_rss = read_rss
        self._read_limit = read_limit
        self._left = 0
        self.limit_bytes = limit_bytes
        """0 for none."""
        self.step = Step.NONE
        self.share = 0.0
        self.changes = 0

    def look(self) -> None:
        """Measure and tell."""
        if not self._given_bytes:
            self._left -= 1
            if self._left < 0:
                self._left = _LOOK_AGAIN
                self.limit_bytes = self._read_limit()
        limit_bytes = self.limit_bytes
        before = self.step
        self.share = self._read_rss() / limit_bytes if limit_bytes else 0.0
        self.step = _choose(self.share, before)
        self.changes += self.step is not before
        if self.step or before:
            self._on_step(self.step, self.haste)

    @property
    def haste(self) -> float:
        """From 0 where `Step.HURRY` begins to 1 where `Step.REFUSE` does."""
        begin, end = _SHARES[Step.HURRY], _SHARES[Step.REFUSE]
        return min(1.0, max(0.0, (self.share - begin) / (end - begin)))


def _choose(share: float, before: Step) -> Step:
    step = Step.NONE
    for each in Step:
        if share >= _SHARES[each] - (_SLACK if each <= before else 0.0):
            step = each
    return step


class Resident:
    """Resident bytes of this process, by one read of an open file."""

    __slots__ = ("_file", "_page_bytes")

    def __init__(self, path: str = "/proc/self/statm") -> None:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1  # no such system: it never looks full
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    def read(self) -> float:
        if self._file < 0:
            return 0.0
        return int(os.pread(self._file, 128, 0).split()[1]) * self._page_bytes

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read_cgroup_limit(cgroups: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """The least memory limit of the control groups that this process is in, in bytes; 0 for none."""
    limits = [limit for file in _limit_files(cgroups, membership) if (limit := _read(file))]
    return min(limits, default=0)


def _limit_files(cgroups: Path, membership: Path) -> list[Path]:
    try:
        lines = membership.read_text("utf-8").splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            files += _up(cgroups, path, "memory.max")
        elif "memory" in controllers.split(","):
            files += _up(cgroups / "memory", path, "memory.limit_in_bytes")
    return files


def _up(root: Path, path: str, name: str) -> list[Path]:
    """The file in the group and in all above it. In a container the path is often the host's and does not exist; the
    root then is the container's own group."""
    group = root / path.lstrip("/")
    return [each / name for each in (group, *group.parents) if each == root or root in each.parents]


def _read(file: Path) -> int:
    try:
        text = file.read_text("ascii").strip()
    except (OSError, UnicodeError):
        return 0
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT else 0
