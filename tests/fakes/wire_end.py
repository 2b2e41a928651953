"""A client's connection as a server's protocol sees it, without a socket: bytes go in and writes are noted."""

from __future__ import annotations

import asyncio
from typing import Any, cast


class WireEnd(asyncio.Transport):
    """The transport of one connection. ``say`` is the client's side."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._protocol = protocol
        self.written: list[bytes] = []
        self.closed = self.aborted = self.finished = False
        """By the server: closed in any way, with a reset, its own half only."""
        self.reading = True
        self.lost = False
        protocol.connection_made(self)

    # -- the client's side ----------------------------------------------------------------------------------------

    def say(self, data: bytes) -> None:
        """What a socket would have brought, if it were read at all."""
        if not self.closed:
            self._protocol.data_received(data)

    def hang_up(self) -> None:
        """Close both halves."""
        if not self.closed and not self._protocol.eof_received():
            self.closed = True
        self.lose()

    def lose(self) -> None:
        """The loop's last call, which it makes once."""
        if not self.lost:
            self.lost = self.closed = True
            self._protocol.connection_lost(None)

    def stop_taking(self) -> None:
        self._protocol.pause_writing()

    def take_again(self) -> None:
        self._protocol.resume_writing()

    @property
    def sent(self) -> bytes:
        return b"".join(self.written)

    # -- the protocol's side --------------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closed:
            self.written.append(bytes(data))

    def write_eof(self) -> None:
        self.finished = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True
