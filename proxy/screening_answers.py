"""How the answer of one flight is judged while it comes.

Built-in guards look at a stream in windows and let whole events through, at once but for what may be the beginning of
a finding. Remote guards are asked about portions of its text, each with the end of the one before: while one is being
judged the next gathers, so that a slow guard sees fewer and longer ones, and what was not judged waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

from proxy.config.guards import Guard
from proxy.errors import Kind, ProxyError
from proxy.guard.compile import compile_guard
from proxy.guard.deltas import Key
from proxy.guard.event_text import WHOLE, event_texts
from proxy.guard.run import GuardRunner, Matter
from proxy.guard.window import Released, Window
from proxy.guarded_intake import GATE_BYTES, GuardedIntake, Passed, Stage, note_flags
from proxy.protocol.sse import BOUNDARY
from proxy.work import Work

PORTION_BYTES: Final = 400
"""Of text, from which on a portion is worth a question …"""
PORTION_S: Final = 0.25
"""… which is asked after this long at the latest."""
OVERLAP_BYTES: Final = 200
"""Of the portion before, asked about once more."""
MOST_EVENT_BYTES: Final = 1 << 20
"""Of one event, which can only be judged as a whole."""
MOST_PARTS: Final = 256
"""Texts of one answer that are told apart."""

MOST_SAID: Final = 4_096
"""Whole texts of one answer that are known again."""

_NOTHING: Final = Passed(b"")


class Repeats:
    """Tells whether a whole text of a stream was said before: in deltas, or as a whole."""

    # Mutable, written by `heed`: _growing, digests of the texts that go on, and _said, of those that are whole.
    __slots__ = ("_growing", "_said")

    def __init__(self) -> None:
        self._growing: dict[Key, blake2b] = {}
        self._said: set[bytes] = set()

    def heed(self, key: Key, text: bytes) -> bool:
        """Whether what an event adds is new."""
        if key != WHOLE:
            growing = self._growing.get(key)
            if growing is None:
                if len(self._growing) >= MOST_PARTS:
                    return True
                growing = self._growing[key] = blake2b(digest_size=16)
            growing.update(text)
            return True
        digest = blake2b(text, digest_size=16).digest()
        if digest in self._said:
            return False
        if len(self._said) < MOST_SAID:
            self._said.add(digest)
        return all(growing.digest() != digest for growing in self._growing.values())


class AnswerStages:
    """Who judges one answer. Implements ``guarded_intake.Stages``."""

    # Mutable state: _patrol and _patrolling, once a stream has begun.
    __slots__ = ("_note_bug", "_patrol", "_patrolling", "_runner", "guards", "matter")

    def __init__(
        self,
        runner: GuardRunner,
        guards: Sequence[Guard],
        intake: GuardedIntake,
        note_bug: Callable[[str, BaseException], None],
    ) -> None:
        self._runner = runner
        self._note_bug = note_bug
        self._patrol: Patrol | None = None
        self._patrolling: asyncio.Task[None] | None = None
        self.guards = guards
        flight = intake.flight
        work: Work = flight.work
        plan = work.plan
        self.matter = Matter(
            "answer", (), plan.route.name, plan.model, work.principal.key_id, f"flight_{flight.id}"
        )

    def stream(self, intake: GuardedIntake) -> Stage:
        built_in = [guard for guard in self.guards if not guard.is_remote]
        remote = [guard for guard in self.guards if guard.is_remote]
        windows = WindowStage(self._runner, built_in, intake, self.matter) if built_in else None
        if not remote:
            assert windows is not None
            return windows
        patrol = self._patrol = Patrol(self._runner, remote, intake, self.matter)
        self._patrolling = asyncio.get_running_loop().create_task(self._watch(patrol, intake))
        return patrol if windows is None else Chain(windows, patrol)

    async def _watch(self, patrol: Patrol, intake: GuardedIntake) -> None:
        try:
            await patrol.run()
        except Exception as bug:  # noqa: BLE001 - nobody must wait for what is not judged any more
            self._note_bug("screening", bug)
            intake.block(ProxyError(Kind.BUG, "Internal error.", detail=repr(bug)))

    def unreadable(self, why: str) -> ProxyError | None:
        error = None
        for guard in self.guards:
            failed = self._runner.fail(guard, why, self.matter)
            error = error or failed
        return error

    async def finish(self) -> None:
        """Wait until everything that came was judged."""
        if self._patrolling is not None:
            await self._patrolling

    def close(self) -> None:
        if self._patrolling is not None:
            self._patrolling.cancel()  # nothing, if it is done


class WindowStage:
    """Built-in guards on a stream."""

    # Mutable state: _window's; _noted, the guards that were counted: once for a stream; _kept_bytes, what the window
    # holds as the intake knows it; _window is None once all guards have failed and let pass what comes.
    __slots__ = ("_by_name", "_intake", "_kept_bytes", "_matter", "_noted", "_runner", "_window")

    later = False

    def __init__(
        self, runner: GuardRunner, guards: Sequence[Guard], intake: GuardedIntake, matter: Matter
    ) -> None:
        self._runner = runner
        self._by_name = {guard.name: guard for guard in guards}
        self._intake = intake
        self._matter = matter
        self._noted: set[str] = set()
        self._kept_bytes = 0
        checks = [compile_guard(guard) for guard in guards]
        self._window: Window | None = Window(intake.route.name, checks)

    def feed(self, data: bytes) -> Passed:
        return Passed(data) if self._window is None else self._heed(self._window, self._window.feed(data))

    def end(self, *, whole: bool) -> Passed:
        if self._window is None:
            return _NOTHING
        passed = self._heed(self._window, self._window.end())
        if whole and passed.error is None and self._window is not None:
            for name in self._by_name.keys() - self._noted:
                self._runner.results[name, "passed"] += 1
        return passed

    def _heed(self, window: Window, released: Released) -> Passed:
        held_bytes = window.held_bytes
        self._intake.keep_back(held_bytes - self._kept_bytes)
        self._kept_bytes = held_bytes
        error = self._note(released)
        if error is not None or not released.failed:
            return Passed(released.data, error)
        for guard in self._by_name.values():
            failed = self._runner.fail(guard, "too_large", self._matter)
            error = error or failed
        rest = b"" if error is not None else window.end().data
        self._window = None
        self._intake.keep_back(-self._kept_bytes)
        return Passed(released.data + rest, error)

    def _note(self, released: Released) -> ProxyError | None:
        """Count what was found, each guard once for a stream; the error, if the answer must not go on."""
        error = None
        for finding in released.findings:
            guard = self._by_name[finding.guard]
            if guard.name in self._noted:
                continue
            self._noted.add(guard.name)
            if guard.action == "flag":
                flagged: list[str] = []
                self._runner.flag(guard, flagged)
                note_flags(self._intake, flagged)
            elif guard.action == "redact":
                self._runner.results[guard.name, "redacted"] += 1
            elif error is None:
                error = self._runner.block(guard, finding.kind, self._matter)
        return error


class Patrol:
    """Remote guards on a stream."""

    # Mutable state: _rest, the beginning of an event; _repeats, what was said so far; _events and _texts (by part),
    # what is to be judged next; _tails, the ends of what was judged last; _ended and _whole, that nothing more comes
    # and that the answer is complete. Written by the intake's calls and by `run`.
    __slots__ = (
        "_ended",
        "_events",
        "_guards",
        "_intake",
        "_matter",
        "_more",
        "_repeats",
        "_rest",
        "_runner",
        "_tails",
        "_texts",
        "_whole",
    )

    later = True

    def __init__(
        self, runner: GuardRunner, guards: Sequence[Guard], intake: GuardedIntake, matter: Matter
    ) -> None:
        self._runner = runner
        self._guards = guards
        self._intake = intake
        self._matter = matter
        self._more = asyncio.Event()
        self._repeats = Repeats()
        self._rest = b""
        self._events = b""
        self._texts: dict[Key, bytes] = {}
        self._tails: dict[Key, bytes] = {}
        self._ended = False
        self._whole = False

    def feed(self, data: bytes) -> Passed:
        intake = self._intake
        intake.keep_back(len(data))
        data = self._rest + data
        done = 0
        for boundary in BOUNDARY.finditer(data):
            self._read(data[done : boundary.end()])
            done = boundary.end()
        self._events += data[:done]
        self._rest = data[done:]
        if len(self._rest) > MOST_EVENT_BYTES:
            error = None
            for guard in self._guards:
                failed = self._runner.fail(guard, "too_large", self._matter)
                error = error or failed
            if error is not None:
                return Passed(b"", error)
            self._events, self._rest = self._events + self._rest, b""  # passes unjudged, behind what is being judged
        if len(self._events) + len(self._rest) > GATE_BYTES:
            intake.pause()
        self._more.set()
        return _NOTHING

    def end(self, *, whole: bool) -> Passed:
        self._events += self._rest
        self._read(self._rest)
        self._rest = b""
        self._ended = True
        self._whole = whole
        self._more.set()
        return _NOTHING

    def _read(self, event: bytes) -> None:
        for key, text in event_texts(event, self._intake.route.grammar):
            if not self._repeats.heed(key, text):
                continue
            ending = b"\n" if key == WHOLE else b""  # whole texts do not go on in each other
            known = key if key in self._texts or len(self._texts) < MOST_PARTS else ()
            self._texts[known] = self._texts.get(known, b"") + text + ending

    async def run(self) -> None:
        """Judge what comes until the end, and put what passes on the tape."""
        intake = self._intake
        while True:
            await self._gather()
            ended, events, texts = self._ended, self._events, self._texts
            self._events, self._texts = b"", {}
            if texts and not await self._judge(texts):
                return
            intake.keep_back(-len(events))
            intake.put(None, events, ended=ended and self._whole)
            if ended:
                return
            intake.resume()

    async def _gather(self) -> None:
        """Until there is enough to ask about, or it has waited long enough, or the end. What has no text in it goes
        on at once."""
        while not self._more.is_set():
            await self._more.wait()
        self._more.clear()
        if self._ended or not self._texts:
            return
        try:
            async with asyncio.timeout(PORTION_S):
                while sum(map(len, self._texts.values())) < PORTION_BYTES and not self._ended:
                    await self._more.wait()
                    self._more.clear()
        except TimeoutError:
            pass

    async def _judge(self, texts: dict[Key, bytes]) -> bool:
        asked = {key: self._tails.get(key, b"") + text for key, text in texts.items()}
        ruling = await self._runner.rule_later(self._guards, self._matter._replace(texts=tuple(asked.values())))
        note_flags(self._intake, ruling.flagged)
        if ruling.error is not None:
            self._intake.block(ruling.error)
            return False
        if len(self._tails) >= MOST_PARTS:
            self._tails.clear()
        self._tails |= {key: text[-OVERLAP_BYTES:] for key, text in asked.items()}
        return True


class Chain:
    """Built-in guards first, and remote ones see what they leave."""

    __slots__ = ("_first", "_second")

    later = True

    def __init__(self, first: WindowStage, second: Patrol) -> None:
        self._first = first
        self._second = second

    def feed(self, data: bytes) -> Passed:
        passed = self._first.feed(data)
        self._second.feed(passed.data)
        return passed._replace(data=b"")

    def end(self, *, whole: bool) -> Passed:
        passed = self._first.end(whole=whole)
        if passed.error is None:
            self._second.feed(passed.data)
            self._second.end(whole=whole)
        return passed._replace(data=b"")
