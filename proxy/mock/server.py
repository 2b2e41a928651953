"""The mock upstream: listens, counts, and can be asked what it saw."""

from __future__ import annotations

import asyncio
import random
import ssl as tls
from collections import deque
from hashlib import sha256
from types import TracebackType
from typing import NamedTuple, Self

import orjson

from proxy.clock import Clock
from proxy.mock.answer import Answer, Call, Letterhead
from proxy.mock.connection import MockConnection
from proxy.mock.options import Fault, MockOptions
from proxy.mock.pulse import Pulse
from proxy.mock.routes import Routes

MAX_KEYS = 65_536
"""Bodies whose calls are counted; the oldest is forgotten beyond that."""
MAX_RECORDED = 10_000
MAX_CANNED = 256
_STATS_KEYS = 1000


class RecordedRequest(NamedTuple):
    """One request as it came; ``headers`` with names as sent."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    """``b""`` for uploads, which are not kept."""


def key_of(body: bytes) -> str:
    """The key under which ``MockUpstream.calls_by_key`` counts calls with this body."""
    return sha256(body).hexdigest()


class MockUpstream:
    """A stand-in for OpenAI, Anthropic and Mistral on one port.

    ``async with MockUpstream(options) as mock`` listens on a free port of the loopback interface. ``options`` may be
    replaced between calls. All counters are plain integers, written in the loop thread.
    """

    # The mutable state: the counters, calls_by_key and requests are written by the count_ methods, which
    # connections call; _connections by attach and detach; _server, pulse and _vacant by start and close.
    __slots__ = (
        "_chance",
        "_clock",
        "_connections",
        "_record",
        "_server",
        "_unix_path",
        "_url",
        "_vacant",
        "aborted",
        "calls",
        "calls_by_key",
        "canned",
        "connections_made",
        "faults",
        "in_flight",
        "keys_forgotten",
        "letterhead",
        "options",
        "peak_in_flight",
        "pulse",
        "requests",
        "routes",
    )

    def __init__(
        self, options: MockOptions | None = None, *, record: bool = False, clock: Clock | None = None
    ) -> None:
        self.options = options or MockOptions()
        self.routes = Routes()
        self.letterhead = Letterhead()
        self.pulse: Pulse
        self.requests: deque[RecordedRequest] = deque(maxlen=MAX_RECORDED)
        """The last requests, if ``record`` was asked for."""
        self._record = record
        self._clock = clock or Clock()
        self._chance = random.Random(self.options.seed)  # noqa: S311 - draws faults, must be repeatable
        self._connections: set[MockConnection] = set()
        self._server: asyncio.Server | None = None
        self._vacant: asyncio.Future[None] | None = None
        self._unix_path = ""
        self._url = ""
        self.calls_by_key: dict[str, int] = {}
        """Calls per SHA-256 of the body, of ``METHOD target`` for requests without one."""
        self.connections_made = 0
        self.canned: dict[tuple[str, bool], tuple[Call, Answer]] = {}
        """Answers that serve every later call to the same target; filled only if the options say so."""
        self._zero()

    def _zero(self) -> None:
        self.calls = 0
        """Requests read whole, whatever they were answered; the control routes do not count."""
        self.in_flight = 0
        self.peak_in_flight = 0
        self.aborted = 0
        """Calls whose client left before it had the whole answer."""
        self.faults = 0
        self.keys_forgotten = 0
        self.calls_by_key.clear()
        self.requests.clear()

    async def start(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        unix_path: str = "",
        ssl_context: tls.SSLContext | None = None,
        backlog: int = 4096,
        reuse_port: bool = False,
    ) -> None:
        """Listen. Raises ``OSError`` if the address cannot be had."""
        loop = asyncio.get_running_loop()
        self.pulse = Pulse(loop, self._clock)
        scheme = "http" if ssl_context is None else "https"
        if unix_path:
            self._server = await loop.create_unix_server(self._connect, unix_path, ssl=ssl_context, backlog=backlog)
            self._url = f"{scheme}://localhost"
            self._unix_path = unix_path
            return
        self._server = await loop.create_server(
            self._connect, host, port, ssl=ssl_context, backlog=backlog, reuse_port=reuse_port or None
        )
        bound = self._server.sockets[0].getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        self._url = f"{scheme}://{shown}:{bound[1]}"

    def _connect(self) -> MockConnection:
        return MockConnection(self)

    async def close(self) -> None:
        """Stop listening, break off every connection, and return when all are gone. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        self.pulse.stop()
        self._vacant = asyncio.get_running_loop().create_future()
        for connection in tuple(self._connections):
            connection.abort()
        if self._connections:
            await self._vacant
        await server.wait_closed()

    async def __aenter__(self) -> Self:
        if self._server is None:
            await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """Base URL without a path. Raises ``RuntimeError`` before ``start``."""
        if not self._url:
            raise RuntimeError("the mock upstream has not been started")
        return self._url

    @property
    def port(self) -> int:
        """The TCP port, 0 on a Unix socket."""
        return 0 if self._unix_path else int(self.url.rpartition(":")[2])

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def wall(self) -> float:
        return self._clock.wall()

    # --- called by connections

    def attach(self, connection: MockConnection) -> None:
        self._connections.add(connection)
        self.connections_made += 1
        if self._vacant is not None:
            connection.abort()

    def detach(self, connection: MockConnection) -> None:
        self._connections.discard(connection)
        if self._vacant is not None and not self._connections and not self._vacant.done():
            self._vacant.set_result(None)

    def count_call(
        self, method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes, digest: bytes
    ) -> int:
        """Count a request and return its serial number."""
        self.calls += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        key = digest.hex()
        counts = self.calls_by_key
        counts[key] = counts.get(key, 0) + 1
        if len(counts) > MAX_KEYS:
            del counts[next(iter(counts))]
            self.keys_forgotten += 1
        if self._record:
            self.requests.append(RecordedRequest(method, target, headers, body))
        return self.calls

    def count_canned(self) -> None:
        """Count a request that is answered without a look at it."""
        self.calls += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def keep_canned(self, key: tuple[str, bool], canned: tuple[Call, Answer]) -> None:
        if len(self.canned) < MAX_CANNED and canned[1].status == 200:
            self.canned[key] = canned

    def count_end(self) -> None:
        self.in_flight -= 1

    def count_abort(self) -> None:
        self.in_flight -= 1
        self.aborted += 1

    def draw_fault(self, call: Call) -> Fault:
        """The fault that this call gets."""
        options = call.options
        if options.fault is Fault.NONE:
            return Fault.NONE
        if options.fail_first and self.calls_by_key.get(call.digest.hex(), 0) > options.fail_first:
            return Fault.NONE
        if options.fault_rate < 1 and self._chance.random() >= options.fault_rate:
            return Fault.NONE
        self.faults += 1
        return options.fault

    def control(self, method: str, target: str) -> bytes:
        """The whole response to a request for one of the mock's own routes."""
        status, value = b"200 OK", self.describe()
        if (method, target) == ("POST", "/__mock/reset"):
            running = self.in_flight
            self._zero()
            self.in_flight = self.peak_in_flight = running
            value = self.describe()
        elif (method, target) != ("GET", "/__mock/stats"):
            status, value = b"404 Not Found", {"error": "there are GET /__mock/stats and POST /__mock/reset"}
        body = orjson.dumps(value)
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        return head + body

    def describe(self) -> dict[str, object]:
        """What was counted so far; of the keys the first thousand."""
        keys = list(self.calls_by_key)[:_STATS_KEYS]
        return {
            "calls": self.calls,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "aborted": self.aborted,
            "faults": self.faults,
            "connections_open": len(self._connections),
            "connections_made": self.connections_made,
            "distinct": len(self.calls_by_key) + self.keys_forgotten,
            "keys": {key: self.calls_by_key[key] for key in keys},
        }

    def __repr__(self) -> str:
        return f"<MockUpstream {self._url or 'stopped'} {self.calls} calls, {self.in_flight} in flight>"
