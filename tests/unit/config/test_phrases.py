"""When two small messages say the same."""

from __future__ import annotations

import pytest

from proxy.config.phrases import Phrase, read_phrase


def read(text: str) -> Phrase:
    phrase = read_phrase(text)
    assert phrase is not None
    return phrase


def says(phrase: str, message: str) -> bool:
    """As the look-up does it: the same letters, then runs and question mark."""
    known, said = read(phrase), read_phrase(message)
    return said is not None and said.letters == known.letters and known.covers(said)


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        ("hello", "  HELLO!!! "),
        ("hello", "hello :-) <3"),
        ("ok", "ok ^_^"),
        ("what's up", "Whats up"),
        ("what's up", "what’s   up…"),
        ("don't", "don´t"),
        ("ça va", "CA VA"),
        ("grüß gott", "Grüss Gott!"),
        ("xin chào", "xin chao"),
        ("łódź", "lodz"),
        ("istanbul", "İstanbul"),
        ("привет", "ПРИВЕТ))"),
        ("ещё", "еще"),
        ("γεια σου", "Γειά σου!"),
        ("مرحبا", "مَرْحَبًا"),
        ("שלום", "שָׁלוֹם"),
        ("नमस्ते", "नमस्ते।"),
        ("สวัสดี", "สวัสดี"),
        ("こんにちは", "こんにちは！"),
        ("ガス", "ｶﾞｽ"),
        ("你好", "你好～"),
        ("안녕하세요", "안녕하세요?!".replace("?", "")),
        ("hello", "ｈｅｌｌｏ"),
        ("hello", "**hello**"),
        ("danke", "danke 🙏🏽🙏"),
    ],
)
def test_writing_that_changes_no_meaning_does_not_count(phrase: str, message: str) -> None:
    """In any script."""
    assert says(phrase, message)


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        ("hello", "hell"),
        ("good", "god"),
        ("god", "good"),
        ("c", "c++"),
        ("c", "C#"),
        ("1", "+1"),
        ("100", "1000"),
        ("10", "1000"),
        ("ok", "ok 2"),
        ("done", "done?"),
        ("了解", "了解？"),
        ("हिन्दी", "हन्द"),
        ("か", "が"),
        ("👍", "👎"),
    ],
)
def test_what_may_change_the_meaning_counts(phrase: str, message: str) -> None:
    """Better a call too many than an answer to something else."""
    assert not says(phrase, message)


def test_a_phrase_that_asks_is_said_without_the_question_mark_as_well() -> None:
    """People leave them out; they do not add them."""
    assert says("how are you?", "How are you")
    assert says("how are you?", "how are you ???")
    assert says("qué tal?", "¿Qué tal?")
    assert says("كيف حالك?", "كيف حالك؟")


@pytest.mark.parametrize(
    "message", ["helloooo", "heeeello", "HEEEELLLLOOOO", "hellllo"]
)
def test_a_stretched_letter_fits_where_it_stands_fewer_times(message: str) -> None:
    """Three in a row or more are stretched."""
    assert says("hello", message)


def test_letters_that_are_doubled_stay_doubled_unless_they_are_stretched() -> None:
    """Two of the same may be another word; a stretched word may be either."""
    assert not says("to", "too")
    assert says("to", "tooo")
    assert says("too", "tooo")
    assert not says("too", "to")
    assert says("good morning", "goooood mooorninggg")


@pytest.mark.parametrize(
    ("message", "kept"), [("👍🏽👍", "👍"), ("❤️", "❤"), ("✅ !!", "✅"), ("👋🏻👋🏿 🎉", "👋🎉")]
)
def test_a_message_of_emoji_is_those_emoji(message: str, kept: str) -> None:
    """Once each, whatever their colour of skin."""
    assert read(message).letters == kept


@pytest.mark.parametrize("message", ["", "  ", "...", "?!", ":-)", "<3".replace("3", ""), "\u200d\ufe0f", "ـ"])
def test_nothing_is_left_of_punctuation(message: str) -> None:
    """Such a message says nothing that could be looked up."""
    assert read_phrase(message) is None


def test_any_text_at_all_can_be_read() -> None:
    """Texts come from strangers: every character, lone surrogates included."""
    for start in range(0, 0x110000, 997):
        read_phrase("".join(map(chr, range(start, min(start + 3, 0x110000)))))
