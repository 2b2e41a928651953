"""Personal data in texts: what is found and what only looks like it."""

from __future__ import annotations

import pytest

from proxy.config.guards import PERSONAL_DATA
from proxy.guard.base import MAX_FINDINGS, merge_findings, redact
from proxy.guard.identity import IDS
from proxy.guard.personal import USUAL
from tests.unit.guard.make import found_by, make_check

ALL = make_check("personal_data", which=PERSONAL_DATA)

# Test numbers that authorities and card networks publish, or that are made to the rules of their check digits.
FOUND = {
    "mail": ("ann.lee+x@mail.example.org", "o'neil@a-b.example", "x@xn--bcher-kva.example"),
    "card": (
        *("4242424242424242", "4242 4242 4242 4242", "4242-4242-4242-4242", "378282246310005", "3782 822463 10005"),
        *("5555555555554444", "6011111111111117", "30569309025904", "4222222222222", "6304000000000000"),
    ),
    "iban": ("DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "GB82 WEST 1234 5698 7654 32"),
    "phone": ("+49 30 901820", "+14155552671", "(415) 555-2671", "415-555-2671", "06 12 34 56 78"),
    "us_ssn": ("219-09-9999", "219 09 9999"),
    "uk_nino": ("AB123456C", "AB 12 34 56 C"),
    "uk_nhs": ("943 476 5919",),
    "fr_nir": ("1 85 05 78 006 084 91", "185057800608491"),
    "de_tax_id": ("86095742719", "86 095 742 719"),
    "es_dni": ("12345678Z", "12345678-Z", "X1234567L"),
    "it_codice_fiscale": ("RSSMRA85T10A562S",),
    "nl_bsn": ("123456782", "1234.56.782"),
    "be_rrn": ("85.07.30-033.28", "85073003328"),
    "pl_pesel": ("44051401359",),
    "ch_ahv": ("756.9217.0769.85", "7569217076985"),
    "se_personnummer": ("811218-9876", "19811218-9876"),
    "br_cpf": ("529.982.247-25",),
    "ca_sin": ("246-454-284",),
    "in_aadhaar": ("2341 2341 2346",),
}  # fmt: skip


def test_the_kinds_that_a_catalog_may_name_are_those_that_are_looked_for() -> None:
    """The names stand in two rooms, because one must not import the other."""
    assert ("mail", "phone", "card", "iban", *IDS) == PERSONAL_DATA
    assert set(FOUND) == set(PERSONAL_DATA)
    assert set(USUAL) <= set(PERSONAL_DATA)


@pytest.mark.parametrize("kind", FOUND)
def test_each_kind_is_found_in_the_middle_of_a_text_and_alone(kind: str) -> None:
    """With all that is not it left out."""
    check = make_check("personal_data", which=(kind,))
    for value in FOUND[kind]:
        assert found_by(check, value) == [(kind, value)]
        assert found_by(check, f"It is {value}, is it not? Ünd {value}.") == [(kind, value)] * 2
        assert found_by(check, f'{{"a": "x\\n{value}"}}') == [(kind, value)]


@pytest.mark.parametrize("kind", [kind for kind in FOUND if kind not in ("mail", "phone", "us_ssn", "uk_nino")])
def test_a_number_with_another_check_digit_is_nothing(kind: str) -> None:
    """One digit too many by one, anywhere: no check digit lets that pass."""
    check = make_check("personal_data", which=(kind,))
    value = FOUND[kind][0]
    places = [place for place, each in enumerate(value) if each.isdigit()][-3:]
    for place in places:
        wrong = value[:place] + str((int(value[place]) + 1) % 10) + value[place + 1 :]
        assert found_by(check, wrong) == [], wrong


@pytest.mark.parametrize(
    "text",
    [
        "14242424242424242x 94242424242424242",  # inside longer numbers
        "0000000000000000",
        "1700000000000 milliseconds",
        "01.02.2024 and 2024-02-01 12:30:45",
        "version 1.2.3.4, 3.14159265358979",
        "a@b, @ann, x@y..z, user@host",
        "DE00 3704 9944 9532 9130 00",
        "000-12-3456, 666-12-3456, 900-12-3456",
        "BG123456C",
        "ISBN 978-3-16-148410-0",
    ],
)
def test_what_only_looks_like_personal_data_is_left_alone(text: str) -> None:
    """With the kinds that are looked for where nothing is said."""
    assert found_by(make_check("personal_data"), text) == []


def test_a_card_is_found_among_other_groups_of_digits() -> None:
    """Numbers before and behind it do not hide it."""
    check = make_check("personal_data", which=("card",))
    assert found_by(check, "12 4242 4242 4242 4242 99 1") == [("card", "4242 4242 4242 4242")]
    assert found_by(check, "1-2-3, 378282246310005 77") == [("card", "378282246310005")]


def test_a_run_of_digits_longer_than_a_block_is_seen_across_its_blocks() -> None:
    """Wherever the card lies in it."""
    check = make_check("personal_data", which=("card",))
    for before in (4_080, 4_085, 4_090, 4_096, 8_190):
        text = "1 " * (before // 2) + "4242 4242 4242 4242" + " 1" * 3_000
        assert ("card", "4242 4242 4242 4242") in found_by(check, text)


def test_much_that_is_found_ends_in_one_finding_of_the_whole_rest() -> None:
    """Nothing passes because there was much before it."""
    text = b"4242424242424242, " * (MAX_FINDINGS + 500)
    found = ALL.look(text)
    assert len(found) == MAX_FINDINGS
    assert found[-1].stop == len(text)
    assert b"4242" not in redact(text, merge_findings(found))


def test_what_several_kinds_find_at_one_place_is_replaced_once() -> None:
    """Under the name of what begins first."""
    text = b"my number is 86095742719."
    assert redact(text, merge_findings(ALL.look(text))).count(b"[") == 1
