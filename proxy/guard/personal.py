"""Personal data: mail addresses, phone and card numbers, IBANs and national ids, told by their form and, where they
have them, by their check digits (`identity`).

A number inside a longer number or word is none: matches end where digits and letters end. In a text that is JSON
itself (the arguments of a tool) the letter of an escape such as ``\\n`` is no letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import Final

from proxy.guard.base import Scanner
from proxy.guard.identity import IDS, digits_of
from proxy.linear import Expression

EDGE: Final = r"(?:\b|\\[nrt])"
"""Before a match; what it takes of the text is not part of it."""
_EDGE_BYTES: Final = 4
ESCAPE_BYTES: Final = b"\\nrt"

_DIGITS: Final = b"0123456789"
_UPPER: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LOWER: Final = _UPPER.lower()

_ISSUERS: Final = frozenset((2, 3, 4, 5, 6, 8))
"""What numbers of cards begin with."""

MAX_LOCAL: Final = 64
MAX_DOMAIN: Final = 255
_LOCAL: Final = _DIGITS + _UPPER + _LOWER + b".!#$%&'*+/=?^_`{|}~-"
_DOMAIN_BYTES: Final = _DIGITS + _UPPER + _LOWER + b".-"
_DOMAIN: Final = re.compile(rb"(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}")


# Made when the first guard is: most processes have none.


@cache
def _many_digits() -> Expression:
    return Expression(r"[0-9](?:[ .()/+-]{0,3}[0-9]){5}")


@cache
def _some_digits() -> Expression:
    return Expression("[0-9]{2}")


class Form(Scanner):
    """What an expression describes, if it also passes a test. The expression's matches are bounded in length."""

    __slots__ = ("_expression", "_is_right", "_kind")

    def __init__(
        self,
        kind: str,
        pattern: str,
        span_bytes: int,
        alphabet: bytes,
        is_right: Callable[[bytes], bool] | None = None,
        *,
        gate: Expression | None = None,
        edge: str = EDGE,
    ) -> None:
        alphabet += ESCAPE_BYTES
        begins = bytes(byte for byte in alphabet if byte not in b" .-/)")
        super().__init__(span_bytes + 2 * _EDGE_BYTES, alphabet=alphabet, begins=begins, gate=gate)
        self._kind = kind
        self._expression = Expression(f"{edge}(?:{pattern})")
        self._is_right = is_right

    def scan(self, text: bytes, at: int) -> Iterator[tuple[str, int, int]]:
        for start, stop in self._expression.find_from(text, at):
            first = start + 2 * (text[start] == 92)  # behind the escape before it
            ends = not text[stop : stop + 1].isalnum()
            right = ends and (self._is_right is None or self._is_right(text[first:stop]))
            yield (self._kind if right else ""), first, stop


class Mail(Scanner):
    """Addresses such as ``ann.lee+x@mail.example.org``, found from their ``@`` outwards."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(MAX_LOCAL + MAX_DOMAIN + 3, alphabet=_LOCAL + b"@", needs=b"@")

    def scan(self, text: bytes, at: int) -> Iterator[tuple[str, int, int]]:
        sign = text.find(b"@", at)
        while sign >= 0:
            before = text[max(at, sign - MAX_LOCAL) : sign]
            local = before[len(before.rstrip(_LOCAL)) :].lstrip(b".")
            place = sign - len(local)
            if place and text[place - 1] == 92 and local[:1] in (b"n", b"r", b"t"):  # an escape's letter
                local = local[1:]
            domain = _DOMAIN.match(text, sign + 1, sign + 1 + MAX_DOMAIN) if local else None
            if domain is not None:
                at = domain.end()
                yield "mail", sign - len(local), at
            else:
                at = sign + 1
            sign = text.find(b"@", at)


class Card(Scanner):
    """Card numbers: 13 to 19 digits, in groups of any size with single spaces or hyphens between them, that begin as
    cards do and pass Luhn's test."""

    __slots__ = ("_run",)

    SHORTEST: Final = 13
    LONGEST: Final = 19
    _BLOCK_BYTES: Final = 4_096

    def __init__(self) -> None:
        super().__init__(2 * self.LONGEST + 1, alphabet=_DIGITS + b" -", begins=_DIGITS, gate=_many_digits())
        self._run = Expression(r"[0-9](?:[ -]?[0-9]){12,}")

    def scan(self, text: bytes, at: int) -> Iterator[tuple[str, int, int]]:
        behind = at
        for start, stop in self._run.find_from(text, at):
            # A run may be as long as the text; what is made of it must not be many times as large.
            for block in range(start, stop, self._BLOCK_BYTES):
                view = min(stop, block + self._BLOCK_BYTES + self.span_bytes)
                for first, last in self._scan_block(text, block, view, behind):
                    yield "card", first, last
                    behind = last

    def _scan_block(self, text: bytes, start: int, stop: int, behind: int) -> Iterator[tuple[int, int]]:
        """Numbers that begin in the block at ``start``; it is seen until ``stop``."""
        places = [place for place in range(start, stop) if text[place] > 47]
        digits = [text[place] - 48 for place in places]
        # Sums up to each digit, with every second one counted as Luhn counts it: those of even and of odd index.
        doubled = [2 * digit - 9 * (digit > 4) for digit in digits]
        mixed = [[doubled[n] if n % 2 == odd else digit for n, digit in enumerate(digits)] for odd in (0, 1)]
        sums = [[0, *accumulate(each)] for each in mixed]
        count = len(digits)
        for first in range(count - self.SHORTEST + 1):
            place = places[first]
            if place >= start + self._BLOCK_BYTES:
                break
            if place < behind or digits[first] not in _ISSUERS or (place and text[place - 1 : place].isdigit()):
                continue
            for last in range(min(count, first + self.LONGEST) - 1, first + self.SHORTEST - 2, -1):
                total = sums[1 - last % 2]
                if (total[last + 1] - total[first]) % 10 or text[places[last] + 1 : places[last] + 2].isdigit():
                    continue
                if len(set(digits[first : last + 1])) > 1:
                    behind = places[last] + 1
                    yield place, behind
                    break


