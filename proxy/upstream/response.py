"""Reading responses off a connection: llhttp, and everything HTTP/1.1 leaves to the recipient's care. Sans-IO.

A response is accepted only if its framing has one meaning (RFC 9112, section 6) and its size has a bound; anything
else is an error, never a guess.
"""

from __future__ import annotations

from typing import NoReturn

import httptools

from proxy.errors import ProxyError
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.upstream import faults
from proxy.upstream.counts import Caps

_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_BODILESS = frozenset((204, 304))


class _SurplusError(Exception):
    """Raised inside the parser's callback to stop it at the first byte after the message."""


class ResponseReader:
    """The parser of one connection, for one response after the other.

    ``begin`` before each, ``feed`` for each read, then look at ``head``, ``take_body`` and ``ended``.
    """

    # Written by `begin`, by `feed` and by the callbacks that the parser makes during `feed`; the connection clears
    # `head` once it has passed it on. `_spent_bytes` counts bytes since the last body byte.
    __slots__ = (
        "_body_bytes",
        "_caps",
        "_feed",
        "_headers",
        "_informational",
        "_is_head",
        "_parser",
        "_rejection",
        "_spent_bytes",
        "close_delimited",
        "ended",
        "head",
        "head_seen",
        "on_body",
        "pieces",
        "reusable",
        "surplus",
    )

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._headers: HeaderList = []
        self._rejection: ProxyError | None = None
        self.head: ResponseHead | None = None
        self.ended = False
        """The message is complete."""
        # The parser appends body pieces straight to the list, without a Python frame for each.
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append
        self._renew()

    def _renew(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data

    def drop(self) -> None:
        """Let the parser go: it holds our bound methods, a cycle that would wait for the collector."""
        del self._parser, self._feed

    def begin(self, is_head: bool) -> None:
        """Expect the answer to the next request; ``is_head`` if its method is HEAD."""
        self._is_head = is_head
        self._headers = []
        self.head = None
        self.head_seen = self.ended = self.surplus = False
        self.reusable = False
        """Whether the connection may carry another exchange, as far as the response goes."""
        self.close_delimited = False
        """The end of the connection is the end of the message."""
        self._informational = self._body_bytes = self._spent_bytes = 0

    def feed(self, data: bytes) -> None:
        """Parse one read. Raises ``ProxyError`` for a response that cannot be accepted; nothing of it counts then."""
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.ended:
                raise (self._rejection or faults.bad_response("garbage", str(error))) from None
            # The message was complete; what follows it is nobody's.
            self.surplus = True
            self.reusable = False
        if self._is_head and self.ended:
            self._end_bodiless(data)
        head = self.head
        if head is not None and self._spent_bytes + len(data) > self._caps.head_bytes and self._is_heavy(head):
            raise faults.bad_response("head_too_large")
        if self.pieces:
            self._spent_bytes = 0
        elif not self.ended:
            # Head lines, 1xx, chunk extensions, trailers: bounded together, as none of them is passed on.
            self._spent_bytes += len(data)
            if self._spent_bytes > self._caps.head_bytes:
                raise faults.bad_response("head_too_large", "too many bytes without body")

    def take_body(self) -> bytes:
        """The body bytes of this read. Raises ``ProxyError`` (``UPSTREAM_TOO_LARGE``)."""
        pieces = self.pieces
        if not pieces:
            return b""
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._body_bytes += len(body)
        if self._body_bytes > self._caps.body_bytes:
            raise faults.too_large(self._caps.body_bytes)
        return body

    def _is_heavy(self, head: ResponseHead) -> bool:
        """Asked only when the head came in reads that together are larger than the cap."""
        return sum(len(name) + len(value) + 4 for name, value in head.headers) > self._caps.head_bytes

    def _end_bodiless(self, data: bytes) -> None:
        """End the answer to a HEAD request, which has the framing of a body but no body.

        llhttp cannot be told, so it starts afresh; any byte after the empty line makes the connection unfit.
        """
        if self.pieces or not data.endswith(b"\r\n\r\n"):
            self.pieces.clear()
            self.reusable = False
            self.surplus = True
        self._renew()

    # -- the parser calls --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.ended:
            raise _SurplusError

    def on_header(self, name: bytes, value: bytes) -> None:
        # Called once a header, a tenth of an exchange in all. Trailers end up in a list that nobody reads.
        name = name.lower()
        if name in _FRAMING and not self.head_seen:
            self._check_framing(name, value)
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers = self._headers
        self._headers = []
        if status < 200:
            self._check_informational(status)
            return
        if len(headers) > self._caps.headers:
            self._reject(faults.bad_response("too_many_headers", str(len(headers))))
        self.head = ResponseHead(status, headers)
        self.head_seen = True
        self.reusable = self._parser.should_keep_alive()
        if not self.reusable:
            self._check_last(status, headers)
        if self._is_head:
            self.ended = True

    def on_message_complete(self) -> None:
        if self.head_seen:
            self.ended = True

    def _check_framing(self, name: bytes, value: bytes) -> None:
        """What llhttp lets through and no recipient may guess at."""
        if name == b"content-length":
            if int(value) > self._caps.body_bytes and not self._is_head:
                self._reject(faults.too_large(self._caps.body_bytes))
        elif value.strip().lower() != b"chunked" or any(key == name for key, _ in self._headers):
            self._reject(faults.bad_response("transfer_encoding", repr(value)))
        elif self._parser.get_http_version() != "1.1":
            self._reject(faults.bad_response("transfer_encoding", "in HTTP/1.0"))

    def _check_last(self, status: int, headers: HeaderList) -> None:
        """The connection ends after this message, which may be what ends the message."""
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._reject(faults.bad_response("http_version", version))
        self.close_delimited = status not in _BODILESS and not any(name in _FRAMING for name, _ in headers)

    def _check_informational(self, status: int) -> None:
        self._informational += 1
        if status == 101:
            self._reject(faults.bad_response("switching_protocols"))
        if self._informational > self._caps.informational:
            self._reject(faults.bad_response("informational_flood"))

    def _reject(self, error: ProxyError) -> NoReturn:
        self._rejection = error  # the parser keeps our exception only for some of its callbacks
        raise error
