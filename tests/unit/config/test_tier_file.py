"""Virtual models of the catalog file: what becomes of what it says, and how what is wrong is reported."""

from __future__ import annotations

import re
from typing import Any

import pytest

from proxy.config.catalog import CatalogError, load_catalog
from proxy.config.settings import Settings
from proxy.config.tier_file import MAX_TIERS, as_pattern
from proxy.config.tiers import REASONS, Points, Rules, Tier, Tiered, has_virtual
from proxy.linear import Expression

MODELS = """
models:
  small: {targets: [openai/gpt-4o-mini]}
  large: {targets: [openai/gpt-4o]}
aliases: {cheap: small, smart: auto, default: large}
"""


def load(tiers: str) -> Any:
    return load_catalog(MODELS + f"tiers: {{{tiers}}}", {}, Settings(openai_api_key="k"))


def tiered(text: str, name: str = "auto") -> Tiered:
    found: Tiered = load(f"{name}: {{{text}}}").savings.tiers[name]
    return found


def problems(tiers: str) -> list[str]:
    with pytest.raises(CatalogError) as caught:
        load(tiers)
    return [re.sub(r"^<text>:\d+:\d+: ", "", str(problem)) for problem in caught.value.problems]


def warnings(tiers: str) -> list[str]:
    return [re.sub(r"^<text>:\d+:\d+: ", "", str(problem)) for problem in load(tiers).warnings]


def test_a_file_without_the_section_has_no_virtual_models() -> None:
    """Nothing that is not said is on."""
    assert load_catalog(MODELS, {}, Settings(openai_api_key="k")).savings is None


def test_the_short_form_names_a_model_for_each_tier() -> None:
    """Two tiers lie forty points apart, and the stronger one is the baseline."""
    found = tiered("tiers: {simple: small, complex: large}")

    assert found.tiers == (Tier("simple", "small", 0), Tier("complex", "large", 40))
    assert found == Tiered("auto", found.tiers, baseline="large")
    assert found.virtual


def test_everything_that_is_said_reaches_the_snapshot() -> None:
    """Nothing is dropped on the way; aliases are followed."""
    found = tiered(
        "tiers: {low: {model: cheap, drop_tools: true, shares: {large: 0.25, small: 0.5}}, mid: small,"
        " high: {model: default, from_points: 90}}, baseline: cheap, shadow: true, header: false,"
        " newcomers: {messages: 5, points: 60}, score: {points: {length: 7, media: 0}, long_chars: 10,"
        " long_context_chars: 20, words: [refund], patterns: ['ticket #\\d+'], built_in: false}"
    )

    assert found.tiers == (
        Tier("low", "small", 0, (("large", 0.25), ("small", 0.5)), drops_tools=True),
        Tier("mid", "small", 40),
        Tier("high", "large", 90),
    )
    assert (found.baseline, found.shadow, found.heeds_header) == ("small", True, False)
    assert found.rules == Rules(
        Points(length=7, media=0), 10, 20, (as_pattern("refund"), r"ticket #\d+"), False, 5, 60
    )
    assert found.models == {"small", "large"}


def test_a_virtual_model_answers_to_its_aliases_too() -> None:
    """However long the way is."""
    aliases = "aliases: {a: b, b: auto, other: large}"
    text = MODELS.partition("aliases")[0] + aliases + "\ntiers: {auto: {tiers: {simple: small}}}"
    found = load_catalog(text, {}, Settings(openai_api_key="k")).savings

    assert found is not None
    assert set(found.tiers) == {"auto", "a", "b"}
    assert found.tiers["a"] is found.tiers["auto"]


def test_an_alias_may_become_a_virtual_model() -> None:
    """What it stood for is the baseline, and it is not virtual only."""
    found = tiered("tiers: {simple: small, complex: small}", "default")

    assert (found.baseline, found.virtual) == ("large", False)


def test_a_models_own_name_may_be_its_strong_tier() -> None:
    """Callers go on as before and pay less."""
    catalog = load("large: {tiers: {simple: small, complex: large}}")

    assert catalog.savings.tiers["large"].baseline == "large"
    assert not has_virtual(catalog.savings.tiers)
    assert catalog.warnings == ()


def test_a_name_that_only_the_provider_knows_may_be_its_strong_tier() -> None:
    """The catalog need not list models at all."""
    text = "tiers: {gpt-5: {tiers: {simple: gpt-5-nano, complex: gpt-5}}}"
    catalog = load_catalog(text, {}, Settings(openai_api_key="k"))

    assert catalog.savings is not None
    assert catalog.savings.tiers["gpt-5"].baseline == "gpt-5"
    assert not has_virtual(catalog.savings.tiers)
    assert len(catalog.warnings) == 2


