"""The raw server follows its timelines, and says when it was cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.fakes.gates import Gate
from tests.fakes.wire_server import CLOSE, READ, READ_HEAD, RESET, Repeat, Wait, WireServer, Write, answer

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
POST = b"POST / HTTP/1.1\r\nA: 1\r\ncontent-length: 3\r\n\r\nabc"


class Clients:
    def __init__(self) -> None:
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, server: WireServer) -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    made = Clients()
    yield made
    await made.close()


async def test_requests_are_read_whole_and_recorded(clients: Clients) -> None:
    """With a length or in chunks, pipelined or not."""
    chunked = b"PUT /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with WireServer([READ, READ, Write(answer())]) as server:
        reader, writer = await clients.connect(server)
        writer.write(POST + chunked)
        assert await reader.readexactly(len(answer())) == answer()
        assert [(request.line, request.body) for request in server.requests] == [
            (b"POST / HTTP/1.1", b"abc"),
            (b"PUT /x HTTP/1.1", b"abcde"),
        ]
        assert server.requests[0].header(b"a") == [b"1"]


async def test_gate_holds_the_timeline_until_the_test_opens_it(clients: Clients) -> None:
    """And a client that leaves meanwhile is noticed at that step."""
    gate, never = Gate("gate"), Gate("never")
    async with WireServer([READ_HEAD, Wait(gate), Write(b"x"), Wait(never)]) as server:
        reader, writer = await clients.connect(server)
        writer.write(POST)
        await gate.reached()
        gate.open()
        assert await reader.readexactly(1) == b"x"
        await never.reached()
        writer.close()
        assert (await server.cut(1)).step == 4


async def test_each_connection_has_its_timeline_and_the_last_one_serves_the_rest(clients: Clients) -> None:
    """In order of arrival."""
    async with WireServer([Write(b"1"), CLOSE], [Write(b"2"), CLOSE]) as server:
        said = []
        for _ in range(3):
            reader, _ = await clients.connect(server)
            said.append(await reader.read())
        assert (said, server.opened) == ([b"1", b"2", b"2"], 3)


async def test_reset_is_a_reset(clients: Clients) -> None:
    """Not a polite end."""
    async with WireServer([READ, RESET]) as server:
        reader, writer = await clients.connect(server)
        writer.write(POST)
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_repeated_steps_end_with_the_client(clients: Clients) -> None:
    """A keep-alive server in one line."""
    async with WireServer([Repeat((READ, Write(answer())))]) as server:
        reader, writer = await clients.connect(server)
        for _ in range(3):
            writer.write(POST)
            await reader.readexactly(len(answer()))
        writer.close()
        await server.all_cut()
        assert len(server.requests) == 3
