"""Virtual models, which stand for others by the complexity of what is asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tiered:
    """One virtual model."""

    name: str
