"""Conversations read from requests of three dialects."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.policy.turns import Turns, read_turns
from proxy.protocol.call import Call


def read(route: str, **fields: Any) -> Turns | None:
    return read_turns(Call(orjson.dumps(fields), fields, "m", False, False), route)


def test_the_same_talk_reads_the_same_in_every_dialect() -> None:
    """Roles, texts, calls and results by their ids."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    chat = read(
        "chat.completions",
        messages=[
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {}}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ],
    )
    messages = read(
        "messages",
        system=[{"type": "text", "text": "be kind"}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image", "source": {}}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "42"}]},
        ],
    )
    responses = read(
        "responses",
        instructions="be kind",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"type": "input_image"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "42"},
        ],
    )
    for turns in (chat, messages, responses):
        assert turns is not None
        assert [(each.role, each.text, each.calls, each.results, each.media) for each in turns.items] == [
            ("system", "be kind", (), (), 0),
            ("user", "hi", (), (), 1),
            ("assistant", "", ("c1",), (), 0),
            ("tool", "42", (), ("c1",), 0),
        ]


@pytest.mark.parametrize("wrong", [["x"], {"a": 1}, 3, None, True])
def test_what_cannot_be_read_is_left_out_and_breaks_nothing(wrong: Any) -> None:
    """A stranger may say anything anywhere; the upstream will tell them."""
    content = [{"type": wrong, "text": wrong}, wrong]
    message = {"role": wrong, "content": content, "tool_calls": [wrong], "type": wrong}
    for route in ("chat.completions", "messages", "responses"):
        member = "input" if route == "responses" else "messages"
        turns = read(route, **{member: [wrong, message]}, system=wrong, instructions=wrong, tools=wrong, user=wrong)
        assert turns is not None
        assert turns.user == ""
        assert turns.last_user == ""
    assert read("chat.completions", messages={"a": wrong}) is None


def test_a_responses_request_of_plain_text_is_one_question() -> None:
    """And what was asked last is told."""
    turns = read("responses", input="why?")
    assert turns is not None
    assert turns.last_user == turns.first_user == "why?"


def test_other_operations_are_no_conversations() -> None:
    """An embedding has no turns."""
    assert read("embeddings", input=["a"]) is None
