"""The catalog file's section ``cache_classes`` → `CacheClasses`. Whatever is wrong is reported with its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from proxy.config.cache_classes import CALLER, USER, CacheClass, CacheClasses, CacheRule, Timely
from proxy.config.document import Document
from proxy.config.document import Path as Place
from proxy.config.time_words import make_timely, make_words
from proxy.linear import PatternError

MAX_CLASSES: Final = 32
MAX_RULES: Final = 200
MAX_WORDS: Final = 500
MAX_WORD_CHARS: Final = 200

DAY_S: Final = 86_400.0
SMALL_CHARS: Final = 160
"""A question of up to so many characters is a small one by the rules that come with this proxy."""

Seconds = Annotated[float, Meta(ge=0, le=31_536_000, description="Seconds; 0 keeps nothing.")]
Number = Annotated[int, Meta(ge=0, le=1_000_000)]
Names = Annotated[list[str], Meta(max_length=1_000)]
Words = Annotated[list[str], Meta(max_length=MAX_WORDS)]
ClassName = Annotated[str, Meta(description="Lower-case letters, digits, _ and -; a label in metrics.")]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")

DEFAULT_CLASSES: Final = (
    CacheClass("timely", 0.0),
    CacheClass("conversation", 0.0),
    CacheClass("user", 3_600.0, USER),
    CacheClass("small", 7 * DAY_S),
    CacheClass("exact", DAY_S),
)
"""What ``use: default`` stands for, with the rules below: what depends on the moment, what depends on what was said
before, what is asked for one user, a small question that everybody asks, and any other single question."""


class CacheClassFile(Struct, forbid_unknown_fields=True, frozen=True):
    """One class. What is left out of one that comes with this proxy stays as it is."""

    ttl_s: Seconds | None = None
    scope: Literal["caller", "user"] | None = None
    stale_while_revalidate_s: Seconds | None = None
    stale_if_error_s: Seconds | None = None


class CacheRuleFile(Struct, forbid_unknown_fields=True, frozen=True):
    """Which requests are of a class: those that meet all that is said here."""

    cache_class: Annotated[str, Meta(description="Name of the class.")]
    routes: Names = msgspec.field(default_factory=list)
    tenants: Names = msgspec.field(default_factory=list)
    keys: Names = msgspec.field(default_factory=list)
    tags: Names = msgspec.field(default_factory=list)
    least_turns: Number = 0
    most_turns: Number | None = None
    least_chars: Number = 0
    most_chars: Number | None = None
    tools: bool | None = None
    media: bool | None = None
    structured: bool | None = None
    user: bool | None = None
    timely: bool | None = None
    words: Words = msgspec.field(default_factory=list)


class TimelyFile(Struct, forbid_unknown_fields=True, frozen=True):
    """Words by which a question depends on the moment."""

    words: Words = msgspec.field(default_factory=list)
    built_in: bool = True


class CacheClassesFile(Struct, forbid_unknown_fields=True, frozen=True):
    """Classes of answers and the rules that tell them apart; the first rule that is met decides."""

    use: Literal["default", "none"] = "default"
    classes: dict[ClassName, CacheClassFile] = msgspec.field(default_factory=dict)
    rules: Annotated[list[CacheRuleFile], Meta(max_length=MAX_RULES)] = msgspec.field(default_factory=list)
    timely: TimelyFile = msgspec.field(default_factory=TimelyFile)


def make_cache_classes(
    said: CacheClassesFile, routes: frozenset[str], document: Document
) -> CacheClasses | None:
    """``routes`` are the names that rules may speak of. ``None`` where nothing could be made of the section, which is
    reported."""
    classes = _make_classes(said, document)
    timely = _make_timely(said.timely, document)
    rules = [_make_rule(each, at, classes, routes, document) for at, each in enumerate(said.rules)]
    if ("cache_classes",) in document.broken or None in rules:
        return None
    if said.use == "default":
        rules += _default_rules(classes)
    elif not rules:
        hint = "write some, or leave 'use: none' out for those that come with this proxy"
        document.warn(("cache_classes",), f"there is no rule, so that no class is ever chosen: {hint}")
    made = tuple(rule for rule in rules if rule is not None)
    _warn_of_unused(said, made, document)
    return CacheClasses(tuple(classes.values()), made, timely)


def _make_classes(said: CacheClassesFile, document: Document) -> dict[str, CacheClass]:
    base = {each.name: each for each in DEFAULT_CLASSES} if said.use == "default" else {}
    if len(said.classes) > MAX_CLASSES:
        place = ("cache_classes", "classes")
        document.report(place, f"there are {len(said.classes)} classes", f"at most {MAX_CLASSES} are possible")
        return base
    own = {name: _make_class(name, each, base.get(name), document) for name, each in said.classes.items()}
    return {**base, **own}


def _make_class(name: str, said: CacheClassFile, base: CacheClass | None, document: Document) -> CacheClass:
    place = ("cache_classes", "classes", name)
    if not _NAME.fullmatch(name):
        hint = "1 to 32 lower-case letters, digits, '_' and '-'"
        document.report(place, "this cannot be the name of a class", hint)
    if said.ttl_s is None and base is None:
        document.report(place, "it does not say for how long", "add ttl_s, in seconds; 0 keeps nothing")
    made = CacheClass(
        name,
        _or(said.ttl_s, base.ttl_s if base else 0.0),
        said.scope or (base.scope if base else CALLER),
        _or(said.stale_while_revalidate_s, base.stale_while_revalidate_s if base else 0.0),
        _or(said.stale_if_error_s, base.stale_if_error_s if base else 0.0),
    )
    if said.ttl_s == 0 and (said.stale_while_revalidate_s or said.stale_if_error_s):
        document.warn(place, "nothing of this class is kept, so that nothing of it can be served when it is stale")
    return made


def _or(said: float | None, base: float) -> float:
    return base if said is None else said


def _make_timely(said: TimelyFile, document: Document) -> Timely:
    place = ("cache_classes", "timely")
    words = _check_words(said.words, (*place, "words"), document)
    try:
        return Timely(words, said.built_in, make_timely(words, built_in=said.built_in))
    except PatternError as error:
        document.report((*place, "words"), f"these words cannot be looked for: {error}")
        return Timely(words, said.built_in)


def _check_words(words: list[str], place: Place, document: Document) -> tuple[str, ...]:
    good = []
    for at, word in enumerate(words):
        if not word.strip() or len(word) > MAX_WORD_CHARS or not word.isprintable():
            document.report((*place, at), "this is no word or phrase", f"1 to {MAX_WORD_CHARS} printable characters")
        else:
            good.append(" ".join(word.split()))
    return tuple(good)


def _make_rule(
    said: CacheRuleFile, at: int, classes: Mapping[str, CacheClass], routes: frozenset[str], document: Document
) -> CacheRule | None:
    place = ("cache_classes", "rules", at)
    of = classes.get(said.cache_class)
    if of is None:
        hint = f"one of {', '.join(sorted(classes))}"
        document.report((*place, "cache_class"), f"there is no class {said.cache_class!r}", hint)
    for index, route in enumerate(said.routes):
        if route not in routes:
            hint = f"one of {', '.join(sorted(routes))}"
            document.report((*place, "routes", index), "there is no such route", hint)
    for least, most, what in (
        (said.least_turns, said.most_turns, "turns"),
        (said.least_chars, said.most_chars, "chars"),
    ):
        if most is not None and least > most:
            message = f"at least {least} and at most {most} is never true"
            document.report((*place, f"most_{what}"), message, f"swap it with least_{what}")
    words = _check_words(said.words, (*place, "words"), document)
    if place in document.broken or of is None:
        return None
    try:
        expressions = make_words(words)
    except PatternError as error:
        document.report((*place, "words"), f"these words cannot be looked for: {error}")
        return None
    if of.scope == USER and of.ttl_s and said.user is False:
        document.warn(place, f"class {of.name!r} is kept for a user, and these requests name none: nothing is kept")
    return CacheRule(
        of,
        frozenset(said.routes),
        frozenset(said.tenants),
        frozenset(said.keys),
        frozenset(said.tags),
        said.least_turns,
        said.most_turns,
        said.least_chars,
        said.most_chars,
        said.tools,
        said.media,
        said.structured,
        said.user,
        said.timely,
        words,
        expressions,
    )


def _default_rules(classes: Mapping[str, CacheClass]) -> list[CacheRule | None]:
    """Behind the operator's own."""
    return [
        CacheRule(classes["timely"], timely=True),
        CacheRule(classes["conversation"], tools=True),
        CacheRule(classes["conversation"], least_turns=2),
        CacheRule(classes["user"], user=True),
        CacheRule(classes["small"], most_turns=1, most_chars=SMALL_CHARS, media=False, structured=False),
        CacheRule(classes["exact"], most_turns=1),
    ]


def _warn_of_unused(said: CacheClassesFile, rules: tuple[CacheRule, ...], document: Document) -> None:
    used = {rule.of.name for rule in rules}
    for name in said.classes:
        if name not in used:
            document.warn(("cache_classes", "classes", name), "no rule leads to this class")
