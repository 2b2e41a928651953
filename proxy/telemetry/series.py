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
    # Policies.
    _counter("pattern_requests_total", "result", "Conversations that rules might have answered, by what came of it."),
    _counter("pattern_answers_total", "rule", "Answers that a rule gave, by rule."),
    _counter("policy_saved_usd_total", "policy", "US dollars that policies saved against doing without, estimated."),
    _counter("policy_lost_usd_total", "policy", "US dollars that policies cost beyond what they saved."),
    _counter("policy_saved_tokens_total", "policy", "Tokens of prompts that were not sent, and of calls not made."),
    _counter("summaries_total", "result", "Summaries of conversations: made, found ready, waited for with others."),
    _counter("summary_failures_total", "reason", "Requests that got no summary in time."),
    _counter("summary_evictions_total", "", "Summaries that gave way to others."),
    _gauge("summary_bytes", "", "Bytes of the summaries that are kept."),
    _gauge("summaries_in_making", "", "Summaries being made."),
    _counter("cache_class_requests_total", "class result", "Requests by cache class and by how they were answered."),
    _counter("tier_requests_total", "model tier mode", "Requests for virtual models by tier; mode: acted or shadow."),
    _counter("tier_choices_reused_total", "", "Requests whose tier was remembered from an equal one."),
    _counter("tier_memory_evictions_total", "", "Choices, conversations and users forgotten to make room."),
    _gauge("tier_memory_entries", "what", "Choices, conversations and users that are remembered."),
    # Guards.
    _counter("guard_results_total", "guard result", "Checks by what the guard said or how it failed."),
    _counter("guard_failures_total", "guard reason", "Checks that could not be made, by why."),
    _counter("guard_seconds_total", "guard", "Time of checks; of remote guards the wait for them."),
    _counter("guard_breaker_openings_total", "guard", "Times that a remote guard failed too often to be asked on."),
    _gauge("guard_breaker_open", "guard", "1 while a remote guard is not asked, or only tried."),
    _counter("guard_vetted_total", "result", "Requests before built-in guards: checked, or known from equal ones."),
    _gauge("guard_held_bytes", "", "Bytes of answers that wait for a verdict."),
    _counter("guard_upstream_pauses_total", "", "Upstreams that were made to wait for a verdict."),
    # Upstream calls.
    _counter("upstream_requests_total", "provider why", "Requests sent to upstreams."),
    _histogram("upstream_duration_seconds", "provider", "Time of one upstream call.", _CALL),
    _counter("upstream_connect_errors_total", "reason", "Connections to upstreams that failed."),
    _counter("upstream_retries_total", "reason", "Upstream calls that were repeated."),
    _counter("upstream_retries_denied_total", "gate reason", "Further attempts that retry gates did not allow."),
    _gauge("upstream_retries_under_way", "", "Retries whose answers have not begun."),
    _gauge("upstream_retry_share", "", "Retries to requests in the last 10 s, as the retry gates count them."),
    _gauge("provider_key_state", "provider key", "0: usable, 1: throttled, 2: spent, 3: dead, 4: forbidden."),
    _counter("provider_key_uses_total", "provider key", "Attempts made with a configured provider key."),
    _counter("provider_key_refusals_total", "provider key state", "Refused provider keys, by what they are now."),
    _gauge("target_state", "target", "0: asked, 1: half open, a probe decides, 2: ejected."),
    _gauge("target_in_flight", "target", "Attempts under way."),
    _gauge("target_limit", "target", "Attempts that may be under way at a time, as learned."),
    _gauge("target_queued", "target", "Requests that wait for a place."),
    _gauge("target_first_byte_seconds", "target", "Moving average of the time to the first byte; 0: unknown."),
    _gauge("target_spared_share", "target", "Share of its requests that a degrading target is spared."),
    _counter("target_attempts_total", "target outcome", "Attempts by what they told about the target."),
    _counter("target_throttles_total", "target", "Answers 429, 503 and 529."),
    _counter("target_limit_cuts_total", "target", "Times that the limit of attempts was cut."),
    _counter("target_ejections_total", "target", "Times that the breaker opened."),
    _counter("hedges_total", "result", "Second calls where the first was slow, by whether the second won."),
    _counter("target_refused_total", "target reason", "Requests that got no place, by why."),
    _gauge("upstream_connections", "origin state", "Connections to upstreams."),
    _counter("dns_stale_used_total", "", "Outdated addresses used because a name could not be resolved."),
    _counter("embedding_batches_total", "outcome", "Merged embedding calls by what came of them."),
    _counter("embedding_batched_requests_total", "outcome", "Embedding requests by what batching did to them."),
    _histogram("embedding_batch_size", "", "Embedding requests of one batch.", _FOLLOWERS),
    _gauge("embedding_batch_state", "what", "Embedding batches, requests that wait in them, bytes of their answers."),
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
    # Flights that processes share.
    _counter("shared_flights_total", "part", "Flights led for or followed from other processes, or flown alone."),
    _counter("shared_flights_lost_total", "reason", "Flights of other processes that were followed in vain, by why."),
    _counter("shared_flights_failures_total", "reason", "What failed at the server of shared flights, by how."),
    _gauge("shared_flights_in_air", "part", "Flights being told to or heard from other processes."),
    _gauge("shared_flights_bytes", "where", "Bytes of answers on that server, and on their way to it."),
    _gauge("shared_flights_up", "", "1 while flights can be shared with other processes."),
    # Caches.
    _counter("cache_hits_total", "cache", "Answers found in a cache."),
    _counter("cache_misses_total", "cache", "Answers looked for in a cache and not found."),
    _counter("cache_evictions_total", "cache", "Answers removed from a cache to make room."),
    _gauge("cache_bytes", "cache", "Size of a cache."),
    _counter("cache_stores_total", "cache", "Answers stored in a cache that processes share."),
    _counter("cache_failures_total", "cache reason", "Look-ups and stores of a shared cache that failed, by why."),
    _counter("cache_purges_total", "cache", "Purges of a shared cache by other processes."),
    _gauge("cache_up", "cache", "1 while a shared cache can be counted on."),
    _counter("stale_served_total", "reason", "Answers served beyond their freshness."),
    # Virtual keys.
    _counter("key_lookups_total", "result", "Requests with a virtual key by where the key was found."),
    _gauge("key_hit_ratio", "", "Part of the requests with a virtual key that waited for no look-up."),
    _counter("key_fetches_total", "result", "Look-ups of single keys beyond this process."),
    _gauge("keys_held", "", "Virtual keys in memory."),
    _counter("key_evictions_total", "", "Virtual keys removed from memory to make room."),
    _gauge("keys_version_lag", "", "Versions of keys that are known to exist and not applied yet."),
    _gauge("keys_confirmed_age_seconds", "", "Time since the database last confirmed all keys in memory."),
    _gauge("keys_news_alive", "", "1 if changes of keys are told by the database, 0 if they are polled."),
    _gauge("keys_database_up", "", "1 if the last question about keys was answered."),
    # Flags.
    _gauge("flags_version", "", "Number of the last change of the store's flags that this process has."),
    _gauge("flags_age_seconds", "", "Time since the store last confirmed the flags in memory."),
    _gauge("flags_rules", "", "Rules of flags that come from the store."),
    _counter("flags_changes_total", "", "Times that the store's flags turned out to be other ones."),
    _counter("flags_reads_total", "result", "Questions to the store about flags."),
    # Limits and budgets.
    _counter("limit_requests_total", "result", "Requests of keys with limits by what became of them there."),
    _gauge("limit_accounts", "", "Keys, teams and tenants whose limits are kept in memory."),
    _gauge("limits_shared_up", "", "1 while limits are shared with other processes."),
    _counter("limits_shared_errors_total", "", "Exchanges with the shared limits that failed."),
    _counter("budget_leases_total", "result", "Leases of budgets from the store."),
    _counter("budget_requests_total", "result", "Requests that waited for, went without or were refused money."),
    _gauge("budget_usd", "state", "Leased money that this process holds."),
    # Usage records.
    _counter("usage_records_total", "step", "Usage records by the step they reached."),
    _gauge("spool_bytes", "", "Disk space of this process's usage spool."),
    _gauge("spool_pending_records", "", "Usage records that the store does not have yet."),
    _gauge("spool_running_records", "", "Requests whose usage record is open."),
    _counter("spool_errors_total", "what", "Disk errors of the usage spool."),
    _counter("usage_flush_errors_total", "reason", "Batches of usage records that the store did not take."),
    _counter("usage_flush_seconds_total", "", "Time spent in handing usage records to the store."),
    _gauge("store_state", "what", "Numbers of the database client."),
    _counter("admin_refused_total", "", "Requests to the admin API without the right token."),
    _counter("figures_readings_total", "result", "Times that the admin page's figures were read from the store."),
    # The process.
    _gauge("connections", "state", "Connections of clients."),
    _counter("connections_closed_total", "why", "Connections of clients that the proxy closed."),
    _gauge("queue_delay_seconds", "", "Least turn of the event loop in the last interval: the wait of new requests."),
    _counter("shed_total", "reason", "Requests refused because there were too many, or memory was short."),
    _gauge("shed_level", "", "0: nobody is refused; 1: who would begin a call; 2: whoever finds no place."),
    _counter("connections_held_total", "", "Refused connections that were not read until their retry was due."),
    _counter("accept_pauses_total", "", "Times that no connection was accepted, as there were too many."),
    _gauge("memory_limit_bytes", "", "Memory that the process may have; 0 for no limit."),
    _gauge("memory_step", "", "Step of relief from lack of memory: 0 (none) to 5 (answers are broken off)."),
    _counter("memory_relief_total", "what", "Idle connections closed and answers dropped for lack of memory."),
    _histogram("event_loop_lag_seconds", "", "Delay of the event loop.", _LAG),
    _gauge("tasks", "", "Tasks of the event loop."),
    _counter("log_lines_dropped_total", "", "Log lines that found no room."),
    _counter("metric_series_refused_total", "", "Updates counted as 'other' because there were too many series."),
    _counter("bugs_total", "where", "Unexpected exceptions; more than 0 is a defect."),
    _gauge("config_last_reload_successful", "", "1 if the last reload of the catalog went well."),
    _counter("config_reload_failures_total", "", "Reloads of the catalog that failed."),
    # A parent's own; without one there are none.
    _gauge("workers", "state", "Worker processes by state: starting, ready, unready, draining, stuck, waiting."),
    _gauge("worker_up", "worker", "1 if the worker answered this scrape; if not, it counts as it last did."),
    _counter("worker_starts_total", "reason", "Worker processes started: start, crash, roll."),
    _counter("worker_rolls_total", "result", "Rolling restarts by result: done, stopped."),
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
