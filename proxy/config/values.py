"""Text from an environment, a command line or a file, turned into the values that settings have.

Each parser takes text and returns the value, or raises ``ValueError`` whose message says what was expected and
never repeats the text: the caller knows whether it may be shown.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

_TRUE: Final = frozenset(("1", "true", "yes", "on"))
_FALSE: Final = frozenset(("0", "false", "no", "off"))
_SIZES: Final = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE: Final = re.compile(r"([0-9]{1,15})\s*([A-Za-z]*)")
_HOST_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_PLAIN_OPTIONS: Final = frozenset(("db",))
_TLS_OPTIONS: Final = _PLAIN_OPTIONS | {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}
_CACHE_OPTIONS: Final = {
    "redis": _PLAIN_OPTIONS,
    "valkey": _PLAIN_OPTIONS,
    "unix": _PLAIN_OPTIONS,
    "rediss": _TLS_OPTIONS,
    "valkeys": _TLS_OPTIONS,
}
CACHE_SERVERS: Final = frozenset(_CACHE_OPTIONS)
"""Schemes of the URLs of Valkey and Redis servers."""
DATABASES: Final = ("postgresql://", "postgres://")
"""How URLs of PostgreSQL servers begin."""
_PATH: Final = re.compile(r"[!-~]*")


class BaseUrl(NamedTuple):
    """Where an API begins: what its paths (``/v1/…``) are appended to."""

    scheme: str
    """``http`` or ``https``."""
    host: str
    """Lower case; IPv6 without brackets."""
    port: int
    base_path: str
    """Prefix of every path without a trailing slash and without ``/v1``; usually empty."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        port = "" if self.port == default else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.base_path}"


def parse_text(text: str) -> str:
    """The text itself, without white space around it; control characters are refused."""
    text = text.strip()
    if not text.isprintable():
        raise ValueError("text without control characters")
    return text


def parse_key(text: str) -> str:
    """A credential that fits into a header."""
    text = text.strip()
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("a key of printable ASCII characters without spaces")
    return text


def secret_from(least: int) -> Callable[[str], str]:
    """A parser of secrets that nobody guesses: at least so many printable ASCII characters. Only a setting's default
    is empty: an empty file is a mistake, and must not switch anything off or on."""

    def parse(text: str) -> str:
        try:
            secret = parse_key(text)
        except ValueError:
            secret = ""
        if len(secret) < least:
            raise ValueError(f"a secret of at least {least} printable ASCII characters without spaces")
        return secret

    return parse


def parse_prefix(text: str) -> str:
    """What names begin with where several programs keep theirs."""
    prefix = text.strip()
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", prefix) or prefix.endswith(":"):
        raise ValueError("1 to 64 letters, digits and _.:-, the last no colon")
    return prefix


def parse_flag(text: str) -> bool:
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("true or false")


def parse_names(text: str) -> tuple[str, ...]:
    """Names separated by commas, empty ones and repeats left out, order kept."""
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := parse_text(part))))


def integer_between(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        word = text.strip()
        if not re.fullmatch(r"-?[0-9]{1,18}", word) or not least <= int(word) <= most:
            raise ValueError(f"an integer from {least} to {most}")
        return int(word)

    return parse


def number_from(least: float) -> Callable[[str], float]:
    """A parser of finite numbers that are at least ``least``."""

    def parse(text: str) -> float:
        expected = f"a number of at least {least:g}"
        try:
            number = float(text)
        except ValueError:
            raise ValueError(expected) from None
        if not math.isfinite(number) or number < least:
            raise ValueError(expected)
        return number

    return parse


def size_from(least: int) -> Callable[[str], int]:
    """A parser of sizes: bytes, or with one of the units KiB, MiB, GiB, kB, MB, GB."""

    def parse(text: str) -> int:
        match = _SIZE.fullmatch(text.strip())
        unit = _SIZES.get(match[2].upper()) if match else None
        size = int(match[1]) * unit if match and unit else -1
        if size < least:
            raise ValueError(f"a size of at least {least} bytes, such as 65536, 64KiB or 1MiB")
        return size

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        word = text.strip().lower()
        if word not in choices:
            raise ValueError(f"one of {', '.join(choices)}" + did_you_mean(word, choices))
        return word

    return parse


def parse_cache_url(text: str) -> str:
    """Where the cache level shared by processes is: nowhere, in memory, a Valkey or Redis server, or PostgreSQL.

    The URL of a Valkey server has a host or the path of a Unix socket, perhaps user and password (percent-encoded), a
    database number and for TLS the names of files: nothing that would lift a bound.
    """
    url = parse_text(text)
    if url in ("", "memory://") or (url.startswith(DATABASES) and len(url) > len(DATABASES[0])):
        return url
    expected = (
        "empty, memory://, or a URL such as valkey://user:password@host:6379/0, rediss://host?ssl_ca_certs=/ca.pem, "
        "unix:///run/valkey.sock or postgresql://user:password@host:5432/name"
    )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme not in CACHE_SERVERS or parts.fragment or " " in url or port == 0:
        raise ValueError(expected)
    if parts.scheme == "unix":
        placed = parts.path.startswith("/") and len(parts.path) > 1 and not host
    else:
        placed = host is not None and _is_host(host) and re.fullmatch(r"(/[0-9]{0,4})?", parts.path) is not None
    if not placed or any(not value or name not in _CACHE_OPTIONS[parts.scheme] for name, value in options):
        raise ValueError(expected)
    return url


def parse_database_url(text: str) -> str:
    """Where the database is: PostgreSQL, or nothing for a file."""
    url = parse_text(text)
    if url and not url.startswith(DATABASES):
        raise ValueError("empty, or a URL such as postgresql://user:password@host:5432/name")
    return url


def parse_base_url(text: str) -> BaseUrl:
    """Split the base URL of an API. A trailing ``/v1`` is dropped: the paths carry it."""
    expected = "a URL such as https://api.example.com, without user, query and fragment"
    text = text.strip()
    if not (text.isascii() and text.isprintable()) or " " in text or "\\" in text:
        raise ValueError(expected)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme not in ("http", "https") or not host or not _is_host(host):
        raise ValueError(expected)
    if "@" in parts.netloc or "?" in text or "#" in text or port == 0 or not _PATH.fullmatch(parts.path):
        raise ValueError(expected)
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return BaseUrl(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), path)


def parse_base_url_text(text: str) -> str:
    """The same, for a setting that is kept as text: normalised."""
    return str(parse_base_url(text))


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return _HOST_NAME.fullmatch(host) is not None and len(host) <= 253
    return True


def did_you_mean(word: str, choices: tuple[str, ...] | list[str]) -> str:
    """`` (did you mean 'x'?)`` for the choice that ``word`` resembles, or nothing."""
    from difflib import get_close_matches  # for mistakes only: 0.4 MB

    close = get_close_matches(word, choices, n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def mask_url(text: str) -> str:
    """A value that may be a URL, without the user and password it may carry."""
    return re.sub(r"//[^/@\s]*@", "//…@", text)
