"""One request on its way to a target of another dialect, and the answer on its way back.

    translation = translate(caller, target, fields, form, model=…, streams=…)  # raises ProxyError, nothing was sent
    send translation.encoding.path, .headers + target.credential(key), .body
    decoder = translation.decoder(created_s)
    for data in answer: out = decoder.feed(data)                              # status 200, a stream
    out = decoder.close()
    whole = translation.decode_whole(body, created_s)                         # status 200, whole
    fault = target.classify(head, body)                                       # any other status

Owns nothing; the caller's body is read once for all targets (`read`), as a flight may try several.
"""

from __future__ import annotations

from typing import NamedTuple

from proxy.protocol.conversation import Conversation
from proxy.protocol.events import Declined, Delta, End, Event, Fault, Thought, ToolDelta, UsageReport
from proxy.protocol.usage import Usage
from proxy.providers.base import Asked, Encoding, Fields, Form, Provider


class Whole(NamedTuple):
    """A whole answer in the caller's dialect."""

    body: bytes
    """Empty where there is a fault."""
    usage: Usage | None
    """``None``: the upstream reported none, or an impossible one."""
    fault: Fault | None
    """The upstream answered 200 and failed nevertheless."""


class Decoder:
    """Turns one streamed answer into the caller's dialect, in any portions.

    Nothing is to be fed after ``ended``. A fault before ``has_content`` may still be tried elsewhere: its bytes are
    the only ones that told of it, so the caller of ``feed`` looks at ``fault`` before it hands them on.
    """

    # Mutable, all written by `feed` and `close`.
    __slots__ = ("_reader", "_writer", "ended", "events", "fault", "has_content", "usage")

    def __init__(self, caller: Provider, target: Provider, encoding: Encoding, asked: Asked) -> None:
        self._reader = target.reader(encoding)
        self._writer = caller.writer(asked)
        self.usage: Usage | None = None
        """The last report; ``None`` if there was none that is possible."""
        self.fault: Fault | None = None
        """Why the answer is not complete; the caller's error event was written."""
        self.has_content = False
        """Text, a thought or a tool call was told: from here on the answer cannot be tried elsewhere."""
        self.ended = False
        """The end or the fault was written."""
        self.events = 0
        """Pieces of content, for an estimate where there is no usage."""

    def feed(self, data: bytes) -> bytes:
        """The caller's bytes for what ``data`` completes; may be empty."""
        return self._write(self._reader.feed(data))

    def close(self) -> bytes:
        """The upstream closed the body."""
        return b"" if self.ended else self._write(self._reader.close())

    def _write(self, events: list[Event]) -> bytes:
        return b"".join([self._write_one(event) for event in events])

    def _write_one(self, event: Event) -> bytes:
        if isinstance(event, (Delta, ToolDelta, Declined)):
            self.has_content = True
            self.events += 1
        elif isinstance(event, Thought):
            self.has_content = True
        elif isinstance(event, UsageReport):
            self.usage = event.usage
        elif isinstance(event, Fault):
            self.fault = event
            self.ended = True
        elif isinstance(event, End):
            self.ended = True
        return self._writer.write(event)


class Translation:
    """A request that was translated for one target. Frozen after construction."""

    __slots__ = ("_asked", "caller", "encoding", "target")

    def __init__(self, caller: Provider, target: Provider, encoding: Encoding, asked: Asked) -> None:
        self.caller = caller
        self.target = target
        self.encoding = encoding
        self._asked = asked

    def decoder(self, created_s: int = 0) -> Decoder:
        """For a streamed answer; ``created_s`` is the Unix time it bears where the upstream gives none."""
        return Decoder(self.caller, self.target, self.encoding, self._asked._replace(created_s=created_s))

    def decode_whole(
        self, body: bytes, created_s: int = 0, *, from_stream: bool = False, to_stream: bool = False
    ) -> Whole:
        """For an answer of status 200 that is there as a whole. ``from_stream``: it came as an event stream;
        ``to_stream``: the caller reads one."""
        if from_stream:
            reader = self.target.reader(self.encoding)
            events = [*reader.feed(body), *reader.close()]
        else:
            events = self.target.events_of(body, self.encoding)
        usage = next((event.usage for event in reversed(events) if isinstance(event, UsageReport)), None)
        fault = next((event for event in events if isinstance(event, Fault)), None)
        if fault is not None:
            return Whole(b"", usage, fault)
        asked = self._asked._replace(created_s=created_s)
        if to_stream:
            writer = self.caller.writer(asked)
            return Whole(b"".join([writer.write(event) for event in events]), usage, None)
        return Whole(self.caller.body_of(events, asked), usage, None)


def encode(
    caller: Provider, target: Provider, conversation: Conversation, fields: Fields, form: Form
) -> Translation:
    """Translate what ``caller.read_request`` made of ``fields``. Raises ``ProxyError`` (``BAD_REQUEST``)."""
    options = fields.get("stream_options")
    wants_usage = type(options) is dict and options.get("include_usage") is True
    asked = Asked(fields, conversation.streams, wants_usage)
    return Translation(caller, target, target.write_request(conversation, form), asked)


def translate(
    caller: Provider, target: Provider, fields: Fields, form: Form, *, model: str = "", streams: bool = False
) -> Translation:
    """Read and encode for one target."""
    return encode(caller, target, caller.read_request(fields, model, streams), fields, form)
