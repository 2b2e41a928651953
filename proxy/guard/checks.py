"""Checks that judge texts by something else than places in them: their size, or the schema they are to keep."""

from __future__ import annotations

from typing import Any, Final

from proxy.config.json_schema import JsonSchema
from proxy.guard.base import SLOW_BYTES, Finding, Said, Scanner

_BYTES_PER_TOKEN: Final = 4


class Size:
    """How long all texts of a body are together. In characters, or in tokens as they are estimated for limits."""

    # Mutable state: none.
    __slots__ = ("_in_tokens", "action", "most", "name")

    max_span_bytes = 0
    threshold = 1
    whole = False
    scanners: tuple[Scanner, ...] = ()

    def __init__(self, name: str, action: str, most: int, *, in_tokens: bool) -> None:
        self.name = name
        self.action = action
        # What is weighed are bytes where tokens are meant, so that pieces of a text weigh what it weighs.
        self.most = most * _BYTES_PER_TOKEN if in_tokens else most
        self._in_tokens = in_tokens

    def look(self, text: bytes) -> list[Finding]:
        return []

    def weigh(self, text: bytes) -> int:
        if self._in_tokens or text.isascii():
            return len(text)
        return len(text) - sum(map(text.count, _CONTINUATIONS))

    def is_slow(self, text_bytes: int) -> bool:
        return text_bytes > 32 * SLOW_BYTES


_CONTINUATIONS: Final = tuple(bytes((byte,)) for byte in range(0x80, 0xC0))
"""Bytes of UTF-8 that begin no character."""


class Schema:
    """Whether what the model says keeps a JSON Schema. Nothing is known before the last byte."""

    # Mutable state: none.
    __slots__ = ("_schema", "action", "name")

    max_span_bytes = 0
    threshold = 1
    most = -1
    whole = True
    scanners: tuple[Scanner, ...] = ()

    def __init__(self, name: str, action: str, schema: Any) -> None:
        """Raises ``SchemaError``."""
        self.name = name
        self.action = action
        self._schema = JsonSchema(schema)

    def look(self, text: bytes) -> list[Finding]:
        if isinstance(text, Said) and text.kind != "text":
            return []
        return [] if self._schema.accepts(text) else [Finding(self.name, "schema", 0, len(text))]

    def weigh(self, text: bytes) -> int:
        return 0

    def is_slow(self, text_bytes: int) -> bool:
        return text_bytes > SLOW_BYTES // 2
