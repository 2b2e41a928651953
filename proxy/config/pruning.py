"""What long conversations and wordy prompts lose."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pruning:
    """Which turns fall out of a long conversation."""


@dataclass(frozen=True, slots=True)
class Slimming:
    """What prompts lose by rule."""
