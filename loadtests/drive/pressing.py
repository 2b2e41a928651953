"""The open loop of overload: it may leave out its beginning, and its callers may heed what they are told.

A caller that was told when to come back asks nothing before. A question for which no caller is free is then not asked
but counted: it waits at home, where nobody has to be told about it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from time import perf_counter

from loadtests.drive.spec import Result, Spec, make_renderer, summarize
from proxy.cli.bench.load import Line, Load, Outcome, Target

_TICK_S = 0.001
_WAIT = re.compile(rb"\r\nretry-after-ms: *(\d+)", re.IGNORECASE)


class Pressing(Load):
    """Asks at given times, whatever becomes of it."""

    # The mutable state: who rests for how long, what is not counted because it came too early, what was not asked.
    def __init__(self, target: Target, connections: int, *, heeds: bool) -> None:
        super().__init__(target, connections)
        self._heeds = heeds
        self._rests: dict[Line, float] = {}
        self._counted_from = 0.0
        self._uncounted = Outcome()
        self.unasked = 0

    async def press(self, arrivals: Sequence[tuple[float, bytes]], skip_s: float, wait_s: float) -> Outcome:
        """As `opened`; what was meant to be asked in the first ``skip_s`` seconds is not in the outcome."""
        coming = deque(arrivals)
        waiting: deque[tuple[bytes, float]] = deque()
        start = perf_counter() + _TICK_S
        self._counted_from = start + skip_s
        self._pull = lambda: waiting.popleft() if waiting else None
        self._exhausted = lambda: not coming and not waiting

        def beat() -> None:
            since = perf_counter() - start
            while coming and coming[0][0] <= since:
                at, request = coming.popleft()
                waiting.append((request, start + at))
                if self._idle:
                    self._free(self._idle.pop())
                elif self._heeds:
                    waiting.pop()
                    self.unasked += 1
            if coming:
                self._loop.call_later(_TICK_S, beat)

        beat()
        outcome = await self._run((arrivals[-1][0] if arrivals else 0.0) + wait_s)
        for _ in range(len(waiting) + len(coming) + self._busy):
            outcome.fail("unanswered")
        coming.clear()
        return outcome

    def answered(self, line: Line) -> None:
        """The answer is whole."""
        told = _WAIT.search(line.answer.head) if self._heeds and line.answer.status in (429, 503) else None
        if told is not None:
            self._rests[line] = int(told[1]) / 1000
        if line.intended_at >= self._counted_from:
            super().answered(line)
            return
        counted, self.outcome = self.outcome, self._uncounted
        try:
            super().answered(line)
        finally:
            self.outcome = counted

    def _free(self, line: Line) -> None:
        rest_s = self._rests.pop(line, 0.0)
        if rest_s:
            self._loop.call_later(rest_s, self._rested, line)
            self._check()
        else:
            super()._free(line)

    def _rested(self, line: Line) -> None:
        if line in self._lines and not line.busy:
            super()._free(line)


async def run_pressing(spec: Spec) -> Result:
    """``rate`` questions a second for ``seconds``, the first ``skip_s`` of them not counted."""
    load = Pressing(Target("127.0.0.1", spec.port), spec.connections, heeds=spec.heeds)
    await load.open()
    render = make_renderer(spec)
    arrivals = [(each / spec.rate, render(spec.first_number + each)) for each in range(spec.requests)]
    try:
        result = summarize(await load.press(arrivals, spec.skip_s, 10.0), spec.good_s)
    finally:
        await load.close()
    result.figures["unasked"] = load.unasked
    return result
