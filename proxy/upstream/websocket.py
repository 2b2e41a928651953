"""An open WebSocket to an upstream, as the relay sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import aiohttp

from proxy.errors import Kind, ProxyError
from proxy.protocol.message import ResponseHead
from proxy.upstream import faults


class HandshakeRefusedError(ProxyError):
    """The upstream answered a WebSocket handshake with something else than 101; ``head`` is that answer's."""

    __slots__ = ("head",)

    def __init__(self, head: ResponseHead) -> None:
        super().__init__(
            Kind.UPSTREAM_BAD_RESPONSE,
            "The upstream refused the WebSocket.",
            why="handshake",
            detail=f"status {head.status}",
        )
        self.head = head


class UpstreamSocket:
    """Pings are answered here; messages pass as they are. Made by ``SessionTransport.connect_websocket``."""

    # _left is written by _end, once; close_reason by receive.
    __slots__ = ("_leave", "_left", "_socket", "close_reason")

    def __init__(self, opened: aiohttp.ClientWebSocketResponse, leave: Callable[[], Awaitable[None]]) -> None:
        self._socket = opened
        self._leave = leave
        self._left = False
        self.close_reason = ""

    @property
    def protocol(self) -> str | None:
        """The subprotocol the upstream chose."""
        return self._socket.protocol

    @property
    def close_code(self) -> int | None:
        """``None`` while open; 1006 if the connection broke, 1009 if a message was too large (RFC 6455, 7.4)."""
        return self._socket.close_code

    async def receive(self) -> str | bytes | None:
        """The next message; ``None`` once closed, when ``close_code`` and ``close_reason`` say how."""
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT or message.type is aiohttp.WSMsgType.BINARY:
            data: str | bytes = message.data
            return data
        if message.type is aiohttp.WSMsgType.CLOSE:
            self.close_reason = message.extra or ""
        await self._end()
        return None

    async def send_text(self, text: str) -> None:
        """Raises ``ProxyError`` (``UPSTREAM_RESET``) if the upstream is gone."""
        try:
            await self._socket.send_str(text)
        except (aiohttp.ClientError, OSError) as error:
            raise faults.reset("reset", repr(error)) from None

    async def send_bytes(self, data: bytes) -> None:
        """As ``send_text``."""
        try:
            await self._socket.send_bytes(data)
        except (aiohttp.ClientError, OSError) as error:
            raise faults.reset("reset", repr(error)) from None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame and wait for the upstream's, two seconds at most. Idempotent."""
        try:
            await self._socket.close(code=code, message=reason.encode())
        finally:
            await self._end()

    async def _end(self) -> None:
        if not self._left:
            self._left = True
            await self._leave()
