"""Which savings and guards are for a caller on a route: worked out once for a head, from the catalog and its flags.

A flag that is on for a part of the users only is decided for each request, by whom it is for: its user, where it
names one, else its conversation, told by what that began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from proxy.config.catalog import Catalog
from proxy.config.feature_flags import FEATURES, GUARD, is_on
from proxy.config.guards import Guard, GuardSet, make_guard_set
from proxy.config.principal import Principal
from proxy.config.tiers import has_virtual
from proxy.policy.turns import Turns
from proxy.protocol.routes import Route

if TYPE_CHECKING:
    from proxy.config.cache_classes import CacheClasses
    from proxy.config.patterns import Patterns
    from proxy.config.pruning import Pruning, Slimming
    from proxy.config.tiers import Tiered


class About(NamedTuple):
    """Who asks, and when: what rules may depend on beside the request itself."""

    route: str
    key_id: str
    tenant: str
    tags: tuple[str, ...]
    wall: float
    """Unix seconds."""
    unit: bytes
    """For whom it is: the user or the conversation, 16 bytes. All that a stable hash chooses is chosen by this."""


class Policies(NamedTuple):
    """What is on. ``None`` or empty where it is not."""

    patterns: Patterns | None
    classes: CacheClasses | None
    tiers: Mapping[str, Tiered]
    pruning: Pruning | None
    slimming: Slimming | None
    guards: GuardSet | None
    partial: tuple[tuple[str, float], ...] = ()
    """Flags that are on for some, with the percentage."""

    def narrow(self, unit: bytes) -> Policies:
        """Without what is off for this unit."""
        off = {name for name, percent in self.partial if not is_on(name, percent, unit)}
        return self if not off else _without(self, off)


def make_policies(catalog: Catalog, principal: Principal, route: Route) -> Policies | None:
    """``None`` if nothing is on for these requests."""
    savings = catalog.savings
    if savings is None or not route.has_json_body:
        return None
    key = principal.key
    tenant = key.tenant if key is not None else ""
    percents = {
        name: catalog.flags.percent(name, tenant=tenant, route=route.name, key_id=principal.key_id)
        for name in (*FEATURES, *(GUARD + guard.name for guard in savings.guards))
    }
    meant = tuple(guard for guard in savings.guards if is_for(guard, principal.key_id, tenant, route.name))
    policies = Policies(
        savings.patterns,
        savings.classes,
        savings.tiers,
        savings.pruning,
        savings.slimming,
        make_guard_set(meant),
        tuple((name, percent) for name, percent in percents.items() if 0.0 < percent < 100.0),
    )
    policies = _without(policies, {name for name, percent in percents.items() if percent <= 0.0})
    # A virtual model that is switched off still has to stand for its baseline.
    return policies if any(policies[:-1]) or has_virtual(savings.tiers) else None


def make_unit(principal: Principal, turns: Turns | None, body: bytes) -> bytes:
    """For whom a request is, 16 bytes; see `About`. The same in every process, now and later: no secret is in it."""
    if turns is None:
        said = body
    else:
        said = turns.user.encode("utf-8", "surrogatepass") or turns.first_user.encode("utf-8", "surrogatepass")
    hasher = blake2b(digest_size=16, person=b"sf/unit")
    for each in _name_caller(principal):
        hasher.update(b"%d:" % len(each) + each)
    hasher.update(said)
    return hasher.digest()


def _name_caller(principal: Principal) -> list[bytes]:
    """Who asks: those who share a key's answers, else whoever holds the credential; all others are one."""
    if principal.key is not None:
        return [each.encode() for each in principal.key.sharers]
    return [value for _, value in principal.credential] if principal.own else []


def is_for(guard: Guard, key_id: str, tenant: str, route: str) -> bool:
    """Whether the catalog puts this guard before such requests. Keys and tenants are alternatives."""
    if guard.routes and route not in guard.routes:
        return False
    if not guard.tenants and not guard.keys:
        return True
    return key_id in guard.keys or tenant in guard.tenants


def _without(policies: Policies, off: set[str]) -> Policies:
    guards = policies.guards
    if guards is not None and any(name.startswith(GUARD) for name in off):
        every = (*guards.before, *guards.during, *guards.after)
        guards = make_guard_set([guard for guard in every if GUARD + guard.name not in off])
    return Policies(
        None if "patterns" in off else policies.patterns,
        None if "cache_classes" in off else policies.classes,
        {} if "tiers" in off else policies.tiers,
        None if "pruning" in off else policies.pruning,
        None if "slimming" in off else policies.slimming,
        guards,
        policies.partial,
    )
