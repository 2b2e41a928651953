"""Guards that others run: an HTTP webhook of the operator's, and OpenAI's moderation endpoint.

Each guard is asked within its own bounds: so many calls at a time and so many that wait for a place, one deadline
over both, and a breaker that stops asking who fails. What cannot be had in these bounds is a `GuardFailedError`, and
the guard's fail mode decides what becomes of the text. Nothing is remembered here: equal requests share a flight, and
what was let pass is in the caches.

The webhook gets ``POST {"guard", "direction": "request"|"answer", "texts", "route", "model", "key_id",
"request_id"}`` and answers ``{"action": "allow"|"block"|"flag", "reason": …}``. The moderation endpoint is that of
https://platform.openai.com/docs/api-reference/moderations.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import orjson

from proxy.clock import Clock
from proxy.config.guards import Guard
from proxy.errors import ProxyError
from proxy.protocol.message import HeaderList

MAX_SENT_BYTES: Final = 1 << 20
"""Of the texts of one question."""
MAX_ANSWER_BYTES: Final = 256 << 10
MOST_CONCURRENT: Final = 64
"""Calls of one guard at a time, where its options say nothing."""
MOST_WAITING: Final = 1_024
"""Questions of one guard that wait for a place."""
FAILURES_IN_A_ROW: Final = 5
"""After so many a guard is not asked for a while …"""
OPEN_S: Final = 5.0
"""… this long, twice as long after each probe that fails …"""
MOST_OPEN_S: Final = 60.0
"""… up to this."""
_MOST_LINES: Final = 1_000
_WORD: Final = re.compile(r"[a-z0-9][a-z0-9_./-]{0,63}", re.IGNORECASE)


class GuardFailedError(Exception):
    """A text could not be checked. ``why`` is a low-cardinality word: ``timeout``, ``crowded``, ``breaker``,
    ``status``, ``answer``, ``unreachable``, ``too_large``, ``bug`` …"""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Subject(NamedTuple):
    """What is asked about, and for whom."""

    direction: str
    """``request`` or ``answer``."""
    texts: Sequence[str]
    route: str
    model: str
    key_id: str
    request_id: str


class Verdict(NamedTuple):
    """What a guard says."""

    action: str
    """``allow``, ``block`` or ``flag``."""
    reason: str = ""
    """A word for the log: never the guard's own prose, which may quote the text."""


_ALLOWED: Final = Verdict("allow")


class Post(Protocol):
    """Sends a body and reads the whole answer, of `MAX_ANSWER_BYTES` at most. Raises ``ProxyError``."""

    def __call__(
        self, url: str, headers: HeaderList, body: bytes, deadline_s: float
    ) -> Awaitable[tuple[int, bytes]]: ...


class _Line:
    """The way to one guard. Written by `RemoteGuards` only."""

    # Mutable: waiting, those that wait for a place; the breaker: in_a_row, open_until, open_s, probing.
    __slots__ = ("guard", "headers", "in_a_row", "open_s", "open_until", "options", "places", "probing", "waiting")

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.options: dict[str, Any] = dict(guard.options)
        self.places = asyncio.Semaphore(int(self.options.get("most_concurrent", MOST_CONCURRENT)))
        self.headers = _headers(self.options)
        self.waiting = 0
        self.in_a_row = 0
        self.open_until = 0.0
        self.open_s = OPEN_S
        self.probing = False

    def admit(self, now: float) -> bool:
        """Whether the breaker lets a question through; one that was is followed by `good`, `bad` or `untold`."""
        if self.in_a_row < FAILURES_IN_A_ROW:
            return True
        if self.probing or now < self.open_until:
            return False
        self.probing = True
        return True

    def good(self) -> None:
        self.in_a_row = 0
        self.probing = False
        self.open_s = OPEN_S

    def bad(self, now: float) -> bool:
        """Whether this opened the breaker."""
        self.in_a_row += 1
        if self.in_a_row < FAILURES_IN_A_ROW or (self.open_until > now and not self.probing):
            return False  # not once more for each call that was under way
        if self.probing:
            self.open_s = min(2 * self.open_s, MOST_OPEN_S)
        self.probing = False
        self.open_until = now + self.open_s
        return True

    def untold(self) -> None:
        """The question was given up before there was an answer."""
        self.probing = False


