"""Where a conversation is cut, case by case; `tests/property/test_pruning.py` tries conversations of any shape."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.config.pruning import Measure, Summary
from proxy.policy.pruning import Cut, digest_prefixes, plan_cut, split_block, write_cut
from proxy.policy.turns import CHAT, MESSAGES, RESPONSES, read_turns
from proxy.protocol.call import parse_call
from proxy.protocol.routes import _TABLE

ROUTES = {choice.usual.route.name: choice.usual.route for choice in _TABLE.values()}
USER = {"role": "user", "content": "q"}
SAID = {"role": "assistant", "content": "a"}
THOUGHT = {"type": "reasoning", "id": "r", "summary": []}


def use(*names: str) -> dict[str, Any]:
    calls = [{"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}} for name in names]
    return {"role": "assistant", "tool_calls": calls}


def result(name: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "content": "r"}


def call(name: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": name, "name": "f", "arguments": "{}"}


def output(name: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": name, "output": "r"}


def cut(route: str, items: list[Any], measure: Measure, summary: Summary | None = None, **fields: Any) -> Cut | None:
    member = "input" if route == RESPONSES else "messages"
    made = parse_call(ROUTES[route], orjson.dumps({"model": "m", member: items, **fields}))
    turns = read_turns(made, route)
    return None if turns is None else plan_cut(made, turns, measure, summary)


def places(route: str, items: list[Any]) -> list[int]:
    """Everywhere that the conversation may be cut."""
    found = [cut(route, items, Measure(keep, 0, 1)) for keep in range(1, len(items))]
    return sorted({each.at for each in found if each is not None})


@pytest.mark.parametrize(
    ("route", "items", "allowed"),
    [
        pytest.param(CHAT, [USER, SAID, USER, SAID, USER], [2, 3, 4], id="plain turns, but not for nothing"),
        pytest.param(CHAT, [USER, use("a"), result("a"), SAID, USER], [3, 4], id="a call and its result"),
        pytest.param(
            CHAT, [USER, SAID, use("a", "b"), result("a"), result("b"), SAID, USER], [2, 5, 6], id="calls at once"
        ),
        pytest.param(
            CHAT,
            [USER, SAID, use("a"), result("a"), use("a"), result("a"), USER],
            [2, 4, 6],
            id="the same id again",
        ),
        pytest.param(
            MESSAGES,
            [
                USER,
                SAID,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "r"}]},
                SAID,
                USER,
            ],
            [2, 4, 5],
            id="a result in a user's turn",
        ),
        pytest.param(
            RESPONSES,
            [USER, SAID, call("a"), call("b"), output("a"), output("b"), SAID, USER],
            [2, 6, 7],
            id="items of calls at once",
        ),
        pytest.param(
            RESPONSES,
            [USER, SAID, call("a"), {**USER}, output("a"), USER],
            [2, 5],
            id="somebody speaks before the result",
        ),
        pytest.param(
            RESPONSES,
            [USER, THOUGHT, THOUGHT, call("a"), output("a"), SAID, THOUGHT, SAID, USER],
            [6, 8],
            id="a thought and all that may have come of it",
        ),
    ],
)
def test_a_cut_lies_where_nothing_is_torn_apart(route: str, items: list[Any], allowed: list[int]) -> None:
    """And nowhere else."""
    assert places(route, items) == allowed


@pytest.mark.parametrize(
    ("items", "fields"),
    [
        ([USER, SAID] * 5, {"previous_response_id": "resp_1"}),
        ([USER, SAID] * 5, {"conversation": "conv_1"}),
        ([USER, {"type": "item_reference", "id": "x"}] * 5, {}),
        ([USER, SAID, "?"] * 5, {}),
        ("only a question", {}),
    ],
)
def test_what_lies_elsewhere_or_cannot_be_read_is_left_alone(items: Any, fields: dict[str, Any]) -> None:
    """What hangs together there is not known here."""
    assert cut(RESPONSES, items, Measure(1, 0, 1), **fields) is None
    assert cut(RESPONSES, [USER, SAID] * 5, Measure(1, 0, 1)) is not None


def test_the_users_task_stays_with_the_work_on_it() -> None:
    """However many calls it has taken; what was done is summed up behind it."""
    items = [USER, {"role": "user", "content": "the task"}]
    for name in "abcdefgh":
        items += [use(name), result(name)]
    found = cut(CHAT, [{"role": "system", "content": "s"}, *items], Measure(4, 0, 2))
    assert found is not None
    assert (found.at, found.anchor, found.messages) == (14, 1, 13)
    assert write_cut(found, CHAT, "so far")[1:3] == [
        {"role": "user", "content": "Summary of the conversation so far:\nso far"},
        {"role": "user", "content": "the task"},
    ]
    assert write_cut(found, CHAT) == [{"role": "system", "content": "s"}, items[1], *items[14:]]


def test_a_summary_that_would_be_longer_than_what_it_stands_for_is_not_made() -> None:
    """Where only messages are counted; a cap is kept in any case."""
    items = [USER, SAID] * 10 + [USER]
    summary = Summary("m", max_tokens=400)
    assert cut(CHAT, items, Measure(4, 0, 2)) is not None
    assert cut(CHAT, items, Measure(4, 0, 2), summary) is None
    long = [{"role": each["role"], "content": "x" * 200} for each in items]
    assert cut(CHAT, long, Measure(4, 0, 2), summary) is not None


def test_a_cap_is_kept_with_whole_blocks_then_with_parts_of_them_then_as_well_as_can_be() -> None:
    """Each message has about a hundred tokens, the last one more in the end than all may have."""
    items = [{"role": "assistant" if at % 2 else "user", "content": "x" * 368} for at in range(17)]
    places = {most: cut(CHAT, items, Measure(0, most, 8)) for most in (2_000, 1_100, 650, 450, 350, 100)}
    assert {most: found and found.at for most, found in places.items()} == {
        2_000: None,
        1_100: 8,
        650: 12,
        450: 14,
        350: 14,
        100: 16,
    }
    assert all(found is None or found.at % 2 == 0 for found in places.values())


def test_pictures_weigh_what_limits_say_that_they_weigh() -> None:
    """Their bytes do not count; they do, though they are short where they are given by reference."""
    data = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 40_000}}
    link = {"type": "image_url", "image_url": {"url": "https://example.org/i.png"}}
    for picture in (data, link):
        items = [{"role": "user", "content": [picture]}, SAID] * 4 + [USER]
        assert cut(CHAT, items, Measure(0, 20_000, 2)) is None
        found = cut(CHAT, items, Measure(0, 5_000, 2))
        assert found is not None
        assert found.at in (4, 6)


def test_the_digest_of_a_beginning_depends_on_all_of_it_and_on_nothing_else() -> None:
    """So a summary is found again however the conversation goes on."""
    items = [{"role": "user", "content": str(number)} for number in range(12)]
    first = cut(CHAT, items[:9], Measure(2, 0, 3))
    later = cut(CHAT, items, Measure(2, 0, 3))
    other = cut(CHAT, [{"role": "user", "content": "other"}, *items[1:]], Measure(2, 0, 3))
    assert first is not None
    assert later is not None
    assert other is not None
    assert digest_prefixes(later, b"s")[: first.at + 1] == digest_prefixes(first, b"s")
    assert not set(digest_prefixes(other, b"s")[1:]) & set(digest_prefixes(later, b"s"))
    assert not set(digest_prefixes(first, b"t")) & set(digest_prefixes(first, b"s"))


def test_a_block_is_divided_into_pieces_that_fit_or_hold_one_message() -> None:
    """Each message is in one piece."""
    assert list(split_block([3, 3, 3, 9, 1, 1], 6)) == [2, 3, 4, 6]
    assert list(split_block([], 6)) == []
