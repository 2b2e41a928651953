"""What an heir makes of a dead process's directory, and who may be one."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.accounting.directory import inherit, move_in
from proxy.accounting.frame import CLOSE, HEADER_BYTES, Scan, parse_header
from proxy.accounting.record import UsageRecord
from proxy.accounting.recovery import Estate
from proxy.accounting.spool import Spool
from proxy.errors import StoreError
from tests.fakes.spool import (
    FakeStore,
    ids_of,
    kill,
    make_ledger,
    make_record,
    make_spool,
    open_record,
    settle,
    write_records,
)


async def read_all(root: Path) -> tuple[list[UsageRecord], Estate]:
    """All rows of the one directory that can be inherited; it is left as it was found but for unused blocks."""
    home = inherit(root)
    assert home is not None
    estate = Estate(home)
    rows: list[UsageRecord] = []
    while batch := await estate.read(100):
        rows += batch
    estate.leave()
    return rows, estate


def leave_behind(root: Path, numbers: range, still_open: range) -> Path:
    """The directory of a process that died; returns its first segment."""
    spool = make_spool(root)
    write_records(spool, numbers)
    for number in still_open:
        open_record(spool, make_record(number))
    path = spool.segments[0].path
    kill(spool)
    return path


def frame_ends(data: bytes) -> list[tuple[int, bool]]:
    """Of each frame, the offset behind it and whether it closes a request."""
    header = parse_header(data)
    assert header is not None
    return [(HEADER_BYTES + frame.end, frame.kind == CLOSE) for frame in Scan(data[HEADER_BYTES:], header.salt)]


async def check_cut(root: Path, whole: Path, data: bytes, ends: list[tuple[int, bool]], at: int) -> None:
    """Cut the segment at one offset and count what an heir gets out of it."""
    copy = root / "spool" / "1-000000000000"
    copy.mkdir(parents=True)
    (copy / "lock").touch()
    (copy / whole.name).write_bytes(data[:at])
    rows, estate = await read_all(root / "spool")
    shutil.rmtree(root / "spool")
    closed = sum(closes for end, closes in ends if end <= at)
    opened = sum(not closes for end, closes in ends if end <= at)
    assert ids_of(rows) == ids_of([make_record(number) for number in range(opened)]), at
    assert [row.outcome for row in rows] == ["ok"] * closed + ["lost"] * (opened - closed), at
    last = max((end for end, _ in ends if end <= at), default=HEADER_BYTES)
    torn = at < HEADER_BYTES or any(data[last:at])
    assert bool(estate.torn) is torn, at


@pytest.mark.long
async def test_a_segment_cut_at_every_byte_gives_back_everything_before_the_cut(tmp_path: Path) -> None:
    """A torn tail costs itself; what was opened before it and not closed is lost and billed."""
    path = leave_behind(tmp_path / "dead", range(2), range(0))
    data = path.read_bytes()
    ends = frame_ends(data)
    assert len(ends) == 4

    for at in range(ends[-1][0] + 20):
        await check_cut(tmp_path, path, data, ends, at)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A segment that is nearly full."""
    path = leave_behind(tmp_path_factory.mktemp("large"), range(200), range(0))
    data = path.read_bytes()
    return SimpleNamespace(path=path, data=data, ends=frame_ends(data))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_a_large_segment_cut_anywhere_gives_back_everything_before_the_cut(
    tmp_path: Path, large: SimpleNamespace, data: st.DataObject
) -> None:
    """The same where a cut falls into any of many pieces that are read one by one."""
    at = data.draw(st.integers(0, large.ends[-1][0]))

    await check_cut(tmp_path, large.path, large.data, large.ends, at)


async def test_a_byte_that_the_disk_changed_ends_its_segment_and_not_the_next(tmp_path: Path) -> None:
    """What lies behind a bad checksum is not trusted, later segments are."""
    spool = make_spool(tmp_path)
    for part in range(5):
        write_records(spool, range(part * 150, part * 150 + 150))
        spool.upkeep.work()
    first, second = spool.segments[0], spool.segments[1]
    in_first = sum(closes for _, closes in frame_ends(first.path.read_bytes()))
    kill(spool)
    with first.path.open("r+b") as file:
        file.seek(HEADER_BYTES + 50)
        file.write(b"\xff\xfe")

    rows, estate = await read_all(tmp_path)

    assert second.path.exists()
    assert estate.torn == 1
    assert 750 - in_first <= len([row for row in rows if row.outcome == "ok"]) < 750
    assert ids_of(rows)[-1] == make_record(749).request_id


async def test_a_segment_with_a_header_of_somebody_elses_is_counted_and_passed_over(tmp_path: Path) -> None:
    """An old version's, or garbage."""
    path = leave_behind(tmp_path, range(3), range(0))
    path.write_bytes(b"garbage" * 100)

    rows, estate = await read_all(tmp_path)

    assert rows == []
    assert estate.torn == 1


