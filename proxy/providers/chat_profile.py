"""How servers that speak chat completions differ from each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """How one kind of server differs from the others that speak chat completions."""

    options: Mapping[str, str]
    """Neutral option -> field; an option that is not here has no place."""
    limit: str = "max_completion_tokens"
    """Field of the longest answer in tokens."""
    forced: str = "required"
    """The word that makes the model call some tool."""
    max_temperature: float = 2.0
    max_stops: int = 0
    """How many stop sequences may be sent; 0 for any number."""
    asks_usage: bool = True
    """A stream tells its usage only when asked by ``stream_options``."""
    tool_id: re.Pattern[str] | None = None
    """What an id of a tool call must look like; others are replaced by nine letters and digits."""
    thoughts: str = ""
    """Where a thought of an earlier turn goes: ``chunks`` (Mistral), ``reasoning_content``, or nowhere."""
    effort: bool = True
    """``reasoning_effort`` is understood."""
    allowed_tools: bool = False
    """The list of tools can be narrowed by the choice."""
    files: bool = True
    """Documents may be sent as contents."""
    document_urls: bool = False
    audio: bool = True
    strict: bool = True
    """``strict`` of a function is understood."""
    default_temperature: float | None = None
    """The temperature that is used when none is sent, where it is the same for all models."""
    plain_models: tuple[str, ...] = ()
    """Beginnings of the names of models that do not reason and refuse to be asked for it."""
    names: bool = True
    """A message may name its speaker."""
    prefix: bool = False
    """The last message may be the beginning of the answer."""
