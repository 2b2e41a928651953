"""Which tier a request for a virtual model belongs to, and which model answers for it. Pure."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final, NamedTuple

from proxy.config.tiers import Tier, Tiered
from proxy.policy.complexity import score
from proxy.policy.turns import Turns

# A tuple, as a stranger may say a list where a word is meant, which has no hash.
_FUNCTIONS: Final = ("function", "custom", None)
"""Types of tools that are definitions of the caller's; Anthropic's have none. What else there is runs at the
provider, such as a search."""
_UNFORCED: Final = frozenset(("auto", "none", None))
_ABOUT_TOOLS: Final = (
    *("tools", "tool_choice", "parallel_tool_calls", "max_tool_calls"),
    *("functions", "function_call"),
)
_ELSEWHERE: Final = ("previous_response_id", "conversation", "prompt")
"""Members that stand for messages which are not in the body."""


class Choice(NamedTuple):
    """What was chosen."""

    at: int
    """Its place in ``Tiered.tiers``."""
    tier: str
    model: str
    why: tuple[str, ...]
    """Of `config.tiers.REASONS`; empty for a request with nothing to it."""
    points: int
    drops_tools: bool
    lasts: int = 0
    """Place of the tier that the conversation keeps: a new user's first messages are no reason to keep one."""


class Cut(NamedTuple):
    """An edit of a request's body."""

    members: dict[str, Any]
    """To be said instead."""
    dropped: tuple[str, ...]


def choose(
    tiered: Tiered, turns: Turns, unit: bytes, *, seen: int = 0, least: int = 0, asked: str = ""
) -> Choice | None:
    """Choose for a conversation; ``None`` if there is no tier named ``asked``.

    ``unit`` is for whom it is: shares go by it. ``seen``: messages of this user before this one. ``least``: the place
    of the tier that this conversation had, below which it does not fall. ``asked``: the tier that the caller wants,
    empty to go by complexity.
    """
    if asked:
        at, points = tiered.find(asked), 0
        if at < 0:
            return None
        why: tuple[str, ...] = ("header",)
        lasts = 0
    else:
        points, why = score(turns, tiered.rules, newcomer=seen < tiered.rules.newcomer_messages)
        at = _place(tiered, points)
        lasts = _place(tiered, points - tiered.rules.newcomer_points) if "new_user" in why else at
        if at < least < len(tiered.tiers):
            at, why = least, (*why, "held")
            lasts = least
    tier = tiered.tiers[at]
    model = _model_of(tier, tiered.name, unit) if tier.shares else tier.model
    if model != tier.model:
        why = (*why, "share")
    return Choice(at, tier.name, model, why, points, tier.drops_tools, lasts)


def _place(tiered: Tiered, points: int) -> int:
    return max(place for place, tier in enumerate(tiered.tiers) if tier.from_points <= max(0, points))


def _model_of(tier: Tier, name: str, unit: bytes) -> str:
    """Whose share the unit is in. Whoever is in the first share stays in while that grows."""
    person = blake2b(unit, digest_size=8, person=b"sf/tier", key=blake2b(f"{name}\0{tier.name}".encode()).digest())
    place = int.from_bytes(person.digest(), "big") / 2.0**64
    bound = 0.0
    for model, share in tier.shares:
        bound += share
        if place < bound:
            return model
    return tier.model


def cut_functions(fields: dict[str, Any], turns: Turns) -> Cut | None:
    """How a request loses its function definitions; ``None`` if it has none or needs them: it has called some
    already, may have done so where we cannot see it, or is told to call one now."""
    if not turns.tools or any(turn.calls or turn.results for turn in turns.items):
        return None
    if any(fields.get(name) for name in _ELSEWHERE) or _is_forced(fields):
        return None
    tools = fields.get("tools")
    listed = tools if type(tools) is list else []
    kept = [tool for tool in listed if type(tool) is not dict or tool.get("type") not in _FUNCTIONS]
    if not kept:
        return Cut({}, tuple(name for name in _ABOUT_TOOLS if name in fields))
    if len(kept) == len(listed):
        return None
    return Cut({"tools": kept}, ())


def _is_forced(fields: dict[str, Any]) -> bool:
    for name in ("tool_choice", "function_call"):
        said = fields.get(name)
        if type(said) is dict:
            said = said.get("mode") if said.get("type") == "allowed_tools" else said.get("type", "forced")
        if type(said) not in (str, type(None)) or said not in _UNFORCED:
            return True
    return False
