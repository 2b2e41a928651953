"""A document → an instance of a msgspec struct, reporting everything that is wrong rather than the first thing.

msgspec checks the leaves; the walk over structs and mappings is done here, because msgspec stops at the first error
and does not know lines.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from proxy.config.document import Document, Path, Plain, spell
from proxy.config.values import did_you_mean

S = TypeVar("S", bound=msgspec.Struct)

_LONGEST_WORD: Final = 200
_MOST_COMPARED: Final = 5_000
_FAILED: Final = object()
_TYPE_NAMES: Final = {
    "`float`": "a number",
    "`int`": "an integer",
    "`str`": "text",
    "`bool`": "true or false",
    "`null`": "nothing",
    "`array`": "a list",
    "`object`": "a mapping",
    "`str | object`": "text or a mapping",
}


def convert(document: Document, kind: type[S]) -> S:
    """Build ``kind`` from the document's data, without what is wrong: that is in the document's problems.

    An entry of a mapping is left out as a whole if anything in it is wrong, so that what is there can be examined
    further before ``Document.check`` raises.
    """
    made = _Conversion(document).convert_struct(document.data, kind, (), whole=False)
    return made if isinstance(made, kind) else kind()


class _Conversion:
    __slots__ = ("document", "reported")

    def __init__(self, document: Document) -> None:
        self.document = document
        # Paths that are known to be wrong already; a missing variable must not be a missing number as well.
        self.reported = {problem.path for problem in document.problems}

    def convert(self, value: object, shape: _Shape, path: Path) -> object:
        if shape.optional and isinstance(value, Plain) and value.resolve() is None:
            return None
        if shape.text and not isinstance(value, (dict, list)):
            return self._convert_leaf(value, shape.hint, path)
        if shape.struct is not None:
            wanted = "text or a mapping" if shape.text else "a mapping"
            return self.convert_struct(value, shape.struct, path, wanted=wanted)
        if shape.values is not None:
            return self._convert_mapping(value, shape.values, path)
        if shape.items is not None and isinstance(value, list):
            return self._convert_list(value, shape.items, path)
        return self._convert_leaf(value, shape.hint, path)

    def convert_struct(
        self, value: object, kind: type[msgspec.Struct], path: Path, *, whole: bool = True, wanted: str = "a mapping"
    ) -> object:
        """The struct, or ``_FAILED``; with ``whole`` unset, what is wrong is left at its default."""
        entries = self._entries(value, path, wanted)
        if entries is None:
            return _FAILED
        shapes = _shapes_of(kind)
        unknown = entries.keys() - shapes.keys()
        for name in unknown:
            hint = self._resembling(name, tuple(shapes)) or f"known here: {', '.join(shapes)}"
            self.document.report((*path, name), "there is no such key", hint)
        missing = [name for name, shape in shapes.items() if shape.required and name not in entries]
        for name in missing:
            self.document.report(path, f"'{name}' is missing")
        made = {
            name: self.convert(entries[name], shape, (*path, name))
            for name, shape in shapes.items()
            if name in entries
        }
        if whole and (unknown or missing or _FAILED in made.values()):
            return _FAILED
        return kind(**{name: each for name, each in made.items() if each is not _FAILED})

    def _convert_mapping(self, value: object, shape: _Shape, path: Path) -> object:
        entries = self._entries(value, path)
        if entries is None:
            return _FAILED
        made = {name: self.convert(each, shape, (*path, name)) for name, each in entries.items()}
        return {name: each for name, each in made.items() if each is not _FAILED}

    def _convert_list(self, value: list[object], shape: _Shape, path: Path) -> object:
        made = [self.convert(each, shape, (*path, index)) for index, each in enumerate(value)]
        return _FAILED if any(each is _FAILED for each in made) else made

    def _convert_leaf(self, value: object, hint: Any, path: Path) -> object:
        try:
            return msgspec.convert(_settle(value, hint), hint)
        except msgspec.ValidationError as error:
            if spell(path) in self.reported:
                return _FAILED
            choices = _choices_of(hint)
            words = self._resembling(str(value), tuple(choices)) if isinstance(value, str) else ""
            expected = f"expected one of {', '.join(choices)}" if choices else _in_plain_words(str(error))
            self.document.report(path, expected, words)
            return _FAILED

    def _entries(self, value: object, path: Path, wanted: str = "a mapping") -> Mapping[str, object] | None:
        """The entries of a mapping, of which an empty value is one too."""
        if isinstance(value, Plain):
            value = value.resolve()
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self.document.report(path, f"expected {wanted}")
        return None

    def _resembling(self, word: str, choices: tuple[str, ...]) -> str:
        return resembling(self.document, word, choices)


def resembling(document: Document, word: str, choices: tuple[str, ...] | list[str]) -> str:
    """A hint that names the choice which ``word`` resembles. Looking for it takes 10 to 100 µs for each choice, so a
    document with many problems gets it for the first of them."""
    if len(document.problems) * len(choices) > _MOST_COMPARED or len(word) > _LONGEST_WORD:
        return ""
    return did_you_mean(word, choices).strip(" ()")


class _Shape(NamedTuple):
    """What a type hint asks for, as far as the walk has to know."""

    hint: Any
    required: bool
    struct: type[msgspec.Struct] | None
    values: _Shape | None
    """Of the mapping that is wanted."""
    items: _Shape | None
    """Of the list that is wanted, where its members are structs."""
    text: bool
    """Text will do, though a struct may be given."""
    optional: bool
    """Nothing will do, though a struct may be given."""


@lru_cache(maxsize=256)
def _shapes_of(kind: type[msgspec.Struct]) -> dict[str, _Shape]:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = msgspec.structs.fields(kind)
    return {field.name: _shape_of(hints[field.name], required=field.required) for field in fields}


def _shape_of(hint: Any, *, required: bool = False) -> _Shape:
    options = _options(hint)
    struct = next((each for each in options if isinstance(each, type) and issubclass(each, msgspec.Struct)), None)
    values = items = None
    for option in options:
        if typing.get_origin(option) is dict:
            values = _shape_of(typing.get_args(option)[1])
        elif typing.get_origin(option) is list:
            member = _shape_of(typing.get_args(option)[0])
            items = member if member.struct else None
    optional = types.NoneType in options and (struct or values or items) is not None
    return _Shape(hint, required, struct, values, items, struct is not None and str in options, optional)


@lru_cache(maxsize=1024)
def _options(hint: Any) -> list[Any]:
    """The members of a union without annotations, or the type alone."""
    if typing.get_origin(hint) is typing.Annotated:
        return _options(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for member in typing.get_args(hint) for option in _options(member)]
    return [hint]


def _choices_of(hint: Any) -> list[str]:
    return [
        choice
        for option in _options(hint)
        if typing.get_origin(option) is typing.Literal
        for choice in typing.get_args(option)
    ]


def _settle(value: object, hint: Any) -> object:
    """Decide what plain scalars mean: text where text is wanted, else their value."""
    if isinstance(value, list):
        members = [typing.get_args(option)[0] for option in _options(hint) if typing.get_origin(option) is list]
        return [_settle(each, members[0] if members else Any) for each in value]
    if isinstance(value, dict):
        return {name: _settle(each, Any) for name, each in value.items()}
    if not isinstance(value, Plain):
        return value
    meaning = value.resolve()
    options = _options(hint)
    wants_text = str in options or any(typing.get_origin(option) is typing.Literal for option in options)
    return str(value) if wants_text and meaning is not None else meaning


def _in_plain_words(message: str) -> str:
    """msgspec's message without Python's names for types and without its own path."""
    message = re.sub(r" - at `[^`]*`$", "", message)
    message = re.sub(r" \| null`", "`", message)
    for name, words in _TYPE_NAMES.items():
        message = message.replace(name, words)
    return message[:1].lower() + message[1:]
