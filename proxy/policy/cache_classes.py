"""Which class of answers a request asks for: the first of the operator's rules that it meets. Pure."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from proxy.config.cache_classes import USER, CacheClass, CacheClasses, CacheRule, Timely
from proxy.config.time_words import normalise
from proxy.policy.policies import About
from proxy.policy.turns import Turns


class _Asked:
    """What the rules look at, worked out as far as one of them asks for it."""

    # Mutable state: the three are None until somebody asked.
    __slots__ = ("_text", "_timely", "_tools", "spoken", "turns")

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.spoken = turns.spoken
        self._text: bytes | None = None
        self._timely: bool | None = None
        self._tools: bool | None = None

    @property
    def text(self) -> bytes:
        """The question, as words are looked for."""
        if self._text is None:
            self._text = normalise(self.turns.last_user).encode("utf-8", "replace")
        return self._text

    @property
    def tools(self) -> bool:
        if self._tools is None:
            self._tools = self.turns.tools > 0 or any(turn.calls or turn.results for turn in self.spoken)
        return self._tools

    @property
    def media(self) -> bool:
        return any(turn.media for turn in self.spoken)

    def is_timely(self, timely: Timely) -> bool:
        if self._timely is None:
            self._timely = timely.expressions is not None and bool(timely.expressions.which(self.text))
        return self._timely


def choose(classes: CacheClasses, turns: Turns | None, about: About) -> CacheClass | None:
    """The class of a request; ``None`` where no rule speaks of it, so that the route decides. ``turns`` is ``None``
    for what is no conversation."""
    asked = _Asked(turns) if turns is not None else None
    for rule in classes.rules:
        if _is_about(rule, about) and (not rule.reads_conversation or _is_met(rule, asked, classes.timely)):
            kept = rule.of
            named = turns is not None and turns.user
            return kept if kept.scope != USER or named else _keep_for_nobody(kept)
    return None


@lru_cache(maxsize=256)
def _keep_for_nobody(kept: CacheClass) -> CacheClass:
    """A user's class where no user is named."""
    return replace(kept, ttl_s=0.0, stale_while_revalidate_s=0.0, stale_if_error_s=0.0)


def _is_about(rule: CacheRule, about: About) -> bool:
    """Whether the rule speaks of such callers and routes at all."""
    if rule.routes and about.route not in rule.routes:
        return False
    if rule.tenants and about.tenant not in rule.tenants:
        return False
    if rule.keys and about.key_id not in rule.keys:
        return False
    return not rule.tags or not rule.tags.isdisjoint(about.tags)


def _is_met(rule: CacheRule, asked: _Asked | None, timely: Timely) -> bool:
    """Whether the conversation is as the rule says; what is cheap to know is looked at first."""
    if asked is None:
        return False
    turns, count = asked.turns, len(asked.spoken)
    if count < rule.least_turns or (rule.most_turns is not None and count > rule.most_turns):
        return False
    chars = len(turns.last_user)
    if chars < rule.least_chars or (rule.most_chars is not None and chars > rule.most_chars):
        return False
    if rule.user is not None and rule.user is not bool(turns.user):
        return False
    if rule.structured is not None and rule.structured is not turns.structured:
        return False
    if rule.tools is not None and rule.tools is not asked.tools:
        return False
    if rule.media is not None and rule.media is not asked.media:
        return False
    if rule.timely is not None and rule.timely is not asked.is_timely(timely):
        return False
    return rule.expressions is None or bool(rule.expressions.which(asked.text))