async def test_a_living_process_cannot_be_inherited_and_a_dead_one_once(tmp_path: Path) -> None:
    """The kernel holds the lock as long as the process lives, and gives it to one heir."""
    living = make_spool(tmp_path, token="aaaaaaaaaaaa")
    assert inherit(tmp_path) is None
    kill(living)
    heir = inherit(tmp_path)
    assert heir is not None
    assert heir.token == "aaaaaaaaaaaa"
    assert inherit(tmp_path) is None
    heir.leave()


def test_a_directory_that_died_while_it_was_made_is_cleared_away(tmp_path: Path) -> None:
    """It has no records and no owner; one without a lock is somebody's who is just making it."""
    (tmp_path / ".new-1-abc").mkdir()
    (tmp_path / ".new-1-abc" / "lock").touch()
    (tmp_path / ".new-2-abc").mkdir()

    assert inherit(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == [".new-2-abc"]


def test_a_directory_that_is_cleared_away_under_its_maker_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An heir may come by between two of the maker's steps."""
    rename, visits = Path.rename, []

    def visited(self: Path, target: Path) -> Path:
        if not visits:
            visits.append(self)
            shutil.rmtree(self)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", visited)
    home = move_in(tmp_path, "abc")

    assert home.path.name == f"{os.getpid()}-abc"
    assert (home.path / "lock").exists()
    home.demolish()
    assert not home.path.exists()


def test_a_lock_that_was_removed_before_it_was_held_gives_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another heir was faster: it has read everything and cleared the directory away meanwhile."""
    leave_behind(tmp_path, range(3), range(0))
    (gone,) = tmp_path.iterdir()
    flock = fcntl.flock

    def late(fd: int, how: int) -> None:
        shutil.rmtree(gone)
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)

    assert inherit(tmp_path) is None


async def test_an_heir_that_dies_as_well_has_an_heir_that_starts_where_it_ended(tmp_path: Path) -> None:
    """Nothing is removed before the lost rows are written; what was acknowledged is not offered again."""
    leave_behind(tmp_path, range(150), range(500, 503))
    first = inherit(tmp_path)
    assert first is not None
    estate = Estate(first)
    batch = await estate.read(100)
    await estate.acknowledge()
    estate.leave()

    rows, _ = await read_all(tmp_path)

    assert ids_of(batch + rows) == ids_of([make_record(n) for n in (*range(150), *range(500, 503))])


async def test_the_unused_blocks_of_the_dead_are_given_back_while_the_store_is_away(tmp_path: Path) -> None:
    """A process that crashes again and again must not fill the disk with zeros."""
    path = leave_behind(tmp_path, range(3), range(0))

    await read_all(tmp_path)

    assert path.stat().st_size < 2000


async def test_leases_of_the_dead_are_given_back_after_their_rows_are_stored_and_before_the_files_go(
    tmp_path: Path,
) -> None:
    """And again, if that fails."""
    dead = make_spool(tmp_path, token="feedfeedfeed")
    write_records(dead, range(5))
    open_record(dead, make_record(9))
    kill(dead)
    spool, store = make_spool(tmp_path), FakeStore()
    told: list[tuple[str, int]] = []
    answers = iter([StoreError("unavailable"), None])

    async def on_dead(token: str) -> None:
        told.append((token, len(store.rows)))
        if (error := next(answers)) is not None:
            raise error

    ledger = make_ledger(tmp_path, spool, store, on_dead=on_dead)
    await ledger.step()
    await ledger.step()
    assert ledger.errors == {"unavailable": 1}
    await settle(ledger)

    assert told == [("feedfeedfeed", 6), ("feedfeedfeed", 6)]
    assert (ledger.adopted, ledger.recovered, ledger.lost) == (1, 5, 1)
    assert inherit(tmp_path) is None
    assert not dead.segments[0].path.parent.exists()
    spool.close()


async def test_several_processes_share_a_directory_of_spools(tmp_path: Path) -> None:
    """Each has its own; the living inherit from the dead and nobody from the living."""
    one, two, three = (make_spool(tmp_path, token=f"{n:012x}") for n in range(3))
    for index, spool in enumerate((one, two, three)):
        write_records(spool, range(index * 10, index * 10 + 10))
    kill(one)
    store = FakeStore()
    ledgers = [make_ledger(tmp_path, spool, store) for spool in (two, three)]
    for ledger in ledgers:
        await settle(ledger)

    assert sorted(store.rows) == sorted(ids_of([make_record(n) for n in range(30)]))
    assert sorted(ledger.adopted for ledger in ledgers) == [0, 1]
    for spool in (two, three):
        spool.close()


async def test_a_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    """Files are told apart by numbers and owners by locks: times are data."""
    spool: Spool = make_spool(tmp_path)
    for number, at in enumerate((1e9, -5.0, 4e9, 0.0)):
        record = make_record(number, at=at)
        open_record(spool, record)
        spool.close_record(record)
    for path in spool.segments[0].path.parent.iterdir():
        os.utime(path, (0, 0))
    kill(spool)

    rows, _ = await read_all(tmp_path)

    assert [row.at for row in rows] == [1e9, -5.0, 4e9, 0.0]
