"""Puts one composed answer on its transport: at its pace, within the transport's limits, up to its ending."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator

from proxy.clock import Deadline
from proxy.mock.composition import Composition, Ending
from proxy.mock.pulse import Pulse

_WRITE_BYTES = 64 * 1024
_TICK_BYTES = 1 << 20
"""Unpaced bytes in one loop tick; a fast reader of a huge file must not keep the others waiting."""
_LINGER_NONE = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Close with RST; what was not sent is lost."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    transport.abort()


def frame(piece: bytes) -> bytes:
    """One chunk of the chunked transfer coding (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


class Emission:
    """The sending of one answer's body. ``finish`` is called once, when all was handed to the transport."""

    # The mutable state: _following is the next piece, None at the end; _due is when it may go; _paused mirrors the
    # transport; _timer or _soon is pending while this waits for itself. Only this class writes it; the connection
    # calls pause, resume and cancel.
    __slots__ = (
        "_chunked",
        "_composition",
        "_due",
        "_finish",
        "_following",
        "_pace_s",
        "_paused",
        "_pieces",
        "_pulse",
        "_soon",
        "_timer",
        "_transport",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        pulse: Pulse,
        composition: Composition,
        *,
        chunked: bool,
        pace_s: float,
        finish: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._pulse = pulse
        self._composition = composition
        self._chunked = chunked
        self._pace_s = pace_s
        self._finish = finish
        self._pieces: Iterator[bytes] = iter(composition.pieces)
        self._following = next(self._pieces, None)
        self._due = 0.0
        self._paused = False
        self._timer: Deadline | None = None
        self._soon: asyncio.Handle | None = None

    def start(self, head: bytes, paused: bool = False) -> None:
        """Send the head with as much of the body as may go at once; ``paused`` if the transport is full already."""
        self._paused = paused
        if not self._pace_s and not paused:
            self._send_all(head)
            return
        self._due = self._pulse.now()
        self._transport.write(head + self._take())
        self._go_on()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if not self._paused:
            return
        self._paused = False
        if self._timer is None and self._soon is None:
            self._go_on()

    def cancel(self) -> None:
        """Send no more; ``finish`` is not called."""
        self._composition = self._composition._replace(ending=Ending.STALL)
        self._following = None
        if self._timer is not None:
            self._timer.cancel()
        if self._soon is not None:
            self._soon.cancel()

    def _take(self) -> bytes:
        """The next piece as it goes on the wire, with the end of the body if it is the last one."""
        piece = self._following
        if piece is None:
            return self._last_bytes()
        self._following = next(self._pieces, None)
        if not self._chunked:
            return piece
        # An empty chunk would end the body.
        wire = frame(piece) if piece else b""
        return wire + self._last_bytes() if self._following is None else wire

    def _last_bytes(self) -> bytes:
        return b"0\r\n\r\n" if self._chunked and self._composition.ending is Ending.DONE else b""

    def _go_on(self) -> None:
        if self._following is None:
            self._end()
        elif self._paused:
            return
        elif not self._pace_s:
            self._send_all(b"")
        else:
            # From when the last piece was due, not from when it went: a late timer does not slow the stream.
            self._due = max(self._due + self._pace_s, self._pulse.now())
            self._timer = self._pulse.arm_at(self._due, self._send_one)

    def _send_one(self) -> None:
        self._timer = None
        if self._paused:
            return
        self._transport.write(self._take())
        self._go_on()

    def _send_all(self, head: bytes) -> None:
        self._soon = None
        sent = 0
        while not self._paused:
            batch = [head, self._take()]
            head = b""
            size = len(batch[1])
            while self._following is not None and size < _WRITE_BYTES:
                batch.append(self._take())
                size += len(batch[-1])
            self._transport.write(b"".join(batch))
            if self._following is None:
                self._end()
                return
            sent += size
            if sent >= _TICK_BYTES:
                self._soon = asyncio.get_running_loop().call_soon(self._send_all, b"")
                return

    def _end(self) -> None:
        ending = self._composition.ending
        if ending is Ending.STALL:
            return
        self._finish()
        if ending is Ending.RESET:
            reset(self._transport)
        elif ending is Ending.CLOSE:
            self._transport.close()