class Iban(Scanner):
    """Account numbers of the countries in the registry, as long as the country's are, by their check digits."""

    __slots__ = ("_head",)

    _LONGEST: Final = 34

    def __init__(self) -> None:
        alphabet = _DIGITS + _UPPER + b" -" + ESCAPE_BYTES
        begins = _UPPER + ESCAPE_BYTES
        super().__init__(2 * self._LONGEST + 2 * _EDGE_BYTES, alphabet=alphabet, begins=begins, gate=_some_digits())
        self._head = Expression(EDGE + "[A-Z]{2}[0-9]{2}")

    def scan(self, text: bytes, at: int) -> Iterator[tuple[str, int, int]]:
        behind = at
        for _, head_stop in self._head.find_from(text, at):
            start = head_stop - 4
            wanted = _IBAN_LENGTHS.get(text[start : start + 2])
            if wanted is None or start < behind:
                continue
            stop, number = _take(text, start, wanted)
            if len(number) == wanted and not text[stop : stop + 1].isalnum() and _is_iban(number):
                yield "iban", start, stop
                behind = stop


def _take(text: bytes, at: int, count: int) -> tuple[int, bytes]:
    """``count`` digits and letters from ``at`` on, with single separators left out, and where they end."""
    taken = bytearray()
    for place in range(at, min(len(text), at + 2 * count)):
        byte = text[place]
        if 48 <= byte <= 57 or 65 <= byte <= 90:
            taken.append(byte)
            if len(taken) == count:
                return place + 1, bytes(taken)
        elif byte not in b" -" or text[place - 1] in b" -":
            break
    return at, b""


def _is_iban(number: bytes) -> bool:
    return int("".join(str(int(chr(byte), 36)) for byte in number[4:] + number[:4])) % 97 == 1


_IBAN_REGISTRY: Final = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27
DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28
IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22
MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24
SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
_IBAN_LENGTHS: Final = {word[:2].encode(): int(word[2:]) for word in _IBAN_REGISTRY.split()}
"""Length by country."""

# North America's numbers, and others that begin with their country's or their city's zeros.
_PHONES: Final = (
    r"[2-9][0-9]{2}(?:\) ?|[ .-])[2-9][0-9]{2}[ .-][0-9]{4}"
    r"|00[1-9](?:[ ().-]{0,2}[0-9]){7,14}"
    r"|0[1-9][0-9]{0,4}(?:[ ./)-]{0,2}[0-9]){6,9}"
)
_PHONE_ALPHABET: Final = _DIGITS + b" ().-/+"
_DATE: Final = re.compile(rb"[0-9]{1,2}([./ -])[0-9]{1,2}\1(?:19|20)[0-9]{2}")


def _is_phone(match: bytes) -> bool:
    return _DATE.match(match) is None and len(set(digits_of(match))) > 2


USUAL: Final = (
    *("mail", "phone", "card", "iban"),
    *("us_ssn", "uk_nino", "fr_nir", "es_dni", "it_codice_fiscale", "ch_ahv", "br_cpf", "se_personnummer"),
)  # fmt: skip
"""What is looked for where the guard does not say: what is told by more than its number of digits."""


def make_scanners(which: Sequence[str]) -> list[Scanner]:
    """Of these kinds, all of which are known; of `USUAL` if there are none."""
    return [scanner for each in which or USUAL for scanner in _make(each)]


def _make(kind: str) -> list[Scanner]:
    if kind == "mail":
        return [Mail()]
    if kind == "card":
        return [Card()]
    if kind == "iban":
        return [Iban()]
    if kind == "phone":
        abroad = r"\+[1-9](?:[ ().-]{0,2}[0-9]){6,14}"
        return [
            Form(kind, abroad, 48, _PHONE_ALPHABET, _is_phone, gate=_many_digits(), edge=""),
            Form(kind, _PHONES, 48, _PHONE_ALPHABET, _is_phone, gate=_many_digits(), edge=r"(?:\b|\\[nrt]|\()"),
        ]
    pattern, span_bytes, letters, is_right = IDS[kind]
    return [Form(kind, pattern, span_bytes, _DIGITS + letters, is_right, gate=_some_digits())]
