"""Cache classes of the catalog file: what becomes of what it says, and how what is wrong is reported."""

from __future__ import annotations

import re

import pytest

from proxy.config.cache_class_file import DEFAULT_CLASSES, MAX_CLASSES
from proxy.config.cache_classes import CacheClass, CacheClasses
from proxy.config.catalog import Catalog, CatalogError, load_catalog
from proxy.config.settings import Settings


def load(text: str) -> Catalog:
    return load_catalog(f"cache_classes: {{{text}}}", {}, Settings(openai_api_key="k"))


def classes(text: str) -> CacheClasses:
    savings = load(text).savings
    assert savings is not None
    assert savings.classes is not None
    return savings.classes


def problems(text: str) -> list[str]:
    with pytest.raises(CatalogError) as caught:
        load(text)
    return [re.sub(r"^<text>:\d+:\d+: ", "", str(problem)) for problem in caught.value.problems]


def test_a_file_without_the_section_has_no_classes() -> None:
    """Nothing that is not said is on."""
    assert load_catalog("aliases: {}", {}, Settings(openai_api_key="k")).savings is None


def test_an_empty_section_stands_for_the_classes_that_come_with_the_proxy() -> None:
    """As `use: default` does."""
    found = classes("use: default")

    assert found == classes("")
    assert found.classes == DEFAULT_CLASSES
    assert {each.name: (each.ttl_s, each.scope) for each in found.classes} == {
        "timely": (0.0, "caller"),
        "conversation": (0.0, "caller"),
        "user": (3_600.0, "user"),
        "small": (604_800.0, "caller"),
        "exact": (86_400.0, "caller"),
    }
    assert [rule.of.name for rule in found.rules] == [
        "timely", "conversation", "conversation", "user", "small", "exact",
    ]  # fmt: skip


def test_an_operators_rules_come_first_and_change_what_comes_with_the_proxy() -> None:
    """Of a known class only what is said changes."""
    found = classes(
        "classes: {exact: {ttl_s: 60},"
        " faq: {ttl_s: 9, stale_while_revalidate_s: 3, stale_if_error_s: 4, scope: user}},"
        " rules: [{cache_class: faq, routes: [messages], tags: [faq], least_turns: 1, most_turns: 3, most_chars: 9,"
        " words: ['opening hours'], tools: false, user: true}], timely: {words: ['match day'], built_in: false}"
    )
    faq = CacheClass("faq", 9.0, "user", 3.0, 4.0)

    assert faq in found.classes
    assert CacheClass("exact", 60.0) in found.classes
    first = found.rules[0]
    assert (first.of, first.routes, first.tags) == (faq, frozenset(("messages",)), frozenset(("faq",)))
    assert (first.least_turns, first.most_turns, first.most_chars) == (1, 3, 9)
    assert (first.tools, first.user, first.words) == (False, True, ("opening hours",))
    assert found.rules[-1].of == CacheClass("exact", 60.0)
    assert (found.timely.words, found.timely.built_in) == (("match day",), False)


def test_without_the_defaults_only_the_operators_own_rules_are_there() -> None:
    """And a section of nothing is worth a warning."""
    found = classes("use: none, classes: {a: {ttl_s: 5}}, rules: [{cache_class: a}]")
    warned = load("use: none").warnings

    assert [rule.of.name for rule in found.rules] == ["a"]
    assert found.classes == (CacheClass("a", 5.0),)
    assert any("no rule" in str(problem) for problem in warned)


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("rules: [{cache_class: nothing}]", "cache_classes.rules[0].cache_class", "there is no class 'nothing'"),
        ("rules: [{cache_class: exact, routes: [chit.chat]}]", "cache_classes.rules[0].routes[0]", "no such route"),
        (
            "rules: [{cache_class: exact, least_turns: 3, most_turns: 2}]",
            "cache_classes.rules[0].most_turns",
            "never true",
        ),
        (
            "rules: [{cache_class: exact, least_chars: 3, most_chars: 2}]",
            "cache_classes.rules[0].most_chars",
            "never true",
        ),
        ("rules: [{cache_class: exact, words: [' ']}]", "cache_classes.rules[0].words[0]", "no word or phrase"),
        ("timely: {words: ['']}", "cache_classes.timely.words[0]", "no word or phrase"),
        ("classes: {own: {scope: user}}", "cache_classes.classes.own", "does not say for how long"),
        ("classes: {Own: {ttl_s: 1}}", "cache_classes.classes.Own", "cannot be the name of a class"),
        ("classes: {own: {ttl_s: -1}}", "cache_classes.classes.own.ttl_s", ""),
        ("classes: {own: {ttl_s: 1, scope: everybody}}", "cache_classes.classes.own.scope", ""),
        ("use: nothing", "cache_classes.use", ""),
        ("rules: [{ttl_s: 3}]", "cache_classes.rules[0]", ""),
    ],
)
def test_what_is_wrong_is_refused_at_its_place(text: str, path: str, message: str) -> None:
    """With a reason."""
    found = problems(text)

    assert any(problem.startswith(path) and message in problem for problem in found), found


def test_classes_have_a_bound() -> None:
    """They are labels of metrics."""
    many = ", ".join(f"c{number}: {{ttl_s: 1}}" for number in range(MAX_CLASSES + 1))

    assert any("at most" in problem for problem in problems(f"classes: {{{many}}}"))


def test_what_can_hardly_be_meant_is_warned_of() -> None:
    """A class that no rule leads to, stale answers of what is never kept, a user's class for requests without one."""
    found = load(
        "classes: {lonely: {ttl_s: 1}, never: {ttl_s: 0, stale_if_error_s: 5}},"
        " rules: [{cache_class: never, tags: [x]}, {cache_class: user, user: false}]"
    )
    said = " ".join(str(problem) for problem in found.warnings)

    assert "no rule leads to this class" in said
    assert "nothing of this class is kept" in said
    assert "these requests name none" in said
