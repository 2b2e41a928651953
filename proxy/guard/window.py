"""Guards over an answer that is streamed: bytes go in as they come, and come out as soon as what they say is decided.

An event is held while one of its texts might still be part of a match with what follows, and everything behind it is
held as well, so that the order stays. What has nothing in it that is to be redacted comes out byte for byte as it
came; where something is redacted, the deltas that say it are written anew, and the first of them says what was there.
The texts that come out are those of redacting the whole answer at once, however the stream was cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

from proxy.guard.base import Check, Finding
from proxy.guard.deltas import EVERYTHING, Key, Piece, Reading, read_event
from proxy.guard.parts import Looker, Part, scrub
from proxy.guard.tally import Tally
from proxy.guard.walk import forget_logprobs, put
from proxy.protocol.routes import Grammar, grammar_of
from proxy.protocol.sse import BOUNDARY

MOST_HELD_BYTES: Final = 1 << 20
MAX_PARTS: Final = 1_024
"""Texts that go on at one time."""

_BOM: Final = b"\xef\xbb\xbf"


class Released(NamedTuple):
    data: bytes = b""
    """What may go to callers now."""
    findings: tuple[Finding, ...] = ()
    """What was found by these bytes, whatever is done about it. Places are those within a text."""
    blocked: Finding | None = None
    """The answer must not go on: ``data`` is the last of it, and nothing more will be released."""
    failed: bool = False
    """More would have to be held than is allowed (`MOST_HELD_BYTES`, `MAX_PARTS`): the stream cannot be checked any
    further. `Window.end` gives what is held."""


class _Held:
    """One event that waits."""

    # Mutable: `raw` where something in it is redacted, `says_it` once.
    __slots__ = ("fields", "pieces", "raw", "says_it")

    def __init__(self, raw: bytes, fields: dict[str, Any] | None) -> None:
        self.raw = raw
        self.fields = fields
        self.pieces: list[tuple[Piece, Part, int, int]] = []
        """Each with its part, and where in that it starts and stops."""
        self.says_it = False
        """What blocks the answer was found when this was read."""


class Window:
    """One stream under its checks. Pure: nothing waits here."""

    # Mutable, all written by `feed` and `end`:
    #   _block    bytes of an event that is not whole yet; _searched of them hold no boundary
    #   _queue    events that wait, in order, of _held bytes together
    #   _parts    texts that go on, by key
    #   _tally    what was found and weighed so far
    #   _over     blocked or failed: nothing is looked at any more
    __slots__ = (
        "_block",
        "_grammar",
        "_held",
        "_looker",
        "_most_held_bytes",
        "_over",
        "_parts",
        "_queue",
        "_searched",
        "_tally",
        "_wants_whole",
        "_whole",
        "_whole_bytes",
    )

    def __init__(self, route_name: str, checks: Sequence[Check], most_held_bytes: int = MOST_HELD_BYTES) -> None:
        self._grammar: Grammar = grammar_of(route_name)
        self._looker = Looker(checks)
        self._most_held_bytes = most_held_bytes
        self._block = bytearray()
        self._searched = 0
        self._queue: deque[_Held] = deque()
        self._held = 0
        self._parts: dict[Key, Part] = {}
        self._tally = Tally(checks)
        self._over: Released | None = None
        self._wants_whole = any(check.whole for check in checks)
        # What the model says, for checks that judge it whole: by key, and the bytes of all of it.
        self._whole: dict[Key, bytearray] = {}
        self._whole_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._held + len(self._block)

    def feed(self, data: bytes) -> Released:
        """Take the next bytes of the stream."""
        if self._over is not None:
            return Released(blocked=self._over.blocked, failed=self._over.failed)
        self._block += data
        touched: dict[int, Part] = {}
        closed: list[Key] = []
        for raw in self._take_events():
            self._read(raw, touched, closed)
        return self._decide(touched, closed)

    def end(self) -> Released:
        """The stream is over: everything that is held is decided and released. After a failure, what is held comes as
        it is."""
        if self._over is not None:
            if self._over.blocked is not None:
                return Released(blocked=self._over.blocked)
            rest = b"".join(held.raw for held in self._queue) + bytes(self._block)
            self._queue.clear()
            self._block.clear()
            self._held = 0
            return Released(rest)
        touched: dict[int, Part] = {}
        closed: list[Key] = [EVERYTHING]
        if self._block:
            self._read(bytes(self._block), touched, closed)
            self._block.clear()
        return self._decide(touched, closed)

    # -- in ---------------------------------------------------------------------------------------------------------

    def _take_events(self) -> list[bytes]:
        """Whole events, with the blank lines that end them."""
        block = self._block
        events: list[bytes] = []
        done = 0
        for match in BOUNDARY.finditer(block, max(0, self._searched - 3)):
            events.append(bytes(block[done : match.end()]))
            done = match.end()
        del block[:done]
        self._searched = len(block)
        return events

    def _read(self, raw: bytes, touched: dict[int, Part], closed: list[Key]) -> None:
        data = _data_of(raw)
        fields = _object_in(data) if data else None
        held = _Held(raw, fields)
        self._queue.append(held)
        self._held += len(raw)
        if fields is not None:
            reading = read_event(self._grammar, fields)
            self._take(held, reading, touched)
            closed += reading.closes
        elif data.startswith(b"[DONE]"):
            closed.append(EVERYTHING)
        elif data or raw.strip():
            # Nobody can tell what this says (it may be no event at all): it is looked at as it is.
            held.raw, found = scrub(self._looker, raw, "other")
            self._tally.note_whole(found, [raw])
        held.says_it = self._tally.is_blocked

    def _take(self, held: _Held, reading: Reading, touched: dict[int, Part]) -> None:
        whole: list[bytes] = []
        findings = []
        for piece in reading.pieces:
            text = piece.text.encode()
            if piece.key is None:
                scrubbed, found = scrub(self._looker, text, piece.kind)
                whole.append(text)
                findings += found
                if scrubbed != text:
                    assert held.fields is not None
                    _say(held, piece, scrubbed)
                continue
            part = self._parts.get(piece.key)
            if part is None:
                part = self._parts[piece.key] = Part(self._looker, piece.kind)
            start = part.size
            part.append(text)
            held.pieces.append((piece, part, start, start + len(text)))
            touched[id(part)] = part
            self._tally.weigh(text)
            if self._wants_whole and piece.kind == "text":
                self._whole.setdefault(piece.key, bytearray()).extend(text)
                self._whole_bytes += len(text)
        if whole:
            self._tally.note_whole(findings, whole)

    # -- out --------------------------------------------------------------------------------------------------------

    def _decide(self, touched: dict[int, Part], closed: list[Key]) -> Released:
        ending: dict[int, Part] = {}
        if closed:
            ending = {id(part): part for key, part in self._parts.items() if any(key[: len(c)] == c for c in closed)}
        for part in (touched | ending).values():
            self._tally.note(part.advance(ends=id(part) in ending))
        everything = EVERYTHING in closed
        if everything:
            self._judge_whole()
        findings, blocked = self._tally.take()
        if blocked is not None:
            # What stands before may go, and not the event that says it.
            released = Released(b"" if self._holds_all else self._release(before=blocked), findings, blocked)
            self._over = released
            self._queue.clear()
            self._block.clear()
            self._held = 0
            return released
        data = b"" if self._holds_all and not everything else self._release()
        if self._held + len(self._block) + self._whole_bytes > self._most_held_bytes or len(self._parts) > MAX_PARTS:
            self._over = Released(failed=True)
            return Released(data, findings, failed=True)
        if everything and not self._queue:
            self._parts.clear()
        return Released(data, findings)

    @property
    def _holds_all(self) -> bool:
        return self._wants_whole and any(check.whole and check.action != "flag" for check in self._looker.checks)

    def _judge_whole(self) -> None:
        for text in self._whole.values():
            self._tally.note([
                (index, finding)
                for index, check in enumerate(self._looker.checks)
                if check.whole
                for finding in check.look(bytes(text))
            ])
        self._whole.clear()
        self._whole_bytes = 0

    def _release(self, before: Finding | None = None) -> bytes:
        """Events of which all is decided, in order; with ``before``, none that may say what was found."""
        queue = self._queue
        released: list[bytes] = []
        while queue:
            held = queue[0]
            if before is not None and (held.says_it or any(stop > before.start for *_, stop in held.pieces)):
                break
            if any(part.settled < stop for _, part, _, stop in held.pieces):
                break
            queue.popleft()
            self._held -= len(held.raw)
            released.append(self._write(held))
        return b"".join(released)

    @staticmethod
    def _write(held: _Held) -> bytes:
        for piece, part, start, _ in held.pieces:
            if part.cuts:
                text = piece.text.encode()
                said = part.rewrite(text, start)
                if said != text:
                    _say(held, piece, said)
        return held.raw


def _say(held: _Held, piece: Piece, text: bytes) -> None:
    """Put other text into an event."""
    assert held.fields is not None
    put(held.fields, piece.path, text.decode("utf-8", "replace"))
    forget_logprobs(held.fields, piece.path)
    held.raw = _with_data(held.raw, orjson.dumps(held.fields))


def _data_of(raw: bytes) -> bytes:
    """The ``data`` lines of an event, joined by line ends."""
    lines = raw.removeprefix(_BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    said = [line[5:] for line in lines if line.startswith(b"data:")]
    return b"\n".join(line[1:] if line.startswith(b" ") else line for line in said)


def _with_data(raw: bytes, data: bytes) -> bytes:
    """The event with other data; its other lines and its line ends stay."""
    lines = []
    said = False
    for line in raw.splitlines(keepends=True):
        if not line.removeprefix(_BOM).startswith(b"data:"):
            lines.append(line)
        elif not said:
            said = True
            end = line[len(line.rstrip(b"\r\n")) :]
            lines.append(b"data: " + data + end)
    return b"".join(lines)


def _object_in(data: bytes) -> dict[str, Any] | None:
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return fields if type(fields) is dict else None
