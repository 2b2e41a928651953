"""Lists of words and phrases, found as whole words whatever their case; and expressions of the operator's.

A list may have thousands of entries: the text is cut into words once, and each word is looked up. Between the words
of a phrase there may be a few characters that are no letters. Scripts that put no spaces between words are searched
for the phrase as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from proxy.guard.base import Scanner
from proxy.linear import Expression

MAX_GAP_BYTES: Final = 8
"""Between two words of a phrase."""
_BACK_BYTES: Final = 64
"""So far back is looked for the beginning of a word."""

# Underscores around a word are emphasis, and those in it are part of it.
_TOKEN: Final = re.compile(rb"[\w\x80-\xff]+")
_WORD: Final = re.compile(r"[^\W_](?:\w*[^\W_])?")
# Thai, Lao, Myanmar, Khmer, Kana, Han: no spaces between words.
_UNSPACED: Final = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")

_Word = tuple[str, int, int]
"""Folded, with its place."""


class Phrases(Scanner):
    """All phrases of one list, each with what it is called when it is found."""

    __slots__ = ("_by_first", "_most_words", "_unspaced")

    def __init__(self, phrases: Mapping[str, str]) -> None:
        """``phrases``: kind by phrase. A phrase without a letter or a digit is never found."""
        by_first: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        unspaced: dict[str, str] = {}
        longest = most_words = 1
        for phrase, kind in phrases.items():
            folded = phrase.casefold()
            words = tuple(_WORD.findall(folded))
            if _UNSPACED.search(folded):
                unspaced[phrase] = kind
                longest = max(longest, 2 * len(phrase.encode()))
            elif words:
                by_first.setdefault(words[0], []).append((words[1:], kind))
                most_words = max(most_words, len(words))
                # Folding may shorten: what was written is at most four bytes for each character.
                longest = max(longest, sum(4 * len(word) for word in words) + MAX_GAP_BYTES * len(words))
        for each in by_first.values():
            each.sort(key=lambda rest: -len(rest[0]))
        super().__init__(longest + 8)
        self._by_first = by_first
        self._most_words = most_words
        self._unspaced = unspaced

    def scan(self, text: bytes, at: int) -> Iterator[tuple[str, int, int]]:
        found = [*self._scan_words(text, at), *self._scan_unspaced(text, at)] if self._may_be_in(text) else []
        if self._unspaced:
            found.sort(key=lambda each: each[1:])
        behind = at
        for each in found:
            if each[1] >= behind:
                yield each
                behind = each[2]

    def _may_be_in(self, text: bytes) -> bool:
        if self._unspaced:
            return True
        return not self._by_first.keys().isdisjoint(_WORD.findall(text.decode("utf-8", "replace").casefold()))

    def _scan_words(self, text: bytes, at: int) -> Iterator[tuple[str, int, int]]:
        words = list(_words_of(text, at))
        behind = at
        for index, (word, start, _) in enumerate(words):
            if start < behind:
                continue
            for rest, kind in self._by_first.get(word, ()):
                stop = _follow(words, index, rest)
                if stop:
                    behind = stop
                    yield kind, start, stop
                    break

    def _scan_unspaced(self, text: bytes, at: int) -> Iterator[tuple[str, int, int]]:
        for phrase, kind in self._unspaced.items():
            encoded = phrase.encode()
            start = text.find(encoded, at)
            while start >= 0:
                yield kind, start, start + len(encoded)
                start = text.find(encoded, start + len(encoded))

    def open_from(self, text: bytes) -> int:
        """What may go on are the last words: as many as the longest phrase has."""
        earliest = max(0, len(text) - self.span_bytes)
        if self._unspaced:
            return earliest
        starts = [match.start() for match in _TOKEN.finditer(text, earliest)]
        if not starts:
            return len(text)
        whole_last = _TOKEN.match(text, len(text) - 1) is None
        many = self._most_words - whole_last
        if not many:
            return len(text)
        return starts[-many] if len(starts) >= many else earliest


def _words_of(text: bytes, at: int) -> Iterator[_Word]:
    """Words that begin at ``at`` or behind it, folded."""
    back = max(0, at - _BACK_BYTES)
    while back < at and text[back] & 0xC0 == 0x80:  # inside a character
        back += 1
    for match in _TOKEN.finditer(text, back):
        start, stop = match.span()
        word = match[0]
        if word.isascii():
            word = word.lstrip(b"_")
            start = stop - len(word)
            word = word.rstrip(b"_")
            if start >= at and word:
                yield word.lower().decode(), start, start + len(word)
            continue
        # Dashes, quotes and spaces beyond ASCII part words as well.
        decoded = word.decode("utf-8", "replace")
        place = start
        done = 0
        for part in _WORD.finditer(decoded):
            place += len(decoded[done : part.start()].encode())
            size = len(part[0].encode())
            if place >= at:
                yield part[0].casefold(), place, place + size
            place += size
            done = part.end()


def _follow(words: list[_Word], index: int, rest: tuple[str, ...]) -> int:
    """Where the phrase ends whose first word is at ``index``; 0 if it goes on otherwise."""
    stop = words[index][2]
    for step, word in enumerate(rest, index + 1):
        if step >= len(words) or words[step][0] != word or words[step][1] - stop > MAX_GAP_BYTES:
            return 0
        stop = words[step][2]
    return stop


class Pattern(Scanner):
    """One expression of the operator's. What it finds is at most ``span_bytes`` long."""

    __slots__ = ("_expression", "_kind")

    def __init__(self, kind: str, pattern: str, span_bytes: int, *, ignore_case: bool = False) -> None:
        """Raises ``PatternError``."""
        super().__init__(span_bytes + 8)
        self._kind = kind
        self._expression = Expression(pattern, ignore_case=ignore_case)

    @property
    def instructions(self) -> int:
        return self._expression.instructions

    def scan(self, text: bytes, at: int) -> Iterator[tuple[str, int, int]]:
        for start, stop in self._expression.find_from(text, at):
            yield self._kind, start, stop

