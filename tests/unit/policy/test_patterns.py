"""Which rule answers a message, and what it says."""

from __future__ import annotations

import json
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from proxy.config.catalog import load_catalog
from proxy.config.patterns import Patterns
from proxy.config.settings import Settings
from proxy.config.yaml_text import read_document
from proxy.errors import ProxyError
from proxy.policy.patterns import Matched, is_open, match
from proxy.policy.policies import About
from proxy.policy.turns import read_turns
from proxy.protocol.call import parse_call
from proxy.protocol.headers import parse_controls
from proxy.protocol.message import make_request_head
from proxy.protocol.routes import locate

STARTER = Path(__file__).parents[3] / "deploy/examples/patterns.yaml"
CHAT = "chat.completions"
PATHS = {CHAT: "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
NINE = 1_767_344_400.0
"""Friday, 2 January 2026, 09:00 UTC."""
HOUR = 3_600.0
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def rules(text: str, **section: Any) -> Patterns:
    """One rule by name in each line, as YAML flow mappings without braces."""
    said = "\n".join(f"    {line.replace(': ', ': {', 1)}}}" for line in text.strip().splitlines())
    top = "".join(f"  {name}: {value}\n" for name, value in section.items())
    savings = load_catalog(f"patterns:\n{top}  rules:\n{said}\n", {}, Settings()).savings
    assert savings is not None
    assert savings.patterns is not None
    return savings.patterns


HELLO = rules("hello: phrases: [hello, hi], answers: [Good day.]")


def turns_of(*said: str) -> list[dict[str, Any]]:
    """The user begins."""
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]


def ask(
    patterns: Patterns,
    *said: str,
    route: str = CHAT,
    wall: float = NINE,
    unit: bytes = b"u" * 16,
    who: tuple[str, str, tuple[str, ...]] = ("key_1", "acme", ("web",)),
    **fields: Any,
) -> Matched | None:
    """What is answered to the last of ``said``, which user and model say in turn."""
    body: dict[str, Any] = {"model": "gpt-4o-mini"}
    body["input" if route == "responses" else "messages"] = turns_of(*said)
    if route == "responses":
        body["store"] = False
    elif route == "messages":
        body["max_tokens"] = 100
    body |= fields
    located = locate(make_request_head("POST", PATHS[route], []))
    call = parse_call(located.route, json.dumps({k: v for k, v in body.items() if v != "absent"}).encode())
    turns = read_turns(call, route)
    assert turns is not None
    return match(patterns, turns, About(route, *who, wall, unit), call)


def text(found: Matched | None) -> str:
    assert found is not None
    return found.text


@pytest.mark.parametrize("route", PATHS)
def test_a_known_phrase_is_answered_on_each_route(route: str) -> None:
    """However it is written; and nothing else is."""
    assert ask(HELLO, "  Hellooo!! :)", route=route) == Matched("hello", "Good day.", 3)
    assert ask(HELLO, "hello, what is a flight", route=route) is None
    assert ask(HELLO, "", route=route) is None
    assert ask(HELLO, "...", route=route) is None


@pytest.mark.parametrize("route", PATHS)
def test_text_in_pieces_is_text(route: str) -> None:
    """One piece of text is what SDKs often send; two make one message."""
    kind = "input_text" if route == "responses" else "text"
    member = "input" if route == "responses" else "messages"
    said = [{"role": "user", "content": [{"type": kind, "text": "hi"}]}]
    assert ask(HELLO, route=route, **{member: said}) is not None
    said[0]["content"] *= 2  # type: ignore[operator]
    assert ask(HELLO, route=route, **{member: said}) is None


