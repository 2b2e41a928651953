"""YAML text → plain data that knows the line and column of everything in it.

Stricter than YAML: a key may stand only once, tags are refused, one document, bounded size, depth and number of
values (so aliases cannot multiply into a bomb). Scalars stay text until somebody says what is wanted in their place
(``share: off`` means the word, a key of digits is a key). ``${NAME}`` and ``${NAME:-default}`` in a scalar stand for
environment variables, ``$$`` for a dollar sign; they are put in after parsing and cannot add structure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import yaml
from yaml.composer import Composer
from yaml.reader import ReaderError

MAX_BYTES: Final = 4 << 20
MAX_DEPTH: Final = 32
MAX_VALUES: Final = 100_000
MAX_PROBLEMS: Final = 100

_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: Final = {"": None, "~": None, "null": None, "true": True, "false": False}
_REFERENCE: Final = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}$]*))?\}|\$\{")
_LINE_END: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")

Path = tuple[str | int, ...]

Stamp = tuple[str, str, int, int, int]
"""What tells one version of a file from another: path, target of Kubernetes' ``..data``, inode, time, size."""


class Plain(str):
    """A scalar without quotes: what it means depends on what is wanted in its place."""

    __slots__ = ()

    def resolve(self) -> object:
        """Its value by YAML 1.2's core schema: nothing, a boolean, a number, or text."""
        word = self.lower()
        if word in _WORDS and self in {word, word.upper(), word.capitalize()}:
            return _WORDS[word]
        if _INTEGER.fullmatch(self):
            return int(self)
        if _NUMBER.fullmatch(self) and math.isfinite(float(self)):
            return float(self)
        return str(self)


class Problem(NamedTuple):
    """One thing that is wrong with a file. ``str`` is ``file:line:column: path: message; hint``."""

    file: str
    line: int
    """From 1, as ``column``."""
    column: int
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        path = f"{self.path}: " if self.path else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column}: {path}{self.message}{hint}"


class CatalogError(Exception):
    """A catalog that cannot be used; ``problems`` in the order of the file. ``stamps`` are those of the other files
    that were read until then, taken before they were read."""

    def __init__(self, problems: list[Problem], stamps: Mapping[str, Stamp | None] = MappingProxyType({})) -> None:
        self.problems = tuple(sorted(problems, key=lambda each: (each.line, each.column))[:MAX_PROBLEMS])
        self.stamps = stamps
        super().__init__("\n".join(map(str, self.problems)))


class Document:
    """Plain data with places; problems found later are added to those found while reading."""

    # `problems`, `warnings`, `broken` and `stamps` grow while the data is read and checked; `places` and `data` are
    # written by `read_document` only.
    __slots__ = ("broken", "data", "file", "places", "problems", "stamps", "warnings")

    def __init__(self, file: str) -> None:
        self.file = file
        self.data: object = None
        self.places: dict[Path, tuple[int, int]] = {(): (1, 1)}
        """Line and column of the key (in a mapping) or the item (in a sequence) at each path."""
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        """What can be used and was hardly meant."""
        self.broken: set[Path] = set()
        """Entries (section and name) with problems: what follows from them is not worth telling as well."""
        self.stamps: dict[str, Stamp | None] = {}
        """The files that were read on behalf of this one, by path."""

    def report(self, path: Path, message: str, hint: str = "", at: tuple[int, int] | None = None) -> None:
        self.broken.add(path[:2])
        self.problems.append(self._problem(path, message, hint, at))

    def warn(self, path: Path, message: str, hint: str = "") -> None:
        if len(self.warnings) < MAX_PROBLEMS:
            self.warnings.append(self._problem(path, message, hint, None))

    def check(self) -> None:
        """Raise ``CatalogError`` if anything was reported."""
        if self.problems:
            raise CatalogError(self.problems, dict(self.stamps))

    def _problem(self, path: Path, message: str, hint: str, at: tuple[int, int] | None) -> Problem:
        """Where the path has no place of its own, such as a key that is missing, that of what it belongs to."""
        known = path
        while known not in self.places:
            known = known[:-1]
        line, column = at or self.places[known]
        return Problem(self.file, line, column, spell(path), message, hint)


def spell(path: Path) -> str:
    """``providers.openai.base_url``, ``placeholder_keys[2]``; keys with dots are quoted."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if re.fullmatch(r"[\w-]+", step) else repr(step)
            text += f".{name}" if text else name
    return text


def read_document(text: str | bytes, file: str, env: Mapping[str, str]) -> Document:
    """Parse ``text``. Raises ``CatalogError`` where it is not YAML; other problems are in the document."""
    document = Document(file)
    if len(text) > MAX_BYTES:
        document.report((), f"the file is longer than {MAX_BYTES} bytes")
    elif isinstance(text, bytes):
        text = _decode(document, text)
    document.check()
    node = _compose(document, str(text))
    if node is not None:
        document.data = _Reading(document, env).read(node, ())
    return document


def _decode(document: Document, text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        document.report((), "the file is not UTF-8", at=(line, error.start - text.rfind(b"\n", 0, error.start)))
        return ""


class _Strict(Composer):
    """PyYAML's composer without tags and with a bound on depth; it resolves nothing, every scalar is text."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[attr-defined]
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem="tags are not allowed", problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH}", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def descend_resolver(self, current_node: Any, current_index: Any) -> None:
        pass

    def ascend_resolver(self) -> None:
        pass

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        return ""


