"""The ring on disk, so that a process can start while the database is away.

What is written holds no key, only digests of keys under the pepper and what the operator said about them, sealed
under a secret derived from the pepper. It counts for as long as a key in memory would: from when the database last
vouched for it, ``stale_s`` and no longer.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final, Protocol

from proxy.access.keyring import Keyring
from proxy.access.sealed import seal, unseal
from proxy.clock import Clock
from proxy.config.keypack import KeySnapshot, pack, unpack_snapshot

FILE_NAME: Final = "keys.snapshot"
MAX_BYTES: Final = 256 << 20
_LABEL: Final = b"key-snapshot"
_CLOCKS_DIFFER_S: Final = 60.0


class Log(Protocol):
    """What the snapshot needs of a logger."""

    def warning(self, event: str, /, **fields: Any) -> object: ...

    def info(self, event: str, /, **fields: Any) -> object: ...


class SnapshotFile:
    """One ring's file. `tick` is a duty of the janitor."""

    # Mutable state: _task is the write in the air, _written_for the confirmation that the file shows; written by
    # tick and close. The counters.
    def __init__(
        self,
        ring: Keyring,
        path: Path,
        secret: bytes,
        clock: Clock,
        log: Log,
        *,
        database: str,
        every_s: float = 60.0,
    ) -> None:
        """``database`` is told apart from others by any text; it is kept as it is, so it must hold no password."""
        self._ring = ring
        self._path = path
        self._secret = secret
        self._clock = clock
        self._log = log
        self._database = database
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        self._written_for = -float("inf")
        self.writes = 0
        self.failures = 0

    def restore(self) -> int:
        """Fill the ring from the file, at start, before anybody is served; returns the number of keys."""
        snapshot = self._read()
        if snapshot is None or snapshot.database != self._database:
            return 0
        age_s = self._clock.wall() - snapshot.confirmed_wall
        if not -_CLOCKS_DIFFER_S <= age_s < self._ring.tuning.stale_s:
            return 0
        self._ring.restore(snapshot.records, snapshot.version, self._clock.now() - max(0.0, age_s))
        self._log.info("keys_restored", keys=len(snapshot.records), age_s=round(age_s, 1), version=snapshot.version)
        return len(snapshot.records)

    def tick(self) -> None:
        """Write if the database has vouched for the ring anew, and not more often than every ``every_s`` seconds."""
        confirmed_at = self._ring.confirmed_at
        due = confirmed_at - self._written_for >= self._every_s
        if due and (self._task is None or self._task.done()):
            self._written_for = confirmed_at
            self._task = asyncio.get_running_loop().create_task(self._write(self._snapshot()))

    async def close(self) -> None:
        """Write what is confirmed now, for the next start."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        if self._ring.confirmed_at > self._written_for:
            await self._write(self._snapshot())

    def _snapshot(self) -> KeySnapshot:
        ring = self._ring
        confirmed_wall = self._clock.wall() - (self._clock.now() - ring.confirmed_at)
        return KeySnapshot(self._database, ring.version, confirmed_wall, ring.records())

    async def _write(self, snapshot: KeySnapshot) -> None:
        try:
            await asyncio.to_thread(self._put, snapshot)
            self.writes += 1
        except OSError as error:
            self.failures += 1
            self._log.warning("key_snapshot_failed", path=str(self._path), why=error.strerror or str(error))

    def _put(self, snapshot: KeySnapshot) -> None:
        """Replace the file: old or new, never half."""
        data = seal(self._secret, _LABEL, pack(snapshot))
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        finally:
            draft.unlink(missing_ok=True)

    def _read(self) -> KeySnapshot | None:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._log.warning("key_snapshot_unreadable", path=str(self._path), why=error.strerror or str(error))
            return None
        payload = unseal(self._secret, _LABEL, data) if len(data) <= MAX_BYTES else None
        try:
            if payload is not None:
                return unpack_snapshot(payload)
        except ValueError:
            pass  # authentic, yet of another release
        self._log.warning("key_snapshot_refused", path=str(self._path), why="not written with this pepper")
        return None
