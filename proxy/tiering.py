"""Requests for virtual models get the name of a real one: chosen by `policy.tiers`, remembered by `TierMemory`,
carried out here, on the exchange's call and body."""

from __future__ import annotations

from proxy.access.permission import may_use_model
from proxy.clock import Clock
from proxy.config.tiers import Tiered
from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from proxy.policy.planner import Terms
from proxy.policy.policies import Policies
from proxy.policy.shaped import Shaped
from proxy.policy.tier_memory import Asked, Conversation, TierMemory
from proxy.policy.tiers import Choice, choose, cut_functions
from proxy.policy.turns import Turns, read_turns
from proxy.protocol.call import Call


class Tiering:
    """Sends requests to tiers. One for the process."""

    __slots__ = ("_clock", "memory")

    def __init__(self, clock: Clock, memory: TierMemory | None = None) -> None:
        self._clock = clock
        self.memory = memory or TierMemory()

    def apply(  # noqa: PLR0917 - what a policy is told
        self, exchange: Exchange, terms: Terms, policies: Policies, turns: Turns | None, unit: bytes, shaped: Shaped
    ) -> Turns | None:
        """Name the model that answers, and note on ``shaped`` why. The turns as they are then. A virtual model that
        is switched off for this request stands for its baseline, as nothing else has its name. Raises ``ProxyError``
        for a tier that does not exist."""
        call, savings = exchange.call, terms.catalog.savings
        assert savings is not None
        if call is None:
            return turns
        name = exchange.asked or call.model
        tiered = savings.tiers.get(name)
        if tiered is None:
            return turns
        if turns is None or name not in policies.tiers:
            if tiered.virtual:
                _send(exchange, terms, call, tiered, tiered.baseline)
            return turns
        choice = self._find(terms, tiered, call, turns, unit)
        self.memory.count(tiered.name, choice.tier, shadow=tiered.shadow)
        shaped.tier, shaped.tier_why, shaped.shadow = choice.tier, choice.why, tiered.shadow
        if tiered.shadow:
            shaped.baseline = choice.model
            _send(exchange, terms, call, tiered, tiered.baseline)
            return turns
        shaped.baseline = tiered.baseline
        _send(exchange, terms, call, tiered, choice.model)
        return _drop_functions(exchange, call, turns, shaped) if choice.drops_tools else turns

    def _find(self, terms: Terms, tiered: Tiered, call: Call, turns: Turns, unit: bytes) -> Choice:
        """The choice that an equal request had, or a new one."""
        now, memory = self._clock.now(), self.memory
        wanted = terms.controls.tier if tiered.heeds_header else ""
        asked = Asked(tiered.name, tiered.version, unit, wanted, hash(call.body))
        choice = memory.find(asked, now)
        if choice is not None:
            return choice
        questions = [turn.text for turn in turns.items if turn.role == "user"]
        answered = _count_answered(turns)
        least = memory.least(_conversation(tiered, unit, questions[:answered]), now) if answered else 0
        seen = tiered.rules.newcomer_messages
        if seen:
            seen = memory.count_message(unit if turns.user else terms.principal.scope)
        choice = choose(tiered, turns, unit, seen=seen, least=least, asked=wanted)
        if choice is None:
            names = ", ".join(tier.name for tier in tiered.tiers)
            message = f"There is no tier '{wanted}' of the model '{tiered.name}'; there are: {names}."
            raise ProxyError(Kind.BAD_REQUEST, message, why="tier")
        if not wanted:
            memory.rise(_conversation(tiered, unit, questions), choice.lasts, now)
        memory.keep(asked, choice, now)
        return choice


def _conversation(tiered: Tiered, unit: bytes, questions: list[str]) -> Conversation:
    return Conversation(tiered.name, unit, hash(tuple(questions)))


def _count_answered(turns: Turns) -> int:
    """The user's messages before the model's last one; those behind it are new."""
    asked = answered = 0
    for turn in turns.items:
        if turn.role == "user":
            asked += 1
        elif turn.role == "assistant":
            answered = asked
    return answered


def _send(exchange: Exchange, terms: Terms, call: Call, tiered: Tiered, model: str) -> None:
    """Ask for this model. A key that may not use it may use the virtual one, by the name that the caller wrote or by
    the one that this stands for."""
    key = terms.principal.key
    exchange.asked = exchange.asked or call.model
    if key is not None and not may_use_model(key, exchange.asked):
        exchange.asked = tiered.name
    if call.model != model:
        call.rename(model)
        exchange.body = call.body


def _drop_functions(exchange: Exchange, call: Call, turns: Turns, shaped: Shaped) -> Turns | None:
    cut = cut_functions(call.fields, turns)
    if cut is None:
        return turns
    before_bytes = len(call.body)
    call.edit(cut.members, cut.dropped)
    exchange.body = call.body
    shaped.slimmed_tokens += (before_bytes - len(call.body)) // 4
    return read_turns(call, turns.route)
