"""The table of metrics: every series this proxy exposes, with its type, labels and meaning.

README's list is made from it. Labels come from closed sets, but for ``model``, ``origin`` and ``status``, which
`metrics` bounds.
"""

from __future__ import annotations

from typing import Final, NamedTuple

PREFIX: Final = "sameflight_"

# OpenTelemetry's GenAI buckets, 10 ms · 2^k; the longer list is for whole calls, which may take an hour.
_FIRST_TOKEN: Final = tuple(0.01 * 2**k for k in range(14))
_CALL: Final = (0.01, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 655.36)
_OVERHEAD: Final = (5e-05, 0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05)
_LAG: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_FOLLOWERS: Final = tuple(float(2**k) for k in range(11))


class Series(NamedTuple):
    """One row. ``name`` is what is exposed, prefix included."""

    name: str
    type: str
    """``counter``, ``gauge`` or ``histogram``."""
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()
    """Upper bounds in ascending order, without infinity; for histograms only."""

    @property
    def short(self) -> str:
        """The name without our prefix: the name of the attribute of ``Metrics``."""
        return self.name.removeprefix(PREFIX)


def _counter(name: str, labels: str, help_text: str) -> Series:
    return Series(PREFIX + name, "counter", tuple(labels.split()), help_text)


def _gauge(name: str, labels: str, help_text: str) -> Series:
    return Series(PREFIX + name, "gauge", tuple(labels.split()), help_text)


def _histogram(name: str, labels: str, help_text: str, buckets: tuple[float, ...]) -> Series:
    return Series(PREFIX + name, "histogram", tuple(labels.split()), help_text, buckets)


SERIES: Final[tuple[Series, ...]] = (
    # Requests of clients.
    _counter("requests_total", "provider route model status outcome", "Requests by how they ended."),
    _histogram("request_duration_seconds", "provider route", "From a request's head to its answer's end.", _CALL),
    _histogram("time_to_first_token_seconds", "provider route", "Time to the first byte of the body.", _FIRST_TOKEN),
    _histogram("overhead_seconds", "route", "Time spent in the proxy, waits for others excluded.", _OVERHEAD),
    _gauge("streams_inflight", "", "Event streams being delivered."),
    _counter("streams_truncated_total", "side", "Event streams that ended early, by who ended them."),
    _counter("rejections_total", "reason", "Requests refused by the proxy itself."),
    _counter("tokens_total", "direction model source", "Tokens of upstream calls, as reported or estimated."),
    _counter("tokens_saved_total", "direction model", "Tokens of answers that needed no upstream call."),
    _counter("cost_usd_total", "provider model", "US dollars charged by upstreams, at list or configured prices."),
    _counter("saved_usd_total", "provider model", "US dollars that shared and cached answers did not cost."),
    # Upstream calls.
    _counter("upstream_requests_total", "provider why", "Requests sent to upstreams."),
    _histogram("upstream_duration_seconds", "provider", "Time of one upstream call.", _CALL),
    _counter("upstream_connect_errors_total", "reason", "Connections to upstreams that failed."),
    _counter("upstream_retries_total", "reason", "Upstream calls that were repeated."),
    _gauge("upstream_connections", "origin state", "Connections to upstreams."),
    _counter("dns_stale_used_total", "", "Outdated addresses used because a name could not be resolved."),
    # Flights.
    _counter("flights_total", "ending", "Flights by how they ended."),
    _gauge("flights_in_air", "", "Flights that have not ended."),
    _gauge("flight_subscribers", "", "Callers subscribed to flights."),
    _histogram("coalesce_followers", "", "Callers of one flight beside its leader.", _FOLLOWERS),
    _counter("joins_total", "state", "Requests that joined a flight, by the flight's state."),
    _counter("join_refused_total", "reason", "Requests that found a flight and could not join it."),
    _counter("released_total", "reason", "Callers sent on to calls of their own, as the answer cannot be shared."),
    _counter("coalesce_bypass_total", "reason", "Requests that do not share."),
    _counter("collapse_saved_total", "", "Upstream calls saved by flights."),
    _counter("linger_total", "result", "Flights that went on without callers, by what came of it."),
    _counter("detached_total", "reason", "Callers taken off a flight."),
    _gauge("retained_bytes", "", "Bytes kept by flights for late joiners and slow callers."),
    _gauge("pass_markers", "", "Requests known to have answers that cannot be shared."),
    _counter("flight_watchdog_total", "", "Flights ended by the watchdog; more than 0 is a defect."),
    # Caches.
    _counter("cache_hits_total", "cache", "Answers found in a cache."),
    _counter("cache_misses_total", "cache", "Answers looked for in a cache and not found."),
    _counter("cache_evictions_total", "cache", "Answers removed from a cache to make room."),
    _gauge("cache_bytes", "cache", "Size of a cache."),
    _counter("stale_served_total", "reason", "Answers served beyond their freshness."),
    # The process.
    _gauge("connections", "state", "Connections of clients."),
    _counter("connections_closed_total", "why", "Connections of clients that the proxy closed."),
    _histogram("event_loop_lag_seconds", "", "Delay of the event loop.", _LAG),
    _counter("log_lines_dropped_total", "", "Log lines that found no room."),
    _counter("metric_series_refused_total", "", "Updates counted as 'other' because there were too many series."),
    _counter("bugs_total", "where", "Unexpected exceptions; more than 0 is a defect."),
    _gauge("config_last_reload_successful", "", "1 if the last reload of the catalog went well."),
    _counter("config_reload_failures_total", "", "Reloads of the catalog that failed."),
    _gauge("build_info", "version python", "1; what is running."),
    Series("process_cpu_seconds_total", "counter", (), "CPU time of the process."),
    Series("process_resident_memory_bytes", "gauge", (), "Resident memory of the process."),
    Series("process_open_fds", "gauge", (), "Open file descriptors."),
    Series("process_max_fds", "gauge", (), "Limit of open file descriptors."),
    Series("process_start_time_seconds", "gauge", (), "When the process started, in seconds since the epoch."),
)


def describe_series() -> str:
    """The table as Markdown, for README."""
    lines = ["| series | type | labels | meaning |", "|---|---|---|---|"]
    for row in SERIES:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        lines.append(f"| `{row.name}` | {row.type} | {labels} | {row.help} |")
    return "\n".join(lines) + "\n"
