"""Asking for the token counts of a stream on behalf of a caller who did not, and taking them out of the answer again.

OpenAI's chat and completion streams report usage only if ``stream_options.include_usage`` is set: then each chunk
gets ``"usage":null`` and one more chunk, with no choices, brings the counts. The caller reads what it would have read
without: that chunk is dropped and the nulls are cut out; every other byte passes as it came.
"""

from __future__ import annotations

from typing import Final

import orjson

from proxy.protocol.call import Call
from proxy.protocol.sse import BOUNDARY, MAX_EVENT_BYTES

ASKABLE: Final = frozenset(("chat.completions", "completions"))
"""Routes whose streams report usage on demand."""

TRANSFORM: Final = b"ask-usage/v1"
"""Names the change of the request in its fingerprint."""

_OPTION: Final = b'"stream_options":{"include_usage":true}}'
_NULL: Final = b',"usage":null'


def is_askable(call: Call) -> bool:
    """Whether the option can be added: a stream that says nothing about its options."""
    return call.streams and "stream_options" not in call.fields and bool(call.fields)


def ask(body: bytes) -> bytes:
    """A JSON object, not empty, with the option as its last member."""
    return body.rstrip()[:-1] + b"," + _OPTION


class UsageFilter:
    """Takes the counts out of one stream. ``feed`` returns whole events only, whatever the cuts between reads."""

    # Mutable state: _held is the beginning of an event that is not there as a whole; _off once one was too large to
    # be held, after which everything passes.
    __slots__ = ("_held", "_off")

    def __init__(self) -> None:
        self._held = b""
        self._off = False

    def feed(self, data: bytes) -> bytes:
        """The next bytes of the upstream; what of them and of those before is for the caller."""
        if self._off:
            return data
        text = self._held + data if self._held else data
        stop = _end_of_events(text)
        if len(text) - stop > MAX_EVENT_BYTES:
            self._off = True
            self._held = b""
            return text
        self._held = text[stop:]
        whole = text[:stop]
        return _without_usage(whole) if b'"usage"' in whole else whole

    def rest(self) -> bytes:
        """What is left when the upstream has ended: an event without its blank line."""
        held, self._held = self._held, b""
        return held


def _end_of_events(text: bytes) -> int:
    """Offset behind the last blank line."""
    if b"\r" not in text:
        return text.rfind(b"\n\n") + 2 if b"\n\n" in text else 0
    end = 0
    for match in BOUNDARY.finditer(text):
        if match.end() < len(text) or not text.endswith(b"\r"):  # else half of the line's end may be on its way
            end = match.end()
    return end


def _without_usage(events: bytes) -> bytes:
    kept: list[bytes] = []
    start = 0
    for match in BOUNDARY.finditer(events):
        kept.append(_judge(events[start : match.end()]))
        start = match.end()
    kept.append(events[start:])
    return b"".join(kept)


def _judge(event: bytes) -> bytes:
    """One event as the caller is to read it: as it came, without its null, or not at all."""
    if b'"usage"' not in event:
        return event
    try:
        fields = orjson.loads(event.strip().removeprefix(b"data:"))
    except orjson.JSONDecodeError:
        return event
    if type(fields) is not dict or "usage" not in fields:
        return event
    if fields["usage"] is None:
        return event.replace(_NULL, b"") if event.count(_NULL) == 1 else event
    return b"" if fields.get("choices") == [] else event
