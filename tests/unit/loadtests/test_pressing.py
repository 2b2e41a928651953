"""The callers of the overload scenario, before a server that refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from loadtests.drive.pressing import Pressing
from proxy.cli.bench.load import Target

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Busy\r\nretry-after-ms: 60000\r\ncontent-length: 0\r\n\r\n"
ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Server:
    """Answers each request with the next of its answers, or the last for ever."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(self.answers[min(self.asked, len(self.answers) - 1)])
                self.asked += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@pytest.fixture
async def servers() -> AsyncIterator[list[asyncio.Server]]:
    """What was started, ended."""
    started: list[asyncio.Server] = []
    yield started
    for server in started:
        server.close()
        await server.wait_closed()


async def press(servers: list[asyncio.Server], server: Server, *, heeds: bool, skip_s: float = 0.0) -> Pressing:
    """Four questions, a little apart, of a single caller."""
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    servers.append(listening)
    load = Pressing(Target("127.0.0.1", listening.sockets[0].getsockname()[1]), 1, heeds=heeds)
    await load.open()
    try:
        await load.press([(number * 0.02, ASK) for number in range(4)], skip_s, 2.0)
    finally:
        await load.close()
    return load


async def test_a_caller_that_was_told_to_wait_asks_nothing_before(servers: list[asyncio.Server]) -> None:
    """What it would have asked is counted."""
    server = Server(BUSY)
    load = await press(servers, server, heeds=True)

    assert (server.asked, load.unasked, load.outcome.failures) == (1, 3, {"503": 1})


async def test_a_caller_that_heeds_nothing_asks_on(servers: list[asyncio.Server]) -> None:
    """On the same connection."""
    server = Server(BUSY, OK)
    load = await press(servers, server, heeds=False)

    assert (server.asked, load.unasked) == (4, 0)
    assert (load.outcome.answered, load.outcome.failures) == (3, {"503": 1})


async def test_what_was_to_be_asked_at_the_beginning_is_not_counted(servers: list[asyncio.Server]) -> None:
    """It was asked all the same."""
    server = Server(OK)
    load = await press(servers, server, heeds=False, skip_s=0.03)

    assert (server.asked, load.outcome.answered) == (4, 2)
