"""Which rule answers a message, and what it says. Pure: the same message at the same minute gets the same answer.

A rule of the catalog may answer what a model would only have chatted about. The operator's text must never stand
where a caller wants something of a certain form, so whatever asks for more than plain words in return goes to the
model: several choices, log probabilities, a schema, sound, a forced tool call, stop sequences that the answer holds,
bounds that it does not fit, and conversations that the provider keeps, which have to know their turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, tzinfo
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from proxy.config.patterns import VARIABLES, Pattern, Patterns
from proxy.config.phrases import read_phrase
from proxy.config.template import Template
from proxy.policy.policies import About
from proxy.policy.turns import MESSAGES, RESPONSES, Turn, Turns
from proxy.protocol.call import Call
from proxy.protocol.headers import Controls

_TEXTS: Final = ("text", "input_text")
_QUESTION_MARKS: Final = ("?", "？", "؟", ";", "\u037e")
"""The last two are Greek; the first of them is what Greek keyboards write."""
_LAST_WORDS: Final = 300

# What a request may say and still want plain words, with the values that mean nothing by it; a member that is not
# here does not matter.
_IDLE: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "web_search_options": (None,),
    "output_format": (None,),
    "store": (None, False),
    "background": (None, False),
    "prompt": (None,),
    "conversation": (None,),
    "previous_response_id": (None,),
    "container": (None,),
    "thread": (None,),
    "include": (None, []),
    "mcp_servers": (None, []),
}
_FREE: Final = (None, "auto", "none")
_BOUNDS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class Matched(NamedTuple):
    """A rule and what it says."""

    name: str
    text: str
    tokens: int
    """Of that text; estimated."""


def is_open(controls: Controls) -> bool:
    """Whether the caller takes an answer that no model made for this request. Whoever asks past the caches asks past
    the rules as well: it is a fresh answer that they want."""
    if controls.no_cache or controls.no_store or controls.max_age_s == 0:
        return False
    return controls.cache not in {"off", "refresh"}


def match(patterns: Patterns, turns: Turns, about: About, call: Call) -> Matched | None:
    """The first rule that fits the request; ``None`` if the model is to answer."""
    said = turns.last_user
    if not said or len(said) > patterns.max_chars or not wants_words(turns, call):
        return None
    found = _find_rules(patterns, said)
    if not found:
        return None
    now: dict[tzinfo, datetime] = {}
    for place in sorted(found):
        rule = patterns.rules[place]
        at = now.get(rule.zone)
        if at is None:
            at = now[rule.zone] = datetime.fromtimestamp(about.wall, rule.zone)
        if not _fits(rule, turns, about, call) or not rule.when.holds(at):
            continue
        answer = _choose(rule, at, found[place], about.unit + said.encode("utf-8", "replace"))
        if answer is None:
            continue
        text = answer.fill({**found[place], **_values(rule, at, call)} if answer.holes else {})
        if _may_be_said(text, call.fields):
            return Matched(rule.name, text, _count(text))
    return None


def wants_words(turns: Turns, call: Call) -> bool:
    """Whether the request is valid as far as this can be seen here, and asks for one text in plain words."""
    fields = call.fields
    if not call.model or turns.structured:
        return False
    for name in _IDLE.keys() & fields.keys():
        if fields[name] not in _IDLE[name]:
            return False
    if turns.route == RESPONSES and fields.get("store") is not False:
        return False  # the provider keeps what it answered, and is asked by its id to go on from there
    if turns.route == MESSAGES and type(fields.get("max_tokens")) is not int:
        return False  # the vendor refuses it
    choice = fields.get("tool_choice") or fields.get("function_call")
    if type(choice) is dict and turns.route == MESSAGES:
        choice = choice.get("type")
    if type(choice) not in {str, type(None)} or choice not in _FREE:
        return False
    return _is_plain(turns.items[-1], fields.get(turns.member))


def _is_plain(turn: Turn, listed: Any) -> bool:
    """Whether the last turn is text and nothing else."""
    if type(listed) is str:
        return True
    content = listed[turn.at].get("content")
    if type(content) is str:
        return True
    return all(type(piece) is dict and piece.get("type") in _TEXTS for piece in content)


def _find_rules(patterns: Patterns, said: str) -> dict[int, dict[str, str]]:
    """Places of the rules whose phrases or expressions fit, with what the expressions' groups took."""
    index = patterns.index
    found: dict[int, dict[str, str]] = {}
    phrase = read_phrase(said)
    if phrase is not None:
        for known, place in index.phrases.get(phrase.letters, ()):
            if known.covers(phrase):
                found[place] = {}
    if index.expressions is not None:
        text = " ".join(said.split()).encode("utf-8", "replace")
        for which in index.expressions.which(text):
            place, expression = index.owners[which]
            if place not in found:
                found[place] = (expression.groups(text) or {}) if expression.names else {}
    return found