def test_the_input_of_a_response_may_be_a_text() -> None:
    """The short form of one message."""
    assert ask(HELLO, route="responses", input="hi") is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"audio": {"voice": "alloy"}},
        {"modalities": ["text", "audio"]},
        {"web_search_options": {}},
        {"store": True},
        {"tools": [TOOL]},
        {"functions": [{"name": "f"}]},
        {"tool_choice": "required", "tools": [TOOL]},
        {"model": "absent"},
        {"max_tokens": 2},
        {"max_completion_tokens": 1},
        {"max_tokens": "many"},
        {"stop": "day"},
        {"stop": ["x", "."]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "unheard_of"}]}]},
        {"messages": [{"role": "user", "content": ["hi"]}]},
        {"messages": [*turns_of("hi"), {"role": "assistant", "content": "I say"}]},
        {"messages": [*turns_of("hi"), {"role": "system", "content": "Be rude."}]},
    ],
)
def test_whoever_wants_more_than_plain_words_is_answered_by_the_model(fields: dict[str, Any]) -> None:
    """Choices, forms, sounds, tools, bounds that the answer does not fit."""
    assert ask(HELLO, "hi", **fields) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "logprobs": False, "stream": True, "temperature": 0, "seed": 1, "user": "u"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"store": False, "tools": [], "tool_choice": "auto"},
        {"max_tokens": 3},
        {"stop": ["\n\n"]},
        {"messages": [{"role": "system", "content": "Be kind."}, *turns_of("hi")]},
    ],
)
def test_what_asks_for_nothing_in_particular_changes_nothing(fields: dict[str, Any]) -> None:
    """The same members with their usual values."""
    assert ask(HELLO, "hi", **fields) is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"store": "absent"},
        {"store": True},
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"background": True},
        {"prompt": {"id": "p"}},
        {"include": ["reasoning.encrypted_content"]},
        {"text": {"format": {"type": "json_schema"}}},
        {"max_output_tokens": 2},
    ],
)
def test_a_response_that_the_provider_would_keep_is_its_own(fields: dict[str, Any]) -> None:
    """Its id is good for going on; one of ours would name nothing there."""
    assert ask(HELLO, "hi", route="responses", **fields) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": "absent"},
        {"max_tokens": 1},
        {"stop_sequences": ["day"]},
        {"tool_choice": {"type": "any"}, "tools": [{"name": "f"}]},
        {"output_config": {"format": {"type": "json_schema"}}},
        {"mcp_servers": [{"url": "x"}]},
        {"container": "c"},
    ],
)
def test_a_message_that_wants_more_is_the_models(fields: dict[str, Any]) -> None:
    """Of Anthropic's dialect, where a bound on the answer has to be there."""
    assert ask(HELLO, "hi", route="messages", **fields) is None


def test_tools_that_may_be_used_are_a_condition_of_the_rule() -> None:
    """Tools that must be used are not."""
    patterns = rules("r: phrases: [hi], answers: [x], with_tools: true")
    assert ask(patterns, "hi", tools=[TOOL]) is not None
    assert ask(patterns, "hi", tools=[TOOL], tool_choice="auto") is not None
    for forced in ("required", "any", {"type": "function", "function": {"name": "f"}}, ["f"], 1):
        assert ask(patterns, "hi", tools=[TOOL], tool_choice=forced) is None
    claude = {"route": "messages", "tools": [{"name": "f"}]}
    assert ask(patterns, "hi", tool_choice={"type": "auto"}, **claude) is not None
    assert ask(patterns, "hi", tool_choice={"type": "tool", "name": "f"}, **claude) is None


def test_a_long_message_is_not_looked_at() -> None:
    """Even if it says no more than a short one."""
    patterns = rules("r: phrases: [hi], answers: [x]", max_chars=10)
    assert ask(patterns, "hi" + "!" * 8) is not None
    assert ask(patterns, "hi" + "!" * 9) is None


