"""Answers with holes: ``Good morning, {name|friend}!``. A hole is filled from what is known, never evaluated.

``{name}`` stands for a known value, ``{name|other}`` for ``other`` where that is not there, ``{{`` and ``}}`` for
braces. What is filled in is bounded: a text from a caller is cut, and loses its control characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

MAX_FILLING_CHARS: Final = 60
MAX_HOLES: Final = 32

_PARTS: Final = re.compile(r"\{\{|\}\}|\{([^{}|]*)(?:\|([^{}]*))?\}|[{}]")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Hole(NamedTuple):
    """One place that is filled in."""

    name: str
    otherwise: str | None
    """What is said where there is no such value; ``None``: there always has to be one."""


class Template(NamedTuple):
    """A text in parts."""

    parts: tuple[str | Hole, ...]

    @property
    def holes(self) -> list[Hole]:
        return [part for part in self.parts if isinstance(part, Hole)]

    def fill(self, values: Mapping[str, str]) -> str:
        return "".join([part if isinstance(part, str) else _fill(part, values) for part in self.parts])


def read_template(text: str) -> Template:
    """Raises ``ValueError`` that says what is wrong."""
    parts: list[str | Hole] = []
    plain, at = "", 0
    for found in _PARTS.finditer(text):
        plain += text[at : found.start()]
        at = found.end()
        if found[0] in {"{{", "}}"}:
            plain += found[0][0]
        elif found[1] is None:
            raise ValueError(f"a lone {found[0]!r}; for the character itself write {found[0] * 2!r}")
        elif not _NAME.fullmatch(found[1]):
            raise ValueError(f"{found[0][:100]!r} is no variable; for braces write '{{{{' and '}}}}'")
        else:
            parts += [plain] if plain else []
            parts.append(Hole(found[1], found[2]))
            plain = ""
    plain += text[at:]
    template = Template((*parts, plain) if plain else tuple(parts))
    if len(template.holes) > MAX_HOLES:
        raise ValueError(f"more than {MAX_HOLES} variables")
    return template


def _fill(hole: Hole, values: Mapping[str, str]) -> str:
    said = values.get(hole.name, "")
    said = " ".join("".join([each if each.isprintable() else " " for each in said]).split())
    return said[:MAX_FILLING_CHARS] or hole.otherwise or ""
