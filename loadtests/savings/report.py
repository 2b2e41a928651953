"""The replays as a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadtests import plots
from loadtests.savings.replay import POLICIES, Outcome

_COLUMNS: Final = (
    *("on", "by a rule", "cache hits", "joined", "cheap model", "strong model", "upstream calls"),
    *("million tokens", "$ per 1,000 messages", "money saved"),
)
BAR: Final = "20 % by a rule, 10 % hits, 60 % cheap, 10 % strong, 80 % of the money saved"


def name_of(outcome: Outcome) -> str:
    """``everything off``, ``all but tiers``, ``tiers`` …"""
    on = set(outcome.on)
    if not on:
        return "everything off"
    if len(on) == len(POLICIES):
        return "everything on"
    missing = set(POLICIES) - on
    return f"all but {_words(missing)}" if len(missing) == 1 else f"only {_words(on)}"


def _words(names: set[str]) -> str:
    return ", ".join(sorted(names)).replace("_", " ")


def render_table(outcomes: Sequence[Outcome]) -> str:
    """Markdown. The first outcome is the one that the others are compared with."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * 1 + "|--:" * (len(_COLUMNS) - 1) + "|"]
    base = outcomes[0].cost_usd
    for each in outcomes:
        shares = (each.pattern, each.hits, each.joined, each.cheap, each.strong)
        cells = [name_of(each), *(f"{100 * share / each.requests:.1f} %" for share in shares), f"{each.calls:,}"]
        cells += [f"{each.tokens / 1e6:.2f}", f"{1000 * each.cost_usd / each.requests:.3f}"]
        cells.append("–" if each is outcomes[0] else f"{100 * (1 - each.cost_usd / base):.1f} %")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def render_picture(outcomes: Sequence[Outcome]) -> str:
    """SVG: dollars for a thousand messages."""
    costs = {name_of(each): 1000 * each.cost_usd / each.requests for each in outcomes}
    return plots.bars("Dollars for 1,000 messages", {name: (cost, cost, cost) for name, cost in costs.items()}, "$")
