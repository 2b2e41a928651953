"""An upstream that does what the test says, byte by byte.

Each request becomes a ``Call`` that the test answers by hand: ``call = await upstream.next_call()``, then
``await call.send_head(...)``, ``await call.send(...)``, ``await call.end()``. Whatever HTTP forbids is possible too.
"""

from __future__ import annotations

import asyncio
import json
import ssl as tls
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Self, cast

import httptools

from tests.fakes.gates import Gate, wait_until, within
from tests.fakes.sockets import reset

__all__ = ["Call", "Gate", "ScriptedUpstream", "wait_until", "within"]

Header = tuple[str | bytes, str | bytes]
Script = Callable[["Call"], Awaitable[None] | None]


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode("latin-1") if isinstance(value, str) else value


class Call:
    """One request, and the means to answer it. Attributes of the request are complete once ``received``."""

    def __init__(self, connection: _Connection, nth: int) -> None:
        self._connection = connection
        self.nth = nth
        """1 for the first request of its connection."""
        self.method = ""
        self.target = ""
        self.headers: list[tuple[bytes, bytes]] = []
        """As they came, in order, names as sent."""
        self.body = b""
        self.received = False
        """Whether the whole request has been read."""
        self.ended = False
        """Whether the answer was ended, in whatever way, by this side."""
        self.gone = False
        """Whether the client closed the connection before that."""
        self._chunked = False
        self._left: int | None = None

    # --- the request

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def connection_id(self) -> int:
        """Which of the upstream's connections it came on; the first is 1."""
        return self._connection.number

    def header(self, name: str) -> str | None:
        """The first header of that name, ``None`` if there is none."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == wanted), None)

    def json(self) -> Any:
        return json.loads(self.body)

    async def read_body(self) -> bytes:
        """The body, once it is whole."""
        await wait_until(lambda: self.received or self.gone, f"the whole body of {self!r} arrived")
        assert self.received, f"the client left before the body of {self!r} was whole"
        return self.body

    # --- the answer

    def raw(self, data: bytes) -> None:
        """Write bytes as they are, at once, without waiting for the peer to take them."""
        assert not self._connection.is_closing, f"{self!r} has no connection any more"
        self._connection.transport.write(data)

    async def send_raw(self, data: bytes) -> None:
        """Write bytes as they are and wait until the transport has room again."""
        self.raw(data)
        connection = self._connection
        await wait_until(lambda: not connection.paused or connection.lost, f"the peer read what {self!r} sent")

    async def send_head(
        self,
        status: int = 200,
        headers: Iterable[Header] = (),
        *,
        content_length: int | None = None,
        chunked: bool = False,
        reason: str = "OK",
    ) -> None:
        """Send status and headers. With neither a length nor chunks, the body ends where the connection does."""
        self._chunked = chunked
        self._left = content_length
        lines = [f"HTTP/1.1 {status} {reason}".encode()]
        lines += [_as_bytes(name) + b": " + _as_bytes(value) for name, value in headers]
        if content_length is not None:
            lines.append(b"content-length: %d" % content_length)
        if chunked:
            lines.append(b"transfer-encoding: chunked")
        await self.send_raw(b"\r\n".join(lines) + b"\r\n\r\n")

    async def send(self, data: bytes) -> None:
        """A piece of the body: one chunk if the body is chunked."""
        if self._left is not None:
            self._left -= len(data)
            assert self._left >= 0, f"{self!r} sends more than its content-length; use raw for that"
        await self.send_raw(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data)

    async def end(self) -> None:
        """End the answer cleanly."""
        assert not self._left, f"{self!r} owes {self._left} bytes; use close or reset to break off"
        if self._chunked:
            await self.send_raw(b"0\r\n\r\n")
        self.ended = True
        if not self._chunked and self._left is None:
            self._connection.transport.close()

    def done(self) -> None:
        """The answer was given with ``raw``; the client may leave now without being counted."""
        self.ended = True

    def close(self) -> None:
        """FIN, wherever the answer is."""
        self.ended = True
        self._connection.transport.close()

    def reset(self) -> None:
        """RST, wherever the answer is."""
        self.ended = True
        reset(self._connection.transport)

    async def answer(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """A whole answer in one write."""
        lines = b"".join([_as_bytes(name) + b": " + _as_bytes(value) + b"\r\n" for name, value in headers])
        head = b"HTTP/1.1 %d OK\r\n%bcontent-length: %d\r\n\r\n" % (status, lines, len(body))
        self.ended = True
        await self.send_raw(head + body)

    async def answer_json(self, value: object, status: int = 200, headers: Iterable[Header] = ()) -> None:
        """A whole JSON answer in one write."""
        body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        await self.answer(status, [("content-type", "application/json"), *headers], body)

    async def answer_sse(
        self,
        events: Iterable[object],
        *,
        gates: Sequence[Gate] = (),
        headers: Iterable[Header] = (),
        status: int = 200,
    ) -> None:
        """A stream of events: bytes go as they are, text becomes ``data: text``, other values ``data: JSON``.

        The n-th event waits at the n-th gate, if there is one; so does the end, at the gate after the last event's.
        """
        kind = ("content-type", "text/event-stream; charset=utf-8")
        await self.send_head(status, [kind, *headers], chunked=True)
        count = 0
        for count, event in enumerate(events, 1):
            if count <= len(gates):
                await gates[count - 1].wait()
            await self.send(make_event(event))
        if count < len(gates):
            await gates[count].wait()
        await self.end()

    async def client_gone(self) -> None:
        """Until the client has closed the connection."""
        await wait_until(lambda: self._connection.lost, f"the client left {self!r}")

    @property
    def is_paused(self) -> bool:
        """Whether the peer reads too slowly for what was written."""
        return self._connection.paused

    def stop_reading(self) -> None:
        """Leave the rest of the request in the client's buffers."""
        self._connection.transport.pause_reading()

    def resume_reading(self) -> None:
        self._connection.transport.resume_reading()

    def __repr__(self) -> str:
        return f"<Call {self.method} {self.target} #{self.nth} of connection {self.connection_id}>"


