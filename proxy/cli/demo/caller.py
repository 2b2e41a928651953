"""A client of one connection, and what it was answered. Its parser is its own, so that the comparison of bodies does
not rest on the code that it judges."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_MAX_BODY_BYTES = 64 << 20


class BadAnswerError(Exception):
    """What came is no whole HTTP/1.1 response."""


@dataclass(slots=True)
class Answer:
    """One response. Times are monotonic seconds, 0.0 for what did not happen."""

    sent_at: float = 0.0
    first_byte_at: float = 0.0
    ended_at: float = 0.0
    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    """Lower-case names; the last value of a repeated one."""
    body: bytes = b""
    """Chunks decoded."""
    error: str = ""
    """Why there is no whole answer; empty if there is one."""

    @property
    def first_byte_s(self) -> float:
        """From the sent request to the first byte of the answer."""
        return self.first_byte_at - self.sent_at

    @property
    def joined(self) -> bool:
        """Whether the proxy says that another caller's upstream call brought it (RFC 9211)."""
        return b"collapsed" in self.headers.get(b"cache-status", b"")


class Caller:
    """Asks once and reads the answer, or leaves before it comes."""

    # Mutable state: `answer`, written by `send` and `receive`, replaced by `greet`.
    __slots__ = ("_reader", "_writer", "answer")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.answer = Answer()

    @classmethod
    async def connect(cls, host: str, port: int) -> Caller:
        """Open the connection. Raises ``OSError``."""
        return cls(*await asyncio.open_connection(host, port))

    async def greet(self, authority: str, path: str) -> None:
        """Get ``path`` first, so that the server has taken the connection when the question comes.

        Raises ``OSError`` if that fails.
        """
        self.send(f"GET {path} HTTP/1.1\r\nhost: {authority}\r\n\r\n".encode())
        answer, self.answer = await self.receive(), Answer()
        if answer.status != 200 or answer.error:
            raise ConnectionError(f"GET {path} was answered {answer.error or answer.status}")

    def send(self, request: bytes) -> None:
        """Put the whole request on the connection, in this very tick."""
        self.answer.sent_at = time.monotonic()
        self._writer.write(request)

    async def receive(self, watch: Callable[[int], None] | None = None) -> Answer:
        """Read to the answer's end; ``watch`` is told how many bytes of the body have arrived.

        What goes wrong is in the answer's ``error``.
        """
        answer = self.answer
        try:
            await self._read_head()
            await self._read_body(watch)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError, BadAnswerError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.ended_at = time.monotonic()
        return answer

    def leave(self) -> None:
        """Close the connection at once, whatever is on its way."""
        self._writer.transport.abort()

    async def _read_head(self) -> None:
        head = await self._reader.readuntil(b"\r\n\r\n")
        self.answer.first_byte_at = time.monotonic()
        status_line, *lines = head[:-4].split(b"\r\n")
        version, _, rest = status_line.partition(b" ")
        if version != b"HTTP/1.1":
            raise BadAnswerError(f"unexpected status line {status_line!r}")
        self.answer.status = int(rest[:3])
        for line in lines:
            name, _, value = line.partition(b":")
            self.answer.headers[name.lower()] = value.strip()

    async def _read_body(self, watch: Callable[[int], None] | None) -> None:
        headers = self.answer.headers
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            await self._read_chunks(watch)
        elif b"content-length" in headers:
            self.answer.body = await self._reader.readexactly(min(int(headers[b"content-length"]), _MAX_BODY_BYTES))
        else:
            raise BadAnswerError("the body's length is not told")

    async def _read_chunks(self, watch: Callable[[int], None] | None) -> None:
        """RFC 9112 section 7.1, without trailers."""
        body = bytearray()
        try:
            while size := int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
                if len(body) > _MAX_BODY_BYTES:
                    raise BadAnswerError("the body is too long")
                if watch is not None:
                    watch(len(body))
            if await self._reader.readexactly(2) != b"\r\n":
                raise BadAnswerError("there is something after the last chunk")
        finally:
            self.answer.body = bytes(body)
