"""What systemd wants to know, and the sockets it hands over: nothing happens where it did not start us."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

_FIRST_FD: Final = 3


def notify(state: str) -> bool:
    """Tell systemd (``READY=1``, ``STOPPING=1``, ``RELOADING=1``, ``STATUS=…``); ``False`` if nobody listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.connect("\0" + path[1:] if path.startswith("@") else path)
            line.send(state.encode())
    except OSError:
        return False
    return True


def take_sockets(env: MutableMapping[str, str] | None = None, first_fd: int = _FIRST_FD) -> list[socket.socket]:
    """The sockets of a socket unit, in its order. They are ours once: the variables are taken away, so that no child
    takes them for its own."""
    env = os.environ if env is None else env
    pid, count = env.pop("LISTEN_PID", ""), env.pop("LISTEN_FDS", "")
    env.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = []
    for fd in range(first_fd, first_fd + int(count)):
        os.set_inheritable(fd, False)
        given = socket.socket(fileno=fd)
        given.setblocking(False)
        sockets.append(given)
    return sockets
