"""One answer of the mock before it is put on a wire, and the head that each vendor would put before it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from proxy.mock.options import MockOptions

JSON = b"application/json"
SSE = b"text/event-stream; charset=utf-8"

OPENAI = "openai"
ANTHROPIC = "anthropic"
MISTRAL = "mistral"

_YEAR_2025 = 1_735_689_600
"""Its first second; 24 bits of a digest stay within the year."""


class Call(NamedTuple):
    """One whole request to the mock."""

    method: str
    path: str
    """Without query and without a dialect's mount."""
    query: str
    headers: dict[bytes, bytes]
    """Lower-case names; the last value of a repeated one."""
    body: bytes
    """``b""`` for uploads, which are counted and not kept."""
    digest: bytes
    """SHA-256 of the body, of method and target if there is none."""
    serial: int
    """1 for the first call of the process."""
    dialect: str
    data: dict[str, Any]
    """The body's JSON object, ``{}`` for other bodies."""
    model: str
    """The model asked for, without options."""
    options: MockOptions

    @property
    def wants_stream(self) -> bool:
        return self.data.get("stream") is True

    def make_id(self, prefix: str) -> str:
        """An id that no other call of this process has, or none with another body if answers are repeatable."""
        if self.options.repeatable:
            return f"{prefix}{self.digest[:12].hex()}"
        return self.make_serial_id(prefix)

    def make_serial_id(self, prefix: str) -> str:
        """An id that no other call of this process has."""
        return f"{prefix}{self.serial:08x}{self.digest[:8].hex()}"

    @property
    def created(self) -> int:
        """Unix second of the answer's making; a moment of 2025 drawn from the body if answers are repeatable."""
        if self.options.repeatable:
            return _YEAR_2025 + int.from_bytes(self.digest[12:15], "big")
        return int(time.time())


class Answer(NamedTuple):
    """Status and body. Exactly one of ``body``, ``pieces`` and ``bulk_bytes`` carries something."""

    status: int = 200
    content_type: bytes = JSON
    body: bytes = b""
    pieces: Sequence[bytes] | None = None
    """A stream: one server-sent event, blank line included, for each piece."""
    terminal: int = 0
    """How many of the last pieces tell the client that the stream is complete."""
    error_event: bytes = b""
    """The event with which this stream would report a failure."""
    bulk_bytes: int = -1
    """Size of a generated binary body that is never held in memory whole."""
    chunked: bool = False
    """Whether the binary body is sent without a length."""
    headers: tuple[tuple[bytes, bytes], ...] = ()


def answer_json(value: object, status: int = 200, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    return Answer(status, JSON, orjson.dumps(value), headers=headers)


def make_event(value: object, name: str = "") -> bytes:
    """One server-sent event; with a name it has an ``event:`` line."""
    if name:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(value))
    return b"data: %b\n\n" % orjson.dumps(value)


HOLE = "\x00hole\x00"
"""Stands in a template for the one string in which a stream's events differ; see ``repeat_event``."""
_HOLE_JSON = orjson.dumps(HOLE)


def repeat_event(template: object, tokens: list[str], name: str = "") -> list[bytes]:
    """One event for each token: the template is rendered once and its ``HOLE`` filled again and again."""
    before, _, after = make_event(template, name).partition(_HOLE_JSON)
    return [before + orjson.dumps(token) + after for token in tokens]


_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    405: b"Method Not Allowed",
    413: b"Payload Too Large",
    429: b"Too Many Requests",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
    529: b"Overloaded",
}

# As the vendors' edges send them, noise included: a proxy has to sort these out.
_VENDOR = {
    OPENAI: (
        b"server: cloudflare\r\nopenai-organization: mock-org\r\nopenai-version: 2020-10-01\r\n"
        b"openai-processing-ms: %(ms)d\r\nx-request-id: req_%(id)b\r\n"
        b"x-ratelimit-limit-requests: 10000\r\nx-ratelimit-limit-tokens: 2000000\r\n"
        b"x-ratelimit-remaining-requests: %(left)d\r\nx-ratelimit-remaining-tokens: 1999000\r\n"
        b"x-ratelimit-reset-requests: 6ms\r\nx-ratelimit-reset-tokens: 30ms\r\n"
        b"cf-cache-status: DYNAMIC\r\ncf-ray: %(ray)b-MCK\r\nalt-svc: h3=\":443\"; ma=86400\r\n"
        b"set-cookie: __cf_bm=%(id)b; path=/; HttpOnly; Secure; SameSite=None\r\n"
    ),
    ANTHROPIC: (
        b"server: cloudflare\r\nrequest-id: req_%(id)b\r\nanthropic-organization-id: mock-org\r\n"
        b"anthropic-ratelimit-requests-limit: 4000\r\nanthropic-ratelimit-requests-remaining: %(left)d\r\n"
        b"anthropic-ratelimit-requests-reset: %(reset)b\r\nanthropic-ratelimit-tokens-limit: 400000\r\n"
        b"anthropic-ratelimit-tokens-remaining: 399000\r\nanthropic-ratelimit-tokens-reset: %(reset)b\r\n"
        b"via: 1.1 google\r\ncf-cache-status: DYNAMIC\r\ncf-ray: %(ray)b-MCK\r\n"
        b"set-cookie: __cf_bm=%(id)b; path=/; HttpOnly; Secure; SameSite=None\r\n"
    ),
    MISTRAL: (
        b"server: cloudflare\r\nmistral-correlation-id: %(id)b\r\nx-kong-request-id: %(id)b\r\n"
        b"x-envoy-upstream-service-time: %(ms)d\r\nx-ratelimit-limit-req-minute: 60\r\n"
        b"x-ratelimit-remaining-req-minute: %(left)d\r\nx-ratelimit-limit-tokens-minute: 500000\r\n"
        b"x-ratelimit-remaining-tokens-minute: 499000\r\ncf-ray: %(ray)b-MCK\r\n"
        b"set-cookie: __cf_bm=%(id)b; path=/; HttpOnly; Secure; SameSite=None\r\n"
    ),
}


class Letterhead:
    """Renders response heads; the date is formatted once a second."""

    # The mutable state: _second is the Unix second that _date and _reset belong to; only `render` writes them.
    __slots__ = ("_date", "_reset", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._date = self._reset = b""

    def render(self, call: Call, answer: Answer, framing: bytes, wall: float) -> bytes:
        """Status line and headers up to and with the blank line. ``framing`` is a header line with its CRLF."""
        if int(wall) != self._second:
            self._second = int(wall)
            moment = time.gmtime(self._second)
            self._date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", moment).encode()
            self._reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", moment).encode()
        vendor = _VENDOR[call.dialect] % {
            b"id": b"%016x%b" % (call.serial, call.digest[:8].hex().encode()),
            b"ray": call.digest[8:16].hex().encode(),
            b"ms": int(call.options.latency_ms) + 1,
            b"left": 9999 - call.serial % 1000,
            b"reset": self._reset,
        }
        extra = b"".join([b"%b: %b\r\n" % pair for pair in answer.headers])
        return b"HTTP/1.1 %d %b\r\ndate: %b\r\ncontent-type: %b\r\n%b%b%b\r\n" % (
            answer.status,
            _REASONS.get(answer.status, b"Mock"),
            self._date,
            answer.content_type,
            framing,
            vendor,
            extra,
        )
