"""The catalog file's section ``patterns`` → `Patterns`. Whatever is wrong is reported to the document, with its
place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import tzinfo
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from proxy.config.convert import resembling
from proxy.config.document import Document, Path
from proxy.config.hours import ALWAYS, DAYS, When, find_zone, read_hours
from proxy.config.patterns import VARIABLES, WEEKDAYS, Pattern, PatternAnswer, Patterns, make_index
from proxy.config.phrases import Phrase, read_phrase
from proxy.config.template import Template, read_template
from proxy.linear import Expression, PatternError

MAX_RULES: Final = 1_000
MAX_PHRASES: Final = 1_000
"""Of one rule, as MAX_ANSWERS."""
MAX_ANSWERS: Final = 100
MAX_ALL_PHRASES: Final = 50_000
MAX_EXPRESSIONS: Final = 500
"""Of all rules together."""
MAX_ANSWER_CHARS: Final = 4_000
_MOST_WARNED: Final = 20
_MOST_COMPARED: Final = 10

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOTHING_IN_PARTICULAR: Final = b"zq 7 vx: q!"
"""No rule means this; an expression that matches it matches anything."""

ROUTES: Final = ("chat.completions", "messages", "responses")
"""Those whose requests are conversations."""

RouteChoice = Annotated[str, Meta(extra_json_schema={"enum": list(ROUTES)})]
Day = Annotated[str, Meta(extra_json_schema={"enum": list(DAYS)})]
Hours = Annotated[str, Meta(description="Times of the day in the rule's time zone, such as 05:00-11:30.")]
Text = Annotated[str, Meta(description="What is said; {time}, {weekday}, {name|friend} and so on are filled in.")]
Words = Annotated[list[str], Meta(max_length=MAX_PHRASES)]


class PatternAnswerFile(Struct, forbid_unknown_fields=True, frozen=True):
    """One thing that may be said, and when."""

    text: Text
    hours: Hours | None = None
    days: list[Day] | None = None


class PatternFile(Struct, forbid_unknown_fields=True, frozen=True):
    """One rule."""

    answers: Annotated[list[str | PatternAnswerFile], Meta(min_length=1, max_length=MAX_ANSWERS)]
    phrases: Words = msgspec.field(default_factory=list)
    expressions: Words = msgspec.field(default_factory=list)
    routes: list[RouteChoice] = msgspec.field(default_factory=list)
    models: Words = msgspec.field(default_factory=list)
    keys: Words = msgspec.field(default_factory=list)
    tenants: Words = msgspec.field(default_factory=list)
    tags: Words = msgspec.field(default_factory=list)
    first_turn: bool = True
    after_question: bool = False
    with_tools: bool = False
    without_system: bool = False
    hours: Hours | None = None
    days: list[Day] | None = None
    time_zone: str | None = None
    weekdays: Annotated[list[str], Meta(min_length=7, max_length=7)] | None = None


class PatternsFile(Struct, forbid_unknown_fields=True, frozen=True):
    """Answers to small messages without a model."""

    rules: dict[str, PatternFile] = msgspec.field(default_factory=dict)
    time_zone: Annotated[str, Meta(description="IANA name, such as Europe/Berlin.")] = "UTC"
    max_chars: Annotated[int, Meta(ge=1, le=2_000)] = 200


class _Place(NamedTuple):
    """Where in the document something stands, and the document."""

    document: Document
    path: Path

    def at(self, *steps: str | int) -> _Place:
        return _Place(self.document, (*self.path, *steps))

    def report(self, message: str, hint: str = "") -> None:
        self.document.report(self.path, message, hint)


def make_patterns(said: PatternsFile, document: Document) -> Patterns | None:
    """``None`` if there is no rule. Rules that cannot be made are left out; they are reported."""
    place = _Place(document, ("patterns",))
    zone = _find_zone(said.time_zone, place.at("time_zone"))
    if len(said.rules) > MAX_RULES:
        place.at("rules").report(f"there are {len(said.rules)} rules", f"at most {MAX_RULES} are possible")
        return None
    rules = []
    for name, rule in said.rules.items():
        before = len(document.problems)
        made = _make_rule(name, rule, zone, said.max_chars, place.at("rules", name))
        if len(document.problems) == before:
            rules.append(made)
    if not rules:
        return None
    _warn_of_hidden(rules, place.at("rules"))
    patterns = tuple(rules)
    _check_sums(patterns, place.at("rules"))
    try:
        return Patterns(patterns, said.max_chars, make_index(patterns))
    except PatternError as error:
        place.at("rules").report(f"the expressions of all rules: {error}", "use fewer or smaller ones")
    return None


def _check_sums(rules: tuple[Pattern, ...], place: _Place) -> None:
    for what, most, many in (
        ("phrases", MAX_ALL_PHRASES, sum(len(rule.phrases) for rule in rules)),
        ("expressions", MAX_EXPRESSIONS, sum(len(rule.expressions) for rule in rules)),
    ):
        if many > most:
            place.report(f"all rules together have {many} {what}", f"at most {most} are possible")


def _make_rule(name: str, said: PatternFile, zone: tzinfo, max_chars: int, place: _Place) -> Pattern:
    if not _NAME.fullmatch(name):
        place.report("this cannot be the name of a rule", "1 to 64 letters, digits and ._-")
    if not said.phrases and not said.expressions:
        place.report("the rule matches nothing", "give it phrases, expressions or both")
    if said.time_zone is not None:
        zone = _find_zone(said.time_zone, place.at("time_zone"))
    phrases = _make_phrases(said.phrases, max_chars, place.at("phrases"))
    groups = _check_expressions(said.expressions, place.at("expressions"))
    always = frozenset[str]() if said.phrases else frozenset.intersection(*groups) if groups else frozenset()
    known = (frozenset[str]().union(*groups), always)
    _check_words(said.routes, ROUTES, place.at("routes"))
    for index, model in enumerate(said.models):
        if not model or "*" in model[:-1]:
            place.at("models", index).report("only the last character may be a '*'", "such as gpt-*")
    for list_name in ("keys", "tenants", "tags"):
        for index, each in enumerate(getattr(said, list_name)):
            if not each:
                place.at(list_name, index).report("this is empty", "leave it out")
    return Pattern(
        name=name,
        answers=tuple(_make_answers(said.answers, known, place.at("answers"))),
        phrases=phrases,
        expressions=tuple(said.expressions),
        routes=frozenset(said.routes),
        models=tuple(said.models),
        keys=frozenset(said.keys),
        tenants=frozenset(said.tenants),
        tags=frozenset(said.tags),
        first_turn=said.first_turn,
        after_question=said.after_question,
        with_tools=said.with_tools,
        without_system=said.without_system,
        when=_make_when(said.hours, said.days, place),
        zone=zone,
        weekdays=WEEKDAYS if said.weekdays is None else tuple(said.weekdays),
    )


def _find_zone(name: str, place: _Place) -> tzinfo:
    try:
        return find_zone(name)
    except ValueError as error:
        place.report(str(error), "an IANA name, such as Europe/Berlin; systems without such data know UTC only")
        return find_zone("UTC")


def _make_phrases(said: list[str], max_chars: int, place: _Place) -> tuple[Phrase, ...]:
    found: dict[Phrase, None] = {}
    for index, text in enumerate(said):
        phrase = read_phrase(text) if len(text) <= max_chars else None
        if len(text) > max_chars:
            hint = f"max_chars says that messages have at most {max_chars}"
            place.at(index).report(f"no message of {len(text)} characters is looked at", hint)
        elif phrase is None:
            hint = "a phrase needs a letter, a digit or an emoji; punctuation does not count"
            place.at(index).report("nothing is left of this phrase", hint)
        else:
            found[phrase] = None
    return tuple(found)


def _check_expressions(said: list[str], place: _Place) -> list[frozenset[str]]:
    """The names of each one's groups."""
    groups = []
    for index, pattern in enumerate(said):
        here = place.at(index)
        try:
            expression = Expression(pattern, ignore_case=True)
        except PatternError as error:
            here.report(f"this is no regular expression for RE2: {error}", "RE2 has no look-around and no \\1")
            continue
        if expression.matches_whole(b""):
            here.report("this matches an empty message", "use + instead of *, or name what has to be there")
        elif expression.matches_whole(_NOTHING_IN_PARTICULAR):
            here.document.warn(here.path, "this matches any message", "rules behind it are for other callers only")
        for name in sorted(expression.names & set(VARIABLES)):
            here.report(f"the group {name!r} has the name of a variable", f"there are {', '.join(VARIABLES)}")
        groups.append(expression.names)
    return groups


