"""The line between a parent and one worker: a socket pair that carries JSON objects, each behind its length.

The worker's end closing means that the worker is gone, the parent's that it has no parent any more. What is said:

    parent → worker   first its orders (`Orders`), then {"do": "drain" | "hurry" | "reload", …}
    worker → parent   {"ready": …}, {"failed": text}, every second {"alive": …}, last {"final": its metrics}
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any, Final, TypedDict

MAX_BYTES: Final = 64 << 20
_SIZE: Final = struct.Struct("!I")

Message = dict[str, Any]


class Orders(TypedDict):
    """What a worker is told first. Secrets are in here, and neither on a command line nor in an environment."""

    index: int
    generation: int
    parts: int
    flags: dict[str, str]
    """Settings by name that win over the environment: those of the parent's command line, and this worker's own."""
    data_fd: int
    admin_fd: int


class Channel:
    """One end."""

    # Mutable state: the streams alone.
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """Take over one end of a socket pair."""
        end.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=end)
        return cls(reader, writer)

    def say(self, message: Message) -> None:
        """Send without waiting; what is said to a dead end is lost, and its end is heard."""
        if not self._writer.is_closing():
            self._writer.write(pack(message))

    async def hear(self) -> Message | None:
        """The next message; ``None`` once the other side is gone."""
        try:
            (size,) = _SIZE.unpack(await self._reader.readexactly(_SIZE.size))
            if size > MAX_BYTES:
                return None
            return unpack(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError):
            return None

    async def close(self) -> None:
        """Send what was said and hang up. Never raises."""
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), 1.0)
        except (OSError, TimeoutError):
            self._writer.transport.abort()


def pack(message: Any) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return _SIZE.pack(len(body)) + body


def unpack(body: bytes) -> Message:
    message: Message = json.loads(body)
    return message


def hear_first(end: socket.socket) -> Message | None:
    """The first message, waited for without a loop, and nothing beyond it; ``None`` if there is no parent."""
    head = _read_exactly(end, _SIZE.size)
    body = _read_exactly(end, *_SIZE.unpack(head)) if len(head) == _SIZE.size else b""
    return unpack(body) if body else None


def _read_exactly(end: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = end.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)
