"""A document → an instance of a msgspec struct, reporting everything that is wrong rather than the first thing.

msgspec checks the leaves; the walk over structs and mappings is done here, because msgspec stops at the first error
and does not know lines.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from proxy.config.document import Document, Path, Plain, spell
from proxy.config.values import did_you_mean

S = TypeVar("S", bound=msgspec.Struct)

_FAILED: Final = object()
_TYPE_NAMES: Final = {
    "`float`": "a number",
    "`int`": "an integer",
    "`str`": "text",
    "`bool`": "true or false",
    "`null`": "nothing",
    "`array`": "a list",
    "`object`": "a mapping",
}


def convert(document: Document, kind: type[S]) -> S:
    """Build ``kind`` from the document's data. Raises ``CatalogError`` with every problem of the document."""
    made = _Conversion(document).convert_struct(document.data, kind, ())
    document.check()
    assert isinstance(made, kind)
    return made


class _Conversion:
    __slots__ = ("document", "reported")

    def __init__(self, document: Document) -> None:
        self.document = document
        # Paths that are known to be wrong already; a missing variable must not be a missing number as well.
        self.reported = {problem.path for problem in document.problems}

    def convert(self, value: object, hint: Any, path: Path) -> object:
        struct, mapping = _shape_of(hint)
        if struct is not None:
            return self.convert_struct(value, struct, path)
        if mapping is not None:
            return self._convert_mapping(value, mapping, path)
        return self._convert_leaf(value, hint, path)

    def convert_struct(self, value: object, kind: type[msgspec.Struct], path: Path) -> object:
        entries = self._entries(value, path)
        if entries is None:
            return _FAILED
        hints = typing.get_type_hints(kind, include_extras=True)
        for name in entries.keys() - hints.keys():
            hint = did_you_mean(name, list(hints)).strip(" ()") or f"known here: {', '.join(hints)}"
            self.document.report((*path, name), "there is no such key", hint)
        for field in msgspec.structs.fields(kind):
            if field.required and field.name not in entries:
                self.document.report(path, f"'{field.name}' is missing")
        made = {name: self.convert(entries[name], hints[name], (*path, name)) for name in hints if name in entries}
        return _FAILED if self.document.problems else kind(**made)

    def _convert_mapping(self, value: object, hint: Any, path: Path) -> object:
        entries = self._entries(value, path)
        if entries is None:
            return _FAILED
        return {name: self.convert(each, hint, (*path, name)) for name, each in entries.items()}

    def _convert_leaf(self, value: object, hint: Any, path: Path) -> object:
        try:
            return msgspec.convert(_settle(value, hint), hint)
        except msgspec.ValidationError as error:
            if spell(path) in self.reported:
                return _FAILED
            choices = _choices_of(hint)
            words = did_you_mean(str(value), choices).strip(" ()") if isinstance(value, str) else ""
            expected = f"expected one of {', '.join(choices)}" if choices else _in_plain_words(str(error))
            self.document.report(path, expected, words)
            return _FAILED

    def _entries(self, value: object, path: Path) -> Mapping[str, object] | None:
        """The entries of a mapping, of which an empty value is one too."""
        if isinstance(value, Plain):
            value = value.resolve()
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self.document.report(path, "expected a mapping")
        return None


def _shape_of(hint: Any) -> tuple[type[msgspec.Struct] | None, Any]:
    """The struct that ``hint`` asks for, or the type of the values of the mapping it asks for."""
    for option in _options(hint):
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option, None
        if typing.get_origin(option) is dict:
            return None, typing.get_args(option)[1]
    return None, None


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
