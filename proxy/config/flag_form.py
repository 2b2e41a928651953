"""Rules of flags in the words of people, the same in the catalog file, in the admin API and on the command line.

    pruning: off
    tiers: 25%
    guard:pii: {global: on, tenants: {acme: off}, keys: {key_…: 50%}, routes: {chat.completions: off}}

``read_section`` turns such a mapping into edits and says what is wrong at which path; `describe_rule`,
`describe_change` and `describe_flags` turn rules back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from proxy.config.document import MAX_PROBLEMS, Path, spell
from proxy.config.feature_flags import FEATURES, GUARD, SCOPES, Flag, Flags
from proxy.config.flag_changes import FlagChange, FlagEdit
from proxy.config.keyform import FormError
from proxy.config.savings import Savings
from proxy.config.schema import ROUTE_NAMES
from proxy.config.values import did_you_mean

MAX_EDITS: Final = 1_000
"""Rules in one change."""
MAX_WHO_CHARS: Final = 200
MAX_WHY_CHARS: Final = 1_000
VALUE_HINT: Final = "expected on, off or a percentage such as 25%"

_MAX_SUBJECT_CHARS: Final = 200
_MAX_COMPARED_CHARS: Final = 100
_GUARD_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_KEY_ID: Final = re.compile(r"key_[0-9a-f]{16}")
_PERCENT: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)\s*%")
_WORDS: Final = {"on": 100.0, "true": 100.0, "off": 0.0, "false": 0.0}
_SUBJECTS: Final = {"tenants": "tenant", "routes": "route", "keys": "key"}

Report = Callable[[Path, str, str], None]
"""Path below the section, what is wrong, a hint or nothing."""


# -- reading ---------------------------------------------------------------------------------------------------


def parse_percent(value: object) -> float:
    """For how many ``on``, ``off``, ``25%`` are, or true and false. Raises ``FormError``."""
    if isinstance(value, bool):
        return 100.0 if value else 0.0
    if isinstance(value, (int, float)):
        raise FormError(f"{VALUE_HINT}; a number alone could be a part of one or of a hundred")
    text = value.strip().lower() if isinstance(value, str) else ""
    if text in _WORDS:
        return _WORDS[text]
    match = _PERCENT.fullmatch(text)
    percent = float(match[1]) if match else -1.0
    if not 0.0 <= percent <= 100.0:
        raise FormError(VALUE_HINT)
    return percent


def check_name(name: str) -> None:
    """Raises ``FormError`` unless there could be such a flag."""
    if name in FEATURES:
        return
    if name.startswith(GUARD):
        if _GUARD_NAME.fullmatch(name.removeprefix(GUARD)):
            return
        raise FormError(f"{GUARD} is followed by the guard's name: 1 to 64 letters, digits and ._-")
    known = (*FEATURES, GUARD + "NAME")
    near = did_you_mean(name[:_MAX_COMPARED_CHARS], known) or f"; known here: {', '.join(known)}"
    raise FormError(f"there is no flag {name[:_MAX_COMPARED_CHARS]!r}{near}")


def check_subject(scope: str, subject: str) -> None:
    """Raises ``FormError`` unless there could be such a tenant, route or key."""
    if scope not in SCOPES:
        raise FormError(f"a rule is for one of {', '.join(SCOPES)}{did_you_mean(scope, list(SCOPES))}")
    if scope == "global":
        if subject:
            raise FormError("a global rule is for everybody")
    elif scope == "route":
        if subject not in ROUTE_NAMES:
            near = did_you_mean(subject[:_MAX_COMPARED_CHARS], sorted(ROUTE_NAMES))
            raise FormError(f"there is no route {subject[:_MAX_COMPARED_CHARS]!r}{near}")
    elif scope == "key":
        if not _KEY_ID.fullmatch(subject):
            raise FormError("keys go by their id here: key_ and sixteen hexadecimal digits")
    elif not subject.isprintable() or not subject.strip() or len(subject) > _MAX_SUBJECT_CHARS or "/" in subject:
        raise FormError(f"a tenant has 1 to {_MAX_SUBJECT_CHARS} printable characters without a slash")


def make_edit(name: str, scope: str, subject: str, value: object) -> FlagEdit:
    """One rule; ``value`` is ``None`` for no such rule. Raises ``FormError``."""
    check_name(name)
    check_subject(scope, subject)
    return FlagEdit(name, scope, subject, None if value is None else parse_percent(value))


def read_section(section: Mapping[str, object], report: Report, *, clears: bool = False) -> list[FlagEdit]:
    """The rules of a section; with ``clears`` nothing in the place of a value means no such rule. What is wrong is
    reported and left out; nobody reads more than so many problems, so the rest is left out as well."""
    edits: list[FlagEdit] = []
    problems = 0

    def count(path: Path, message: str, hint: str) -> None:
        nonlocal problems
        problems += 1
        report(path, message, hint)

    for path, scope, subject, value in _places(section, count):
        if problems >= MAX_PROBLEMS:
            break
        name = str(path[0])
        try:
            check_name(name)
        except FormError as error:
            count(path[:1], str(error), "")
            continue
        try:
            check_subject(scope, subject)
            percent = None if value is None and clears else parse_percent(value)
            edits.append(FlagEdit(name, scope, subject, percent))
        except FormError as error:
            count(path, str(error), "")
    return edits


def _places(section: Mapping[str, object], report: Report) -> Iterator[tuple[Path, str, str, object]]:
    """Path, scope, subject and value of every rule."""
    for name, said in section.items():
        if not isinstance(said, Mapping):
            yield (name,), "global", "", said
            continue
        for word, inner in said.items():
            path = (name, str(word))
            if word == "global":
                yield path, "global", "", inner
            elif word not in _SUBJECTS:
                choices = ("global", *_SUBJECTS)
                near = did_you_mean(str(word)[:_MAX_COMPARED_CHARS], choices).strip(" ()")
                report(path, "there is no such key", near or f"known here: {', '.join(choices)}")
            elif not isinstance(inner, Mapping):
                report(path, "expected a mapping", f"such as {word}: {{NAME: off}}")
            else:
                for subject, value in inner.items():
                    yield (*path, str(subject)), _SUBJECTS[word], str(subject), value


def read_form(section: object, *, empty: bool = False) -> list[FlagEdit]:
    """The edits of an admin request's ``flags``, which may be none where ``empty``. Raises ``FormError`` with the
    first problems."""
    if not isinstance(section, Mapping) or not (section or empty):
        raise FormError("flags: a mapping of flags to on, off or a percentage, as in the catalog file")
    problems: list[str] = []

    def report(path: Path, message: str, hint: str) -> None:
        problems.append(f"flags.{spell(path)}: {message}{'; ' if hint else ''}{hint}")

    edits = read_section(section, report, clears=True)
    if problems:
        raise FormError("\n".join(problems[:10]))
    if len(edits) > MAX_EDITS:
        raise FormError(f"flags: at most {MAX_EDITS} rules in one change")
    return edits


def check_words(who: str, why: str) -> tuple[str, str]:
    """Who changes something and why, as they are kept. Raises ``FormError``."""
    who, why = who.strip(), why.strip()
    if not who or len(who) > MAX_WHO_CHARS or not who.isprintable():
        raise FormError(f"who: 1 to {MAX_WHO_CHARS} printable characters")
    if len(why) > MAX_WHY_CHARS or not why.replace("\n", " ").isprintable():
        raise FormError(f"why: at most {MAX_WHY_CHARS} printable characters")
    return who, why


# -- what the catalog has --------------------------------------------------------------------------------------


def configured_names(savings: Savings | None) -> tuple[str, ...]:
    """The flags of what the catalog configures."""
    if savings is None:
        return ()
    there = {
        "patterns": savings.patterns,
        "cache_classes": savings.classes,
        "tiers": savings.tiers,
        "pruning": savings.pruning,
        "slimming": savings.slimming,
    }
    return (*(name for name in FEATURES if there[name]), *(GUARD + guard.name for guard in savings.guards))


def doubt_of(name: str, configured: Sequence[str]) -> str:
    """What is to be said of a flag that has nothing to switch, or nothing."""
    if name in configured:
        return ""
    near = did_you_mean(name, list(configured)) if name.startswith(GUARD) else ""
    return f"the catalog configures nothing that {name!r} could switch{near}"


# -- describing ------------------------------------------------------------------------------------------------


def spell_percent(percent: float) -> str:
    """``on``, ``off`` or ``25%``."""
    return "on" if percent >= 100.0 else "off" if percent <= 0.0 else f"{percent:.10g}%"


def describe_rule(rule: Flag) -> dict[str, Any]:
    return {"name": rule.name, "scope": rule.scope, "subject": rule.subject, "value": spell_percent(rule.percent)}


def describe_change(rules: Sequence[FlagChange]) -> dict[str, Any]:
    """One change, with every rule that it changed."""
    first = rules[0]
    return {
        "change": first.change,
        "at": (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=first.at)).isoformat(timespec="milliseconds"),
        "who": first.who,
        "why": first.why,
        "restores": first.restores,
        "rules": [
            {
                "name": rule.name,
                "scope": rule.scope,
                "subject": rule.subject,
                "before": None if rule.before is None else spell_percent(rule.before),
                "after": None if rule.after is None else spell_percent(rule.after),
            }
            for rule in rules
        ],
    }


def describe_changes(rules: Sequence[FlagChange]) -> list[dict[str, Any]]:
    """Changes in the order in which their rules come; those of one change come together."""
    together: dict[int, list[FlagChange]] = {}
    for rule in rules:
        together.setdefault(rule.change, []).append(rule)
    return [describe_change(each) for each in together.values()]


def describe_flags(savings: Savings | None, filed: Flags, stored: Flags) -> list[dict[str, Any]]:
    """Every flag that there is or that somebody made a rule for: whether the catalog configures what it switches,
    its rules with their origin, and what a rule of the store stands in front of."""
    configured = configured_names(savings)
    from_file = {_place(rule): rule for rule in filed.rules()}
    from_store = {_place(rule): rule for rule in stored.rules()}
    rules: dict[str, list[dict[str, Any]]] = {}
    everybody: dict[str, float] = {}
    for rule in stored.over(filed).rules():
        own, hidden = _place(rule) in from_store, from_file.get(_place(rule))
        rules.setdefault(rule.name, []).append(
            {
                "scope": rule.scope,
                "subject": rule.subject,
                "value": spell_percent(rule.percent),
                "origin": "store" if own else "file",
                "file": spell_percent(hidden.percent) if own and hidden is not None else None,
            }
        )
        if rule.scope == "global":
            everybody[rule.name] = rule.percent
    names = dict.fromkeys((*FEATURES, *configured, *sorted(rules)))
    return [
        {
            "name": name,
            "configured": name in configured,
            "value": spell_percent(everybody.get(name, 100.0)),
            "rules": rules.get(name, []),
        }
        for name in names
    ]


def _place(rule: Flag) -> tuple[str, str, str]:
    return rule.name, rule.scope, rule.subject
