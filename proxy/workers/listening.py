"""The sockets that workers listen on: bound and kept by the parent, inherited by one generation after the other.

A socket is bound before its worker exists and listens from when the worker opens its doors: until then callers are
refused, and a balancer goes to the next worker. From then on the parent's copy keeps it listening, so that callers of
a worker that is being replaced, or that has just died, wait in the kernel's queue and are not refused.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from proxy.config.settings import Settings

PLACEHOLDER: Final = "{worker}"


class Place(NamedTuple):
    """What a worker gets from its parent beside its settings."""

    data: socket.socket
    """Bound; the worker listens on it and its parent keeps it."""
    admin: socket.socket | None
    """A bound Unix socket of the worker's own; ``None``: the admin listener is where the settings say."""
    parts: int
    """Workers among which the container's memory is divided."""


class Address(NamedTuple):
    """Where one worker is reached: a path, or host and port."""

    path: str
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.path or f"http://{host}:{self.port}"


def worker_path(path: str, index: int, count: int) -> str:
    """The socket of one worker: ``{worker}`` in ``path`` is its number; without it ``w.sock`` becomes ``w-0.sock``,
    unless there is only one."""
    if PLACEHOLDER in path:
        return path.replace(PLACEHOLDER, str(index))
    if count == 1:
        return path
    whole = Path(path)
    return str(whole.with_name(f"{whole.stem}-{index}{whole.suffix}"))


def addresses(settings: Settings, count: int) -> list[Address]:
    """One for each worker: sockets by `worker_path`, or ports one after the other (0 takes free ones)."""
    if settings.unix_socket:
        return [Address(worker_path(settings.unix_socket, index, count)) for index in range(count)]
    step = 1 if settings.port else 0
    return [Address("", settings.host, settings.port + step * index) for index in range(count)]


class Listening:
    """One worker's data socket."""

    # Mutable state: `socket` and `address` (whose port is known once it is bound), replaced by `refuse`.
    def __init__(self, address: Address, mode: str = "", given: socket.socket | None = None) -> None:
        """Bind, or take a socket that ``given`` by the system listens already. Raises ``OSError``."""
        self._mode = mode
        self._given = given is not None
        self.socket = given if given is not None else bind_only(address, mode)
        self.socket.setblocking(False)
        self.address = _address_of(self.socket)

    def refuse(self) -> None:
        """Let nobody wait for a worker that does not come: the queue is dropped, and callers are refused until a
        worker listens on the new socket. One that the system gave stays as it is. Raises ``OSError``."""
        if self._given:
            return
        self.socket.close()
        self.socket = bind_only(self.address, self._mode)
        self.socket.setblocking(False)

    def close(self) -> None:
        """The end: the queue is dropped and the path removed."""
        self.socket.close()
        if self.address.path and not self._given:
            Path(self.address.path).unlink(missing_ok=True)


def _address_of(bound: socket.socket) -> Address:
    where = bound.getsockname()
    return Address(where) if bound.family == socket.AF_UNIX else Address("", where[0], int(where[1]))


def bind_only(address: Address, mode: str = "") -> socket.socket:
    """A bound socket that does not listen; ``mode`` is a path's, in octal. Raises ``OSError``."""
    if address.path:
        return bind_path(address.path, mode)
    found = socket.getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, where = found[0][0], found[0][4]
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            with suppress(OSError):
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(where)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"{error.strerror} ({address.host}:{address.port})") from None
    return bound


def bind_path(path: str, mode: str = "") -> socket.socket:
    """A Unix socket in place of whatever a killed process left there. Raises ``OSError`` for one that is in use."""
    remove_stale_socket(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(path)
        set_mode(path, mode)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"{error.strerror or error} ({path})") from None
    return bound


def set_mode(path: str, mode: str) -> None:
    """Who may connect: ``mode`` in octal; empty leaves it to the umask."""
    if mode:
        os.chmod(path, int(mode, 8))


def remove_stale_socket(path: str) -> None:
    """Remove a socket that a killed process left behind. Raises ``OSError`` for one that somebody listens on: it
    would be taken away from them without a word."""
    if not Path(path).is_socket():
        return  # nothing, or a file that is not ours to remove: the bind will tell
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(path)
    except ConnectionRefusedError:
        Path(path).unlink(missing_ok=True)
    except (BlockingIOError, TimeoutError):
        raise OSError(errno.EADDRINUSE, "the socket is in use", path) from None  # by somebody whose queue is full
    except OSError:
        return
    else:
        raise OSError(errno.EADDRINUSE, "the socket is in use", path)