def _fits(rule: Pattern, turns: Turns, about: About, call: Call) -> bool:
    """Whether the rule's conditions hold."""
    if rule.routes and turns.route not in rule.routes:
        return False
    if (rule.keys or rule.tenants) and about.key_id not in rule.keys and about.tenant not in rule.tenants:
        return False
    if rule.tags and rule.tags.isdisjoint(about.tags):
        return False
    if rule.models and not any(_is_named(call.model, name) for name in rule.models):
        return False
    if turns.tools and not rule.with_tools:
        return False
    spoken = turns.spoken
    if rule.without_system and len(spoken) < len(turns.items):
        return False
    if len(spoken) == 1:
        return True
    before = spoken[-2]
    if rule.first_turn or before.role != "assistant" or before.calls or before.bound:
        return False  # further words of a caller who has no answer yet belong to what they said before
    return rule.after_question or not _asks(before.text)


def _is_named(model: str, name: str) -> bool:
    return model.startswith(name[:-1]) if name.endswith("*") else model == name


def _asks(text: str) -> bool:
    """Whether there is a question in a text's last words: what is said next may answer it."""
    return any(map(text[-_LAST_WORDS:].__contains__, _QUESTION_MARKS))


def _values(rule: Pattern, at: datetime, call: Call) -> dict[str, str]:
    return {
        "time": f"{at:%H:%M}",
        "hour": str(at.hour),
        "date": f"{at:%Y-%m-%d}",
        "day": str(at.day),
        "month": str(at.month),
        "year": str(at.year),
        "weekday": rule.weekdays[at.weekday()],
        "model": call.model,
    }


def _choose(rule: Pattern, at: datetime, taken: Mapping[str, str], told: bytes) -> Template | None:
    """One of the answers that hold now: of those for these hours, where there are any, else of the others. ``taken``
    is what the groups of an expression took, ``told`` what the choice is drawn by."""
    holding = [each for each in rule.answers if each.when.holds(at) and _is_whole(each.template, taken)]
    holding = [each for each in holding if not each.when.always] or holding
    if not holding:
        return None
    drawn = blake2b(told, digest_size=8, person=b"sf/pattern", key=rule.name.encode()).digest()
    return holding[int.from_bytes(drawn, "big") % len(holding)].template


def _is_whole(template: Template, taken: Mapping[str, str]) -> bool:
    """Whether there is something for each hole."""
    return all(
        hole.otherwise is not None or hole.name in VARIABLES or taken.get(hole.name) for hole in template.holes
    )


def _may_be_said(text: str, fields: Mapping[str, Any]) -> bool:
    """Whether a model could have said this under the caller's bounds."""
    stops = fields.get("stop") or fields.get("stop_sequences") or ()
    if any(type(each) is str and each and each in text for each in _listed(stops)):
        return False
    bounds = [fields[name] for name in _BOUNDS if fields.get(name) is not None]
    return all(type(bound) is int and bound >= _count(text) for bound in bounds)


def _listed(said: Any) -> Iterable[Any]:
    return said if type(said) is list else (said,)


def _count(text: str) -> int:
    """Tokens, at four bytes each."""
    return -(-len(text.encode()) // 4)
