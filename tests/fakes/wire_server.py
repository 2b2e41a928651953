"""A raw server: each connection follows a timeline of bytes, gates and endings, and HTTP is only what the test says.

    server = WireServer([READ, Write(answer(b"one")), READ, RESET], [READ, Write(answer(b"two"))])
    async with server: ...

The first connection follows the first timeline, the second the second; the last timeline serves all later ones. A
timeline that is done leaves its connection open until the client cuts it. Where a gate stands, the test decides.
"""

from __future__ import annotations

import asyncio
import ssl as tls
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

from proxy.upstream.base import Origin
from tests.fakes.gates import Gate, wait_until, within
from tests.fakes.sockets import reset


@dataclass(frozen=True, slots=True)
class Write:
    """Write bytes, all in one go, and wait until the transport has room again."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait at a gate; a client that cuts the connection is noticed meanwhile."""

    gate: Gate


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same steps until the client cuts the connection."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Act:
    name: str


READ = Act("read")
"""Read one whole request and record it."""
READ_HEAD = Act("read_head")
"""Read up to the empty line; the body is recorded with the next READ or not at all."""
CLOSE = Act("close")
"""FIN after what was written."""
RESET = Act("reset")
"""RST; what was not sent is lost."""
STOP_WRITING = Act("stop_writing")
"""FIN, but go on reading."""
DEAF = Act("deaf")
"""Stop reading from the socket."""
LISTEN = Act("listen")
"""Read from the socket again."""

Step = Write | Wait | Repeat | Act


def answer(body: bytes = b"ok", status: str = "200 OK", headers: Sequence[bytes] = ()) -> bytes:
    """A whole response with ``content-length``."""
    lines = b"".join(line + b"\r\n" for line in headers)
    return b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status.encode(), lines, len(body), body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(slots=True)
class WireRequest:
    """One request as it came; ``body`` without chunk framing."""

    connection: int
    """1 for the first connection of the server."""
    head: bytes
    body: bytes = b""

    @property
    def line(self) -> bytes:
        return self.head.partition(b"\r\n")[0]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Names in lower case, values as sent."""
        pairs = [line.partition(b":") for line in self.head.split(b"\r\n")[1:] if line]
        return [(name.lower(), value.strip()) for name, _, value in pairs]

    def header(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]


class _CutError(Exception):
    """The client closed the connection while the timeline wanted more."""


class Wire(asyncio.Protocol):
    """One accepted connection."""

    def __init__(self, server: WireServer) -> None:
        self._server = server
        self._room = asyncio.Event()
        self._room.set()
        self._news = asyncio.Event()
        self.buffer = bytearray()
        self.received_bytes = 0
        self.number = 0
        self.cut = asyncio.Event()
        """The client closed its side, or broke the connection."""
        self.lost = False
        self.step = 0
        """Which step of the timeline is under way, from 1; where it stood when it was cut."""
        self.transport = cast("asyncio.Transport", None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._server._attach(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.received_bytes += len(data)
        self._news.set()

    def eof_received(self) -> bool:
        self._set_cut()
        return not self._server.is_tls  # a half-open connection is fine, but TLS has none

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._room.set()
        self._set_cut()
        self._server._detach(self)

    def _set_cut(self) -> None:
        self.cut.set()
        self._news.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    async def follow(self, timeline: Sequence[Step]) -> None:
        try:
            for self.step, step in enumerate(timeline, 1):
                await self._do(step)
            await self.cut.wait()
        except _CutError:
            pass
        finally:
            if not self.lost and not self.transport.is_closing():
                self.transport.abort()

    async def _do(self, step: Step) -> None:
        if isinstance(step, Write):
            if self.lost or self.transport.is_closing():
                raise _CutError
            self.transport.write(step.data)
            await self._room.wait()
        elif isinstance(step, Wait):
            await self._wait_at(step.gate)
        elif isinstance(step, Repeat):
            while not self.cut.is_set():
                for inner in step.steps:
                    await self._do(inner)
                await asyncio.sleep(0)  # a timeline that never waits must not keep the loop to itself
            raise _CutError
        else:
            await self._act(step.name)

    async def _act(self, name: str) -> None:
        match name:
            case "read":
                await self._read(whole=True)
            case "read_head":
                await self._read(whole=False)
            case "close":
                self.transport.close()
            case "reset":
                reset(self.transport)
            case "stop_writing":
                self.transport.write_eof()
            case "deaf":
                self.transport.pause_reading()
            case "listen":
                self.transport.resume_reading()

    async def _wait_at(self, gate: Gate) -> None:
        """The gate, or the client's cut, whichever is first."""
        at_gate = asyncio.ensure_future(gate.wait())
        cut = asyncio.ensure_future(self.cut.wait())
        try:
            await asyncio.wait((at_gate, cut), return_when=asyncio.FIRST_COMPLETED)
            if at_gate.done():
                at_gate.result()
            else:
                raise _CutError
        finally:
            at_gate.cancel()
            cut.cancel()
            await asyncio.gather(at_gate, cut, return_exceptions=True)

    async def _more(self) -> None:
        self._news.clear()
        if self.cut.is_set():
            raise _CutError
        await self._news.wait()

    async def _take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            await self._more()
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    async def _take_until(self, end: bytes) -> bytes:
        while end not in self.buffer:
            await self._more()
        return await self._take(self.buffer.index(end) + len(end))

    async def _read(self, *, whole: bool) -> None:
        request = WireRequest(self.number, (await self._take_until(b"\r\n\r\n"))[:-2])
        if whole:
            if request.header(b"transfer-encoding") == [b"chunked"]:
                while size := int((await self._take_until(b"\r\n"))[:-2], 16):
                    request.body += await self._take(size)
                    assert await self._take(2) == b"\r\n"
                assert await self._take(2) == b"\r\n"
            for length in request.header(b"content-length"):
                request.body += await self._take(int(length))
        self._server.requests.append(request)


