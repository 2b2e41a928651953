"""The usage record: one row for every admitted request, whatever became of it.

It never holds an authorisation field, a prompt or an answer. Money is whole picodollars (see `accounting.usage`),
times are milliseconds, ``at`` is Unix seconds.
"""

from __future__ import annotations

import msgspec


class UsageRecord(msgspec.Struct, frozen=True, array_like=True):
    """One request. ``request_id`` is unique over processes and restarts and makes every write idempotent."""

    request_id: str
    at: float
    """When it was admitted, Unix seconds."""
    key_id: str
    """``key_…`` of a virtual key, else the digest prefix of the presented credential."""
    tenant: str
    team: str
    provider: str
    route: str
    model: str
    role: str
    """``leader``, ``follower``, ``hit``, ``alone``, ``pattern`` (answered by a rule), ``local``, ``refresh`` or
    ``none``."""
    outcome: str
    """As in the access line; ``lost`` for a request whose process died before its end."""
    status: int
    streams: bool
    estimated: bool
    """The tokens are a guess: the answer reported none, or the process died."""
    input_tokens: int
    """Billed to this request."""
    output_tokens: int
    cached_input_tokens: int
    upstream_tokens: int
    """Of the upstream call, on the row of the one that led it; 0 on all others."""
    saved_tokens: int
    cost_picodollars: int
    """Billed to this request."""
    upstream_picodollars: int
    """What the upstream charges, on the row of the one that led the call; 0 on all others."""
    saved_picodollars: int
    first_byte_ms: float
    total_ms: float
    overhead_ms: float
    flight_id: int
    """0 for none."""
    tags: str = ""
    """Comma-separated."""
    tier: str = ""
    """Which one the complexity of the request led to, or would have in shadow mode; empty where nobody asked."""
    cache_class: str = ""
    """By which its answer is kept; empty where the route alone decides."""
    pruned_tokens: int = 0
    """Of the prompt, not sent; estimated."""
    policy_saved_picodollars: int = 0
    """What a rule's answer, a cheaper tier or a shorter prompt saved against doing without, beside
    ``saved_picodollars``; below 0 where it cost more."""
    shadow_saved_picodollars: int = 0
    """What a tier in shadow mode would have saved."""
    flagged: str = ""
    """Names of the guards that found something and let it pass, comma-separated."""