# -- conditions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "fits"),
    [
        ("routes: [messages]", False),
        ("routes: [messages, chat.completions]", True),
        ("models: [gpt-4o]", False),
        ("models: [claude*, gpt-4o*]", True),
        ("models: [gpt-4o-mini]", True),
        ("keys: [key_2]", False),
        ("keys: [key_2, key_1]", True),
        ("tenants: [other]", False),
        ("keys: [key_2], tenants: [acme]", True),
        ("tags: [app]", False),
        ("tags: [app, web]", True),
        ("tags: [web], keys: [key_2]", False),
        ("hours: 08:00-10:00", True),
        ("hours: 08:00-10:00, time_zone: Europe/Athens", False),
        ("hours: 11:00-11:01, time_zone: Europe/Athens", True),
        ("days: [fri]", True),
        ("days: [sat]", False),
    ],
)
def test_a_rule_answers_where_its_conditions_hold(condition: str, fits: bool) -> None:
    """Otherwise the next one may."""
    patterns = rules(f"r: phrases: [hi], answers: [x], {condition}\nother: phrases: [hi], answers: [y]")
    found = ask(patterns, "hi")
    assert found is not None
    assert found.name == ("r" if fits else "other")


def test_only_the_first_turn_is_answered_unless_the_rule_says_otherwise() -> None:
    """What comes later belongs to a conversation."""
    later = rules("r: phrases: [thanks], answers: [x], first_turn: false")
    first = rules("r: phrases: [thanks], answers: [x]")
    said = ("What is 2+2?", "It is 4.", "thanks")
    assert ask(later, *said) is not None
    assert ask(first, *said) is None
    assert ask(first, "thanks", messages=[{"role": "system", "content": "s"}, *turns_of("thanks")]) is not None


@pytest.mark.parametrize(
    "asked", ["Shall I?", "Shall I? Say ok. 🙂", "Совсем?", "要しますか？", "هل أفعل؟", "Να το κάνω;"]
)
def test_what_may_answer_a_question_is_the_models(asked: str) -> None:
    """Its "ok" would be taken for a word of politeness."""
    patterns = rules("r: phrases: [ok], answers: [x], first_turn: false")
    eager = rules("r: phrases: [ok], answers: [x], first_turn: false, after_question: true")
    assert ask(patterns, "Delete it.", asked, "ok") is None
    assert ask(eager, "Delete it.", asked, "ok") is not None
    assert ask(patterns, "Delete it.", f"{asked} {'Never mind. ' * 40}", "ok") is not None


def test_further_words_of_a_caller_without_an_answer_are_the_models() -> None:
    """They belong to what was said before; so do words behind a tool's result or a call of one."""
    patterns = rules("r: phrases: [thanks], answers: [x], first_turn: false")
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": {}}]}
    result = {"role": "tool", "tool_call_id": "1", "content": "4"}
    for before in ([*turns_of("Explain this.")], [*turns_of("x"), call, result], [*turns_of("x"), call]):
        assert ask(patterns, messages=[*before, *turns_of("thanks")]) is None


def test_a_rule_may_want_no_system_prompt() -> None:
    """Which may say how to greet."""
    patterns = rules("r: phrases: [hi], answers: [x], without_system: true")
    assert ask(patterns, "hi") is not None
    assert ask(patterns, "hi", messages=[{"role": "developer", "content": "s"}, *turns_of("hi")]) is None
    assert ask(patterns, "hi", route="messages", system="s") is None
    assert ask(patterns, "hi", route="responses", instructions="s") is None


@pytest.mark.parametrize(
    ("headers", "opened"),
    [
        ([], True),
        ([(b"x-sameflight-cache", b"only")], True),
        ([(b"x-sameflight-share", b"off")], True),
        ([(b"cache-control", b"only-if-cached")], True),
        ([(b"cache-control", b"max-age=60")], True),
        ([(b"cache-control", b"no-cache")], False),
        ([(b"cache-control", b"no-store")], False),
        ([(b"cache-control", b"max-age=0")], False),
        ([(b"x-sameflight-cache", b"off")], False),
        ([(b"x-sameflight-cache", b"refresh")], False),
    ],
)
def test_whoever_asks_past_the_caches_asks_past_the_rules(headers: list[tuple[bytes, bytes]], opened: bool) -> None:
    """They want an answer that was made for them. Not to share is another matter: a rule's answer is nobody's."""
    assert is_open(parse_controls(make_request_head("POST", "/v1/chat/completions", headers))) is opened


