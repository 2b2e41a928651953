"""One small answer as a whole, for the proxy's own questions to upstreams; bounded in bytes and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import NamedTuple, Protocol

from proxy.protocol.encoding import decode_body
from proxy.protocol.message import ResponseHead
from proxy.upstream import faults
from proxy.upstream.base import Control, Patience, Receiver, UpstreamRequest


class Asks(Protocol):
    """What is needed of a transport."""

    def exchange(self, request: UpstreamRequest, receiver: Receiver, patience: Patience) -> Awaitable[None]: ...


class Fetched(NamedTuple):
    """An answer, whatever its status."""

    status: int
    body: bytes
    """Decoded; empty where it was not to be kept."""


class _Small:
    """A ``Receiver`` that keeps what comes, or counts it, and ends the exchange beyond ``most_bytes``."""

    # Written by the transport's calls; a retry of its own begins before anything was delivered.
    __slots__ = ("_keep", "_left_bytes", "_scope", "body", "head", "too_large")

    def __init__(self, most_bytes: int, scope: asyncio.Timeout, *, keep: bool) -> None:
        self._left_bytes = most_bytes
        self._scope = scope
        self._keep = keep
        self.head: ResponseHead | None = None
        self.body = bytearray()
        self.too_large = False

    def on_start(self, control: Control) -> None:
        pass

    def on_read(self, head: ResponseHead | None, data: bytes, ended: bool) -> None:
        if head is not None:
            self.head = head
        self._left_bytes -= len(data)
        if self._left_bytes >= 0:
            if self._keep:
                self.body += data
        elif not self.too_large:
            self.too_large = True
            self.body.clear()
            self._scope.reschedule(0.0)  # in the past: the exchange is cancelled on the loop's next turn


async def fetch(
    transport: Asks, request: UpstreamRequest, patience: Patience, most_bytes: int, *, keep: bool = True
) -> Fetched:
    """Ask and wait for the whole answer; ``patience.total_s`` bounds the time. Raises ``ProxyError``:
    ``UPSTREAM_TOO_LARGE`` beyond ``most_bytes`` (as sent and as decoded), ``UPSTREAM_BAD_RESPONSE`` for an encoding
    that cannot be undone, and what the transport raises."""
    scope = asyncio.timeout(None)
    small = _Small(most_bytes, scope, keep=keep)
    try:
        async with scope:
            await transport.exchange(request, small, patience)
    except TimeoutError:
        if not scope.expired():
            raise
    if small.too_large:
        raise faults.too_large(most_bytes)
    assert small.head is not None
    if not keep:
        return Fetched(small.head.status, b"")
    body = decode_body(small.head.get(b"content-encoding"), bytes(small.body), most_bytes)
    if body is None:
        raise faults.bad_response("content_encoding", str(request.origin))
    return Fetched(small.head.status, body)
