"""The dialects by name. A dictionary and nothing else: what is not here does not exist.

It is a module of its own because the dialects import ``base``.
"""

from __future__ import annotations

from typing import Final

from proxy.providers.anthropic import Anthropic
from proxy.providers.base import Provider
from proxy.providers.gemini import Gemini
from proxy.providers.mistral import Mistral
from proxy.providers.openai import Azure, Compatible, OpenAI
from proxy.providers.responses import Responses

KINDS: Final[dict[str, type[Provider]]] = {
    "openai": OpenAI,
    "anthropic": Anthropic,
    "mistral": Mistral,
    "azure": Azure,
    "compatible": Compatible,
    "gemini": Gemini,
    "responses": Responses,
}


def make_providers() -> dict[str, Provider]:
    """One object for each kind; they hold no state."""
    return {name: kind() for name, kind in KINDS.items()}
