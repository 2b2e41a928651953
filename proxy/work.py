"""What a flight is to do: the one thing that passes from an exchange to a production."""

from __future__ import annotations

from typing import NamedTuple

from proxy.config.prices import Price
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
    own_credential: bool = True
    """The caller's own credential is used, not the proxy's."""
    renews: bool = False
    """Nobody waits for it: it renews a stale entry of the hot cache."""
