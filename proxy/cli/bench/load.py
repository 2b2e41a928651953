"""Load for measuring: connections that ask one question at a time, and a closed and an open loop over them.

Used by ``sameflight bench`` and by ``loadtests/``. Callbacks all the way, no task and no timer for a request, so that
one core of load can keep one core of proxy busy. Times are seconds of ``time.perf_counter``.
"""

from __future__ import annotations

import asyncio
import ssl as tls
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

from proxy.cli.bench.answer import AnswerReader, BadAnswerError, is_shared
from proxy.cli.bench.histogram import Histogram

_TICK_S: Final = 0.001
_RETRY_S: Final = 0.05
_MAX_LOST: Final = 1000


class Target(NamedTuple):
    """Where questions go."""

    host: str
    port: int
    context: tls.SSLContext | None = None
    prefix: str = ""
    """What stands before the API's paths, without a slash at the end."""

    @property
    def authority(self) -> str:
        return f"{self.host}:{self.port}"


def parse_target(url: str, context: tls.SSLContext | None = None) -> Target:
    """A base URL with or without ``/v1``. Raises ``ValueError``."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url} is no http or https address")
    secure = parts.scheme == "https"
    if secure and context is None:
        context = tls.create_default_context()
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Target(parts.hostname, parts.port or (443 if secure else 80), context if secure else None, path)


def render_request(target: Target, path: str, body: bytes, headers: Sequence[str] = ()) -> bytes:
    """One POST with a JSON body; ``headers`` are lines like ``authorization: Bearer x``."""
    lines = "".join(f"{line}\r\n" for line in headers)
    head = (
        f"POST {target.prefix}{path} HTTP/1.1\r\nhost: {target.authority}\r\ncontent-type: application/json\r\n"
        f"{lines}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode("latin-1") + body


@dataclass(slots=True)
class Outcome:
    """What a load was answered. Histograms count microseconds."""

    asked: int = 0
    answered: int = 0
    """Whole answers with a status below 400."""
    failures: dict[str, int] = field(default_factory=dict)
    """Other endings: a status, or what happened to the connection."""
    shared: int = 0
    """Answers whose ``Cache-Status`` or ``X-Cache`` says that they needed no call of their own."""
    seconds: float = 0.0
    events: int = 0
    body_bytes: int = 0
    latency: Histogram = field(default_factory=Histogram)
    """From the intended start to the end of the answer."""
    refused: Histogram = field(default_factory=Histogram)
    """The same of answers with a status from 400 on."""
    first: Histogram = field(default_factory=Histogram)
    """From the intended start to the first event of a stream."""
    gaps: Histogram = field(default_factory=Histogram)
    """Between two arrivals of events of one stream."""

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def fail(self, why: str) -> None:
        self.failures[why] = self.failures.get(why, 0) + 1


class Line(asyncio.Protocol):
    """One connection; asks, and tells its load when the answer is there or the connection is gone."""

    # The mutable state: the question under way. `ask` begins it, the transport's callbacks end it.
    __slots__ = ("_load", "answer", "busy", "first_at", "intended_at", "last_at", "transport")

    def __init__(self, load: Load) -> None:
        self._load = load
        self.answer = AnswerReader()
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.busy = False
        self.intended_at = self.first_at = self.last_at = 0.0

    def ask(self, request: bytes, intended_at: float) -> None:
        self.busy = True
        self.intended_at = intended_at
        self.first_at = 0.0
        self.answer.begin()
        self.transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self.busy:
            self.transport.abort()
            return
        answer = self.answer
        before = answer.events
        try:
            whole = answer.feed(data)
        except BadAnswerError:
            self._load.lost(self, "no HTTP")
            self.transport.abort()
            return
        if answer.events != before:
            now = perf_counter()
            if not before:
                self.first_at = now
            else:
                self._load.outcome.gaps.record(int((now - self.last_at) * 1e6))
            self.last_at = now
        if whole:
            self.busy = False
            self._load.answered(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy and exc is None and self.answer.close():
            self.busy = False
            self._load.answered(self)
        else:
            self._load.lost(self, "connection lost" if self.busy else "")


class Load:
    """A set of connections to one target, and the loops that keep them busy. One loop at a time."""

    # The mutable state: the lines, which of them are idle, and the run under way; written in the loop's callbacks.
    def __init__(self, target: Target, connections: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._target = target
        self._connections = connections
        self._lines: set[Line] = set()
        self._idle: list[Line] = []
        self._busy = 0
        self._lost = 0
        self._pull: Callable[[], tuple[bytes, float] | None] = lambda: None
        self._exhausted: Callable[[], bool] = lambda: True
        self._done: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.outcome = Outcome()

    async def open(self) -> None:
        """Connect. Raises ``OSError``."""
        for start in range(0, self._connections, 100):
            await asyncio.gather(*[self._connect() for _ in range(min(100, self._connections - start))])

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._done = None
        for line in self._lines:
            line.busy = False
            line.transport.abort()
        self._lines.clear()
        await asyncio.sleep(0)

    def make_line(self) -> Line:
        return Line(self)

    async def _connect(self) -> None:
        target = self._target
        name = target.host if target.context is not None else None
        _, line = await self._loop.create_connection(
            self.make_line, target.host, target.port, ssl=target.context, server_hostname=name
        )
        self._lines.add(line)
        self._free(line)

    async def _reconnect(self) -> None:
        try:
            await self._connect()
        except OSError:
            self.outcome.fail("no connection")
            await asyncio.sleep(_RETRY_S)
            self._replace()

    # -- what lines tell -------------------------------------------------------------------------------------

    def answered(self, line: Line) -> None:
        """The answer is whole."""
        outcome, answer = self.outcome, line.answer
        took_us = int((perf_counter() - line.intended_at) * 1e6)
        self._busy -= 1
        if answer.status < 400:
            outcome.answered += 1
            outcome.latency.record(took_us)
            if line.first_at:
                outcome.first.record(int((line.first_at - line.intended_at) * 1e6))
        else:
            outcome.fail(str(answer.status))
            outcome.refused.record(took_us)
        outcome.events += answer.events
        outcome.body_bytes += answer.body_bytes
        if b"cache" in answer.head:
            outcome.shared += is_shared(answer)
        if not answer.keeps_alive:
            self._lines.discard(line)
            line.transport.abort()
            self._replace()
            self._check()
        else:
            self._free(line)

    def lost(self, line: Line, why: str) -> None:
        """The connection is gone, in the middle of an answer if there is a ``why``."""
        if line not in self._lines:
            return
        self._lines.discard(line)
        if line.busy:
            line.busy = False
            self._busy -= 1
            self.outcome.fail(why)
        elif line in self._idle:
            self._idle.remove(line)
        self._replace()
        self._check()

    def _replace(self) -> None:
        self._lost += 1
        if self._lost > _MAX_LOST and self._lost > self.outcome.answered:
            return  # a target that answers nobody is not hammered
        if self._done is not None and not self._done.done():
            task = self._loop.create_task(self._reconnect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _free(self, line: Line) -> None:
        given = self._pull()
        if given is None:
            self._idle.append(line)
            self._check()
            return
        self.outcome.asked += 1
        self._busy += 1
        line.ask(*given)

    def _check(self) -> None:
        done = self._done
        stuck = not self._lines and not self._tasks
        if done is not None and not done.done() and not self._busy and (stuck or self._exhausted()):
            done.set_result(None)

    # -- loops -----------------------------------------------------------------------------------------------

    async def closed(self, make_request: Callable[[], bytes], count: int, seconds: float) -> Outcome:
        """Each connection asks again as soon as it was answered: ``count`` requests, or as many as fit in time."""
        left = count
        until = perf_counter() + seconds

        def pull() -> tuple[bytes, float] | None:
            nonlocal left
            now = perf_counter()
            if left <= 0 or now >= until:
                return None
            left -= 1
            return make_request(), now

        self._pull = pull
        self._exhausted = lambda: left <= 0 or perf_counter() >= until
        return await self._run(seconds + 10.0)

    async def opened(self, arrivals: Sequence[tuple[float, bytes]], wait_s: float = 10.0) -> Outcome:
        """Ask at given times (seconds from now, ascending), whatever became of the earlier questions.

        Latency counts from those times, so that a target that stalls is not spared the questions it would have got
        (no coordinated omission). What has no answer ``wait_s`` after the last of them has failed.
        """
        coming = deque(arrivals)
        waiting: deque[tuple[bytes, float]] = deque()
        start = perf_counter() + _TICK_S
        self._pull = lambda: waiting.popleft() if waiting else None
        self._exhausted = lambda: not coming and not waiting
        timer: asyncio.TimerHandle | None = None

        def beat() -> None:
            nonlocal timer
            since = perf_counter() - start
            while coming and coming[0][0] <= since:
                at, request = coming.popleft()
                waiting.append((request, start + at))
                if self._idle:
                    self._free(self._idle.pop())
            timer = self._loop.call_later(_TICK_S, beat) if coming else None

        beat()
        last_s = arrivals[-1][0] if arrivals else 0.0
        outcome = await self._run(last_s + wait_s)
        if timer is not None:
            timer.cancel()
        outcome.asked += len(waiting) + len(coming)
        for _ in range(len(waiting) + len(coming) + self._busy):
            outcome.fail("unanswered")
        return outcome

    async def _run(self, seconds: float) -> Outcome:
        start = perf_counter()
        self._done = self._loop.create_future()
        for _ in range(len(self._idle)):
            self._free(self._idle.pop(0))
        self._check()
        await asyncio.wait((self._done,), timeout=seconds)
        self._done = None
        outcome = self.outcome
        outcome.seconds = perf_counter() - start
        return outcome
