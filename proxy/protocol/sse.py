"""Server-sent events (WHATWG HTML, 9.2): an observer of a stream that never touches its bytes, and our own events.

``SseScanner`` is fed what was read and relayed. It looks for the few events that decide something (the terminal one,
errors, token counts) and knows whether the bytes so far end between two events. A read of whole, dull events costs
a handful of substring searches; only what may matter is split and parsed.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import orjson

from proxy.protocol.routes import Dialect, Grammar, grammar_of

MAX_EVENT_BYTES: Final = 1 << 20
_HEAD_BYTES: Final = 256
_BOM: Final = b"\xef\xbb\xbf"

# The end of a line followed by an empty line; lines end with LF, CRLF or CR.
BOUNDARY: Final = re.compile(rb"(?:\r\n|\n)(?:\r\n?|\n)|\r\r\n?")
_BLANKS: Final = re.compile(rb"[\r\n]+")

# What an event must hold to be worth a look; the fewer the cheaper, so each stands for several. Escaped spellings of
# these words do not occur in practice.
_MARKS: Final[dict[Grammar, tuple[bytes, ...]]] = {
    Grammar.DONE: (b"DONE]", b"error"),
    Grammar.RESPONSES: (b"complete", b"response.failed", b"error"),
    Grammar.MESSAGES: (b"message_", b"error"),
    Grammar.LOOSE: (b"error",),
}
_TERMINAL_RESPONSES: Final = frozenset(("response.completed", "response.failed", "response.incomplete"))


class SseEvent(NamedTuple):
    """One event that decides something."""

    name: str
    """The ``event`` field, or the ``type`` member of the data when there is none; may be empty."""
    data: bytes
    """The ``data`` lines joined by LF; empty for an event that was too large to keep."""
    fields: dict[str, Any] | None
    """``data`` parsed, if it is a JSON object."""


class SseScanner:
    """Watches one event stream. ``feed`` takes every byte of it once, in order, in any portions.

    The result does not depend on how the stream was cut into reads.
    """

    # Mutable, all written by `feed` and what it calls:
    #   _block     bytes since the last event boundary (while skipping: only the last two of them)
    #   _end       bytes fed so far
    #   _slow      False when a read can be judged as a whole: at a boundary, past the first bytes, no CR seen
    #   _has_cr    a CR was seen; boundaries are then searched by pattern
    #   _after_cr  the last byte was a CR; a LF that follows belongs to it
    #   _skipped   the first bytes of an event that became too large, None while not inside one
    __slots__ = (
        "_after_cr",
        "_block",
        "_end",
        "_grammar",
        "_has_cr",
        "_marks",
        "_skipped",
        "_slow",
        "_watches_usage",
        "error",
        "overflows",
        "seen_events",
        "terminal",
        "terminal_at",
    )

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._marks = _MARKS[grammar]
        self._watches_usage = grammar is Grammar.DONE or grammar is Grammar.LOOSE
        self._block = bytearray()
        self._end = 0
        self._slow = True
        self._has_cr = False
        self._after_cr = False
        self._skipped: bytes | None = None
        self.terminal = False
        """The event that ends a stream of this grammar was seen whole."""
        self.terminal_at = -1
        """Offset just behind the terminal event's blank line, or -1."""
        self.error: bytes | None = None
        """Data of the first error event inside the stream."""
        self.seen_events = 0
        """Blocks that a blank line ended, comments included."""
        self.overflows = 0
        """Events beyond ``MAX_EVENT_BYTES``, whose data was not looked at."""

    @property
    def needs_terminal(self) -> bool:
        """A stream that ends without ``terminal`` was cut off."""
        return self._grammar is not Grammar.LOOSE

    @property
    def at_boundary(self) -> bool:
        """The bytes so far end between two events, so that an event of our own may follow."""
        return not self._block

    def feed(self, data: bytes) -> list[SseEvent]:
        """Take the next bytes; return the events among them that decide something."""
        if not self._slow:
            size = len(data)
            first = data.find(b"\n\n")
            if first > 0 and data.find(b"\r") < 0 and size <= MAX_EVENT_BYTES:
                single = first == size - 2
                if (single or (data.endswith(b"\n\n") and data.find(b"\n\n\n") < 0)) and self._is_dull(data):
                    self._end += size
                    self.seen_events += 1 if single else data.count(b"\n\n")
                    return []
        return self._feed_slowly(data)

    def _is_dull(self, data: bytes | bytearray) -> bool:
        # `rfind` and not `in`: for bytes, `in` first tries its argument as a number and costs twice as much.
        for mark in self._marks:
            if data.rfind(mark) >= 0:
                return False
        if self._watches_usage:
            count = data.count(b'"usage"')
            # With usage asked for, every chunk but the last says null.
            return not count or count == data.count(b'"usage":null')
        return True

    def _feed_slowly(self, data: bytes) -> list[SseEvent]:
        block = self._block
        if not self._has_cr:
            self._has_cr = data.find(b"\r") >= 0
        after_cr, self._after_cr = self._after_cr, data.endswith(b"\r")
        if not block:
            data = self._after_boundary(data, after_cr)
        start = max(0, len(block) - 2)
        block += data
        self._end += len(data)
        events: list[SseEvent] = []
        if not self._has_cr and self._drop_dull():
            start = 0
        while block:
            found = self._find_boundary(start)
            if found is None:
                break
            stop, behind = found
            event = self._take(stop, self._end - len(block) + behind)
            if event is not None:
                events.append(event)
            del block[:behind]
            blanks = _BLANKS.match(block)
            if blanks is not None and blanks.end():
                del block[: blanks.end()]
            start = 0
        if len(block) > MAX_EVENT_BYTES + 3:
            self._skip()
        self._slow = self._has_cr or bool(block) or not self._end
        return events

    def _after_boundary(self, data: bytes, after_cr: bool) -> bytes:
        """Blank lines between events, and the LF of a CRLF that was cut in two, belong to no event."""
        if data[:1] not in (b"\n", b"\r"):
            return data
        if after_cr and data[:1] == b"\n" and self.terminal_at == self._end:
            self.terminal_at += 1
        rest = data.lstrip(b"\r\n")
        self._end += len(data) - len(rest)
        return rest

    def _drop_dull(self) -> bool:
        """Forget all whole events of the block at once if none of them matters."""
        block = self._block
        size = block.rfind(b"\n\n") + 2
        if size < 2 or size > MAX_EVENT_BYTES or self._skipped is not None or self._end == len(block):
            return False
        whole = block[:size]
        if whole.find(b"\n\n\n") >= 0 or not self._is_dull(whole):
            return False
        self.seen_events += whole.count(b"\n\n")
        del block[:size]
        return True

    def _find_boundary(self, start: int) -> tuple[int, int] | None:
        """Where the first event of the block stops, and where the next begins."""
        if self._has_cr:
            match = BOUNDARY.search(self._block, start)
            return match.span() if match else None
        stop = self._block.find(b"\n\n", start)
        return None if stop < 0 else (stop, stop + 2)

    def _skip(self) -> None:
        """Give up on the data of the event that is being read; its name, at its start, is kept."""
        if self._skipped is None:
            self._skipped = self._cut_head()
        del self._block[:-2]

    def _cut_head(self) -> bytes:
        self.overflows += 1
        head = bytes(self._block[:_HEAD_BYTES])
        return head.removeprefix(_BOM) if self._end == len(self._block) else head

    def _take(self, stop: int, at: int) -> SseEvent | None:
        """Judge the block's first event, which ends before ``stop``; ``at`` is the offset behind its blank line."""
        block = self._block
        if self._skipped is None and stop <= MAX_EVENT_BYTES:
            text = bytes(block[: stop + 1])
            if self._end == len(block) and text.startswith(_BOM):
                text = text[3:]
                if len(text) == 1:
                    return None
            if self._has_cr:
                text = _with_lf(text)
            self.seen_events += 1
            if self._is_dull(text):
                return None
            name, data = _parse(text)
            return None if data is None else self._judge(name, data, at)
        head = self._cut_head() if self._skipped is None else self._skipped
        self._skipped = None
        name, _ = _parse(_with_lf(head))
        self.seen_events += 1
        return self._judge(name, b"", at) if name else None

    def _judge(self, name: str, data: bytes, at: int) -> SseEvent | None:
        grammar = self._grammar
        if grammar is Grammar.DONE and data.startswith(b"[DONE]"):
            self._seal(at)
            return SseEvent(name, data, None)
        fields = _object_in(data)
        if not name and fields is not None and type(fields.get("type")) is str:
            name = fields["type"]
        event = SseEvent(name, data, fields)
        if name == "error" or (fields is not None and (fields.get("error") or fields.get("object") == "error")):
            return self._fail(event)
        if grammar is Grammar.RESPONSES:
            if name in _TERMINAL_RESPONSES:
                self._seal(at)
                return self._fail(event) if name == "response.failed" else event
        elif grammar is Grammar.MESSAGES:
            if name == "message_stop":
                self._seal(at)
            if name in ("message_start", "message_delta", "message_stop"):
                return event
        elif fields is not None and type(fields.get("usage")) is dict:
            return event
        return None

    def _seal(self, at: int) -> None:
        if not self.terminal:
            self.terminal = True
            self.terminal_at = at

    def _fail(self, event: SseEvent) -> SseEvent:
        if self.error is None:
            self.error = event.data
        return event


