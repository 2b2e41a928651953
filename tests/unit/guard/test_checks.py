"""Checks that judge texts as a whole, how long checks may take, and equal guards."""

from __future__ import annotations

import time

import pytest

from proxy.config.guards import BUILT_IN_KINDS, PERSONAL_DATA, REMOTE_KINDS, Guard, GuardSet
from proxy.guard.base import Check, Quotes
from proxy.guard.compile import compile_guard
from proxy.guard.tally import Tally
from tests.unit.guard.make import make_check

MIB = 1 << 20
EVERY = {
    "personal_data": make_check("personal_data", which=PERSONAL_DATA),
    "secrets": make_check("secrets"),
    "words": make_check("words", words=("a b", "a", "词")),
    "expressions": make_check("expressions", patterns=(("expression", "(a+)+$|(a|aa)+b|(.*a){8}c"),)),
    "injection": make_check("injection"),
    "topics": make_check("topics", "block", topics=(("t", ("a",)),)),
}
HOSTILE = {
    "digits": b"4" * MIB,
    "spaced digits": b"4 " * (MIB // 2),
    "signs": b"@" * MIB,
    "mails": b"a@b." * (MIB // 4),
    "letters": b"a" * MIB,
    "words": b"a " * (MIB // 2),
    "begins": b"-----BEGIN " * (MIB // 11),
    "keys": b"sk-" * (MIB // 3),
    "addresses": b"a://" * (MIB // 4),
    "countries": b"DE12 " * (MIB // 5),
    "tokens": b"eyJhbGciOi." * (MIB // 11),
    "ignore": b"ignore " * (MIB // 7),
    "marks": "“é”".encode() * (MIB // 8),
}  # fmt: skip


def test_sizes_are_of_all_texts_together() -> None:
    """Characters, not bytes; tokens at four bytes."""

    def judge(check: Check, *texts: str) -> bool:
        tally = Tally([check])
        for text in texts:
            tally.weigh(text.encode())
        return tally.is_blocked

    characters = make_check("size", "block", most_characters=4)
    assert not judge(characters, "äö", "词词")
    assert judge(characters, "äö", "词词", "x")
    tokens = make_check("size", "block", most_tokens=2)
    assert not judge(tokens, "x" * 8)
    assert judge(tokens, "x" * 9)


def test_equal_guards_have_one_check_and_remote_ones_have_none() -> None:
    """So that a reload of the catalog does not compile everything anew."""
    first, second = (Guard("g", "secrets", "before", options=(("which", ("jwt",)),)) for _ in range(2))
    assert compile_guard(first) is compile_guard(second)
    with pytest.raises(KeyError):
        compile_guard(Guard("g", "webhook", "before"))
    assert not set(BUILT_IN_KINDS) & set(REMOTE_KINDS)


def test_the_digest_of_a_set_does_not_depend_on_the_order_of_its_sets() -> None:
    """It is part of a key that several processes share, and sets have another order in each."""
    tenants = [f"tenant{number}" for number in range(50)]
    first, second = (
        Guard("g", "secrets", "before", tenants=frozenset(each)) for each in (tenants, list(reversed(tenants)))
    )
    assert GuardSet((first,)).digest == GuardSet((second,)).digest
    said = first.spell()
    assert said.index("tenant0'") < said.index("tenant10'") < said.index("tenant9'")
    assert GuardSet((first,)).digest != GuardSet((Guard("g", "secrets", "before"),)).digest


def test_quotes_are_told_however_the_text_is_cut() -> None:
    """Escapes at the cut included."""
    text = rb'{"a\"b": "\\", "c": 1, "d'
    for cut in range(len(text) + 1):
        quotes = Quotes()
        quotes.feed(text[:cut])
        assert quotes.feed(text[cut:]) is True
        assert quotes.at == len(text)
    assert Quotes().feed(text[: text.index(b"1")]) is False


@pytest.mark.parametrize("kind", EVERY)
def test_long_texts_are_not_for_the_event_loop(kind: str) -> None:
    """What takes more than some milliseconds at worst says so."""
    assert EVERY[kind].is_slow(MIB)
    assert not EVERY[kind].is_slow(1_024)


@pytest.mark.long
@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("kind", EVERY)
def test_a_hostile_text_takes_time_by_its_length(kind: str, text: str) -> None:
    """A quarter of the text takes a quarter of the time, with room for a busy machine. A mebibyte may take seconds,
    which are a thread's."""
    check = EVERY[kind]

    def measure(size: int) -> float:
        began = time.thread_time()
        check.look(HOSTILE[text][:size])
        return time.thread_time() - began

    quarter = min(measure(MIB // 16) for _ in range(2))
    assert measure(MIB // 4) < 10 * quarter + 0.05
