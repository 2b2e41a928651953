"""How complex a request is."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.config.tier_file import as_pattern
from proxy.config.tiers import REASONS, Points, Rules
from proxy.linear import ExpressionSet
from proxy.policy.complexity import MOST_READ_CHARS, Score, score
from proxy.policy.turns import Turns, read_turns
from proxy.protocol.call import Call

EASY = ["hi", "thanks, done", "What is the capital of France?", "book a plane ticket", "good morning; see you", "да"]
THOUGHT = [
    "analyse this",
    "Compare the two",
    "Why is that so?",
    "prove it",
    "debug my setup",
    "What is the goal?",
    "find a pattern",
    "think step by step",
    "Analysiere das",
    "warum ist das so",
    "pourquoi donc",
    "¿por qué no?",
    "perché no",
    "почему это так",
    "сравни их",
    "请分析一下",
    "なぜですか",
    "데이터를 분석해줘",
]
CODE = [
    "```\nx\n```",
    "def f(x):\n    return x",
    "const a = 1",
    "SELECT name FROM users",
    "<b>hi</b>",
    "Traceback (most recent call last):",
    "a = 1;\nb = 2;\n",
    "#include <stdio.h>",
]


def turns_of(*said: str, **fields: Any) -> Turns:
    """A conversation in which the user said this, with an answer to each but the last."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Analyse why, step by step: " + "x" * 50_000}]
    for text in said:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    body = {"model": "auto", "messages": messages[:-1], **fields}
    found = read_turns(Call(b"", body, "auto", False, False), "chat.completions")
    assert found is not None
    return found


def why(*said: str, **fields: Any) -> tuple[str, ...]:
    return score(turns_of(*said, **fields), Rules()).why


@pytest.mark.parametrize("text", EASY)
def test_small_talk_counts_nothing(text: str) -> None:
    """Whatever the system prompt asks for."""
    assert score(turns_of(text), Rules()) == Score(0, ())


@pytest.mark.parametrize("text", THOUGHT)
def test_words_that_ask_for_thought_count_in_many_languages(text: str) -> None:
    """One kind of word is not enough for a strong model."""
    assert score(turns_of(text), Rules()) == Score(20, ("reasoning",))


def test_several_kinds_of_such_words_are_complex_and_more_of_one_kind_are_not() -> None:
    """Who asks why three times asks one thing."""
    rules = Rules()

    assert score(turns_of("why, why, why?"), rules).points == 20
    assert score(turns_of("analyse and compare"), rules).points == 40
    everything = "analyse, compare, prove, debug, plan and evaluate why, step by step"
    assert score(turns_of(everything), rules).points == 60


@pytest.mark.parametrize("text", CODE)
def test_code_is_seen_for_what_it_is(text: str) -> None:
    """Fences, statements, markup, traces."""
    assert "code" in why(text)


def test_length_counts_in_proportion() -> None:
    """Up to its bound."""
    rules = Rules(points=Points(context=0), long_chars=1_000)

    counted = [score(turns_of("x" * size), rules).points for size in (10, 100, 500, 1_000, 5_000)]
    assert counted == [0, 3, 15, 30, 30]


def test_a_text_beyond_the_bound_counts_all_and_is_not_read() -> None:
    """It cannot count less than any text within."""
    worst = "analyse, compare and prove: ``` ```" + "x" * (MOST_READ_CHARS - 35)

    assert len(worst) == MOST_READ_CHARS
    assert score(turns_of("x" * (MOST_READ_CHARS + 1)), Rules()).points >= score(turns_of(worst), Rules()).points


def test_everything_else_of_a_request_counts() -> None:
    """Each under its own name."""
    image = [{"type": "text", "text": "this"}, {"type": "image_url", "image_url": {"url": "data:"}}]

    assert why("hi", tools=[{"type": "function"}]) == ("tools",)
    assert why("hi", response_format={"type": "json_object"}) == ("schema",)
    assert why(image) == ("media",)  # type: ignore[arg-type]
    assert why("hi", "hi", "hi") == ("depth",)
    assert why("x" * 3_000, "hi") == ("depth", "context")


def test_calls_that_were_made_count() -> None:
    """An agent at work is no small talk."""
    call = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}
    messages = [{"role": "user", "content": "hi"}, call, {"role": "tool", "tool_call_id": "1", "content": "x"}]
    turns = read_turns(Call(b"", {"messages": messages}, "auto", False, False), "chat.completions")

    assert turns is not None
    assert score(turns, Rules()).why == ("calls",)


def test_only_what_is_asked_now_is_read() -> None:
    """Not what was asked before, nor what the model said."""
    assert score(turns_of("analyse and compare", "thanks"), Rules()).why == ("depth",)


def test_the_operators_words_count_as_their_own_reason() -> None:
    """Beside the built-in ones or instead of them."""
    words = (as_pattern("refund"), as_pattern("invoice"))
    compiled = ExpressionSet(words, ignore_case=True)
    both = Rules(words=words, expressions=compiled)
    alone = Rules(words=words, expressions=compiled, built_in=False)
    turns = turns_of("why no refund for invoice 7?")

    assert score(turns, both) == Score(60, ("reasoning", "words"))
    assert score(turns, alone) == Score(40, ("words",))
    assert score(turns_of("```x```"), alone).why == ("code",)


def test_reasons_with_no_points_are_not_told() -> None:
    """An operator who does not care for length does not read of it."""
    rules = Rules(points=Points(length=0, context=0))

    assert score(turns_of("x" * 4_000), rules) == Score(0, ())


def test_a_newcomer_counts_more() -> None:
    """As much as the operator said."""
    assert score(turns_of("hi"), Rules(newcomer_points=33), newcomer=True) == Score(33, ("new_user",))


@pytest.mark.parametrize("route", ["messages", "responses"])
def test_the_other_dialects_are_scored_alike(route: str) -> None:
    """A question is as hard in any words."""
    said = {"role": "user", "content": "Why? Compare."}
    fields = {"input": [said]} if route == "responses" else {"messages": [said], "system": "x"}
    turns = read_turns(Call(b"", fields, "auto", False, False), route)

    assert turns is not None
    assert score(turns, Rules()) == Score(40, ("reasoning",))


def test_reasons_are_known_ones() -> None:
    """So that labels are few."""
    fields = {"tools": [{}], "response_format": {"type": "json_object"}}
    everything = score(turns_of("why ```" + "x" * 50_000, "why ```" + "x" * 9_000, **fields), Rules(), newcomer=True)

    assert set(everything.why) <= set(REASONS)
    assert len(everything.why) >= 7
