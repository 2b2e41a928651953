"""Endings that a well-behaved library does not offer."""

from __future__ import annotations

import asyncio
import socket
import struct

_LINGER_NONE = struct.pack("ii", 1, 0)


def reset(transport: asyncio.WriteTransport) -> None:
    """Close with RST instead of FIN; what was not sent is lost."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    transport.abort()
