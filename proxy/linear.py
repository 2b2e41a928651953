"""Regular expressions that take time linear in the text, whatever pattern and text say. Over RE2 (google-re2).

Operators write patterns and strangers write texts, so nothing here may backtrack. RE2's syntax has no look-around and
no back-references; patterns are bounded in size, and so is the memory of their automata. Texts are UTF-8 bytes and
places are offsets in bytes, because that is what RE2 works on; a place is always the boundary of a character.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any, Final

MAX_PATTERN_CHARS: Final = 2_000
MAX_PROGRAM: Final = 20_000
"""Instructions of one pattern's automaton: a repeat of repeats is small to write and large to run."""
_MEMORY_BYTES: Final = 4 << 20

Span = tuple[int, int]


class PatternError(ValueError):
    """A pattern that cannot be used; the text says why."""


class Expression:
    """One pattern."""

    __slots__ = ("_compiled", "pattern")

    def __init__(self, pattern: str, *, ignore_case: bool = False) -> None:
        """Raises ``PatternError``."""
        self.pattern = pattern
        self._compiled = _compile(pattern, ignore_case)

    @property
    def instructions(self) -> int:
        """Of its automaton: at worst a byte of text takes time by these."""
        size: int = self._compiled.programsize
        return size

    def search(self, text: bytes, at: int = 0) -> Span | None:
        """The leftmost match from ``at`` on."""
        match = self._compiled.search(text, at)
        return None if match is None else match.span()

    def matches_whole(self, text: bytes) -> bool:
        return self._compiled.fullmatch(text) is not None

    @property
    def names(self) -> frozenset[str]:
        """Of its named groups."""
        return frozenset(name.decode() for name in self._compiled.groupindex)

    def groups(self, text: bytes) -> dict[str, str] | None:
        """What its named groups took where it matches the whole text; one that took no part is left out."""
        match = self._compiled.fullmatch(text)
        if match is None:
            return None
        taken = {name.decode(): match.group(at) for name, at in self._compiled.groupindex.items()}
        return {name: said.decode("utf-8", "replace") for name, said in taken.items() if said is not None}

    def find(self, text: bytes, most: int) -> list[Span]:
        """Up to ``most`` matches that do not overlap and are not empty, from left to right."""
        return list(islice(self.find_from(text), most))

    def find_from(self, text: bytes, at: int = 0) -> Iterator[Span]:
        """All matches that begin at ``at`` or behind it; what stands before is seen as their surroundings."""
        for match in self._compiled.finditer(text, at):
            start, stop = match.span()
            if stop > start:
                yield start, stop


class ExpressionSet:
    """Many patterns that are looked for in one pass over the text."""

    __slots__ = ("_set", "size")

    def __init__(self, patterns: Sequence[str], *, ignore_case: bool = False, whole: bool = False) -> None:
        """``whole``: a pattern has to match the whole text. Raises ``PatternError``."""
        re2 = _load()
        options = _options(ignore_case, memory_bytes=4 * _MEMORY_BYTES)
        make = re2.Set.FullMatchSet if whole else re2.Set.SearchSet
        self._set = make(options)
        self.size = len(patterns)
        for pattern in patterns:
            _compile(pattern, ignore_case)
            self._set.Add(pattern.encode())
        if patterns:
            try:
                self._set.Compile()
            except re2.error as error:
                raise PatternError("together the patterns are too large") from error

    def which(self, text: bytes) -> list[int]:
        """Indices of the patterns that occur, in ascending order."""
        return sorted(self._set.Match(text) or ()) if self.size else []


@cache
def _load() -> Any:
    """The library: imported when the first pattern is made, as most processes have none."""
    import re2

    return re2


def _options(ignore_case: bool, *, memory_bytes: int = _MEMORY_BYTES) -> Any:
    options = _load().Options()
    options.case_sensitive = not ignore_case
    options.max_mem = memory_bytes
    options.log_errors = False
    return options


def _compile(pattern: str, ignore_case: bool) -> Any:
    if len(pattern) > MAX_PATTERN_CHARS:
        raise PatternError(f"longer than {MAX_PATTERN_CHARS} characters")
    re2 = _load()
    try:
        compiled = re2.compile(pattern.encode(), _options(ignore_case))
    except UnicodeEncodeError:
        raise PatternError("a lone surrogate") from None
    except re2.error as error:
        said = error.args[0] if error.args else b""
        raise PatternError(said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)) from None
    if compiled.programsize > MAX_PROGRAM:
        raise PatternError(f"too large: {compiled.programsize} instructions, of at most {MAX_PROGRAM}")
    return compiled
