"""What a flight is to do: the one thing that passes from an exchange to a production."""

from __future__ import annotations

from typing import Any, NamedTuple

from proxy.config.prices import Price
from proxy.config.principal import Principal
from proxy.policy.plan import Plan
from proxy.upstream.base import BodySource


class Work(NamedTuple):
    """A plan with the body it was made for. Followers' copies of the body are dropped; the flight keeps this one."""

    plan: Plan
    body: bytes | BodySource
    generation: int
    """The hot cache's when the flight began: an answer is not stored after a purge."""
    price: Price | None
    """Of the plan's model, from the catalog the first exchange was pinned to."""
    principal: Principal
    """For whom it was begun; its charge policy is the flight's."""
    patience_s: float | None = None
    """How long the first caller waits for a byte; ``None`` where it did not say."""
    fields: dict[str, Any] | None = None
    """What ``body`` parses to, where it was parsed as it stands and somebody may have to read it again."""
    renews: bool = False
    """Nobody waits for it: it renews a stale entry of the hot cache."""

    @property
    def charge(self) -> str:
        """How the call is billed: ``first``, ``split`` or ``each``."""
        return self.principal.key.charge if self.principal.key is not None else "first"
