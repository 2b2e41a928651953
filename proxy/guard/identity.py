"""National ids by their form and their check digits: for each an expression, its longest match, the bytes beside
digits that it may have, and the test. Each test takes what its expression matched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

_UPPER: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Id(NamedTuple):
    pattern: str
    span_bytes: int
    extra: bytes
    """What it may have in it beside digits."""
    is_right: Callable[[bytes], bool]


def digits_of(match: bytes) -> list[int]:
    """Without what separates them."""
    return [byte - 48 for byte in match if 48 <= byte <= 57]


def _bare(match: bytes) -> str:
    return match.translate(None, b" .-").decode()


def _weigh(digits: list[int], weights: tuple[int, ...]) -> int:
    return sum(digit * weight for digit, weight in zip(digits, weights, strict=False))


def is_luhn(digits: list[int]) -> bool:
    """The sum of all digits, every second one from the right doubled, ends in 0."""
    return not sum(d if n % 2 == 0 else 2 * d - 9 * (d > 4) for n, d in enumerate(reversed(digits))) % 10


def _is_ssn(match: bytes) -> bool:
    area, group, serial = match[:3], match[4:6], match[7:]
    return area not in (b"000", b"666") and area[:1] != b"9" and group != b"00" and serial != b"0000"


def _is_nino(match: bytes) -> bool:
    return match[:2] not in (b"BG", b"GB", b"KN", b"NK", b"NT", b"TN", b"ZZ")


def _is_nir(match: bytes) -> bool:
    number = _bare(match)
    corsican = number[:13].replace("2A", "19").replace("2B", "18")
    return corsican.isdigit() and 97 - int(corsican) % 97 == int(number[13:])


def _is_steuer_id(match: bytes) -> bool:
    """ISO 7064 mod 11,10; of the first ten digits one occurs twice or three times, and nothing else does."""
    digits = digits_of(match)
    often = sorted(digits[:10].count(digit) for digit in set(digits[:10]))
    if often[-1] not in (2, 3) or often[-2] != 1:
        return False
    product = 10
    for digit in digits[:10]:
        product = ((digit + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == digits[10]


def _is_dni(match: bytes) -> bool:
    number = _bare(match)
    value = int(number[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2"))
    return number[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[value % 23]


_ODD: Final = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (
            *(1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21),
            *(2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        ),
        strict=True,
    )
)


def _is_codice_fiscale(match: bytes) -> bool:
    code = match.decode()
    even = sum(int(each) if each.isdigit() else ord(each) - 65 for each in code[1:15:2])
    return chr(65 + (even + sum(_ODD[each] for each in code[:15:2])) % 26) == code[15]


def _is_bsn(match: bytes) -> bool:
    digits = digits_of(match)
    return any(digits) and _weigh(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def _is_belgian(match: bytes) -> bool:
    number = _bare(match)
    first, check = number[:9], int(number[9:])
    return check in (97 - int(first) % 97, 97 - int("2" + first) % 97)


def _is_pesel(match: bytes) -> bool:
    digits = digits_of(match)
    month, day = digits[2] * 10 + digits[3], digits[4] * 10 + digits[5]
    check = _weigh(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10
    return check == 0 and 1 <= month % 20 <= 12 and 1 <= day <= 31


def _is_ahv(match: bytes) -> bool:
    return _weigh(digits_of(match), (1, 3) * 6 + (1,)) % 10 == 0


def _is_cpf(match: bytes) -> bool:
    digits = digits_of(match)
    if len(set(digits)) == 1:
        return False
    return all(_weigh(digits[:n], tuple(range(n + 1, 1, -1))) * 10 % 11 % 10 == digits[n] for n in (9, 10))


def _is_personnummer(match: bytes) -> bool:
    digits = digits_of(match)[-10:]
    month, day = digits[2] * 10 + digits[3], digits[4] * 10 + digits[5]
    return is_luhn(digits) and 1 <= month <= 12 and 1 <= day % 60 <= 31


def _is_nhs(match: bytes) -> bool:
    digits = digits_of(match)
    return len(set(digits)) > 1 and (11 - _weigh(digits, (10, 9, 8, 7, 6, 5, 4, 3, 2)) % 11) % 11 == digits[9]


def _is_sin(match: bytes) -> bool:
    digits = digits_of(match)
    return digits[0] not in (0, 8) and is_luhn(digits)


# Verhoeff's tables: the dihedral group of order 10, and the permutation for each place.
_TIMES: Final = (
    *("0123456789", "1234067895", "2340178956", "3401289567", "4012395678"),
    *("5987604321", "6598710432", "7659821043", "8765932104", "9876543210"),
)  # fmt: skip
_PERMUTED: Final = (
    *("0123456789", "1576283094", "5803796142", "8916043527"),
    *("9453126870", "4286573901", "2793806415", "7046913258"),
)  # fmt: skip


def _is_aadhaar(match: bytes) -> bool:
    check = 0
    for place, digit in enumerate(reversed(digits_of(match))):
        check = int(_TIMES[check][int(_PERMUTED[place % 8][digit])])
    return check == 0


IDS: Final[dict[str, Id]] = {
    "us_ssn": Id(r"[0-9]{3}-[0-9]{2}-[0-9]{4}|[0-9]{3} [0-9]{2} [0-9]{4}", 11, b" -", _is_ssn),
    "uk_nino": Id(
        r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]", 13, _UPPER + b" ", _is_nino
    ),
    "uk_nhs": Id(r"[0-9]{3}[ -][0-9]{3}[ -][0-9]{4}", 12, b" -", _is_nhs),
    "fr_nir": Id(
        r"[12] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}", 21, b"AB ", _is_nir
    ),
    "de_tax_id": Id(r"[1-9][0-9] ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}", 14, b" ", _is_steuer_id),
    "es_dni": Id(r"(?:[0-9]{8}|[XYZ]-?[0-9]{7})-?[A-Z]", 11, _UPPER + b"-", _is_dni),
    "it_codice_fiscale": Id(
        r"[A-Z]{6}[0-9L-NP-V]{2}[A-EHLMPR-T][0-9L-NP-V]{2}[A-Z][0-9L-NP-V]{3}[A-Z]", 16, _UPPER, _is_codice_fiscale
    ),
    "nl_bsn": Id(r"[0-9]{9}|[0-9]{4}\.[0-9]{2}\.[0-9]{3}", 11, b".", _is_bsn),
    "be_rrn": Id(r"[0-9]{2}\.?[0-9]{2}\.?[0-9]{2}-?[0-9]{3}\.?[0-9]{2}", 15, b".-", _is_belgian),
    "pl_pesel": Id(r"[0-9]{11}", 11, b"", _is_pesel),
    "ch_ahv": Id(r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}", 16, b".", _is_ahv),
    "se_personnummer": Id(r"(?:19|20)?[0-9]{6}[-+][0-9]{4}", 13, b"-+", _is_personnummer),
    "br_cpf": Id(r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", 14, b".-", _is_cpf),
    "ca_sin": Id(r"[0-9]{3}[ -][0-9]{3}[ -][0-9]{3}", 11, b" -", _is_sin),
    "in_aadhaar": Id(r"[2-9][0-9]{3} [0-9]{4} [0-9]{4}", 14, b" ", _is_aadhaar),
}
"""By kind."""
