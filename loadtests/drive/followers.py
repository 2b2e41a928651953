"""The swarm: everybody asks the same question at once and compares what comes with what the others got."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from time import perf_counter

from loadtests.drive.spec import Result, Spec, make_renderer, summarize
from proxy.cli.bench.load import Line, Load, Target


class _Comparing(Load):
    """Also hashes what each connection receives after its head, so that answers can be compared."""

    def __init__(self, target: Target, connections: int) -> None:
        super().__init__(target, connections)
        self.digests: dict[bytes, int] = {}

    def make_line(self) -> Line:
        return _HashingLine(self)

    def answered(self, line: Line) -> None:
        assert isinstance(line, _HashingLine)
        digest = line.hash.digest()
        self.digests[digest] = self.digests.get(digest, 0) + 1
        super().answered(line)


class _HashingLine(Line):
    """Events are hashed without their chunk framing, which may differ between callers."""

    __slots__ = ("hash",)

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self.hash = sha256()

    def data_received(self, data: bytes) -> None:
        for line in data.split(b"\n"):
            if line.startswith(b"data:"):
                self.hash.update(line)
        super().data_received(data)


async def run_followers(spec: Spec) -> Result:
    """``connections`` callers, question ``first_number`` for all (or ``distinct`` questions in turn), each once."""
    load = _Comparing(Target("127.0.0.1", spec.port), spec.connections)
    await load.open()
    render = make_renderer(spec)
    questions = [render(spec.first_number + number) for number in range(spec.distinct or 1)]
    try:
        asking_from = perf_counter()
        result = summarize(
            await load.opened(
                [(0.0, questions[number % len(questions)]) for number in range(spec.connections)], spec.seconds
            )
        )
        result.figures["swarm_s"] = perf_counter() - asking_from
        result.figures["different_answers"] = len(load.digests)
        return result
    finally:
        await load.close()
        await asyncio.sleep(0)
