"""Cuts a stream of server-sent events into events: every one of them, whatever the portions and line ends are."""

from __future__ import annotations

from typing import Final

MAX_EVENT_BYTES: Final = 16 << 20
"""A single event may hold a picture."""
_BOM: Final = b"\xef\xbb\xbf"


class TooLargeError(Exception):
    """An event beyond ``MAX_EVENT_BYTES``; the splitter is of no use any more."""


class Splitter:
    """Feed it all bytes of a stream in order; comments and events without data are skipped."""

    # Mutable, written by `feed`: _block holds what follows the last blank line, with LF line ends; _cr is a CR at the
    # end of the last portion, whose LF may follow; _start is True until a first byte came.
    __slots__ = ("_block", "_cr", "_start")

    def __init__(self) -> None:
        self._block = bytearray()
        self._cr = b""
        self._start = True

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """Name (may be empty) and data of each event that ``data`` completes. Raises ``TooLargeError``."""
        if self._cr or b"\r" in data:
            data = self._with_lf(data)
        block = self._block
        searched = max(0, len(block) - 1)
        block += data
        if self._start and len(block) >= 3:
            self._start = False
            if block.startswith(_BOM):
                del block[:3]
        stop = block.rfind(b"\n\n", searched)
        if stop < 0:
            if len(block) > MAX_EVENT_BYTES:
                raise TooLargeError
            return []
        texts = bytes(block[:stop]).split(b"\n\n")
        del block[: stop + 2]
        return [event for text in texts if (event := _parse(text)) is not None]

    def close(self) -> list[tuple[str, bytes]]:
        """The last event, should the upstream have forgotten its blank line: a terminal event that lacks one byte is
        still what it meant."""
        event = _parse(bytes(self._block).strip(b"\n"))
        self._block.clear()
        return [] if event is None else [event]

    def _with_lf(self, data: bytes) -> bytes:
        data = self._cr + data
        self._cr = b""
        if data.endswith(b"\r"):
            self._cr = b"\r"
            data = data[:-1]
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _parse(text: bytes) -> tuple[str, bytes] | None:
    if text.startswith(b"data: ") and b"\n" not in text:  # nearly every event of most dialects
        return "", text[6:]
    name = b""
    lines = []
    for line in text.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if field == b"data":
            lines.append(value)
        elif field == b"event":
            name = value
    return (name.decode("utf-8", "replace"), b"\n".join(lines)) if lines else None
