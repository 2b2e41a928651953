"""Which outbound proxy an origin is reached through, from the environment variables everybody uses.

``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``, lower-case names first as in curl. The environment
is read once, by whoever calls ``from_environment``; after that the answer is a pure function of the origin.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from proxy.upstream.base import Origin

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Bypass(NamedTuple):
    """One entry of ``NO_PROXY``."""

    suffix: str = ""
    """``.example.com``; empty for networks."""
    network: _Network | None = None
    port: int | None = None
    itself: bool = True
    """Whether the suffix without its dot matches too; not for ``.example.com`` written with the dot."""


class ProxyRules(NamedTuple):
    """What the environment said. ``proxy_for`` is the question to ask."""

    http: str | None = None
    https: str | None = None
    direct: tuple[Bypass, ...] = ()
    all_direct: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ProxyRules:
        """Raises ``ValueError`` for a proxy URL that cannot be used: going around a proxy is never the answer."""
        everything = _read(environment, "ALL_PROXY")
        entries = [entry for entry in _value(environment, "NO_PROXY").replace(",", " ").split() if entry]
        return cls(
            http=_read(environment, "HTTP_PROXY") or everything,
            https=_read(environment, "HTTPS_PROXY") or everything,
            direct=tuple(_make_bypass(entry) for entry in entries if entry != "*"),
            all_direct="*" in entries,
        )

    def proxy_for(self, origin: Origin) -> str | None:
        """The proxy's URL, or ``None`` to connect directly. The loopback is always direct."""
        proxy = self.https if origin.scheme == "https" else self.http
        if proxy is None or self.all_direct:
            return None
        host = origin.host.lower().rstrip(".")
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return None
        if any(_matches(entry, host, address, origin.port) for entry in self.direct):
            return None
        return proxy


def _value(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name.lower(), "").strip() or environment.get(name, "").strip()


def _read(environment: Mapping[str, str], name: str) -> str | None:
    value = _value(environment, name)
    if not value:
        return None
    if "://" not in value:
        value = f"http://{value}"
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name}: only http:// and https:// proxies are supported")
    return value


def _make_bypass(entry: str) -> Bypass:
    host, port = _split_port(entry.lower())
    try:
        return Bypass(network=ipaddress.ip_network(host.strip("[]"), strict=False), port=port)
    except ValueError:
        name = host.removeprefix("*").rstrip(".")
        return Bypass(suffix="." + name.lstrip("."), port=port, itself=not name.startswith("."))


def _split_port(entry: str) -> tuple[str, int | None]:
    """``host:8080``, ``[::1]:8080``, and addresses of IPv6, whose colons are not ports."""
    host, colon, port = entry.rpartition(":")
    if not colon or not port.isdigit() or (":" in host and not host.endswith("]")):
        return entry, None
    return host, int(port)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _matches(
    entry: Bypass, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int
) -> bool:
    if entry.port is not None and entry.port != port:
        return False
    if entry.network is not None:
        return address is not None and address in entry.network
    return host.endswith(entry.suffix) or (entry.itself and host == entry.suffix[1:])
