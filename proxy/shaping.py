"""What policies make of a request before it is planned: answered at once, sent to another model, made shorter, or
refused. Everything here happens before the fingerprint, so that requests which become equal share a flight.

The order is fixed: pattern → guards before → cache class → tier → slimming → pruning. The cache class is of what the
caller asked, before anything is left out. Decisions are `policy`'s and `guard`'s; here they are carried out, on the
exchange's call and body. Only a summary and a guard's look at a long text have to be waited for.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from proxy.clock import Clock
from proxy.config.guards import GuardSet
from proxy.exchange import Exchange
from proxy.policy.cache_classes import choose
from proxy.policy.planner import Terms
from proxy.policy.policies import About, Policies, make_unit
from proxy.policy.shaped import Shaped
from proxy.policy.turns import Turns, read_turns
from proxy.protocol.call import Call
from proxy.responder import Responder
from proxy.shortening import Shortening
from proxy.tiering import Tiering

if TYPE_CHECKING:
    from proxy.vetting import Vetting


class Shaper:
    """Shapes requests. One for the process; nothing of it runs where no policy is on."""

    __slots__ = ("_clock", "responder", "shortening", "tiering", "vetting")

    def __init__(self, clock: Clock, vetting: Vetting | None = None) -> None:
        """``vetting`` takes built-in guards to requests that have some."""
        self._clock = clock
        self.responder = Responder()
        self.tiering = Tiering(clock)
        self.shortening = Shortening()
        self.vetting = vetting

    def shape(self, exchange: Exchange, terms: Terms, call: Call | None) -> Coroutine[Any, Any, None] | None:
        """Carry out ``terms.policies`` on a request that was read (``exchange.body`` and ``call`` are what it said)
        and note on ``exchange.shaped`` what was done. What is returned has to be awaited before the plan is made.
        Raises ``ProxyError``."""
        policies = terms.policies
        assert policies is not None
        if call is None:
            if policies.guards is not None and self.vetting is not None:
                self.vetting.refuse_unread(exchange, terms, policies.guards)
            return None
        route = terms.located.route.name
        turns = read_turns(call, route)
        unit = make_unit(terms.principal, turns, call.body)
        policies = policies.narrow(unit)
        about = self._describe(terms, unit)
        shaped = exchange.shaped = Shaped()
        shaped.guards = policies.guards
        shaped.user = turns.user if turns is not None else ""
        if turns is not None and self._answer(exchange, terms, policies, turns, about):
            return None
        if policies.guards is not None:
            return self._guard_before(exchange, terms, policies, policies.guards, about)
        return self._go_on(exchange, terms, policies, turns, about)

    def _guard_before(
        self, exchange: Exchange, terms: Terms, policies: Policies, guards: GuardSet, about: About
    ) -> Coroutine[Any, Any, None] | None:
        """Let guards refuse or redact the request; the rest is for what they leave of it."""
        call, shaped = exchange.call, exchange.shaped
        assert call is not None
        assert shaped is not None
        assert self.vetting is not None
        step = self.vetting.vet(exchange, terms, guards, call, shaped)
        if step is not None:
            return self._go_on_later(step, exchange, terms, policies, about)
        return self._go_on(exchange, terms, policies, read_turns(call, about.route), about)

    async def _go_on_later(
        self,
        step: Coroutine[Any, Any, None],
        exchange: Exchange,
        terms: Terms,
        policies: Policies,
        about: About,
    ) -> None:
        await step
        assert exchange.call is not None
        following = self._go_on(exchange, terms, policies, read_turns(exchange.call, about.route), about)
        if following is not None:
            await following

    def _go_on(
        self, exchange: Exchange, terms: Terms, policies: Policies, turns: Turns | None, about: About
    ) -> Coroutine[Any, Any, None] | None:
        """All that follows on patterns and guards."""
        shaped = exchange.shaped
        assert shaped is not None
        if policies.classes is not None:
            shaped.cache_class = choose(policies.classes, turns, about)
        turns = self._choose_tier(exchange, terms, policies, turns, about)
        return self._shorten(exchange, terms, policies, turns, shaped)

    def _describe(self, terms: Terms, unit: bytes) -> About:
        key = terms.principal.key
        tenant, tags = (key.tenant, key.tags) if key is not None else ("", ())
        return About(terms.located.route.name, terms.principal.key_id, tenant, tags, self._clock.wall(), unit)

    def _answer(self, exchange: Exchange, terms: Terms, policies: Policies, turns: Turns, about: About) -> bool:
        """Whether a pattern answers."""
        patterns = policies.patterns
        return patterns is not None and self.responder.answer(exchange, terms, patterns, turns, about)

    def _choose_tier(
        self, exchange: Exchange, terms: Terms, policies: Policies, turns: Turns | None, about: About
    ) -> Turns | None:
        """Let a model of the right strength answer for a virtual one; the turns as they are then."""
        savings, shaped = terms.catalog.savings, exchange.shaped
        if savings is None or shaped is None or not savings.tiers:
            return turns
        return self.tiering.apply(exchange, terms, policies, turns, about.unit, shaped)

    def _shorten(
        self, exchange: Exchange, terms: Terms, policies: Policies, turns: Turns | None, shaped: Shaped
    ) -> Coroutine[Any, Any, None] | None:
        """Let prompts and conversations lose what they may."""
        call, shortening = exchange.call, self.shortening
        if turns is not None and call is not None and policies.slimming is not None:
            turns = shortening.slim(exchange, call, turns, policies.slimming, shaped)
        if turns is None or call is None or policies.pruning is None:
            return None
        return shortening.prune(exchange, terms, call, turns, policies.pruning, shaped)
