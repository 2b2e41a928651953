"""Request bodies off the wire: held whole within a bound, or streamed for uploads; never at a trickle.

aiohttp reads a body as slowly as the client likes to send it. `Pace` gives every body a least pace and a held one a
time limit, on either lane; `PaceGuard` fails the read that waits, so nobody waits for a client that does not send.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aiohttp import StreamReader

from proxy.clock import Clock, Deadline, Deadlines
from proxy.errors import Kind, ProxyError

_WINDOW_S = 10.0


class BodyLimits(NamedTuple):
    """Bounds of request bodies: bytes, bytes per second, seconds."""

    max_bytes: int
    min_rate: int
    timeout_s: float


class Pace:
    """Whether a body comes fast enough: not fewer than ``min_rate`` bytes a second over ten seconds of waiting, and a
    held one within its time. Sans-IO; all times are monotonic seconds."""

    # Mutable state: what came and how long was waited for it since the last look, and when the next look is due.
    __slots__ = ("_asked_at", "_bytes", "_ends_at", "_limits", "_waited_s", "due_at")

    def __init__(self, limits: BodyLimits, now: float, *, bounded: bool) -> None:
        self._limits = limits
        self._bytes = 0
        self._ends_at = now + limits.timeout_s if bounded else None
        self._asked_at: float | None = None
        self._waited_s = 0.0
        self.due_at = now + min(_WINDOW_S, limits.timeout_s)

    def ask(self, now: float) -> None:
        """From now on the client is waited for."""
        self._asked_at = now

    def rest(self, now: float) -> None:
        """Nobody waits any more. A body that nobody asks for is held up by us, not by the client."""
        if self._asked_at is not None:
            self._waited_s += now - self._asked_at
            self._asked_at = None

    def count(self, size: int) -> None:
        self._bytes += size

    def check(self, now: float) -> ProxyError | None:
        """What is wrong at ``due_at``; if nothing is, ``due_at`` moves on."""
        ends_at, limits = self._ends_at, self._limits
        late = ends_at is not None and now >= ends_at
        waited_s = self._waited_s + (now - self._asked_at if self._asked_at is not None else 0.0)
        slow = waited_s >= _WINDOW_S / 2 and self._bytes < limits.min_rate * min(waited_s, _WINDOW_S)
        if late or slow:
            why = "body_timeout" if late else "body_rate"
            return ProxyError(Kind.REQUEST_TIMEOUT, "The request body came too slowly.", why=why)
        self._bytes = 0
        self._waited_s = 0.0
        if self._asked_at is not None:
            self._asked_at = now
        self.due_at = now + _WINDOW_S if ends_at is None else min(now + _WINDOW_S, ends_at)
        return None


class PaceGuard:
    """Fails the read of a body that comes too slowly."""

    __slots__ = ("_clock", "_content", "_deadline", "_pace")

    def __init__(
        self, content: StreamReader, limits: BodyLimits, clock: Clock, deadlines: Deadlines, *, bounded: bool
    ) -> None:
        self._content = content
        self._clock = clock
        self._pace = Pace(limits, clock.now(), bounded=bounded)
        self._deadline: Deadline | None = deadlines.arm_at(self._pace.due_at, self._check)

    def ask(self) -> None:
        """From now on the client is waited for."""
        self._pace.ask(self._clock.now())

    def count(self, size: int) -> None:
        self._pace.count(size)
        self._pace.rest(self._clock.now())

    def _check(self) -> float | None:
        error = self._pace.check(self._clock.now())
        if error is not None:
            self._deadline = None
            self._content.set_exception(error)
            return None
        return self._pace.due_at

    def stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


async def read_whole(
    content: StreamReader, declared: int | None, limits: BodyLimits, clock: Clock, deadlines: Deadlines
) -> bytes:
    """The whole body. Raises ``ProxyError``: ``TOO_LARGE`` (by declaration or at the bound), ``REQUEST_TIMEOUT``,
    ``BAD_REQUEST`` for broken framing, ``CLIENT_GONE``."""
    if declared is not None and declared > limits.max_bytes:
        raise too_large(limits.max_bytes)
    if content.is_eof():  # came with the head: the usual case
        return _bounded(content.read_nowait(-1), limits.max_bytes)
    guard = PaceGuard(content, limits, clock, deadlines, bounded=True)
    pieces: list[bytes] = []
    size = 0
    try:
        guard.ask()
        while piece := await _read(content):
            size += len(piece)
            guard.count(len(piece))
            guard.ask()
            if size > limits.max_bytes:
                raise too_large(limits.max_bytes)
            pieces.append(piece)
    finally:
        guard.stop()
    return b"".join(pieces)


class Upload:
    """A body source that hands pieces on as they come; holds none of them."""

    __slots__ = ("_content", "_count", "_guard", "length")

    def __init__(
        self,
        content: StreamReader,
        length: int | None,
        limits: BodyLimits,
        clock: Clock,
        deadlines: Deadlines,
        *,
        count: Callable[[int], None],
    ) -> None:
        """``count`` is told the size of each piece."""
        self._content = content
        self.length = length
        self._count = count
        self._guard = PaceGuard(content, limits, clock, deadlines, bounded=False)

    @property
    def unread(self) -> bool:
        """Whether the client has more to send, or sent what nobody took."""
        return not self._content.is_eof()

    async def read(self) -> bytes:
        self._guard.ask()
        piece = await _read(self._content)
        self._count(len(piece))
        self._guard.count(len(piece))
        if not piece:
            self._guard.stop()
        return piece

    def close(self) -> None:
        """Nobody will read any more."""
        self._guard.stop()


async def _read(content: StreamReader) -> bytes:
    try:
        return await content.readany()
    except ProxyError:
        raise
    except ConnectionError as gone:
        raise ProxyError(Kind.CLIENT_GONE, "The client went away while sending its body.", why="body") from gone
    except Exception as broken:
        message = "The request body is not framed correctly."
        raise ProxyError(Kind.BAD_REQUEST, message, detail=repr(broken), why="body_framing") from broken


def _bounded(body: bytes, max_bytes: int) -> bytes:
    if len(body) > max_bytes:
        raise too_large(max_bytes)
    return body


def too_large(max_bytes: int) -> ProxyError:
    return ProxyError(Kind.TOO_LARGE, f"The request body is larger than {max_bytes} bytes.")
