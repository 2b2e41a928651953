"""Usage records that the store refuses: kept in a file, one JSON object a line, for somebody to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from proxy.accounting.record import UsageRecord

MAX_BYTES: Final = 64 << 20


class RefusedFile:
    """Appends; bounded, and counts what found no room."""

    # Mutable: the counters, written by `add`, of which one runs at a time.
    __slots__ = ("added", "dropped", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.added = 0
        self.dropped = 0

    def add(self, records: Sequence[UsageRecord]) -> None:
        """Keep them; on the disk when this returns. Raises ``OSError``."""
        if not records:
            return
        lines = b"".join(msgspec.json.encode(msgspec.structs.asdict(record)) + b"\n" for record in records)
        with self.path.open("ab") as file:
            if file.tell() + len(lines) > MAX_BYTES:
                self.dropped += len(records)
                return
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self.added += len(records)
