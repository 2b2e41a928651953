"""Guards as the catalog describes them: what is looked for, where, when, and what happens then.

Immutable. `guard.compile` makes the checks of them; a caller's guards are chosen when its head is first seen
(`policy.policies`), never on the way of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

MODES: Final = ("before", "during", "after")
ACTIONS: Final = ("block", "redact", "flag")


@dataclass(frozen=True, slots=True)
class Guard:
    """One guard. Times in seconds."""

    name: str
    kind: str
    """What is looked for: see `config.guard_file`."""
    mode: str
    """``before``: the request, before the upstream is asked. ``during``: the request, beside the upstream's call,
    whose bytes are held until the verdict. ``after``: the answer."""
    action: str = "block"
    """``block``, ``redact`` (not by remote guards, nor ``during``) or ``flag``."""
    fail_open: bool = False
    """What becomes of a request or an answer that could not be checked: let through, or blocked."""
    timeout_s: float = 1.0
    tenants: frozenset[str] = frozenset()
    """Whom it guards; all of these empty: everybody."""
    keys: frozenset[str] = frozenset()
    routes: frozenset[str] = frozenset()
    options: tuple[tuple[str, Any], ...] = ()
    """By the kind; hashable."""


@dataclass(frozen=True, slots=True)
class GuardSet:
    """The guards of one caller on one route, none of them twice. Equal sets have equal digests."""

    before: tuple[Guard, ...] = ()
    during: tuple[Guard, ...] = ()
    after: tuple[Guard, ...] = ()
    digest: bytes = field(init=False, default=b"")
    """8 bytes, part of the fingerprint: what one set let pass is no answer under another."""

    def __post_init__(self) -> None:
        said = repr((self.before, self.during, self.after)).encode()
        object.__setattr__(self, "digest", blake2b(said, digest_size=8, person=b"sf/guards").digest())


def make_guard_set(guards: Sequence[Guard]) -> GuardSet | None:
    """``None`` for none."""
    if not guards:
        return None
    before, during, after = (tuple(guard for guard in guards if guard.mode == mode) for mode in MODES)
    return GuardSet(before, during, after)
