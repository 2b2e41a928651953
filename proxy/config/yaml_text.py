"""YAML text → a `Document`.

Stricter than YAML: a key may stand only once, tags are refused, one document, bounded size, depth and number of
values (so aliases cannot multiply into a bomb). Scalars stay text until somebody says what is wanted in their place
(``share: off`` means the word, a key of digits is a key). ``${NAME}`` and ``${NAME:-default}`` in a scalar stand for
environment variables, ``$$`` for a dollar sign; they are put in after parsing and cannot add structure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import yaml
from yaml.composer import Composer
from yaml.reader import ReaderError

from proxy.config.document import CatalogError, Document, Path, Plain

MAX_BYTES: Final = 4 << 20
MAX_DEPTH: Final = 32
MAX_VALUES: Final = 100_000

_REFERENCE: Final = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}$]*))?\}|\$\{")
_LINE_END: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


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
