"""Traces with repeated questions, and the fewest upstream calls with which they could have been answered.

The oracle knows every arrival and how long an answer takes. A question that is asked while the same question is on
its way needs no call; one that is asked after the answer has ended needs one, because answers are not kept.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

Arrivals = Sequence[tuple[float, int]]
"""Seconds since the start, ascending, and the number of the question."""


class Shape(NamedTuple):
    """What a trace is like; published with every figure, as one question repeated makes any sharing look perfect."""

    requests: int
    distinct: int
    exponent: float
    most_of_one: int
    """Requests for the most frequent question."""
    most_at_once: int
    """Requests for one question within the time of one answer, at most."""


def make_zipf_trace(
    *, requests: int, questions: int, exponent: float, rate: float, seed: int, first_number: int = 0
) -> list[tuple[float, int]]:
    """A Poisson process of ``rate`` requests a second in which question k has a weight of 1 / k**exponent."""
    draw = random.Random(seed)
    weights = list(accumulate(1 / (place + 1) ** exponent for place in range(questions)))
    names = list(range(questions))
    draw.shuffle(names)
    at = 0.0
    trace = []
    for _ in range(requests):
        at += draw.expovariate(rate)
        trace.append((at, first_number + names[bisect_left(weights, draw.random() * weights[-1])]))
    return trace


def fewest_calls(trace: Arrivals, answer_s: float, group: int = 0) -> int:
    """Upstream calls of a perfect proxy; ``group`` bounds the callers of one call, 0 for no bound."""
    until: dict[int, float] = {}
    members: dict[int, int] = {}
    calls = 0
    for at, question in trace:
        if at >= until.get(question, -1.0) or (group and members[question] >= group):
            calls += 1
            until[question] = at + answer_s
            members[question] = 0
        members[question] += 1
    return calls


def describe(trace: Arrivals, answer_s: float, exponent: float) -> Shape:
    times: dict[int, list[float]] = {}
    for at, question in trace:
        times.setdefault(question, []).append(at)
    at_once = 0
    for moments in times.values():
        first = 0
        for place, at in enumerate(moments):
            while at - moments[first] >= answer_s:
                first += 1
            at_once = max(at_once, place - first + 1)
    most = max((len(moments) for moments in times.values()), default=0)
    return Shape(len(trace), len(times), exponent, most, at_once)
