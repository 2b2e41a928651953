"""Records of the flags that the store keeps: what somebody wants changed, what was changed by whom, and what there is
now."""

from __future__ import annotations

from typing import Final, NamedTuple

from proxy.config.feature_flags import Flags

MAX_RULES: Final = 10_000
"""Of the store, and of one file."""


class FlagEdit(NamedTuple):
    """What is to become of one rule."""

    name: str
    scope: str
    subject: str
    percent: float | None
    """``None``: there is to be no such rule."""


class FlagChange(NamedTuple):
    """What became of one rule in one change. A change may have several; they were made together."""

    change: int
    """Grows from change to change, not by one."""
    name: str
    scope: str
    subject: str
    before: float | None
    """Its percentage; ``None`` where there was no such rule."""
    after: float | None
    at: float
    """Unix seconds by the store's clock."""
    who: str
    why: str
    restores: int | None = None
    """Of a rollback: the change after which the rules were what they are again now; 0 for before any."""


class FlagMark(NamedTuple):
    """The last change of all. A database that was set back to an earlier state shows another one."""

    change: int = 0
    at: float = 0.0


class StoredFlags(NamedTuple):
    """All rules of the store at one time."""

    flags: Flags
    """Its ``version`` is the mark's change."""
    mark: FlagMark
