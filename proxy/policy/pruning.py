"""Where a long conversation is cut. Pure: the same conversation gives the same cut, and one that has grown is cut at
the same place until a whole block has come to it.

The conversation is instructions and, apart from them, what was spoken. Instructions stay. Of what was spoken the tail
from the cut on stays, and before it the user's message that the tail goes on from, where the tail does not begin with
one itself: so nothing is answered to nobody, and the first message is a user's, which some vendors demand.

A cut never lies between a tool call and its results, nor between a thought and what was thought of.

The cut lies at a multiple of the block, counted from the conversation's beginning, or just before; where tokens are
bounded, at a multiple of so many tokens. What stays of all that lies before it depends on its place alone, so the
prompts of a growing conversation begin with the same bytes until it moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from proxy.config.pruning import Measure, Summary
from proxy.policy.estimate import estimate_part
from proxy.policy.turns import MESSAGES, Turn, Turns
from proxy.protocol.call import Call
from proxy.protocol.dialogue import dump, make_user_message

# What was said before lies elsewhere, so that what is here cannot be judged.
_ELSEWHERE: Final = ("previous_response_id", "conversation")
SUMMARY_HEADING: Final = "Summary of the conversation so far:\n"
NOTICE: Final = "(The beginning of the conversation was left out.)"
_WRAPPING_TOKENS: Final = 24
"""Of a summary's heading and of the message around it."""


class Cut(NamedTuple):
    """What falls out of a conversation."""

    items: list[Any]
    """The body's list of messages, as it came."""
    spoken: tuple[int, ...]
    """Indices in ``items`` of all that is no instruction."""
    at: int
    """So many of ``spoken`` lie before the cut."""
    anchor: int
    """Which of them stays, because the tail goes on from it; -1: none."""
    tokens: int
    """Estimated, of all that falls out."""
    asked: bool
    """What is left of ``spoken`` begins with a user's message."""

    @property
    def dropped(self) -> frozenset[int]:
        """Indices in ``items``."""
        return frozenset(index for place, index in enumerate(self.spoken[: self.at]) if place != self.anchor)

    @property
    def messages(self) -> int:
        """How many fall out."""
        return self.at - (self.anchor >= 0)


def plan_cut(call: Call, turns: Turns, measure: Measure, summary: Summary | None = None) -> Cut | None:
    """``None`` if nothing is to fall out, or if the conversation cannot be judged."""
    items = call.fields.get(turns.member)
    if type(items) is not list or any(call.fields.get(name) for name in _ELSEWHERE):
        return None
    listed = [turn for turn in turns.items if turn.at >= 0]
    if len(listed) != len(items) or any(item.get("type") == "item_reference" for item in items):
        return None
    spoken = [turn for turn in listed if turn.role != "system"]
    if len(spoken) < 2 or not _is_long(call, len(spoken), measure):
        return None
    plan = _Plan(call, turns, spoken, summary)
    at = plan.by_messages(measure)
    if measure.tokens:
        at = max(at, plan.by_tokens(measure.tokens))
    if at == 0:
        return None
    anchor = plan.anchors[at]
    tokens = plan.before[at] - (plan.weights[anchor] if anchor >= 0 else 0)
    if tokens <= plan.reserve and not measure.tokens:
        return None  # the summary would be longer
    if at <= (anchor >= 0):
        return None
    asked = anchor >= 0 or spoken[at].role == "user"
    return Cut(items, tuple(turn.at for turn in spoken), at, anchor, tokens, asked)


