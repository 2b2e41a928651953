"""Windows of budgets: their names and ends, in UTC. The time is always the database's."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import NamedTuple


class Window(NamedTuple):
    """One window."""

    name: str
    """``2026-11-21``, ``2026-11`` or ``total``."""
    ends_at: float
    """Unix seconds; infinity for ``total``."""


def window_at(now: float, period: str) -> Window:
    """The window of ``period`` (``day``, ``month``, ``total``) in which the Unix time ``now`` lies."""
    if period == "total":
        return Window("total", math.inf)
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return Window(day.strftime("%Y-%m-%d"), (day + timedelta(days=1)).timestamp())
    if period != "month":
        raise ValueError(f"no such period: {period}")
    first = day.replace(day=1)
    return Window(day.strftime("%Y-%m"), (first + timedelta(days=32)).replace(day=1).timestamp())


def bounds_of(name: str) -> tuple[float, float]:
    """When the window of that name begins and ends, Unix seconds."""
    if name == "total":
        return 0.0, math.inf
    period = "day" if name.count("-") == 2 else "month"
    begins_at = datetime.strptime(name, "%Y-%m-%d" if period == "day" else "%Y-%m").replace(tzinfo=UTC).timestamp()
    return begins_at, window_at(begins_at, period).ends_at
