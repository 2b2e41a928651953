"""The receiver of one attempt: it judges what an upstream begins to answer, and only then lets the flight have it.

A refusal is held back until it is complete, a translated answer goes through its decoder, and a stream is held until
it has content (while another attempt could still be made), because some vendors answer 200 and fail inside. What was
once let go is the flight's answer: from there on nothing can be tried elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from proxy.accounting.report import Try
from proxy.clock import Clock
from proxy.config.models import ModelTarget
from proxy.errors import ProxyError
from proxy.intake import Intake
from proxy.protocol.events import Declined, Delta, End, Fault, Finish, Thought, ToolDelta
from proxy.protocol.headers import without_framing
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.providers.base import Reader
from proxy.providers.faults import cut_off
from proxy.providers.passage import GENERATIONS, Passage
from proxy.providers.translation import Decoder
from proxy.upstream.base import Control
from proxy.upstream.health import Place

MAX_REFUSAL_BYTES: Final = 256 * 1024
MAX_HELD_BYTES: Final = 64 * 1024
"""Of a stream without content yet; beyond it is let go."""
MAX_WHOLE_BYTES: Final = 32 << 20
"""Of an answer that is to be translated."""

_EVENTS: Final = b"text/event-stream; charset=utf-8"
_LEFT_OUT: Final = b"x-sameflight-left-out"
_CONTENT: Final = (Delta, Thought, ToolDelta, Declined, Finish, End)


class Refusal(NamedTuple):
    """An answer that is none, as the upstream sent it."""

    head: ResponseHead
    body: bytes


class Race:
    """The attempts of one flight that are under way at once. One of them wins: the first that has an answer."""

    # Mutable: winner is set once, by the attempt itself.
    __slots__ = ("on_won", "winner")

    def __init__(self) -> None:
        self.winner: Attempt | None = None
        self.on_won: Callable[[], None] | None = None
        """Told when there is a winner, where several run."""


class Attempt:
    """One call to one target. Implements ``upstream.base.Receiver``."""

    # Mutable state, written by the calls of the transport: how far the answer has come. `error` and `place` are the
    # loop's, which reads everything once the call is over.
    __slots__ = (
        "_body",
        "_clock",
        "_control",
        "_decoder",
        "_head",
        "_held_bytes",
        "_holds",
        "_intake",
        "_race",
        "_reader",
        "_take",
        "bug",
        "error",
        "fault",
        "key_name",
        "ordinal",
        "passage",
        "place",
        "refusal",
        "runner",
        "sent_at",
        "stop",
        "stopped",
        "target",
        "truncated",
        "won",
    )

    def __init__(  # noqa: PLR0917 - what it is made of
        self,
        intake: Intake,
        target: ModelTarget,
        passage: Passage,
        race: Race,
        place: Place,
        clock: Clock,
        key_name: str = "",
        ordinal: int = 1,
        *,
        holds: bool,
    ) -> None:
        """``holds``: another attempt could be made, so a stream that begins is worth a second look. ``ordinal``:
        which of the flight's attempts it is, from 1."""
        self._intake = intake
        self.target = target
        self.passage = passage
        self._race = race
        self.place = place
        self._clock = clock
        self._holds = holds
        self._take: Callable[[bytes, bool], None] = _drop
        self.won = False
        """Its answer is the flight's."""
        self.stop: Callable[[], object] | None = None
        """Ends the call, of which all is known that matters; set by whoever makes it."""
        self.stopped = False
        self.truncated = False
        """The refusal is longer than what is kept of one."""
        self._head: ResponseHead | None = None
        self._body: list[bytes] = []
        self._held_bytes = 0
        self._reader: Reader | None = None
        self._decoder: Decoder | None = None
        self._control: Control | None = None
        self.sent_at = 0.0
        """0.0 until the request was put on a connection."""
        self.fault: Fault | None = None
        """Why this is no answer."""
        self.refusal: Refusal | None = None
        """The same as it came, where it was an answer of its own."""
        self.key_name = key_name
        """Of the operator's key that it carries; empty for the caller's own."""
        self.ordinal = ordinal
        self.runner = asyncio.current_task()
        """Who makes the call."""
        self.error: ProxyError | None = None
        self.bug: Exception | None = None

    @property
    def lost(self) -> bool:
        """Another one's answer is the flight's."""
        return self._race.winner is not None and not self.won

    def let_go(self) -> None:
        """The call is over, and nobody asks who won: break the circles, so that no prompt waits for the collector."""
        self._take = _drop
        self._control = self.stop = None
        self._race = _NO_RACE

    # -- calls of the transport ------------------------------------------------------------------------------

    def on_start(self, control: Control) -> None:
        self._control = control
        self.sent_at = self._clock.now()
        if self._race.winner is None:
            self._intake.on_start(control)

    def on_read(self, head: ResponseHead | None, data: bytes, ended: bool) -> None:
        if self.bug is not None:
            return
        try:
            if head is not None:
                self._open(head)
            self._take(data, ended)
        except Exception as bug:  # noqa: BLE001 - a receiver may not raise; the loop does it for us
            self.bug = bug
        if not ended and (self.bug is not None or self.fault is not None or self.truncated):
            self._end_call()

    def _end_call(self) -> None:
        """All is known, and the upstream may stay on the line for as long as it likes: nobody waits for it."""
        self.conclude_refusal()
        self._take = _drop
        stop, self.stop = self.stop, None
        if stop is not None:
            self.stopped = True
            stop()

    # -- the head --------------------------------------------------------------------------------------------

    def _open(self, head: ResponseHead) -> None:
        self._head = head
        if head.status >= 300:
            self._take = self._refuse
            return
        translation = self.passage.translation
        streams = head.get(b"content-type").lower().startswith(b"text/event-stream")
        if translation is None:
            if streams and self._holds and self._intake.flight.work.plan.route.name in GENERATIONS:
                self._reader = self.passage.target.reader(self.passage.encoding)
                self._take = self._look
            else:
                self._take = self._pass
        elif streams and self._intake.flight.work.plan.streams:
            self._decoder = translation.decoder(int(self._clock.wall()))
            self._head = _translated_head(head, _EVENTS, None)
            self._take = self._decode
        else:
            self._take = self._gather

    def _win(self) -> bool:
        """Whether this attempt's answer is the flight's, from here on."""
        race = self._race
        if race.winner is None:
            race.winner = self
            self.name_answerer()
            self._intake.report.tries.append(Try(self.target.id, "", True))
            self.won = True
            self.place.answered(self._clock.now() - self.sent_at)
            if self.passage.reported:
                left_out = ", ".join(self.passage.reported)
                self._intake.report.left_out = left_out
                self._intake.of_our_own = [(_LEFT_OUT, left_out.encode())]
            if self._control is not None:
                self._intake.flight.producer = self._control
            on_won, race.on_won = race.on_won, None
            if on_won is not None:
                on_won()
        return self.won

    def name_answerer(self) -> None:
        """Put down whose answer it is, and at what price: before anybody is told of it, because who has read it to
        the end is billed at once."""
        report, routed = self._intake.report, self._intake.flight.work.plan.routed
        report.answered_by = self.target
        report.price = routed.prices[self.target.id]

    # -- what is done with the bytes; `_take` is one of these --------------------------------------------------

    def _pass(self, data: bytes, ended: bool) -> None:
        """As they came."""
        if self._win():
            head, self._head = self._head, None
            self._intake.on_read(head, data, ended)

    def _refuse(self, data: bytes, ended: bool) -> None:
        """Keep a refusal until it is known what it means."""
        self._hold(data)
        if self._held_bytes > MAX_REFUSAL_BYTES:
            self._body = [b"".join(self._body)[:MAX_REFUSAL_BYTES]]
            self._held_bytes = MAX_REFUSAL_BYTES
            self.truncated = True
        if ended:
            self.conclude_refusal()

    def conclude_refusal(self) -> None:
        """What came of a refusal is all there is."""
        if self._head is None or self._head.status < 300 or self.refusal is not None:
            return
        self.refusal = Refusal(self._head, b"".join(self._body))
        self.fault = self.passage.target.classify(*self.refusal)

    def _look(self, data: bytes, ended: bool) -> None:
        """Keep the beginning of a stream until it has content; an error before that is a failure like any other."""
        assert self._reader is not None
        self._hold(data)
        events = self._reader.feed(data)
        if ended:
            events += self._reader.close()
        for event in events:
            if isinstance(event, Fault):
                self.fault = event
                self._take = _drop
                return
            if isinstance(event, _CONTENT):
                break
        else:
            if not ended and self._held_bytes <= MAX_HELD_BYTES:
                return
        self._reader = None
        self._take = self._pass
        held, self._body = b"".join(self._body), []
        self._pass(held, ended)

    def _decode(self, data: bytes, ended: bool) -> None:
        """A stream of another dialect."""
        decoder = self._decoder
        assert decoder is not None
        out = decoder.feed(data) if data and not decoder.ended else b""
        if ended:
            out += decoder.close()
        if self._head is not None:  # nothing was let go yet
            self._hold(out)
            if decoder.fault is not None and not decoder.has_content:
                self.fault = decoder.fault
                self._take = _drop
                return
            if not (decoder.has_content or decoder.ended or ended or self._held_bytes > MAX_HELD_BYTES):
                return
            out, self._body = b"".join(self._body), []
        if (out or ended) and self._win():
            if decoder.usage is not None:
                self._intake.tell_usage(decoder.usage)
            self.fault = decoder.fault
            head, self._head = self._head, None
            self._intake.on_read(head, out, ended or decoder.fault is not None)

    def _gather(self, data: bytes, ended: bool) -> None:
        """A whole answer of another dialect, or an answer in another shape than was asked for."""
        self._hold(data)
        if self._held_bytes > MAX_WHOLE_BYTES:
            self.fault = cut_off("The upstream's answer is too long to be translated.")
            self._take = _drop
        elif ended:
            translation, head = self.passage.translation, self._head
            assert translation is not None
            assert head is not None
            plan, body, now_s = self._intake.flight.work.plan, b"".join(self._body), int(self._clock.wall())
            came_streamed = head.get(b"content-type").lower().startswith(b"text/event-stream")
            whole = translation.decode_whole(body, now_s, from_stream=came_streamed, to_stream=plan.streams)
            self._body = []
            self.fault = whole.fault
            if whole.fault is None and self._win():
                if whole.usage is not None:
                    self._intake.tell_usage(whole.usage)
                kind = _EVENTS if plan.streams else b"application/json"
                head = _translated_head(head, kind, None if plan.streams else len(whole.body))
                self._intake.on_read(head, whole.body, True)

    def _hold(self, data: bytes) -> None:
        if data:
            self._body.append(data)
            self._held_bytes += len(data)


_NO_RACE: Final = Race()


def _drop(data: bytes, ended: bool) -> None:
    """Nobody wants them."""


def _translated_head(head: ResponseHead, content_type: bytes, length: int | None) -> ResponseHead:
    """The head of an answer whose bytes are ours: what the upstream says of its own framing and coding is no more
    true."""
    framing: HeaderList = (
        [(b"transfer-encoding", b"chunked")] if length is None else [(b"content-length", b"%d" % length)]
    )
    return ResponseHead(head.status, [(b"content-type", content_type), *framing, *without_framing(head.headers)])