def _is_long(call: Call, messages: int, measure: Measure) -> bool:
    """Whether a closer look is worth it."""
    if measure.messages and messages >= measure.messages + measure.block:
        return True
    # Four bytes are a token, and rounding adds less than one to each message; images by reference are short.
    return bool(measure.tokens) and (len(call.body) // 3 > measure.tokens or b'"image' in call.body)


class _Plan:
    """What one conversation's messages weigh, and where it may be cut."""

    # Mutable state: none after it was made.
    __slots__ = ("anchors", "before", "count", "fixed", "places", "reserve", "weights")

    def __init__(self, call: Call, turns: Turns, spoken: Sequence[Turn], summary: Summary | None) -> None:
        items = call.fields[turns.member]
        self.count = len(spoken)
        self.weights = [_weigh(items[turn.at]) for turn in spoken]
        self.before = [0]
        """Tokens before each place."""
        for weight in self.weights:
            self.before.append(self.before[-1] + weight)
        apart = {name: value for name, value in call.fields.items() if name != turns.member}
        told = [turn.at for turn in turns.items if turn.at >= 0 and turn.role == "system"]
        self.fixed = _weigh(apart) + len(turns.member) // 4 + 2 + sum(_weigh(items[at]) for at in told)
        """Tokens of all that stays in any case."""
        self.reserve = 0 if summary is None else summary.max_tokens + _WRAPPING_TOKENS
        """Tokens for what stands there instead."""
        if summary is None:
            self.fixed += _WRAPPING_TOKENS  # a notice
        self.places = _find_places(spoken)
        """For each place the nearest one before it, or it itself, where a cut may lie."""
        self.anchors = _find_anchors(spoken)

    def weigh(self, at: int) -> int:
        """Tokens of the whole prompt, cut here."""
        anchor = self.anchors[at]
        kept = self.before[-1] - self.before[at] + (self.weights[anchor] if anchor >= 0 else 0)
        return self.fixed + kept + (self.reserve if at else 0)

    def by_messages(self, measure: Measure) -> int:
        """As many messages as are to be kept, and up to a block more."""
        least, block = measure.messages, measure.block
        if not least or self.count < least + block:
            return 0
        return self.places[(self.count - least) // block * block]

    def by_tokens(self, most: int) -> int:
        """The first cut that is short enough, of those that lie so many tokens apart that between a half and three
        quarters of the room are used at least; of any, where none of those is; the last that there may be, where none
        is short enough."""
        if self.weigh(0) <= most:
            return 0
        # A power of two, so that the places do not move with every word that is added to the instructions.
        step = 1 << max(0, (most - self.fixed - self.reserve) // 2).bit_length() >> 1
        for size in (step, 1):
            for at in range(1, self.count):
                if size and self.before[at] // size > self.before[at - 1] // size:
                    place = self.places[at]
                    if place and self.weigh(place) <= most:
                        return place
        return self.places[self.count - 1]


def _weigh(value: Any) -> int:
    return estimate_part(value, dump(value))


def _find_places(spoken: Sequence[Turn]) -> list[int]:
    """For each place from 0 to the last turn's the nearest one before it, or it itself, where a cut may lie."""
    together = [False] * len(spoken)
    open_calls = [0] * (len(spoken) + 1)
    made: dict[str, int] = {}
    thought = False
    for at, turn in enumerate(spoken):
        if turn.results:
            open_calls[min(made.get(name, at) for name in turn.results) + 1] += 1
            open_calls[at + 1] -= 1
        if turn.role == "tool" or (at and spoken[at - 1].bound):
            together[at] = True
        if turn.role == "user":
            thought = False
        elif turn.bound:
            thought = True
        elif thought:
            together[at] = True  # which of the thoughts before led to it, nobody says
        made.update(dict.fromkeys(turn.calls, at))
    places: list[int] = []
    unanswered = 0
    for at in range(len(spoken)):
        unanswered += open_calls[at]
        places.append(places[-1] if at and (unanswered or together[at]) else at)
    return places


def _find_anchors(spoken: Sequence[Turn]) -> list[int]:
    """For each place the user's message from which the tail behind it goes on; -1 if that is in the tail, or
    nowhere."""
    anchors: list[int] = []
    last = -1
    for at, turn in enumerate(spoken):
        anchors.append(-1 if turn.role == "user" else last)
        if turn.role == "user":
            last = at
    return anchors


# -- carrying it out ------------------------------------------------------------------------------------------------


def write_cut(cut: Cut, route: str, summary: str = "") -> list[Any]:
    """The list of messages that is left. ``summary`` stands where the first message fell out, in a user's words: it
    is made from what users said, and must not speak with more authority than they had."""
    dropped = cut.dropped
    instead = make_user_message(SUMMARY_HEADING + summary) if summary else None
    if instead is None and not _begins_well(cut, dropped, route):
        instead = make_user_message(NOTICE)
    first = min(dropped)
    left: list[Any] = []
    for index, item in enumerate(cut.items):
        if index == first and instead is not None:
            left.append(instead)
        if index not in dropped:
            left.append(item)
    return left


def _begins_well(cut: Cut, dropped: frozenset[int], route: str) -> bool:
    """Whether what is left begins with a user's words: behind instructions, where those may stand in the list."""
    if not cut.asked or route != MESSAGES:
        return cut.asked
    first = next(index for index in range(len(cut.items)) if index not in dropped)
    return first in cut.spoken


def digest_prefixes(cut: Cut, seed: bytes) -> list[bytes]:
    """For each place from 0 to the cut 16 bytes that stand for ``seed`` and all that was spoken before it."""
    hasher = blake2b(seed, digest_size=16, person=b"sf/prefix")
    digests = [hasher.digest()]
    for index in cut.spoken[: cut.at]:
        text = dump(cut.items[index])
        hasher.update(b"%d:" % len(text) + text)
        digests.append(hasher.copy().digest())
    return digests


def split_block(lengths: Sequence[int], most: int) -> Iterator[int]:
    """Divide a block of messages of these lengths into runs of at most ``most`` together (one message at least):
    yields where each run stops."""
    size = 0
    for at, length in enumerate(lengths):
        if size and size + length > most:
            yield at
            size = 0
        size += length
    if lengths:
        yield len(lengths)
