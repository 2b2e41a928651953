"""Plain data that knows the line and column of everything in it, and what is wrong with it.

`yaml_text` makes it from a file; whoever reads it adds the problems that it finds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

MAX_PROBLEMS: Final = 100

_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: Final = {"": None, "~": None, "null": None, "true": True, "false": False}

Path = tuple[str | int, ...]

Stamp = tuple[str, str, int, int, int]
"""What tells one version of a file from another: path, target of Kubernetes' ``..data``, inode, time, size."""


class Plain(str):
    """A scalar without quotes: what it means depends on what is wanted in its place."""

    __slots__ = ()

    def resolve(self) -> object:
        """Its value by YAML 1.2's core schema: nothing, a boolean, a number, or text."""
        word = self.lower()
        if word in _WORDS and self in {word, word.upper(), word.capitalize()}:
            return _WORDS[word]
        if _INTEGER.fullmatch(self):
            return int(self)
        if _NUMBER.fullmatch(self) and math.isfinite(float(self)):
            return float(self)
        return str(self)


class Problem(NamedTuple):
    """One thing that is wrong with a file. ``str`` is ``file:line:column: path: message; hint``."""

    file: str
    line: int
    """From 1, as ``column``."""
    column: int
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        path = f"{self.path}: " if self.path else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column}: {path}{self.message}{hint}"


class CatalogError(Exception):
    """A catalog that cannot be used; ``problems`` in the order of the file. ``stamps`` are those of the other files
    that were read until then, taken before they were read."""

    def __init__(self, problems: list[Problem], stamps: Mapping[str, Stamp | None] = MappingProxyType({})) -> None:
        self.problems = tuple(sorted(problems, key=lambda each: (each.line, each.column))[:MAX_PROBLEMS])
        self.stamps = stamps
        super().__init__("\n".join(map(str, self.problems)))


class Document:
    """Plain data with places; problems found later are added to those found while reading."""

    # `problems`, `warnings`, `broken` and `stamps` grow while the data is read and checked; `places` and `data` are
    # written by `yaml_text.read_document` only.
    __slots__ = ("broken", "data", "file", "places", "problems", "stamps", "warnings")

    def __init__(self, file: str) -> None:
        self.file = file
        self.data: object = None
        self.places: dict[Path, tuple[int, int]] = {(): (1, 1)}
        """Line and column of the key (in a mapping) or the item (in a sequence) at each path."""
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        """What can be used and was hardly meant."""
        self.broken: set[Path] = set()
        """Entries (section and name) with problems: what follows from them is not worth telling as well."""
        self.stamps: dict[str, Stamp | None] = {}
        """The files that were read on behalf of this one, by path."""

    def report(self, path: Path, message: str, hint: str = "", at: tuple[int, int] | None = None) -> None:
        self.broken.add(path[:2])
        self.problems.append(self._problem(path, message, hint, at))

    def warn(self, path: Path, message: str, hint: str = "") -> None:
        if len(self.warnings) < MAX_PROBLEMS:
            self.warnings.append(self._problem(path, message, hint, None))

    def check(self) -> None:
        """Raise ``CatalogError`` if anything was reported."""
        if self.problems:
            raise CatalogError(self.problems, dict(self.stamps))

    def _problem(self, path: Path, message: str, hint: str, at: tuple[int, int] | None) -> Problem:
        """Where the path has no place of its own, such as a key that is missing, that of what it belongs to."""
        known = path
        while known not in self.places:
            known = known[:-1]
        line, column = at or self.places[known]
        return Problem(self.file, line, column, spell(path), message, hint)


def spell(path: Path) -> str:
    """``providers.openai.base_url``, ``placeholder_keys[2]``; keys with dots are quoted."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if re.fullmatch(r"[\w-]+", step) else repr(step)
            text += f".{name}" if text else name
    return text
