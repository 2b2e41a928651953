"""Processes that are killed while they record usage, and disks that are really full."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy.accounting.spool import Spool
from proxy.store.open import open_store
from proxy.store.sqlite import FILE
from tests.fakes.spool import FakeStore, ids_of, make_ledger, make_record, make_spool, settle, write_records

REPO = Path(__file__).parents[2]


def write_until_killed(state_dir: Path, token: str, after: int, *, flushes: bool) -> int:
    """Run a writer, kill it once it has said ``after`` numbers; returns the last number that it has said."""
    words = [sys.executable, "-m", "tests.fakes.spool_writer", str(state_dir), token, "flush" if flushes else "keep"]
    with subprocess.Popen(words, cwd=REPO, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= after:
                break
        os.kill(writer.pid, signal.SIGKILL)
        rest = [line for line in writer.stdout if line.endswith(b"\n")]
        return int(rest[-1] if rest else line)


def expected(token: str, said: int) -> set[str]:
    return {f"req_{token}{number:08x}" for number in range(1, said + 1)}


def check(rows: list[tuple[str, str]], token: str, said: int) -> None:
    """Everything that was said is there as it ended; beyond that at most the one request that nobody heard of."""
    ids = [request_id for request_id, _ in rows if request_id[4:16] == token]
    assert len(ids) == len(set(ids))
    missing = expected(token, said) - {request_id for request_id, outcome in rows if outcome == "ok"}
    assert missing == set()
    assert set(ids) - expected(token, said) <= {f"req_{token}{said + 1:08x}"}


async def kill_and_recover(root: Path, kills: int, *, flushes: bool) -> None:
    """Each process finds what the ones before it have left; a last one finds the rest."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    said = {}
    for number in range(kills):
        token = f"{number:012x}"
        said[token] = await asyncio.to_thread(
            write_until_killed, root, token, chance.randrange(1, 3000), flushes=flushes
        )
    store = open_store("", root)
    await store.open()
    heir = make_spool(root / "spool", token="ffffffffffff")
    ledger = make_ledger(root / "spool", heir, store)
    await settle(ledger, 10_000)
    assert ledger.errors == {}
    assert ledger.unreadable == 0
    heir.close()
    await store.close()
    with closing(sqlite3.connect(root / FILE)) as database:
        rows = database.execute("SELECT request_id, outcome FROM usage").fetchall()
    for token, number in said.items():
        check(rows, token, number)
    assert sum(said.values()) <= len(rows) <= sum(said.values()) + kills
    assert os.listdir(root / "spool") == []


@pytest.mark.long
async def test_a_process_that_is_killed_at_any_moment_loses_no_record_that_it_has_told_of(tmp_path: Path) -> None:
    """Three kills, one heir."""
    await kill_and_recover(tmp_path, 3, flushes=False)


async def test_a_process_that_is_killed_while_it_flushes_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The store has some of it, the spool the rest, and both some of it."""
    await kill_and_recover(tmp_path, 2, flushes=True)


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("kills", "flushes"), [(100, False), (60, True)])
async def test_a_hundred_kills_lose_and_double_nothing(tmp_path: Path, kills: int, flushes: bool) -> None:
    """Often enough to meet torn records and half-moved segments."""
    await kill_and_recover(tmp_path, kills, flushes=flushes)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_disk_that_is_really_full_costs_no_record_while_memory_lasts(small_disk: Path) -> None:
    """Somebody else fills the disk: no signal kills the process, the ring takes over, the store gets everything."""
    spool = make_spool(small_disk / "spool")
    (small_disk / "filler").write_bytes(bytes(small_disk_free(small_disk)))
    records = write_records(spool, range(1500))
    spool.upkeep.work()
    assert "No space left" in spool.trouble
    assert len(spool.ring) > 0

    store = FakeStore()
    await settle(make_ledger(small_disk / "spool", spool, store))
    assert sorted(store.rows) == sorted(ids_of(records))
    assert spool.dropped == 0
    (small_disk / "filler").unlink()
    for _ in range(20):
        spool.upkeep.work()
    write_records(spool, range(5000, 5300))
    assert (spool.trouble, len(spool.ring)) == ("", 0)
    spool.close()


def small_disk_free(path: Path) -> int:
    about = os.statvfs(path)
    return about.f_bavail * about.f_frsize


async def test_a_full_disk_that_is_full_from_the_start_is_served_from_memory(small_disk: Path) -> None:
    """Not even a directory can be made."""
    (small_disk / "filler").write_bytes(bytes(small_disk_free(small_disk)))
    spool = Spool(small_disk / "spool", segment_bytes=64 * 1024)
    spool.start()
    write_records(spool, range(10))
    store = FakeStore()

    await settle(make_ledger(small_disk / "spool", spool, store))
    assert list(store.rows) == ids_of([make_record(n) for n in range(10)])
    spool.close()