def _make_answers(
    said: list[str | PatternAnswerFile], known: tuple[frozenset[str], frozenset[str]], place: _Place
) -> list[PatternAnswer]:
    """``known``: the groups that some message fills, and those that every message does."""
    if not 1 <= len(said) <= MAX_ANSWERS:
        place.report(f"there are {len(said)} answers", f"1 to {MAX_ANSWERS} are possible")
    answers = []
    for index, each in enumerate(said):
        here = place.at(index)
        if isinstance(each, str):
            each = PatternAnswerFile(each)  # noqa: PLW2901 - the short form of the same
        template = _make_template(each.text, known, here if isinstance(said[index], str) else here.at("text"))
        answers.append(PatternAnswer(template, _make_when(each.hours, each.days, here)))
    return answers


def _make_template(text: str, known: tuple[frozenset[str], frozenset[str]], place: _Place) -> Template:
    some, every = known
    if not text.strip():
        place.report("the answer is empty", "write what is to be said")
    elif len(text) > MAX_ANSWER_CHARS:
        place.report(f"the answer has {len(text)} characters", f"at most {MAX_ANSWER_CHARS} are possible")
    elif any(not each.isprintable() and each not in "\n\t" for each in text):
        place.report("expected text without control characters", "line ends and tabs may be there")
    try:
        template = read_template(text)
    except ValueError as error:
        place.report(str(error))
        return Template(())
    for hole in template.holes:
        if hole.name in VARIABLES or hole.name in every:
            continue
        if hole.name not in some:
            there = ", ".join((*VARIABLES, *sorted(some)))
            place.report(f"there is no variable {hole.name!r}", f"there are {there}")
        elif hole.otherwise is None:
            hint = f"say what stands for it then: {{{hole.name}|friend}}"
            place.report(f"not every message of this rule has {hole.name!r}", hint)
    return template


