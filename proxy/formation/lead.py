"""One flight of this process as it is told to the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Literal

from proxy.errors import Kind, ProxyError
from proxy.formation.bounds import SLICE_BYTES, Bounds
from proxy.formation.entry import BEAT, Entry, Meta, Seal, write_error, write_head, write_usage
from proxy.formation.server import Farewell, Server, Telling, Told
from proxy.formation.writer import Writer
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.protocol.usage import Usage

_BURST_BYTES = 1 << 20
"""What may come before the first of it is told, whatever the bound for an answer is."""

_OURS = frozenset((Kind.DRAINING, Kind.BUG, Kind.CLIENT_GONE))
"""Failures that are about this process and not about the call."""


class Lead:
    """What this process tells of a flight that it leads. Nothing here waits or raises; everything is told by the
    writer, in order, and where that cannot be done in time the flight becomes this process's own.

    Implements ``writer.Speaker``.
    """

    # Mutable. Written by production's calls: _first, _data, _last (what waits to be told), ended, dropped, _parting.
    # By the writer's: _said (the entry under way), _number (its), _kept (what the server has), and the rest.
    __slots__ = (
        "_bounds",
        "_close_at",
        "_data",
        "_data_bytes",
        "_failing_since",
        "_first",
        "_is_empty",
        "_kept",
        "_kept_bytes",
        "_key",
        "_last",
        "_names",
        "_number",
        "_said",
        "_seal",
        "_token",
        "_unwanted",
        "_writer",
        "closed",
        "dropped",
        "ended",
        "holder",
        "over",
        "readers",
    )

    leads: Literal[True] = True

    def __init__(  # noqa: PLR0917 - what it is made of
        self, server: Server, writer: Writer, seal: Seal, bounds: Bounds, now: float, key: bytes, token: bytes
    ) -> None:
        # Fixed.
        self._writer = writer
        self._seal = seal
        self._bounds = bounds
        self._key = key
        self._token = token
        self._names = server.names(key, token)
        self.holder = seal.lease(key, token)
        """What stands under the lease while it is ours."""
        self._close_at = now + bounds.max_join_age_s
        # What waits to be told: before the bytes, the bytes, after them.
        self._first: Meta = {"begun": 1}
        self._data: deque[bytes] = deque()
        self._data_bytes = 0
        self._last: Meta = {}
        self._is_empty: Callable[[], bool] | None = None
        self._unwanted: Callable[[], None] | None = None
        # What is told.
        self._number = 1
        self._said: tuple[int, bytes] | None = None
        self._failing_since: float | None = None
        self._kept: deque[tuple[int, int]] = deque()
        self._kept_bytes = 0
        self.readers = 0
        """Other processes that heard the last entry."""
        self.closed = False
        """No other process may begin to follow any more."""
        self.ended = False
        """Nothing is to be added."""
        self.dropped = ""
        """Why it is not told to the end; empty where it is."""
        self.over = False
        """The last entry was told, or was given up."""

    @property
    def lease_name(self) -> str:
        return self._names[1]

    # -- what production tells ---------------------------------------------------------------------------------

    def head(self, head: ResponseHead, goes: Collection[bytes], own: HeaderList, target: str) -> None:
        """The answer's head as it came, but for the lines that are about this one call; see ``entry.write_head``."""
        length = head.get(b"content-length")
        if length.isdigit() and int(length) > self._bounds.max_bytes:
            self.abandon("too_large")
        elif not self.ended:
            self._first["head"] = write_head(head, goes, own, target)
            self._writer.wake(self)

    def append(self, data: bytes) -> None:
        """Bytes of the answer, as they came."""
        if self.ended or not data:
            return
        writer, bounds, size = self._writer, self._bounds, len(data)
        most = max(bounds.max_bytes, _BURST_BYTES)
        if self._data_bytes + size > most or writer.pending_bytes + size > bounds.total_bytes:
            self.abandon("slow")
            return
        self._data.append(data)
        self._data_bytes += size
        writer.pending_bytes += size
        writer.wake(self)

    def end(self, usage: Usage | None = None) -> None:
        """The answer is complete. ``usage`` where its bytes say less than is known."""
        if usage is not None:
            self._finish({"usage": write_usage(usage), "end": 1})
        else:
            self._finish({"end": 1})

    def fail(self, error: ProxyError) -> None:
        """The call failed: those who follow are told the same as those who are here."""
        if error.kind in _OURS:
            self.abandon(error.kind.code)
        else:
            self._finish({"error": write_error(error)})

    def abandon(self, why: str) -> None:
        """Tell nothing more of it: who got nothing yet calls for itself, others are broken off."""
        if not self.ended:
            self._drop(why)
            self._writer.wake(self)

    def part(self, is_empty: Callable[[], bool], unwanted: Callable[[], None]) -> bool:
        """Nobody in this process reads it any more. ``True``: ``unwanted`` will be called once nobody elsewhere does
        and it ``is_empty`` still; ``False``: nobody does now."""
        if self.ended:
            return False
        self._is_empty, self._unwanted = is_empty, unwanted
        self._writer.wake(self)
        return True

    def _finish(self, last: Meta) -> None:
        if not self.ended:
            self.ended = True
            self._last = last
            self._writer.wake(self)

    def _drop(self, why: str) -> None:
        self.ended = True
        self.dropped = why
        self._first = {}
        self._forget_data()
        self._last = {"dropped": why}

    def _forget_data(self) -> None:
        self._writer.pending_bytes -= self._data_bytes
        self._data.clear()
        self._data_bytes = 0

    # -- what the writer asks ----------------------------------------------------------------------------------

    @property
    def eager(self) -> bool:
        return bool(self._said or self._first or self._data or self._last) and not self.over

    def compose(self, now: float) -> Telling | None:
        if self.over:
            return None
        if self._said is None and self.eager:
            self._said = self._number, self._seal.write(self._key, self._token, self._next())
        number, entry = self._said or (BEAT, self._seal.write(self._key, self._token, Entry(BEAT, {}, b"")))
        self._trim(len(entry) if number else 0)
        self.closed = self.closed or now >= self._close_at
        lease_ms = 0 if self.closed or self.ended else _ms(self._bounds.lease_s)
        stream_ms = _ms(self._bounds.keep_s if self.ended and not self._last else 3 * self._bounds.lease_s)
        keep_from = self._kept[0][0] if self._kept else self._number
        return Telling(*self._names, number, entry, stream_ms, self.holder, lease_ms, keep_from)

    def _next(self) -> Entry:
        """What waits as one entry: a head with what came with it, and the end with the last of it."""
        slices: list[bytes] = []
        room = SLICE_BYTES
        while self._data and room > 0:
            piece = self._data.popleft()
            if len(piece) > room:
                self._data.appendleft(piece[room:])
                piece = piece[:room]
            slices.append(piece)
            room -= len(piece)
        self._data_bytes -= SLICE_BYTES - room
        self._writer.pending_bytes -= SLICE_BYTES - room
        meta, self._first = self._first, {}
        if not self._data:
            meta, self._last = {**meta, **self._last}, {}
        return Entry(self._number, meta, b"".join(slices))

    def _trim(self, coming: int) -> None:
        """Keep the server's memory within bounds: a long answer loses its beginning, and takes nobody new."""
        crowded = self._writer.stored_bytes + coming > self._bounds.total_bytes
        most = SLICE_BYTES if crowded else self._bounds.max_bytes
        while self._kept and self._kept_bytes + coming > most:
            self.closed = True
            _, size = self._kept.popleft()
            self._kept_bytes -= size
            self._writer.stored_bytes -= size

    def told(self, told: Told, now: float) -> None:
        self._failing_since = None
        self.readers = told.heard
        if not told.mine or not told.kept:
            self.closed = True  # for whoever comes now somebody else leads it, or its beginning is gone
        if self._said is not None:
            number, entry = self._said
            self._said = None
            self._number = number + 1
            self._kept.append((number, len(entry)))
            self._kept_bytes += len(entry)
            self._writer.stored_bytes += len(entry)
        if self.ended and not self.eager:
            self._close()

    def untold(self, now: float) -> None:
        if self._failing_since is None:
            self._failing_since = now
        failing_s = now - self._failing_since
        if failing_s <= self._bounds.lease_s:
            return
        if not self.dropped:
            self._drop("unreachable")
        if self._said is not None and "dropped" in self._last:
            self._said = None
            self._number += 1  # it may have been told for all we know
        if failing_s > self._bounds.forget_s:
            self._close()

    def farewell(self) -> Farewell | None:
        if self._unwanted is None or self.ended or self.eager:
            return None
        assert self._is_empty is not None
        if not self._is_empty():
            self._is_empty = self._unwanted = None
            return None
        beat = self._seal.write(self._key, self._token, Entry(BEAT, {}, b""))
        farewell = self._seal.write(self._key, self._token, Entry(self._number, {"dropped": "unwanted"}, b""))
        return Farewell(*self._names, beat, self._number, farewell, _ms(self._bounds.keep_s), self.holder)

    def answered(self, heard: int) -> None:
        self.readers = heard
        if heard or self.ended:
            return
        self.ended = True
        self.dropped = "unwanted"
        self._close()
        self._part()

    def unanswered(self) -> None:
        self.abandon("unreachable")
        self._part()

    def _part(self) -> None:
        unwanted, self._unwanted = self._unwanted, None
        if unwanted is not None:
            unwanted()

    def _close(self) -> None:
        """What the server has of it ends by itself."""
        self.over = True
        self._forget_data()
        self._writer.stored_bytes -= self._kept_bytes
        self._kept_bytes = 0
        self._kept.clear()


def _ms(seconds: float) -> int:
    return round(seconds * 1e3)
