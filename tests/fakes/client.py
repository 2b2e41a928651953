"""A client that may be as rude as it likes, and knows exactly how each response ended.

Its parser is its own: what the product reads and writes is not judged by the library that the product uses.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl as tls
from collections.abc import Iterable
from typing import Any, Self, cast
from urllib.parse import urlsplit

from tests.fakes.gates import run_ticks, wait_until
from tests.fakes.sockets import reset

Header = tuple[str | bytes, str | bytes]


class BadResponseError(AssertionError):
    """The peer sent something that is no HTTP response."""


class RawResponse:
    """One response, read as far as it has arrived."""

    def __init__(self, client: RawClient, method: str) -> None:
        self._client = client
        self._method = method
        self.status = 0
        self.reason = ""
        self.version = ""
        self.headers: list[tuple[bytes, bytes]] = []
        """As they came, in order, names as sent."""
        self.informational: list[int] = []
        """Statuses of 1xx responses before this one."""
        self._body = bytearray()
        self.chunks: list[bytes] = []
        """The chunks of a chunked body."""
        self.ended = False
        """Whether it ended as its framing promised."""
        self.truncated = False
        """Whether the connection ended before that."""
        self.close_delimited = False
        self._read_to = 0

    @property
    def body(self) -> bytes:
        """What has arrived, chunks decoded."""
        return bytes(self._body)

    def header(self, name: str) -> str | None:
        """The header's first value, ``None`` if there is none."""
        return next(iter(self.header_values(name)), None)

    def header_values(self, name: str) -> list[str]:
        wanted = name.lower().encode()
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == wanted]

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[bytes]:
        """The server-sent events that have arrived whole, without their blank lines."""
        parts = self.body.replace(b"\r\n", b"\n").split(b"\n\n")
        return [part for part in parts[:-1] if part]

    async def read_head(self) -> Self:
        await self._client.wait_for(lambda: self.status != 0 or self.truncated, "the response's head arrived")
        assert self.status, "the connection ended before a response's head arrived"
        return self

    async def read_until(self, marker: bytes) -> bytes:
        """The body from where the last such call stopped, through ``marker``."""
        await self._client.wait_for(
            lambda: self._body.find(marker, self._read_to) >= 0 or self.ended or self.truncated,
            f"{marker!r} arrived",
        )
        at = self._body.find(marker, self._read_to)
        ending = "cleanly" if self.ended else "abruptly"
        assert at >= 0, f"the body ended {ending} without {marker!r}: {bytes(self._body[self._read_to :])!r}"
        start, self._read_to = self._read_to, at + len(marker)
        return bytes(self._body[start : self._read_to])

    async def read_end(self) -> Self:
        """Until the response ended, cleanly or not; ``ended`` and ``truncated`` tell which."""
        await self._client.wait_for(lambda: self.ended or self.truncated, "the response ended")
        return self

    def __repr__(self) -> str:
        ending = "ended" if self.ended else "truncated" if self.truncated else "running"
        return f"<RawResponse {self.status} {len(self._body)} bytes, {ending}>"


