"""A day of chat at a shop: ten thousand messages from a seed, the same ones on every machine.

Small talk in many languages, questions that everybody asks, small distinct ones, some that want thought, people who
are new, and ten conversations of a hundred turns, three of them with tool calls. `DIGEST` is of all of it, and a
test holds the generator to it: figures of two runs are figures of the same messages.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from random import Random
from typing import Any, Final, NamedTuple

from loadtests.savings import words

SEED: Final = 20261121
MESSAGES: Final = 10_000
DIGEST: Final = "93bef8ee67f34f13"
TURNS: Final = 100
CONVERSATIONS: Final = 10
_WITH_TOOLS: Final = 3
_USERS: Final = 220
# Of the single messages; what is left is simple.
_SHARES: Final = (("small_talk", 0.27), ("repeat", 0.13), ("complex", 0.06))

Fields = dict[str, Any]


class Message(NamedTuple):
    """One request of the trace."""

    kind: str
    """``small_talk``, ``repeat``, ``simple``, ``complex`` or ``conversation``."""
    user: str
    thread: int
    """Messages of one thread are sent one after the other; -1 for single ones."""
    messages: list[Fields]
    """As Chat Completions has them, the whole history included."""
    tools: list[Fields]


def make_trace(count: int = MESSAGES, seed: int = SEED) -> list[Message]:
    """``count`` messages in the order of the day. A tenth of them belong to the conversations."""
    dice = Random(seed)
    conversations = max(1, CONVERSATIONS * count // MESSAGES)
    threads = [list(_converse(dice, number)) for number in range(conversations)]
    singles = [_say(dice, _choose_kind(dice), number) for number in range(count - conversations * TURNS)]
    order = [-1] * len(singles) + [number for number, thread in enumerate(threads) for _ in thread]
    dice.shuffle(order)
    lone, talks = iter(singles), [iter(thread) for thread in threads]
    return [next(lone) if number < 0 else next(talks[number]) for number in order]


def digest(trace: list[Message]) -> str:
    """Of every byte of it."""
    hasher = blake2b(digest_size=8)
    for message in trace:
        hasher.update(json.dumps(message, ensure_ascii=False).encode())
    return hasher.hexdigest()


def _choose_kind(dice: Random) -> str:
    place = dice.random()
    for kind, share in _SHARES:
        if place < share:
            return kind
        place -= share
    return "simple"


def _say(dice: Random, kind: str, number: int) -> Message:
    user = f"user-{int(_USERS * dice.random() ** 2)}"
    if kind == "small_talk":
        text = words.SMALL_TALK[int(dice.random() * len(words.SMALL_TALK))]
    elif kind == "repeat":
        # Squared twice: a few questions are most of what is asked.
        text = words.QUESTIONS[int(len(words.QUESTIONS) * dice.random() ** 3)]
    else:
        text = _fill(dice, words.SIMPLE if kind == "simple" else words.COMPLEX, number)
    return Message(kind, user, -1, [_system(), {"role": "user", "content": text}], [])


def _converse(dice: Random, thread: int) -> Any:
    """The turns of one conversation; each says all that was said before."""
    history: list[Fields] = [_system()]
    tools = [words.TOOL] if thread < _WITH_TOOLS else []
    for turn in range(TURNS):
        history.append({"role": "user", "content": _fill(dice, words.FOLLOW_UPS, turn)})
        yield Message("conversation", f"talker-{thread}", thread, list(history), tools)
        if tools and turn % 4 == 1:
            history += _call(dice, f"call_{thread}_{turn}")
        history.append({"role": "assistant", "content": _fill(dice, words.REPLIES, turn)})


def _call(dice: Random, name: str) -> list[Fields]:
    arguments = json.dumps({"article": int(dice.random() * 1000), "city": _pick(dice, words.CITIES)})
    call = {"id": name, "type": "function", "function": {"name": "look_up_stock", "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": name, "content": json.dumps({"pieces": int(dice.random() * 50)})}
    return [{"role": "assistant", "content": None, "tool_calls": [call]}, result]


def _system() -> Fields:
    return {"role": "system", "content": words.SYSTEM}


def _fill(dice: Random, templates: tuple[str, ...], number: int) -> str:
    delays = ", ".join(str(int(dice.random() * 90)) for _ in range(24))
    return (
        _pick(dice, templates)
        .replace("{colour}", _pick(dice, words.COLOURS))
        .replace("{thing}", _pick(dice, words.THINGS))
        .replace("{city}", _pick(dice, words.CITIES))
        .replace("{number}", str(number))
        .replace("{delays}", delays)
    )


def _pick(dice: Random, choices: tuple[str, ...]) -> str:
    return choices[int(dice.random() * len(choices))]
