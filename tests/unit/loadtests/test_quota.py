"""What the load tests know of the machine: parts of a core, and what its host takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loadtests import machine, quota


def test_where_nobody_may_make_a_group_there_is_no_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenario runs on, with a whole core."""
    for name in ("_V1", "_V2"):
        monkeypatch.setattr(quota, name, tmp_path / "missing")
    with quota.part_of_a_core(0.5) as part:
        assert part is None


@pytest.mark.parametrize(("old", "told"), [(True, {"cpu.cfs_quota_us": "6000"}), (False, {"cpu.max": "6000 10000"})])
def test_a_quota_is_written_as_the_version_of_control_groups_wants_it(
    old: bool, told: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three fifths of each hundredth of a second."""
    monkeypatch.setattr(quota, "_V1", tmp_path)
    monkeypatch.setattr(quota, "_V2", tmp_path)
    if old:
        (tmp_path / "cpu.cfs_quota_us").touch()
    part = quota.Quota("part", 0.6)
    part.__enter__()
    part.hold(7)

    found = {each.name: each.read_text("ascii") for each in (tmp_path / "part").iterdir()}
    assert told.items() <= found.items()
    assert found["cgroup.procs"] == "7"


def test_what_the_host_kept_is_the_eighth_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all processors together; 0 where nobody says."""
    monkeypatch.setattr(machine, "_first_line", lambda _: "cpu  1 2 3 4 5 6 7 800 9 10")
    assert machine.read_stolen_s() == 800 / os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(machine, "_first_line", lambda _: "")
    assert machine.read_stolen_s() == 0.0