def _parse(text: bytes) -> tuple[str, bytes | None]:
    """Name and data of one event whose lines end with LF; the data is ``None`` when it has no data line."""
    name = b""
    lines: list[bytes] = []
    for line in text.split(b"\n"):
        field, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if field == b"data":
            lines.append(value)
        elif field == b"event":
            name = value
    return name.decode("utf-8", "replace"), b"\n".join(lines) if lines else None


def _with_lf(text: bytes) -> bytes:
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _object_in(data: bytes) -> dict[str, Any] | None:
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return fields if type(fields) is dict else None


def make_event(data: bytes, name: str = "") -> bytes:
    """One event, ready to send; line ends inside ``data`` become several data lines."""
    lines = _with_lf(data).replace(b"\n", b"\ndata: ")
    front = b"event: " + name.encode() + b"\n" if name else b""
    return front + b"data: " + lines + b"\n\n"


def error_event(dialect: Dialect, route_name: str, error_object: bytes) -> bytes:
    """``error_object`` (the JSON that the dialect expects as data) as the last event of a broken stream.

    Anthropic's streams and Responses streams name their events; the others have data only.
    """
    named = dialect is Dialect.ANTHROPIC or grammar_of(route_name) is Grammar.RESPONSES
    return make_event(error_object, "error" if named else "")


_COMMENT: Final = b": keep-alive\n\n"
_PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'


def heartbeat(dialect: Dialect) -> bytes:
    """Something to send while a client waits, to be put between events only; every SDK ignores it."""
    return _PING if dialect is Dialect.ANTHROPIC else _COMMENT
