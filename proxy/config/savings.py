"""What the catalog says about spending less and about guarding: one field for each policy, ``None`` where it says
nothing. Everything is off then, and costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from proxy.config.cache_classes import CacheClasses
    from proxy.config.guards import Guard
    from proxy.config.patterns import Patterns
    from proxy.config.pruning import Pruning, Slimming
    from proxy.config.tiers import Tiered

_NO_TIERS: Final[Mapping[str, Tiered]] = MappingProxyType({})


class Savings(NamedTuple):
    """Immutable, part of the catalog's snapshot."""

    patterns: Patterns | None = None
    """Answers to small messages."""
    classes: CacheClasses | None = None
    """Which answers are kept, for how long, for whom."""
    tiers: Mapping[str, Tiered] = _NO_TIERS
    """Virtual models, by the names that callers ask for."""
    pruning: Pruning | None = None
    """What long conversations lose."""
    slimming: Slimming | None = None
    """What prompts lose by rule."""
    guards: tuple[Guard, ...] = ()

    @property
    def says_nothing(self) -> bool:
        return self == _NOTHING


_NOTHING: Final = Savings()