class _Reader:
    """Incremental parser of the responses on one connection (RFC 9112)."""

    def __init__(self) -> None:
        self.rest = b""
        self.expected: list[RawResponse] = []
        self._stage = self._read_head
        self._left = 0

    def feed(self, data: bytes) -> None:
        self.rest += data
        while self.rest and self.expected:
            if not self._stage(self.expected[0]):
                return

    def finish(self) -> None:
        """The connection is over."""
        for response in self.expected:
            whole = response.status != 0 and response.close_delimited
            response.ended, response.truncated = whole, not whole
        self.expected.clear()

    def _read_head(self, response: RawResponse) -> bool:
        end = self.rest.find(b"\r\n\r\n")
        if not b"HTTP/1.".startswith(self.rest[:7]):
            raise BadResponseError(f"no HTTP response: {self.rest[:80]!r}")
        if end < 0:
            return False
        first, *lines = self.rest[:end].split(b"\r\n")
        self.rest = self.rest[end + 4 :]
        version, _, status_line = first.partition(b" ")
        status, _, reason = status_line.partition(b" ")
        if not (status.isdigit() and len(status) == 3):
            raise BadResponseError(f"no status line: {first!r}")
        if status.startswith(b"1") and status != b"101":
            response.informational.append(int(status))
            return True
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or name != name.strip() or not name:
                raise BadResponseError(f"no header line: {line!r}")
            response.headers.append((name, value.strip()))
        response.version, response.reason = version.decode(), reason.decode("latin-1")
        response.status = int(status)
        self._begin_body(response)
        return True

    def _begin_body(self, response: RawResponse) -> None:
        lengths, codings = set(response.header_values("content-length")), response.header_values("transfer-encoding")
        if lengths and codings:
            raise BadResponseError("both content-length and transfer-encoding")
        if response._method == "HEAD" or response.status in (204, 304):
            self._end(response)
        elif codings:
            if [coding.lower() for coding in codings] != ["chunked"]:
                raise BadResponseError(f"unknown transfer coding {codings!r}")
            self._stage = self._read_size
        elif lengths:
            length = lengths.pop()
            if lengths or not length.isdigit():
                raise BadResponseError("content-length is no single number")
            self._left = int(length)
            self._stage = self._read_counted
            if not self._left:
                self._end(response)
        else:
            response.close_delimited = True
            self._stage = self._read_rest

    def _read_counted(self, response: RawResponse) -> bool:
        piece, self.rest = self.rest[: self._left], self.rest[self._left :]
        response._body += piece
        self._left -= len(piece)
        if not self._left:
            self._end(response)
        return True

    def _read_rest(self, response: RawResponse) -> bool:
        response._body += self.rest
        self.rest = b""
        return True

    def _read_size(self, response: RawResponse) -> bool:
        line, found, rest = self.rest.partition(b"\r\n")
        if not found:
            return False
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            raise BadResponseError(f"no chunk size: {line!r}") from None
        if size:
            if len(rest) < size + 2:
                return False
            if rest[size : size + 2] != b"\r\n":
                raise BadResponseError("a chunk is longer than it says")
            response.chunks.append(rest[:size])
            response._body += rest[:size]
            self.rest = rest[size + 2 :]
            return True
        if not rest.startswith(b"\r\n"):
            end = rest.find(b"\r\n\r\n")
            if end < 0:
                return False
            rest = rest[end + 2 :]
        self.rest = rest[2:]
        self._end(response)
        return True

    def _end(self, response: RawResponse) -> None:
        response.ended = True
        self.expected.pop(0)
        self._stage = self._read_head


