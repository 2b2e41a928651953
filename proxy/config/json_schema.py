"""JSON Schema, the part of it that structured answers are described with, made once into a test.

Known: ``type``, ``properties``, ``required``, ``additionalProperties``, ``enum``, ``const``, ``items``,
``prefixItems``, ``minItems``, ``maxItems``, ``uniqueItems``, ``minProperties``, ``maxProperties``, ``minimum``,
``maximum``, ``exclusiveMinimum``, ``exclusiveMaximum``, ``multipleOf``, ``minLength``, ``maxLength``, ``pattern``
(linear), ``anyOf``, ``allOf``, ``oneOf``, ``not``, ``$ref`` to ``#`` or into ``#/$defs``. Words that only describe
are passed over; any other is refused, because a rule that is not kept is worse than none. The meaning is that of
draft 2020-12: a rule for another type than the value's is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson

from proxy.linear import Expression, PatternError

MAX_SCHEMA_BYTES: Final = 256 << 10
MAX_DEPTH: Final = 64
"""Of schemas in schemas, and of the value with references followed."""
LEAST_STEPS: Final = 10_000
STEPS_PER_BYTE: Final = 10
"""Rules looked at for a text: these for each of its bytes, and some more. References and alternatives multiply."""

_DESCRIBING: Final = frozenset((
    *("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"),
    *("format", "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType"),
))  # fmt: skip
_TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")

Place = tuple[str | int, ...]


class SchemaError(ValueError):
    """A schema that cannot be kept: ``place`` in it, and why."""

    def __init__(self, place: Place, why: str) -> None:
        super().__init__(why)
        self.place = place
        self.why = why


class ExhaustedError(Exception):
    """The value asks for more work than it is allowed."""


class _Run:
    """One judgement; ``steps`` are left, ``depth`` grows inwards."""

    __slots__ = ("depth", "steps")

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.depth = 0


_Rule = Callable[[Any, _Run], bool]


class JsonSchema:
    """A schema that was understood. Immutable."""

    __slots__ = ("_nodes", "_root")

    def __init__(self, schema: Any) -> None:
        """Raises ``SchemaError``."""
        self._nodes: dict[str, list[_Rule]] = {}
        """Rules of schemas that references point to, by pointer."""
        if len(orjson.dumps(schema)) > MAX_SCHEMA_BYTES:
            raise SchemaError((), f"longer than {MAX_SCHEMA_BYTES} bytes")
        maker = _Maker(schema, self._nodes)
        self._root = maker.make(schema, ())
        self._nodes["#"] = self._root
        maker.make_references()

    def accepts(self, text: bytes) -> bool:
        """Whether the text is JSON and keeps the schema. What takes too long to judge does not."""
        try:
            value = orjson.loads(bytes(text))
            return _holds(self._root, value, _Run(LEAST_STEPS + STEPS_PER_BYTE * len(text)))
        except (orjson.JSONDecodeError, ExhaustedError):
            return False


def _holds(rules: list[_Rule], value: Any, run: _Run) -> bool:
    run.depth += 1
    if run.depth > MAX_DEPTH:
        raise ExhaustedError
    for rule in rules:
        run.steps -= 1
        if run.steps < 0:
            raise ExhaustedError
        if not rule(value, run):
            run.depth -= 1
            return False
    run.depth -= 1
    return True


class _Maker:
    """Makes rules; grows ``_wanted``, the references that were met."""

    __slots__ = ("_nodes", "_root", "_wanted")

    def __init__(self, root: Any, nodes: dict[str, list[_Rule]]) -> None:
        self._root = root
        self._nodes = nodes
        self._wanted: dict[str, Place] = {}

    def make(self, schema: Any, place: Place) -> list[_Rule]:
        if schema is True:
            return []
        if schema is False:
            return [lambda value, run: False]
        if type(schema) is not dict:
            raise SchemaError(place, "expected a schema: a mapping, true or false")
        if len(place) > MAX_DEPTH:
            raise SchemaError(place, f"nested deeper than {MAX_DEPTH} levels")
        rules: list[_Rule] = []
        for word, said in schema.items():
            if word in _SIMPLE:
                rules.append(_SIMPLE[word](said, (*place, word)))
            elif word not in _DESCRIBING and word not in _NESTED:
                raise SchemaError((*place, word), "a rule that is not known here")
        if type(schema.get("$defs", {})) is not dict:
            raise SchemaError((*place, "$defs"), "expected a mapping")
        return [*rules, *self._make_nested(schema, place)]

    def _make_nested(self, schema: dict[str, Any], place: Place) -> list[_Rule]:
        rules: list[_Rule] = []
        if "$ref" in schema:
            rules.append(self._refer(schema["$ref"], (*place, "$ref")))
        rules += [
            _combine(word, self._make_list(schema[word], (*place, word)))
            for word in ("anyOf", "allOf", "oneOf")
            if word in schema
        ]
        if "not" in schema:
            inner = self.make(schema["not"], (*place, "not"))
            rules.append(lambda value, run: not _holds(inner, value, run))
        if "properties" in schema or "additionalProperties" in schema:
            rules.append(self._make_properties(schema, place))
        if "items" in schema or "prefixItems" in schema:
            first = self._make_list(schema.get("prefixItems", []), (*place, "prefixItems"), empty=True)
            rest = self.make(schema.get("items", True), (*place, "items"))
            rules.append(_rule_for_items(first, rest))
        return rules

    def _make_list(self, said: Any, place: Place, *, empty: bool = False) -> list[list[_Rule]]:
        if type(said) is not list or not (said or empty):
            raise SchemaError(place, "expected a list of schemas")
        return [self.make(each, (*place, index)) for index, each in enumerate(said)]

    def _make_properties(self, schema: dict[str, Any], place: Place) -> _Rule:
        said = schema.get("properties", {})
        if type(said) is not dict:
            raise SchemaError((*place, "properties"), "expected a mapping")
        known = {name: self.make(each, (*place, "properties", name)) for name, each in said.items()}
        others = self.make(schema.get("additionalProperties", True), (*place, "additionalProperties"))

        def judge(value: Any, run: _Run) -> bool:
            if type(value) is not dict:
                return True
            return all(_holds(known.get(name, others), each, run) for name, each in value.items())

        return judge

    def _refer(self, said: Any, place: Place) -> _Rule:
        if type(said) is not str or not (said == "#" or said.startswith("#/")):
            raise SchemaError(place, "expected a reference into this schema, such as '#/$defs/name'")
        self._wanted.setdefault(said, place)
        nodes = self._nodes
        return lambda value, run: _holds(nodes[said], value, run)

    def make_references(self) -> None:
        while missing := [said for said in self._wanted if said not in self._nodes]:
            for said in missing:
                place = self._wanted[said]
                self._nodes[said] = self.make(self._find(said, place), place)

    def _find(self, said: str, place: Place) -> Any:
        node = self._root
        for step in said[2:].split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            if type(node) is dict and name in node:
                node = node[name]
            elif type(node) is list and name.isdigit() and int(name) < len(node):
                node = node[int(name)]
            else:
                raise SchemaError(place, f"there is no {said[:100]!r} in the schema")
        return node


def _combine(word: str, inner: list[list[_Rule]]) -> _Rule:
    if word == "anyOf":
        return lambda value, run: any(_holds(rules, value, run) for rules in inner)
    if word == "allOf":
        return lambda value, run: all(_holds(rules, value, run) for rules in inner)
    return lambda value, run: sum(_holds(rules, value, run) for rules in inner) == 1


def _rule_for_items(first: list[list[_Rule]], rest: list[_Rule]) -> _Rule:
    def judge(value: Any, run: _Run) -> bool:
        if type(value) is not list:
            return True
        return all(
            _holds(first[index] if index < len(first) else rest, each, run) for index, each in enumerate(value)
        )

    return judge


# -- rules without schemas in them ----------------------------------------------------------------------------------


def _type(said: Any, place: Place) -> _Rule:
    names = said if type(said) is list else [said]
    if not names or any(name not in _TYPES for name in names if type(name) is str) or not _are_texts(names):
        raise SchemaError(place, f"expected one or several of {', '.join(_TYPES)}")
    wanted = frozenset(names)
    return lambda value, run: not wanted.isdisjoint(_types_of(value))


def _types_of(value: Any) -> tuple[str, ...]:
    kind = type(value)
    if kind is float:
        return ("number", "integer") if value.is_integer() else ("number",)
    return _TYPES_OF[kind]


_TYPES_OF: Final[Mapping[type, tuple[str, ...]]] = {
    dict: ("object",),
    list: ("array",),
    str: ("string",),
    bool: ("boolean",),
    int: ("number", "integer"),
    type(None): ("null",),
}


def _are_texts(said: Any) -> bool:
    return type(said) is list and all(type(each) is str for each in said)


def _same(value: Any) -> bytes:
    """What two equal values have in common; ``1`` and ``1.0`` are equal and ``true`` is not."""
    return orjson.dumps(_settle(value), option=orjson.OPT_SORT_KEYS)


def _settle(value: Any) -> Any:
    kind = type(value)
    if kind is float:
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if kind is list:
        return [_settle(each) for each in value]
    return {name: _settle(each) for name, each in value.items()} if kind is dict else value


def _enum(said: Any, place: Place) -> _Rule:
    if type(said) is not list or not said:
        raise SchemaError(place, "expected a list of values")
    known = frozenset(map(_same, said))
    return lambda value, run: _same(value) in known


def _const(said: Any, place: Place) -> _Rule:
    known = _same(said)
    return lambda value, run: _same(value) == known


def _required(said: Any, place: Place) -> _Rule:
    if not _are_texts(said):
        raise SchemaError(place, "expected a list of names")
    names = frozenset(said)
    return lambda value, run: type(value) is not dict or names <= value.keys()


def _pattern(said: Any, place: Place) -> _Rule:
    if type(said) is not str:
        raise SchemaError(place, "expected a regular expression")
    try:
        expression = Expression(said)
    except PatternError as error:
        raise SchemaError(place, f"no regular expression of RE2's: {error}") from None
    return lambda value, run: type(value) is not str or expression.search(value.encode()) is not None


def _unique(said: Any, place: Place) -> _Rule:
    if type(said) is not bool:
        raise SchemaError(place, "expected true or false")
    return lambda value, run: not said or type(value) is not list or len(set(map(_same, value))) == len(value)


def _bound(types: Sequence[type], of: Callable[[Any], Any], keeps: Callable[[Any, Any], bool]) -> Any:
    """A rule about a number, or about the number of something."""
    counts = of is len

    def make(said: Any, place: Place) -> _Rule:
        if type(said) is not int and (counts or type(said) is not float):
            raise SchemaError(place, "expected an integer" if counts else "expected a number")
        if keeps is _is_multiple and said <= 0:
            raise SchemaError(place, "expected a number above 0")
        return lambda value, run: type(value) not in types or keeps(of(value), said)

    return make


def _is_multiple(value: Any, of: Any) -> bool:
    ratio = value / of
    return bool(abs(ratio - round(ratio)) < 1e-9)


def _itself(value: Any) -> Any:
    return value


_NUMBERS: Final = (int, float)


def _least(value: Any, said: Any) -> bool:
    return bool(value >= said)


def _greatest(value: Any, said: Any) -> bool:
    return bool(value <= said)


_SIMPLE: Final[Mapping[str, Callable[[Any, Place], _Rule]]] = {
    "type": _type,
    "enum": _enum,
    "const": _const,
    "required": _required,
    "pattern": _pattern,
    "uniqueItems": _unique,
    "minLength": _bound((str,), len, _least),
    "maxLength": _bound((str,), len, _greatest),
    "minItems": _bound((list,), len, _least),
    "maxItems": _bound((list,), len, _greatest),
    "minProperties": _bound((dict,), len, _least),
    "maxProperties": _bound((dict,), len, _greatest),
    "minimum": _bound(_NUMBERS, _itself, _least),
    "maximum": _bound(_NUMBERS, _itself, _greatest),
    "exclusiveMinimum": _bound(_NUMBERS, _itself, lambda value, said: value > said),
    "exclusiveMaximum": _bound(_NUMBERS, _itself, lambda value, said: value < said),
    "multipleOf": _bound(_NUMBERS, _itself, _is_multiple),
}
_NESTED: Final = frozenset(
    ("$ref", "anyOf", "allOf", "oneOf", "not", "properties", "additionalProperties", "items", "prefixItems")
)
