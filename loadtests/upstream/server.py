"""The fake provider: llhttp, prebuilt answers, one write for each, and counts that scenarios ask for.

``GET /__stats`` tells the counts, ``POST /__reset`` sets them back. Every other request gets the answer of the
options, a stream if its body asks for one. ``POST /__fault/500`` gives the calls from now on another fault,
``POST /__fault/`` none.

A path may begin with a name, ``/as-NAME/v1/…``: its calls are counted apart as well, so that one provider can stand
behind several proxies. ``/as-NAME-30-500/v1/…`` says that 30 % of these calls, by chance, have the fault ``500``.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import ssl as tls
import struct
from typing import cast

import httptools
import orjson

from loadtests.upstream.answers import NUMBER, make_answers, make_failure
from loadtests.upstream.metronome import Metronome
from loadtests.upstream.options import FAULTS, UpstreamOptions

_NO_LINGER = struct.pack("ii", 1, 0)
_MAX_KEYS = 2_000_000
_NAMED = re.compile(rb"/as-(\w+)(?:-(\d+)-(\w+))?/")
_QUESTION = re.compile(rb'"(\d{12}) ')


class Provider:
    """What all connections share. Makes a connection when called."""

    # The mutable state: the counts, written by the connections, and the fault that calls have now.
    def __init__(self, options: UpstreamOptions, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.fault = options.fault
        self._draw = random.Random(options.mark).random
        self.answers = make_answers(options)
        self.metronome = Metronome(loop)
        self.open_connections = 0
        self.reset()

    def reset(self) -> None:
        self.calls = 0
        self.aborted = 0
        self.faults = 0
        self.running = 0
        self.peak = 0
        self.connections = 0
        self.keys: dict[int, int] = {}
        """Calls by body. A hash of 64 bits is key enough: a collision would have to happen by chance."""
        self.named: dict[str, int] = {}
        """Calls by the name in their path."""

    def choose_fault(self, url: bytes) -> str:
        """What is wrong with the call that was just counted; empty for nothing."""
        found = _NAMED.match(url) if url.startswith(b"/as-") else None
        if found is not None:
            name = found[1].decode()
            self.named[name] = self.named.get(name, 0) + 1
            if found[2] is not None:
                return found[3].decode() if self._draw() * 100 < int(found[2]) else ""
        options, fault = self.options, self.fault
        if not fault or self.calls % options.fault_every:
            return ""
        return fault if self._draw() < options.fault_share else ""

    def stats(self) -> dict[str, int]:
        return {
            "calls": self.calls,
            "keys": len(self.keys),
            "most_calls_of_a_key": max(self.keys.values(), default=0),
            "aborted": self.aborted,
            "faults": self.faults,
            "running": self.running,
            "peak": self.peak,
            "connections": self.connections,
            "open_connections": self.open_connections,
            **{f"calls as {name}": calls for name, calls in self.named.items()},
        }

    def __call__(self) -> ProviderConnection:
        return ProviderConnection(self)


class ProviderConnection(asyncio.Protocol):
    """Answers one request after another."""

    # The mutable state: the request being read (_url, _body), and the answer under way (_next is the event that
    # comes next, -1 between answers; _number is that of the question, where answers are marked).
    __slots__ = ("_body", "_next", "_number", "_parser", "_paused", "_provider", "_transport", "_url")

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._parser = httptools.HttpRequestParser(self)
        self._transport = cast("asyncio.Transport", None)
        self._url = b""
        self._body: list[bytes] = []
        self._next = -1
        self._number = b""
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._provider.connections += 1
        self._provider.open_connections += 1
        if self._provider.options.sndbuf:
            sock: socket.socket = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._provider.options.sndbuf)

    def connection_lost(self, exc: Exception | None) -> None:
        self._provider.open_connections -= 1
        if self._next >= 0:
            self._next = -1
            self._provider.aborted += 1
            self._provider.running -= 1
        self._parser = cast("httptools.HttpRequestParser", None)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    # -- the parser's callbacks

    def on_message_begin(self) -> None:
        self._url = b""
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._url.startswith(b"/__"):
            self._control()
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        provider = self._provider
        provider.calls += 1
        provider.running += 1
        provider.peak = max(provider.peak, provider.running)
        if len(provider.keys) < _MAX_KEYS:
            key = hash(body)
            provider.keys[key] = provider.keys.get(key, 0) + 1
        self._next = 0
        options = provider.options
        if options.mark:
            asked = _QUESTION.search(body)
            self._number = b"#" + asked[1] if asked is not None else NUMBER
        streams = b'"stream":true' in body or b'"stream": true' in body
        fault = provider.choose_fault(self._url)
        if fault:
            provider.faults += 1
            self._fail(fault, streams)
            return
        begin = self._begin_stream if streams else self._answer
        if options.latency_ms:
            provider.metronome.arm(options.latency_ms, begin)
        else:
            begin()

    def _control(self) -> None:
        if self._url == b"/__reset":
            running = self._provider.running
            self._provider.reset()
            self._provider.running = running
        elif self._url.startswith(b"/__fault/") and self._url[9:].decode() in FAULTS:
            self._provider.fault = self._url[9:].decode()
        body = orjson.dumps(self._provider.stats())
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )

    # -- the answer

    def _answer(self) -> float:
        if self._next == 0:
            self._write(self._provider.answers.whole)
            self._end()
        return 0.0

    def _write(self, data: bytes) -> None:
        self._transport.write(data.replace(NUMBER, self._number) if self._number else data)

    def _begin_stream(self) -> float:
        if self._next < 0:
            return 0.0
        answers, pace_ms = self._provider.answers, self._provider.options.pace_ms
        if not pace_ms:
            self._write(answers.stream_head + b"".join(answers.events))
            self._end()
            return 0.0
        self._write(answers.stream_head + answers.events[0])
        self._next = 1
        if self._next == len(answers.events):
            self._end()
        else:
            self._provider.metronome.arm(pace_ms, self._send_event)
        return 0.0

    def _send_event(self) -> float:
        if self._next < 0:
            return 0.0
        events, pace_ms = self._provider.answers.events, self._provider.options.pace_ms
        if self._paused:
            return pace_ms
        self._write(events[self._next])
        self._next += 1
        if self._next == len(events):
            self._end()
            return 0.0
        return pace_ms

    def _end(self) -> None:
        self._next = -1
        self._provider.running -= 1

    def _fail(self, fault: str, streams: bool) -> None:
        if fault == "hang":
            return
        answers = self._provider.answers
        if fault == "reset":
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.abort()
        elif fault == "cut":
            events = answers.events
            self._write(
                answers.stream_head + b"".join(events[: len(events) // 2]) if streams else answers.whole[:-100]
            )
            self._transport.close()
        else:
            self._transport.write(make_failure(fault))
            self._end()


async def serve(port: int, options: UpstreamOptions) -> None:
    """Listen on loopback until cancelled. Raises ``OSError``."""
    loop = asyncio.get_running_loop()
    context = None
    if options.cert:
        context = tls.SSLContext(tls.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.cert)
    server = await loop.create_server(Provider(options, loop), "127.0.0.1", port, ssl=context, backlog=16384)
    await server.serve_forever()
