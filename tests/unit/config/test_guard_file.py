"""Guards of the catalog file: what becomes of what it says, and how what is wrong is reported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from proxy.config.catalog import CatalogError, load_catalog
from proxy.config.guard_file import MODERATION_URL
from proxy.config.guards import Guard
from proxy.config.settings import Settings
from proxy.guard.compile import compile_guard

EXAMPLE = Path(__file__).parents[3] / "deploy/examples/guards.yaml"


def load(text: str, env: Mapping[str, str] = MappingProxyType({})) -> tuple[Guard, ...]:
    savings = load_catalog(text, env, Settings(openai_api_key="k")).savings
    return () if savings is None else savings.guards


def guard(text: str) -> Guard:
    (made,) = load(f"guards: {{g: {{{text}}}}}")
    return made


def problems(text: str) -> list[str]:
    with pytest.raises(CatalogError) as caught:
        load(f"guards: {{{text}}}")
    return [re.sub(r"^<text>:\d+:\d+: ", "", str(problem)) for problem in caught.value.problems]


def test_a_guard_is_made_with_all_that_is_said_of_it() -> None:
    """Times in seconds, whom it is for in sets, options in order."""
    made = guard(
        "kind: personal_data, mode: after, action: redact, fail: open, timeout_ms: 250, which: [mail, card, mail], "
        "for: {tenants: [acme], keys: [key_1], routes: [chat.completions]}"
    )
    assert made == Guard(
        "g", "personal_data", "after", "redact", True, 0.25, frozenset({"acme"}), frozenset({"key_1"}),
        frozenset({"chat.completions"}), (("which", ("mail", "card")),),
    )  # fmt: skip


def test_what_is_not_said_is_careful() -> None:
    """Before the call, blocking, closed where it fails, for everybody."""
    made = guard("kind: secrets")
    assert (made.mode, made.action, made.fail_open, made.timeout_s) == ("before", "block", False, 1.0)
    assert not made.tenants | made.keys | made.routes
    assert guard("kind: schema, schema: {type: object}").mode == "after"


def test_guards_stay_in_the_order_of_the_file() -> None:
    """They are asked in it."""
    assert [each.name for each in load("guards: {z: {kind: secrets}, a: {kind: injection}}")] == ["z", "a"]
    assert load("guards: {}") == ()


def test_a_moderation_guard_has_its_key_in_a_header() -> None:
    """From the environment, and the usual address."""
    text = "guards: {m: {kind: moderation, api_key: '${KEY}', categories: [violence], thresholds: {hate: 0.5}}}"
    (made,) = load(text, {"KEY": "k1"})
    assert made.is_remote
    assert dict(made.options) == {
        "url": MODERATION_URL,
        "headers": (("authorization", "Bearer k1"),),
        "categories": ("violence",),
        "thresholds": (("hate", 0.5),),
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("g: {kind: nonsense}", "guards.g.kind: expected one of personal_data, secrets"),
        ("g: {mode: before}", "guards.g: 'kind' is missing"),
        ("G!: {kind: secrets}", "guards.'G!': this cannot be the name of a guard; 1 to 64 lower-case"),
        ("g: {kind: secrets, mode: later}", "guards.g.mode: expected one of before, during, after"),
        ("g: {kind: secrets, mode: during, action: redact}", "guards.g.action: during the call it is too late"),
        ("g: {kind: webhook, url: 'http://g/', action: redact}", "guards.g.action: a webhook says what it thinks"),
        ("g: {kind: size, most_tokens: 5, action: redact}", "guards.g.action: size judges texts as a whole"),
        ("g: {kind: schema, schema: {}, mode: before}", "guards.g.mode: a schema is for answers"),
        ("g: {kind: secrets, words: [a]}", "guards.g.words: not for a guard of kind secrets; that takes which"),
        ("g: {kind: secrets, which: [jwd]}", "guards.g.which[0]: unknown: 'jwd'; did you mean"),
        ("g: {kind: secrets, which: []}", "guards.g.which: there is nothing to look for"),
        ("g: {kind: secrets, fail: maybe}", "guards.g.fail: expected one of open, closed"),
        ("g: {kind: secrets, timeout_ms: 0}", "guards.g.timeout_ms: expected"),
        ("g: {kind: secrets, for: {routes: [chat.completion]}}", "guards.g.for.routes[0]: there is no route"),
        ("g: {kind: secrets, for: {users: [x]}}", "guards.g.for.users: there is no such key"),
        ("g: {kind: secrets, for: {keys: ['']}}", "guards.g.for.keys[0]: expected a name"),
        ("g: {kind: words}", "guards.g: 'words' is missing; a guard of kind words needs it"),
        ("g: {kind: words, words: []}", "guards.g.words: there is no word"),
        ("g: {kind: words, words: ['...']}", "guards.g.words[0]: there is no letter or digit in it"),
        ("g: {kind: expressions, patterns: ['(a']}", "guards.g.patterns[0]: no regular expression of RE2's"),
        ("g: {kind: expressions, patterns: {n: '(?=a)'}}", "guards.g.patterns.n: no regular expression of RE2's"),
        ("g: {kind: expressions, patterns: {N: 'a'}}", "guards.g.patterns.N: this cannot be a name here"),
        ("g: {kind: expressions, patterns: ['a*']}", "guards.g.patterns[0]: it also matches nothing at all"),
        ("g: {kind: expressions, patterns: [1]}", "guards.g.patterns: expected a list of texts"),
        ("g: {kind: topics, topics: {a: [x], b: [X]}}", "guards.g.topics.b[0]: 'X' is of the topic 'a' already"),
        ("g: {kind: size}", "guards.g: expected one of 'most_characters' and 'most_tokens'"),
        ("g: {kind: size, most_tokens: 1, most_characters: 1}", "guards.g: expected one of 'most_characters'"),
        ("g: {kind: schema, schema: {properties: {a: {typ: x}}}}", "guards.g.schema.properties.a.typ: a rule"),
        ("g: {kind: schema, schema: {pattern: '(?=a)'}}", "guards.g.schema.pattern: no regular expression"),
        ("g: {kind: webhook}", "guards.g: 'url' is missing"),
        ("g: {kind: webhook, url: 'ftp://x'}", "guards.g.url: expected an address"),
        ("g: {kind: webhook, url: 'http://u:p@x'}", "guards.g.url: an address without a password"),
        ("g: {kind: webhook, url: 'http://x', headers: {Host: y}}", "guards.g.headers.Host: this header is"),
        ("g: {kind: webhook, url: 'http://x', headers: {'a b': y}}", "guards.g.headers.'a b': this cannot"),
        ("g: {kind: webhook, url: 'http://x', headers: {a: 'ü'}}", "guards.g.headers.a: expected printable ASCII"),
        ("g: {kind: moderation}", "guards.g: 'api_key' is missing"),
        ("g: {kind: moderation, api_key: k, thresholds: {hate: 2}}", "guards.g.thresholds.hate: expected"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place_and_the_reason(text: str, wanted: str) -> None:
    """Before any request meets it."""
    (problem,) = problems(text)
    assert problem.startswith(wanted)


def test_everything_wrong_is_told_at_once() -> None:
    """With lines, so that one round of corrections will do."""
    found = problems("a: {kind: size}, b: {kind: secrets, mode: during, action: redact, words: [x]}")
    assert len(found) == 3


def test_the_example_that_ships_is_a_catalog_of_guards_of_every_kind() -> None:
    """And each built-in one of it can be compiled."""
    guards = load(EXAMPLE.read_text("utf-8"), {"OPENAI_API_KEY": "k", "GUARD_TOKEN": "t"})
    assert {each.kind for each in guards} == {
        *("personal_data", "secrets", "words", "expressions", "injection", "topics", "size", "schema"),
        *("webhook", "moderation"),
    }
    for each in guards:
        if not each.is_remote:
            assert compile_guard(each).name == each.name
