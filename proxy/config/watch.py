"""The current catalog, and replacing it when its files change.

A reload either swaps the whole snapshot or changes nothing: a bad file keeps the old catalog in service and is
reported. The files of prices and of keys that it names belong to it. Whether a file changed is asked, not told: the
janitor calls ``changed`` every few seconds and ``reload`` when it says yes; SIGHUP calls ``reload`` at once. A reload
reads and parses a file and may be run in a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from proxy.config.catalog import Catalog, CatalogError, Problem, default_catalog, load_catalog
from proxy.config.document import Stamp
from proxy.config.feature_flags import NO_FLAGS, Flags
from proxy.config.secret_file import look_at
from proxy.config.settings import Settings


class ReloadResult(NamedTuple):
    """How a reload went."""

    ok: bool
    changed: bool
    """The catalog is another one than before."""
    generation: int
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


class CatalogHolder:
    """Owns the current snapshot."""

    # Mutable state: `current` is swapped whole, by `reload` and by `use_flags`, which may run in different threads
    # and take turns by _lock; it is `_filed`, the catalog as the files have it, under `_flags`, the store's rules.
    # Written by `reload` only: `_seen` is what the files (the catalog's, that of prices, those of keys) looked like
    # when they were last read, so that a bad one is tried once for each change.
    __slots__ = (
        "_env",
        "_filed",
        "_files",
        "_flags",
        "_lock",
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
        self._files = tuple(name for name in (settings.config, settings.prices_file) if name)
        seen = _look(self._files)
        self._lock = Lock()
        self._flags = NO_FLAGS
        self._filed = self._load(1)
        self.current: Catalog = self._filed
        self._seen = {**self.current.stamps, **seen}
        self.reloads = 0
        """Reloads that went well, changed or not."""
        self.reload_failures = 0
        self.last_reload_ok = True
        self.last_problems: tuple[Problem, ...] = ()

    @property
    def filed(self) -> Catalog:
        """The catalog as the files have it, without the store's flags."""
        return self._filed

    def changed(self) -> bool:
        """Whether a file looks different from when it was last read. Costs two system calls each."""
        return any(look_at(name) != stamp for name, stamp in self._seen.items())

    def reload(self) -> ReloadResult:
        """Read the files again and swap the snapshot if they are good and say something else than before."""
        # Looked at before they are read: a change while reading is then seen by the next `changed`.
        seen = _look(self._files)
        current = self._filed
        try:
            catalog = self._load(current.generation + 1) if self._files else current
        except CatalogError as error:
            # Files of keys that this attempt did not come to are news only if they change again.
            self._seen = {**_look(self._seen), **error.stamps, **seen}
            self.reload_failures += 1
            self.last_reload_ok = False
            self.last_problems = error.problems
            return ReloadResult(False, False, current.generation, error.problems)
        self._seen = {**catalog.stamps, **seen}
        changed = catalog != current
        if changed:
            with self._lock:
                self._filed = catalog
                self.current = self._under_flags(catalog)
        self.reloads += 1
        self.last_reload_ok = True
        self.last_problems = ()
        return ReloadResult(True, changed, self.current.generation, (), catalog.warnings)

    def use_flags(self, flags: Flags) -> bool:
        """Put the store's rules over the file's; whether that changes anything. Requests that began keep what they
        began with."""
        with self._lock:
            self._flags = flags
            current = self._under_flags(self._filed)
            changed = current.flags != self.current.flags
            if changed:
                self.current = current
        return changed

    def _under_flags(self, catalog: Catalog) -> Catalog:
        return replace(catalog, flags=self._flags.over(catalog.flags)) if self._flags else catalog

    def _load(self, generation: int) -> Catalog:
        if self._path is None:
            return replace(default_catalog(self._settings), generation=generation)
        return load_catalog(self._path, self._env, self._settings, generation=generation)


def _look(names: Iterable[str]) -> dict[str, Stamp | None]:
    return {name: look_at(name) for name in names}
