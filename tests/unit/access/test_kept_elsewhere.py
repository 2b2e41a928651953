"""Keys outside the process: the snapshot on disk and the level that processes share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.keyring import Keyring
from proxy.access.levels import Reading, Tuning
from proxy.access.sealed import seal, unseal
from proxy.access.sharedkeys import KeyCodec, SharedKeyring
from proxy.access.snapshot import FILE_NAME, SnapshotFile
from proxy.cache.memory import BoundedMemory
from proxy.cache.recording import Codec
from proxy.cache.shared import AiocacheShared
from proxy.errors import Kind, ProxyError, StoreError
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks
from tests.fakes.keys import DIGESTER, FakeKeys, QuietLog, make_token

SECRET = b"a secret of the snapshot's own"
TOKEN = make_token(1)


@given(st.binary(max_size=200), st.binary(max_size=20), st.integers(0, 10_000), st.integers(1, 255))
def test_a_sealed_text_with_one_changed_byte_is_not_ours(
    payload: bytes, label: bytes, place: int, change: int
) -> None:
    """Nor is one under another label or secret, or one that was cut."""
    data = bytearray(seal(SECRET, label, payload))
    assert unseal(SECRET, label, bytes(data)) == payload
    assert unseal(SECRET, label + b"x", bytes(data)) is None
    assert unseal(SECRET + b"x", label, bytes(data)) is None
    assert unseal(SECRET, label, bytes(data[:-1])) is None
    data[place % len(data)] ^= change

    assert unseal(SECRET, label, bytes(data)) is None


# -- the snapshot --------------------------------------------------------------------------------------------


class Process:
    """One life of a process over the same state directory."""

    def __init__(self, clock: FrozenClock, path: Path, keys: FakeKeys, database: str = "pg") -> None:
        self.clock, self.keys, self.log = clock, keys, QuietLog()
        self.ring = Keyring(DIGESTER, keys, clock, Tuning())
        self.file = SnapshotFile(self.ring, path / FILE_NAME, SECRET, clock, self.log, database=database)

    async def ask(self, token: bytes = TOKEN) -> str:
        held = self.ring.find(token, self.clock.now()) or await self.ring.fetch(token)
        return held.record.id


@pytest.fixture
async def written(frozen_clock: FrozenClock, tmp_path: Path) -> FakeKeys:
    """A snapshot of two keys, confirmed now, and a database that is away since."""
    keys = FakeKeys()
    first = Process(frozen_clock, tmp_path, keys)
    first.ring.apply(keys.put(TOKEN))
    first.ring.apply(keys.put(make_token(2)))
    first.ring.confirmed(2, frozen_clock.now())
    await first.file.close()
    keys.error = StoreError("unavailable")
    return keys


async def test_a_process_starts_without_its_database_and_serves_what_was_known(
    frozen_clock: FrozenClock, tmp_path: Path, written: FakeKeys
) -> None:
    """Known keys get in, unknown ones are told to come back: a sidecar survives a restart in an outage."""
    frozen_clock.advance(600)
    process = Process(frozen_clock, tmp_path, written)

    assert process.file.restore() == 2
    assert await process.ask() == "key_0000000000000000"
    with pytest.raises(ProxyError, check=lambda error: error.kind is Kind.AUTH_UNAVAILABLE):
        await process.ask(make_token(3))


async def test_a_snapshot_counts_no_longer_than_a_key_in_memory_would(
    frozen_clock: FrozenClock, tmp_path: Path, written: FakeKeys
) -> None:
    """A restart does not prolong what the operator bounded."""
    frozen_clock.advance(899)
    process = Process(frozen_clock, tmp_path, written)
    process.file.restore()
    await process.ask()
    frozen_clock.advance(1)
    with pytest.raises(ProxyError, check=lambda error: error.kind is Kind.AUTH_UNAVAILABLE):
        await process.ask()

    assert Process(frozen_clock, tmp_path, written).file.restore() == 0


async def test_a_revocation_behind_the_snapshot_is_applied_when_the_database_is_back(
    frozen_clock: FrozenClock, tmp_path: Path, written: FakeKeys
) -> None:
    """The feed goes on from the snapshot's version."""
    process = Process(frozen_clock, tmp_path, written)
    process.file.restore()
    written.error = None
    written.put(TOKEN, revoked_at=1.0)
    changes = await written.changes_since(process.ring.version)
    for record in changes.keys:
        process.ring.apply(record)

    assert [record.version for record in changes.keys] == [3]
    held = process.ring.find(TOKEN, frozen_clock.now())
    assert held is not None
    assert held.record.revoked_at


