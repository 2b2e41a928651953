"""Readers that ask for a stream, take its beginning, and then read nothing more."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

from loadtests.drive.spec import Result, Spec, make_renderer


class StalledReader(asyncio.Protocol):
    """Stops reading with the first bytes of its answer."""

    # The mutable state: whether the first bytes came, and whether the connection is gone.
    def __init__(self, request: bytes) -> None:
        self._request = request
        self._transport = cast("asyncio.Transport", None)
        self.begun = False
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.begun = True
        self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True

    def leave(self) -> None:
        self._transport.abort()


async def run_stalled(spec: Spec) -> Result:
    """``connections`` readers that stay for ``seconds``, on ``distinct`` questions (one by default)."""
    loop = asyncio.get_running_loop()
    render = make_renderer(spec)
    readers: list[StalledReader] = []

    async def begin(number: int) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", spec.port))
        request = render(spec.first_number + number % max(spec.distinct, 1))
        _, reader = await loop.create_connection(lambda: StalledReader(request), sock=sock)
        readers.append(reader)

    for start in range(0, spec.connections, 100):
        await asyncio.gather(*[begin(number) for number in range(start, min(start + 100, spec.connections))])
    await asyncio.sleep(spec.seconds)
    begun, gone = sum(each.begun for each in readers), sum(each.gone for each in readers)
    for reader in readers:
        reader.leave()
    return Result({"asked": len(readers), "begun": begun, "gone": gone})
