"""What a transport bounds in one response, and what it counts over its life."""

from __future__ import annotations

from typing import NamedTuple


class Caps(NamedTuple):
    """What a response may weigh."""

    head_bytes: int = 64 * 1024
    """Of the header block; also of any run of bytes that brings no body (chunk extensions, trailers)."""
    headers: int = 256
    informational: int = 16
    """1xx responses before the final one."""
    body_bytes: int = 2 * 1024**3


class Counts:
    """What happened on the connections of one transport; read by metrics."""

    # Plain integers, written with `+=` by connections, pool and transport.
    __slots__ = (
        "early_answers",
        "evicted",
        "failed",
        "opened",
        "poison_averted",
        "queue_timeouts",
        "reused",
        "stale_retries",
        "waiting",
    )

    def __init__(self) -> None:
        self.opened = 0
        self.reused = 0
        self.evicted = 0
        """Idle connections dropped: closed by the peer, too old, idle too long, or too many."""
        self.failed = 0
        """Connections that could not be made."""
        self.waiting = 0
        """Exchanges that wait for a connection right now."""
        self.queue_timeouts = 0
        self.poison_averted = 0
        """Connections closed because bytes came that no request had asked for."""
        self.stale_retries = 0
        self.early_answers = 0
        """Answers that ended before their request had been sent; their connections were closed."""

    def describe(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}
