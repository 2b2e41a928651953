"""The share of memory in use and the steps of relief, with readings that the test makes up."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.pressure.memory import MemoryWatch, Resident, Step, read_cgroup_limit

MIB = 1 << 20


class Machine:
    """A watch whose readings are attributes."""

    def __init__(self, limit_bytes: int = 0) -> None:
        self.rss = 0.0
        self.limit = 1000 * MIB
        self.limit_reads = 0
        self.told: list[tuple[Step, float]] = []
        self.watch = MemoryWatch(
            lambda step, haste: self.told.append((step, round(haste, 2))),
            limit_bytes=limit_bytes,
            read_rss=lambda: self.rss,
            read_limit=self._read_limit,
        )

    def _read_limit(self) -> int:
        self.limit_reads += 1
        return self.limit

    def look(self, share: float) -> Step:
        self.rss = share * 1000 * MIB
        self.watch.look()
        return self.watch.step


def test_each_step_begins_at_its_share_of_the_limit() -> None:
    """RELIABILITY 5.1: 80, 88, 92, 95 and 98 %."""
    machine = Machine()
    steps = [machine.look(share) for share in (0.5, 0.799, 0.8, 0.88, 0.92, 0.95, 0.98, 1.2)]

    assert steps == [0, 0, 1, 2, 3, 4, 5, 5]


def test_a_step_ends_a_little_below_where_it_began() -> None:
    """So that it does not flicker."""
    machine = Machine()
    steps = [machine.look(share) for share in (0.81, 0.79, 0.781, 0.77, 0.79)]

    assert steps == [1, 1, 1, 0, 0]
    assert machine.watch.changes == 2


def test_relief_is_told_at_each_look_and_once_when_it_is_over() -> None:
    """Nobody is told anything while there is enough."""
    machine = Machine()
    for share in (0.1, 0.85, 0.85, 0.1, 0.1):
        machine.look(share)

    assert machine.told == [(Step.STORE_NOTHING, 0.0)] * 2 + [(Step.NONE, 0.0)]


@pytest.mark.parametrize(("share", "haste"), [(0.5, 0.0), (0.88, 0.0), (0.915, 0.5), (0.95, 1.0), (1.5, 1.0)])
def test_haste_grows_from_the_second_step_to_the_fourth(share: float, haste: float) -> None:
    """Linearly, as idle time-outs are shortened."""
    machine = Machine()
    machine.look(share)

    assert round(machine.watch.haste, 6) == haste


def test_without_a_limit_no_step_is_ever_taken() -> None:
    """On a machine of one's own the kernel decides."""
    machine = Machine()
    machine.limit = 0

    assert machine.look(50.0) is Step.NONE
    assert machine.told == []


def test_a_limit_that_changes_is_noticed() -> None:
    """Containers are resized while they run; the file is not read at each look for that."""
    machine = Machine()
    machine.look(0.5)
    machine.limit = 500 * MIB
    steps = [machine.look(0.5) for _ in range(41)]

    assert (steps[0], steps[-1]) == (Step.NONE, Step.DROP)
    assert machine.limit_reads == 2


def test_a_limit_of_the_operator_wins_over_the_control_group() -> None:
    """It is not even looked up."""
    machine = Machine(limit_bytes=2000 * MIB)

    assert machine.look(0.99) is Step.NONE
    assert machine.limit_reads == 0


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "ascii")


def test_the_least_limit_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    """Version 2: a pod's limit may be lower than its container's."""
    write(tmp_path / "membership", "0::/pod/container\n")
    write(tmp_path / "groups/pod/container/memory.max", "max\n")
    write(tmp_path / "groups/pod/memory.max", "2000\n")
    write(tmp_path / "groups/memory.max", "3000\n")

    assert read_cgroup_limit(tmp_path / "groups", tmp_path / "membership") == 2000


def test_version_one_has_a_tree_for_memory(tmp_path: Path) -> None:
    """And says "no limit" by a number near 2^63."""
    write(tmp_path / "membership", "4:cpu,memory:/a/b\n9:name=systemd:/\n0::/\n")
    write(tmp_path / "groups/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n")
    write(tmp_path / "groups/memory/a/memory.limit_in_bytes", "4096\n")

    assert read_cgroup_limit(tmp_path / "groups", tmp_path / "membership") == 4096


def test_the_path_of_the_host_is_not_there_in_a_container(tmp_path: Path) -> None:
    """The root of what is mounted is the container's own group then."""
    write(tmp_path / "membership", "0::/kubepods/pod1/abc\n")
    write(tmp_path / "groups/memory.max", "5000\n")

    assert read_cgroup_limit(tmp_path / "groups", tmp_path / "membership") == 5000


@pytest.mark.parametrize("membership", ["", "nonsense", "0::/\n", "4:memory:/x\n"])
def test_what_cannot_be_read_is_no_limit(tmp_path: Path, membership: str) -> None:
    """No control groups, no files, no numbers."""
    write(tmp_path / "membership", membership)
    write(tmp_path / "groups/memory.max", "a lot\n")

    assert read_cgroup_limit(tmp_path / "groups", tmp_path / "membership") == 0
    assert read_cgroup_limit(tmp_path / "groups", tmp_path / "missing") == 0


def test_resident_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    """The second number of statm, in pages; 0 where there is no such file."""
    write(tmp_path / "statm", "1000 25 10 1 0 100 0\n")
    reader, none = Resident(str(tmp_path / "statm")), Resident(str(tmp_path / "missing"))
    found = reader.read(), none.read()
    reader.close()
    reader.close()

    assert found[0] in (25 * 4096, 25 * 16384, 25 * 65536)
    assert found[1] == 0.0
    assert reader.read() == 0.0
