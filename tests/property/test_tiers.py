"""Laws of tiers: equal requests have equal choices, more never counts less, and memory is bounded."""

from __future__ import annotations

import random
from itertools import pairwise

from proxy.config.tier_file import as_pattern
from proxy.config.tiers import Rules, Tier, Tiered
from proxy.linear import ExpressionSet
from proxy.policy.complexity import MOST_READ_CHARS, score
from proxy.policy.tiers import choose
from proxy.policy.turns import Turn, Turns

_WORDS = (
    *(
        "hi",
        "thanks",
        "why",
        "analyse",
        "compare",
        "plan",
        "step by step",
        "refund",
        "porridge",
        "the",
        "of",
        "x = 1;\n",
    ),
    *(
        "```",
        "def f(x):\n",
        "почему",
        "分析",
        "\u0301",
        "é",
        "SELECT a FROM b",
        "\x00",
        "\n",
        " ",
        "(",
        "prove",
        "ll",
    ),
)
_REFUND = (as_pattern("refund"),)
RULES = Rules(words=_REFUND, expressions=ExpressionSet(_REFUND, ignore_case=True), newcomer_messages=3)
THREE = Tiered(
    "auto",
    (Tier("low", "s", 0, (("t", 0.3),)), Tier("mid", "m", 30), Tier("high", "l", 60)),
    baseline="l",
    rules=RULES,
)


def make_turns(dice: random.Random, *, said: list[str] | None = None) -> Turns:
    """A conversation of any shape."""
    items = [Turn("system", "x" * dice.randrange(100))] if dice.random() < 0.5 else []
    for _ in range(dice.randrange(8)):
        items.append(Turn("user", " ".join(dice.choices(_WORDS, k=dice.randrange(20))), media=dice.randrange(2)))
        items.append(Turn("assistant", "ok", calls=("1",) if dice.random() < 0.2 else ()))
    items.append(Turn("user", " ".join(dice.choices(_WORDS, k=5) if said is None else said)))
    return Turns("messages", "messages", items, dice.randrange(2), dice.random() < 0.2, "")


def with_last(turns: Turns, text: str) -> Turns:
    items = [*turns.items[:-1], turns.items[-1]._replace(text=text)]
    return Turns(turns.route, turns.member, items, turns.tools, turns.structured, turns.user)


def test_equal_requests_have_equal_choices() -> None:
    """Whatever else was chosen in between."""
    for seed in range(150):
        first, second = (make_turns(random.Random(seed)) for _ in range(2))
        dice = random.Random(seed)
        unit, seen, least = dice.randbytes(16), dice.randrange(5), dice.randrange(4)

        choice = choose(THREE, first, unit, seen=seen, least=least)
        choose(THREE, make_turns(random.Random(-seed)), dice.randbytes(16))

        assert choice == choose(THREE, second, unit, seen=seen, least=least)


def test_more_words_never_count_less() -> None:
    """Behind what was said; up to the bound of what is read and over it."""
    for seed in range(25):
        dice = random.Random(seed)
        turns = make_turns(dice, said=[])
        text, points = "", []
        for _ in range(20):
            more = dice.choices(_WORDS, k=dice.choice((1, 1, 2, 40)))
            text += " " + " ".join(more) + ("x" * MOST_READ_CHARS if dice.random() < 0.05 else "")
            points.append(score(with_last(turns, text), RULES).points)

        assert all(before <= after for before, after in pairwise(points)), (seed, points)


def test_more_of_anything_never_counts_less() -> None:
    """Another question, an image, functions, a schema."""
    for seed in range(200):
        dice = random.Random(seed)
        turns = make_turns(dice)
        points = score(turns, RULES).points
        image = [*turns.items, turns.items[-1]._replace(media=1)]
        for items, tools, structured in (
            ([Turn("user", "x"), Turn("assistant", "y"), *turns.items], turns.tools, turns.structured),
            (image, turns.tools, turns.structured),
            (turns.items, turns.tools + 1, turns.structured),
            (turns.items, turns.tools, True),
        ):
            assert score(Turns("messages", "messages", items, tools, structured, ""), RULES).points >= points


def test_a_choice_is_never_below_what_the_conversation_had() -> None:
    """And never beyond the tiers there are."""
    for seed in range(300):
        dice = random.Random(seed)
        least = dice.randrange(3)
        choice = choose(THREE, make_turns(dice), dice.randbytes(16), least=least)

        assert choice is not None
        assert least <= choice.at < 3
        assert choice.tier == THREE.tiers[choice.at].name
        assert choice.model in THREE.tiers[choice.at].models
