"""Flags: which savings and guards are on, for whom, and for how many.

A flag has a name (``patterns``, ``cache_classes``, ``tiers``, ``pruning``, ``slimming``, ``guard:<name>``) and rules.
What the catalog configures is on for everybody until a rule says otherwise; what it does not configure no flag can
turn on. The most particular rule wins: key before route before tenant before global. Rules come from the catalog file
and from the store, and the store's win over the file's where both say something of the same subject.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Final

import msgspec

SCOPES: Final = ("global", "tenant", "route", "key")
"""From the broadest to the most particular."""

FEATURES: Final = ("patterns", "cache_classes", "tiers", "pruning", "slimming")
"""Names of flags beside those of guards."""

GUARD: Final = "guard:"


class Flag(msgspec.Struct, frozen=True):
    """One rule."""

    name: str
    scope: str = "global"
    """One of ``SCOPES``."""
    subject: str = ""
    """A tenant, a key's id or a route's name; empty for ``global``."""
    percent: float = 100.0
    """For how many of the subject's users or conversations it is on: 0 off, 100 on. See `is_on`."""


class Flags:
    """A snapshot of all rules. Immutable; equal where the rules are."""

    __slots__ = ("_rules", "version")

    def __init__(self, rules: Iterable[Flag] = (), version: int = 0) -> None:
        self._rules: Mapping[tuple[str, str, str], float] = MappingProxyType(
            {(rule.name, rule.scope, rule.subject): rule.percent for rule in rules}
        )
        self.version = version
        """Of the store's rules among them."""

    def __bool__(self) -> bool:
        return bool(self._rules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flags) and self._rules == other._rules

    def __hash__(self) -> int:
        return hash(frozenset(self._rules.items()))

    def percent(self, name: str, *, tenant: str, route: str, key_id: str) -> float:
        """For how many the flag is on, by the most particular rule."""
        rules = self._rules
        for scope, subject in (("key", key_id), ("route", route), ("tenant", tenant), ("global", "")):
            percent = rules.get((name, scope, subject))
            if percent is not None:
                return percent
        return 100.0

    def rules(self) -> list[Flag]:
        """All of them, by name, then from the broadest to the most particular."""
        rules = [Flag(*at, percent) for at, percent in self._rules.items()]
        return sorted(rules, key=lambda rule: (rule.name, SCOPES.index(rule.scope), rule.subject))

    def over(self, base: Flags) -> Flags:
        """These rules, and those of ``base`` about whatever these do not speak of."""
        return Flags((*base.rules(), *self.rules()), self.version)


NO_FLAGS: Final = Flags()


def is_on(name: str, percent: float, unit: bytes) -> bool:
    """Whether ``unit`` (a user or a conversation) is among the ``percent`` for whom the flag is on. Whoever is in at
    some percentage stays in at every higher one, and the choices of two flags are independent."""
    if percent >= 100.0:
        return True
    if percent <= 0.0:
        return False
    place = int.from_bytes(blake2b(unit, digest_size=8, person=b"sf/flag", key=name.encode()[:64]).digest(), "big")
    return place < percent / 100.0 * 2.0**64
