"""What a load is told and what it tells: plain data, so that it crosses from one process to another."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import accumulate, count, cycle
from pathlib import Path
from typing import Any

from proxy.cli.bench.histogram import Histogram
from proxy.cli.bench.load import Outcome, Target, render_request

CREDENTIAL = "sk-load"
_DRAWS = 500_000
_FILL = "The quick brown fox jumps over the lazy dog while seven wizards quietly judge the box of black quartz. "


@dataclass(frozen=True, slots=True)
class Spec:
    """One load."""

    mode: str
    """``closed``, ``open``, ``marked``, ``pressing``, ``followers`` or ``stalled``."""
    port: int
    headers: tuple[str, ...] = ()
    connections: int = 64
    requests: int = 20_000
    seconds: float = 30.0
    """Longest time of a closed loop, or how long a stalled reader stays."""
    rate: float = 0.0
    """Requests a second of an open loop, evenly spaced; with ``keys`` drawn as a Poisson process."""
    prompt_bytes: int = 832
    """Size of the whole body."""
    stream: bool = False
    first_number: int = 0
    """Number of the first distinct question; runs on the same upstream must not repeat one another's."""
    distinct: int = 0
    """How many different questions there are; 0: each is a new one."""
    arrivals: tuple[tuple[float, int], ...] = ()
    """An open loop's own schedule: seconds and the number of the question."""
    skip_s: float = 0.0
    """Of a pressing load: the time at its beginning that does not count."""
    heeds: bool = False
    """Its callers come back when they were told to, and not before."""
    tokens: str = ""
    """A file of credentials, one a line, of which each request presents one, drawn by `tokens_exponent`."""
    tokens_exponent: float = 1.0
    """Zipf's: the n-th of them is presented 1 / n ** exponent as often as the first."""
    mix: float = 0.0
    """Share of the requests of a closed loop that repeat one of the last few questions."""
    models: int = 0
    """How many models are asked for in turn, ``model-0000`` and so on; 0: all requests name ``gpt-4o-mini``."""

    good_s: float = 1.0
    """An answer that is whole so long after it should have been asked for is in time."""

    def dump(self) -> str:
        return json.dumps(asdict(self))


def load_spec(text: str) -> Spec:
    data = json.loads(text)
    data["headers"] = tuple(data["headers"])
    data["arrivals"] = tuple((at, number) for at, number in data["arrivals"])
    return Spec(**data)


def make_body(number: int, size: int, *, stream: bool, model: str = "gpt-4o-mini") -> bytes:
    """A chat request of exactly ``size`` bytes (or the smallest there is) in which only ``number`` differs."""
    system = {"role": "system", "content": "You are terse and exact."}
    tail: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}

    def render(text: str) -> bytes:
        messages = [system, {"role": "user", "content": f"{number:012d} {text}"}]
        body = {"model": model, "messages": messages, "temperature": 0.7, "max_tokens": 256, **tail}
        return json.dumps(body, separators=(",", ":")).encode()

    missing = max(0, size - len(render("")))
    return render((_FILL * (missing // len(_FILL) + 1))[:missing])


def make_renderer(spec: Spec) -> Callable[[int], bytes]:
    """From a question's number to the bytes of its request, at the cost of one join."""
    target = Target("127.0.0.1", spec.port)
    model = make_model(0) if spec.models else "gpt-4o-mini"
    body = make_body(0, spec.prompt_bytes, stream=spec.stream, model=model)
    lines = (f"authorization: Bearer {CREDENTIAL}", "accept: */*", "user-agent: loadtests", *spec.headers)
    request = render_request(target, "/v1/chat/completions", body, lines)
    before, _, after = request.partition(b"%012d" % 0)
    if spec.models:
        before, _, between = before.partition(b'"%b"' % make_model(0).encode())
        each = b'%b"model-%04d"%b%012d%b'
        return lambda number: each % (before, number % spec.models, between, number, after)
    return lambda number: b"%b%012d%b" % (before, number, after)


def make_model(number: int) -> str:
    """The name of one of many models."""
    return f"model-{number:04d}"


def make_source(spec: Spec) -> Callable[[], bytes]:
    """The requests of a closed loop, one call for each."""
    render = make_renderer(spec)
    numbers = count(spec.first_number)
    if spec.tokens:
        draw_token = make_drawer(spec)
        return lambda: render(next(numbers)).replace(CREDENTIAL.encode(), draw_token(), 1)
    if spec.distinct:
        kept = [render(spec.first_number + number) for number in range(spec.distinct)]
        return lambda: kept[next(numbers) % spec.distinct]
    if spec.mix:
        draw = random.Random(spec.first_number)

        def mixed() -> bytes:
            number = next(numbers)
            return render(max(spec.first_number, number - draw.randrange(8)) if draw.random() < spec.mix else number)

        return mixed
    return lambda: render(next(numbers))


def make_drawer(spec: Spec) -> Callable[[], bytes]:
    """Credentials by Zipf's law, the same in each run; drawn ahead, so that a draw costs nothing."""
    tokens = Path(spec.tokens).read_bytes().split()
    weights = accumulate(1 / number**spec.tokens_exponent for number in range(1, len(tokens) + 1))
    drawn = random.Random(spec.first_number).choices(tokens, cum_weights=list(weights), k=min(spec.requests, _DRAWS))
    return cycle(drawn).__next__


@dataclass(slots=True)
class Result:
    """What a load found, in the units of the report. Missing figures are absent from ``figures``."""

    figures: dict[str, float] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    latency: list[tuple[float, int]] = field(default_factory=list)
    """Buckets in microseconds, for plots."""


def summarize(outcome: Outcome, good_s: float = 1.0) -> Result:
    figures: dict[str, float] = {
        "asked": outcome.asked,
        "answered": outcome.answered,
        "failed": outcome.failed,
        "seconds": outcome.seconds,
        "requests_per_s": outcome.answered / outcome.seconds if outcome.seconds else 0.0,
        "events": outcome.events,
        "shared": outcome.shared,
        "body_bytes": outcome.body_bytes,
        "in_time": sum(count for value, count in outcome.latency.buckets() if value <= good_s * 1e6),
    }
    for name, histogram in (
        ("latency", outcome.latency),
        ("refused", outcome.refused),
        ("first_event", outcome.first),
        ("gap", outcome.gaps),
    ):
        figures.update(quantiles(name, histogram))
    return Result(figures, dict(outcome.failures), outcome.latency.buckets())


def quantiles(name: str, histogram: Histogram) -> dict[str, float]:
    """``latency_p99_ms`` and so on; nothing for an empty histogram."""
    if not histogram.count:
        return {}
    shares = (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
    figures = {f"{name}_{label}_ms": histogram.quantile(share) / 1000 for label, share in shares}
    figures[f"{name}_max_ms"] = histogram.maximum / 1000
    return figures
