"""The table of process settings: fixed at start, from the command line, the environment or the default.

``Settings`` is the table: one field for each setting, with its help, unit and parser. A setting ``max_body_bytes``
is the flag ``--max-body-bytes`` and the variable ``SAMEFLIGHT_MAX_BODY_BYTES``; a double underscore counts as a
single one (``SAMEFLIGHT_MAX__BODY_BYTES``), for tools that nest names that way. Provider keys go by their usual
names without the prefix. An empty variable counts as unset. A secret may be given as the name of a file that holds
it, in the variable with ``_FILE`` appended. Nothing else in the process reads the environment for settings, and
``OPENAI_BASE_URL`` is never read: in a sidecar it points at us.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from proxy.config.values import (
    did_you_mean,
    integer_between,
    mask_url,
    number_from,
    one_of,
    parse_base_url,
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

PREFIX: Final = "SAMEFLIGHT_"
KIB: Final = 1 << 10
MIB: Final = 1 << 20

Parser = Callable[[str], object]

# A Kubernetes service called "sameflight" puts these into the environment of every pod of its namespace.
_SERVICE_LINK_NAME: Final = re.compile(r"SAMEFLIGHT_(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT_[0-9]+_(TCP|UDP)\w*)")
_SERVICE_LINK_VALUE: Final = re.compile(r"(tcp|udp|sctp)://[0-9a-fA-F.:\[\]]+")


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


def _base_url(default: str, help_text: str) -> Any:
    return _setting(default, help_text, parse_base_url_text)


def _provider_key(env: str, help_text: str) -> Any:
    return _setting("", help_text, parse_key, env=env, secret=True)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every process setting; ``Settings()`` is what an empty environment gives."""

    host: str = _setting("127.0.0.1", "Address of the data listener.", parse_text)
    port: int = _port(8080, "Port of the data listener; 0 takes a free one.")
    unix_socket: str = _setting("", "Path of a Unix socket to listen on instead of host and port.", parse_text)
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

    config: str = _setting("", "YAML file with providers, routes and prices.", parse_text)
    state_dir: str = _setting("./.sameflight", "Directory for what outlives the process.", parse_text)
    cache_url: str = _setting(
        "",
        "Second cache level: empty for none, memory:// for one inside the process, or a Valkey or Redis server that "
        "processes share (redis://, rediss://, valkey://, valkeys://, unix://); the latter needs KEY_SECRET.",
        parse_cache_url,
        secret=True,
    )
    cache_prefix: str = _setting(
        "sameflight", "What names on that server begin with; one for each group of proxies that share.", parse_prefix
    )
    cache_timeout_ms: float = _setting(
        50.0, "Longest wait for a look-up on that server.", number_from(1.0), "milliseconds"
    )
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
        "", "Secret that opens the admin API for virtual keys; empty: it is closed.", secret_from(16), secret=True
    )


class Setting(NamedTuple):
    """One row of the table, for flags, documentation and ``config show``."""

    name: str
    env: str
    flag: str
    type: str
    default: object
    help: str
    unit: str
    secret: bool
    parse: Parser


def _rows() -> tuple[Setting, ...]:
    rows = []
    for each in fields(Settings):
        assert each.default is not MISSING
        about = each.metadata
        env = about["env"] or PREFIX + each.name.upper()
        flag = "--" + each.name.replace("_", "-")
        kind = "list" if isinstance(each.default, tuple) else type(each.default).__name__
        words = about["help"], about["unit"], about["secret"], about["parse"]
        rows.append(Setting(each.name, env, flag, kind, each.default, *words))
    return tuple(rows)


SETTINGS: Final = _rows()
_BY_ENV: Final = {row.env: row for row in SETTINGS}
_BY_NAME: Final = {row.name: row for row in SETTINGS}