def make_event(event: object) -> bytes:
    """Bytes as they are, text as ``data: text``, other values as ``data: JSON``."""
    if isinstance(event, bytes):
        return event
    text = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"), ensure_ascii=False)
    return f"data: {text}\n\n".encode()


class _Connection(asyncio.Protocol):
    """Reads requests and hands them on at their heads."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._upstream = upstream
        self._parser = httptools.HttpRequestParser(self)
        self._call = Call(self, 0)
        self.calls: list[Call] = []
        self.number = 0
        self.paused = False
        self.lost = False
        self.eof = False
        self.transport = cast("asyncio.Transport", None)

    @property
    def is_closing(self) -> bool:
        return self.lost or self.transport.is_closing()

    @property
    def is_idle(self) -> bool:
        return all(call.ended for call in self.calls)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._upstream._attach(self)

    def data_received(self, data: bytes) -> None:
        self._upstream.bytes_received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            self._upstream.failures.append(error)
            self.transport.close()

    def eof_received(self) -> bool:
        self.eof = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        for call in self.calls:
            if not call.ended:
                call.gone = True
                self._upstream.aborted += 1
        self._upstream._detach(self)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    # --- the parser's callbacks

    def on_message_begin(self) -> None:
        self._call = Call(self, len(self.calls) + 1)

    def on_url(self, url: bytes) -> None:
        self._call.target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._call.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._call.method = self._parser.get_method().decode()
        self.calls.append(self._call)
        self._upstream._deliver(self._call)

    def on_body(self, body: bytes) -> None:
        self._call.body += body

    def on_message_complete(self) -> None:
        self._call.received = True
        self._upstream.calls += 1
        self._upstream._follow_script(self._call)


class ScriptedUpstream:
    """Listens on the loopback interface and hands every request to the test.

    ``calls`` counts whole requests, ``open_connections`` the connections that are open, ``connections_made`` all of
    them, ``aborted`` the calls whose client left before the answer was ended. ``close`` fails the test if a script
    failed, or if a client sent something that is no HTTP and nobody took it out of ``failures``.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.aborted = 0
        self.connections_made = 0
        self.bytes_received = 0
        self.history: list[Call] = []
        """Every call, at its head."""
        self.failures: list[BaseException] = []
        self._queue: asyncio.Queue[Call] = asyncio.Queue()
        self._connections: set[_Connection] = set()
        self._script: Script | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._refusing = False
        self.url = ""
        self.host = ""
        self.port = 0

    async def start(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        unix_path: str = "",
        ssl_context: tls.SSLContext | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        scheme = "http" if ssl_context is None else "https"
        if unix_path:
            self._server = await loop.create_unix_server(lambda: _Connection(self), unix_path, ssl=ssl_context)
            self.host, self.url = "localhost", f"{scheme}://localhost"
            return
        self._server = await loop.create_server(lambda: _Connection(self), host, port, ssl=ssl_context)
        self.host, self.port = self._server.sockets[0].getsockname()[:2]
        self.url = f"{scheme}://{self.host}:{self.port}"

    async def close(self) -> None:
        """Stop everything; raise what went wrong in scripts."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in self._tasks:
            task.cancel()
        for connection in tuple(self._connections):
            connection.transport.abort()
        await wait_until(lambda: not self._connections and not self._tasks, "the scripted upstream closed")
        await within(server.wait_closed(), "the listener closed")
        if self.failures:
            raise AssertionError(f"the scripted upstream met {self.failures!r}") from self.failures[0]

    async def __aenter__(self) -> Self:
        if self._server is None:
            await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- for the test

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def waiting(self) -> int:
        """Calls that nobody has taken yet."""
        return self._queue.qsize()

    async def next_call(self, *, whole: bool = True) -> Call:
        """The next request in order of arrival; with ``whole=False`` as soon as its head is there."""
        call = await within(self._queue.get(), f"a request reached the upstream (so far {self.calls})")
        if whole:
            await call.read_body()
        return call

    def respond_with(self, script: Script | None) -> None:
        """Answer every later call with ``script(call)`` (a function or a coroutine function) once it is whole."""
        self._script = script

    def refuse_connections(self, refuse: bool = True) -> None:
        """Reset new connections as soon as they are accepted."""
        self._refusing = refuse

    def close_idle(self) -> int:
        """FIN on every connection without an unanswered call; how many there were."""
        idle = [connection for connection in self._connections if connection.is_idle]
        for connection in idle:
            connection.transport.close()
        return len(idle)

    def reset_idle(self) -> int:
        """RST on every connection without an unanswered call; how many there were."""
        idle = [connection for connection in self._connections if connection.is_idle]
        for connection in idle:
            reset(connection.transport)
        return len(idle)

    async def seen(self, calls: int) -> None:
        """Until so many whole requests have arrived."""
        await wait_until(lambda: self.calls >= calls, f"{calls} requests reached the upstream (so far {self.calls})")

    def __repr__(self) -> str:
        counts = f"{self.calls} calls, {self.open_connections} open, {self.aborted} aborted"
        return f"<ScriptedUpstream {self.url} {counts}>"

    # --- called by connections

    def _attach(self, connection: _Connection) -> None:
        self.connections_made += 1
        connection.number = self.connections_made
        self._connections.add(connection)
        if self._refusing:
            reset(connection.transport)

    def _detach(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def _deliver(self, call: Call) -> None:
        self.history.append(call)
        if self._script is None:
            self._queue.put_nowait(call)

    def _follow_script(self, call: Call) -> None:
        if self._script is None:
            return
        try:
            awaitable = self._script(call)
        except Exception as error:
            self.failures.append(error)
            return
        if awaitable is not None:
            task = asyncio.ensure_future(self._run(awaitable, call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, awaitable: Awaitable[None], call: Call) -> None:
        try:
            await awaitable
        except Exception as error:
            # Writing to a client that left is the client's doing, and counted as such.
            if not call.gone:
                self.failures.append(error)
