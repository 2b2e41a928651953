"""The line between a parent and a worker, and the questions that a parent asks over HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
import sysconfig
from pathlib import Path

import pytest

import proxy
from proxy.workers.asking import UnansweredError, ask
from proxy.workers.channel import Channel, hear_first, pack
from proxy.workers.child import environment


async def test_messages_arrive_whole_and_in_order_whatever_their_size() -> None:
    """A worker's last metrics are larger than any buffer on the way."""
    left, right = socket.socketpair()
    ours, theirs = await Channel.over(left), await Channel.over(right)
    large = {"final": "x" * 3_000_000}
    ours.say({"alive": True})
    ours.say(large)
    heard = [await theirs.hear(), await theirs.hear()]
    await ours.close()
    end = await theirs.hear()
    await theirs.close()

    assert heard == [{"alive": True}, large]
    assert end is None


async def test_what_is_said_to_the_dead_is_lost_without_a_word() -> None:
    """The end is heard elsewhere."""
    left, right = socket.socketpair()
    ours = await Channel.over(left)
    right.close()
    assert await ours.hear() is None
    ours.say({"do": "reload"})
    await ours.close()


def test_orders_are_read_without_a_loop_and_nothing_behind_them() -> None:
    """The rest of the line is for the loop that comes later."""
    left, right = socket.socketpair()
    with left, right:
        left.sendall(pack({"index": 1}) + b"rest")
        assert hear_first(right) == {"index": 1}
        assert right.recv(100) == b"rest"
        left.close()
        assert hear_first(right) is None


async def serve(path: Path, answer: bytes | None) -> asyncio.Server:
    """Answers each connection with the same bytes, or never."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is not None:
            writer.write(answer)
            writer.close()
        else:
            await reader.read()
            writer.close()

    return await asyncio.start_unix_server(handle, path)


async def test_a_question_brings_the_whole_answer(tmp_path: Path) -> None:
    """Status, headers and body."""
    server = await serve(tmp_path / "a", b"HTTP/1.1 201 Made\r\nX-A: b\r\nContent-Length: 2\r\n\r\nhi")
    reply = await ask(tmp_path / "a", "/x")
    server.close()

    assert (reply.status, dict(reply.headers)["X-A"], reply.body) == (201, "b", b"hi")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "the answer is not whole"),
        (b"", "the connection ended"),
        (b"nonsense", "the connection ended"),
        (None, "timeout"),
    ],
)
async def test_an_answer_that_is_none_is_named(tmp_path: Path, answer: bytes | None, why: str) -> None:
    """And it is said that the request may have been carried out."""
    server = await serve(tmp_path / "a", answer)
    with pytest.raises(UnansweredError, match=why) as raised:
        await ask(tmp_path / "a", "/x", timeout_s=5.0 if answer is not None else 0.05)
    server.close()

    assert raised.value.sent


async def test_a_worker_that_is_not_there_was_not_asked(tmp_path: Path) -> None:
    """So another one may be."""
    with pytest.raises(UnansweredError) as raised:
        await ask(tmp_path / "none", "/x")

    assert not raised.value.sent


def test_a_worker_finds_the_package_where_its_parent_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed or not, and never in the directory that it is started in."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    checkout = environment()["PYTHONPATH"].split(os.pathsep)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: checkout[0])
    installed = environment()["PYTHONPATH"]

    assert checkout == [str(Path(proxy.__file__).parents[1]), "/elsewhere"]
    assert installed == "/elsewhere"
