"""Known small messages and what is said to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Patterns:
    """All rules."""

    rules: tuple[Any, ...] = ()
