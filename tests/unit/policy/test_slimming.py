"""What prompts lose by rule, and everything that they must not lose."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import Any

import orjson
import pytest

from proxy.config.pruning import Slimming
from proxy.policy.slimming import drop_between, plan_slimming, squeeze
from proxy.policy.turns import CHAT, MESSAGES, RESPONSES, read_turns
from proxy.protocol.call import parse_call
from proxy.protocol.routes import _TABLE

ROUTES = {choice.usual.route.name: choice.usual.route for choice in _TABLE.values()}
WIDE = "a  b"
BY = {sha256(b"You are X.").digest(): "X."}


def slim(route: str, slimming: Slimming, **fields: Any) -> dict[str, Any]:
    """What is said otherwise."""
    call = parse_call(ROUTES[route], orjson.dumps({"model": "m", **fields}))
    turns = read_turns(call, route)
    assert turns is not None
    return plan_slimming(call, turns, slimming)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("one  two   three", "one two three"),
        ("end  \nof\t\nline\r\n", "end\nof\nline"),
        ("a\n\n\n\nb\n\nc", "a\n\nb\n\nc"),
        ("  two  in front", "  two in front"),
        ("    code  stays", "    code  stays"),
        ("\tcode  stays", "\tcode  stays"),
        ("| a  | b   |", "| a  | b   |"),
        ("say `a  b`", "say `a  b`"),
        ("x  y\n```py\nif  a:\n\n\n\n  b \n```\nx  y", "x y\n```py\nif  a:\n\n\n\n  b \n```\nx y"),
        ("~~~~\na  b\n~~~\na  b\n~~~~\na  b", "~~~~\na  b\n~~~\na  b\n~~~~\na b"),
        ("```\nnever  closed \n\n\n\nx", "```\nnever  closed \n\n\n\nx"),
        ("nothing to do", "nothing to do"),
        ("", ""),
    ],
)
def test_white_space_that_says_nothing_goes_and_code_stays(text: str, left: str) -> None:
    """And what was squeezed once is not squeezed again."""
    assert squeeze(text) == left
    assert squeeze(left) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a <e>1</e> b", "a  b"),
        ("a\n<e>\n1\n</e>\nb", "a\nb"),
        ("<e>1</e><e>2</e>c", "c"),
        ("a <e>1", "a <e>1"),
        ("a </e> b <e>1</e>", "a </e> b "),
        ("a <e>1<e>2</e>3</e>", "a 3</e>"),
    ],
)
def test_what_stands_between_markers_goes_with_them(text: str, left: str) -> None:
    """From the first opening one to the first closing one behind it; what is not closed stays."""
    assert drop_between(text, "<e>", "</e>") == left


@pytest.mark.parametrize(
    ("route", "fields", "edits"),
    [
        (
            CHAT,
            {"messages": [{"role": "developer", "content": WIDE}, {"role": "user", "content": WIDE}]},
            {"messages": [{"role": "developer", "content": "a b"}, {"role": "user", "content": WIDE}]},
        ),
        (
            MESSAGES,
            {"system": [{"type": "text", "text": WIDE, "cache_control": {"type": "ephemeral"}}], "messages": []},
            {"system": [{"type": "text", "text": "a b", "cache_control": {"type": "ephemeral"}}]},
        ),
        (RESPONSES, {"instructions": WIDE, "input": WIDE}, {"instructions": "a b"}),
    ],
)
def test_instructions_are_slimmed_wherever_the_dialect_has_them(
    route: str, fields: dict[str, Any], edits: dict[str, Any]
) -> None:
    """Users' words only where the rules say so."""
    assert slim(route, Slimming(squeeze=True), **fields) == edits


def test_everywhere_means_what_people_wrote_and_nothing_else() -> None:
    """Answers of models and tools, arguments of calls, and media stay."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":  "b  c"}'}}
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": WIDE}, {"type": "image_url", "image_url": {"url": "a  b"}}],
        },
        {"role": "assistant", "content": WIDE, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": WIDE},
    ]
    edits = slim(CHAT, Slimming(squeeze=True, everywhere=True), messages=messages)
    assert edits["messages"][0]["content"] == [{"type": "text", "text": "a b"}, messages[0]["content"][1]]  # type: ignore[index]
    assert edits["messages"][1:] == messages[1:]


def test_a_prompt_is_replaced_by_its_whole_text_only() -> None:
    """Not where it is a part of one, and not in a user's mouth."""
    rules = Slimming(prompts=BY, everywhere=True)
    said = [
        {"role": "system", "content": "You are X."},
        {"role": "system", "content": "You are X. "},
        {"role": "user", "content": "You are X."},
    ]
    assert slim(CHAT, rules, messages=said)["messages"] == [{"role": "system", "content": "X."}, *said[1:]]


def test_nothing_to_slim_edits_nothing_and_nothing_is_emptied() -> None:
    """A text of which nothing would be left stays: vendors refuse empty ones."""
    rules = Slimming(markers=(("<e>", "</e>"),), squeeze=True, everywhere=True)
    said = [
        {"role": "system", "content": "<e>1</e>"},
        {"role": "user", "content": None},
        {"role": "user", "content": ["x"]},
    ]
    assert slim(CHAT, rules, messages=said) == {}
    assert slim(RESPONSES, rules, input="plain") == {}


def test_hostile_texts_are_slimmed_in_linear_time() -> None:
    """A quarter of a mebibyte of whatever could be tried in two ways, in a fifth of a second of processor time."""
    texts = [" \t" * 125_000 + "x", "x" + "  " * 125_000, "<e>" * 90_000, "```\n" * 60_000, "x  \n" * 60_000]
    for text in texts:
        began = time.process_time()
        squeeze(drop_between(text, "<e>", "</e>"))
        assert time.process_time() - began < 0.2
