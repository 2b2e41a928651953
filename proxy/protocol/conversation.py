"""A generation request in neutral words: what every dialect says in its own way.

A reader of the caller's dialect makes a ``Conversation``, a writer of the target's dialect reads it and never changes
it, so that one conversation serves several targets. Nothing is lost between the two:

- what is said to the model is blocks in turns; a block keeps the members its reader did not know in ``extra``;
- everything else is an ``Option`` under a neutral name, with the name of the field it came from. A writer takes the
  options it has a place for; of those that are left the ``BINDING`` ones refuse the request, the others are reported;
- ``family`` says whose unknown members these are: a writer of the same family hands them on as they are.

``at`` is where a block stood in the caller's body (``messages[2].content[0]``), for an error that names it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

Fields = dict[str, Any]


class CacheMark(NamedTuple):
    """The prompt up to and including this block is worth caching at the upstream."""

    ttl_s: int = 0
    """How long, in seconds; 0 leaves it to the upstream."""
    field: str = "cache_control"
    """The caller's word for it."""


@dataclass(slots=True, kw_only=True)
class Block:
    """A piece of a turn."""

    at: str = ""
    cache: CacheMark | None = None
    extra: Fields = field(default_factory=dict)
    """Members that have no neutral word, under the caller's names."""


@dataclass(slots=True)
class Text(Block):
    text: str


@dataclass(slots=True)
class Media(Block):
    """An image, a document or a recording: exactly one of ``data``, ``url``, ``file_id`` and ``text`` is set."""

    kind: str
    """``image``, ``document`` or ``audio``."""
    media_type: str = ""
    """``image/png``, ``application/pdf`` …; empty where the caller did not say (a URL)."""
    data: str = ""
    """The bytes in base64."""
    url: str = ""
    file_id: str = ""
    """A file that only the caller's vendor knows."""
    text: str = ""
    """A document that is plain text."""
    name: str = ""
    """File name or title."""
    context: str = ""
    """What the caller says about the document."""


@dataclass(slots=True)
class Thinking(Block):
    """What the model thought in an earlier turn. Without its proof the maker of the model does not take it back."""

    text: str
    signature: str = ""
    redacted: str = ""
    """The whole thought in its maker's encryption, instead of ``text``."""


@dataclass(slots=True)
class ToolUse(Block):
    """The model called a tool."""

    id: str
    name: str
    arguments: str
    """A JSON text, meant to be an object; empty stands for no arguments."""
    signature: str = ""
    """A proof that Gemini wants back with the call."""


@dataclass(slots=True)
class ToolResult(Block):
    """What a tool answered."""

    id: str
    blocks: list[Block]
    is_error: bool = False


@dataclass(slots=True)
class Refusal(Block):
    """The model declined, in these words."""

    text: str


@dataclass(slots=True)
class Opaque(Block):
    """A block that no other dialect knows; ``extra`` is all of it."""

    kind: str


@dataclass(slots=True)
class Turn:
    """One message. ``user`` turns hold tool results as well."""

    role: str
    """``user``, ``assistant`` or ``system``."""
    blocks: list[Block]
    at: str = ""
    extra: Fields = field(default_factory=dict)


@dataclass(slots=True)
class Tool:
    """A function the model may call."""

    name: str
    description: str
    schema: Fields | None
    """JSON Schema of the arguments; ``None``: it takes none."""
    at: str = ""
    strict: bool | None = None
    cache: CacheMark | None = None
    extra: Fields = field(default_factory=dict)
    opaque: str = ""
    """The kind of a tool that only its own vendor runs; ``extra`` is then all of it."""


class ToolChoice(NamedTuple):
    """Which tools may or must be called."""

    mode: str
    """``auto``, ``none``, ``any`` (one at least) or ``tool`` (the one that is named)."""
    name: str = ""
    allowed: tuple[str, ...] = ()
    """Only these, where the caller narrowed the list."""
    at: str = "tool_choice"


class OutputFormat(NamedTuple):
    """What the text of the answer must be."""

    kind: str
    """``json`` (any object) or ``schema``."""
    schema: Fields
    name: str = ""
    description: str = ""
    strict: bool | None = None
    at: str = "response_format"


class Option(NamedTuple):
    """A setting of the request with the name of the field that holds it."""

    value: Any
    field: str
    foreign: bool = False
    """A member without a neutral name: only a writer of the same family has a place for it."""


@dataclass(slots=True)
class Conversation:
    """A whole request. Written by its reader only."""

    family: str
    """``chat``, ``messages``, ``responses`` or ``gemini``: whose members ``extra`` and foreign options are."""
    model: str
    streams: bool
    turns: list[Turn] = field(default_factory=list)
    """In order; instructions are turns of the role ``system``."""
    tools: list[Tool] = field(default_factory=list)
    choice: ToolChoice | None = None
    parallel: bool | None = None
    """Whether several tools may be called at once; ``None``: not said."""
    parallel_at: str = "parallel_tool_calls"
    format: OutputFormat | None = None
    options: dict[str, Option] = field(default_factory=dict)
    reported: list[str] = field(default_factory=list)
    """Fields that were left out while reading."""


# Options that change what the answer is or what it leaves behind. Without them it would be another request, so a
# target that has no place for one refuses it; everything else is a preference, which is reported when it is left out.
BINDING: Final = frozenset(
    (
        "audio", "background", "cached_content", "candidate_logprobs", "container",
        "conversation", "guardrails", "inference_geo", "item_logprobs", "logit_bias", "logprobs", "max_tool_calls",
        "mcp_servers", "modalities", "moderation", "n", "previous_response_id", "prompt", "prompt_logprobs",
        "response_modalities", "speech", "stop", "top_logprobs", "web_search_options",
    )
)
