"""One client's connection to the mock: reads requests, answers them one after another, notices who leaves."""

from __future__ import annotations

import asyncio
from collections import deque
from hashlib import sha256
from typing import TYPE_CHECKING, cast

import httptools

from proxy.mock.answer import Answer, Call
from proxy.mock.composition import compose, is_plain
from proxy.mock.emission import Emission, reset
from proxy.mock.multipart import MultipartCounter
from proxy.mock.options import EARLY_FAULTS, STATUS_FAULTS, Fault
from proxy.mock.refusal import refuse_with
from proxy.mock.routes import make_call

if TYPE_CHECKING:
    from proxy.clock import Deadline
    from proxy.mock.server import MockUpstream

MAX_BODY_BYTES = 64 << 20
MAX_HEAD_BYTES = 64 << 10
MAX_PIPELINED = 64
_REFUSED = b"HTTP/1.1 %d Refused\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_GARBAGE = b"\x16\x03\x01 this is no HTTP \x00\xff\r\n\r\n"


class Incoming:
    """A request while it is read."""

    __slots__ = ("body", "digest", "headers", "keep_alive", "modern", "raw", "size", "target", "upload")

    def __init__(self) -> None:
        self.target = b""
        self.raw: list[tuple[bytes, bytes]] = []
        self.headers: dict[bytes, bytes] = {}
        self.body: list[bytes] = []
        self.upload: MultipartCounter | None = None
        self.digest = b""
        self.size = 0
        self.keep_alive = True
        self.modern = True
        """Whether the client speaks HTTP/1.1, so that bodies may be chunked."""


