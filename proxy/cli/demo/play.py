"""Performs a script: first every question directly at the upstream, then the callers through the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from proxy.cli.demo.caller import Answer, Caller
from proxy.cli.demo.script import Ask, Part, Question, spread
from proxy.mock import MockUpstream

_HOST = "127.0.0.1"
_LIMIT_S = 30.0
"""Longest time one caller waits for a whole answer; it is ten times what the longest takes."""
_RETRY = (("x-stainless-retry-count", "1"),)

T = TypeVar("T")
Advance = Callable[[], None]


class Outcome(NamedTuple):
    """One client request and its answer."""

    ask: Ask
    answer: Answer
    gave_up: bool = False
    """The caller hung up before an answer came, as it was meant to."""


class Scene(NamedTuple):
    """One part as it was played."""

    part: Part
    outcomes: tuple[Outcome, ...]
    """In the order of the callers; a retry after the request that it repeats."""
    calls: int
    """Upstream calls that the mock counted meanwhile."""


class Progress:
    """How far the first caller with a question has read, for those who join by it."""

    # Mutable state: `_waiting` shrinks as `watch` and `release` let callers go.
    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []

    async def reach(self, body_bytes: float) -> None:
        """Until so many bytes have been read, or there will be no more."""
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((body_bytes, gate))
        await gate

    def watch(self, read_bytes: int) -> None:
        due = [gate for body_bytes, gate in self._waiting if body_bytes <= read_bytes]
        self._waiting = [(body_bytes, gate) for body_bytes, gate in self._waiting if body_bytes > read_bytes]
        for gate in due:
            if not gate.done():
                gate.set_result(None)

    def release(self) -> None:
        """The answer has ended, one way or the other: nobody waits for more of it."""
        self.watch(1 << 62)


class Play:
    """The callers of one demonstration."""

    # Mutable state: `direct`, filled by `ask_directly` before the first part.
    __slots__ = ("_mock", "_port", "direct")

    def __init__(self, mock: MockUpstream, port: int) -> None:
        """``port`` is where the proxy listens."""
        self._mock = mock
        self._port = port
        self.direct: dict[Question, Answer] = {}
        """What the upstream itself answers to each question."""

    async def ask_directly(self, questions: Iterable[Question], advance: Advance) -> None:
        """Call the upstream once for each question."""
        asks = spread(questions)
        callers = await _connect(len(asks), self._mock.port, "/__mock/stats")

        async def call(ask: Ask, caller: Caller) -> None:
            await asyncio.sleep(ask.wait_s)
            caller.send(ask.question.compose(f"{_HOST}:{self._mock.port}"))
            self.direct[ask.question] = await _finish(caller)
            advance()

        await _all(call(ask, caller) for ask, caller in zip(asks, callers, strict=True))

    async def perform(self, part: Part, advance: Advance) -> Scene:
        """Let the part's callers ask; ``advance`` is called for each client request that is over."""
        usual = self._mock.options
        if part.latency_ms:
            self._mock.options = replace(usual, latency_ms=part.latency_ms)
        # Everybody has a connection in use before anybody asks. So those who ask at once do so in one turn of the
        # loop and are read in one, and all have joined before the upstream sees the first call, however slow that is.
        callers = await _connect(len(part.asks), self._port, "/health")
        leads: dict[Question, Progress] = {}
        calls_before = self._mock.calls
        try:
            results = await _all(
                self._ask(ask, caller, leads, advance) for ask, caller in zip(part.asks, callers, strict=True)
            )
        finally:
            self._mock.options = usual
        outcomes = tuple(outcome for result in results for outcome in result)
        return Scene(part, outcomes, self._mock.calls - calls_before)

    async def _ask(
        self, ask: Ask, caller: Caller, leads: dict[Question, Progress], advance: Advance
    ) -> list[Outcome]:
        """One caller's part, from its waiting to its last answer."""
        progress = None
        if ask.question not in leads:
            progress = leads[ask.question] = Progress()
        elif ask.join_at:
            await leads[ask.question].reach(ask.join_at * len(self.direct[ask.question].body))
        if ask.wait_s:
            await asyncio.sleep(ask.wait_s)
        caller.send(self._compose(ask))
        if ask.patience_s:
            return await self._retry(ask, caller, advance)
        answer = await _finish(caller, progress)
        advance()
        return [Outcome(ask, answer)]

    async def _retry(self, ask: Ask, caller: Caller, advance: Advance) -> list[Outcome]:
        """Wait as long as patience lasts; then hang up and ask again, as SDKs do."""
        try:
            async with asyncio.timeout(ask.patience_s):
                answer = await caller.receive()
        except TimeoutError:
            caller.leave()
        else:
            caller.leave()
            advance()
            return [Outcome(ask, answer)]
        advance()
        await asyncio.sleep(ask.backoff_s)
        answer = await self._ask_again(ask)
        advance()
        return [Outcome(ask, caller.answer, gave_up=True), Outcome(ask, answer)]

    async def _ask_again(self, ask: Ask) -> Answer:
        try:
            caller = await Caller.connect(_HOST, self._port)
        except OSError as error:
            return Answer(error=str(error))
        caller.send(self._compose(ask, _RETRY))
        return await _finish(caller)

    def _compose(self, ask: Ask, more: tuple[tuple[str, str], ...] = ()) -> bytes:
        return ask.question.compose(f"{_HOST}:{self._port}", ask.key, ask.headers + more)


async def _connect(count: int, port: int, path: str) -> list[Caller]:
    """So many callers, each with a connection on which ``path`` was answered. Raises ``OSError``."""

    async def connect() -> Caller:
        caller = await Caller.connect(_HOST, port)
        await caller.greet(f"{_HOST}:{port}", path)
        return caller

    return list(await asyncio.gather(*[connect() for _ in range(count)]))


async def _finish(caller: Caller, progress: Progress | None = None) -> Answer:
    """The whole answer, or an error after the longest time that is waited; the connection is closed."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            return await caller.receive(progress.watch if progress is not None else None)
    except TimeoutError:
        caller.answer.error = f"no whole answer within {_LIMIT_S:g} s"
        return caller.answer
    finally:
        caller.leave()
        if progress is not None:
            progress.release()


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run everything at once; the first failure, or a cancellation, ends the rest before it goes on."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
    return [task.result() for task in tasks]
