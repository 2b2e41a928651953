"""The open loop before upstreams whose answers are marked: who answered, and was it one answer to this question?

Each piece of such an answer names its upstream and the number of the question. An answer with two names, or with
another number than was asked, was put together of two.
"""

from __future__ import annotations

import re

from loadtests.drive.spec import Result, Spec, make_renderer, summarize
from proxy.cli.bench.load import Line, Load, Target

_MARK = re.compile(rb"\[([a-z]+)\]")
_NUMBER = re.compile(rb"#(\d{12})")
_CODE = re.compile(rb'"code": ?"(\w+)"')
_ASKED = re.compile(rb'"(\d{12}) ')


class Marked(Load):
    """Looks at every answer, also at one that broke off."""

    # The mutable state: the counts of what was looked at.
    def __init__(self, target: Target, connections: int) -> None:
        super().__init__(target, connections)
        self.by_mark: dict[str, int] = {}
        """Whole answers by who gave them."""
        self.mixed = 0
        self.unmarked = 0
        """Good answers in which nothing could be checked."""
        self.refusals: dict[str, int] = {}
        """By status and the code of the error."""
        self.example = ""
        """Of a mixed answer."""

    def make_line(self) -> Line:
        return _MarkedLine(self)

    def answered(self, line: Line) -> None:
        assert isinstance(line, _MarkedLine)
        marks = self._look(line)
        if line.answer.status < 400:
            if len(marks) == 1:
                (mark,) = marks
                self.by_mark[mark.decode()] = self.by_mark.get(mark.decode(), 0) + 1
            self.unmarked += not marks
        else:
            code = _CODE.search(b"".join(line.pieces))
            name = f"{line.answer.status} {code[1].decode()}" if code is not None else str(line.answer.status)
            self.refusals[name] = self.refusals.get(name, 0) + 1
        super().answered(line)

    def lost(self, line: Line, why: str) -> None:
        assert isinstance(line, _MarkedLine)
        if line.busy:
            self._look(line)
        else:
            self._lost -= 1  # nobody failed to answer: it was idle for longer than the target likes
        super().lost(line, why)

    def _look(self, line: _MarkedLine) -> set[bytes]:
        raw = b"".join(line.pieces)
        marks = set(_MARK.findall(raw))
        if len(marks) > 1 or set(_NUMBER.findall(raw)) - {line.number}:
            self.mixed += 1
            self.example = raw[:2000].decode("latin-1")
        return marks


class _MarkedLine(Line):
    """Keeps the answer that is being read."""

    __slots__ = ("number", "pieces")

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self.pieces: list[bytes] = []
        self.number = b""

    def ask(self, request: bytes, intended_at: float) -> None:
        asked = _ASKED.search(request)
        self.number = asked[1] if asked is not None else b""
        self.pieces = []
        super().ask(request, intended_at)

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        super().data_received(data)


async def run_marked(spec: Spec) -> Result:
    """``rate`` questions a second, evenly spaced, whatever becomes of them. Raises ``RuntimeError`` where no answer
    could be checked."""
    load = Marked(Target("127.0.0.1", spec.port), spec.connections)
    await load.open()
    render = make_renderer(spec)
    arrivals = [(each / spec.rate, render(spec.first_number + each)) for each in range(spec.requests)]
    try:
        result = summarize(await load.opened(arrivals, 15.0))
    finally:
        await load.close()
    others = {name: count for name, count in result.failures.items() if not name.isdigit()}
    result.failures = {**load.refusals, **others}
    result.figures.update(mixed=load.mixed, unmarked=load.unmarked)
    result.figures.update({f"from_{mark}": count for mark, count in sorted(load.by_mark.items())})
    if load.mixed:
        result.failures["mixed, for example " + load.example] = load.mixed
    return result
