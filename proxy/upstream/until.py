"""Waiting with an absolute deadline on the wheel instead of a timer of the loop."""

from __future__ import annotations

import asyncio
from types import TracebackType

from proxy.clock import Deadline, Deadlines


class Until:
    """``async with Until(deadlines, at)``: the body is cancelled at ``at``, and the block raises ``TimeoutError``.

    ``at`` is monotonic seconds of the wheel's clock. ``asyncio.timeout`` does the delicate part (telling its own
    cancellation from somebody else's); the wheel only says when. For slow paths: connecting, resolving, and the
    transport over aiohttp.
    """

    # _handle is written by __aenter__, __aexit__ and move, _at by move; expired follows asyncio's own state.
    __slots__ = ("_at", "_deadlines", "_handle", "_scope")

    def __init__(self, deadlines: Deadlines, at: float) -> None:
        self._deadlines = deadlines
        self._at = at
        self._scope = asyncio.timeout(None)
        self._handle: Deadline | None = None

    @property
    def expired(self) -> bool:
        """Whether the ``TimeoutError`` is ours, and not the kernel's ``ETIMEDOUT``."""
        return self._scope.expired()

    def move(self, at: float) -> None:
        """Another deadline. A later one costs nothing: the wheel asks again when the old one is due."""
        self._at = at
        if self._handle is not None and at < self._handle.at:
            self._handle.cancel()
            self._handle = self._deadlines.arm_at(at, self._expire)

    async def __aenter__(self) -> Until:
        await self._scope.__aenter__()
        self._handle = self._deadlines.arm_at(self._at, self._expire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        await self._scope.__aexit__(kind, error, traceback)

    def _expire(self) -> float | None:
        if self._handle is not None and self._at > self._handle.at:
            return self._at
        # In the past, so the scope fires on the loop's next turn without arming a timer.
        self._scope.reschedule(0.0)
        return None
