"""The figures of the admin page, read from the store now and then: never twice at once, and never all the time.

A reading asks the store some ten questions. It is good for five seconds, and for twenty times as long as it took, so
that no number of open pages is more than a twentieth of a database's work. Days that are over are asked for again
only every quarter of an hour. A store that is away leaves the last figures as they were, with the reason beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

from proxy.accounting.figures import Periods, Readings, Rows, Targets, make_figures, make_periods
from proxy.clock import Clock
from proxy.errors import StoreError

FRESH_S: Final = 5.0
PAUSE_FACTOR: Final = 20.0
"""A reading is good for so many times as long as it took."""
RETRY_S: Final = 2.0
DAYS_FRESH_S: Final = 900.0
WAIT_S: Final = 10.0
"""How long a page waits for a reading; it gets the last figures then."""
ROWS: Final = 20
"""Of each table."""
_MOST_ROWS: Final = 10_000
_BY: Final = ("key", "model", "provider")


class FigureStore(Protocol):
    """What the figures need of a store. Both raise ``StoreError``."""

    async def report(self, name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]: ...

    async def get_key(self, key_id: str) -> Any: ...


class Answer(NamedTuple):
    """What there is to show."""

    figures: dict[str, Any] | None
    """``None`` if the store has never answered."""
    trouble: str
    """Why these are not newer; empty if they are new enough."""


class Figures:
    """Reads and keeps them. Needs a running loop when it is asked."""

    # Mutable state, written by `_read` and its task alone: the last figures and when they stop being good, the days
    # that are over, the task that reads, the last trouble, and the counters.
    def __init__(self, store: FigureStore, clock: Clock, targets: Targets, *, wait_s: float = WAIT_S) -> None:
        self._store = store
        self._clock = clock
        self._targets = targets
        self._wait_s = wait_s
        self._figures: dict[str, Any] | None = None
        self._good_until = 0.0
        self._trouble = ""
        self._days: Rows = []
        self._days_for = 0.0
        self._days_until = 0.0
        self._reading: asyncio.Task[None] | None = None
        self.asked = 0
        self.readings = 0
        self.failures = 0
        """Readings that the store did not answer."""

    async def get(self) -> Answer:
        """The figures; read anew if those at hand are too old."""
        self.asked += 1
        if self._clock.now() < self._good_until:
            return Answer(self._figures, self._trouble)
        reading = self._reading
        if reading is None or reading.done():
            reading = asyncio.get_running_loop().create_task(self._read(), name="dashboard-figures")
            self._reading = reading
        done, _ = await asyncio.wait((reading,), timeout=self._wait_s)
        if not done:
            return Answer(self._figures, "The database takes long to answer.")
        reading.result()
        return Answer(self._figures, self._trouble)

    async def close(self) -> None:
        """Give up what is being read."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))

    async def _read(self) -> None:
        began = self._clock.now()
        self.readings += 1
        try:
            figures = await self._ask(make_periods(self._clock.wall()))
        except StoreError as error:
            self.failures += 1
            self._trouble = _explain(error)
            self._good_until = self._clock.now() + RETRY_S
        else:
            self._figures, self._trouble = figures, ""
            now = self._clock.now()
            self._good_until = now + max(FRESH_S, PAUSE_FACTOR * (now - began))

    async def _ask(self, at: Periods) -> dict[str, Any]:
        """One question after the other: a page is no reason for several connections. Raises ``StoreError``."""
        earlier = at.now - at.today
        yesterday, last_week = at.today - 86_400.0, at.today - 7 * 86_400.0
        hours = await self._report("hour", at.first_hour, at.now)
        by = {name: await self._report(name, at.today, at.now, ROWS) for name in _BY}
        figures = make_figures(
            at,
            Readings(
                hours=hours,
                times=await self._report("times", at.first_hour, at.now),
                today_times=await self._report("time", at.today, at.now),
                days=await self._past_days(at),
                yesterday=await self._report("all", yesterday, yesterday + earlier),
                last_week=await self._report("all", last_week, last_week + earlier),
                by=by,
                outcomes=await self._report("outcome", at.today, at.now, ROWS),
            ),
            self._targets,
        )
        for row in figures["by"]["key"]:
            record = await self._store.get_key(row["label"]) if row["label"].startswith("key_") else None
            row["name"] = record.name if record is not None else ""
        return figures

    async def _past_days(self, at: Periods) -> Rows:
        """Of requests that began before today, some may still come in: so they are asked for again, but seldom."""
        now = self._clock.now()
        if self._days_for != at.today or now >= self._days_until:
            self._days = await self._report("day", at.first_day, at.today)
            self._days_for, self._days_until = at.today, now + DAYS_FRESH_S
        return self._days

    async def _report(self, by: str, since: float, until: float, limit: int = _MOST_ROWS) -> Rows:
        return await self._store.report("figures", {"by": by, "since": since, "until": until, "limit": limit})


def _explain(error: StoreError) -> str:
    if error.why == "timeout":
        return "The database does not answer in time."
    return f"The database cannot be read ({error.why})."