def test_a_model_that_the_catalog_does_not_know_is_warned_of() -> None:
    """A provider may know it; a slip of the pen is likelier."""
    said = warnings("auto: {tiers: {simple: smal, complex: large}}")

    assert said == [
        "tiers.auto.tiers.simple.model: the catalog has no model 'smal'; it will go to the provider of the caller's "
        "path, under this name"
    ]


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("auto: {tiers: {}}", "tiers.auto.tiers: there is no tier"),
        ("auto: {baseline: small}", "tiers.auto: 'tiers' is missing"),
        ("'a*': {tiers: {simple: small}}", "tiers.'a*': this cannot be the name of a virtual model"),
        ("auto: {tiers: {Simple: small}}", "tiers.auto.tiers.Simple: this cannot be the name of a tier"),
        ("auto: {tiers: {simple: 'sm all'}}", "tiers.auto.tiers.simple.model: this cannot be the name of a model"),
        ("auto: {tiers: {simple: small}, baseline: '*'}", "tiers.auto.baseline: this cannot be the name of a model"),
        (
            "auto: {tiers: {simple: {model: small, from_points: 5}}}",
            "tiers.auto.tiers.simple.from_points: the first tier begins at 0 points, not at 5",
        ),
        (
            "auto: {tiers: {a: small, b: {model: large, from_points: 50}, c: {model: large, from_points: 50}}}",
            "tiers.auto.tiers.c.from_points: 50 is not more than the 50 points where 'b' begins",
        ),
        (
            "auto: {tiers: {a: {model: small, shares: {large: 0.7, small: 0.4}}}}",
            "tiers.auto.tiers.a.shares: together they are 1.1, more than 1",
        ),
        ("auto: {tiers: {a: {model: small, shares: {large: -0.1}}}}", "tiers.auto.tiers.a.shares.large: expected"),
        (
            "auto: {tiers: {a: small}}, other: {tiers: {a: auto}}",
            "tiers.other.tiers.a.model: 'auto' is virtual itself, and no other model has that name",
        ),
        ("auto: {tiers: {a: small}, shadw: true}", "tiers.auto.shadw: there is no such key; did you mean 'shadow'?"),
        ("auto: {tiers: {a: small}, score: {points: {lenght: 1}}}", "tiers.auto.score.points.lenght: there is no"),
        ("auto: {tiers: {a: small}, score: {points: {length: -1}}}", "tiers.auto.score.points.length: expected"),
        (
            "auto: {tiers: {a: small}, score: {patterns: ['(?=x)']}}",
            "tiers.auto.score.patterns[0]: this is no regular expression",
        ),
        (
            "auto: {tiers: {a: small}, score: {patterns: ['x*']}}",
            "tiers.auto.score.patterns[0]: this matches a text without any words",
        ),
        ("auto: {tiers: {a: small}, score: {words: ['ok', '*']}}", "tiers.auto.score.words[1]: expected a word"),
        ("auto: {tiers: {a: small}, newcomers: {messages: 0}}", "tiers.auto.newcomers.messages: expected"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(said: str, problem: str) -> None:
    """One problem each, and nothing that follows from it."""
    found = problems(said)

    assert len(found) == 1
    assert found[0].startswith(problem)


def test_too_many_tiers_are_refused() -> None:
    """They would be labels of metrics."""
    tiers = ", ".join(f"t{number}: small" for number in range(MAX_TIERS + 1))

    assert problems(f"auto: {{tiers: {{{tiers}}}}}") == [
        f"tiers.auto.tiers: there are {MAX_TIERS + 1} tiers; at most {MAX_TIERS} are possible"
    ]


@pytest.mark.parametrize(
    ("word", "yes", "no"),
    [
        ("refund", ["a refund", "Refund?", "(refund)"], ["refunds", "prerefund"]),
        ("refund*", ["refunds", "refunding now"], ["prerefund"]),
        ("step by  step", ["step by\nstep", "Step  By Step."], ["step-by-step"]),
        ("c++", ["in C++ please"], ["c plus"]),
        ("größe", ["Die GRÖSSE", "die Größe"][1:], ["größen"]),
        ("比较", ["请比较一下"], ["比 较"]),
        ("분석", ["데이터를 분석해줘"], ["분해"]),
    ],
)
def test_a_word_is_found_as_a_whole(word: str, yes: list[str], no: list[str]) -> None:
    """Scripts without spaces have no whole words."""
    expression = Expression(as_pattern(word), ignore_case=True)

    assert [text for text in yes if expression.search(text.encode()) is None] == []
    assert [text for text in no if expression.search(text.encode()) is not None] == []


def test_equal_descriptions_have_one_version_and_others_another() -> None:
    """A reload that changes nothing forgets no choice."""
    one, same, other = (tiered(f"tiers: {{a: small, b: {model}}}") for model in ("large", "large", "small"))

    assert one == same
    assert one.version == same.version != other.version


def test_reasons_are_few_and_fit_a_label() -> None:
    """They stand in a header and in the log."""
    assert len(REASONS) == len(set(REASONS)) < 20
    assert all(re.fullmatch(r"[a-z_]+", reason) for reason in REASONS)
