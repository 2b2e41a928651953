"""What the kernel says about this process, read from /proc when somebody asks."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_PROC = Path("/proc")


def cpu_seconds() -> float:
    """User and system time of all threads."""
    return time.process_time()


def resident_bytes() -> float:
    pages = int((_PROC / "self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize()


def open_fds() -> float:
    # One of them is the directory being listed.
    return len(os.listdir(_PROC / "self/fd")) - 1


def max_fds() -> float:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def start_time() -> float:
    """Seconds since the epoch."""
    # The command, in brackets, may hold spaces and brackets; field 22 counts from the last one.
    fields = (_PROC / "self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    boot = next(line for line in (_PROC / "stat").read_text("ascii").splitlines() if line.startswith("btime "))
    return int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def readers() -> Mapping[str, Callable[[], float]]:
    """Name of each ``process_…`` series → how it is read; without /proc only what works without."""
    found: dict[str, Callable[[], float]] = {"process_cpu_seconds_total": cpu_seconds, "process_max_fds": max_fds}
    if (_PROC / "self/statm").exists():
        started = start_time()
        found["process_resident_memory_bytes"] = resident_bytes
        found["process_open_fds"] = open_fds
        found["process_start_time_seconds"] = lambda: started
    return found
