"""A receiver that keeps what it is given, and a body that a test feeds by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.protocol.message import ResponseHead
from proxy.upstream.base import Control
from tests.fakes.gates import wait_until, within


class Recorder:
    """What was pushed, in order; ``on_each`` is called with this recorder after each read."""

    def __init__(self, on_each: Callable[[Recorder], None] | None = None) -> None:
        self.starts = 0
        self.control: Control | None = None
        self.reads: list[tuple[ResponseHead | None, bytes, bool]] = []
        self._on_each = on_each

    def on_start(self, control: Control) -> None:
        self.starts += 1
        self.control = control

    def on_read(self, head: ResponseHead | None, data: bytes, ended: bool) -> None:
        self.reads.append((head, data, ended))
        if self._on_each is not None:
            self._on_each(self)

    @property
    def heads(self) -> list[ResponseHead]:
        return [head for head, _, _ in self.reads if head is not None]

    @property
    def head(self) -> ResponseHead:
        (head,) = self.heads
        return head

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data, _ in self.reads)

    @property
    def ended(self) -> bool:
        return bool(self.reads) and self.reads[-1][2]

    def pause(self) -> None:
        assert self.control is not None
        self.control.pause()

    def resume(self) -> None:
        assert self.control is not None
        self.control.resume()

    async def started(self) -> None:
        await wait_until(lambda: self.starts, "the request was put on a connection")

    async def got(self, size: int) -> None:
        """Until ``size`` body bytes arrived."""
        await wait_until(lambda: len(self.body) >= size, f"{size} body bytes arrived, {len(self.body)} did")

    async def got_head(self) -> None:
        await wait_until(lambda: self.heads, "the head arrived")


class HandFedBody:
    """A ``BodySource``: ``feed`` pieces, ``b""`` to end it, an exception to break it off."""

    def __init__(self, length: int | None = None) -> None:
        self.length = length
        self.reads = 0
        """How often a piece was asked for."""
        self._pieces: asyncio.Queue[bytes | BaseException] = asyncio.Queue()

    def feed(self, *pieces: bytes | BaseException) -> HandFedBody:
        for piece in pieces:
            self._pieces.put_nowait(piece)
        return self

    async def read(self) -> bytes:
        self.reads += 1
        piece = await within(self._pieces.get(), "a piece was fed")
        if isinstance(piece, BaseException):
            raise piece
        return piece