# -- answers ---------------------------------------------------------------------------------------------------


def test_the_first_rule_that_fits_answers() -> None:
    """Whether its phrase or its expression does."""
    patterns = rules("a: expressions: ['h.'], answers: [a]\nb: phrases: [hi, ho, he!], answers: [b]")
    assert text(ask(patterns, "Hi")) == "a"
    assert text(ask(patterns, "he!")) == "b"


def test_answers_of_this_hour_come_before_those_of_any_hour() -> None:
    """Those of any hour are for the rest of the day; where there is none, the rule does not answer."""
    line = "phrases: [good morning], time_zone: Asia/Tokyo, answers: [{text: early, hours: 05:00-11:00}"
    patterns = rules(f"r: {line}, other]")
    strict = rules(f"r: {line}]")
    seen = [text(ask(patterns, "Good morning", wall=NINE + hours * HOUR)) for hours in (0, 10, 11, 12, 16, 17)]
    assert seen == ["other", "other", "early", "early", "early", "other"]
    assert ask(strict, "Good morning") is None


def test_one_user_gets_one_answer_and_users_get_all_of_them() -> None:
    """Drawn by a stable hash: equal requests are answered alike, in every process."""
    patterns = rules("r: phrases: [hi, hello], answers: [a, b, c]")
    drawn = Counter(text(ask(patterns, "hi", unit=bytes([n]) * 16)) for n in range(255))
    assert set(drawn) == set("abc")
    assert min(drawn.values()) > 55
    assert [text(ask(patterns, "hi", unit=bytes([n]) * 16)) for n in range(8)] == list("aaabcaac"), "stable for good"


def test_variables_are_told_in_the_rules_zone_and_words() -> None:
    """Midnight has passed in Auckland."""
    patterns = rules(
        "r: phrases: [when], answers: ['{weekday} {date} {time} {hour} {day}.{month}.{year} {model} {{}}'],"
        " time_zone: Pacific/Auckland, weekdays: [Mo, Di, Mi, Do, Fr, Sa, So]"
    )
    assert text(ask(patterns, "when", wall=NINE + 3 * HOUR)) == "Sa 2026-01-03 01:00 1 3.1.2026 gpt-4o-mini {}"


def test_what_an_expression_took_is_said_bounded_and_as_it_is() -> None:
    """A caller's text is no template and no more than sixty characters."""
    patterns = rules("r: expressions: ['(?:hi, )?my name is (?P<name>.+?)[.!]*'], answers: ['Hello {name}!']")
    assert text(ask(patterns, "Hi, my\n name  is Zoë!!")) == "Hello Zoë!"
    assert text(ask(patterns, "my name is {time} {name}")) == "Hello {time} {name}!"
    assert text(ask(patterns, f"my name is {'x' * 100}")) == f"Hello {'x' * 60}!"


def test_a_group_that_took_nothing_leaves_the_answer_to_others() -> None:
    """An answer with an empty place in it is none."""
    patterns = rules("r: expressions: ['i am(?: (?P<name>\\w+))?'], answers: ['Hello {name}!']")
    fallback = rules("r: expressions: ['i am(?: (?P<name>\\w+))?'], answers: ['Hello {name|friend}!']")
    assert text(ask(patterns, "I am Ada")) == "Hello Ada!"
    assert ask(patterns, "I am") is None
    assert text(ask(fallback, "I am")) == "Hello friend!"


def test_an_expression_has_to_match_the_whole_message() -> None:
    """A greeting at the head of a question is no greeting."""
    patterns = rules("r: expressions: ['hello\\b.?'], answers: [x]")
    assert ask(patterns, "HELLO.") is not None
    assert ask(patterns, "hello. What is a flight?") is None


