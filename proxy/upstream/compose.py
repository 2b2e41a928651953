"""The bytes of a request head (RFC 9112, sections 2 to 6)."""

from __future__ import annotations

from proxy.protocol.message import HeaderList, SentHeaders
from proxy.upstream import faults
from proxy.upstream.base import Origin, UpstreamRequest

# Servers may answer 411 to these when they come without a length (RFC 9110, section 8.6).
_METHODS_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))

_join_lines = b"\r\n".join
_join_field = b": ".join


def make_line_end(origin: Origin) -> str:
    """What follows the target in every head sent to ``origin``: version and ``Host``."""
    return f" HTTP/1.1\r\nhost: {origin.authority}\r\n"


def make_head(request: UpstreamRequest, line_end: str) -> bytes:
    """Request line, ``host``, framing, the headers as given, and the empty line.

    Raises ``ProxyError`` (``BUG``) if a header or the target would end a line or a field of its own: whoever built
    the request let a control byte through, and sending it would be request splitting.
    """
    method, target, headers = request.method, request.target, request.headers
    framing = _framing(request)
    start = f"{method} {target}{line_end}{framing}".encode("utf-8", "surrogateescape")
    lines = headers.lines if type(headers) is SentHeaders else None
    if lines is None:
        lines = _render(headers)
        if type(headers) is SentHeaders:
            headers.lines = lines
    # Request line and host are ours, framing is one more or none. Scans at the speed of memchr.
    ends = 2 + bool(framing)
    if start.count(b"\n") != ends or start.count(b"\r") != ends or 0 in start or " " in target or " " in method:
        raise faults.malformed_request(f"control byte or space in the head of {method} {target!r}")
    return start + lines


def _render(headers: HeaderList) -> bytes:
    """The header lines and the empty line, checked as `make_head` says."""
    lines = b"%b\r\n\r\n" % _join_lines(map(_join_field, headers)) if headers else b"\r\n"
    ends = 1 + len(headers)
    if lines.count(b"\n") != ends or lines.count(b"\r") != ends or 0 in lines:
        raise faults.malformed_request("control byte in a header")
    return lines


def _framing(request: UpstreamRequest) -> str:
    body = request.body
    if isinstance(body, bytes):
        return f"content-length: {len(body)}\r\n" if body or request.method in _METHODS_WITH_BODY else ""
    return "transfer-encoding: chunked\r\n" if body.length is None else f"content-length: {body.length}\r\n"
