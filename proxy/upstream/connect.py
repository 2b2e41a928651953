"""Opening connections: addresses, happy eyeballs (RFC 8305), socket options, and TLS that resumes.

Deadlines are the caller's: everything here may be cancelled at any await and leaves no socket behind.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import aiohappyeyeballs

from proxy.errors import ProxyError
from proxy.upstream import faults
from proxy.upstream.base import Origin
from proxy.upstream.dns import Resolver
from proxy.upstream.wire import WireConnection

# RFC 8305, section 5: "Connection Attempt Delay", recommended value.
_ATTEMPT_DELAY_S = 0.25
_HOSTS_WITH_SESSIONS = 256

StartConnection = Callable[..., Awaitable[socket.socket]]


class ResumingContext(ssl.SSLContext):
    """A verifying client context that offers each host the last session it gave us.

    Both loops make their TLS objects through ``wrap_bio``, so this is the one place where a session can be put in;
    resuming saves a round trip with TLS 1.2 and the certificate's cost with both versions. Keyed by server name:
    only whoever holds that host's ticket keys can resume, and only after this context verified the name once.
    """

    # Written by `wrap_bio` (order) and `remember`; at most _HOSTS_WITH_SESSIONS entries, least recently used go.
    sessions: OrderedDict[str, ssl.SSLSession]
    trusts_system = False

    def trust_system(self) -> None:
        """Read the system's authorities (``SSL_CERT_FILE`` honoured), once. It takes 40 ms: a process that has plain
        upstreams only does without, one that has others does it at start."""
        if not self.trusts_system:
            self.trusts_system = True
            self.load_default_certs(ssl.Purpose.SERVER_AUTH)

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        self.trust_system()
        if session is None and isinstance(server_hostname, str) and server_hostname in self.sessions:
            self.sessions.move_to_end(server_hostname)
            session = self.sessions[server_hostname]
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def remember(self, server_hostname: str, tls: object) -> None:
        """Keep the session of ``tls``, the transport's TLS object, if there is one to resume.

        With TLS 1.3 call it after the first read: tickets come after the handshake.
        """
        session = getattr(tls, "session", None)  # other loops bring TLS objects that have no sessions
        if session is not None and (session.has_ticket or session.id):
            self.sessions[server_hostname] = session
            self.sessions.move_to_end(server_hostname)
            if len(self.sessions) > _HOSTS_WITH_SESSIONS:
                self.sessions.popitem(last=False)


def make_tls_context(ca_file: str | None = None) -> ResumingContext:
    """The system's trust (read when it is needed), plus ``ca_file``; TLS 1.2 or later, HTTP/1.1 by ALPN.

    Raises ``OSError`` if ``ca_file`` cannot be read or holds no certificate.
    """
    context = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sessions = OrderedDict()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


class Connector:
    """Opens connections to origins. ``start_connection`` is replaced in tests."""

    __slots__ = ("_resolver", "_start_connection", "tls")

    def __init__(
        self,
        resolver: Resolver,
        tls: ResumingContext,
        start_connection: StartConnection = aiohappyeyeballs.start_connection,
    ) -> None:
        self._resolver = resolver
        self.tls = tls
        self._start_connection = start_connection

    async def connect(self, origin: Origin, connection: WireConnection) -> None:
        """Connect ``connection`` to ``origin``.

        Raises ``ProxyError``: ``UPSTREAM_UNREACHABLE``, ``UPSTREAM_TLS``, or ``UPSTREAM_TIMEOUT`` for the kernel's
        own time-out.
        """
        addresses = await self._resolver.resolve(origin.host, origin.port)
        try:
            sock = await self._start_connection(addresses, happy_eyeballs_delay=_ATTEMPT_DELAY_S)
        except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError for some refusals
            raise _explain(origin, error) from None
        try:
            await self._run_on(sock, origin, connection)
        except (OSError, RuntimeError) as error:
            raise _explain(origin, error) from None

    async def _run_on(self, sock: socket.socket, origin: Origin, connection: WireConnection) -> None:
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {}
        if origin.scheme == "https":
            tls = {"ssl": self.tls, "server_hostname": origin.host}
        try:
            _prepare(sock)
        except OSError:
            sock.close()
            raise
        transport, _ = await loop.create_connection(lambda: connection, sock=sock, **tls)
        if tls:
            engine = transport.get_extra_info("ssl_object")
            connection.keep_session = lambda: self.tls.remember(origin.host, engine)


def _prepare(sock: socket.socket) -> None:
    """No Nagle; and probes that notice a dead path to an idle or silent peer within a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _explain(origin: Origin, error: Exception) -> ProxyError:
    detail = f"{origin}: {error!r}"
    if isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return faults.untrusted(detail)
    if isinstance(error, TimeoutError):
        return faults.timed_out("connect", detail)
    if isinstance(error, ConnectionRefusedError):
        return faults.unreachable("refused", detail)
    if isinstance(error, (ConnectionError, ssl.SSLError)):
        return faults.unreachable("reset", detail)
    return faults.unreachable("unreachable", detail)
