"""A part of a core for a process, so that what loads it has room. Needs Linux with control groups that may be written
(root, outside most containers)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_PERIOD_US: Final = 10_000
_V1: Final = Path("/sys/fs/cgroup/cpu")
_V2: Final = Path("/sys/fs/cgroup")


class Quota:
    """A control group that has a part of a core. Use as a context manager; it must be empty at the end."""

    def __init__(self, name: str, share: float) -> None:
        old = (_V1 / "cpu.cfs_quota_us").exists()
        self._path = (_V1 if old else _V2) / name
        quota_us = int(share * _PERIOD_US)
        self._lines = (
            (("cpu.cfs_period_us", f"{_PERIOD_US}"), ("cpu.cfs_quota_us", f"{quota_us}"))
            if old
            else (("cpu.max", f"{quota_us} {_PERIOD_US}"),)
        )

    def __enter__(self) -> Quota:
        """Raises ``OSError`` where groups cannot be made; then none is left."""
        self._path.mkdir()
        try:
            for name, text in self._lines:
                (self._path / name).write_text(text, "ascii")
        except OSError:
            self._path.rmdir()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        for _ in range(100):
            with suppress(OSError):
                self._path.rmdir()
                return
            time.sleep(0.05)

    def hold(self, pid: int) -> None:
        """Put a process in it, with all its threads."""
        (self._path / "cgroup.procs").write_text(str(pid), "ascii")


@contextmanager
def part_of_a_core(share: float) -> Iterator[Quota | None]:
    """A quota for whatever is put into it; ``None`` where this machine lets nobody make one."""
    quota = Quota(f"loadtests-{os.getpid()}", share)
    try:
        quota.__enter__()
    except OSError:
        yield None
        return
    try:
        yield quota
    finally:
        quota.__exit__()
