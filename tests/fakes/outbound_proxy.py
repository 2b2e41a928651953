"""An outbound HTTP proxy as companies run them: CONNECT tunnels, and absolute-form requests for plain HTTP."""

from __future__ import annotations

import asyncio
from typing import Self
from urllib.parse import urlsplit

from tests.fakes.gates import wait_until


class OutboundProxy:
    """Listens on the loopback interface; ``seen`` are the heads it got, ``refuse`` a status to answer with."""

    def __init__(self, refuse: str = "") -> None:
        self.seen: list[bytes] = []
        self.url = ""
        self._refuse = refuse
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://user:secret@127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await wait_until(lambda: not self._tasks, "the outbound proxy closed")
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.seen.append(head)
            if self._refuse:
                writer.write(f"HTTP/1.1 {self._refuse}\r\ncontent-length: 0\r\n\r\n".encode())
                await reader.read()
                return
            method, target, rest = head.split(b" ", 2)
            if method == b"CONNECT":
                host, _, port = target.decode().rpartition(":")
                first, answer = b"", b"HTTP/1.1 200 Connection established\r\n\r\n"
            else:
                parts = urlsplit(target.decode())
                host, port = parts.hostname or "", str(parts.port or 80)
                first, answer = b" ".join((method, target[target.index(b"/", 8) :], rest)), b""
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            try:
                far_writer.write(first)
                writer.write(answer)
                await self._splice((reader, far_writer), (far_reader, writer))
            finally:
                far_writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _splice(self, *ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """Both ways, until one of them ends."""

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

        tasks = [asyncio.ensure_future(carry(*way)) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
