"""``python -m loadtests.rolling``: steady load and live streams over rolling restarts; nobody may notice any of them.

A parent with workers, the built-in mock as upstream, and a client that keeps its connections as SDKs and nginx do: it
takes an idle connection whose end has not come, sends, and never sends anything again. What it saw is then held
against the usage records. Exit code 1 if a request was refused, reset or cut, or if a record is missing or wrong.

    python -m loadtests.rolling --requests 100000 --rate 400 --streams 200 --rolls 20 --workers 2
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import select
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loadtests.process import clean_environment, free_port
from proxy.workers.status import read_status

_START_S: Final = 60.0
_TURN_S: Final = 0.005
_ANSWER_S: Final = 90.0
_MOST_AT_ONCE: Final = 300
"""Whole requests under way: a machine that is too busy for the rate gets a lower one, and no avalanche."""
_WHOLE: Final = "gpt-4o-mini?latency_ms=2&tokens=3"


@dataclass(frozen=True, slots=True)
class Course:
    """What is done."""

    requests: int
    rate: float
    """Requests a second, begun whether or not others have ended."""
    streams: int
    """Streams that are live at any time."""
    rolls: int
    workers: int = 2
    stream_s: float = 6.0
    """How long one stream takes; below the grace of a drain, 25 s."""
    unix: bool = True


@dataclass(slots=True)
class Found:
    """What the client saw."""

    asked: int = 0
    streamed: int = 0
    refused: int = 0
    """Connections that nobody took."""
    reset: int = 0
    """Requests whose connection ended before an answer began."""
    cut: int = 0
    """Answers that ended before their end."""
    late: int = 0
    """Answers that did not come within 90 s."""
    statuses: Counter[int] = field(default_factory=Counter)
    finished: set[str] = field(default_factory=set)
    """Request ids of answers that were read to their end."""
    connections: int = 0
    rolls: int = 0
    roll_s: list[float] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    code: int | None = None
    """The parent's exit code."""
    rows: int = 0
    missing: int = 0
    """Finished requests without a record that says so."""
    doubled: int = 0

    @property
    def good(self) -> bool:
        wrong = self.refused + self.reset + self.cut + self.late + self.missing + self.doubled + len(self.problems)
        return not wrong and set(self.statuses) <= {200} and self.code == 0

    def describe(self) -> str:
        delays = sorted(self.delays_s) or [0.0]
        p50, p99 = delays[len(delays) // 2], delays[int(len(delays) * 0.99)]
        rolls = sum(self.roll_s) / len(self.roll_s) if self.roll_s else 0.0
        lines = [
            f"requests {self.asked}, live streams ended {self.streamed}, connections {self.connections}",
            f"refused {self.refused}, reset {self.reset}, cut {self.cut}, late {self.late}, "
            f"statuses {dict(self.statuses)}",
            f"rolling restarts {self.rolls}, {rolls:.1f} s each",
            f"whole answers: p50 {1e3 * p50:.1f} ms, p99 {1e3 * p99:.1f} ms, longest {1e3 * delays[-1]:.1f} ms",
            f"usage records {self.rows}, missing {self.missing}, doubled {self.doubled}; exit code {self.code}",
            *self.problems[:20],
        ]
        return "\n".join(lines)


class BrokenError(Exception):
    """An answer that did not come or did not end; the text is the name of its counter."""


class Line:
    """One kept connection."""

    # Mutable: `closes`, once an answer said that it was the last.
    __slots__ = ("closes", "reader", "writer")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.closes = False

    @property
    def usable(self) -> bool:
        """Neither announced to end nor ended, by what the kernel knows and not only the loop: SDKs look there too."""
        if self.closes or self.reader.at_eof() or self.writer.is_closing():
            return False
        poller = select.poll()
        poller.register(self.writer.get_extra_info("socket").fileno(), select.POLLIN)
        return not poller.poll(0)

    async def ask(self, body: bytes) -> tuple[int, str]:
        """Status and request id, once the answer was read to its end. Raises ``BrokenError``."""
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: load\r\nAuthorization: Bearer sk-load\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        self.writer.write(head % len(body) + body)
        try:
            answer = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, OSError):
            raise BrokenError("reset") from None
        first, *lines = answer.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.closes = headers.get("connection") == "close"
        try:
            await self._read_body(headers)
        except (asyncio.IncompleteReadError, OSError):
            raise BrokenError("cut") from None
        return int(first.split()[1]), headers.get("x-sameflight-request-id", "")

    async def _read_body(self, headers: dict[str, str]) -> None:
        if "content-length" in headers:
            await self.reader.readexactly(int(headers["content-length"]))
            return
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            await self.reader.readexactly(size + 2)
        await self.reader.readuntil(b"\r\n")


