"""The bytes of a request head."""

from __future__ import annotations

import pytest

from proxy.errors import Kind, ProxyError
from proxy.upstream.base import Origin, UpstreamRequest
from proxy.upstream.compose import make_head, make_line_end
from tests.fakes.receiver import HandFedBody

ORIGIN = Origin("https", "api.example", 443)


def head(method: str = "POST", target: str = "/v1/x?y=%2F", headers: object = (), body: object = b"") -> bytes:
    request = UpstreamRequest(ORIGIN, method, target, list(headers), body)  # type: ignore[arg-type, call-overload]
    return make_head(request, make_line_end(ORIGIN))


def test_head_has_request_line_host_headers_and_length() -> None:
    """In that order, names and values as given."""
    assert head(headers=[(b"a", b"1"), (b"b", b"")], body=b"abc") == (
        b"POST /v1/x?y=%2F HTTP/1.1\r\nhost: api.example\r\ncontent-length: 3\r\na: 1\r\nb: \r\n\r\n"
    )


def test_head_without_headers_and_body_is_just_that() -> None:
    """A bare GET."""
    assert head("GET", "/") == b"GET / HTTP/1.1\r\nhost: api.example\r\n\r\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_methods_with_body_say_that_it_is_empty(method: str) -> None:
    """Else servers answer 411."""
    assert head(method).endswith(b"\r\ncontent-length: 0\r\n\r\n")


def test_streamed_bodies_are_framed_by_what_is_known() -> None:
    """A length if there is one, chunks if not."""
    assert head(body=HandFedBody(7)).endswith(b"\r\ncontent-length: 7\r\n\r\n")
    assert head(body=HandFedBody()).endswith(b"\r\ntransfer-encoding: chunked\r\n\r\n")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (Origin("https", "api.example", 8443), "api.example:8443"),
        (Origin("http", "api.example", 80), "api.example"),
        (Origin("http", "2001:db8::1", 8080), "[2001:db8::1]:8080"),
    ],
)
def test_host_leaves_default_ports_out(origin: Origin, host: str) -> None:
    """RFC 9110, section 7.2."""
    assert make_line_end(origin) == f" HTTP/1.1\r\nhost: {host}\r\n"


@pytest.mark.parametrize(
    "case",
    [
        {"headers": [(b"a", b"1\r\nb: 2")]},
        {"headers": [(b"a", b"1\nb: 2")]},
        {"headers": [(b"a", b"1\r2")]},
        {"headers": [(b"a\r\nb", b"1")]},
        {"headers": [(b"a", b"1\0")]},
        {"target": "/ HTTP/1.1\r\nx: y"},
        {"target": "/a b"},
        {"target": "/a\nb"},
        {"method": "GET /x"},
    ],
)
def test_head_that_would_be_more_than_one_is_refused(case: dict[str, object]) -> None:
    """Request splitting ends here, whatever let it through before."""
    with pytest.raises(ProxyError) as caught:
        head(**case)  # type: ignore[arg-type]
    assert caught.value.kind is Kind.BUG


def test_target_beyond_ascii_keeps_its_bytes() -> None:
    """Undecodable bytes that were carried as surrogates come out as they went in."""
    assert head("GET", b"/\xc3\xa9\xff".decode("utf-8", "surrogateescape")).startswith(b"GET /\xc3\xa9\xff HTTP/1.1")
