"""Classes of answers by how long they stay true, and the rules that tell them apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheClass:
    """How answers of one class are kept. Times in seconds."""

    name: str
    ttl_s: float
    """0: never kept, whatever the route says."""
    scope: str = "caller"
    """``caller`` (whatever the credential is shared with) or ``user`` (only the user whom the request names)."""
    stale_while_revalidate_s: float = 0.0
    stale_if_error_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CacheClasses:
    """All of them with their rules."""

    classes: tuple[CacheClass, ...] = ()
