"""The heads of HTTP messages as the rest of the proxy sees them, whichever lane or transport they came through.

Header names are lower-case ``bytes`` and values are ``bytes`` throughout: they arrive as bytes, are compared as
bytes and leave as bytes. ``HeaderList`` keeps order and repeats; ``RequestHead.headers`` is the joined view that
decisions read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from proxy.errors import Kind, ProxyError

HeaderList = list[tuple[bytes, bytes]]

# A second value of one of these changes who the caller is, or what and how long the body is; no rule picks a winner.
_SINGLE = frozenset(
    (
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"host",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"transfer-encoding",
        b"idempotency-key",
    )
)
_CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"api-key"))


class SentHeaders(list[tuple[bytes, bytes]]):
    """A header list that is sent with many requests: whoever writes it to the wire keeps its lines in ``lines``. It
    must not be changed once they are there."""

    __slots__ = ("lines",)

    def __init__(self, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(headers)
        self.lines: bytes | None = None


class RequestHead:
    """Method, target and headers of a client request; no body. One object may stand for many requests of a connection
    whose heads differ in nothing but the length of their bodies, so nobody changes it."""

    __slots__ = ("headers", "method", "path", "query", "raw", "terms")

    def __init__(self, method: str, path: str, query: str, headers: dict[bytes, bytes], raw: HeaderList) -> None:
        self.method = method
        """Upper-case token as sent."""
        self.path = path
        """Raw path without the query, never decoded."""
        self.query = query
        """Raw query without ``?``; empty when there is none."""
        self.headers = headers
        """Lower-case name to value; the values of a repeated header are joined by ``, ``."""
        self.raw = raw
        """Every header line in order, names lower-case."""
        self.terms: Any = None
        """What the pipeline made of it the last time; opaque here."""

    def get(self, name: bytes) -> bytes:
        """The header's value, or ``b""``."""
        return self.headers.get(name, b"")


def make_request_head(method: str, target: str, lines: Iterable[tuple[bytes, bytes]]) -> RequestHead:
    """Build a head from a request line and header lines.

    Raises ``ProxyError`` (``AMBIGUOUS_CREDENTIAL``, ``BAD_REQUEST``) for repeats that have no single meaning and
    for a target that is not origin-form.
    """
    if not target.startswith("/"):
        raise ProxyError(Kind.BAD_REQUEST, "The request target must be a path.", why="target")
    path, _, query = target.partition("?")
    headers: dict[bytes, bytes] = {}
    raw: HeaderList = []
    for sent_name, value in lines:
        name = sent_name.lower()
        raw.append((name, value))
        if name in headers:
            if name in _SINGLE:
                raise _repeated(name)
            headers[name] += b", " + value
        else:
            headers[name] = value
    if len(headers.keys() & _CREDENTIALS) > 1:
        raise ProxyError(
            Kind.AMBIGUOUS_CREDENTIAL,
            "The request carries more than one credential; send either Authorization or x-api-key.",
        )
    return RequestHead(method, path, query, headers, raw)


def _repeated(name: bytes) -> ProxyError:
    kind = Kind.AMBIGUOUS_CREDENTIAL if name in _CREDENTIALS else Kind.BAD_REQUEST
    return ProxyError(kind, f"The header {name.decode('latin-1')} may be sent only once.", why="repeated_header")


class ResponseHead:
    """Status and headers of one upstream response, final (never 1xx)."""

    __slots__ = ("first", "headers", "status")

    def __init__(self, status: int, headers: HeaderList) -> None:
        self.status = status
        self.headers = headers
        """Lower-case names, values as received, hop-by-hop ones included."""
        self.first = dict(headers[::-1])
        """The first value of each name."""

    def get(self, name: bytes) -> bytes:
        """First value of the header, or ``b""``."""
        return self.first.get(name, b"")

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} {len(self.headers)} headers>"
