"""How many workers a container is worth: its own limit counts, the host's cores do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.workers.cpus import count_workers, read_cpu_limit


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "ascii")


def count(tmp_path: Path, *, usable: int = 64, online: int = 64, contained: bool = True) -> int:
    return count_workers(
        tmp_path / "fs",
        tmp_path / "membership",
        usable=lambda: usable,
        online=lambda: online,
        contained=lambda: contained,
    )


@pytest.mark.parametrize(
    ("limit", "workers"), [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("50000", 1)]
)
def test_a_limit_of_version_2_is_rounded_up(tmp_path: Path, limit: str, workers: int) -> None:
    """A pod with 1.5 processors gets two workers, whatever the node has."""
    write(tmp_path / "membership", "0::/pod/container\n")
    write(tmp_path / "fs/pod/container/cpu.max", limit + "\n")

    assert count(tmp_path) == workers


def test_the_least_limit_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    """A container is held by its pod's limit as well."""
    write(tmp_path / "membership", "0::/pod/container\n")
    write(tmp_path / "fs/pod/container/cpu.max", "max 100000\n")
    write(tmp_path / "fs/pod/cpu.max", "300000 100000\n")
    write(tmp_path / "fs/cpu.max", "800000 100000\n")

    assert read_cpu_limit(tmp_path / "fs", tmp_path / "membership") == 3.0


def test_inside_a_container_the_root_is_its_own_group(tmp_path: Path) -> None:
    """The path is the host's and does not exist here."""
    write(tmp_path / "membership", "0::/kubepods/burstable/pod1/abc\n")
    write(tmp_path / "fs/cpu.max", "400000 100000\n")

    assert count(tmp_path) == 4


@pytest.mark.parametrize(("quota", "workers"), [("250000", 3), ("-1", 1)])
def test_a_limit_of_version_1_counts_as_well(tmp_path: Path, quota: str, workers: int) -> None:
    """-1 is none."""
    write(tmp_path / "membership", "12:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n")
    write(tmp_path / "fs/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", quota)
    write(tmp_path / "fs/cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000")

    assert count(tmp_path) == workers


def test_a_set_of_processors_is_a_limit(tmp_path: Path) -> None:
    """And the lesser one counts where there are two."""
    write(tmp_path / "membership", "0::/\n")
    assert count(tmp_path, usable=3) == 3
    write(tmp_path / "fs/cpu.max", "800000 100000\n")
    assert count(tmp_path, usable=3) == 3


def test_a_container_without_a_limit_is_one_worker_and_a_machine_all_its_processors(tmp_path: Path) -> None:
    """64 processes in a small pod on a large node would be nobody's wish."""
    assert count(tmp_path) == 1
    assert count(tmp_path, contained=False, usable=8, online=8) == 8