class WireServer:
    """Listens on the loopback interface. ``wires`` are its connections in order of arrival."""

    def __init__(self, *timelines: Sequence[Step], ssl: tls.SSLContext | None = None) -> None:
        self.timelines = timelines or [[Repeat((READ, Write(answer())))]]
        self.wires: list[Wire] = []
        self.requests: list[WireRequest] = []
        self.open = self.most_open = 0
        self._ssl = ssl
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def origin(self) -> Origin:
        return Origin("http" if self._ssl is None else "https", "127.0.0.1", self.port)

    @property
    def is_tls(self) -> bool:
        return self._ssl is not None

    @property
    def opened(self) -> int:
        return len(self.wires)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Wire(self), "127.0.0.1", self.port, ssl=self._ssl)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in self._tasks:
            task.cancel()
        for wire in self.wires:
            if not wire.lost:
                wire.transport.abort()
        await wait_until(lambda: not self.open and not self._tasks, f"the raw server closed, {self.open} left")
        await within(server.wait_closed(), "the listener closed")

    async def seen(self, requests: int) -> None:
        """Until so many requests were read."""
        await wait_until(lambda: len(self.requests) >= requests, f"{requests} requests came")

    async def cut(self, number: int = 1) -> Wire:
        """Until the client has closed connection ``number``, from 1; that connection."""
        await wait_until(lambda: len(self.wires) >= number, f"connection {number} came")
        wire = self.wires[number - 1]
        await within(wire.cut.wait(), f"connection {number} was cut")
        return wire

    async def all_cut(self) -> None:
        await wait_until(lambda: all(wire.cut.is_set() for wire in self.wires), "all connections were cut")

    def _attach(self, wire: Wire) -> None:
        self.wires.append(wire)
        wire.number = len(self.wires)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        timeline = self.timelines[min(wire.number, len(self.timelines)) - 1]
        task = asyncio.get_running_loop().create_task(wire.follow(timeline))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _detach(self, _wire: Wire) -> None:
        self.open -= 1
