"""Answers small messages by rule, before anything else is done about them: no plan for an upstream, no flight."""

from __future__ import annotations

from typing import Final

from proxy.config.patterns import Patterns
from proxy.exchange import Exchange
from proxy.policy.local_answer import Said, render_answer
from proxy.policy.patterns import is_open, match
from proxy.policy.planner import Terms
from proxy.policy.policies import About
from proxy.policy.turns import Turns

_MOST_RULES: Final = 1_000
_OTHER: Final = "other"


class Responder:
    """One for the process."""

    # Mutable state: the counters, written by `answer` only.
    __slots__ = ("answers", "considered", "declined")

    def __init__(self) -> None:
        self.considered = 0
        """Conversations that rules were on for."""
        self.declined = 0
        """Of them, those whose callers asked for a fresh answer."""
        self.answers: dict[str, int] = {}
        """By rule. Rules that come with later catalogs count as ``other`` when there were too many."""

    @property
    def matched(self) -> int:
        return sum(self.answers.values())

    def answer(
        self, exchange: Exchange, terms: Terms, patterns: Patterns, turns: Turns, about: About
    ) -> bool:
        """Whether a rule answers; ``exchange.shaped`` has the answer then."""
        call, shaped = exchange.call, exchange.shaped
        assert call is not None
        assert shaped is not None
        self.considered += 1
        if not is_open(terms.controls):
            self.declined += 1
            return False
        matched = match(patterns, turns, about, call)
        if matched is None:
            return False
        said = Said(matched.text, call, terms.located.dialect, exchange.request_id, about.wall)
        shaped.pattern = matched.name
        shaped.answer = render_answer(turns.route, said)
        shaped.answer_tokens = matched.tokens
        name = matched.name if matched.name in self.answers or len(self.answers) < _MOST_RULES else _OTHER
        self.answers[name] = self.answers.get(name, 0) + 1
        return True