class SettingsError(Exception):
    """Settings that cannot be used; ``problems`` holds one line for each, the text all of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Loaded(NamedTuple):
    """Settings and how they came about."""

    settings: Settings
    sources: Mapping[str, str]
    """Name of each setting → ``default``, ``env`` or ``flag``."""
    warnings: tuple[str, ...]
    """Names that look like ours but are not, what was ignored, and what does less than it seems to."""


class _Given(NamedTuple):
    """One value as somebody gave it."""

    row: Setting
    label: str
    text: str
    source: str


def load_settings(env: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None) -> Loaded:
    """Read the settings: ``flags`` (setting name → value, ``None`` for not given) win over ``env`` (the process
    environment unless given), which wins over the defaults.

    Raises ``SettingsError`` with every problem.
    """
    problems: list[str] = []
    warnings: list[str] = []
    given = _from_environment(os.environ if env is None else env, problems, warnings)
    given.update(_from_flags(flags or {}))
    values: dict[str, Any] = {}
    for name, value in given.items():
        try:
            values[name] = value.row.parse(value.text)
        except ValueError as error:
            problems.append(f"{value.label}: {_shown_text(value)} is not {error}")
    settings = Settings(**values)
    problems += _contradictions(settings)
    if problems:
        raise SettingsError(problems)
    if settings.cache_url not in ("", "memory://") and not settings.key_secret:
        warnings.append(f"{PREFIX}CACHE_URL: no answers are shared without {PREFIX}KEY_SECRET, the same everywhere")
    sources = {row.name: given[row.name].source if row.name in given else "default" for row in SETTINGS}
    return Loaded(settings, sources, tuple(warnings))


def _from_environment(env: Mapping[str, str], problems: list[str], warnings: list[str]) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for label in sorted(env):
        row, text = _row_of(label), env[label]
        if not text.strip():
            continue
        if row is None:
            if label.startswith(PREFIX) and not _is_service_link(label, text):
                warnings.append(f"{label}: there is no such setting" + did_you_mean(label, list(_BY_ENV)))
            continue
        if _SERVICE_LINK_VALUE.fullmatch(text):
            warnings.append(f"{label}: ignored, it was put there by a Kubernetes service of that name")
            continue
        if label.endswith("_FILE") and row.secret:
            text = _read_secret(label, text, problems)
        if row.name in given and given[row.name].text != text:
            problems.append(f"{label}: contradicts {given[row.name].label}")
        given[row.name] = _Given(row, label, text, "env")
    return given


def _row_of(label: str) -> Setting | None:
    name = PREFIX + label[len(PREFIX) :].replace("__", "_") if label.startswith(PREFIX) else label
    row = _BY_ENV.get(name)
    if row is None and name.endswith("_FILE"):
        row = _BY_ENV.get(name.removesuffix("_FILE"))
        return row if row is not None and row.secret else None
    return row


def _is_service_link(label: str, text: str) -> bool:
    return _SERVICE_LINK_NAME.fullmatch(label) is not None or _SERVICE_LINK_VALUE.fullmatch(text) is not None


def _read_secret(label: str, path: str, problems: list[str]) -> str:
    try:
        return Path(path.strip()).read_text("utf-8").strip()
    except (OSError, UnicodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        problems.append(f"{label}: cannot read {path.strip()}: {reason}")
        return ""


def _from_flags(flags: Mapping[str, object]) -> dict[str, _Given]:
    given = {}
    for name, value in flags.items():
        if value is not None:
            row = _BY_NAME[name]
            given[name] = _Given(row, row.flag, as_text(value), "flag")
    return given


def _shown_text(value: _Given) -> str:
    return "the value" if value.row.secret else repr(mask_url(value.text))


def _contradictions(settings: Settings) -> list[str]:
    """Values that are right alone and wrong together."""
    problems = []
    if settings.unix_socket == "" and settings.port:
        if settings.port == settings.admin_port and settings.host == settings.admin_host:
            problems.append(f"{PREFIX}ADMIN_PORT: {settings.port} is the data listener's port as well")
        ours = {settings.host, "127.0.0.1", "localhost", "::1"}
        for name in ("openai_upstream", "anthropic_upstream", "mistral_upstream"):
            upstream = parse_base_url(getattr(settings, name))
            if upstream.port == settings.port and upstream.host in ours:
                problems.append(f"{PREFIX}{name.upper()}: {upstream} is this proxy itself")
    return problems


def as_text(value: object) -> str:
    """A setting's value the way it would be written in the environment."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return ",".join(str(each) for each in value)
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def shown(row: Setting, value: object) -> str:
    """A setting's value for people: secrets as ``set`` or ``unset``."""
    if row.secret:
        return "set" if value else "unset"
    return as_text(value)


def describe_settings() -> str:
    """The table as Markdown, for README."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for row in SETTINGS:
        default = f"`{as_text(row.default)}`" if row.default not in ("", ()) else ""
        unit = f" ({row.unit})" if row.unit else ""
        lines.append(f"| `{row.env}` | {default} | {row.help}{unit} |")
    return "\n".join(lines) + "\n"
