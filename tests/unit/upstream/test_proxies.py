"""Reading the proxy environment as other programs do."""

from __future__ import annotations

import pytest

from proxy.upstream.base import Origin
from proxy.upstream.proxies import ProxyRules


def proxy_for(url: str, **environment: str) -> str | None:
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    return ProxyRules.from_environment(environment).proxy_for(Origin(scheme, host, int(port)))


def test_empty_environment_means_direct() -> None:
    """No variable, no proxy."""
    assert proxy_for("https://api.example:443") is None


def test_each_scheme_has_its_variable() -> None:
    """``HTTPS_PROXY`` is for https origins and ``HTTP_PROXY`` for http ones."""
    both = {"HTTPS_PROXY": "http://s:1", "HTTP_PROXY": "http://p:2"}
    assert proxy_for("https://api.example:443", **both) == "http://s:1"
    assert proxy_for("http://api.example:80", **both) == "http://p:2"
    assert proxy_for("http://api.example:80", HTTPS_PROXY="http://s:1") is None


def test_all_proxy_is_for_what_has_none() -> None:
    """The specific variable goes first."""
    assert proxy_for("http://a.example:80", ALL_PROXY="http://all:1", HTTPS_PROXY="http://s:1") == "http://all:1"
    assert proxy_for("https://a.example:443", ALL_PROXY="http://all:1", HTTPS_PROXY="http://s:1") == "http://s:1"


def test_lower_case_names_win_and_empty_ones_do_not_count() -> None:
    """As in curl."""
    assert proxy_for("https://a.example:443", https_proxy="http://low:1", HTTPS_PROXY="http://up:1") == "http://low:1"
    assert proxy_for("https://a.example:443", https_proxy="", HTTPS_PROXY="http://up:1") == "http://up:1"


def test_proxy_without_scheme_is_an_http_one() -> None:
    """People write ``proxy:3128``."""
    assert proxy_for("https://a.example:443", HTTPS_PROXY="proxy:3128") == "http://proxy:3128"


@pytest.mark.parametrize("value", ["socks5://proxy:1080", "ftp://proxy", "http://"])
def test_proxy_that_cannot_be_used_is_an_error(value: str) -> None:
    """Going around a proxy that an operator demands would be worse."""
    with pytest.raises(ValueError, match="HTTPS_PROXY"):
        proxy_for("https://a.example:443", HTTPS_PROXY=value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "LOCALHOST."])
def test_loopback_is_always_direct(host: str) -> None:
    """A proxy elsewhere cannot reach our own machine."""
    assert proxy_for(f"http://{host}:8080", HTTP_PROXY="http://p:1") is None


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("*", "anything.example", True),
        ("example.com", "example.com", True),
        ("example.com", "api.example.com", True),
        ("example.com", "badexample.com", False),
        (".example.com", "api.example.com", True),
        (".example.com", "example.com", False),
        ("*.example.com", "api.example.com", True),
        ("EXAMPLE.com", "api.Example.COM", True),
        ("example.com.", "example.com.", True),
        ("example.com:443", "example.com", True),
        ("example.com:8443", "example.com", False),
        ("other.example, example.com", "example.com", True),
        ("other.example example.com", "example.com", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "ten.example", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:443", "10.1.2.3", True),
        ("10.1.2.3:80", "10.1.2.3", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("2001:db8::1", "2001:db8::1", True),
        ("[2001:db8::1]:443", "2001:db8::1", True),
        ("[2001:db8::1]:80", "2001:db8::1", False),
        (" , ", "example.com", False),
    ],
)
def test_no_proxy_names_what_is_direct(no_proxy: str, host: str, direct: bool) -> None:
    """Names with their subdomains, addresses, networks, each with or without a port."""
    proxy = proxy_for(f"https://{host}:443", HTTPS_PROXY="http://p:1", NO_PROXY=no_proxy)
    assert (proxy is None) == direct
