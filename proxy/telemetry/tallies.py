"""The series that one kind of request touches, found once and then added to.

Looking a child up by its label values costs more than counting does. A kind of request is a provider, a route and a
model label, all of them from closed sets (`Metrics.model_label`), so the tallies are bounded by the series.
"""

from __future__ import annotations

from proxy.telemetry.metrics import Count, Histogram, Metrics


class Tally:
    """What is counted for every exchange of one (provider, route, model)."""

    # Mutable state: the children are made when they are first needed, so that no series shows a number that nobody
    # counted.
    __slots__ = (
        "_first_token",
        "_labels",
        "_metrics",
        "_requests",
        "_saved_input",
        "_saved_output",
        "_saved_usd",
        "duration",
        "overhead",
    )

    def __init__(self, metrics: Metrics, provider: str, route: str, model: str) -> None:
        self._metrics = metrics
        self._labels = (provider, route, model)
        self._requests: dict[tuple[int, str], Count] = {}
        self.duration: Histogram = metrics.request_duration_seconds.at(provider, route)
        self.overhead: Histogram = metrics.overhead_seconds.at(route)
        self._first_token: Histogram | None = None
        self._saved_input: Count | None = None

    def count(self, status: int, outcome: str) -> None:
        child = self._requests.get((status, outcome))
        if child is None:
            made = self._metrics.requests_total.at(*self._labels, str(status), outcome)
            child = self._requests[status, outcome] = made
        child.value += 1

    def observe_first_token(self, seconds: float) -> None:
        if self._first_token is None:
            provider, route, _ = self._labels
            self._first_token = self._metrics.time_to_first_token_seconds.at(provider, route)
        self._first_token.observe(seconds)

    def save(self, input_tokens: int, output_tokens: int, usd: float) -> None:
        """What a request did not have to buy."""
        if self._saved_input is None:
            provider, _, model = self._labels
            self._saved_input = self._metrics.tokens_saved_total.at("input", model)
            self._saved_output: Count = self._metrics.tokens_saved_total.at("output", model)
            self._saved_usd: Count = self._metrics.saved_usd_total.at(provider, model)
        self._saved_input.value += input_tokens
        self._saved_output.value += output_tokens
        self._saved_usd.value += usd


class CallTally:
    """What is counted for every upstream call of one (provider, model)."""

    # Mutable state: as above.
    __slots__ = ("_calls", "_cost", "_metrics", "_model", "_provider", "_tokens", "duration")

    def __init__(self, metrics: Metrics, provider: str, model: str) -> None:
        self._metrics = metrics
        self._provider = provider
        self._model = model
        self._calls: dict[str, Count] = {}
        self._tokens: dict[str, tuple[Count, Count]] = {}
        self._cost: Count | None = None
        self.duration: Histogram = metrics.upstream_duration_seconds.at(provider)

    def count(self, why: str, attempts: int) -> None:
        child = self._calls.get(why)
        if child is None:
            child = self._calls[why] = self._metrics.upstream_requests_total.at(self._provider, why)
        child.value += attempts

    def spend(self, input_tokens: int, output_tokens: int, source: str, usd: float) -> None:
        """What the upstream charges."""
        pair = self._tokens.get(source)
        if pair is None:
            tokens = self._metrics.tokens_total
            pair = tokens.at("input", self._model, source), tokens.at("output", self._model, source)
            self._tokens[source] = pair
            self._cost = self._metrics.cost_usd_total.at(self._provider, self._model)
        pair[0].value += input_tokens
        pair[1].value += output_tokens
        assert self._cost is not None
        self._cost.value += usd
