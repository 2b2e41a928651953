"""Which class of answers a request asks for, and how that folds with what the request itself wants."""

from __future__ import annotations

import time
from typing import Any

import pytest

from proxy.config.cache_classes import CacheClass, CacheClasses
from proxy.config.catalog import load_catalog
from proxy.config.settings import Settings
from proxy.config.time_words import make_timely, make_words
from proxy.policy.cache_classes import choose
from proxy.policy.caching import Lifetimes, decide_caching
from proxy.policy.plan import ShareClass
from proxy.policy.policies import About
from proxy.policy.turns import Turns, read_turns
from proxy.protocol.call import Call
from proxy.protocol.headers import Controls

FUNCTION = {"type": "function", "function": {"name": "f"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def turns_of(*messages: Any, **fields: Any) -> Turns:
    """``messages``: texts of user, assistant, user … in turn, or whole messages."""
    roles = ("user", "assistant")
    said = [
        each if isinstance(each, dict) else {"role": roles[at % 2], "content": each}
        for at, each in enumerate(messages)
    ]
    turns = read_turns(Call(b"", {"model": "m", "messages": said, **fields}, "m", False, False), "chat.completions")
    assert turns is not None
    return turns


def about(**fields: Any) -> About:
    return About(**{
        "route": "chat.completions", "key_id": "key_1", "tenant": "acme", "tags": (), "wall": 0.0, "unit": b"u" * 16,
        **fields,
    })  # fmt: skip


def classes(text: str = "") -> CacheClasses:
    savings = load_catalog(f"cache_classes: {{{text}}}", {}, Settings(openai_api_key="k")).savings
    assert savings is not None
    assert savings.classes is not None
    return savings.classes


DEFAULTS = classes()
LONG = "Tell me how a steam engine works. " * 10


def name_of(turns: Turns | None, found: CacheClasses = DEFAULTS, **fields: Any) -> str | None:
    chosen = choose(found, turns, about(**fields))
    return None if chosen is None else chosen.name


@pytest.mark.parametrize(
    ("turns", "name"),
    [
        (turns_of("How do I boil an egg?"), "small"),
        (turns_of({"role": "system", "content": LONG}, {"role": "user", "content": "hi"}), "small"),
        (turns_of(LONG), "exact"),
        (turns_of("What is on it?", response_format={"type": "json_object"}), "exact"),
        (turns_of({"role": "user", "content": [{"type": "text", "text": "what is that?"}, IMAGE]}), "exact"),
        (turns_of("How do I boil an egg?", user="u1"), "user"),
        (turns_of(LONG, metadata={"user_id": "u1"}), "user"),
        (turns_of("hi", "hello", "and you?"), "conversation"),
        (turns_of("hi", "hello", "and you?", user="u1"), "conversation"),
        (turns_of("book it", tools=[FUNCTION]), "conversation"),
        (turns_of("What is the weather in Rome?"), "timely"),
        (turns_of("Who won the latest race?", user="u1"), "timely"),
    ],
)
def test_the_defaults_tell_requests_apart(turns: Turns, name: str) -> None:
    """What depends on the moment or on what was said is one thing, a question that everybody asks another."""
    assert name_of(turns) == name


@pytest.mark.parametrize(
    "text",
    [
        "what time is it", "TODAY's headlines", "the price of gold", "Wie ist das Wetter?", "Was kostet das heute",
        "quel temps fait-il aujourd’hui", "aujourd'hui", "¿qué hora es?", "el tiempo de mañana", "que horas são",
        "che ore sono", "hoe laat is het", "która godzina", "vad är klockan just nu", "bugün hava durumu",
        "какая погода",
        "который час", "котра година", "今天天气怎么样", "今日の天気", "오늘 날씨 어때", "كم الساعة", "आज का मौसम",
        "e\u0301 l'ultimo? no, hoje",
    ],
)  # fmt: skip
def test_words_of_the_moment_are_known_in_many_languages(text: str) -> None:
    """Whatever case they are in."""
    assert name_of(turns_of(text)) == "timely"


@pytest.mark.parametrize("text", ["knowledge of snow", "Pricewise", "the newspaper", "Bekanntmachung", "morgenstern"])
def test_a_word_of_the_moment_inside_another_word_is_none(text: str) -> None:
    """Only whole words count where words are set apart."""
    assert name_of(turns_of(text)) == "small"


def test_an_operators_words_and_conditions_decide_first() -> None:
    """By route, tenant, key and tag; the first rule that is met."""
    found = classes(
        "classes: {faq: {ttl_s: 9}, ours: {ttl_s: 8}, other: {ttl_s: 7}},"
        " rules: [{cache_class: faq, words: ['opening hours', 'öffnungszeiten', '営業時間']},"
        " {cache_class: ours, tenants: [acme], tags: [batch, nightly]}, {cache_class: other, routes: [embeddings]},"
        " {cache_class: other, keys: [key_2]}], timely: {words: [matchday]}"
    )

    assert name_of(turns_of("Your  Opening   Hours today?"), found) == "faq"
    assert name_of(turns_of("ÖFFNUNGSZEITEN"), found) == "faq"
    assert name_of(turns_of("今日の営業時間は"), found) == "faq"
    assert name_of(turns_of("hi"), found, tags=("nightly",)) == "ours"
    assert name_of(turns_of("hi"), found, tags=("nightly",), tenant="globex") == "small"
    assert name_of(turns_of("hi"), found, key_id="key_2") == "other"
    assert name_of(None, found, route="embeddings") == "other"
    assert name_of(turns_of("is it Matchday?"), found) == "timely"


def test_what_is_no_conversation_is_left_to_its_route() -> None:
    """Unless a rule speaks of the route."""
    assert name_of(None, route="embeddings") is None


def test_a_users_class_keeps_nothing_where_nobody_is_named() -> None:
    """It keeps its name, for the log."""
    found = classes("rules: [{cache_class: user, tags: [x]}]")
    named = choose(found, turns_of("hi", user="u"), about(tags=("x",)))
    nobody = choose(found, turns_of("hi"), about(tags=("x",)))

    assert named == CacheClass("user", 3_600.0, "user")
    assert nobody == CacheClass("user", 0.0, "user")
    assert nobody is choose(found, turns_of("ho"), about(tags=("x",)))


def lifetimes(kept: CacheClass) -> Lifetimes:
    return Lifetimes(kept.ttl_s, kept.stale_while_revalidate_s, kept.stale_if_error_s, kept.oldest_s)


def test_a_class_that_keeps_nothing_keeps_what_the_request_itself_asks_for() -> None:
    """And nothing else, whatever the route says."""
    never = lifetimes(CacheClass("conversation", 0.0))
    plain = decide_caching(ShareClass.SAMPLED, never, Controls())
    asked = decide_caching(ShareClass.SAMPLED, never, Controls(cache="on", cache_ttl_s=20.0))

    assert (plain.reads, plain.writes) == (False, False)
    assert (asked.reads, asked.writes, asked.ttl_s, asked.max_age_s) == (True, True, 20.0, None)


def test_a_request_may_shorten_and_refuse_what_its_class_keeps() -> None:
    """Never lengthen it."""
    day = lifetimes(CacheClass("exact", 86_400.0))

    def decide(**fields: Any) -> Any:
        return decide_caching(ShareClass.SAMPLED, day, Controls(**fields))

    assert decide().ttl_s == 86_400.0
    assert decide(cache_ttl_s=60.0).ttl_s == 60.0
    assert decide(cache_ttl_s=1e6).ttl_s == 86_400.0
    assert not decide(cache="off").writes
    assert not decide(no_store=True).writes


def test_an_older_entry_than_its_class_allows_is_not_taken_whoever_kept_it() -> None:
    """A class that keeps for less long than before is believed at once."""
    hour = lifetimes(CacheClass("user", 3_600.0, stale_while_revalidate_s=40.0, stale_if_error_s=30.0))

    assert decide_caching(ShareClass.SAMPLED, hour, Controls()).max_age_s == pytest.approx(4_000.0)
    assert decide_caching(ShareClass.SAMPLED, hour, Controls(max_age_s=5.0)).max_age_s == 5.0


def test_a_mebibyte_of_text_is_judged_within_a_hundredth_of_a_second_or_so() -> None:
    """Hostile ones too: the time is linear, and a fiftieth of a second is the most it may be."""
    texts = ["tomorro " * (1 << 17), "a" * (1 << 20), "den här veckа " * (1 << 16), "今" * (1 << 18)]
    took = []
    for text in texts:
        turns = turns_of(text)
        at = time.perf_counter()
        choose(DEFAULTS, turns, about())
        took.append(time.perf_counter() - at)

    assert sorted(took)[len(took) // 2] < 0.05
    assert max(took) < 0.5  # beside other tests


def test_words_without_end_are_made_into_patterns_that_are_not_too_long() -> None:
    """Each still counts."""
    words = tuple(f"word number {number}" for number in range(200))
    found, timely = make_words(words), make_timely(words, built_in=True)

    assert found is not None
    assert timely is not None
    assert all(found.which(f"so, WORD  number {number}.".encode()) for number in (0, 100, 199))
    assert timely.which(b"word number 77")
    assert not found.which(b"word number 5000")
    assert make_words([]) is make_timely((), built_in=False) is None
