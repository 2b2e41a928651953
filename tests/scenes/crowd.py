"""Ten thousand callers in a process of their own: ``python -m tests.scenes.crowd PORT COUNT < request``.

Every caller sends the same bytes on a connection of its own. When all are sent a line says so; when all answers have
ended, a line of JSON tells how many callers got which answer: ``[status, digest of the body, ended cleanly, count]``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections import Counter

AT_ONCE = 200

Answer = tuple[int, str, bool]


class Caller(asyncio.Protocol):
    """One caller; resolves ``ended`` with what it got."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._received = bytearray()
        self.ended: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(judge(bytes(self._received)))


def judge(received: bytes) -> Answer:
    """Status, digest of the body, and whether it ended as its framing promised."""
    head, found, rest = received.partition(b"\r\n\r\n")
    if not found:
        return 0, "", False
    status = int(head.split(b" ", 2)[1])
    if b"transfer-encoding: chunked" in head.lower():
        body, clean = unchunk(rest)
    else:
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), -1
        )
        body, clean = rest, len(rest) == length
    return status, hashlib.sha256(body).hexdigest(), clean


def unchunk(rest: bytes) -> tuple[bytes, bool]:
    """The body of chunks, and whether the last one came with nothing behind it."""
    pieces = []
    at = 0
    while True:
        end = rest.find(b"\r\n", at)
        if end < 0:
            return b"".join(pieces), False
        size = int(rest[at:end], 16)
        at = end + 2 + size + 2
        if not size:
            return b"".join(pieces), at == len(rest)
        if at > len(rest):
            return b"".join(pieces), False
        pieces.append(rest[end + 2 : at - 2])


async def call_all(port: int, count: int, request: bytes) -> Counter[Answer]:
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(AT_ONCE)

    async def call() -> Caller:
        async with gate:
            _, caller = await loop.create_connection(lambda: Caller(request), "127.0.0.1", port)
            return caller

    callers = await asyncio.gather(*(call() for _ in range(count)))
    print("sent", flush=True)
    return Counter(await asyncio.gather(*(caller.ended for caller in callers)))


def raise_file_limit() -> int:
    """As many descriptors as this process may have; how many that are."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def main() -> None:
    port, count = map(int, sys.argv[1:])
    raise_file_limit()
    answers = asyncio.run(call_all(port, count, sys.stdin.buffer.read()))
    print(json.dumps([[*answer, number] for answer, number in answers.items()]))


if __name__ == "__main__":
    main()
