"""The listening socket, and when it takes nobody in.

Connections are bounded below half of the file descriptors, because each may need another one to its upstream. At
the bound nothing is accepted: whoever comes waits in the kernel's queue, which costs nothing and wakes nobody, and
comes in when somebody has left. The socket stays bound and listening meanwhile, so that nobody is turned away.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

BACKLOG: Final = 1024
_SHARE: Final = 0.45
_REOPEN: Final = 0.98
"""The doors open again below this share of the bound, so that they do not flap with each one who leaves."""


class Doors:
    """One listening socket and its server."""

    # Mutable state: _server is there while the doors are open; _fresh counts the connections that were made in this
    # turn and are not among ``occupied`` yet; written by the methods here.
    def __init__(
        self,
        listening: socket.socket,
        make_protocol: Callable[[], asyncio.BaseProtocol],
        occupied: Callable[[], int],
        most: int,
    ) -> None:
        """``listening`` is bound; it is closed with the doors. ``make_protocol`` makes a connection, ``occupied``
        counts the open ones, ``most`` is their bound."""
        self._socket = listening
        self._make_protocol = make_protocol
        self._occupied = occupied
        self.most = most
        self._server: asyncio.Server | None = None
        self._opening: asyncio.Task[None] | None = None
        self._fresh = 0
        self._closed = False
        self.pauses = 0

    async def open(self) -> None:
        """Take callers in. Raises ``OSError``."""
        loop = asyncio.get_running_loop()
        # A copy, because a server closes its socket and the queue of callers would go with the last one.
        again = self._socket.dup()
        try:
            server = await _serve(loop, self._enter, again)
        except BaseException:
            again.close()
            raise
        if self._closed or self._server is not None:
            server.close()
        else:
            self._server = server

    def _enter(self) -> asyncio.BaseProtocol:
        loop = asyncio.get_running_loop()
        if not self._fresh:
            loop.call_soon(self._count_anew, 1)
        self._fresh += 1
        server = self._server
        if server is not None and self._occupied() + self._fresh >= self.most:
            self._server = None
            self.pauses += 1
            loop.call_soon(server.close)  # not now: this very connection is still to be attached to it
        return self._make_protocol()

    def _count_anew(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._count_anew, turns - 1)
        else:
            self._fresh = 0

    def _shut(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def sweep(self) -> None:
        """Open again if there is room; a duty of the janitor."""
        if self._closed or self._server is not None or (self._opening is not None and not self._opening.done()):
            return
        if self._occupied() + self._fresh < _REOPEN * self.most:
            self._opening = asyncio.get_running_loop().create_task(self.open())

    @property
    def is_open(self) -> bool:
        return self._server is not None

    async def take_in(self) -> None:
        """Shut, and take in whoever has waited until now, as far as there is room: they were not refused, so nobody
        may drop them."""
        self._closed = True
        self._shut()
        loop = asyncio.get_running_loop()
        room = max(0, self.most - self._occupied())
        for _ in range(min(BACKLOG, room)):
            try:
                caller, _ = self._socket.accept()
            except OSError:  # nobody waits any more
                return
            caller.setblocking(False)
            try:
                await loop.connect_accepted_socket(self._make_protocol, caller)
            except OSError:  # it has left
                caller.close()

    def close(self) -> None:
        """Nobody comes in any more, and nobody waits, unless a copy of the socket is kept elsewhere."""
        self._closed = True
        self._shut()
        if self._opening is not None:
            self._opening.cancel()
        self._socket.close()

    @property
    def address(self) -> object:
        """As bound: host and port, or a path; ``None`` after the end."""
        return self._socket.getsockname() if self._socket.fileno() >= 0 else None


async def bind(where: str | tuple[str, int]) -> socket.socket:
    """A listening socket on a path, or on the first address of a host that can be had. Raises ``OSError``."""
    if isinstance(where, str):
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(where)
        except OSError:
            listening.close()
            raise
    else:
        found = await asyncio.get_running_loop().getaddrinfo(
            *where, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listening = socket.create_server(found[0][4][:2], family=found[0][0], backlog=BACKLOG)
    listening.listen(BACKLOG)
    listening.setblocking(False)
    return listening


async def _serve(
    loop: asyncio.AbstractEventLoop, make_protocol: Callable[[], asyncio.BaseProtocol], sock: socket.socket
) -> asyncio.Server:
    if sock.family != socket.AF_UNIX:
        return await loop.create_server(make_protocol, sock=sock, backlog=BACKLOG)
    options: dict[str, Any] = {}
    if sys.version_info >= (3, 13) and isinstance(loop, asyncio.BaseEventLoop):
        options["cleanup_socket"] = False  # the path outlives each server on it
    return await loop.create_unix_server(make_protocol, sock=sock, backlog=BACKLOG, **options)


def choose_bound(wanted: int) -> int:
    """Most connections of clients: as wanted, or just below half of the file descriptors of the process."""
    return wanted or max(16, int(_SHARE * resource.getrlimit(resource.RLIMIT_NOFILE)[0]))


def raise_file_limit() -> int:
    """Raise the soft limit of file descriptors to the hard one, as far as the system lets us; returns what it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
