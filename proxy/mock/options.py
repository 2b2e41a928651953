"""What the mock upstream does to a call: how fast, how much, and which fault.

Options are set for the process and may be overridden by one request, in the model's name or in headers; see
``override``. The model's name works behind a proxy too, because it is part of the body.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import lru_cache
from urllib.parse import parse_qsl


class Fault(StrEnum):
    """What goes wrong with a call. Numbers are statuses, the rest are endings."""

    NONE = ""
    TOO_MANY = "429"
    BROKEN = "500"
    UNAVAILABLE = "503"
    OVERLOADED = "529"
    RESET = "reset"
    """RST in place of the head."""
    HANG = "hang"
    """Nothing in place of the head, for as long as the client waits."""
    GARBAGE = "garbage"
    """Bytes that are no HTTP, then FIN."""
    RESET_MID = "reset_mid"
    """RST after ``fault_after`` pieces of the body."""
    STALL = "stall"
    """Silence after ``fault_after`` pieces of the body."""
    TRUNCATE = "truncate"
    """FIN after ``fault_after`` pieces of the body."""
    ERROR_EVENT = "error_event"
    """The dialect's error event after ``fault_after`` events and a clean end; a whole answer becomes a 500."""
    NO_TERMINAL = "no_terminal"
    """A clean end without ``[DONE]``, ``message_stop`` or ``response.completed``; whole answers are as usual."""


STATUS_FAULTS = frozenset((Fault.TOO_MANY, Fault.BROKEN, Fault.UNAVAILABLE, Fault.OVERLOADED))
EARLY_FAULTS = frozenset((Fault.RESET, Fault.HANG, Fault.GARBAGE))
MID_FAULTS = frozenset((Fault.RESET_MID, Fault.STALL, Fault.TRUNCATE, Fault.ERROR_EVENT))


@dataclass(frozen=True, slots=True)
class MockOptions:
    """Every choice, with defaults that suit tests: at once, twenty tokens, no fault."""

    latency_ms: float = 0.0
    """From the request's last byte to the answer's first."""
    pace_ms: float = 0.0
    """Between two pieces of a streamed answer; 0 writes the whole stream at once."""
    tokens: int = 20
    """Tokens of an answer, unless the request's own limit is lower."""
    chunk_bytes: int = 0
    """Cut bodies into pieces of so many bytes, across events and characters; 0 leaves an event a piece."""
    fault: Fault = Fault.NONE
    fault_after: int = -1
    """Pieces of the body before a fault in its middle; -1 means half of them."""
    fault_rate: float = 1.0
    """Share of the calls that get the fault, drawn from ``seed``."""
    fail_first: int = 0
    """Only the first so many calls of one body get the fault; 0 means all of them."""
    retry_after_s: float = 1.0
    """``Retry-After`` of a 429; 0 leaves it out."""
    usage: bool = True
    """Whether answers report usage."""
    gzip: bool = False
    """Whether answers are compressed for clients that accept gzip."""
    vary: bool = False
    """Whether the answer's text names the call's serial number, so that two calls of one body differ."""
    repeatable: bool = False
    """Whether ids and creation times in a body depend on the request's body alone, so that two calls of one body get
    the same bytes (unless they ``vary``). Heads still tell calls apart, and so do the ids of uploaded files."""
    canned: bool = False
    """For load: the first answer of a target, whole or streamed, serves all its later POSTs. Bodies are then neither
    parsed nor counted by key, so that a call costs the mock a third."""
    allow_overrides: bool = True
    require_key: bool = True
    """Whether a call without a credential is answered 401."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, not {value}")


_BOUNDS = (
    ("latency_ms", 0, 3_600_000),
    ("pace_ms", 0, 3_600_000),
    ("tokens", 0, 1_000_000),
    ("chunk_bytes", 0, 1 << 20),
    ("fault_after", -1, 10_000_000),
    ("fault_rate", 0, 1),
    ("fail_first", 0, 1_000_000),
    ("retry_after_s", 0, 86_400),
)
_FIXED = frozenset(("canned", "allow_overrides", "require_key", "seed"))
_TYPES = {field.name: field.type for field in fields(MockOptions) if field.name not in _FIXED}
_WORDS = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}


def override(options: MockOptions, pairs: Iterable[tuple[str, str]]) -> MockOptions:
    """Options with some of them replaced by text values. Raises ``ValueError`` for unknown names and bad values."""
    changes: dict[str, object] = {}
    for sent_name, text in pairs:
        name = sent_name.replace("-", "_")
        if name not in _TYPES:
            raise ValueError(f"there is no mock option {name!r}; choose from {', '.join(sorted(_TYPES))}")
        changes[name] = _parse(name, text)
    return replace(options, **changes) if changes else options  # type: ignore[arg-type]


def _parse(name: str, text: str) -> object:
    kind = _TYPES[name]
    try:
        if kind == "bool":
            return _WORDS[text.lower()]
        if kind == "int":
            return int(text)
        if kind == "Fault":
            return Fault(text)
        number = float(text)
    except (KeyError, ValueError):
        raise ValueError(f"mock option {name} cannot be {text!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"mock option {name} cannot be {text!r}")
    return number


@lru_cache(maxsize=1024)
def split_model(options: MockOptions, model: str) -> tuple[str, MockOptions]:
    """``name?option=value&…`` to the name and the options for it. Raises ``ValueError``."""
    name, _, suffix = model.partition("?")
    return name, override(options, parse_qsl(suffix, keep_blank_values=True)) if suffix else options
