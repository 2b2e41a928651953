"""A text as it reads: with plain characters for those that only look different or cannot be seen. Wide letters and
digits, digits of other scripts, spaces and hyphens that do not break, joiners, marks of direction.

Guards look at a text as it is and as it reads, so that neither a typographer's space nor a stranger's trick hides
what people and models see all the same. What looks alike by chance (a Cyrillic ``а``) stays what it is.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from functools import lru_cache
from typing import Final

_ODD: Final = re.compile(
    "[\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u2015\u2024\u2028-\u202f\u205f-\u206f"
    "\u2212\u3000\u3164\ufe00-\ufe0f\ufe52-\ufe6b\ufeff\uff01-\uff5e\uffa0\ufff9-\ufffb\U0001d400-\U0001d7ff"
    "\U000e0000-\U000e0fff]|[^\\D0-9]"
)
_KEPT_BYTES: Final = 8 << 10
_FILLERS: Final = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"


class Plain:
    """The text as it reads, and where in the text as it is each place of it stands. Immutable."""

    __slots__ = ("_at", "_from", "_size", "_to", "text")

    def __init__(self, text: bytes, size: int, segments: list[tuple[int, int, int]]) -> None:
        """``segments``: for each stretch that is as it was, and each character that is not, where it starts here, and
        where it starts and stops there; ``size``: of the whole text as it is."""
        self.text = text
        self._size = size
        self._at = [at for at, _, _ in segments]
        self._from = [first for _, first, _ in segments]
        self._to = [last for _, _, last in segments]

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Where a stretch stands in the text as it is; longer than itself if something odd is in it."""
        first = bisect_right(self._at, start) - 1
        last = bisect_left(self._at, stop) - 1
        stands = stop - self._at[last] + self._from[last]
        # An odd character is one byte here and several there.
        ends = stands if not self._is_odd(last) else self._to[last]
        return (self._from[first] if self._is_odd(first) else start - self._at[first] + self._from[first]), ends

    def place(self, at: int) -> int:
        """Where a place stands in the text as it is."""
        return self.span(at, at + 1)[0] if at < len(self.text) else self._size

    def find(self, place: int) -> int:
        """Where a place of the text as it is stands here."""
        segment = bisect_right(self._from, place) - 1
        if segment < 0:
            return 0
        length = self._length(segment)
        beyond = place - self._from[segment]
        return self._at[segment] + (length if self._is_odd(segment) and beyond else min(beyond, length))

    def _length(self, segment: int) -> int:
        behind = self._at[segment + 1] if segment + 1 < len(self._at) else len(self.text)
        return behind - self._at[segment]

    def _is_odd(self, segment: int) -> bool:
        return self._to[segment] - self._from[segment] != self._length(segment)


def read_plain(text: bytes, most_unseen: int = 0) -> Plain | None:
    """The text as it reads; ``None`` if that is as it is. With ``most_unseen``, only so many characters in a row are
    passed over that cannot be seen."""
    if text.isascii():
        return None
    return _read(text, most_unseen) if len(text) > _KEPT_BYTES else _read_kept(text, most_unseen)


def _read(text: bytes, most_unseen: int) -> Plain | None:
    decoded = text.decode("utf-8", "replace")
    odd = [match.start() for match in _ODD.finditer(decoded)]
    if not odd:
        return None
    pieces: list[bytes] = []
    segments: list[tuple[int, int, int]] = []
    at = place = done = unseen = 0
    behind = -1
    for index in odd:
        plain = _fold(decoded[index])
        unseen = unseen + 1 if plain == "" and index == behind else 1
        behind = index + 1
        if plain is None or (plain == "" and 0 < most_unseen < unseen):
            continue
        before = decoded[done:index].encode()
        if before:
            pieces.append(before)
            segments.append((at, place, place + len(before)))
            at, place = at + len(before), place + len(before)
        size = len(decoded[index].encode())
        if plain:
            pieces.append(plain.encode())
            segments.append((at, place, place + size))
            at += 1
        place += size
        done = index + 1
    rest = decoded[done:].encode()
    if rest:
        pieces.append(rest)
        segments.append((at, place, place + len(rest)))
    return Plain(b"".join(pieces), len(text), segments) if done and segments else None


_read_kept = lru_cache(maxsize=16)(_read)
"""Several guards look at the same text one after the other."""


@lru_cache(maxsize=4_096)
def _fold(char: str) -> str | None:
    """The plain character for an odd one, empty for one that cannot be seen, ``None`` if there is none."""
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category[0] == "Z":
        return " "
    if category == "Pd" or char == "\u2212":
        return "-"
    if category in ("Cf", "Mn", "Cn") or char in _FILLERS:
        return ""
    plain = unicodedata.normalize("NFKC", char)
    return plain if len(plain) == 1 and plain.isascii() else None
