"""How complex a request is: a number of points and the reasons for them.

What is asked now (the last message of the user) is looked at for its length, for words that ask for thought and for
code; of everything else only lengths and counts matter. The words are looked for in one pass, in time linear in the
text, and in no text longer than ``MOST_READ_CHARS``: a longer one gets all the points that reading could give. So
more words never lower a score.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from proxy.config.tier_words import KINDS, known_words
from proxy.config.tiers import Rules
from proxy.policy.turns import Turns

MOST_READ_CHARS: Final = 16_384
MOST_KINDS: Final = 3
"""Of words that ask for thought; more of them count no more."""
MOST_QUESTIONS: Final = 11
"""From there on a conversation is as deep as can be."""


class Score(NamedTuple):
    """What a request comes to."""

    points: int
    why: tuple[str, ...]
    """Names of `config.tiers.Points`, and ``words`` and ``new_user``."""


def score(turns: Turns, rules: Rules, *, newcomer: bool = False) -> Score:
    """Score a conversation. Pure."""
    worth = rules.points
    questions = chars = media = calls = 0
    asked = ""
    for turn in turns.items:
        if turn.role == "system":
            continue
        if turn.role == "user":
            questions += 1
            asked = turn.text
        chars += len(turn.text)
        media += turn.media
        calls += len(turn.calls) + len(turn.results)
    reasoning, words, code = _read(asked, rules)
    told = (
        ("length", _part(worth.length, len(asked), rules.long_chars)),
        ("reasoning", worth.reasoning * reasoning),
        ("words", worth.reasoning * words),
        ("code", worth.code if code else 0),
        ("media", worth.media if media else 0),
        ("tools", worth.tools if turns.tools else 0),
        ("calls", worth.calls if calls else 0),
        ("schema", worth.schema if turns.structured else 0),
        ("depth", _part(worth.depth, questions - 1, MOST_QUESTIONS - 1)),
        ("context", _part(worth.context, chars, rules.long_context_chars)),
        ("new_user", rules.newcomer_points if newcomer else 0),
    )
    return Score(sum(points for _, points in told), tuple(name for name, points in told if points))


def _part(points: int, size: int, full_size: int) -> int:
    return points if size >= full_size else points * max(0, size) // full_size


def _read(text: str, rules: Rules) -> tuple[int, int, bool]:
    """Kinds of words that ask for thought, the built-in ones and then the operator's, together at most
    ``MOST_KINDS``; and whether there is code in it."""
    if len(text) > MOST_READ_CHARS:
        return (MOST_KINDS, 0, True) if rules.built_in else (0, MOST_KINDS, True)
    if not text:
        return 0, 0, False
    said = text.encode("utf-8", "replace")
    found = known_words(rules.built_in).which(said)
    first_code = KINDS if rules.built_in else 0
    thoughts = sum(at < first_code for at in found)
    words = len(rules.expressions.which(said)) if rules.expressions is not None else 0
    words = min(words, MOST_KINDS)
    return min(thoughts, MOST_KINDS - words), words, len(found) > thoughts
