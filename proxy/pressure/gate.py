"""Refuses work while there is more of it than the process can do, so that what is let in is done in time.

On one event loop the queue is invisible: it is the sockets that became readable during the last turn of the loop. So
the delay that a request meets is the length of a turn, which `turns` measures, and the gate holds it at a target.

**When** is CoDel's rule (RFC 8289): not a long turn, which is a burst, but a delay that never fell below a bound for
a whole interval.

**Whom**, by level:

- ``OPEN``: nobody.
- ``LEADS``: whoever would begin a flight while no slot is free. It is asked after the look-up, so that hits and
  followers, which cost next to nothing, are spared.
- ``HEADS``: whoever comes while no slot is free, or beyond the quota. It is asked at the head, before a body is read.

Where most requests begin flights of their own there is nobody to spare, and it begins with ``HEADS``. Of a herd of
ten thousand that asks the same thing at once one begins a flight, and nobody is refused.

**Refusing costs time as well**, and at some rate all of it. Once a fifth of the time went into refusals, the
connection of whoever is refused next is not read until the moment it was told to come back: who heeds that does not
notice, and who does not costs nothing meanwhile.

**How many**: a slot is a flight in the air, the quota is requests let in per interval. Both grow while the delay is
on target and something was refused for want of them (doubling until they were too many once), and shrink while it is
not. Slots make long streams safe: their cost comes after they were let in, so that a share of refusals alone would
react too late. The quota does the same for hits and followers, which take no slot. Slots are not cut while more
flights are in the air than there are slots: those end by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from math import inf
from typing import Final, NamedTuple

from proxy.errors import Kind, ProxyError

LEAST_SLOTS: Final = 16
"""Flights that are let in however late the loop is: without any work there is nothing to learn from."""
LEAST_QUOTA: Final = 16.0
_CUT: Final = 0.85
_GROWTH: Final = 1.2
_LONG_TURNS: Final = 2
"""Turns in succession that last too long and begin the refusing; one is a burst, or a neighbour who took the core."""
_TURNS: Final = 5
"""Turns an interval has at least while refusing goes on: the least of fewer says little."""
_PATIENCE: Final = 2
"""Intervals over target before ``HEADS`` follows ``LEADS``."""
_CALM: Final = 10
"""Intervals on target without a refusal before the gate opens again."""
_REFUSING: Final = 0.2
"""Share of the time that refusals may take before connections are held."""
_MOST_REFUSAL_S: Final = 0.0003
"""What one refusal counts at most: more is not its doing."""
_SPREAD: Final = 16


class Level(IntEnum):
    """How much is refused; see the table above."""

    OPEN = 0
    LEADS = 1
    HEADS = 2


class GateLimits(NamedTuple):
    """Seconds."""

    after_s: float = 0.1
    """Standing delay at which refusing begins; 0 never does."""
    target_s: float = 0.005
    """Delay that is aimed at from then on."""
    interval_s: float = 0.1
    """How long a delay has to stand."""
    retry_after_s: float = 1.0
    """What the refused are told, up to twice as long to spread them."""


class Gate:
    """One for the process. Synchronous; time is monotonic seconds and is handed in."""

    # Mutable state: `observe` writes level, slots and quota at the end of an interval, admit in the middle of a turn
    # that lasts too long; admit and refuse_lead write the tokens and the counts of the interval; `closed` is written
    # by whoever watches memory.
    __slots__ = (
        "_admitted",
        "_began_at",
        "_calm",
        "_errors",
        "_in_air",
        "_least_s",
        "_limits",
        "_next_error",
        "_over",
        "_refused_at",
        "_refused_quota",
        "_refused_slots",
        "_refusing_s",
        "_rising",
        "_started",
        "_started_before",
        "_tokens",
        "_tokens_at",
        "_turn_at",
        "_turn_s",
        "_turns",
        "closed",
        "delay_s",
        "held",
        "level",
        "quota",
        "refused",
        "sheds",
        "slots",
    )

    def __init__(
        self,
        in_air: Callable[[], int],
        started: Callable[[], int],
        limits: GateLimits = GateLimits(),  # noqa: B008
    ) -> None:
        """``in_air`` tells how many flights have not ended, ``started`` how many were ever begun."""
        self._in_air = in_air
        self._started = started
        self._limits = limits
        self.level = Level.OPEN
        self.closed = False
        """Nobody is let in at all: memory is short."""
        self.delay_s = 0.0
        """The least delay of the last interval."""
        self.slots: float = inf
        self.quota: float = inf
        """Requests per interval."""
        self.sheds = 0
        """How often refusing began."""
        self.held = 0
        self.refused: dict[str, int] = {"lead": 0, "slots": 0, "quota": 0, "memory": 0}
        self._errors = tuple(_overloaded(limits.retry_after_s * (1 + n / _SPREAD)) for n in range(_SPREAD))
        self._next_error = 0
        # Of the turn under way, as far as it is known when it began.
        self._turn_at = 0.0
        self._turn_s = 0.0
        # Of the interval.
        self._began_at = 0.0
        self._least_s = inf
        self._turns = 0
        self._admitted = 0
        self._started_before = 0
        self._refused_slots = 0
        self._refused_quota = 0
        self._refusing_s = 0.0
        self._refused_at = 0.0
        # Of the time since refusing began.
        self._over = 0
        self._calm = 0
        self._rising = False
        self._tokens = 0.0
        self._tokens_at = 0.0

    # -- the two questions -----------------------------------------------------------------------------------

    def admit(self, now: float) -> ProxyError | None:
        """The head of a request is there, its body is not looked at yet. The error is shared by many: raise it with
        ``with_traceback(None)``, or answer with bytes that were made of it before; and ask `hold_s`."""
        if self.level < Level.HEADS and not self.closed:
            self._admitted += 1
            if self._turn_s and now - self._turn_at > self._limits.after_s:
                self._begin(now - self._turn_at)  # the second long turn in succession: its end is not waited for
            return None
        if self._refused_at:  # what came between two requests is the cost of the former
            self._refusing_s += min(now - self._refused_at, _MOST_REFUSAL_S)
            self._refused_at = 0.0
        why = self._find_reason(now)
        if why:
            self.refused[why] += 1
            self._refused_at = now
            return self._pick()
        self._admitted += 1
        return None

    def hold_s(self, refused: ProxyError, now: float) -> float:
        """For how long the connection of somebody who was just refused is not to be read; 0 for not at all."""
        if self._refusing_s <= _REFUSING * (now - self._began_at + self._limits.interval_s):
            return 0.0
        self.held += 1
        return refused.retry_after_s or 0.0

    @property
    def has_slot(self) -> bool:
        """Whether one more flight may be begun."""
        return self.level is Level.OPEN or self._in_air() < self.slots

    def refuse_lead(self) -> ProxyError:
        """A request found neither an answer nor a flight nor a slot."""
        self._refused_slots += 1
        self.refused["lead"] += 1
        return self._pick()

    def _find_reason(self, now: float) -> str:
        if self.closed:
            return "memory"
        if self._in_air() >= self.slots:
            self._refused_slots += 1
            return "slots"
        quota = self.quota
        if quota == inf:
            return ""
        accrued = self._tokens + quota * (now - self._tokens_at) / self._limits.interval_s
        # What was not used within half an interval is lost, so that a lull is not followed by a flood.
        self._tokens = min(accrued, max(1.0, quota / 2))
        self._tokens_at = now
        if self._tokens < 1.0:
            self._refused_quota += 1
            return "quota"
        self._tokens -= 1.0
        return ""

    def _pick(self) -> ProxyError:
        self._next_error = (self._next_error + 1) % _SPREAD
        return self._errors[self._next_error]

    # -- the control -----------------------------------------------------------------------------------------

    def observe(self, now: float, turn_s: float) -> None:
        """The loop went round in ``turn_s``."""
        after_s = self._limits.after_s
        self._turn_at = now
        self._turn_s = turn_s if after_s and turn_s > after_s and self.level is Level.OPEN else 0.0
        self._turns += 1
        self._least_s = min(self._least_s, turn_s)
        opened = self.level is Level.OPEN
        if now - self._began_at < self._limits.interval_s or self._turns < (_LONG_TURNS if opened else _TURNS):
            return
        if not opened:
            self._judge(now)
        elif after_s and self._least_s > after_s:
            self._begin(self._least_s)
        self._start_interval(now)

    def _start_interval(self, now: float) -> None:
        self.delay_s = self._least_s
        self._began_at = now
        self._least_s = inf
        self._turns = self._admitted = self._refused_slots = self._refused_quota = 0
        self._started_before = self._started()
        self._refusing_s = 0.0

    def _begin(self, delay_s: float) -> None:
        self.level = Level.HEADS if self._most_lead() else Level.LEADS
        self.sheds += 1
        self._turn_s = 0.0
        # A delay is as long as what causes it is much; less at once would leave the loop without work for a moment.
        self.slots = max(LEAST_SLOTS, self._in_air() * min(_CUT, 4 * self._limits.target_s / delay_s))
        self._rising = True
        self._over = self._calm = 0

    def _most_lead(self) -> bool:
        """Whether most of those who were let in during the interval began a flight."""
        return self._started() - self._started_before > self._admitted / 2

    def _judge(self, now: float) -> None:
        """The end of an interval in which somebody may have been refused."""
        if self._least_s <= self._limits.target_s:
            self._over = 0
            self._loosen()
            return
        self._calm = 0
        if self._in_air() > self.slots + 1:
            return  # what is in the air is too much, and it ends by itself
        self._over += 1
        self._rising = False
        if self._over >= _PATIENCE:
            self.level = Level.HEADS
        self.slots = max(LEAST_SLOTS, self.slots * _CUT)
        if self.level is Level.HEADS and self._admitted and not self._most_lead():
            if self.quota == inf:
                self._tokens, self._tokens_at = 0.0, now
            lasted = max(1.0, (now - self._began_at) / self._limits.interval_s)
            self.quota = max(LEAST_QUOTA, min(self.quota, self._admitted / lasted + 1.0) * _CUT)

    def _loosen(self) -> None:
        growth = 2.0 if self._rising else _GROWTH
        if self._refused_slots:
            self.slots = self.slots * growth + 1.0
        if self._refused_quota:
            self.quota = self.quota * growth + 1.0
        if self._refused_slots or self._refused_quota:
            self._calm = 0
            return
        self._calm += 1
        if self._calm >= _CALM:
            self.level = Level.OPEN
            self.slots = self.quota = inf

    def describe(self) -> dict[str, object]:
        """For the admin port."""
        return {
            "level": self.level.name,
            "closed": self.closed,
            "delay_ms": round(self.delay_s * 1e3, 3),
            "slots": None if self.slots == inf else int(self.slots),
            "quota": None if self.quota == inf else int(self.quota),
            "refused": dict(self.refused),
        }


def _overloaded(retry_after_s: float) -> ProxyError:
    message = "The proxy has more requests than it can serve; try again."
    return ProxyError(Kind.OVERLOADED, message, why="shed", retry_after_s=retry_after_s)