class _PurePython(_Strict, yaml.BaseLoader):
    pass


def _make_composer(text: str) -> _Strict:
    """libyaml's parser where PyYAML came with it: ten times as fast, and a reload holds up the process."""
    if not yaml.__with_libyaml__:
        return _PurePython(text)

    class _LibYaml(_Strict, yaml.CBaseLoader):
        def __init__(self) -> None:
            yaml.CBaseLoader.__init__(self, text)
            Composer.__init__(self)

    return _LibYaml()


def _compose(document: Document, text: str) -> yaml.Node | None:
    try:
        return _make_composer(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = _place_in(text, mark.line, mark.column) if mark else None
        message = ", ".join(filter(None, (error.context, error.problem)))
        line_text = "".join(text.split("\n")[mark.line : mark.line + 1]) if mark else ""
        flow = "flow" in message and "${" in line_text
        document.report((), message, 'between braces a reference must be quoted: "${NAME}"' if flow else "", at=at)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        document.report((), "a character that YAML does not allow", at=(line, column))
    raise CatalogError(document.problems)


def _place_in(text: str, line: int, column: int) -> tuple[int, int]:
    """From 1. Where the last line has no end, libyaml sees the end of the file in a line behind it."""
    lines = _LINE_END.split(text)
    return (line + 1, column + 1) if line < len(lines) else (len(lines), len(lines[-1]) + 1)


class _Reading:
    """Turns nodes into data; ``values`` and ``characters`` count what came out so far."""

    __slots__ = ("characters", "document", "env", "values")

    def __init__(self, document: Document, env: Mapping[str, str]) -> None:
        self.document = document
        self.env = env
        self.values = 0
        self.characters = 0

    def read(self, node: yaml.Node, path: Path) -> object:
        self._spend(node, path)
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._read_item(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._read_scalar(node, path)

    def _spend(self, node: yaml.Node, path: Path) -> None:
        """An anchor that contains its own alias ends here as well: it only gets deeper, or merges on and on."""
        self.values += 1
        if self.values > MAX_VALUES or self.characters > 4 * MAX_BYTES or len(path) > MAX_DEPTH:
            self.document.report(path[:3], "aliases multiply into too many values", at=_at(node))
            self.document.check()

    def _read_item(self, node: yaml.Node, path: Path) -> object:
        self.document.places[path] = _at(node)
        return self.read(node, path)

    def _read_mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        data: dict[str, object] = {}
        merged: list[yaml.Node] = []
        first_seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.document.report(path, "a key must be a word", at=_at(key))
                continue
            name = key.value
            if name in first_seen:
                message = f"the key is already in line {first_seen[name]}"
                self.document.report((*path, name), message, at=_at(key))
                continue
            first_seen[name] = key.start_mark.line + 1
            if name == "<<":
                merged += _sources_of(value)
            else:
                self._read_entry(key, value, data, path)
        for source in merged:
            self._merge(source, data, path)
        return data

    def _read_entry(self, key: yaml.ScalarNode, value: yaml.Node, data: dict[str, object], path: Path) -> None:
        inner = (*path, key.value)
        self.document.places[inner] = _at(key)
        data[key.value] = self.read(value, inner)

    def _merge(self, source: yaml.Node, data: dict[str, object], path: Path, depth: int = 0) -> None:
        """Take over the entries of ``<<: source`` that the mapping does not have itself."""
        self._spend(source, path)
        if not isinstance(source, yaml.MappingNode) or depth > MAX_DEPTH:
            self.document.report(path, "only a mapping can be merged with '<<'", at=_at(source))
            return
        # Keys that are no scalars were reported where the source itself was read. Own keys come before merged ones.
        entries = [(key, value) for key, value in source.value if isinstance(key, yaml.ScalarNode)]
        for key, value in entries:
            if key.value != "<<" and key.value not in data:
                self._read_entry(key, value, data, path)
        for key, value in entries:
            if key.value == "<<":
                for each in _sources_of(value):
                    self._merge(each, data, path, depth + 1)

    def _read_scalar(self, node: yaml.ScalarNode, path: Path) -> object:
        text = self._put_in_environment(node, path)
        self.characters += len(text)
        return text if node.style else Plain(text)  # libyaml says '' for a plain scalar, PyYAML None

    def _put_in_environment(self, node: yaml.ScalarNode, path: Path) -> str:
        text: str = node.value
        if "$" not in text:
            return text

        def replace(match: re.Match[str]) -> str:
            name, default = match[1], match[2]
            if match[0] == "$$":
                return "$"
            if name is None:
                self.document.report(path, "an unfinished reference", "write ${NAME} or ${NAME:-default}", _at(node))
                return ""
            value = self.env.get(name, "")
            if value or default is not None:
                return value or default
            hint = f"set it, or write ${{{name}:-}} to do without"
            self.document.report(path, f"the environment variable {name} is not set", hint, _at(node))
            return ""

        return _REFERENCE.sub(replace, text)


def _sources_of(node: yaml.Node) -> list[yaml.Node]:
    """What ``<<: node`` merges: one mapping or a list of them."""
    return node.value if isinstance(node, yaml.SequenceNode) else [node]


def _at(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
