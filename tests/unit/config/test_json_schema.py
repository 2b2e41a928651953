"""JSON Schemas of answers: what they accept, and which schemas are refused."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.config.json_schema import JsonSchema, SchemaError

TREE = {"$ref": "#/$defs/node", "$defs": {"node": {
    "type": "object", "required": ["v"], "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
}}}  # fmt: skip

Case = tuple[Any, list[Any], list[Any]]
CASES: dict[str, Case] = {
    "type": ({"type": "integer"}, [1, 1.0, -3], [1.5, "1", True, None]),
    "types": ({"type": ["string", "null"]}, ["a", None], [1, [], False]),
    "number": ({"type": "number"}, [1, 1.5], ["1", True]),
    "required": ({"required": ["a"]}, [{"a": None}, "text"], [{}, {"b": 1}]),
    "properties": ({"properties": {"a": {"type": "string"}}}, [{}, {"a": "x", "b": 1}], [{"a": 1}]),
    "closed": ({"properties": {"a": {}}, "additionalProperties": False}, [{"a": 1}, {}], [{"b": 1}]),
    "others": ({"additionalProperties": {"type": "integer"}}, [{"a": 1}], [{"a": "x"}]),
    "enum": ({"enum": [1, "a", {"b": [1.0]}]}, [1.0, "a", {"b": [1]}], [True, "b", {"b": [2]}]),
    "const": ({"const": {"a": 1, "b": 2}}, [{"b": 2, "a": 1}], [{"a": 1}]),
    "items": ({"items": {"type": "integer"}}, [[], [1, 2], "x"], [[1, "2"]]),
    "prefix": ({"prefixItems": [{"type": "string"}], "items": False}, [["a"], []], [[1], ["a", "b"]]),
    "counts": ({"minItems": 1, "maxItems": 2, "uniqueItems": True}, [[1], [1, True], {}], [[], [1, 2, 3], [1, 1.0]]),
    "names": ({"minProperties": 1, "maxProperties": 1}, [{"a": 1}], [{}, {"a": 1, "b": 2}]),
    "range": ({"minimum": 1, "exclusiveMaximum": 2}, [1, 1.9, "x", True], [0, 2]),
    "outside": ({"exclusiveMinimum": 1, "maximum": 2}, [2, 1.1], [1, 3]),
    "multiple": ({"multipleOf": 0.1}, [0.3, 1], [0.35]),
    "length": ({"minLength": 2, "maxLength": 3}, ["äö", "abc", 1], ["a", "abcd"]),
    "pattern": ({"pattern": "^a+$"}, ["aa", 1], ["ab", ""]),
    "any": ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, ["a", 5], [4]),
    "all": ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, [1], [3]),
    "one": ({"oneOf": [{"minimum": 1}, {"maximum": 2}]}, [0, 3], [1]),
    "not": ({"not": {"type": "string"}}, [1], ["a"]),
    "reference": (TREE, [{"v": 1}, {"v": 1, "next": {"v": 2}}], [{}, {"v": 1, "next": {"v": "x"}}]),
    "never": (False, [], [1, None]),
    "described": ({"title": "t", "description": "d", "format": "date", "default": 1, "$comment": "c"}, [1, "x"], []),
}


@pytest.mark.parametrize("name", CASES)
def test_each_rule_accepts_and_refuses_what_the_draft_says(name: str) -> None:
    """Values of other types than the rule's are none of its business."""
    schema, right, wrong = CASES[name]
    made = JsonSchema(schema)
    for value in right:
        assert made.accepts(orjson.dumps(value)), value
    for value in wrong:
        assert not made.accepts(orjson.dumps(value)), value


def test_a_text_that_is_no_json_keeps_no_schema() -> None:
    """Not even the one that anything keeps."""
    assert JsonSchema(True).accepts(b"1")
    assert not JsonSchema(True).accepts(b"Sure! Here is your JSON: {}")
    assert not JsonSchema(True).accepts(b"")


def test_a_value_that_takes_too_long_to_judge_is_not_accepted() -> None:
    """References to oneself end, and so do alternatives that multiply."""
    assert not JsonSchema({"$ref": "#"}).accepts(b"1")
    doubled: Any = {"$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 3} for n in range(20)}}
    doubled["$defs"]["d20"] = {"type": "string"}
    doubled["$ref"] = "#/$defs/d0"
    made = JsonSchema(doubled)
    assert made.accepts(b'"x"')
    assert not made.accepts(b"1")


@pytest.mark.parametrize(
    ("schema", "place", "why"),
    [
        ({"typ": "string"}, ("typ",), "not known"),
        ({"type": "text"}, ("type",), "expected one or several"),
        ({"type": []}, ("type",), "expected one or several"),
        ({"type": [1]}, ("type",), "expected one or several"),
        ({"properties": {"a": {"if": {}}}}, ("properties", "a", "if"), "not known"),
        ({"properties": []}, ("properties",), "expected a mapping"),
        ({"items": [{}]}, ("items",), "expected a schema"),
        ({"anyOf": []}, ("anyOf",), "expected a list of schemas"),
        ({"enum": []}, ("enum",), "expected a list"),
        ({"required": "a"}, ("required",), "expected a list of names"),
        ({"minItems": 1.5}, ("minItems",), "expected an integer"),
        ({"minimum": "1"}, ("minimum",), "expected a number"),
        ({"multipleOf": 0}, ("multipleOf",), "above 0"),
        ({"uniqueItems": 1}, ("uniqueItems",), "true or false"),
        ({"pattern": "(?!a)"}, ("pattern",), "no regular expression"),
        ({"$ref": "https://example.org/x"}, ("$ref",), "a reference into this schema"),
        ({"$ref": "#/$defs/x"}, ("$ref",), "there is no"),
        ({"$defs": []}, ("$defs",), "expected a mapping"),
        ("x", (), "expected a schema"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_with_its_place(schema: Any, place: Any, why: str) -> None:
    """A rule that is not kept is worse than none."""
    with pytest.raises(SchemaError, match=why) as caught:
        JsonSchema(schema)
    assert caught.value.place == place
