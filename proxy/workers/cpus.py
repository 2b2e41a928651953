"""How many processors a container may use, for ``--workers auto``.

The limit is the control group's (version 2: ``cpu.max``; version 1: ``cpu.cfs_quota_us``; the lowest on the way to
the root) or the set of processors that the process may run on, whichever is less. A container without either says
nothing about how much of the host is meant for it, so it counts as one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")
_MARKS: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))


def count_workers(
    cgroups: Path = _CGROUPS,
    membership: Path = _MEMBERSHIP,
    *,
    usable: Callable[[], int] | None = None,
    online: Callable[[], int | None] = os.cpu_count,
    contained: Callable[[], bool] | None = None,
) -> int:
    """Workers for this container: its limit rounded up, at least one."""
    may_use = (usable or usable_cpus)()
    limit = read_cpu_limit(cgroups, membership)
    if limit:
        return max(1, min(math.ceil(limit), may_use))
    if may_use >= (online() or 1) and (contained or is_contained)():
        return 1
    return max(1, may_use)


def usable_cpus() -> int:
    """Processors that this process may be scheduled on (cpuset, affinity)."""
    count = getattr(os, "process_cpu_count", None)
    if count is not None:
        return int(count() or 1)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_contained(env: Mapping[str, str] | None = None) -> bool:
    """Whether this process runs in a container, as far as one can tell."""
    return "KUBERNETES_SERVICE_HOST" in (os.environ if env is None else env) or any(mark.exists() for mark in _MARKS)


def read_cpu_limit(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float:
    """The least CPU limit of the control groups that this process is in, in processors; 0 for none."""
    try:
        lines = membership.read_text("utf-8").splitlines()
    except OSError:
        return 0.0
    limits = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            limits += [_read_v2(group) for group in _up(cgroups, path)]
        elif "cpu" in controllers.split(","):
            limits += [_read_v1(group) for root in ("cpu", "cpu,cpuacct") for group in _up(cgroups / root, path)]
    return min((limit for limit in limits if limit), default=0.0)


def _up(root: Path, path: str) -> list[Path]:
    """The group and all above it. In a container the path is often the host's and does not exist; the root then is
    the container's own group."""
    group = root / path.lstrip("/")
    return [each for each in (group, *group.parents) if each == root or root in each.parents]


def _read_v2(group: Path) -> float:
    quota, _, period = _read(group / "cpu.max").partition(" ")
    return _divide(quota, period or "100000")


def _read_v1(group: Path) -> float:
    return _divide(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us") or "100000")


def _divide(quota: str, period: str) -> float:
    """0 for ``max``, -1 or what is no number."""
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else 0.0


def _read(file: Path) -> str:
    try:
        return file.read_text("ascii").strip()
    except (OSError, UnicodeError):
        return ""
