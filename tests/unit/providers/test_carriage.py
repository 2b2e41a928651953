"""The published table of what is carried, against the code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
    assert [make_providers()[kind].name for kind in KINDS] == list(KINDS)


# Members whose contents are data of the caller, and not of the dialect.
DATA = frozenset(
    ("parameters", "input_schema", "schema", "parametersJsonSchema", "responseSchema", "args", "response", "input",
     "logit_bias", "metadata", "labels")
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every object of the dialect stands in a request."""
    if isinstance(value, dict):
        yield path
        for name, inner in value.items():
            if name not in DATA or isinstance(inner, list):
                yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def with_news(value: Any, path: tuple[Any, ...]) -> Any:
    """The request with a member that nobody knows, at ``path``."""
    if not path:
        return {**value, "zzNews": 1}
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = with_news(copy[path[0]], path[1:])
    return copy


# A tool that the caller's own choice excludes is not sent where a list cannot be narrowed otherwise.
UNSENT = {"tool_choice allowed_tools": ("tools", 1)}


def left_out_whole(path: tuple[Any, ...], reported: tuple[str, ...]) -> bool:
    """Whether what stands at ``path`` was already reported as a whole, or something around it."""
    name = ""
    for step in path:
        name += "[]" if isinstance(step, int) else f".{step}" if name else step
        if name in reported:
            return True
    return False


@pytest.mark.parametrize(("caller", "field"), SAMPLES, ids=lambda name: name)
def test_no_unknown_member_is_dropped_silently_wherever_it_stands(caller: str, field: str) -> None:
    """A vendor adds members every month: each is sent on, told, or refused with the field it stands in."""
    base = {**BASE[caller], **SAMPLES[caller, field]}
    silent = []
    for path in places(base):
        fields = with_news(base, path)
        for target in TARGETS:
            if PROVIDERS[target].wire == PROVIDERS[caller].wire:
                continue
            try:
                encoding = translate(PROVIDERS[caller], PROVIDERS[target], fields, Form(MODELS[target])).encoding
            except ProxyError:
                continue
            plain = translate(PROVIDERS[caller], PROVIDERS[target], base, Form(MODELS[target])).encoding
            told = b"zzNews" in encoding.body or not set(encoding.reported) <= set(plain.reported)
            if not told and not left_out_whole(path, plain.reported) and path[:2] != UNSENT.get(field):
                silent.append((path, target))

    assert silent == [], silent