@pytest.mark.parametrize("damage", ["byte", "cut", "empty", "other_pepper", "other_database", "future"])
async def test_a_snapshot_that_is_not_ours_is_left_alone(
    frozen_clock: FrozenClock, tmp_path: Path, written: FakeKeys, damage: str
) -> None:
    """Whoever can write the file can not make keys."""
    path = tmp_path / FILE_NAME
    data = path.read_bytes()
    process = Process(frozen_clock, tmp_path, written, "other" if damage == "other_database" else "pg")
    if damage == "byte":
        path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif damage in ("cut", "empty"):
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    elif damage == "other_pepper":
        process.file = SnapshotFile(process.ring, path, b"x" * 32, frozen_clock, process.log, database="pg")
    elif damage == "future":
        frozen_clock.set_wall(frozen_clock.wall() - 3600)

    assert process.file.restore() == 0
    assert len(process.ring) == 0


async def test_the_snapshot_is_for_its_owner_and_holds_no_key(tmp_path: Path, written: FakeKeys) -> None:
    """Only digests, which are of no use without the pepper."""
    path = tmp_path / FILE_NAME

    assert path.stat().st_mode & 0o777 == 0o600
    assert TOKEN not in path.read_bytes()
    assert os.listdir(tmp_path) == [FILE_NAME]


async def test_the_snapshot_is_written_when_keys_were_confirmed_and_not_more_often(
    frozen_clock: FrozenClock, tmp_path: Path
) -> None:
    """At most once a minute, behind the loop."""
    keys = FakeKeys()
    process = Process(frozen_clock, tmp_path, keys)
    process.file.tick()
    assert process.file._task is None
    for _ in range(24):
        frozen_clock.advance(5)
        process.ring.confirmed(1, frozen_clock.now())
        process.file.tick()
        if process.file._task is not None:
            await process.file._task

    assert process.file.writes == 2
    await process.file.close()


async def test_a_full_disk_is_told_and_stops_nothing(frozen_clock: FrozenClock, tmp_path: Path) -> None:
    """Keys are served from memory as before."""
    process = Process(frozen_clock, tmp_path / "missing", FakeKeys())
    process.ring.confirmed(1, frozen_clock.now())
    await process.file.close()

    assert process.file.failures == 1
    assert process.log.names == ["key_snapshot_failed"]


# -- the shared level ----------------------------------------------------------------------------------------


def make_level(clock: FrozenClock, backend: BoundedMemory, secret: bytes = SECRET) -> SharedKeyring:
    codec = KeyCodec(secret, clock, 30.0)
    assert {"encode", "decode"} <= set(dir(Codec))
    level = AiocacheShared(backend, codec, clock)  # type: ignore[arg-type]
    return SharedKeyring(level, b"names", 30.0)


async def test_a_reading_passes_through_the_shared_level_with_its_age(frozen_clock: FrozenClock) -> None:
    """Another process knows when the database was asked, by wall time."""
    backend = BoundedMemory(1 << 20, frozen_clock)
    record = FakeKeys().put(TOKEN, models=("a", "b*"), tags=("x",))
    await make_level(frozen_clock, backend).put(Reading(record, 7, frozen_clock.now()))
    frozen_clock.advance(10)
    found = await make_level(frozen_clock, backend).get(record.digest)

    assert found == Reading(record, 7, frozen_clock.now() - 10)
    frozen_clock.advance(20)
    assert await make_level(frozen_clock, backend).get(record.digest) is None


async def test_nothing_is_taken_from_the_shared_level_that_was_not_sealed_here(frozen_clock: FrozenClock) -> None:
    """Write access to it is no way to make keys: forged, swapped and garbled values are misses."""
    backend = BoundedMemory(1 << 20, frozen_clock)
    keys = FakeKeys()
    one, other = keys.put(TOKEN), keys.put(make_token(2))
    level = make_level(frozen_clock, backend)
    await level.put(Reading(one, 1, frozen_clock.now()))
    await level.put(Reading(other, 1, frozen_clock.now()))
    assert await make_level(frozen_clock, backend, b"other pepper").get(one.digest) is None
    others, ones = list(backend._held)  # in the order of their last use
    assert one.digest.hex() not in others + ones
    kept, ends = backend._held[ones]
    backend._held[ones], backend._held[others] = backend._held[others], (b"garbage", ends)

    assert await level.get(one.digest) is None
    assert await level.get(other.digest) is None
    backend._held[ones] = (kept, ends)
    assert await level.get(one.digest) is not None


async def test_two_processes_share_a_look_up_through_the_cache_that_is_configured(frozen_clock: FrozenClock) -> None:
    """Through the same seam as answers."""
    backend, keys = BoundedMemory(1 << 20, frozen_clock), FakeKeys()
    keys.put(TOKEN)
    for _ in range(2):
        ring = Keyring(DIGESTER, keys, frozen_clock, shared=make_level(frozen_clock, backend))
        assert (await ring.fetch(TOKEN)).record.id
        await run_ticks()

    assert keys.finds == 1
