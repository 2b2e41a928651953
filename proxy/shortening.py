"""Carries out what `policy.slimming` and `policy.pruning` decide: the body of a request says less afterwards, and the
exchange notes how much less. A summary that is not there yet has to be waited for; nothing else is."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final

from proxy.config.pruning import Pruning, Slimming, Summary
from proxy.exchange import Exchange
from proxy.policy.planner import Terms
from proxy.policy.pruning import Cut, plan_cut, write_cut
from proxy.policy.shaped import Shaped
from proxy.policy.slimming import plan_slimming
from proxy.policy.turns import Turns, read_turns
from proxy.protocol.call import Call
from proxy.summaries import Summaries, Wanted

_BYTES_PER_TOKEN: Final = 4


class Shortening:
    """One for the process."""

    # Mutable state: summaries is set once, by whoever puts the process together.
    __slots__ = ("summaries",)

    def __init__(self) -> None:
        self.summaries: Summaries | None = None
        """``None``: what falls out has no summary."""

    def slim(self, exchange: Exchange, call: Call, turns: Turns, slimming: Slimming, shaped: Shaped) -> Turns | None:
        """Leave out of a prompt what the rules say; the turns as they are then."""
        edits = plan_slimming(call, turns, slimming)
        if not edits:
            return turns
        before = len(call.body)
        call.edit(edits)
        exchange.body = call.body
        shaped.slimmed_tokens += max(0, before - len(call.body)) // _BYTES_PER_TOKEN
        return read_turns(call, turns.route)

    def prune(  # noqa: PLR0917 - what it works on
        self, exchange: Exchange, terms: Terms, call: Call, turns: Turns, pruning: Pruning, shaped: Shaped
    ) -> Coroutine[Any, Any, None] | None:
        """Cut a long conversation; what is returned has to be awaited until that is done."""
        if not terms.controls.prune or (pruning.routes and turns.route not in pruning.routes):
            return None
        measure = pruning.find(exchange.asked, call.model)
        if not measure.bounds:
            return None
        summary = pruning.summary if self.summaries is not None else None
        cut = plan_cut(call, turns, measure, summary)
        if cut is None:
            return None
        if summary is None or self.summaries is None:
            _carry_out(exchange, call, turns, cut, shaped)
            return None
        wanted = self.summaries.want(exchange, terms, cut, summary)
        text = self.summaries.look(wanted)
        if not text and (terms.controls.only_if_cached or terms.controls.cache == "only"):
            _carry_out_without(exchange, call, turns, cut, shaped, summary)
            return None  # no call is to be made for this caller
        if not text:
            return self._prune_later(wanted, call, turns, cut, shaped)
        _carry_out(exchange, call, turns, cut, shaped, text)
        return None

    async def _prune_later(self, wanted: Wanted, call: Call, turns: Turns, cut: Cut, shaped: Shaped) -> None:
        """The summary has to be made first."""
        assert self.summaries is not None
        text = await self.summaries.wait(wanted)
        if wanted.exchange.accounted:
            return
        if text:
            _carry_out(wanted.exchange, call, turns, cut, shaped, text)
        else:
            _carry_out_without(wanted.exchange, call, turns, cut, shaped, wanted.summary)


def _carry_out_without(  # noqa: PLR0917 - as above
    exchange: Exchange, call: Call, turns: Turns, cut: Cut, shaped: Shaped, summary: Summary
) -> None:
    """There is no summary."""
    if summary.on_failure == "drop":
        _carry_out(exchange, call, turns, cut, shaped)


def _carry_out(  # noqa: PLR0917 - as above
    exchange: Exchange, call: Call, turns: Turns, cut: Cut, shaped: Shaped, summary: str = ""
) -> None:
    call.edit({turns.member: write_cut(cut, turns.route, summary)})
    exchange.body = call.body
    instead = len(summary.encode("utf-8", "replace")) // _BYTES_PER_TOKEN
    shaped.pruned_messages = cut.messages
    shaped.pruned_tokens = max(0, cut.tokens - instead)
    shaped.summarised = bool(summary)
