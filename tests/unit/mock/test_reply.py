"""What the mock's model says."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.mock.reply import Tool, choose_tool, make_instance, read_messages

_TOOLS = [Tool("first", {}), Tool("second", {})]


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({"type": "string"}, "mock"),
        ({"type": ["integer", "null"]}, 7),
        ({"enum": ["a", "b"]}, "a"),
        ({"const": 3}, 3),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, True),
        ({"type": "array", "items": {"type": "number"}, "minItems": 2}, [7.5, 7.5]),
        ({"$defs": {"x": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/x"}}}, {"a": "mock"}),
        ({"$ref": "#/$defs/absent"}, {}),
        ({"type": "null"}, None),
    ],
)
def test_instance_fits_its_schema(schema: dict[str, Any], instance: object) -> None:
    """Each form of schema that clients generate has an instance."""
    assert make_instance(schema) == instance


def test_instance_of_a_schema_that_contains_itself_ends() -> None:
    """Recursion stops at the depth limit."""
    schema = {"properties": {"next": {"$ref": "#"}}, "type": "object"}
    value = make_instance(schema)
    depth = 0
    while value:
        value, depth = value["next"], depth + 1
    assert depth == 5


@pytest.mark.parametrize(
    ("forced", "said", "name"),
    [
        (None, "hello", None),
        (None, "use a TOOL", "first"),
        ("", "use a tool", None),
        ("*", "hello", "first"),
        ("second", "hello", "second"),
        ("absent", "hello", "first"),
    ],
)
def test_tool_is_chosen_by_force_or_by_word(forced: str | None, said: str, name: str | None) -> None:
    """The request's choice comes first, then what the user says."""
    tool = choose_tool(_TOOLS, forced, said)
    assert (tool and tool.name) == name


def test_last_message_counts_only_if_a_user_wrote_it() -> None:
    """Results of tools and words of the assistant ask for nothing."""
    user = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}
    assert read_messages([user]) == ("a ", "a ")
    assert read_messages([user, {"role": "assistant", "content": "b"}]) == ("a \nb", "")
    assert read_messages([user, {"role": "tool", "content": "c"}])[1] == ""
    assert read_messages("nonsense") == ("", "")