class MockConnection(asyncio.Protocol):
    """Parses with llhttp and writes with the transport; no task, no stream, no timer of its own."""

    # The mutable state: _incoming is the request being read, _head_bytes counts its head; _waiting are whole ones
    # behind the one in work; _call with _emission or _timer is the one in work, None between requests. Written in the
    # loop's callbacks only.
    __slots__ = (
        "_call",
        "_emission",
        "_hash",
        "_head_bytes",
        "_incoming",
        "_keep_alive",
        "_parser",
        "_paused",
        "_reading_head",
        "_timer",
        "_transport",
        "_upstream",
        "_waiting",
    )

    def __init__(self, upstream: MockUpstream) -> None:
        self._upstream = upstream
        self._parser = httptools.HttpRequestParser(self)
        self._incoming = Incoming()
        self._hash = sha256()
        self._head_bytes = 0
        self._reading_head = False
        self._waiting: deque[tuple[str, Incoming]] = deque()
        self._call: Call | None = None
        self._keep_alive = True
        self._paused = False
        self._emission: Emission | None = None
        self._timer: Deadline | None = None
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)

    # --- the transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._upstream.attach(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.detach(self)
        if self._call is not None:
            self._call = None
            self._stop_work()
            self._upstream.count_abort()
        self._waiting.clear()
        # The parser holds this object; without the cycle both go at once.
        self._parser = cast("httptools.HttpRequestParser", None)

    def eof_received(self) -> bool:
        # A client of this server that stops sending has left; keeping the connection would hide it.
        return False

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserUpgrade, httptools.HttpParserError):
            self._refuse(400)
        if self._reading_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431)

    def pause_writing(self) -> None:
        self._paused = True
        if self._emission is not None:
            self._emission.pause()

    def resume_writing(self) -> None:
        self._paused = False
        if self._emission is not None:
            self._emission.resume()

    def abort(self) -> None:
        """Close at once, without an answer."""
        self._transport.abort()

    # --- the parser's callbacks

    def on_message_begin(self) -> None:
        self._incoming = Incoming()
        self._reading_head = True
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._incoming.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._incoming.raw.append((name, value))

    def on_headers_complete(self) -> None:
        incoming = self._incoming
        self._reading_head = False
        incoming.headers = {name.lower(): value for name, value in incoming.raw}
        if self._parser.should_upgrade():
            self._refuse(400)
        incoming.keep_alive = self._parser.should_keep_alive()
        incoming.modern = self._parser.get_http_version() == "1.1"
        kind = incoming.headers.get(b"content-type", b"")
        if kind.startswith(b"multipart/form-data"):
            incoming.upload = MultipartCounter(kind)
            self._hash = sha256()
        if incoming.headers.get(b"expect", b"").lower() == b"100-continue" and self._call is None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        incoming = self._incoming
        incoming.size += len(body)
        if incoming.upload is not None:
            incoming.upload.feed(body)
            self._hash.update(body)
            return
        if incoming.size > MAX_BODY_BYTES:
            self._refuse(413)
            return
        incoming.body.append(body)

    def on_message_complete(self) -> None:
        incoming = self._incoming
        method = self._parser.get_method().decode("latin-1")
        if incoming.upload is not None:
            incoming.digest = self._hash.digest()
        if self._call is None:
            self._start(method, incoming)
        elif len(self._waiting) < MAX_PIPELINED:
            self._waiting.append((method, incoming))
        else:
            self._transport.abort()

    def _refuse(self, status: int) -> None:
        """Answer a request that cannot be read, and close."""
        if not self._transport.is_closing():
            if self._call is None:
                self._transport.write(_REFUSED % status)
            self._transport.close()

    # --- one request after another

    def _start(self, method: str, incoming: Incoming) -> None:
        if self._transport.is_closing():
            return
        self._keep_alive = incoming.keep_alive
        body = b"".join(incoming.body)
        target = incoming.target.decode("latin-1")
        if self._upstream.options.canned and method == "POST" and incoming.upload is None:
            self._start_canned(target, incoming, body)
            return
        digest = incoming.digest or sha256(body or f"{method} {target}".encode("latin-1")).digest()
        upstream = self._upstream
        if target.startswith("/__mock/"):
            self._transport.write(upstream.control(method, target))
            self._next()
            return
        serial = upstream.count_call(method, target, incoming.raw, body, digest)
        call, problem = make_call(
            method, target, incoming.headers, body, digest, serial=serial, options=upstream.options
        )
        self._wait(call, upstream.routes.answer(call, incoming.upload, problem), incoming.modern)

    def _start_canned(self, target: str, incoming: Incoming, body: bytes) -> None:
        upstream = self._upstream
        key = (target, b'"stream":true' in body or b'"stream": true' in body)
        canned = upstream.canned.get(key)
        if canned is None:
            call, problem = make_call(
                "POST", target, incoming.headers, body, sha256(body).digest(), serial=1, options=upstream.options
            )
            canned = (call, upstream.routes.answer(call, None, problem))
            upstream.keep_canned(key, canned)
        upstream.count_canned()
        self._wait(*canned, incoming.modern)

    def _wait(self, call: Call, answer: Answer, modern: bool) -> None:
        """Begin the call: draw its fault, and let its latency pass."""
        upstream = self._upstream
        self._call = call
        fault = upstream.draw_fault(call) if answer.status == 200 else Fault.NONE
        if fault is Fault.HANG:
            return
        if call.options.latency_ms:
            at = upstream.pulse.now() + call.options.latency_ms / 1000
            self._timer = upstream.pulse.arm_at(at, lambda: self._respond(call, answer, fault, modern))
        else:
            self._respond(call, answer, fault, modern)

    def _respond(self, call: Call, answer: Answer, fault: Fault, modern: bool) -> None:
        self._timer = None
        if fault in EARLY_FAULTS:
            self._finish()
            if fault is Fault.RESET:
                reset(self._transport)
            else:
                self._transport.write(_GARBAGE)
                self._transport.close()
            return
        if fault in STATUS_FAULTS or (fault is Fault.ERROR_EVENT and answer.pieces is None):
            status = int(fault) if fault in STATUS_FAULTS else 500
            answer = refuse_with(call.dialect, status, call.make_id("req_"), call.options.retry_after_s)
            fault = Fault.NONE
        self._send(call, answer, fault, modern)

    def _send(self, call: Call, answer: Answer, fault: Fault, modern: bool) -> None:
        if fault is Fault.NONE and answer.body and is_plain(call, answer):
            # Most calls of a load test: one write, and no object to keep.
            framing = b"content-length: %d\r\nconnection: keep-alive\r\n" % len(answer.body)
            if not self._keep_alive:
                framing = b"content-length: %d\r\nconnection: close\r\n" % len(answer.body)
            head = self._upstream.letterhead.render(call, answer, framing, self._upstream.wall())
            self._transport.write(head + answer.body)
            self._finished()
            return
        composition = compose(call, answer, fault)
        chunked = composition.length is None and modern
        if composition.length is not None:
            framing = b"content-length: %d\r\n" % composition.length
        elif chunked:
            framing = b"transfer-encoding: chunked\r\n"
        else:
            # HTTP/1.0 knows no chunks: the body ends where the connection does.
            framing = b""
            self._keep_alive = False
        framing += b"connection: %b\r\n" % (b"keep-alive" if self._keep_alive else b"close")
        if composition.headers:
            answer = answer._replace(headers=answer.headers + composition.headers)
        head = self._upstream.letterhead.render(call, answer, framing, self._upstream.wall())
        pace_s = call.options.pace_ms / 1000 if composition.length is None or call.options.chunk_bytes else 0.0
        self._emission = Emission(
            self._transport, self._upstream.pulse, composition, chunked=chunked, pace_s=pace_s, finish=self._finished
        )
        self._emission.start(head, self._paused)

    def _finished(self) -> None:
        """The answer is with the transport, whole or as far as its fault lets it come."""
        self._finish()
        self._next()

    def _finish(self) -> None:
        self._call = None
        self._emission = None
        self._upstream.count_end()

    def _next(self) -> None:
        if not self._keep_alive:
            self._transport.close()
        elif self._waiting:
            # Through the loop, so that a long pipeline is no deep recursion.
            asyncio.get_running_loop().call_soon(self._start_waiting)

    def _start_waiting(self) -> None:
        if self._call is None and self._waiting:
            self._start(*self._waiting.popleft())

    def _stop_work(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._emission is not None:
            self._emission.cancel()
