"""What policies make of a request before it is planned: answered at once, sent to another model, made shorter, or
refused. Everything here happens before the fingerprint, so that requests which become equal share a flight.

The order is fixed: pattern → guards before → tier → slimming → pruning → cache class. Decisions are `policy`'s and
`guard`'s; here they are carried out, on the exchange's call and body. Only a summary has to be waited for.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from proxy.clock import Clock
from proxy.exchange import Exchange
from proxy.policy.planner import Terms
from proxy.policy.policies import About, Policies, make_unit
from proxy.policy.shaped import Shaped
from proxy.policy.turns import Turns, read_turns
from proxy.protocol.call import Call


class Shaper:
    """Shapes requests. One for the process; nothing of it runs where no policy is on."""

    __slots__ = ("_clock",)

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def shape(self, exchange: Exchange, terms: Terms, call: Call | None) -> Coroutine[Any, Any, None] | None:
        """Carry out ``terms.policies`` on a request that was read (``exchange.body`` and ``call`` are what it said)
        and note on ``exchange.shaped`` what was done. What is returned has to be awaited before the plan is made.
        Raises ``ProxyError``."""
        policies = terms.policies
        assert policies is not None
        if call is None:
            return None
        route = terms.located.route.name
        turns = read_turns(call, route)
        unit = make_unit(terms.principal, turns, call.body)
        policies = policies.narrow(unit)
        about = self._describe(terms, unit)
        shaped = exchange.shaped = Shaped()
        shaped.guards = policies.guards
        shaped.user = turns.user if turns is not None else ""
        if turns is not None and self._answer(exchange, policies, turns, about, shaped):
            return None
        return None

    def _describe(self, terms: Terms, unit: bytes) -> About:
        key = terms.principal.key
        tenant, tags = (key.tenant, key.tags) if key is not None else ("", ())
        return About(terms.located.route.name, terms.principal.key_id, tenant, tags, self._clock.wall(), unit)

    def _answer(
        self, exchange: Exchange, policies: Policies, turns: Turns, about: About, shaped: Shaped
    ) -> bool:
        """Whether a pattern answers."""
        return False
