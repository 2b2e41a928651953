"""Counts the parts of a multipart body as it passes, in constant memory (RFC 7578, RFC 2046 section 5.1)."""

from __future__ import annotations

import re

_MAX_HEAD_BYTES = 16 * 1024
_MAX_VALUE_BYTES = 1024
_MAX_PARTS = 100

_BOUNDARY = re.compile(rb'boundary="?([^";,\s]{1,70})"?', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name="([^"]*)"')
_FILENAME = re.compile(rb'filename="([^"]*)"')


class Part:
    """One part: its name, its file's name, how long it is, and how it begins."""

    __slots__ = ("filename", "name", "size_bytes", "value")

    def __init__(self, head: bytes) -> None:
        name, filename = _NAME.search(head), _FILENAME.search(head)
        self.name = name[1].decode("utf-8", "replace") if name else ""
        self.filename = filename[1].decode("utf-8", "replace") if filename else None
        self.size_bytes = 0
        self.value = b""
        """The first 1,024 bytes."""

    def add(self, data: bytes) -> None:
        self.size_bytes += len(data)
        if len(self.value) < _MAX_VALUE_BYTES:
            self.value += data[: _MAX_VALUE_BYTES - len(self.value)]


class MultipartCounter:
    """Feed it the body; afterwards ``parts`` says what was in it and ``ended`` whether the last boundary came.

    ``broken`` says why the body is no multipart body, "" while it is one.
    """

    # The mutable state: _rest is what was read and not yet understood, shorter than a part's head or a boundary;
    # _part is the part whose content is being read. Only `feed` and what it calls write any of it.
    __slots__ = ("_delimiter", "_part", "_rest", "broken", "ended", "parts")

    def __init__(self, content_type: bytes) -> None:
        found = _BOUNDARY.search(content_type)
        self.broken = "" if found else "the content type names no boundary"
        self._delimiter = b"\r\n--" + (found[1] if found else b"")
        # The first boundary needs no line break before it; one put there makes it look like the others.
        self._rest = b"\r\n"
        self._part: Part | None = None
        self.parts: list[Part] = []
        self.ended = False

    def feed(self, data: bytes) -> None:
        if self.broken or self.ended:
            return
        self._rest += data
        while not (self.broken or self.ended):
            if not (self._read_content() and self._read_head()):
                return

    def _read_content(self) -> bool:
        """Content up to the next boundary; the boundary itself stays. False if more bytes are needed."""
        at = self._rest.find(self._delimiter)
        if at < 0:
            # What may be the beginning of a boundary stays.
            keep = len(self._delimiter) - 1
            if len(self._rest) > keep:
                self._take(self._rest[:-keep])
                self._rest = self._rest[-keep:]
            return False
        if at:
            self._take(self._rest[:at])
            self._rest = self._rest[at:]
        return True

    def _take(self, data: bytes) -> None:
        if self._part is not None:
            self._part.add(data)

    def _read_head(self) -> bool:
        """The boundary and the head of the part after it. False if more bytes are needed."""
        start = len(self._delimiter)
        if self._rest.startswith(b"--", start):
            self.ended = True
            self._rest = b""
            return True
        end = self._rest.find(b"\r\n\r\n", start)
        if end < 0:
            if len(self._rest) > _MAX_HEAD_BYTES:
                self.broken = "a part's head is too long"
            return False
        if len(self.parts) >= _MAX_PARTS:
            self.broken = "there are too many parts"
            return False
        self._part = Part(self._rest[start:end])
        self.parts.append(self._part)
        self._rest = self._rest[end + 4 :]
        return True

    def find(self, name: str) -> Part | None:
        """The first part of that name."""
        return next((part for part in self.parts if part.name == name), None)
