"""What the operator says about models: under which names they are asked for, and which targets may answer.

A `Model` is what a caller names; a `ModelTarget` is one model at one provider that may answer for it. `Models` finds
the one from the name: aliases first, then the exact name, then the longest name that ends in ``*``. Immutable, part
of the catalog's snapshot.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from proxy.config.prices import Price

if TYPE_CHECKING:
    from proxy.config.catalog import Provider

STRATEGIES: Final = (
    "ordered",
    "round_robin",
    "weighted",
    "least_in_flight",
    "lowest_latency",
    "cheapest",
    "sticky",
)


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """One model at one provider. Times in seconds, 0: what the model, else the provider, else the route says."""

    id: str
    """``provider/model``, unique among the targets of one model; a label in metrics and in the log."""
    provider: Provider
    model: str
    """As the provider knows it; empty: as the caller named it (for names that end in ``*``)."""
    weight: float = 1.0
    """Share of the requests, by the strategies that know shares; 0: only when all others fail."""
    price: Price | None = None
    """``None``: found by the name of the model."""
    first_byte_s: float = 0.0
    idle_s: float = 0.0
    total_s: float = 0.0
    max_tokens: int = 0
    most_tokens: int = 0
    cache_markers: str = ""
    json_output: str = "format"
    thinking: str = ""
    version: str = ""
    parameters: tuple[tuple[str, Any], ...] = ()
    """Members added to every body sent there, unless the caller set them."""


@dataclass(frozen=True, slots=True)
class Hedging:
    """A second call to another target where the first is slow; the earlier answer wins."""

    after_s: float = 0.0
    """0: after the 95th percentile of the target's times to the first byte."""
    most_share: float = 0.02
    """Of all requests of this model."""


@dataclass(frozen=True, slots=True)
class Batching:
    """Concurrent embedding requests become one call."""

    most_inputs: int
    window_s: float


@dataclass(frozen=True, slots=True)
class Model:
    """What callers may name, and who answers."""

    name: str
    """Canonical: aliases have been followed. May end in ``*``."""
    targets: tuple[ModelTarget, ...]
    strategy: str = "ordered"
    """One of ``STRATEGIES``."""
    attempts: int = 3
    """Calls in all for one flight, the first included."""
    retry_unsafe: bool = True
    """Try elsewhere even where the first upstream may have answered and charged: it hung, or broke off before its
    head."""
    hedging: Hedging | None = None
    batching: Batching | None = None
    description: str = ""

    @property
    def price(self) -> Price | None:
        """Of the first target, as far as it was given one of its own."""
        return self.targets[0].price


@dataclass(frozen=True, slots=True)
class Models:
    """All of them."""

    by_name: Mapping[str, Model] = field(default_factory=lambda: MappingProxyType({}))
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Name → the name that is meant; followed to its end when the catalog was made."""
    patterns: tuple[tuple[str, Model], ...] = ()
    """(prefix, model) of the names that end in ``*``, longest prefix first."""
    _prefixes: tuple[str, ...] = field(init=False, repr=False, compare=False, default=())
    """Those prefixes in alphabetical order."""
    _found: tuple[tuple[Model, int], ...] = field(init=False, repr=False, compare=False, default=())
    """For each of ``_prefixes`` its model, and where the longest other prefix is that it begins with; -1 for none."""

    def __post_init__(self) -> None:
        by_prefix = dict(reversed(self.patterns))
        prefixes = sorted(by_prefix)
        found: list[tuple[Model, int]] = []
        for at, prefix in enumerate(prefixes):
            shorter = at - 1
            while shorter >= 0 and not prefix.startswith(prefixes[shorter]):
                shorter = found[shorter][1]
            found.append((by_prefix[prefix], shorter))
        object.__setattr__(self, "_prefixes", tuple(prefixes))
        object.__setattr__(self, "_found", tuple(found))

    def __bool__(self) -> bool:
        return bool(self.by_name or self.aliases or self.patterns)

    def resolve(self, name: str) -> str:
        """The name that is meant by ``name``."""
        return self.aliases.get(name, name)

    def find(self, name: str) -> Model | None:
        """The model of a resolved name; ``None`` where the catalog does not know it."""
        model = self.by_name.get(name)
        if model is not None or not name:
            return model
        # Whatever begins ``name`` sorts before it, and nothing but longer names with the same beginning lies between:
        # the nearest prefix, or one that it begins with itself, is the longest that fits.
        at = bisect_right(self._prefixes, name) - 1
        while at >= 0:
            model, shorter = self._found[at]
            if name.startswith(self._prefixes[at]):
                return model
            at = shorter
        return None


NO_MODELS: Final = Models()
