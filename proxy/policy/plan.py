"""The plan: everything that was decided about one request before anything was done about it.

A plan is frozen and a pure function of (request, principal, catalog snapshot, settings): equal requests get equal
plans, which is what lets them share a flight. The room `policy/` makes it, `pipeline` and `production` carry it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from proxy.config.guards import GuardSet
from proxy.config.models import Model, ModelTarget
from proxy.config.prices import Price
from proxy.protocol.message import HeaderList
from proxy.protocol.routes import Dialect, Route


class ShareClass(Enum):
    """What kind of answer a request asks for; the letters are those of the sharing table in README."""

    PURE = "A"
    DETERMINISTIC = "B"
    SAMPLED = "C"
    TOOLS = "D"
    COSTLY = "E"
    EFFECTS = "F"
    TIME_DEPENDENT = "G"

    # Members are single, so identity will do; the enum's own hash is a Python call, and plans are looked up by class.
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a request may meet others in the air."""

    registers: bool = False
    """Its flight is put where others can find it."""
    joins: bool = False
    """It may join the primary flight of its key."""
    retry: bool = False
    """A marked retry: prefers a flight that lingers, and may join one that is no longer primary."""
    leads: bool = True
    """It may start a flight of its own (``only-if-cached`` may not)."""
    why: str = ""
    """Low-cardinality reason for not sharing, for the metric and the log; empty when it shares."""


@dataclass(frozen=True, slots=True)
class Caching:
    """How a request meets the response cache. Times in seconds."""

    reads: bool = False
    writes: bool = False
    ttl_s: float = 0.0
    stale_while_revalidate_s: float = 0.0
    stale_if_error_s: float = 0.0
    max_age_s: float | None = None
    """An entry older than this is a miss for this caller."""
    max_stale_s: float | None = None
    """How stale an entry this caller accepts beyond its freshness; ``None`` leaves it to the route."""

    @property
    def keeps_s(self) -> float:
        """How long an entry is worth keeping at all."""
        return self.ttl_s + max(self.stale_while_revalidate_s, self.stale_if_error_s)


@dataclass(frozen=True, slots=True)
class Target:
    """One place an answer can come from."""

    provider: str
    """Name in the catalog: ``openai``, ``anthropic``, ``mistral`` …"""
    dialect: Dialect
    scheme: str
    host: str
    port: int
    base_path: str
    """Prefix of every path, without a trailing slash; usually empty."""
    origin: str
    """The four before as one text, for the fingerprint."""


class Routed(NamedTuple):
    """A request for a model of the catalog: which of its targets answers is decided flight by flight."""

    model: Model
    name: str
    """What is asked for, aliases followed; as the caller wrote it where the catalog's name ends in ``*``."""
    targets: tuple[ModelTarget, ...]
    """Those that this caller may use; ``model.targets`` itself where it may use all."""
    prices: Mapping[str, Price | None]
    """By the ids of ``targets``."""
    credential: HeaderList
    """The caller's own; empty where the operator's keys are used."""
    own: bool
    """The caller's own credential is used, and none of the operator's."""
    attempts: int
    """Calls in all, the first included."""

    @property
    def dearest(self) -> Price | None:
        """The highest rate of each kind among the targets; ``None`` where nobody said."""
        known = [price for price in self.prices.values() if price is not None]
        if not known:
            return None
        return Price(
            max(price.input for price in known),
            max(price.output for price in known),
            cache_write=max(price.cache_write or price.input for price in known),
        )

    @property
    def usual(self) -> Price | None:
        """Of the target that is named first."""
        return self.prices[self.targets[0].id]


class Plan(NamedTuple):
    """What will be done for one request. The fields from ``streams`` on are the same for every request with
    the same head and class, and are taken over as a whole (`planner.Terms`)."""

    key: bytes | None
    """The fingerprint, 32 bytes, or ``None`` where the request cannot be fingerprinted."""
    model: str
    """What is asked for, aliases followed; empty where the route has none."""
    idempotency: bytes | None
    """Index of (scope, Idempotency-Key), 32 bytes, or ``None``."""
    idempotency_print: bytes | None
    """Fingerprint without the idempotency key, to notice a key used twice for different requests."""
    asks_usage: bool
    """The upstream is asked for token counts that the caller does not want to see (`protocol.ask_usage`)."""
    routed: Routed | None
    """Where the answer may come from, if the catalog says so; ``None``: from ``target``."""
    streams: bool
    """The caller asked for a stream."""
    route: Route
    target: Target
    """The provider that the path and the headers name; its dialect is the caller's, whoever answers."""
    method: str
    upstream_path: str
    """Path and query to send, base path included (but for routed requests)."""
    headers: HeaderList
    """Headers to send, credential (but for routed requests) and minted ones included; no Host, no framing."""
    share_class: ShareClass
    sharing: Sharing
    caching: Caching
    leave_s: float
    """How long its flight waits for somebody after everybody left: 0 cancels at once, infinity runs to the end."""
    first_byte_s: float
    idle_s: float
    total_s: float
    scope: bytes
    """Whose flights and cache entries this one may meet; opaque, 16 bytes."""
    guards: GuardSet | None = None
    """What looks at the request and the answer; part of the fingerprint."""
    user: bytes = b""
    """Whose share of the cache its answer takes, within the scope's; 16 bytes, empty where it is nobody's."""
