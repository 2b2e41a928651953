"""The tape: the bytes of one answer in the order in which they arrived, read by any number of positions.

Its one law: bytes are only ever appended at the end and only ever dropped at the front, so a reader that holds a
position sees a prefix of the answer without a hole, a repeat or a change of order. A position is the number of the
next chunk to read, counted from the first chunk of the answer.
"""

from __future__ import annotations

from typing import Final

_JOINED: Final = 4
"""Joined reads that are kept for the next reader: those who catch up or stall do so at the same places, and a
thousand of them are to hold one copy of what they have in common."""


class Tape:
    """Chunks of one answer. Only the flight that owns the tape appends and trims; readers keep positions."""

    # Mutable state, written by `append` and `trim`:
    #   _chunks, _ends   retained chunks, and the byte offset behind each of them
    #   base             number of the first retained chunk (0 until something was trimmed)
    #   _base_bytes      byte offset of the first retained chunk
    #   total_bytes      bytes ever appended
    # and by `read`:
    #   _joined          the last joined reads: (position, position behind) -> bytes, oldest first
    __slots__ = ("_base_bytes", "_chunks", "_ends", "_joined", "base", "total_bytes")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._ends: list[int] = []
        self._joined: dict[tuple[int, int], bytes] | None = None
        self._base_bytes = 0
        self.base = 0
        self.total_bytes = 0

    @property
    def end(self) -> int:
        """The position behind the last chunk."""
        return self.base + len(self._chunks)

    @property
    def retained_bytes(self) -> int:
        return self.total_bytes - self._base_bytes

    def append(self, data: bytes) -> None:
        """Add one non-empty chunk."""
        self.total_bytes += len(data)
        self._chunks.append(data)
        self._ends.append(self.total_bytes)

    def read(self, position: int, limit_bytes: int) -> tuple[bytes, int]:
        """The bytes from ``position`` on, whole chunks up to ``limit_bytes`` but at least one, and the position
        behind them; ``(b"", position)`` at the end."""
        first = position - self.base
        assert first >= 0, "a reader stands in front of the tape"
        chunks = self._chunks
        last = len(chunks)
        if first == last:
            return b"", position
        if first + 1 == last:  # a reader at the live edge: the chunk itself, nothing copied
            return chunks[first], position + 1
        ends = self._ends
        bound = self._offset(first) + limit_bytes
        stop = first + 1
        while stop < last and ends[stop] <= bound:
            stop += 1
        if first + 1 == stop:
            return chunks[first], position + 1
        return self._join(first, stop), self.base + stop

    def _join(self, first: int, stop: int) -> bytes:
        joined = self._joined
        if joined is None:
            joined = self._joined = {}
        place = (self.base + first, self.base + stop)
        data = joined.get(place)
        if data is None:
            data = joined[place] = b"".join(self._chunks[first:stop])
            if len(joined) > _JOINED:
                del joined[next(iter(joined))]
        return data

    def lag_bytes(self, position: int) -> int:
        """How many bytes a reader at ``position`` has still to take."""
        return self.total_bytes - self._offset(position - self.base)

    def _offset(self, index: int) -> int:
        return self._ends[index - 1] if index else self._base_bytes

    def trim(self, position: int) -> int:
        """Drop every chunk in front of ``position`` and return the bytes freed."""
        count = position - self.base
        if count <= 0:
            return 0
        behind = self._ends[count - 1]
        freed = behind - self._base_bytes
        del self._chunks[:count], self._ends[:count]
        self._joined = None
        self.base = position
        self._base_bytes = behind
        return freed

    def chunks(self) -> tuple[bytes, ...]:
        """The whole answer; only a tape that was never trimmed has it."""
        assert self.base == 0, "a trimmed tape is no longer the whole answer"
        return tuple(self._chunks)
