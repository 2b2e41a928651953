"""Where a prompt is worth caching, in the words of the vendors: Anthropic's ``cache_control``, which gateways accept
in chat completions too, and OpenAI's ``prompt_cache_breakpoint``."""

from __future__ import annotations

from typing import Final

from proxy.protocol.conversation import CacheMark, Conversation
from proxy.providers.base import Fields

_SECONDS: Final = {"5m": 300, "30m": 1800, "1h": 3600, "12h": 43_200}


def mark_of(owner: Fields, at: str, conversation: Conversation) -> CacheMark | None:
    """The mark that a block or tool bears; members of it without a neutral word are reported."""
    for name, kind in (("cache_control", "ephemeral"), ("prompt_cache_breakpoint", "explicit")):
        said = owner.get(name)
        if type(said) is not dict:
            continue
        place = f"{at}.{name}"
        for member, value in said.items():
            understood = value == kind if member in ("type", "mode") else member == "ttl" and value in _SECONDS
            if not understood:
                conversation.reported.append(f"{place}.{member}")
        return CacheMark(_SECONDS.get(str(said.get("ttl")), 0), name)
    return None


def cache_control(mark: CacheMark) -> Fields:
    """Anthropic's word; the shortest of its times that is long enough, or the longest."""
    if not mark.ttl_s:
        return {"type": "ephemeral"}
    return {"type": "ephemeral", "ttl": "5m" if mark.ttl_s <= 300 else "1h"}


def cache_breakpoint(mark: CacheMark) -> Fields:
    """OpenAI's word."""
    if not mark.ttl_s:
        return {"mode": "explicit"}
    return {"mode": "explicit", "ttl": "30m" if mark.ttl_s <= 1800 else "12h"}
