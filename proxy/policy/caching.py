"""Which answers are kept, for how long, and who may read them again. Pure.

Lists of models are kept by default. Anything a model generated is kept only where the operator's rules for the
route or the request itself ask for it, and never where answering has effects or depends on the time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from proxy.policy.plan import Caching, ShareClass
from proxy.protocol.headers import Controls

_NONE: Final = Caching()
_NEVER: Final = frozenset((ShareClass.EFFECTS, ShareClass.TIME_DEPENDENT))
_DEFAULT_TTL_S: Final = 300.0
_MAX_TTL_S: Final = 86_400.0


class Lifetimes(NamedTuple):
    """What the route says, in seconds; a ``ttl_s`` of 0 keeps nothing unless the request asks for it."""

    ttl_s: float = 0.0
    stale_while_revalidate_s: float = 0.0
    stale_if_error_s: float = 0.0
    oldest_s: float | None = None
    """An entry older than this is not taken, whoever kept it; ``None``: its own lifetime decides."""


def decide_caching(
    share_class: ShareClass, lifetimes: Lifetimes, controls: Controls, *, idempotency_ttl_s: float = 0.0
) -> Caching:
    """Fold the route's lifetimes and the caller's wishes into one decision."""
    if share_class in _NEVER or controls.no_store or controls.cache == "off":
        return _NONE
    ttl_s = lifetimes.ttl_s
    if share_class is ShareClass.TOOLS and controls.cache is None:
        ttl_s = 0.0  # a tool's result belongs to the moment; only the request itself can know better
    if ttl_s <= 0 and controls.cache in ("on", "refresh", "only"):
        ttl_s = _DEFAULT_TTL_S if controls.cache_ttl_s is None else min(controls.cache_ttl_s, _MAX_TTL_S)
    elif controls.cache_ttl_s is not None:
        ttl_s = min(ttl_s, controls.cache_ttl_s)
    if controls.idempotency_key is not None:
        ttl_s = max(ttl_s, min(idempotency_ttl_s, _MAX_TTL_S))
    if ttl_s <= 0:
        return _NONE
    return Caching(
        reads=not controls.no_cache and controls.cache != "refresh",
        writes=True,
        ttl_s=ttl_s,
        stale_while_revalidate_s=lifetimes.stale_while_revalidate_s,
        stale_if_error_s=lifetimes.stale_if_error_s,
        max_age_s=_least(controls.max_age_s, lifetimes.oldest_s if lifetimes.ttl_s > 0 else None),
        max_stale_s=controls.max_stale_s,
    )


def _least(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)
