"""What a demonstration showed: calls and what they should be, bodies and what they should be, times, money. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import NamedTuple

from proxy.cli.demo.caller import Answer
from proxy.cli.demo.play import Scene
from proxy.cli.demo.script import Question
from proxy.telemetry.metrics import Count, Family, Metrics

_SHOWN_BYTES = 24


class Row(NamedTuple):
    """One part's calls."""

    name: str
    requests: int
    calls: int
    expected: int


class Savings(NamedTuple):
    """What the proxy's own metrics say."""

    tokens_paid: int
    tokens_saved: int
    usd_paid: float
    usd_saved: float


class Times(NamedTuple):
    """Seconds to the first byte, in parts where the upstream was as fast as in the direct calls."""

    direct: tuple[float, ...]
    led: tuple[float, ...]
    """Through the proxy, of callers whose request made an upstream call."""
    added: tuple[float, ...]
    """Of the same callers, minus the direct call with their question."""
    added_calmly: tuple[float, ...]
    """The same, of callers who did not come in a crowd."""
    joined: tuple[float, ...]
    """Through the proxy, of callers who joined another one's call."""


class Findings(NamedTuple):
    rows: tuple[Row, ...]
    compared: int
    """Bodies that were compared with a direct call's."""
    equal: int
    compared_bytes: int
    differences: tuple[str, ...]
    """One for each request whose answer was not that of a direct call, and for each direct call that failed."""
    times: Times
    savings: Savings

    @property
    def total(self) -> Row:
        rows = self.rows
        return Row(
            "total",
            sum(row.requests for row in rows),
            sum(row.calls for row in rows),
            sum(row.expected for row in rows),
        )

    @property
    def passed(self) -> bool:
        """Whether every part cost the calls it must and every body was the direct call's."""
        return self.bodies_passed and self.calls_passed

    @property
    def calls_passed(self) -> bool:
        return all(row.calls == row.expected for row in self.rows)

    @property
    def bodies_passed(self) -> bool:
        return not self.differences and self.equal == self.compared


def evaluate(direct: Mapping[Question, Answer], scenes: Sequence[Scene], metrics: Metrics) -> Findings:
    """Compare and add up. ``metrics`` are the proxy's, after its last request."""
    rows = [Row(scene.part.name, len(scene.outcomes), scene.calls, scene.part.calls) for scene in scenes]
    everything = [(scene, outcome) for scene in scenes for outcome in scene.outcomes]
    answered = [
        (number, scene, outcome) for number, (scene, outcome) in enumerate(everything, 1) if not outcome.gave_up
    ]
    failures = [
        f"direct call for {_name(question)}: {problem}"
        for question, answer in direct.items()
        if (problem := answer.error or ("" if answer.status == 200 else f"status {answer.status}"))
    ]
    differences = [
        f"request {number} ({scene.part.name}; {_name(outcome.ask.question)}): {difference}"
        for number, scene, outcome in answered
        if (difference := compare(outcome.answer, direct[outcome.ask.question]))
    ]
    return Findings(
        tuple(rows),
        len(answered),
        len(answered) - len(differences),
        sum(len(outcome.answer.body) for _, _, outcome in answered),
        (*failures, *differences),
        _measure(direct, scenes),
        _read_savings(metrics),
    )


def _name(question: Question) -> str:
    how = ", streamed" if question.streams else ""
    return f"{question.model}{how}, {shorten(question.text, 24, placeholder=' ...')!r}"


def compare(answer: Answer, direct: Answer) -> str:
    """How an answer differs from the direct call's; empty if it does not."""
    if answer.error:
        return answer.error
    if answer.status != direct.status:
        return f"status {answer.status} instead of {direct.status}"
    ours, theirs = answer.body, direct.body
    if ours == theirs:
        return ""
    at = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), -1)
    if at < 0:
        return f"{len(ours):,} bytes instead of {len(theirs):,}"
    shown, expected = ours[at : at + _SHOWN_BYTES], theirs[at : at + _SHOWN_BYTES]
    return f"from byte {at:,} of {len(theirs):,} on {shown!r} instead of {expected!r}"


def _measure(direct: Mapping[Question, Answer], scenes: Sequence[Scene]) -> Times:
    led, added, calm, joined = [], [], [], []
    # Where the upstream was slower than in the direct calls, neither times nor differences could be compared.
    for outcome in [outcome for scene in scenes if not scene.part.latency_ms for outcome in scene.outcomes]:
        answer = outcome.answer
        if not answer.first_byte_at:
            continue
        if answer.joined:
            joined.append(answer.first_byte_s)
            continue
        led.append(answer.first_byte_s)
        added.append(answer.first_byte_s - direct[outcome.ask.question].first_byte_s)
        if outcome.ask.wait_s:
            calm.append(added[-1])
    return Times(
        tuple(answer.first_byte_s for answer in direct.values() if answer.first_byte_at),
        tuple(led),
        tuple(added),
        tuple(calm),
        tuple(joined),
    )


def find_quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below ``share`` of all (nearest rank); NaN if there is none."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else math.nan


def _read_savings(metrics: Metrics) -> Savings:
    return Savings(
        int(_sum(metrics.tokens_total)),
        int(_sum(metrics.tokens_saved_total)),
        _sum(metrics.cost_usd_total),
        _sum(metrics.saved_usd_total),
    )


def _sum(family: Family[Count]) -> float:
    return float(sum(value for _, value in family.rows()))
