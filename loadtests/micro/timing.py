"""How much longer one call takes than another, on a machine that does other things as well.

Both are run in short turns, and each turn gives a ratio: a neighbour or a change of the clock's rate meets both. The
median of the ratios counts. Nothing here is published in seconds.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from statistics import quantiles
from time import thread_time
from typing import NamedTuple

_TURNS = 21

Call = Callable[[], object]


class Ratio(NamedTuple):
    """Cost of a call ÷ cost of another, over the turns: the median, and the quartiles around it."""

    median: float
    low: float
    high: float


def compare(call: Call, other: Call, turn_s: float = 0.005) -> Ratio:
    """Run both in turns of about ``turn_s`` seconds, without garbage collection."""
    counts = _calibrate(call, turn_s), _calibrate(other, turn_s)
    ratios = []
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(_TURNS):
            if turn % 2:
                theirs, ours = _run(other, counts[1]), _run(call, counts[0])
            else:
                ours, theirs = _run(call, counts[0]), _run(other, counts[1])
            ratios.append(ours / theirs)
    finally:
        if collects:
            gc.enable()
    low, median, high = quantiles(ratios, n=4)
    return Ratio(median, low, high)


def _calibrate(call: Call, turn_s: float) -> int:
    """How often a turn calls; also warms up what is called."""
    count = 1
    while (took_s := _run(call, count) * count) < turn_s / 4 and count < 1 << 20:
        count *= 4
    return max(1, int(count * turn_s / max(took_s, 1e-9)))


def _run(call: Call, count: int) -> float:
    """Seconds of this thread for one call: while others have the core, the clock stands still."""
    numbers = range(count)
    began = thread_time()
    for _ in numbers:
        call()
    return (thread_time() - began) / count