def test_each_of_many_rules_is_found() -> None:
    """By its phrase and by its expression."""
    line = "r%d: phrases: [say %d], expressions: ['x%dy+'], answers: [a%d]"
    patterns = rules("\n".join(line % (n, n, n, n) for n in range(100)))
    for n in (0, 1, 50, 99):
        assert text(ask(patterns, f"Say {n}!")) == text(ask(patterns, f"X{n}yyy")) == f"a{n}"


def test_requests_of_any_shape_are_answered_by_the_model_or_by_a_rule() -> None:
    """What a stranger writes never raises."""
    odd: list[Any] = [None, 1, "hi", [], ["hi"], {}, [{}], [{"role": "user"}], [{"role": "user", "content": 7}],
                      [{"role": "user", "content": [{"type": "text"}]}], [None, {"role": "user", "content": "hi"}],
                      [{"role": "user", "content": [{"type": 1, "text": "hi"}]}]]  # fmt: skip
    for listed in odd:
        located = locate(make_request_head("POST", PATHS[CHAT], []))
        call = parse_call(located.route, json.dumps({"model": "m", "messages": listed}).encode())
        turns = read_turns(call, CHAT)
        if turns is not None:
            match(HELLO, turns, About(CHAT, "k", "", (), NINE, b""), call)
    for name in ("n", "stop", "max_tokens", "tool_choice", "tools", "modalities", "include", "store"):
        for value in ({}, [], [[]], "x", -1, 1e9, True, {"type": []}, [{}]):
            try:
                ask(HELLO, "hi", **{name: value})
            except ProxyError:
                pytest.fail(f"{name}={value!r}")


# -- the starter set -------------------------------------------------------------------------------------------


@cache
def starter() -> tuple[Patterns, list[str]]:
    """The shipped rules, and their phrases as they stand in the file."""
    savings = load_catalog(STARTER, {}, Settings()).savings
    assert savings is not None
    assert savings.patterns is not None
    said = read_document(STARTER.read_text("utf-8"), "starter", {}).data
    assert isinstance(said, dict)
    phrases = [str(each) for one in said["patterns"]["rules"].values() for each in one.get("phrases", ())]
    return savings.patterns, phrases


def test_every_phrase_of_the_starter_set_is_answered_at_every_hour() -> None:
    """No rule hides another, and no answer leaves a part of the day out."""
    patterns, phrases = starter()
    assert len(phrases) > 200
    hours = [NINE + hour * HOUR for hour in (0, 7, 14, 21)]
    assert [phrase for phrase in phrases for wall in hours if not ask(patterns, phrase, wall=wall)] == []


@pytest.mark.parametrize(
    "message",
    [
        "hi, what is the capital of France?",
        "ok, but why",
        "thanks, and what about Tuesday?",
        "say hello in French",
        "good morning in Japanese",
        "done?",
        "translate danke",
        "2+2",
        "c++",
        "no",
        "yes",
        "k=3",
        "vale la pena?",
        "привет мир на python",
        "你好怎么说",
    ],
)
def test_the_starter_set_leaves_questions_to_the_model(message: str) -> None:
    """What only begins with a greeting is none."""
    patterns, _ = starter()
    assert ask(patterns, message) is None


def test_hostile_expressions_and_texts_stay_linear() -> None:
    """What takes other engines longer than the age of the universe is over before anybody notices."""
    patterns = rules("r: expressions: ['(a+)+b', '(a|a)*c', '(.*)*=(.*)*d'], answers: [x]", max_chars=2000)
    began = time.process_time()
    assert ask(patterns, "a" * 1_999 + "!") is None
    assert ask(patterns, "=" * 2_000) is None
    assert ask(patterns, "a" * (1 << 20)) is None
    assert ask(patterns, "(" * 1_000 + ":" * 1_000) is None
    assert ask(patterns, "+<" * 1_000) is None
    assert time.process_time() - began < 1.0
