"""The seam to an upstream: one request out, one response in, pushed as it arrives.

A ``Transport`` owns connections; a ``Receiver`` is whoever wants the answer. The transport calls the receiver from
the event loop, in the very tick in which bytes arrived, and never awaits it; a receiver that has too much holds the
transport by ``Control.pause``. Implementations are ``wire`` (our HTTP/1.1) and ``session`` (aiohttp's client); both
pass ``tests/seams/test_transport.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from proxy.protocol.message import HeaderList, ResponseHead


class Origin(NamedTuple):
    """Where an upstream lives: the unit of pooling, DNS and TLS."""

    scheme: str
    """``http`` or ``https``."""
    host: str
    """Name or address literal, IPv6 without brackets."""
    port: int

    @property
    def authority(self) -> str:
        """The ``Host`` header's value: default ports left out, IPv6 in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


class Patience(NamedTuple):
    """How long one attempt may take, in seconds; ``total_s`` counts from the call, the others from their phase."""

    connect_s: float = 5.0
    """DNS, TCP and TLS together."""
    first_byte_s: float = 600.0
    """From the request's last byte to the response's head."""
    idle_s: float = 120.0
    """Between two reads of the response, and between two accepted writes of a streamed request body."""
    total_s: float = 3600.0


class BodySource(Protocol):
    """A request body that is read while it is sent; for uploads that must not be held in memory."""

    length: int | None
    """Bytes to come, or ``None`` for a chunked body."""

    def read(self) -> Awaitable[bytes]:
        """The next piece, ``b""`` at the end. Raises ``ProxyError`` when the client breaks off."""


class UpstreamRequest(NamedTuple):
    """One request, ready to send. ``headers`` has neither Host, nor framing, nor hop-by-hop fields: the transport
    adds ``host``, ``content-length`` or ``transfer-encoding``, and nothing else."""

    origin: Origin
    method: str
    target: str
    """Origin-form target with query, already prefixed by the base path."""
    headers: HeaderList
    body: bytes | BodySource
    """``b""`` for no body; a POST, PUT or PATCH then still gets ``content-length: 0``."""


class Control(Protocol):
    """The receiver's handle on the response being read. Both calls are idempotent."""

    def pause(self) -> None:
        """Stop reading from the upstream; at most one more ``on_read`` may follow for bytes already read."""

    def resume(self) -> None: ...


class Receiver(Protocol):
    """Takes one response. All calls come from the loop thread; none may raise or block."""

    def on_start(self, control: Control) -> None:
        """The request was put on a connection (again, after a transparent retry)."""

    def on_read(self, head: ResponseHead | None, data: bytes, ended: bool) -> None:
        """What one read from the upstream brought: the head if this read completed it, body bytes (decoded from
        chunks, otherwise as sent), and whether the message ended cleanly. Called at most once for each read, so
        that a whole small answer is one call."""


Over = Callable[[BaseException | None], None]


class Call(Protocol):
    """An exchange that was begun by `Transport.start`."""

    def cancel(self) -> None:
        """Close the connection at once; ``over`` is not called any more."""


class Transport(Protocol):
    """Carries requests to upstreams."""

    async def exchange(self, request: UpstreamRequest, receiver: Receiver, patience: Patience) -> None:
        """Send, deliver to ``receiver``, return when the message has ended cleanly.

        Raises ``ProxyError`` of side ``UPSTREAM`` (or what a ``BodySource`` raised). ``ProxyError.retry`` is
        ``SAME`` only if nothing was delivered and the request may be sent again without paying twice.
        Cancelling the call closes the connection at once; it never goes back to a pool.
        """

    def start(self, request: UpstreamRequest, receiver: Receiver, patience: Patience, over: Over) -> Call | None:
        """The same without waiting for anything: if a connection is idle the request leaves in this tick, and
        ``over`` is called once at the end, with ``None`` or the error. ``None`` if that is not possible; nothing has
        happened then."""

    async def close(self) -> None:
        """Close idle connections and refuse new exchanges; running ones go on."""
