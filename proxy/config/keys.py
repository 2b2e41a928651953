"""What is known about a virtual key: the record that the store keeps, access reads and the admin API shows.

A record never holds the key itself. ``digest`` is what it is looked up by; everything else is what the operator said
about it. Records are immutable: a change makes a new one with a higher ``version``.
"""

from __future__ import annotations

from typing import Final

import msgspec

PERIODS: Final = ("day", "month", "total")
"""Windows of a money budget: UTC days, UTC months, or the life of what it belongs to."""

MAX_BUDGET_PICODOLLARS: Final = 9_000_000 * 10**12
"""Largest budget: what fits a 64-bit column with room for what is in the air."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds on traffic; 0 for none."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent: int = 0


class Budget(msgspec.Struct, frozen=True):
    """Most money that may be spent in a window."""

    picodollars: int
    period: str = "month"


class KeyRecord(msgspec.Struct, frozen=True):
    """One virtual key."""

    id: str
    """``key_`` and 16 hex digits; names the key in logs, on the command line and in usage, and is no secret."""
    digest: bytes
    """32 bytes: HMAC-SHA-256 of the whole key under the pepper."""
    name: str
    tenant: str = ""
    team: str = ""
    models: tuple[str, ...] = ()
    """Names it may ask for, with ``*`` at the end for a prefix; empty for all."""
    routes: tuple[str, ...] = ()
    """Route names (``protocol.routes``) it may use; empty for all."""
    limits: Limits = Limits()
    budget: Budget | None = None
    scope: str = "key"
    """Whose flights and cached answers its requests may meet: ``key``, ``team`` or ``tenant``."""
    cache: str = "default"
    """``default``: as the route says; ``off``: its requests neither read nor write the response cache."""
    charge: str = "first"
    """How a shared call is charged: ``first``, ``split`` or ``each``."""
    expires_at: float = 0.0
    """Unix seconds; 0 for never."""
    tags: tuple[str, ...] = ()
    created_at: float = 0.0
    revoked_at: float = 0.0
    """Unix seconds; 0 while it is valid."""
    version: int = 0
    """Set by the store: grows with every change of any key, so an older record never replaces a newer one."""

    @property
    def sharers(self) -> tuple[str, str, str]:
        """All whose flights and cached answers its requests may meet: what they are, their tenant, their name."""
        if self.scope == "team" and self.team:
            return "team", self.tenant, self.team
        if self.scope == "tenant":
            return "tenant", self.tenant, ""
        return "key", self.tenant, self.id


class Allowance(msgspec.Struct, frozen=True):
    """Limits and budget of a team or a tenant, shared by all its keys."""

    kind: str
    """``team`` or ``tenant``."""
    name: str
    """Of a team: ``tenant/team``, so that equal team names of two tenants stay apart."""
    limits: Limits = Limits()
    budget: Budget | None = None
    version: int = 0
