"""The file by which ``sameflight restart`` finds a running parent: who it is, and how its last restart went.

The parent holds the file locked as long as it lives, so a number in it that belongs to some other process by now is
never sent a signal.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, Final

FILE_NAME: Final = "parent.json"
_TRIES: Final = 5


class ParentThereError(Exception):
    """Another parent works in this state directory."""


class StatusFile:
    """Written by the one parent of a state directory. Raises ``ParentThereError`` or ``OSError``."""

    # Mutable: the descriptor, until `close`.
    def __init__(self, state_dir: str | Path) -> None:
        path = Path(state_dir) / FILE_NAME
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _lock(self._fd):
            os.close(self._fd)
            raise ParentThereError(f"another parent works in {path.parent}")

    def write(self, facts: dict[str, Any]) -> None:
        """Replace what it says; whoever reads meanwhile may see no JSON and reads again."""
        text = json.dumps({"pid": os.getpid(), **facts}).encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text, 0)

    def close(self) -> None:
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def read_status(state_dir: str | Path) -> dict[str, Any] | None:
    """What the parent of this state directory says; ``None`` if there is none alive, ``{}`` while it writes."""
    try:
        fd = os.open(Path(state_dir) / FILE_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            facts = _decode(os.pread(fd, 1 << 16, 0))
            return facts if isinstance(facts.get("pid"), int) else {}
        return None
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    """Patiently: somebody may just be looking whether the file is locked."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def _decode(text: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}
