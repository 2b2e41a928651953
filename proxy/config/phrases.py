"""When two small messages say the same: letter case, accents, punctuation, emoji and stretched letters do not count.

A message is reduced to its words (`Phrase`), in any script. Latin, Greek and Cyrillic accents, Hebrew points and
Arabic vowel signs go, as people leave them out; signs that spell a sound (in Devanagari, Thai and others) stay. What
can change a meaning stays as well: digits, the question mark, and ``+ = % # @ $`` and their like at a word. A message
of emoji alone is those emoji.

A letter three times or more in a row is a stretched one, and fits wherever it stands fewer times: ``thankssss``,
``goooood moooorning``. Two in a row are two.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import groupby
from typing import Final, NamedTuple

_STRETCHED: Final = 3
_MOST_KNOWN: Final = 4_096

# Points and accents that are left out in writing: combining accents, Hebrew points, Arabic vowel signs and tatweel.
_LEFT_OUT: Final = (
    frozenset(range(0x300, 0x370)) | frozenset(range(0x591, 0x5C8)) | frozenset(range(0x64B, 0x660)) | {0x640, 0x670}
)
# Letters that no decomposition takes apart.
_PLAIN: Final = {
    ord(letter): plain
    for letter, plain in {"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "ı": "i"}.items()
}
_APOSTROPHES: Final = frozenset(map(ord, "'’‘`ʼ"))
_QUESTIONS: Final = frozenset(map(ord, "?؟⸮"))
_AT_WORDS: Final = frozenset(map(ord, "+=%#@&/\\$€£¥₹<>"))
"""They mean something at a word, and decorate elsewhere."""

_FACES: Final = re.compile(r"(?<!\w)(?:[:;=][-o'^]?[()\[\]dpo3*/|]+|<3+|\^[_.-]?\^)(?!\w)")
_LOOSE: Final = re.compile(r"(?<![^\W_])[+=%#@&/\\$€£¥₹<>]+(?![^\W_])")
"""Such signs with no letter or digit at either side."""
_DOUBLED: Final = re.compile(r"(.)\1", re.DOTALL)


class Phrase(NamedTuple):
    """What a message says."""

    letters: str
    """Its characters, each run of the same one written once: what phrases are looked up by."""
    runs: tuple[int, ...]
    """How often each of ``letters`` stood there in a row."""
    asks: bool
    """It has a question mark."""

    def covers(self, said: Phrase) -> bool:
        """Whether a message with the same letters says this phrase. One that asks covers what does not: people leave
        question marks out and do not add them."""
        if said.asks and not self.asks:
            return False
        return self.runs == said.runs or all(map(_is_run, self.letters, self.runs, said.runs))


def _is_run(letter: str, wanted: int, said: int) -> bool:
    return said == wanted or (said >= _STRETCHED and said > wanted and letter.isalpha())


def read_phrase(text: str) -> Phrase | None:
    """``None`` for a text without a letter, a digit or an emoji."""
    lowered = unicodedata.normalize("NFKD", text.replace("´", "'")).casefold()
    words = _LOOSE.sub(" ", _FACES.sub(" ", lowered).translate(_WORDS))
    asks = "?" in words
    words = unicodedata.normalize("NFC", " ".join(words.replace("?", " ").split()))
    if not words:
        words = "".join(dict.fromkeys(each for each in lowered if unicodedata.category(each) == "So"))
        if not words:
            return None
    if _DOUBLED.search(words) is None:
        return Phrase(words, (1,) * len(words), asks)
    runs = [(letter, len(list(run))) for letter, run in groupby(words)]
    return Phrase("".join([letter for letter, _ in runs]), tuple([many for _, many in runs]), asks)


class _Words(dict[int, str | int]):
    """For `str.translate`: what each character is where words are compared. Asked for once a character."""

    __slots__ = ()

    def __missing__(self, code: int) -> str | int:
        said = _judge(code)
        if len(self) >= _MOST_KNOWN:
            self.clear()
        self[code] = said
        return said


def _judge(code: int) -> str | int:
    if code in _LEFT_OUT or code in _APOSTROPHES:
        return ""
    if code in _QUESTIONS:
        return "?"
    if code in _PLAIN:
        return _PLAIN[code]
    if code in _AT_WORDS:
        return code
    category = unicodedata.category(chr(code))
    if category[0] in "LN" or category in {"Mn", "Mc"}:
        return "" if 0xFE00 <= code < 0xFE10 else code  # those choose how an emoji looks
    return "" if category in {"Cf", "Me"} else " "


_WORDS: Final = _Words()
