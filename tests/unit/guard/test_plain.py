"""Texts as they read: which characters are taken for others, and where those stand in the text as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.guard.plain import Plain, read_plain

ODD = "\u00a0\u00ad\u200b\u2011\u3000\ufeff４ｗ\u0664\U0001d7d2\U0001d41a"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("4111\u00a01111\u202f1111", "4111 1111 1111"),
        ("a\u2011b\u2013c\u2212d", "a-b-c-d"),
        ("wo\u200br\u00add\u2060s\ufeff", "words"),
        ("ＡＢｃ：４２", "ABc:42"),
        ("\u0664\u06f2 \U0001d7d2\U0001d41a", "42 4a"),
        ("süß 词 é", None),
        ("plain", None),
    ],
)
def test_what_only_looks_different_or_cannot_be_seen_is_read_plainly(text: str, plain: str | None) -> None:
    """Letters and digits of other widths and scripts, spaces, hyphens, joiners; words of other languages stay."""
    read = read_plain(text.encode())
    assert (read.text.decode() if read is not None else None) == plain


@given(st.lists(st.sampled_from(list(ODD + "ab4 词é")), max_size=30).map(lambda chars: "a" + "".join(chars)))
def test_every_stretch_is_found_again_in_the_text_as_it_is(text: str) -> None:
    """What it spans there reads as the stretch does; and each place is found from both sides."""
    encoded = text.encode()
    plain = read_plain(encoded)
    if plain is None:
        assert not set(text) & set(ODD)
        return
    starts = [at for at, byte in enumerate(plain.text) if byte & 0xC0 != 0x80]
    for start in starts:
        for stop in [at for at in (*starts, len(plain.text)) if at > start]:
            first, last = plain.span(start, stop)
            assert read(encoded[first:last]) == plain.text[start:stop]
        assert plain.find(plain.place(start)) == start
    assert plain.place(len(plain.text)) == len(encoded)


def test_many_characters_in_a_row_that_cannot_be_seen_are_bounded_where_that_is_asked() -> None:
    """Those beyond stay, and part what they stand between."""
    text = ("4" + "\u200b" * 5 + "2").encode()
    assert read(text) == b"42"
    bounded = read_plain(text, 3)
    assert bounded is not None
    assert bounded.text == ("4" + "\u200b" * 2 + "2").encode()


def read(text: bytes) -> bytes:
    plain: Plain | None = read_plain(text)
    return text if plain is None else plain.text
