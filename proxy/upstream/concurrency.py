"""How many attempts a target bears at a time, learned from what it refuses; and the line of those who wait.

The limit rises by one for each limit's worth of good answers and is cut to 0.7 of itself when the target says, or
shows by silence, that it is too much. As in TCP it comes back fast after a spell of cuts, by one with each good
answer, up to where the first cut of the spell had brought it; else a target whose calls take ten seconds would need
ten minutes after ten seconds of 429s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

from proxy.clock import Deadline


class LimitRules(NamedTuple):
    """Of the adaptive limit of concurrency."""

    start: int = 64
    floor: int = 2
    most: int = 2000
    """Where the target has no bound of its own."""
    cut: float = 0.7
    cut_every_s: float = 1.0


class Limit:
    """One for each target."""

    # Mutable state: `most` is the limit, written by grow, cut and bound; `_credit` counts good answers since it rose;
    # up to `_fast_until` it rises with each; `_risen` says whether it rose since the last cut.
    __slots__ = ("_cap", "_credit", "_cut_at", "_fast_until", "_risen", "_rules", "cuts", "most")

    def __init__(self, rules: LimitRules, cap: int) -> None:
        """``cap``: 0 for none but that of the rules."""
        self._rules = rules
        self._cap = cap or rules.most
        self._credit = 0
        self._cut_at = -rules.cut_every_s
        self._fast_until = 0
        self._risen = True
        self.cuts = 0
        self.most = min(rules.start, self._cap)

    @property
    def cap(self) -> int:
        return self._cap

    def bound(self, cap: int) -> None:
        """Another cap, 0 for none; what is under way beyond it ends by itself."""
        before, self._cap = self._cap, cap or self._rules.most
        if self._cap > before:
            self._fast_until = max(self._fast_until, min(self._rules.start, self._cap))
        self.most = min(self.most, self._cap)

    def grow(self, in_flight: int) -> None:
        """A good answer began while ``in_flight`` were under way. A limit that is not even used half says nothing
        about what the target bears, and stays."""
        most = self.most
        if in_flight * 2 < most or most >= self._cap:
            return
        self._credit += 1
        if most < self._fast_until or self._credit >= most:
            self.most = most + 1
            self._credit = 0
            self._risen = True

    def cut(self, now: float) -> None:
        """It was too much."""
        rules = self._rules
        if now - self._cut_at < rules.cut_every_s:
            return
        self._cut_at = now
        self._credit = 0
        self.cuts += 1
        before, self.most = self.most, max(min(rules.floor, self._cap), int(self.most * rules.cut))
        if self._risen:
            # Cuts in succession are one spell. A cut on the way back shows that the way was too fast.
            again = before <= self._fast_until
            self._fast_until = max(self.most, int(self._fast_until * rules.cut)) if again else self.most
            self._risen = False


class Waiter:
    """One who waits for a place."""

    __slots__ = ("deadline", "future", "last", "scope")

    def __init__(self, scope: bytes, *, last: bool) -> None:
        self.scope = scope
        self.last = last
        """No other target is left to this one."""
        self.future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.deadline: Deadline | None = None


class FairLine:
    """Those who wait at one target: a line for each scope, and the scopes take turns."""

    # Mutable state: `_lines` maps scope -> its waiters, oldest first, in the order of the scopes' turns; `size` is
    # their number. Written by join, take, leave and clear. An empty line is not kept.
    __slots__ = ("_lines", "size")

    def __init__(self) -> None:
        self._lines: dict[bytes, dict[Waiter, None]] = {}
        self.size = 0

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for line in self._lines.values() for waiter in line)

    def join(self, waiter: Waiter) -> None:
        self._lines.setdefault(waiter.scope, {})[waiter] = None
        self.size += 1

    def leave(self, waiter: Waiter) -> bool:
        """Whether it was still in line."""
        line = self._lines.get(waiter.scope)
        if line is None or line.pop(waiter, self) is not None:
            return False
        self.size -= 1
        if not line:
            del self._lines[waiter.scope]
        return True

    def take(self) -> Waiter | None:
        """The next one, whose scope then goes to the end; those who were cancelled meanwhile are passed over."""
        while self._lines:
            scope = next(iter(self._lines))
            line = self._lines.pop(scope)
            waiter = next(iter(line))
            del line[waiter]
            self.size -= 1
            if line:
                self._lines[scope] = line
            if not waiter.future.done():
                return waiter
        return None

    def make_room(self, scope: bytes) -> Waiter | None:
        """Take the youngest of the longest line out, if that line is longer than the one of ``scope`` would become;
        else ``None``: ``scope`` has its share of a full line already. Called when the line is full, so its cost is
        bounded by that."""
        longest = max(self._lines.values(), key=len, default=None)
        if longest is None or len(longest) <= len(self._lines.get(scope, ())) + 1:
            return None
        waiter = next(reversed(longest))
        self.leave(waiter)
        return waiter
