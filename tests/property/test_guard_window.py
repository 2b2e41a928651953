"""Laws of guards over streams: however a text is cut into events and portions, what comes out is what redacting the
whole text gives, and a stream in which nothing is found comes out byte for byte."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.guard.base import Check, merge_findings, redact
from proxy.guard.window import Window
from tests.unit.guard.make import make_check
from tests.unit.guard.streams import DIALECTS, repeated_in, said_in

WORDS = ("word", "rotten egg", "süße Äpfel", "坏词")
CHECKS = {
    "personal_data": make_check("personal_data"),
    "card": make_check("personal_data", name="card", which=("card",)),
    "secrets": make_check("secrets"),
    "words": make_check("words", words=WORDS),
    "expressions": make_check("expressions", patterns=(("order", r"\bX-[0-9]{3,6}\b"), ("tail", "z{2,5}y?"))),
    "injection": make_check("injection"),
}
FRAGMENTS = (
    *("4242424242424242", "4242 4242 4242 4242", "378282246310005", "4242-4242-4242-424", "12 ", "2 ", "42", "-"),
    *("ann@mail.example.org", "@", "a.b@c", ".org", "+49 30 901820", "DE89 3704 0044 0532 0130 00", "DE89 ", "GB82"),
    *("sk-ant-api03-abcdefghijklmnopqrst", "sk-", "AKIA", "IOSFODNN7EXAMPLE", "eyJhbGciOi.eyJzdWIiOi.dozjgNryP4"),
    *("-----BEGIN " "PRIVATE KEY-----\n", "MIIEabcdefghijklmnopqrstuv", "\n-----END PRIVATE KEY-----", "postgres://u:"),
    *("word", "sword", "rotten", " egg", "eggs", "Süße", " äpfel", "坏", "词", "ß", "“word”", "é", "😀", "X-1234"),
    *("zz", "zzz", "zy", "ignore ", "all ", "previous ", "instructions", "<|im_", "start|>", "\\n", '"', "{", " "),
    *("\u00a0", "\u200b", "\u2011", "４２", "４２４２ ４２４２\u00a04242\u200b 4242", "ｗｏｒｄ", "wo\u00adrd"),
)  # fmt: skip

texts = st.lists(st.sampled_from(FRAGMENTS) | st.text("aA1 -é词", max_size=4), max_size=14).map("".join)


def cut(text: str, places: list[int]) -> list[str]:
    """The text in pieces."""
    at = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[first:last] for first, last in pairwise(at)]


def run(route: str, checks: list[Check], stream: bytes, steps: list[int]) -> bytes:
    window = Window(route, checks)
    out = []
    at = turn = 0
    while at < len(stream):
        step = steps[turn % len(steps)]
        out.append(window.feed(stream[at : at + step]).data)
        at, turn = at + step, turn + 1
    return b"".join((*out, window.end().data))


@pytest.mark.parametrize("route", DIALECTS)
@settings(max_examples=40)
@given(
    text=texts,
    places=st.lists(st.integers(0, 400), max_size=8),
    steps=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    names=st.sets(st.sampled_from(sorted(CHECKS)), min_size=1),
)
@example(text="4242 4242 4242 4242 4242", places=[3, 9, 20], steps=[7], names={"card"})
@example(text="zzzzzzy word", places=[2, 5, 6], steps=[60], names={"expressions", "words"})
def test_the_texts_of_a_stream_are_those_of_redacting_the_whole(
    route: str, text: str, places: list[int], steps: list[int], names: set[str]
) -> None:
    """Whatever is found, wherever it was cut, in each dialect; and nothing else changes."""
    checks = [CHECKS[name] for name in sorted(names)]
    encoded = text.encode()
    found = merge_findings(each for check in checks for each in check.look(encoded))
    wanted = redact(encoded, found).decode()
    stream = DIALECTS[route](cut(text, places))
    out = run(route, checks, stream, steps)

    assert said_in(out) == wanted
    if route == "responses":
        assert set(repeated_in(out)) <= {wanted}
    if not found:
        assert out == stream
