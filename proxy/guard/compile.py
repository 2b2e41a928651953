"""From a guard as the catalog describes it to the check that is taken to texts."""

from __future__ import annotations

from functools import lru_cache

from proxy.config.guards import Guard
from proxy.guard.base import Check


@lru_cache(maxsize=1_024)
def compile_guard(guard: Guard) -> Check:
    """The check of a guard that is built in; equal guards have one. ``KeyError`` for a remote one, which others
    run."""
    from proxy.guard.kinds import make_check  # see `Guarding.prepare`

    return make_check(guard)
