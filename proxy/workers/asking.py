"""One HTTP request to a worker's admin listener, on a connection of its own, bounded in time and size."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

MAX_BYTES: Final = 64 << 20
VIEW_S: Final = 1.0
"""How long a worker may take to show something; one whose loop is stuck costs a view so much and no more."""


class Reply(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class UnansweredError(Exception):
    """No whole answer; ``sent`` says whether the request may have been carried out."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


async def ask(
    path: Path,
    target: str,
    *,
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    timeout_s: float = VIEW_S,
) -> Reply:
    """The worker's answer. Raises ``UnansweredError``. No header may have a line end in it."""
    sent = False
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                sent = True
                writer.write(_render(method, target, headers, body))
                answer = await _read_all(reader)
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise UnansweredError("timeout", sent=sent) from None
    except OSError as error:
        raise UnansweredError(error.strerror or str(error), sent=sent) from None
    return _parse(answer)


def _render(method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    # HTTP/1.0, so that the answer ends with the connection and comes without chunks.
    lines = [f"{method} {target} HTTP/1.0", "Host: worker", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join((*lines, "", "")).encode("utf-8", "surrogateescape") + body


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    pieces, size = [], 0
    while piece := await reader.read(1 << 18):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BYTES:
            raise UnansweredError("the answer is too large", sent=True)
    return b"".join(pieces)


def _parse(answer: bytes) -> Reply:
    head, found, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if not found or len(words) < 2 or not words[1].isdigit():
        raise UnansweredError("the connection ended", sent=True)
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    length = next((value for name, value in headers if name.lower() == "content-length"), "")
    if length.isdigit() and int(length) != len(body):
        raise UnansweredError("the answer is not whole", sent=True)
    return Reply(int(words[1]), headers, body)