def _make_when(hours: str | None, days: list[Day] | None, place: _Place) -> When:
    begins, ends = ALWAYS.begins, ALWAYS.ends
    if hours is not None:
        try:
            begins, ends = read_hours(hours)
        except ValueError as error:
            place.at("hours").report(str(error))
    if days is not None and not days:
        place.at("days").report("there is no day", f"leave it out, or choose of {', '.join(DAYS)}")
    _check_words(days or (), DAYS, place.at("days"))
    known = frozenset(DAYS.index(day) for day in days or () if day in DAYS)
    return When(begins, ends, known or ALWAYS.days)


def _check_words(said: Iterable[str], choices: tuple[str, ...], place: _Place) -> None:
    for index, word in enumerate(said):
        if word not in choices:
            hint = resembling(place.document, word, choices)
            place.at(index).report(f"expected one of {', '.join(choices)}", hint)


def _warn_of_hidden(rules: list[Pattern], place: _Place) -> None:
    """Phrases that a rule above always answers first."""
    seen: dict[Phrase, list[Pattern]] = {}
    warned = 0
    for rule in rules:
        for phrase in rule.phrases:
            above = seen.setdefault(phrase, [])
            owner = next((each for each in above if _is_wider(each, rule)), None)
            if owner is not None and warned < _MOST_WARNED:
                warned += 1
                message = f"the rule {owner.name!r} above answers {_spell(phrase)!r} already"
                place.document.warn((*place.path, rule.name), message, "the first rule that fits answers")
            elif len(above) < _MOST_COMPARED:
                above.append(rule)


def _is_wider(rule: Pattern, other: Pattern) -> bool:
    """Whether ``rule`` answers wherever ``other`` would."""
    timeless = rule.when.always and any(answer.when.always for answer in rule.answers)
    lists = all(
        not mine or mine == others
        for mine, others in (
            (rule.routes, other.routes),
            (frozenset(rule.models), frozenset(other.models)),
            (rule.tags, other.tags),
            ((rule.keys, rule.tenants) if rule.keys or rule.tenants else (), (other.keys, other.tenants)),
        )
    )
    words = (
        rule.first_turn <= other.first_turn
        and rule.after_question >= other.after_question
        and rule.with_tools >= other.with_tools
        and rule.without_system <= other.without_system
    )
    return timeless and lists and words


def _spell(phrase: Phrase) -> str:
    return "".join([letter * many for letter, many in zip(phrase.letters, phrase.runs, strict=True)])
