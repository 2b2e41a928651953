"""The section ``patterns`` of the catalog file: what it says, and how what is wrong is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import pattern_file
from proxy.config.catalog import CatalogError, load_catalog
from proxy.config.hours import When
from proxy.config.patterns import Pattern, PatternAnswer, Patterns
from proxy.config.phrases import read_phrase
from proxy.config.settings import Settings
from proxy.config.template import Template

STARTER = Path(__file__).parents[3] / "deploy/examples/patterns.yaml"


def load(text: str) -> Patterns | None:
    savings = load_catalog(text, {}, Settings()).savings
    return savings.patterns if savings is not None else None


def rule(text: str) -> str:
    """A file with one rule."""
    return f"patterns:\n  rules:\n    r: {{{text}}}\n"


def problems(text: str) -> list[str]:
    with pytest.raises(CatalogError) as caught:
        load(text)
    return [str(problem).removeprefix("<text>:") for problem in caught.value.problems]


def test_a_file_that_says_nothing_of_patterns_has_none() -> None:
    """And one whose section is empty has none either."""
    assert load("") is None
    assert load("patterns:") is None
    assert load("patterns: {max_chars: 10}") is None


def test_the_short_form_is_a_whole_rule() -> None:
    """Everything else has its default."""
    hi = read_phrase("hi")
    assert hi is not None
    assert load(rule("phrases: [Hi, hi!!], answers: [Hello.]")) == Patterns(
        (Pattern("r", (PatternAnswer(Template(("Hello.",))),), (hi,)),)
    )


def test_everything_that_is_said_reaches_the_rule() -> None:
    """Nothing is dropped on the way."""
    patterns = load(
        rule(
            "expressions: ['my name is (?P<who>.+)'], answers: [{text: 'Hi {who}', hours: 05:00-11:30, days: [sat]}],"
            " routes: [messages], models: [gpt-*], keys: [k], tenants: [t], tags: [x], first_turn: no,"
            " after_question: true, with_tools: true, without_system: true, hours: '22:00-06:00', days: [mon, sun],"
            " time_zone: Europe/Berlin, weekdays: [a, b, c, d, e, f, g]"
        ).replace("first_turn: no", "first_turn: false")
    )
    assert patterns is not None
    [made] = patterns.rules
    assert made.answers[0].when == When(300, 690, frozenset({5}))
    assert (made.expressions, made.routes, made.models) == (
        ("my name is (?P<who>.+)",), frozenset({"messages"}), ("gpt-*",),
    )  # fmt: skip
    assert (made.keys, made.tenants, made.tags) == (frozenset("k"), frozenset("t"), frozenset("x"))
    assert (made.first_turn, made.after_question, made.with_tools, made.without_system) == (False, True, True, True)
    assert (made.when, str(made.zone)) == (When(1320, 360, frozenset({0, 6})), "Europe/Berlin")
    assert made.weekdays == tuple("abcdefg")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("phrases: [hi]", "3:5: patterns.rules.r: 'answers' is missing"),
        ("answers: [x]", "3:5: patterns.rules.r: the rule matches nothing; give it phrases, expressions or both"),
        ("phrases: [hi], answers: []", "3:24: patterns.rules.r.answers: "),
        ("phrases: [hi, '!?'], answers: [x]", "3:23: patterns.rules.r.phrases[1]: nothing is left of this phrase"),
        ("phrases: [hi], answers: [x], colour: red", "3:38: patterns.rules.r.colour: there is no such key"),
        ("phrases: [hi], answers: [' ']", "3:34: patterns.rules.r.answers[0]: the answer is empty"),
        ("phrases: [hi], answers: ['{nmae}']", "3:34: patterns.rules.r.answers[0]: there is no variable 'nmae'"),
        ("phrases: [hi], answers: ['{time.x}']", "3:34: patterns.rules.r.answers[0]: '{time.x}' is no variable"),
        ("phrases: [hi], answers: ['a {']", "3:34: patterns.rules.r.answers[0]: a lone '{'"),
        ('phrases: [hi], answers: ["a\\x07"]', "3:34: patterns.rules.r.answers[0]: expected text without control"),
        ("phrases: [hi], answers: [{text: '{x}'}]", "3:35: patterns.rules.r.answers[0].text: there is no variable"),
        ("phrases: [hi], answers: [{text: x, hours: 5-6}]", "3:44: patterns.rules.r.answers[0].hours: expected two"),
        ("phrases: [hi], answers: [x], hours: 05:00-05:00", "3:38: patterns.rules.r.hours: they begin and end"),
        ("phrases: [hi], answers: [x], days: []", "3:38: patterns.rules.r.days: there is no day"),
        ("phrases: [hi], answers: [x], days: [monday]", "3:45: patterns.rules.r.days[0]: expected one of mon, tue"),
        ("phrases: [hi], answers: [x], weekdays: [a]", "3:38: patterns.rules.r.weekdays: expected a list of length"),
        ("phrases: [hi], answers: [x], time_zone: Mars", "3:38: patterns.rules.r.time_zone: there is no time zone"),
        ("phrases: [hi], answers: [x], routes: [embeddings]", "3:47: patterns.rules.r.routes[0]: expected one of"),
        ("phrases: [hi], answers: [x], models: ['*x']", "3:47: patterns.rules.r.models[0]: only the last character"),
        ("phrases: [hi], answers: [x], keys: ['']", "3:45: patterns.rules.r.keys[0]: this is empty"),
        ("expressions: ['('], answers: [x]", "3:23: patterns.rules.r.expressions[0]: this is no regular expression"),
        ("expressions: ['(a)\\1'], answers: [x]", "3:23: patterns.rules.r.expressions[0]: this is no regular"),
        ("expressions: ['(?=a)a'], answers: [x]", "3:23: patterns.rules.r.expressions[0]: this is no regular"),
        ("expressions: ['((a{9}){99}){99}'], answers: [x]", "3:23: patterns.rules.r.expressions[0]: this is no"),
        ("expressions: ['a*'], answers: [x]", "3:23: patterns.rules.r.expressions[0]: this matches an empty message"),
        ("expressions: ['(?P<time>a)'], answers: [x]", "3:23: patterns.rules.r.expressions[0]: the group 'time'"),
        (
            "phrases: [hi], expressions: ['i am (?P<name>a+)'], answers: ['{name}']",
            "3:70: patterns.rules.r.answers[0]: not every message of this rule has 'name'; say what stands for it",
        ),
        (
            "expressions: ['i am (?P<name>a+)', 'me'], answers: ['{name}']",
            "3:61: patterns.rules.r.answers[0]: not every message of this rule has 'name'",
        ),
    ],
)  # fmt: skip
def test_a_bad_rule_is_refused_with_its_place_and_the_reason(said: str, told: str) -> None:
    """Line, column and path of the very thing that is wrong, and nothing else is told."""
    found = problems(rule(said))
    assert found[0].startswith(told)
    assert len(found) == 1


def test_what_is_wrong_with_the_section_is_told_as_well() -> None:
    """All of it at once."""
    found = problems(
        "patterns:\n  time_zone: Nowhere\n  rules:\n    a b: {phrases: [hi], answers: [x]}\n"
        "    long: {phrases: [" + "a" * 201 + "], answers: [x]}\n"
    )
    assert [problem.partition(": ")[0] for problem in found] == ["2:3", "4:5", "5:22"]
    assert "there is no time zone 'Nowhere'" in found[0]
    assert "cannot be the name of a rule" in found[1]
    assert "no message of 201 characters is looked at; max_chars says" in found[2]


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        ("MAX_RULES", "2:3: patterns.rules: there are 2 rules; at most 1 are possible"),
        ("MAX_EXPRESSIONS", "2:3: patterns.rules: all rules together have 2 expressions; at most 1 are possible"),
        ("MAX_ALL_PHRASES", "2:3: patterns.rules: all rules together have 2 phrases; at most 1 are possible"),
    ],
)
def test_there_is_a_bound_on_everything(monkeypatch: pytest.MonkeyPatch, bound: str, told: str) -> None:
    """Here of one, so that the file is small."""
    monkeypatch.setattr(pattern_file, bound, 1)
    each = "{phrases: [hi], expressions: [x], answers: [x], tags: [%s]}"
    assert problems(f"patterns:\n  rules:\n    a: {each % 'a'}\n    b: {each % 'b'}\n") == [told]


def test_an_answer_has_a_bounded_length() -> None:
    """It stands in memory for good."""
    [found] = problems(rule(f"phrases: [hi], answers: ['{'x' * 4_001}']"))
    assert "answers[0]: the answer has 4001 characters; at most 4000 are possible" in found


def test_a_group_that_every_message_has_needs_no_other_word() -> None:
    """With phrases beside it, a word has to stand for it."""
    assert load(rule("expressions: ['i am (?P<name>a+)', '(?P<name>b+) here'], answers: ['{name}']")) is not None
    assert load(rule("phrases: [hi], expressions: ['i am (?P<name>a+)'], answers: ['{name|you}']")) is not None


def test_a_phrase_that_a_rule_above_always_answers_is_warned_of() -> None:
    """It can be used, and was hardly meant. A rule for some callers hides nothing."""
    text = "patterns:\n  rules:\n    a: {phrases: [hi], answers: [x]%s}\n    b: {phrases: ['Hi!'], answers: [y]}\n"
    said = [str(each) for each in load_catalog(text % "", {}, Settings()).warnings]
    assert len(said) == 1
    assert "4:5: patterns.rules.b: the rule 'a' above answers 'hi' already" in said[0]
    for condition in ("tags: [x]", "hours: 05:00-06:00", "models: [x]", "without_system: true", "keys: [k]"):
        assert load_catalog(text % f", {condition}", {}, Settings()).warnings == ()
    for condition in ("first_turn: false", "with_tools: true", "after_question: true", "without_system: false"):
        assert len(load_catalog(text % f", {condition}", {}, Settings()).warnings) == 1, "wider than the other"
        below = (text % "").replace("answers: [y]", f"answers: [y], {condition}")
        narrower = condition == "without_system: false"
        assert len(load_catalog(below, {}, Settings()).warnings) == narrower, "it says more than the one above"


def test_an_expression_that_matches_anything_is_warned_of() -> None:
    """It may be meant."""
    [warning] = load_catalog(rule("expressions: ['.+'], answers: [closed]"), {}, Settings()).warnings
    assert "patterns.rules.r.expressions[0]: this matches any message" in str(warning)


def test_equal_sections_make_equal_catalogs() -> None:
    """A reload that changes nothing is none."""
    text = STARTER.read_text("utf-8")
    assert load_catalog(text, {}, Settings()) == load_catalog(text, {}, Settings())
    assert load(text) != load(text.replace("How can I help", "What is it"))


def test_the_starter_set_is_clean() -> None:
    """No problem, no warning, at least eight languages and at most forty rules."""
    catalog = load_catalog(STARTER, {}, Settings())
    assert catalog.warnings == ()
    assert catalog.savings is not None
    assert catalog.savings.patterns is not None
    names = [each.name for each in catalog.savings.patterns.rules]
    assert len(names) <= 40
    assert len({name.rpartition("-")[2] for name in names if name.startswith(("hello", "good-day"))}) >= 8
