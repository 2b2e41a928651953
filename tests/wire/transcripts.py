"""Answers as the vendors send them, and what they say.

Each case is a stream (``.sse``) and, but for faults, the whole answer of the same content (``.json``), written after
the public descriptions of each API.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from proxy.protocol.usage import Usage

HERE = Path(__file__).parent
FULL = Usage(100, 40, 64, 8, 30)


class Case(NamedTuple):
    target: str
    name: str

    @property
    def stream(self) -> bytes:
        return (HERE / self.target / f"{self.name}.sse").read_bytes()

    @property
    def whole(self) -> bytes:
        return (HERE / self.target / f"{self.name}.json").read_bytes()

    def __str__(self) -> str:
        return f"{self.target}-{self.name}"


def all_cases() -> list[Case]:
    """Every answer that is complete."""
    return [Case(path.parent.name, path.stem) for path in sorted(HERE.glob("*/*.json"))]


# What the whole answer costs, in neutral words.
USAGE = {
    "openai": FULL,
    "anthropic": FULL._replace(reasoning_tokens=0),
    "responses": FULL,
    "gemini": FULL._replace(cache_write_tokens=0),
    "mistral": Usage(16, 34),
    "azure": Usage(9, 2),
}
USAGE_OF_CASE = {
    ("compatible", "thoughts"): Usage(11, 9),
    ("compatible", "tools"): Usage(30, 12),
    ("gemini", "refusal"): Usage(100, 0),
}


def usage_of(case: Case) -> Usage:
    return USAGE_OF_CASE.get((case.target, case.name)) or USAGE[case.target]