class Client:
    """Everybody who asks."""

    # Mutable state: idle lines by worker, what was found, and whether streams and restarts go on.
    def __init__(self, addresses: Sequence[str], course: Course) -> None:
        self.found = Found()
        self._addresses = addresses
        self._course = course
        self._idle: list[list[Line]] = [[] for _ in addresses]
        self._going = True
        self.rolling = True
        """There are restarts to come."""

    async def ask_steadily(self) -> None:
        """So many requests, begun when they are due, and more as long as there are restarts."""
        began, tasks = time.perf_counter(), set[asyncio.Task[None]]()
        sent = 0
        while sent < self._course.requests or self.rolling:
            due = int((time.perf_counter() - began) * self._course.rate) + 1
            due = min(due, sent + _MOST_AT_ONCE - len(tasks))
            for number in range(sent, due):
                body = _body(f"question {number}", _WHOLE)
                task = asyncio.create_task(self._ask(number % len(self._addresses), body))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            sent = max(sent, due)
            await asyncio.sleep(_TURN_S)
        await asyncio.gather(*tasks)

    async def stream_on(self, number: int) -> None:
        """One stream after the other, as long as there is load."""
        tokens = 20
        model = f"gpt-4o-mini?latency_ms=20&tokens={tokens}&pace_ms={1e3 * self._course.stream_s / tokens:g}"
        turn = 0
        while self._going:
            turn += 1
            await self._ask(number % len(self._addresses), _body(f"story {number}.{turn}", model, stream=True), True)

    def stop(self) -> None:
        self._going = False

    async def _ask(self, worker: int, body: bytes, streams: bool = False) -> None:
        found, began = self.found, time.perf_counter()
        found.asked += 1
        try:
            line = await self._line(worker)
        except OSError as error:
            found.refused += 1
            found.problems.append(f"{time.strftime('%H:%M:%S')} worker {worker} refused: {error!r}")
            return
        try:
            async with asyncio.timeout(_ANSWER_S):
                status, request_id = await line.ask(body)
        except (BrokenError, TimeoutError) as error:
            name = str(error) or "late"
            setattr(found, name, getattr(found, name) + 1)
            kind = "stream" if streams else "whole"
            found.problems.append(f"{time.strftime('%H:%M:%S')} worker {worker} {name} ({kind})")
            line.writer.transport.abort()
            return
        found.statuses[status] += 1
        if streams:
            found.streamed += 1
        else:
            found.delays_s.append(time.perf_counter() - began)
        if status == 200:
            found.finished.add(request_id)
        if line.closes:
            line.writer.close()
        else:
            self._idle[worker].append(line)

    async def _line(self, worker: int) -> Line:
        idle = self._idle[worker]
        while idle:
            line = idle.pop()
            if line.usable:
                return line
            line.writer.close()
        self.found.connections += 1
        address = self._addresses[worker]
        if address.startswith("/"):
            return Line(*await asyncio.open_unix_connection(address))
        host, _, port = address.removeprefix("http://").rpartition(":")
        return Line(*await asyncio.open_connection(host, int(port)))

    def close(self) -> None:
        for idle in self._idle:
            for line in idle:
                line.writer.close()


def _body(text: str, model: str, *, stream: bool = False) -> bytes:
    return json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()


