"""The bytes of a request head (RFC 9112, sections 2 to 6)."""

from __future__ import annotations

from proxy.upstream import faults
from proxy.upstream.base import Origin, UpstreamRequest

# Servers may answer 411 to these when they come without a length (RFC 9110, section 8.6).
_METHODS_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))


def make_line_end(origin: Origin) -> str:
    """What follows the target in every head sent to ``origin``: version and ``Host``."""
    return f" HTTP/1.1\r\nhost: {origin.authority}\r\n"


def make_head(request: UpstreamRequest, line_end: str) -> bytes:
    """Request line, ``host``, the headers as given, framing, and the empty line.

    Raises ``ProxyError`` (``BUG``) if a header or the target would end a line or a field of its own: whoever built
    the request let a control byte through, and sending it would be request splitting.
    """
    start = request.method + " " + request.target + line_end
    headers = request.headers
    lines = b"\r\n".join(map(b": ".join, headers))
    framing = _framing(request)
    head = b"".join((start.encode("utf-8", "surrogateescape"), lines, b"\r\n" if headers else b"", framing))
    # Two lines of ours, one for each header, one or two of framing. Three scans at the speed of memchr.
    ends = 2 + len(headers) + (1 if framing == b"\r\n" else 2)
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head or start.count(" ") != 3:
        raise faults.malformed_request(f"control byte or space in the head of {request.method} {request.target!r}")
    return head


def _framing(request: UpstreamRequest) -> bytes:
    body = request.body
    if isinstance(body, bytes):
        if body or request.method in _METHODS_WITH_BODY:
            return b"content-length: %d\r\n\r\n" % len(body)
        return b"\r\n"
    if body.length is None:
        return b"transfer-encoding: chunked\r\n\r\n"
    return b"content-length: %d\r\n\r\n" % body.length
