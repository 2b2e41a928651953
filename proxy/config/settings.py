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
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from proxy.config.settings_table import Parser, Settings
from proxy.config.values import (
    DATABASES,
    did_you_mean,
    mask_url,
    parse_base_url,
)

__all__ = [
    "PREFIX",
    "SETTINGS",
    "Loaded",
    "Setting",
    "Settings",
    "SettingsError",
    "as_text",
    "describe_settings",
    "load_settings",
    "shown",
]

PREFIX: Final = "SAMEFLIGHT_"
# A Kubernetes service called "sameflight" puts these into the environment of every pod of its namespace.
_SERVICE_LINK_NAME: Final = re.compile(r"SAMEFLIGHT_(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT_[0-9]+_(TCP|UDP)\w*)")
_SERVICE_LINK_VALUE: Final = re.compile(r"(tcp|udp|sctp)://[0-9a-fA-F.:\[\]]+")


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
    if settings.shared_flights and (settings.cache_url in ("", "memory://") or not settings.key_secret):
        problems.append(f"{PREFIX}SHARED_FLIGHTS: needs a server in {PREFIX}CACHE_URL, and {PREFIX}KEY_SECRET")
    elif settings.shared_flights and settings.cache_url.startswith(DATABASES):
        problems.append(f"{PREFIX}SHARED_FLIGHTS: needs Valkey or Redis in {PREFIX}CACHE_URL, not PostgreSQL")
    last = settings.port + max(settings.workers, 1) - 1
    if settings.unix_socket == "" and settings.port:
        if settings.port < settings.admin_port <= last and settings.host == settings.admin_host:
            text = f"{settings.admin_port} is a worker's port as well, they are {settings.port} to {last}"
            problems.append(f"{PREFIX}ADMIN_PORT: {text}")
        if last > 65_535:
            problems.append(f"{PREFIX}PORT: there are not {settings.workers} ports from {settings.port} on")
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
