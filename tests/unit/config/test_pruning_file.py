"""The catalog file's sections about pruning and slimming: what is said, and what is wrong with it."""

from __future__ import annotations

from hashlib import sha256

import pytest

from proxy.config.catalog import Catalog, CatalogError, load_catalog
from proxy.config.pruning import DEFAULT_INSTRUCTIONS, Measure, Pruning, Slimming, Summary
from proxy.config.settings import Settings

MODELS = """
models:
  tiny: {targets: [openai/gpt-4o-mini]}
  smart: {targets: [openai/gpt-4o]}
aliases: {little: tiny}
"""


def load(text: str) -> Catalog:
    return load_catalog(MODELS + text, {}, Settings(openai_api_key="k"))


def pruning(text: str) -> Pruning:
    savings = load(f"pruning: {text}").savings
    assert savings is not None
    assert savings.pruning is not None
    return savings.pruning


def slimming(text: str) -> Slimming:
    savings = load(f"slimming: {text}").savings
    assert savings is not None
    assert savings.slimming is not None
    return savings.slimming


def problems(text: str) -> list[str]:
    with pytest.raises(CatalogError) as caught:
        load(text)
    return [str(problem).removeprefix("<text>:") for problem in caught.value.problems]


def test_a_file_that_says_nothing_of_it_prunes_nothing() -> None:
    """Off until it is asked for."""
    assert load("").savings is None


def test_an_empty_section_keeps_the_last_twenty_messages() -> None:
    """The defaults of the file are those of the record."""
    assert pruning("{}") == Pruning()
    assert Measure() == Measure(messages=20, tokens=0, block=10)


def test_everything_that_is_said_reaches_the_record() -> None:
    """An alias stands for what it means, and a model's own measure says only what is different."""
    found = pruning(
        "{messages: 30, tokens: 9000, block: 6, routes: [messages], models: {smart: {tokens: 0}, 'claude-*':"
        " {messages: 8}}, summary: {model: little, max_tokens: 99, most_input_tokens: 5000, timeout_s: 2,"
        " on_failure: keep, ttl_s: 60, instructions: Be short.}}"
    )
    assert found.usual == Measure(30, 9000, 6)
    assert dict(found.by_model) == {"smart": Measure(30, 0, 6), "claude-*": Measure(8, 9000, 6)}
    assert found.routes == frozenset(("messages",))
    assert found.summary == Summary("tiny", 99, 5000, 2.0, "keep", 60.0, "Be short.")


def test_a_summary_may_be_just_a_model() -> None:
    """All else by default."""
    found = pruning("{summary: tiny}").summary
    assert found == Summary("tiny")
    assert found is not None
    assert found.instructions == DEFAULT_INSTRUCTIONS


def test_the_longest_beginning_decides_about_a_model() -> None:
    """A whole name before any beginning; the first name that says something before the second."""
    found = pruning("{models: {'a*': {messages: 1}, 'ab*': {messages: 2}, smart: {messages: 3}}}")
    assert [found.find(name).messages for name in ("ax", "abx", "smart", "other", "")] == [1, 2, 3, 20, 20]
    assert found.find("other", "abx").messages == 2
    assert found.find("smart", "abx").messages == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{messages: 0}", "6:1: pruning: neither messages nor tokens have a bound; give one of them, or"),
        ("{tokens: 50}", "6:11: pruning.tokens: 50 tokens leave no room; at least 100"),
        ("{tokens: 700, summary: tiny}", "pruning.tokens: 700 tokens leave no room beside a summary of 400; at le"),
        ("{models: {smart: {tokens: 9}}}", "pruning.models.smart.tokens: 9 tokens leave no room"),
        ("{models: {'a*b': {messages: 9}}}", "this cannot be the name of a model; a name, or its beginning"),
        ("{summary: tinny}", "pruning.summary: there is no model 'tinny'; did you mean 'tiny'"),
        ("{summary: {model: gpt-9}}", "6:21: pruning.summary.model: there is no model 'gpt-9'; name one of the cat"),
        ("{summary: {}}", "pruning.summary: 'model' is missing"),
        ("{summary: {model: tiny, on_failure: fail}}", "pruning.summary.on_failure: expected one of drop, keep"),
        ("{summary: {model: tiny, instructions: ' '}}", "pruning.summary.instructions: they say nothing"),
        ("{block: 0}", "6:11: pruning.block: expected `int` >= 1"),
        ("{routes: [embeddings]}", "pruning.routes: "),
        ("{mesages: 3}", "6:11: pruning.mesages: there is no such key; did you mean 'messages'"),
    ],
)
def test_pruning_that_cannot_be_meant_is_refused_at_its_place(text: str, problem: str) -> None:
    """With the reason and what to do."""
    [found] = problems(f"pruning: {text}")
    assert problem in found.replace("expected an integer", "expected `int`")


def test_a_measure_for_an_unknown_model_is_a_warning() -> None:
    """Models that the catalog does not list may be asked for all the same."""
    [warning] = load("pruning: {models: {smartt: {messages: 3}}}").warnings
    assert "pruning.models.smartt: the catalog knows no such model; did you mean 'smart'" in str(warning)


def test_instructions_that_nothing_would_replace_are_a_warning() -> None:
    """They stay, as some vendors refuse instructions that say nothing."""
    [warning] = load("slimming: {prompts: [{replace: a}]}").warnings
    assert "slimming.prompts[0]: nothing is to stand in the place of these instructions" in str(warning)


def test_slimming_reaches_the_record() -> None:
    """Prompts by their digest, whichever way they were named."""
    digest = sha256(b"long prompt").digest()
    text = f"{{prompts: [{{sha256: {digest.hex().upper()}, by: short}}, {{replace: other, by: ''}}]"
    found = slimming(text + ", drop: [{begin: '<e>', end: '</e>'}], squeeze: true, texts: all}")
    assert dict(found.prompts) == {digest: "short", sha256(b"other").digest(): ""}
    assert (found.markers, found.squeeze, found.everywhere) == ((("<e>", "</e>"),), True, True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "6:1: slimming: there is no rule; give prompts, drop or squeeze, or leave slimming out"),
        ("{prompts: [{by: x}]}", "6:22: slimming.prompts[0]: expected either 'replace' or 'sha256'"),
        ("{prompts: [{replace: a, sha256: b}]}", "slimming.prompts[0]: expected either 'replace' or 'sha256'"),
        ("{prompts: [{sha256: beef}]}", "slimming.prompts[0].sha256: expected 64 hexadecimal digits"),
        ("{prompts: [{replace: a}, {replace: a}]}", "slimming.prompts[1]: these instructions are replaced by ano"),
        ("{drop: [{begin: '', end: x}]}", "slimming.drop[0]: a marker must not be empty"),
        ("{drop: [{begin: ' ', end: x}]}", "slimming.drop[0]: a marker must not be empty"),
        ("{squeeze: true, texts: some}", "slimming.texts: expected one of instructions, all"),
    ],
)
def test_slimming_that_cannot_be_meant_is_refused_at_its_place(text: str, problem: str) -> None:
    """With the reason and what to do."""
    [found] = problems(f"slimming: {text}")
    assert problem in found
