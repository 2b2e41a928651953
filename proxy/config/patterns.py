"""Known small messages and what is said to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from types import MappingProxyType
from typing import Final

from proxy.config.hours import ALWAYS, When
from proxy.config.phrases import Phrase
from proxy.config.template import Template
from proxy.linear import Expression, ExpressionSet

VARIABLES: Final = ("time", "hour", "date", "day", "month", "year", "weekday", "model")
"""What every answer may name; beside them, the groups that its rule's expressions name."""

WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True, slots=True)
class PatternAnswer:
    """One thing that may be said."""

    template: Template
    when: When = ALWAYS


@dataclass(frozen=True, slots=True)
class Pattern:
    """One rule: messages, conditions and answers. All conditions have to hold; empty ones always do."""

    name: str
    answers: tuple[PatternAnswer, ...]
    phrases: tuple[Phrase, ...] = ()
    expressions: tuple[str, ...] = ()
    """Each has to match the whole message, whatever its letter case."""
    routes: frozenset[str] = frozenset()
    models: tuple[str, ...] = ()
    """Names as callers write them; a ``*`` at the end stands for any rest."""
    keys: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    """Alternatives to ``keys``: one of both has to fit."""
    tags: frozenset[str] = frozenset()
    """One of them has to be the key's."""
    first_turn: bool = True
    """Only what a conversation begins with."""
    after_question: bool = False
    """Also where the model's last words are a question, which the message may answer."""
    with_tools: bool = False
    """Also where the model could call functions."""
    without_system: bool = False
    """Only where no system prompt says how to answer."""
    when: When = ALWAYS
    zone: tzinfo = UTC
    weekdays: tuple[str, ...] = WEEKDAYS
    """What ``{weekday}`` says, from Monday on."""


@dataclass(frozen=True, slots=True)
class Index:
    """The rules by what is looked up: made from them, once."""

    phrases: Mapping[str, tuple[tuple[Phrase, int], ...]] = field(default_factory=lambda: MappingProxyType({}))
    """By `Phrase.letters`, with the place of the rule."""
    expressions: ExpressionSet | None = None
    owners: tuple[tuple[int, Expression], ...] = ()
    """Of each expression of that set: the place of its rule, and itself."""


@dataclass(frozen=True, slots=True)
class Patterns:
    """All rules, the first that fits first."""

    rules: tuple[Pattern, ...] = ()
    max_chars: int = 200
    """Longer messages are not looked at."""
    index: Index = field(default_factory=Index, compare=False, repr=False)


def make_index(rules: tuple[Pattern, ...]) -> Index:
    """Raises ``PatternError``."""
    phrases: dict[str, list[tuple[Phrase, int]]] = {}
    for place, rule in enumerate(rules):
        for phrase in rule.phrases:
            phrases.setdefault(phrase.letters, []).append((phrase, place))
    said = [(place, pattern) for place, rule in enumerate(rules) for pattern in rule.expressions]
    return Index(
        MappingProxyType({letters: tuple(found) for letters, found in phrases.items()}),
        ExpressionSet([pattern for _, pattern in said], ignore_case=True, whole=True) if said else None,
        tuple([(place, Expression(pattern, ignore_case=True)) for place, pattern in said]),
    )