class Program:
    """The parent, its workers and their upstream."""

    # Mutable state: the two processes.
    def __init__(self, directory: Path, course: Course) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        self._course = course
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(self) -> list[str]:
        """The workers' addresses, once all serve."""
        upstream, admin = free_port(), free_port()
        await self._run("mock", "--port", str(upstream), "--latency-ms", "2")
        where = ("--unix-socket", str(self.directory / "w.sock")) if self._course.unix else ("--port", "0")
        parent = await self._run(
            *("serve", "--workers", str(self._course.workers), "--supervised", "true", "--state-dir"),
            *(str(self.state_dir), "--admin-port", str(admin), *where, "--shed-after-ms", "0"),
            *("--connect-timeout-s", "30"),
            *("--openai-upstream", f"http://127.0.0.1:{upstream}", "--log-level", "warning", "--log-format", "json"),
        )
        async with asyncio.timeout(_START_S):
            while not (status := read_status(self.state_dir) or {}).get("data"):
                assert parent.returncode is None, "the proxy did not start"
                await asyncio.sleep(0.05)
        data: list[str] = status["data"]
        return data

    async def _run(self, *arguments: str) -> asyncio.subprocess.Process:
        with (self.directory / "log.jsonl").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "proxy", *arguments), stdout=log, stderr=log, env=clean_environment()
            )
        self._processes.append(process)
        return process

    async def roll(self) -> str:
        """One rolling restart; why it stopped, if it did."""
        before = read_status(self.state_dir) or {}
        os.kill(self._processes[1].pid, signal.SIGUSR2)
        while (now := read_status(self.state_dir)) is not None:
            if now and now["done"] > before["wanted"]:
                return str(now["why"])
            await asyncio.sleep(0.05)
        return "the parent is gone"

    async def stop(self) -> int:
        """The parent's exit code."""
        mock, parent = self._processes
        parent.terminate()
        code = await parent.wait()
        mock.terminate()
        await mock.wait()
        self._processes = []
        return code

    async def end(self) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def run(course: Course, directory: Path) -> Found:
    """The whole course; the state directory is left for whoever wants to look."""
    program = Program(directory, course)
    try:
        client = Client(await program.start(), course)
        streams = [asyncio.create_task(client.stream_on(number)) for number in range(course.streams)]
        load = asyncio.create_task(client.ask_steadily())
        for _ in range(course.rolls):
            began = time.perf_counter()
            why = await program.roll()
            client.found.roll_s.append(time.perf_counter() - began)
            client.found.rolls += 1
            if why:
                client.found.problems.append(f"a rolling restart stopped: {why}")
        client.rolling = False
        await load
        client.stop()
        await asyncio.gather(*streams)
        client.close()
        client.found.code = await program.stop()
    finally:
        await program.end()
    audit(client.found, program.state_dir / "sameflight.db")
    return client.found


def audit(found: Found, database: Path) -> None:
    """Hold the usage records against what the client saw."""
    connection = sqlite3.connect(database)
    rows = Counter(connection.execute("SELECT request_id, outcome FROM usage").fetchall())
    connection.close()
    found.rows = rows.total()
    found.doubled = sum(count - 1 for count in Counter(each for each, _ in rows.elements()).values())
    found.missing = sum((each, "ok") not in rows for each in found.finished)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a course and tell."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.rolling", description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=400.0, help="requests a second")
    parser.add_argument("--streams", type=int, default=200, help="live at any time")
    parser.add_argument("--rolls", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stream-s", type=float, default=6.0, help="length of a stream")
    parser.add_argument("--tcp", action="store_true", help="ports instead of Unix sockets")
    args = parser.parse_args(arguments)
    course = Course(
        args.requests, args.rate, args.streams, args.rolls, args.workers, args.stream_s, unix=not args.tcp
    )
    with tempfile.TemporaryDirectory(prefix="rolling-") as directory:
        found = asyncio.run(run(course, Path(directory)))
        print(found.describe())
        if not found.good:
            print((Path(directory) / "log.jsonl").read_text("utf-8")[-4000:], file=sys.stderr)
    return 0 if found.good else 1


if __name__ == "__main__":
    sys.exit(main())