class RawClient(asyncio.Protocol):
    """One connection to a server under test."""

    def __init__(self) -> None:
        self._reader = _Reader()
        self._transport = cast("asyncio.Transport", None)
        self._host = "localhost"
        self._write_paused = False
        self.bytes_received = 0
        self.received = b""
        """The last 64 KiB as they came from the wire."""
        self.failure: Exception | None = None
        """What was wrong with what the peer sent; raised by whatever waits."""
        self.peer_ended = False
        """Whether the peer sent FIN or RST, or this side closed."""
        self.was_reset = False
        """Whether the connection ended with RST."""

    # --- opening

    @classmethod
    async def connect(
        cls,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        unix_path: str = "",
        ssl_context: tls.SSLContext | None = None,
        server_name: str | None = None,
        receive_buffer_bytes: int = 0,
    ) -> Self:
        """Open a connection; a tiny receive buffer makes a reader that stops be felt at once."""
        family = socket.AF_UNIX if unix_path else socket.AF_INET6 if ":" in host else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_STREAM)
        loop = asyncio.get_running_loop()
        client = cls()
        client._host = f"{host}:{port}" if port else host
        try:
            plain.setblocking(False)
            if receive_buffer_bytes:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            if family != socket.AF_UNIX:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(plain, unix_path or (host, port))
            name = (server_name or host) if ssl_context else None
            await loop.create_connection(lambda: client, sock=plain, ssl=ssl_context, server_hostname=name)
        except BaseException:
            plain.close()
            raise
        return client

    @classmethod
    async def connect_url(cls, url: str, **options: Any) -> Self:
        """Open a connection to a base URL such as ``http://127.0.0.1:8080``."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return await cls.connect(parts.hostname, port, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- sending

    async def send(self, data: bytes) -> None:
        """Write bytes as they are and wait until the transport has room again."""
        self._transport.write(data)
        await self.wait_for(lambda: not self._write_paused or self.peer_ended, "the peer read what was sent")

    async def dribble(self, data: bytes, size: int = 1) -> None:
        """Write ``size`` bytes at a time, each with a turn of the loop to itself."""
        for at in range(0, len(data), size):
            self._transport.write(data[at : at + size])
            await run_ticks(2)

    def make_request(
        self, method: str, path: str, headers: Iterable[Header] = (), body: bytes | object = b""
    ) -> bytes:
        """The bytes of a request; other bodies than bytes are sent as JSON. ``Host`` and length are added."""
        lines = [(_as_bytes(name), _as_bytes(value)) for name, value in headers]
        names = {name.lower() for name, _ in lines}
        if not isinstance(body, bytes):
            body = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
            if b"content-type" not in names:
                lines.append((b"content-type", b"application/json"))
        if b"host" not in names:
            lines.insert(0, (b"host", self._host.encode()))
        framed = b"content-length" in names or b"transfer-encoding" in names
        if not framed and (body or method in ("POST", "PUT", "PATCH")):
            lines.append((b"content-length", b"%d" % len(body)))
        head = b"".join([b"%b: %b\r\n" % line for line in lines])
        return b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode(), path.encode("latin-1"), head) + body

    def expect(self, method: str = "GET") -> RawResponse:
        """The next response that this connection will bring; to be called for each request sent by hand."""
        response = RawResponse(self, method)
        self._reader.expected.append(response)
        if self.peer_ended:
            self._reader.finish()
        else:
            self._feed(b"")
        return response

    async def request(
        self, method: str, path: str, headers: Iterable[Header] = (), body: bytes | object = b""
    ) -> RawResponse:
        """Send a request and read the whole response."""
        response = await self.stream(method, path, headers, body)
        return await response.read_end()

    async def stream(
        self, method: str, path: str, headers: Iterable[Header] = (), body: bytes | object = b""
    ) -> RawResponse:
        """Send a request and read the response's head; the body comes as it comes."""
        response = await self.start(method, path, headers, body)
        return await response.read_head()

    async def start(
        self, method: str, path: str, headers: Iterable[Header] = (), body: bytes | object = b""
    ) -> RawResponse:
        """Send a request and read nothing yet."""
        response = self.expect(method)
        await self.send(self.make_request(method, path, headers, body))
        return response

    # --- reading and ending

    def pause(self) -> None:
        """Stop reading; the peer finds out when the buffers between are full."""
        self._transport.pause_reading()

    def resume(self) -> None:
        self._transport.resume_reading()

    def shutdown_write(self) -> None:
        """FIN in one direction: no more requests, still reading."""
        self._transport.write_eof()

    async def close(self) -> None:
        """FIN, or RST if the peer does not take what was written. Idempotent."""
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        await self.wait_for(lambda: self.peer_ended, "the connection closed", check=False)

    async def reset(self) -> None:
        """RST."""
        reset(self._transport)
        await self.wait_for(lambda: self.peer_ended, "the connection was reset", check=False)

    async def peer_closed(self) -> None:
        """Until the peer has closed the connection."""
        await self.wait_for(lambda: self.peer_ended, "the peer closed the connection", check=False)

    async def wait_for(self, predicate: Any, what: str, *, check: bool = True) -> None:
        """``wait_until``, and raise what was wrong with the peer's bytes."""
        await wait_until(lambda: (check and self.failure is not None) or predicate(), what)
        if check and self.failure is not None:
            raise self.failure

    # --- the transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.bytes_received += len(data)
        self.received = (self.received + data)[-65536:]
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except BadResponseError as error:
            self.failure = error
            self._transport.abort()

    def eof_received(self) -> bool:
        self._finish()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.was_reset = isinstance(exc, ConnectionError)
        self._finish()

    def _finish(self) -> None:
        self.peer_ended = True
        self._reader.finish()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False

    @property
    def unread(self) -> bytes:
        """Bytes that belong to no expected response: a proxy that sends them is wrong."""
        return self._reader.rest


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode("latin-1") if isinstance(value, str) else value
