"""Heads of plain requests: the few that the fast lane reads itself, each read once.

A head is plain when no two readers of HTTP/1.1 could differ about it: ``POST`` of a route whose body is held,
printable ASCII in lines that end as they should, no name twice, one length in digits, nothing about codings,
expectations, upgrades or the end of the connection. This is a small part of what aiohttp's parser takes, and read the
same there; whatever is not plain is that parser's.

A client that keeps its connection sends the same bytes each time, but for the length of the body. So a head that was
read is kept with those bytes and recognised by them: equality leaves nothing to be parsed wrongly. It is shared by
all connections that send it and dies with the last of them, and with it the credential inside.
"""

from __future__ import annotations

from typing import Final
from weakref import WeakValueDictionary

from proxy.errors import ProxyError
from proxy.protocol.message import HeaderList, RequestHead, make_request_head
from proxy.protocol.routes import locate

MAX_PLAIN_HEAD_BYTES: Final = 8192
_MAX_LINES: Final = 64
_MAX_DIGITS: Final = 9

_PRINTABLE: Final = bytes(range(32, 127))
_TARGET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/?%&=+,:@"
_LENGTH: Final = b"content-length"
_METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
# What changes the framing, the connection or the protocol, or is refused by aiohttp's parser.
_UNUSUAL: Final = frozenset(
    (
        b"expect",
        b"http2-settings",
        b"proxy-connection",
        b"sec-websocket-key1",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)


class PlainHead:
    """One head without its length. Immutable, and so is its ``head``, which many requests share; that has no
    ``content-length``, because a number that was true once is worse than none."""

    __slots__ = ("__weakref__", "_at", "_before", "_behind", "_size", "head")

    def __init__(self, before: bytes, behind: bytes, head: RequestHead) -> None:
        self._before = before
        """From the request line up to the digits of the length."""
        self._behind = behind
        """From behind these digits through the empty line."""
        self._at, self._size = len(before), len(behind)
        self.head = head

    def measure(self, data: bytes) -> tuple[int, int] | None:
        """The bytes of the body and where they begin in ``data``, if it begins with this head."""
        if not data.startswith(self._before):
            return None
        at = self._at
        end = data.find(b"\r", at, at + _MAX_DIGITS + 1)
        if end < 0 or not data.startswith(self._behind, end):
            return None
        digits = data[at:end]
        return (int(digits), end + self._size) if digits.isdigit() else None


class PlainHeads:
    """Every plain head that is in use on some connection."""

    # Mutable state: _known, to which `read` adds and from which entries go by themselves.
    __slots__ = ("_known", "_limit_bytes")

    def __init__(self, max_header_bytes: int) -> None:
        # Near the limit of heads is unusual enough.
        self._limit_bytes = min(MAX_PLAIN_HEAD_BYTES, max_header_bytes // 2)
        self._known: WeakValueDictionary[tuple[bytes, bytes], PlainHead] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._known)

    def read(self, data: bytes) -> PlainHead | None:
        """The head that ``data`` begins with; ``None`` if it is not whole or not plain. The same object for the same
        bytes."""
        if not data.startswith(b"POST /"):
            return None
        end = data.find(b"\r\n\r\n", 0, self._limit_bytes) + 4
        if end < 4:
            return None
        lines = _split(data[:end])
        if lines is None:
            return None
        at = _find_length(lines)
        if at < 0:
            return None  # none, or not one
        before, behind = data[:at], data[data.index(b"\r", at) : end]
        known = self._known.get((before, behind))
        if known is None:
            head = _make_head(lines)
            if head is None or head.method != "POST" or not _is_held(head):
                return None
            known = self._known[before, behind] = PlainHead(before, behind, head)
        return known


class Extent:
    """Whether the bytes of a connection, from where a request begins, are exactly that request, as far as its framing
    is beyond doubt. Once in doubt, for good."""

    # Mutable state: _head is what came of a head that is not whole, _left_bytes what is missing of the body behind
    # it, negative for too much and in doubt; written by `feed`.
    __slots__ = ("_head", "_left_bytes")

    def __init__(self) -> None:
        self._head: bytes | None = b""
        self._left_bytes = 1

    def feed(self, data: bytes) -> None:
        if self._head is None:
            self._left_bytes -= len(data)
            return
        head = self._head + data
        end = head.find(b"\r\n\r\n", 0, MAX_PLAIN_HEAD_BYTES) + 4
        if end >= 4:
            self._head = None
            self._left_bytes = _measure(head[:end]) - len(head) + end
        elif len(head) < MAX_PLAIN_HEAD_BYTES:
            self._head = head
        else:
            self._head, self._left_bytes = None, _IN_DOUBT

    @property
    def whole(self) -> bool:
        return self._left_bytes == 0


_IN_DOUBT: Final = -1
_NONE: Final = -1
_WRONG: Final = -2


def _measure(block: bytes) -> int:
    """The bytes of the body behind a head of whatever method and route."""
    lines = _split(block)
    if lines is None:
        return _IN_DOUBT
    at, head = _find_length(lines), _make_head(lines)
    if at == _WRONG or head is None:
        return _IN_DOUBT
    return int(block[at : block.index(b"\r", at)]) if at != _NONE else 0


def _split(block: bytes) -> list[bytes] | None:
    """The lines of a head that has nothing but printable ASCII between its line ends, else ``None``."""
    if len(block.translate(None, _PRINTABLE)) != 2 * block.count(b"\r\n"):
        return None  # a control, a byte beyond ASCII, or half a line end
    lines = block.split(b"\r\n")
    del lines[-2:]
    return lines if len(lines) <= _MAX_LINES else None


def _find_length(lines: list[bytes]) -> int:
    """Where the digits of the only ``Content-Length`` begin in the head; ``_NONE``, or ``_WRONG`` if there are two or
    no digits."""
    at, found = 0, _NONE
    for line in lines:
        if line[:14].lower() == _LENGTH and line[14:15] == b":":
            digits = line[15:].removeprefix(b" ")
            if found != _NONE or not digits.isdigit() or len(digits) > _MAX_DIGITS:
                return _WRONG
            found = at + len(line) - len(digits)
        at += len(line) + 2
    return found


def _make_head(lines: list[bytes]) -> RequestHead | None:
    """The head, without its length, if every line is plain and all of them together are."""
    first = lines[0].split(b" ")
    if len(first) != 3 or first[0] not in _METHODS or first[2] != b"HTTP/1.1" or first[1].translate(None, _TARGET):
        return None
    headers: HeaderList = []
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not value or value != value.strip(b" ") or not name.replace(b"-", b"").isalnum():
            return None
        if name.lower() != _LENGTH:
            headers.append((name, value))
    try:
        head = make_request_head(first[0].decode(), first[1].decode(), headers)
    except ProxyError:
        return None
    return head if _is_plain(head) else None


def _is_plain(head: RequestHead) -> bool:
    headers = head.headers
    return (
        len(headers) == len(head.raw)
        and b"host" in headers
        and headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        and _UNUSUAL.isdisjoint(headers)
    )


def _is_held(head: RequestHead) -> bool:
    """Whether the body of such a request is taken as a whole."""
    try:
        return locate(head).route.has_json_body
    except ProxyError:
        return False
