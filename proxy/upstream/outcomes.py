"""What became of attempts at a target: their kinds, and how many of each there were in the last seconds."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Outcome(IntEnum):
    """How one attempt ended, as far as it tells something about its target."""

    OK = 0
    FAILED = 1
    """The gateway or the server failed: 5xx, a broken answer, no connection, an error within the stream."""
    TIMED_OUT = 2
    """Nothing came in time; counts as a failure, and as a sign of too much at once."""
    BUSY = 3
    """503: a failure, and a sign of too much at once."""
    THROTTLED = 4
    """429 and 529: too much at once, or too much for a key; no failure."""
    NEUTRAL = 5
    """Says nothing about the target: other 4xx, the caller left, the fault was on our side."""

    @property
    def word(self) -> str:
        """For labels and people."""
        return self.name.lower()


WORDS: Final = tuple(outcome.word for outcome in Outcome)

SHORT_S: Final = 10
LONG_S: Final = 30


class Recent:
    """Good answers and failures of the last 10 and 30 seconds, in a ring of buckets of one second each.

    Noting and asking take constant time; a bucket is emptied when its second comes round again.
    """

    # Mutable state: the ring's buckets with the sums over them; `_second` is the second of the newest bucket. All of
    # it is written by `turn`, `note_good`, `note_failure` and `clear`.
    __slots__ = ("_failed", "_good", "_second", "failed_long", "failed_short", "good_long", "good_short")

    def __init__(self, now: float) -> None:
        self._second = int(now)
        self.clear()

    def clear(self) -> None:
        self._good = [0] * LONG_S
        self._failed = [0] * LONG_S
        self.good_short = self.good_long = self.failed_short = self.failed_long = 0

    @property
    def is_empty(self) -> bool:
        """Of what was noted up to the last turn."""
        return not (self.good_long or self.failed_long)

    def note_good(self, now: float) -> None:
        if int(now) > self._second:
            self.turn(now)
        self._good[self._second % LONG_S] += 1
        self.good_short += 1
        self.good_long += 1

    def note_failure(self, now: float) -> None:
        if int(now) > self._second:
            self.turn(now)
        self._failed[self._second % LONG_S] += 1
        self.failed_short += 1
        self.failed_long += 1

    def turn(self, now: float) -> None:
        """Forget what is too old at ``now``."""
        second = int(now)
        if second - self._second >= LONG_S:
            self._second = second
            if not self.is_empty:
                self.clear()
            return
        while self._second < second:
            self._second += 1
            leaving, short = self._second % LONG_S, (self._second - SHORT_S) % LONG_S
            self.good_short -= self._good[short]
            self.failed_short -= self._failed[short]
            self.good_long -= self._good[leaving]
            self.failed_long -= self._failed[leaving]
            self._good[leaving] = self._failed[leaving] = 0
