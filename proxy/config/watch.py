"""The current catalog, and replacing it when its file changes.

A reload either swaps the whole snapshot or changes nothing: a bad file keeps the old catalog in service and is
reported. Whether the file changed is asked, not told: the janitor calls ``changed`` every few seconds and ``reload``
when it says yes; SIGHUP calls ``reload`` at once. A reload reads and parses a file and may be run in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from proxy.config.catalog import Catalog, CatalogError, Problem, default_catalog, load_catalog
from proxy.config.settings import Settings

_Stamp = tuple[str, str, int, int, int]
_Stamps = tuple[_Stamp | None, ...]


class ReloadResult(NamedTuple):
    """How a reload went."""

    ok: bool
    changed: bool
    """The catalog is another one than before."""
    generation: int
    problems: tuple[Problem, ...] = ()


class CatalogHolder:
    """Owns the current snapshot."""

    # Mutable state, all written by `reload` only (and `_seen` by `changed`): `current` is swapped whole; `_seen` is
    # what the files (the catalog's and that of prices) looked like when they were last looked at, so that a bad one
    # is tried once for each change.
    __slots__ = (
        "_env",
        "_files",
        "_path",
        "_seen",
        "_settings",
        "current",
        "last_problems",
        "last_reload_ok",
        "reload_failures",
        "reloads",
    )

    def __init__(self, settings: Settings, env: Mapping[str, str]) -> None:
        """Load the first catalog. Raises ``CatalogError``: a process does not start on a bad file."""
        self._settings = settings
        self._env = env
        self._path = Path(settings.config) if settings.config else None
        self._files = tuple(Path(name) for name in (settings.config, settings.prices_file) if name)
        self._seen = self._look()
        self.current: Catalog = self._load(1)
        self.reloads = 0
        """Reloads that went well, changed or not."""
        self.reload_failures = 0
        self.last_reload_ok = True
        self.last_problems: tuple[Problem, ...] = ()

    def changed(self) -> bool:
        """Whether a file looks different from when it was last read. Costs two system calls each."""
        return self._look() != self._seen

    def reload(self) -> ReloadResult:
        """Read the file again and swap the snapshot if it is good and says something else than before."""
        # Looked at before it is read: a change while reading is then seen by the next `changed`.
        self._seen = self._look()
        current = self.current
        try:
            catalog = self._load(current.generation + 1) if self._files else current
        except CatalogError as error:
            self.reload_failures += 1
            self.last_reload_ok = False
            self.last_problems = error.problems
            return ReloadResult(False, False, current.generation, error.problems)
        changed = catalog != current
        if changed:
            self.current = catalog
        self.reloads += 1
        self.last_reload_ok = True
        self.last_problems = ()
        return ReloadResult(True, changed, self.current.generation)

    def _load(self, generation: int) -> Catalog:
        if self._path is None:
            return replace(default_catalog(self._settings), generation=generation)
        return load_catalog(self._path, self._env, self._settings, generation=generation)

    def _look(self) -> _Stamps:
        """What tells one version of the files from another, ``None`` for one that is not there."""
        return tuple(map(_look_at, self._files))


def _look_at(path: Path) -> _Stamp | None:
    """Kubernetes swaps the symlink ``..data`` beside a mounted file; a new version may then have the size and, on a
    file system with coarse times, the time of the old one.
    """
    try:
        about = path.stat()
        swapped = path.parent / "..data"
        target = str(swapped.readlink()) if swapped.is_symlink() else ""
    except (OSError, ValueError):
        return None
    return str(path), target, about.st_ino, about.st_mtime_ns, about.st_size
