"""What a failure of PostgreSQL means: to the caller, to the connection it happened on, and to all others."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

import asyncpg

from proxy.errors import StoreError


class Fate(Enum):
    """What becomes of the connection."""

    KEEP = 1
    DROP = 2
    DROP_ALL = 3
    """Those that are idle lead to the same place."""


class Verdict(NamedTuple):
    """One kind of failure."""

    why: str
    transient: bool = True
    fate: Fate = Fate.KEEP
    again: bool = False
    """The whole transaction may succeed at once when it is run anew."""


_LOST: Final = Verdict("unavailable", fate=Fate.DROP_ALL, again=True)
_BUSY: Final = Verdict("serialization", again=True)
_INVALID: Final = Verdict("invalid", transient=False)
_UNKNOWN: Final = Verdict("failed", transient=False)
TIMEOUT: Final = Verdict("timeout", fate=Fate.DROP_ALL)

_BY_STATE: Final = {
    "23505": Verdict("conflict", transient=False),
    "25006": Verdict("read_only", fate=Fate.DROP_ALL, again=True),  # the old primary of a failover
    "25P03": _LOST,
    "28P01": Verdict("refused", transient=False, fate=Fate.DROP),
    "3D000": Verdict("refused", transient=False, fate=Fate.DROP),
    "40001": _BUSY,
    "40P01": _BUSY,
    "42P01": Verdict("schema", transient=False),
    "53100": Verdict("full"),
    "53200": Verdict("full", fate=Fate.DROP),
    "53300": Verdict("too_many_connections", fate=Fate.DROP),
    "55P03": _BUSY,
    "57014": Verdict("timeout"),
    "57P01": _LOST,
    "57P02": _LOST,
    "57P03": Verdict("unavailable", fate=Fate.DROP_ALL),
    "57P04": Verdict("refused", transient=False, fate=Fate.DROP_ALL),
    "57P05": _LOST,
}
_BY_CLASS: Final = {
    "08": _LOST,
    "22": _INVALID,
    "28": Verdict("refused", transient=False, fate=Fate.DROP),
    "42": Verdict("failed", transient=False),
    "53": Verdict("full"),
    "57": _LOST,
    "58": Verdict("unavailable", fate=Fate.DROP),
    "XX": Verdict("failed", fate=Fate.DROP),
}


def verdict_on(error: Exception) -> Verdict:
    """Judge what a call of the driver raised."""
    if isinstance(error, StoreError):
        return Verdict(error.why, error.transient)
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return _BY_STATE.get(state) or _BY_CLASS.get(state[:2]) or _UNKNOWN
    if isinstance(error, TimeoutError):
        return TIMEOUT
    if isinstance(error, OSError):
        return _LOST
    if type(error).__name__ == "TargetServerAttributeNotMatched":
        return Verdict("read_only", fate=Fate.DROP)
    if isinstance(error, (ValueError, OverflowError, UnicodeError)):
        return _INVALID
    if isinstance(error, (asyncpg.InterfaceError, asyncpg.InternalClientError)):
        return _LOST
    return _UNKNOWN._replace(fate=Fate.DROP)


def store_error(error: Exception, verdict: Verdict) -> StoreError:
    """The same for the caller. The text of a database names tables and values, never what a client presented."""
    if isinstance(error, StoreError):
        return error
    return StoreError(verdict.why, f"{type(error).__name__}: {error}".rstrip(": "), transient=verdict.transient)
