"""The dialects by name: a dictionary and nothing else. What is not here does not exist.

A dialect's module is imported when it is first asked for: most processes speak one or two of them, and all of them
together are a quarter of this proxy's code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Final

from proxy.providers.base import Provider

KINDS: Final[Mapping[str, tuple[str, str]]] = {
    "openai": ("openai", "OpenAI"),
    "anthropic": ("anthropic", "Anthropic"),
    "mistral": ("mistral", "Mistral"),
    "azure": ("openai", "Azure"),
    "compatible": ("openai", "Compatible"),
    "gemini": ("gemini", "Gemini"),
    "responses": ("responses", "Responses"),
}
"""Module of this room and class."""


class Providers(Mapping[str, Provider]):
    """One object for each kind, made when it is first asked for; they hold no state."""

    # Mutable state: _made, written by `__getitem__` only.
    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: dict[str, Provider] = {}

    def __getitem__(self, kind: str) -> Provider:
        made = self._made.get(kind)
        if made is None:
            module, name = KINDS[kind]
            made = self._made[kind] = getattr(import_module(f"proxy.providers.{module}"), name)()
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(KINDS)

    def __len__(self) -> int:
        return len(KINDS)


def make_providers() -> Providers:
    """All of them."""
    return Providers()
