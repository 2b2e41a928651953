"""A TCP relay between a client and a server that can be told to cut, to stall and to swallow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from tests.fakes.sockets import reset

Rule = Callable[[bytes], str]
_CHUNK = 65_536


class Link:
    """One relayed connection."""

    def __init__(self) -> None:
        self.stalled = False
        self.dropped = 0
        """Bytes that were swallowed."""
        self.said = b""
        """The last of what the client sent."""
        self.writers: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        for writer in self.writers:
            if not writer.transport.is_closing():
                reset(writer.transport)


class Relay:
    """Listens on 127.0.0.1. ``rule`` sees what the client sends, before it is passed on, and answers with what
    becomes of the connection: "" nothing, ``cut`` (at once, this is not sent), ``swallow`` (this is sent, and the
    connection is cut when the answer comes), ``stall`` (from now on nothing passes in either direction)."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.links: list[Link] = []
        self.rule: Rule = lambda _: ""
        self.stalled = False
        """Bytes of all connections are swallowed, those of new ones as well."""

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for link in self.links:
            link.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def link_that_said(self, words: bytes) -> Link:
        """The newest one."""
        return [link for link in self.links if words in link.said][-1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        link = Link()
        self.links.append(link)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        link.writers = [writer, server_writer]
        swallowing = asyncio.Event()
        try:
            await asyncio.gather(
                self._pump_up(link, reader, server_writer, swallowing),
                self._pump_down(link, server_reader, writer, swallowing),
            )
        finally:
            link.cut()

    async def _pump_up(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallowing: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                link.said = (link.said + data)[-_CHUNK:]
                verdict = self.rule(data)
                if verdict == "cut":
                    break
                if verdict == "swallow":
                    swallowing.set()
                link.stalled |= verdict == "stall"
                if link.stalled or self.stalled:
                    link.dropped += len(data)
                    continue
                writer.write(data)
                await writer.drain()
        link.cut()

    async def _pump_down(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallowing: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if swallowing.is_set():
                    break
                if link.stalled or self.stalled:
                    link.dropped += len(data)
                    continue
                writer.write(data)
                await writer.drain()
        link.cut()


class Once:
    """A rule that does ``what`` to the first data that hold ``pattern``."""

    def __init__(self, pattern: bytes, what: str) -> None:
        self.pattern = pattern
        self.what = what
        self.hits = 0

    def __call__(self, data: bytes) -> str:
        if self.pattern in data and not self.hits:
            self.hits += 1
            return self.what
        return ""
