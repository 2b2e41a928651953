"""Guards and checks for tests, made as the catalog's are."""

from __future__ import annotations

from typing import Any

from proxy.config.guards import Guard
from proxy.guard.base import Check
from proxy.guard.compile import compile_guard


def make_check(kind: str, action: str = "redact", mode: str = "after", name: str = "", **options: Any) -> Check:
    """The check of a guard with these options."""
    return compile_guard(Guard(name or kind, kind, mode, action, options=tuple(sorted(options.items()))))


def found_by(check: Check, text: str) -> list[tuple[str, str]]:
    """Kind and words of everything that is found."""
    encoded = text.encode()
    return [(each.kind, encoded[each.start : each.stop].decode()) for each in check.look(encoded)]
