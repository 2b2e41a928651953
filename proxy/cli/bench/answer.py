"""Reads HTTP/1.1 responses of any gateway without keeping them: status, sizes, events."""

from __future__ import annotations

from typing import Final

_MAX_HEAD_BYTES: Final = 64 * 1024


class BadAnswerError(Exception):
    """What came is no HTTP/1.1 response."""


_HEAD, _COUNTED, _SIZE, _CHUNK, _TRAILER, _TO_CLOSE = range(6)


class AnswerReader:
    """Reads one response after another (RFC 9112), counting instead of keeping."""

    # The mutable state: what was seen of the response being read; `begin` sets it back.
    __slots__ = ("_behind", "_left", "_line", "_mode", "body_bytes", "events", "head", "keeps_alive", "status")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._mode = _HEAD
        self._behind = b""  # an unfinished head; after it the body's last byte, for an event that straddles reads
        self._line = b""
        self._left = 0
        self.status = 0
        self.head = b""
        """Lower case."""
        self.body_bytes = 0
        self.events = 0
        """Blank lines in the body: server-sent events, if it is a stream of them."""
        self.keeps_alive = True

    def feed(self, data: bytes) -> bool:
        """Whether the response is whole now. Raises ``BadAnswerError``."""
        if self._mode == _HEAD:
            rest = self._read_head(data)
            if rest is None:
                return False
            data = rest
        if self._mode == _COUNTED:
            self._count(data)
            self._left -= len(data)
            return self._left <= 0
        if self._mode == _TO_CLOSE:
            self._count(data)
            return False
        return self._read_chunks(data)

    def close(self) -> bool:
        """Whether the end of the connection is the end of the response."""
        return self._mode == _TO_CLOSE

    def _read_head(self, data: bytes) -> bytes | None:
        data = self._behind + data if self._behind else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _MAX_HEAD_BYTES:
                raise BadAnswerError("the head has no end")
            self._behind = data
            return None
        self._behind = b""
        head = data[:end].lower()
        rest = data[end + 4 :]
        if not head.startswith(b"http/1.") or not head[9:12].isdigit():
            raise BadAnswerError("no status line")
        status = int(head[9:12])
        if status < 200:
            return self._read_head(rest)
        self.status, self.head = status, head
        self.keeps_alive = b"close" not in self.header(b"connection") and head[7:8] == b"1"
        length = self.header(b"content-length")
        if self.header(b"transfer-encoding"):
            self._mode = _SIZE
        elif length.isdigit() or status in (204, 304):
            self._mode = _COUNTED
            self._left = int(length or b"0") if status not in (204, 304) else 0
        else:
            self._mode = _TO_CLOSE
            self.keeps_alive = False
        return rest

    def header(self, name: bytes) -> bytes:
        """A header's value in lower case, ``b""`` if it is not there."""
        start = self.head.find(b"\r\n" + name + b":")
        if start < 0:
            return b""
        start += len(name) + 3
        end = self.head.find(b"\r\n", start)
        return (self.head[start:end] if end >= 0 else self.head[start:]).strip()

    def _count(self, data: bytes) -> None:
        if data:
            self.body_bytes += len(data)
            self.events += data.count(b"\n\n") + (self._behind == b"\n" and data[:1] == b"\n")
            self._behind = data[-1:]

    def _read_chunks(self, data: bytes) -> bool:
        place = 0
        while place < len(data):
            if self._mode == _CHUNK:
                piece = data[place : place + self._left]
                place += len(piece)
                # What is left counts the CRLF behind the chunk, which is no part of the body.
                self._count(piece[: max(self._left - 2, 0)])
                self._left -= len(piece)
                if not self._left:
                    self._mode = _SIZE
                continue
            end = data.find(b"\n", place)
            if end < 0:
                self._line += data[place:]
                return False
            line = (self._line + data[place:end]).rstrip(b"\r")
            self._line = b""
            place = end + 1
            if self._mode == _TRAILER:
                if not line:
                    return True
                continue
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError:
                raise BadAnswerError("no chunk size") from None
            self._mode, self._left = (_CHUNK, size + 2) if size else (_TRAILER, 0)
        return False


def is_shared(answer: AnswerReader) -> bool:
    """Whether a cache's headers say that the answer came without an upstream call of its own (RFC 9211)."""
    status = answer.header(b"cache-status") or answer.header(b"x-cache")
    return b"collapsed" in status or b"hit" in status
