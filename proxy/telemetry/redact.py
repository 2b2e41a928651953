"""Keeping credentials out of logs: by the shape of a text, and by the name it stands under."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

_MAX_DEPTH: Final = 8
_HIDDEN: Final = "…"

# Vendors' keys and ours, bearer and basic credentials, and the user part of a URL. The first group stays.
_SHAPES: Final = re.compile(
    r"(?<![A-Za-z0-9])((?:sk|pk|rk|sf|gsk|xai|hf|ghp)[-_])[A-Za-z0-9_\-]{8,}"
    r"|(?i:(\b(?:bearer|basic)\s+))[^\s\"',;]{4,}"
    r"|(?<![A-Za-z0-9])(AKIA|AIza)[A-Za-z0-9_\-]{12,}"
    r"|(://)[^/@\s\"']+@"
)
_NAMES: Final = re.compile(
    r"(?i)^(?:.*[-_.])?(?:authorization|api[-_]?key|x[-_]api[-_]key|password|passwd|secret|cookie|set[-_]cookie|"
    r"access[-_]token|refresh[-_]token|credential|key[-_]secret)$"
)


def redact_text(text: str) -> str:
    """``text`` without what looks like a credential; its first letters stay, to tell one kind from another."""
    return _SHAPES.sub(_hide, text) if is_suspect(text) else text


def is_suspect(text: str) -> bool:
    """Whether any of the shapes may be in ``text``; a word search costs a tenth of the pattern."""
    low = text.lower()
    return (
        "k-" in low
        or "k_" in low
        or "f-" in low
        or "f_" in low
        or "earer" in low
        or "basic" in low
        or "://" in low
        or "xai" in low
        or "p_" in low
        or "akia" in low
        or "aiza" in low
    )


def _hide(match: re.Match[str]) -> str:
    kept = next((group for group in match.groups() if group), "")
    return f"{kept}{_HIDDEN}" + ("@" if kept == "://" else "")


def redact(value: Any, depth: int = 0) -> Any:
    """The same for anything that may be logged: containers are copied, unknown objects become their ``repr``."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, bytes, bytearray)):
        return redact_text(_text_of(value))
    if depth >= _MAX_DEPTH:
        return _HIDDEN
    if isinstance(value, Mapping):
        return {_text_of(name): hide_named(_text_of(name), each, depth + 1) for name, each in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], (str, bytes)):
        # A header line, perhaps.
        return [redact(value[0], depth + 1), hide_named(_text_of(value[0]), value[1], depth + 1)]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact(each, depth + 1) for each in value]
    return redact_text(repr(value))


def hide_named(name: str, value: Any, depth: int = 0) -> Any:
    """``value`` as it may be logged under ``name``: nothing at all of it where the name says that it is a secret."""
    if value and _is_secret_name(name):
        return _HIDDEN
    return redact(value, depth)


def _text_of(value: object) -> str:
    return bytes(value).decode("utf-8", "replace") if isinstance(value, (bytes, bytearray)) else str(value)


@lru_cache(1024)
def _is_secret_name(name: str) -> bool:
    return _NAMES.match(name) is not None
