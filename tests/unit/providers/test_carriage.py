"""The published table of what is carried, against the code."""

from __future__ import annotations

import pytest

from proxy.errors import Kind, ProxyError
from proxy.providers import anthropic_read, chat_read, gemini_read, responses_read
from proxy.providers.base import Form
from proxy.providers.carriage import (
    ANSWERS,
    CARRIAGE,
    TARGETS,
    TITLES,
    WORDS,
    render_answers,
    render_requests,
)
from proxy.providers.kinds import KINDS, make_providers
from proxy.providers.translation import translate
from tests.unit.providers.samples import BASE, SAMPLES

PROVIDERS = make_providers()
MODELS = {
    "openai": "gpt-6",
    "anthropic": "claude-opus-4-6",
    "mistral": "mistral-large",
    "compatible": "qwen",
    "gemini": "gemini-2.5-pro",
    "responses": "gpt-6",
}


def verdict(caller: str, target: str, field: str) -> str:
    """What the code does with a field; ``silent`` if it says nothing and sends nothing."""
    provider, form = PROVIDERS[target], Form(MODELS[target])
    base = translate(PROVIDERS[caller], provider, BASE[caller], form).encoding
    assert base.reported == ()
    try:
        encoding = translate(PROVIDERS[caller], provider, {**BASE[caller], **SAMPLES[caller, field]}, form).encoding
    except ProxyError as error:
        return "refused" if error.kind is Kind.BAD_REQUEST and error.public.startswith("'") else str(error)
    if encoding.reported:
        return "reported"
    return "silent" if encoding.body == base.body else "carried"


@pytest.mark.parametrize("caller", CARRIAGE)
def test_what_the_table_says_is_what_happens(caller: str) -> None:
    """No row is a promise: each is a request that is translated for every target."""
    wrong = {}
    for field, letters in CARRIAGE[caller].items():
        for target, letter in zip(TARGETS, letters, strict=True):
            if letter == "s":
                assert PROVIDERS[caller].wire == PROVIDERS[target].wire
                continue
            said = "reported" if letter == "a" else WORDS[letter]
            if verdict(caller, target, field) != said:
                wrong[field, target] = verdict(caller, target, field)

    assert wrong == {}


def test_every_row_has_its_request_and_every_request_its_row() -> None:
    """The table and its proof cannot drift apart."""
    assert {(caller, field) for caller, rows in CARRIAGE.items() for field in rows} == set(SAMPLES)


@pytest.mark.parametrize(
    ("caller", "options"),
    [
        ("openai", chat_read.OPTIONS),
        ("anthropic", anthropic_read.OPTIONS),
        ("responses", responses_read.OPTIONS),
        ("gemini", gemini_read.OPTIONS),
    ],
)
def test_every_option_a_reader_knows_has_a_row(caller: str, options: dict[str, str]) -> None:
    """An option that is added is added to the table."""
    assert [name for name in options if not any(name in field for field in CARRIAGE[caller])] == []


def test_the_table_renders_as_markdown() -> None:
    """README shows it."""
    for caller in CARRIAGE:
        lines = render_requests(caller).splitlines()
        assert lines[0].startswith(f"| {TITLES[caller]} | openai |")
        assert {line.count("|") for line in lines} == {len(TARGETS) + 2}
        assert len(lines) == len(CARRIAGE[caller]) + 2
    assert all(rows.keys() == ANSWERS["openai"].keys() for rows in ANSWERS.values())
    assert {line.count("|") for line in render_answers().splitlines()} == {len(ANSWERS) + 2}


def test_every_column_is_a_kind_of_provider() -> None:
    """The table names what exists; Azure is as OpenAI."""
    assert set(TARGETS) | {"azure"} == set(KINDS)
    assert [kind.name for kind in KINDS.values()] == list(KINDS)
