"""When something holds: hours of the day and days of the week, in a time zone. Texts like ``05:00-11:30``."""

from __future__ import annotations

import re
from datetime import UTC, datetime, tzinfo
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY: Final = 24 * 60
_HOURS: Final = re.compile(r"([0-9]{1,2}):([0-9]{2})\s*(?:-|–|to)\s*([0-9]{1,2}):([0-9]{2})")


class When(NamedTuple):
    """A part of each week. Minutes are of the day, from 0; the end is not part of it, and lies on the next day where
    it is not behind the beginning: then the hours after midnight belong to the day on which they began."""

    begins: int = 0
    ends: int = _DAY
    days: frozenset[int] = frozenset(range(7))
    """0 is Monday."""

    @property
    def always(self) -> bool:
        return self == ALWAYS

    def holds(self, at: datetime) -> bool:
        minute, day = at.hour * 60 + at.minute, at.weekday()
        if self.begins < self.ends:
            return self.begins <= minute < self.ends and day in self.days
        if minute >= self.begins:
            return day in self.days
        return minute < self.ends and (day - 1) % 7 in self.days


ALWAYS: Final = When()


def read_hours(text: str) -> tuple[int, int]:
    """Minutes of the day at which ``05:00-11:30`` begins and ends. Raises ``ValueError``."""
    said = _HOURS.fullmatch(text.strip())
    if said is None:
        raise ValueError("expected two times of the day, such as 05:00-11:30")
    begins, ends = int(said[1]) * 60 + int(said[2]), int(said[3]) * 60 + int(said[4])
    if begins >= _DAY or ends > _DAY or int(said[2]) > 59 or int(said[4]) > 59:
        raise ValueError("a day has the times 00:00 to 24:00")
    if begins == ends:
        raise ValueError("they begin and end at the same time")
    return begins, ends


def find_zone(name: str) -> tzinfo:
    """The time zone of an IANA name. ``UTC`` is known even where the system has no data about time zones. Raises
    ``ValueError``."""
    if name.upper() in {"UTC", "Z"}:
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"there is no time zone {name[:100]!r} on this system") from None
