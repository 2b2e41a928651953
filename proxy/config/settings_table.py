"""The settings themselves: one field for each, with its default, help, unit and parser. See `settings`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.config.values import (
    integer_between,
    number_from,
    one_of,
    parse_base_url_text,
    parse_cache_url,
    parse_database_url,
    parse_flag,
    parse_key,
    parse_names,
    parse_prefix,
    parse_text,
    secret_from,
    size_from,
)

KIB: Final = 1 << 10
MIB: Final = 1 << 20
MAX_WORKERS: Final = 256

Parser = Callable[[str], object]


def _setting(
    default: object, help_text: str, parse: Parser, unit: str = "", *, env: str = "", secret: bool = False
) -> Any:
    row = {"help": help_text, "parse": parse, "unit": unit, "env": env, "secret": secret}
    return field(default=default, repr=not secret, metadata=row)


def _seconds(default: float, help_text: str, least: float = 0.001) -> Any:
    return _setting(default, help_text, number_from(least), "seconds")


def _bytes(default: int, help_text: str, least: int = 1) -> Any:
    return _setting(default, help_text, size_from(least), "bytes")


def _count(default: int, help_text: str) -> Any:
    return _setting(default, help_text, integer_between(1, 10_000_000))


def _port(default: int, help_text: str) -> Any:
    return _setting(default, help_text, integer_between(0, 65_535))


def _parse_workers(text: str) -> int:
    """0 for ``auto``."""
    if text.strip().lower() == "auto":
        return 0
    try:
        return integer_between(0, MAX_WORKERS)(text)
    except ValueError:
        raise ValueError(f"auto or an integer from 1 to {MAX_WORKERS}") from None


def _parse_mode(text: str) -> str:
    mode = text.strip()
    if not 3 <= len(mode) <= 4 or mode.strip("01234567") or (len(mode) == 4 and mode[0] != "0"):
        raise ValueError("a file mode in octal, such as 660")
    return mode


def _base_url(default: str, help_text: str) -> Any:
    return _setting(default, help_text, parse_base_url_text)


def _provider_key(env: str, help_text: str) -> Any:
    return _setting("", help_text, parse_key, env=env, secret=True)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every process setting; ``Settings()`` is what an empty environment gives."""

    host: str = _setting("127.0.0.1", "Address of the data listener.", parse_text)
    port: int = _port(8080, "Port of the data listener, of the first of several workers; 0 takes a free one.")
    unix_socket: str = _setting(
        "",
        "Path of a Unix socket to listen on instead of host and port; several workers put their number in for "
        "{worker}, or before the suffix.",
        parse_text,
    )
    admin_host: str = _setting("127.0.0.1", "Address of the admin listener (health, metrics).", parse_text)
    admin_port: int = _port(8081, "Port of the admin listener; 0 takes a free one.")

    openai_upstream: str = _base_url("https://api.openai.com", "Base URL of OpenAI's API, without /v1.")
    anthropic_upstream: str = _base_url("https://api.anthropic.com", "Base URL of Anthropic's API, without /v1.")
    mistral_upstream: str = _base_url("https://api.mistral.ai", "Base URL of Mistral's API, without /v1.")
    openai_api_key: str = _provider_key("OPENAI_API_KEY", "Key for OpenAI of callers without one of their own.")
    anthropic_api_key: str = _provider_key(
        "ANTHROPIC_API_KEY", "Key for Anthropic of callers without one of their own."
    )
    mistral_api_key: str = _provider_key("MISTRAL_API_KEY", "Key for Mistral of callers without one of their own.")
    placeholder_keys: tuple[str, ...] = _setting(
        (
            "DUMMY_KEY",
            "dummy",
            "not-needed",
            "no-key",
            "sk-no-key",
            "sk-no-key-required",
            "none",
            "EMPTY",
            "placeholder",
            "sk-placeholder",
        ),
        "Credentials that mean 'use the configured provider key', separated by commas; no credential always does.",
        parse_names,
    )
    auth: str = _setting(
        "passthrough",
        "passthrough: a caller's own credential goes upstream; required: a virtual key must be presented.",
        one_of("passthrough", "required"),
    )
    share: str = _setting(
        "all",
        "Which identical concurrent requests share one upstream call.",
        one_of("off", "pure", "retries", "auto", "all"),
    )

    config: str = _setting("", "YAML file with providers, models, routes and prices.", parse_text)
    state_dir: str = _setting("./.sameflight", "Directory for what outlives the process.", parse_text)
    cache_url: str = _setting(
        "",
        "Second cache level: empty for none, memory:// for one inside the process, or a server that processes share: "
        "Valkey or Redis (redis://, rediss://, valkey://, valkeys://, unix://), which also shares limits, or "
        "PostgreSQL (postgresql://), which does not; a server needs KEY_SECRET.",
        parse_cache_url,
        secret=True,
    )
    cache_prefix: str = _setting(
        "sameflight", "What names on that server begin with; one for each group of proxies that share.", parse_prefix
    )
    cache_timeout_ms: float = _setting(
        50.0, "Longest wait for a look-up on that server.", number_from(1.0), "milliseconds"
    )
    cache_table_bytes: int = _bytes(
        1 << 30,
        "Size of all answers in the table of a CACHE_URL of PostgreSQL; looked at every ten seconds, and what ends "
        "soonest goes first.",
        1 << 20,
    )
    shared_flights: bool = _setting(
        False,
        "Identical requests at several processes share one upstream call through the server of CACHE_URL; for places "
        "where they cannot be led to one process. Needs KEY_SECRET, the same everywhere.",
        parse_flag,
    )
    shared_flight_timeout_ms: float = _setting(
        20.0, "Longest wait for that server before a flight is the process's own.", number_from(1.0), "milliseconds"
    )
    shared_flight_lease_s: float = _seconds(
        5.0, "Silence of the process that makes the call after which the others take it for dead.", 0.3
    )
    shared_flight_bytes: int = _bytes(4 * MIB, "Bytes of one answer that are kept on that server.", 64 * KIB)
    ca_file: str = _setting(
        "", "PEM file of the authorities that may vouch for an upstream; empty: the system's.", parse_text
    )
    key_secret: str = _setting(
        "",
        "Secret under which credentials and requests are hashed; empty: a random one for each process.",
        parse_text,
        secret=True,
    )

    log_level: str = _setting(
        "info", "Least severe level that is logged.", one_of("debug", "info", "warning", "error")
    )
    log_format: str = _setting(
        "auto", "json, console, or auto: console on a terminal, else json.", one_of("auto", "json", "console")
    )
    slow_overhead_ms: float = _setting(
        100.0, "A request that spends longer inside the proxy is logged as a warning.", number_from(0), "milliseconds"
    )

    max_body_bytes: int = _bytes(32 * MIB, "Largest request body that is read; uploads are streamed and exempt.")
    max_header_bytes: int = _bytes(65_536, "Largest request head.", 1_024)
    head_timeout_s: float = _seconds(10.0, "Time for a request head to arrive.")
    body_min_rate: int = _setting(
        500, "Slowest pace at which a request body may arrive.", size_from(0), "bytes per second"
    )
    body_timeout_s: float = _seconds(60.0, "Time for a whole request body to arrive.")
    keepalive_s: float = _seconds(75.0, "Time an idle client connection is kept; keep it above nginx's 60.")
    write_stall_s: float = _seconds(60.0, "Time a client may take nothing of what is sent before it is dropped.")
    abort_on_half_close: bool = _setting(
        True, "A client that closes its sending side has left; false: it still gets its answer.", parse_flag
    )

    fast_lane: bool = _setting(
        True, "Plain requests go past aiohttp's server; false: through it, as all others do.", parse_flag
    )

    connect_timeout_s: float = _seconds(5.0, "Time to reach an upstream: DNS, TCP and TLS.")
    first_byte_timeout_s: float = _seconds(600.0, "Time from a sent request to the head of its answer.")
    idle_timeout_s: float = _seconds(120.0, "Time between two reads of an answer.")
    total_timeout_s: float = _seconds(3600.0, "Time for a whole upstream call.")
    pool_max_connections: int = _count(1_000, "Connections to one upstream origin.")
    pool_idle_s: float = _seconds(15.0, "Time an idle upstream connection is kept.")
    retry_percent: int = _setting(
        10,
        "Retries at upstreams, in percent of the requests of the last 10 s; three a second are allowed at any rate.",
        integer_between(0, 100),
        "%",
    )

    linger_s: float = _seconds(3.0, "Time a call without subscribers goes on, for the retry that may come.", 0.0)
    heartbeat_after_s: float = _seconds(10.0, "Silence of a stream before the first heartbeat; 0: none.", 0.0)
    heartbeat_every_s: float = _seconds(15.0, "Silence between heartbeats.")
    heed_patience: bool = _setting(
        True,
        "A caller that says how long it waits (x-stainless-read-timeout) gets a 504 just before that; "
        "false: its own time-out comes first.",
        parse_flag,
    )
    max_subscribers: int = _count(1_000, "Callers of one flight; the next one starts another.")
    max_tape_bytes: int = _bytes(8 * MIB, "Bytes a flight keeps for late joiners; beyond it none may join.")
    max_answer_bytes: int = _bytes(64 * MIB, "Largest shared answer; a larger one is broken off.")
    max_lag_bytes: int = _bytes(1 * MIB, "Bytes one caller may lag behind before it is detached.")
    run_ahead_bytes: int = _bytes(1 * MIB, "Bytes the upstream may be ahead of the fastest caller.")
    retained_bytes: int = _bytes(256 * MIB, "Bytes kept by all flights together; beyond it requests go alone.")
    max_flights: int = _count(10_000, "Flights in the air; beyond it requests go alone.")
    max_flights_per_scope: int = _count(1_000, "Flights in the air for one credential.")
    max_join_age_s: float = _seconds(600.0, "Age at which a flight takes no more joiners.")

    hot_cache_bytes: int = _bytes(64 * MIB, "Size of the response cache in the process; 0: none.", 0)
    max_entry_bytes: int = _bytes(1 * MIB, "Largest response that is cached.")
    summary_cache_bytes: int = _bytes(16 * MIB, "Size of the store of conversations' summaries.", 4096)
    models_fresh_s: float = _seconds(60.0, "Time a list of models is fresh.", 0.0)
    models_stale_s: float = _seconds(600.0, "Time beyond that in which it is served while being refreshed.", 0.0)
    models_stale_if_error_s: float = _seconds(86_400.0, "Time beyond that in which it stands in for an error.", 0.0)
    idempotency_ttl_s: float = _seconds(
        0.0, "Time the answer to an Idempotency-Key is kept for replay; 0: none is.", 0.0
    )

    limit_burst_s: float = _seconds(60.0, "How many seconds' worth of a limit per minute may be used at once.", 0.001)
    limit_workers: int = _count(
        1, "Processes among which limits are divided while they cannot share them through SAMEFLIGHT_CACHE_URL."
    )
    assumed_output_tokens: int = _setting(
        4_096,
        "Output that is reserved for a request that does not bound it.",
        integer_between(0, 1_000_000),
        "tokens",
    )
    budget_lease_s: float = _seconds(
        120.0,
        "Time for which a process may spend what it leased of a budget without hearing from the database.",
        10.0,
    )
    budget_wait_s: float = _seconds(
        2.0, "Longest time a request waits for money that other processes may give back before it is refused."
    )
    budget_when_store_down: str = _setting(
        "refuse",
        "When the database is away and the lease is used up: refuse: 503; allow: let requests through, charge later.",
        one_of("refuse", "allow"),
    )
    budget_unpriced: str = _setting(
        "allow",
        "Requests under a budget to a model whose price is not known: allow: not charged, but counted; refuse: 402.",
        one_of("allow", "refuse"),
    )

    max_connections: int = _setting(
        0, "Connections of clients; 0: 45 % of what file descriptors there may be.", integer_between(0, 10_000_000)
    )
    shed_after_ms: float = _setting(
        100.0,
        "Standing delay of the event loop at which new requests begin to be refused; 0: none ever is.",
        number_from(0),
        "milliseconds",
    )
    shed_target_ms: float = _setting(
        5.0, "Delay that is aimed at while requests are refused.", number_from(0.1), "milliseconds"
    )
    memory_limit_bytes: int = _bytes(
        0, "Memory above 80 % of which relief begins; 0: the limit of the control group, if there is one.", 0
    )

    drain_grace_s: float = _seconds(25.0, "Time running requests get when the process is told to stop.", 0.0)
    drain_delay_s: float = _seconds(
        0.0,
        "Time for which a process that is told to stop still takes connections, unready, until whoever balances has "
        "noticed; behind a Kubernetes service 5.",
        0.0,
    )
    workers: int = _setting(
        1,
        "Processes that serve, under a parent if there are several, each with a socket or port of its own; auto: as "
        "many as the CPU limit of the container, rounded up.",
        _parse_workers,
    )
    supervised: bool = _setting(
        False, "A parent for a single worker as well, which restarts and replaces it without a refusal.", parse_flag
    )
    unix_socket_mode: str = _setting(
        "", "Who may connect to the Unix sockets, in octal, such as 660; empty: as the umask says.", _parse_mode
    )

    ask_usage: bool = _setting(
        False,
        "Ask OpenAI's chat streams for the token counts that their callers did not ask for, and take them out of the "
        "answers again; false: such streams are estimated.",
        parse_flag,
    )
    database_url: str = _setting(
        "",
        "Where keys, budgets and usage are kept: postgresql://user:password@host/name; empty: a SQLite file in the "
        "state directory.",
        parse_database_url,
        secret=True,
    )
    database_migrate: bool = _setting(
        True, "Bring the database's schema up to date at start; false: `sameflight migrate` does that.", parse_flag
    )

    spool_fsync: str = _setting(
        "interval",
        "When usage records go to the disk: interval: every 100 ms; always: before each answer ends; never: when the "
        "system likes. Only the death of the machine can lose what is not there yet.",
        one_of("interval", "always", "never"),
    )
    spool_policy: str = _setting(
        "available",
        "When usage records find no room on the disk: available: serve, keep them in a bounded part of memory and "
        "count what is lost; strict: answer 503.",
        one_of("available", "strict"),
    )
    spool_bytes: int = _bytes(1024 * MIB, "Disk space for usage records while the database is away.", 8 * MIB)
    prices_file: str = _setting(
        "", "JSON file of prices, in LiteLLM's or genai-prices' shape; it wins over the built-in ones.", parse_text
    )

    key_pepper: str = _setting(
        "",
        "Secret under which virtual keys are stored, kept outside the database and the same in all processes that "
        "share one; empty: the file key_pepper in the state directory, made when it is first needed.",
        secret_from(16),
        secret=True,
    )
    key_fresh_s: float = _seconds(30.0, "Time for which a virtual key is believed after the database confirmed it.")
    auth_stale_max_s: float = _seconds(
        900.0, "Time for which keys that were seen before are served while the database is away.", 0.0
    )
    max_held_keys: int = _count(100_000, "Virtual keys held in memory.")
    revoke_ends_streams: bool = _setting(
        False,
        "A key that is revoked ends the answers that are being read with it; false: those are read to their end.",
        parse_flag,
    )
    admin_token: str = _setting(
        "",
        "Secret that opens the admin API and the admin page's figures; empty: the API is closed, and figures are for "
        "loopback addresses alone.",
        secret_from(16),
        secret=True,
    )

    # What the admin page holds the day's figures against; 0 leaves a line out.
    target_error_percent: float = _setting(
        1.0, "Requests that may fail, in percent, on the admin page; 0: no target.", number_from(0.0), "percent"
    )
    target_hit_percent: float = _setting(
        30.0,
        "Requests that are to be answered without a call of their own, in percent, on the admin page; 0: no target.",
        number_from(0.0),
        "percent",
    )
    target_p95_ms: float = _setting(
        5_000.0,
        "Time within which 95 of 100 requests are to be answered whole, on the admin page; 0: no target.",
        number_from(0.0),
        "milliseconds",
    )
    target_usd_per_1000: float = _setting(
        5.0, "What a thousand requests may cost, on the admin page; 0: no target.", number_from(0.0), "US dollars"
    )
