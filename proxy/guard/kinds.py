"""The kinds of guards that are built in, and how a check of each is made. Options are those that `config.guard_file`
lets through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

from proxy.config.guards import Guard
from proxy.guard import injection, personal, secrets
from proxy.guard.base import DEFAULT_SPAN_BYTES, SLOW_BYTES, Check, Scanner, Spans
from proxy.guard.checks import Schema, Size
from proxy.guard.phrases import Pattern, Phrases

_QUICK_WORK: Final = 400_000
"""Bytes of text times instructions of an operator's expressions: at worst some 20 ms."""


def make_check(guard: Guard) -> Check:
    """``KeyError`` for a remote guard, which others run."""
    options = dict(guard.options)
    if guard.kind == "size":
        most = options.get("most_tokens") or options["most_characters"]
        return Size(guard.name, guard.action, most, in_tokens="most_tokens" in options)
    if guard.kind == "schema":
        return Schema(guard.name, guard.action, orjson.loads(options["schema"]))
    if guard.kind == "expressions":
        patterns = _expressions(options)
        work = sum(each.instructions for each in patterns)
        return Spans(guard.name, guard.action, patterns, quick_bytes=min(SLOW_BYTES, _QUICK_WORK // max(1, work)))
    scanners = _SCANNERS[guard.kind](options)
    return Spans(guard.name, guard.action, scanners, options.get("threshold", 1))


def _personal_data(options: dict[str, Any]) -> list[Scanner]:
    return personal.make_scanners(options.get("which", ()))


def _secrets(options: dict[str, Any]) -> list[Scanner]:
    return secrets.make_scanners(options.get("which", ()))


def _words(options: dict[str, Any]) -> list[Scanner]:
    return [Phrases(dict.fromkeys(options["words"], "word"))]


def _topics(options: dict[str, Any]) -> list[Scanner]:
    return [Phrases({phrase: topic for topic, phrases in options["topics"] for phrase in phrases})]


def _expressions(options: dict[str, Any]) -> list[Pattern]:
    span_bytes = options.get("span_bytes", DEFAULT_SPAN_BYTES)
    ignore_case = options.get("ignore_case", False)
    return [Pattern(name, each, span_bytes, ignore_case=ignore_case) for name, each in options["patterns"]]


def _injection(options: dict[str, Any]) -> list[Scanner]:
    return injection.make_scanners(marks=options.get("marks", True))


_SCANNERS: Final[dict[str, Callable[[dict[str, Any]], list[Scanner]]]] = {
    "personal_data": _personal_data,
    "secrets": _secrets,
    "words": _words,
    "topics": _topics,
    "injection": _injection,
}
