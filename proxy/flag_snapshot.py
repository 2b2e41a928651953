"""The last known rules of the store on disk, so that a process that starts while the store is away does not turn on
again what somebody turned off."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final, Protocol

from proxy.config.feature_flags import SCOPES, Flag, Flags
from proxy.config.flag_changes import FlagMark, StoredFlags

FILE_NAME: Final = "flags.json"
MAX_BYTES: Final = 16 << 20
_FORM: Final = 1


class Log(Protocol):
    """What the snapshot needs of a logger."""

    def warning(self, event: str, /, **fields: Any) -> object: ...


class FlagSnapshot:
    """One file of the state directory, which all processes of a machine write: each the newest that it knows. Both
    methods wait for the disk and are called in threads. No state but counters, written by those who call."""

    def __init__(self, path: Path, log: Log, *, database: str) -> None:
        """``database`` is told apart from others by any text; it is kept as it is, so it must hold no password."""
        self._path = path
        self._log = log
        self._database = database
        self.writes = 0
        self.failures = 0

    def write(self, stored: StoredFlags) -> None:
        """Replace the file: old or new, never half. What cannot be written is logged."""
        said = {
            "form": _FORM,
            "database": self._database,
            "change": stored.mark.change,
            "at": stored.mark.at,
            "rules": [[rule.name, rule.scope, rule.subject, rule.percent] for rule in stored.flags.rules()],
        }
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(said, file)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(self._path)
            finally:
                draft.unlink(missing_ok=True)
            self.writes += 1
        except OSError as error:
            self.failures += 1
            self._log.warning("flag_snapshot_failed", path=str(self._path), why=error.strerror or str(error))

    def read(self) -> StoredFlags | None:
        """``None`` where there is none, or none of this database."""
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            return self._understand(data)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            self.failures += 1
            self._log.warning("flag_snapshot_refused", path=str(self._path), why=str(error)[:200])
            return None

    def _understand(self, data: bytes) -> StoredFlags | None:
        if len(data) > MAX_BYTES:
            raise ValueError("too large")
        said = json.loads(data)
        if said["form"] != _FORM or said["database"] != self._database:
            return None
        rules = []
        for name, scope, subject, percent in said["rules"]:
            if scope not in SCOPES or not (isinstance(name, str) and isinstance(subject, str)):
                raise ValueError("not a rule")
            rules.append(Flag(name, scope, subject, float(percent)))
        mark = FlagMark(int(said["change"]), float(said["at"]))
        return StoredFlags(Flags(rules, mark.change), mark)
