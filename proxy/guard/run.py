"""Takes guards to the texts of one request or one answer and says what becomes of it.

Built-in checks of short texts are a matter of microseconds and are made at once; long texts go to a thread, two at a
time, and remote guards are asked beside each other. A guard that hangs, crashes or cannot be had follows its fail
mode: nothing here raises, and nothing takes longer than the longest of the guards' deadlines. The first that blocks
ends the others.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from proxy.clock import Clock
from proxy.config.guards import Guard
from proxy.errors import Kind, ProxyError
from proxy.guard.base import Check, Finding
from proxy.guard.compile import compile_guard
from proxy.guard.remote import GuardFailedError, RemoteGuards, Subject
from proxy.guard.tally import Tally

SLOW_AT_A_TIME: Final = 2
"""Checks of long texts in threads."""
_TELL_EVERY_S: Final = 10.0
"""A guard that keeps failing is logged so often."""


class Matter(NamedTuple):
    """What is judged: the texts of one body, and where they belong."""

    direction: str
    """``request`` or ``answer``."""
    texts: Sequence[bytes]
    """UTF-8."""
    route: str
    model: str
    key_id: str
    request_id: str

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.texts))


class Ruling:
    """What guards made of one matter. Written by `GuardRunner` while they are asked."""

    __slots__ = ("by", "error", "flagged", "found")

    def __init__(self) -> None:
        self.error: ProxyError | None = None
        """It is blocked, or could not be checked where it has to be."""
        self.by: Guard | None = None
        """Who blocked it."""
        self.flagged: list[str] = []
        """Guards that only say so."""
        self.found: dict[int, list[Finding]] = {}
        """What is to be redacted, by the index of the text."""


class _BlockedError(Exception):
    """Ends the questions that are under way."""


class GuardRunner:
    """Runs guards. One for the process."""

    # Mutable state: the counters, which only grow; _told_at, when a guard's failure was last logged; _slow bounds the
    # threads, and `looking` counts them.
    __slots__ = (
        *("_clock", "_log", "_note_bug", "_slow", "_told_at", "failures", "looking", "remote", "results", "seconds"),
    )

    def __init__(
        self, remote: RemoteGuards, clock: Clock, log: Any, note_bug: Callable[[str, BaseException], None]
    ) -> None:
        self.remote = remote
        self._clock = clock
        self._log = log
        self._note_bug = note_bug
        self._slow = asyncio.Semaphore(SLOW_AT_A_TIME)
        self._told_at: dict[str, float] = {}
        self.looking = 0
        """Threads that look at long texts, also those that nobody waits for any more."""
        self.results: Counter[tuple[str, str]] = Counter()
        """By guard: ``passed``, ``blocked``, ``redacted``, ``flagged``, ``failed_open``, ``failed_closed``. Names are
        the catalog's, so there are few."""
        self.failures: Counter[tuple[str, str]] = Counter()
        """By guard and why."""
        self.seconds: Counter[str] = Counter()
        """By guard, how long its checks took; of remote ones the wait."""

    # -- at once ---------------------------------------------------------------------------------------------

    def is_quick(self, guards: Iterable[Guard], matter: Matter) -> bool:
        """Whether `rule` may be called: nothing has to be waited for."""
        size_bytes = matter.size_bytes
        return not any(guard.is_remote or _is_slow(guard, size_bytes) for guard in guards)

    def rule(self, guards: Sequence[Guard], matter: Matter) -> Ruling:
        """What built-in guards say, up to the first that blocks."""
        ruling = Ruling()
        for guard in guards:
            began_at = time.perf_counter()
            try:
                found = judge(compile_guard(guard), matter.texts)
            except Exception as bug:  # noqa: BLE001 - a guard that crashes follows its fail mode
                self._note_bug("guard", bug)
                self._failed(guard, "crash", matter, ruling)
            else:
                self._heed(guard, found, matter, ruling)
            self.seconds[guard.name] += time.perf_counter() - began_at  # type: ignore[assignment]  # a sum of seconds
            if ruling.error is not None:
                break
        return ruling

    # -- with a wait -----------------------------------------------------------------------------------------

    async def rule_later(self, guards: Sequence[Guard], matter: Matter) -> Ruling:
        """The same for any guards: the quick ones first, all others beside each other."""
        size_bytes = matter.size_bytes
        quick = [guard for guard in guards if not guard.is_remote and not _is_slow(guard, size_bytes)]
        ruling = self.rule(quick, matter)
        others = [guard for guard in guards if guard not in quick]
        if ruling.error is not None or not others:
            return ruling
        try:
            async with asyncio.TaskGroup() as group:
                for guard in others:
                    group.create_task(self._ask(guard, matter, ruling))
        except* _BlockedError:
            pass
        return ruling

    async def _ask(self, guard: Guard, matter: Matter, ruling: Ruling) -> None:
        began_at = time.perf_counter()
        try:
            if guard.is_remote:
                await self._ask_remote(guard, matter, ruling)
            else:
                await self._ask_thread(guard, matter, ruling)
        except GuardFailedError as failed:
            self._failed(guard, failed.why, matter, ruling)
        except Exception as bug:  # noqa: BLE001 - as in `rule`
            self._note_bug("guard", bug)
            self._failed(guard, "crash", matter, ruling)
        finally:
            self.seconds[guard.name] += time.perf_counter() - began_at  # type: ignore[assignment]  # a sum of seconds
        if ruling.error is not None:
            raise _BlockedError

    async def _ask_remote(self, guard: Guard, matter: Matter, ruling: Ruling) -> None:
        texts = [text.decode("utf-8", "replace") for text in matter.texts]
        subject = Subject(matter.direction, texts, matter.route, matter.model, matter.key_id, matter.request_id)
        verdict = await self.remote.ask(guard, subject)
        if verdict.action == "allow":
            self.results[guard.name, "passed"] += 1
        else:
            action = "flag" if verdict.action == "flag" else guard.action
            self._found(guard, action, verdict.reason, matter, ruling)

    async def _ask_thread(self, guard: Guard, matter: Matter, ruling: Ruling) -> None:
        try:
            async with asyncio.timeout(guard.timeout_s):
                await self._slow.acquire()
                look = asyncio.get_running_loop().run_in_executor(None, judge, compile_guard(guard), matter.texts)
                self.looking += 1
                look.add_done_callback(self._looked)  # a thread cannot be stopped: it keeps its place until its end
                found = await asyncio.shield(look)
        except TimeoutError:
            raise GuardFailedError("timeout") from None
        self._heed(guard, found, matter, ruling)

    def _looked(self, look: asyncio.Future[Any]) -> None:
        self.looking -= 1
        self._slow.release()
        if not look.cancelled():
            look.exception()  # somebody has looked at it, though nobody may have waited

    # -- what is made of it ----------------------------------------------------------------------------------

    def _heed(
        self, guard: Guard, found: dict[int, list[Finding]] | None, matter: Matter, ruling: Ruling
    ) -> None:
        if found is None:
            self.results[guard.name, "passed"] += 1
            return
        if guard.action == "redact":
            self.results[guard.name, "redacted"] += 1
            for at, findings in found.items():
                ruling.found.setdefault(at, []).extend(findings)
            return
        kind = next((each.kind for findings in found.values() for each in findings), "")
        self._found(guard, guard.action, kind, matter, ruling)

    def _found(self, guard: Guard, action: str, kind: str, matter: Matter, ruling: Ruling) -> None:
        if action == "flag":
            self.flag(guard, ruling.flagged)
        elif ruling.error is None:
            ruling.by = guard
            ruling.error = self.block(guard, kind, matter)

    def flag(self, guard: Guard, flagged: list[str]) -> None:
        """Note that ``guard`` found something and only says so."""
        self.results[guard.name, "flagged"] += 1
        if guard.name not in flagged:
            flagged.append(guard.name)

    def block(self, guard: Guard, kind: str, matter: Matter) -> ProxyError:
        """Count, log and word a refusal. The text stands nowhere."""
        self.results[guard.name, "blocked"] += 1
        self._log.warning(
            "guard_blocked",
            guard=guard.name,
            found=kind,
            mode=guard.mode,
            direction=matter.direction,
            route=matter.route,
            model=matter.model,
            key_id=matter.key_id,
            request_id=matter.request_id,
        )
        public = f"The {matter.direction} was blocked by the guard '{guard.name}'."
        return ProxyError(Kind.GUARD_BLOCKED, public, detail=kind)

    def fail(self, guard: Guard, why: str, matter: Matter) -> ProxyError | None:
        """What becomes of a text that ``guard`` could not check: the error, or ``None`` where it is let pass."""
        self.failures[guard.name, why] += 1
        self.results[guard.name, "failed_open" if guard.fail_open else "failed_closed"] += 1
        now = self._clock.now()
        if now - self._told_at.get(guard.name, -_TELL_EVERY_S) >= _TELL_EVERY_S:
            self._told_at[guard.name] = now
            passes = "let_pass" if guard.fail_open else "refused"
            self._log.warning("guard_failed", guard=guard.name, why=why, direction=matter.direction, result=passes)
        if guard.fail_open:
            return None
        public = f"The {matter.direction} could not be checked by the guard '{guard.name}'."
        return ProxyError(Kind.GUARD_FAILED, public, detail=why, retry_after_s=1.0)

    def _failed(self, guard: Guard, why: str, matter: Matter, ruling: Ruling) -> None:
        error = self.fail(guard, why, matter)
        if ruling.error is None:
            ruling.error = error


def _is_slow(guard: Guard, size_bytes: int) -> bool:
    return not guard.is_remote and compile_guard(guard).is_slow(size_bytes)


def judge(check: Check, texts: Sequence[bytes]) -> dict[int, list[Finding]] | None:
    """What one check finds in all texts of a body, by text; ``None`` if it is nothing."""
    found: dict[int, list[Finding]] = {}
    tally = Tally([check])
    for at, text in enumerate(texts):
        findings = check.look(text)
        if findings:
            found[at] = findings
            tally.note([(0, finding) for finding in findings])
        tally.weigh(text)
    something, _ = tally.take()
    if not something:
        return None
    return found or {0: list(something)}
