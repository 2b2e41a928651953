"""What the edge asks of a client's socket beyond its transport."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from asyncio import Transport
from typing import Final

_NO_LINGER: Final = struct.pack("ii", 1, 0)
# FIN where the system can tell it apart (Linux); errors and a full hang-up are told in any case.
_HANGUP: Final = getattr(select, "POLLRDHUP", 0)

PARTING_S: Final = 5.0
"""How long what a client still sends is thrown away behind its last answer: a close upon unread bytes is a reset, and
a reset takes the answer with it."""


def tune(transport: Transport) -> None:
    """Small writes leave at once, and a peer that vanished without a word is noticed."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # it may be gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def reset(transport: Transport) -> None:
    """Close with a reset, where a FIN would pass for the end of the answer."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def has_hung_up(transport: Transport | None) -> bool:
    """Whether the client's FIN or RST has come; a transport that is not read does not tell, the kernel does."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None:
        return False
    poller = select.poll()
    poller.register(sock.fileno(), _HANGUP)
    return bool(poller.poll(0))


def has_sent(transport: Transport | None) -> bool:
    """Whether bytes of the client have come that nobody has read yet, or its FIN."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None:
        return False
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    return bool(poller.poll(0))


def say_goodbye(transport: Transport | None) -> None:
    """Send FIN now. A close alone waits for the loop's next turn, and a request that comes until then is lost."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is not None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as again:
            again.shutdown(socket.SHUT_WR)