class RemoteGuards:
    """Asks. One for the process."""

    # Mutable state: _lines, by the guards' names, each made when its guard is first asked or has changed. `opened`
    # only grows.
    __slots__ = ("_clock", "_lines", "_post", "opened")

    def __init__(self, post: Post, clock: Clock) -> None:
        self._post = post
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        self.opened: dict[str, int] = {}
        """How often the breaker of each guard opened."""

    async def ask(self, guard: Guard, subject: Subject) -> Verdict:
        """What ``guard`` says of the texts, within its deadline. Raises `GuardFailedError`."""
        if not any(subject.texts):
            return _ALLOWED
        write, read = _KINDS[guard.kind]
        line = self._line(guard)
        body = write(line, subject)
        if len(body) > MAX_SENT_BYTES:
            raise GuardFailedError("too_large")
        if line.waiting >= MOST_WAITING:
            raise GuardFailedError("crowded")
        if not line.admit(self._clock.now()):
            raise GuardFailedError("breaker")
        told = False
        try:
            verdict = await self._ask(line, body, read)
            told = True
            line.good()
        except GuardFailedError:
            told = True
            if line.bad(self._clock.now()):
                self.opened[guard.name] = self.opened.get(guard.name, 0) + 1
            raise
        finally:
            if not told:
                line.untold()
        return verdict

    async def _ask(self, line: _Line, body: bytes, read: _Read) -> Verdict:
        timeout_s = line.guard.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                line.waiting += 1
                try:
                    await line.places.acquire()
                finally:
                    line.waiting -= 1
                try:
                    status, said = await self._post(line.options["url"], line.headers, body, timeout_s)
                finally:
                    line.places.release()
        except TimeoutError:
            raise GuardFailedError("timeout") from None
        except ProxyError as error:
            why = "timeout" if error.kind.status == 504 else "unreachable"
            raise GuardFailedError(why) from None
        if not 200 <= status < 300:
            raise GuardFailedError("status")
        try:
            answer = orjson.loads(said)
            return read(line, answer)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise GuardFailedError("answer") from None

    def _line(self, guard: Guard) -> _Line:
        line = self._lines.get(guard.name)
        if line is None or (line.guard is not guard and line.guard != guard):
            if len(self._lines) >= _MOST_LINES:
                self._lines.clear()
            line = self._lines[guard.name] = _Line(guard)
        return line

    def is_open(self) -> dict[str, bool]:
        """By guard, whether it is not asked at present."""
        return {name: line.in_a_row >= FAILURES_IN_A_ROW for name, line in self._lines.items()}


# -- what is sent and read ----------------------------------------------------------------------------------------

_Read = Callable[[_Line, Any], Verdict]
_Write = Callable[[_Line, Subject], bytes]


def _headers(options: Mapping[str, Any]) -> HeaderList:
    headers: HeaderList = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
    return headers + [(name.lower().encode(), value.encode()) for name, value in options.get("headers", ())]


def _write_webhook(line: _Line, subject: Subject) -> bytes:
    return orjson.dumps({"guard": line.guard.name, **subject._asdict()})


def _read_webhook(line: _Line, answer: Any) -> Verdict:
    action = answer["action"]
    if action not in ("allow", "block", "flag"):
        raise ValueError(action)
    reason = answer.get("reason")
    return Verdict(action, reason if type(reason) is str and _WORD.fullmatch(reason) else "")


def _write_moderation(line: _Line, subject: Subject) -> bytes:
    model = line.options.get("model")
    named = {"model": model} if model else {}
    return orjson.dumps({**named, "input": [text for text in subject.texts if text]})


def _read_moderation(line: _Line, answer: Any) -> Verdict:
    """Blocks by the scores of the categories that have thresholds, else by what the endpoint flags, in the categories
    that were named, or in any."""
    options = line.options
    thresholds = dict(options.get("thresholds", ()))
    categories = frozenset(options.get("categories", ()))
    results = answer["results"]
    if not results:
        raise ValueError("no result")
    for result in results:
        for category, most in thresholds.items():
            if float(result["category_scores"].get(category, 0.0)) >= most:
                return Verdict("block", category)
        flagged = [name for name, found in result["categories"].items() if found and name not in thresholds]
        named = sorted(categories.intersection(flagged)) if categories else flagged
        if named:
            return Verdict("block", named[0] if _WORD.fullmatch(named[0]) else "")
        if result["flagged"] and not categories and not thresholds:
            return Verdict("block")
    return _ALLOWED


_KINDS: Final[dict[str, tuple[_Write, _Read]]] = {
    "webhook": (_write_webhook, _read_webhook),
    "moderation": (_write_moderation, _read_moderation),
}
