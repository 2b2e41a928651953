"""What is given up, step by step, when memory becomes short.

`pressure.memory` says how short; this is what each step does, at each look while it lasts (four a second): a little
at a time, so that no look is a pause, and no more than is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nlargest
from math import ceil
from typing import Any, Final, Protocol

from proxy.cache.hot import HotCache
from proxy.errors import Kind, ProxyError
from proxy.pressure.gate import Gate
from proxy.pressure.memory import Step

_PER_LOOK: Final = 0.05
"""Share of what could be closed or dropped that one look closes or drops."""
_CACHE_PER_LOOK: Final = 0.1
_LIGHT_BYTES: Final = 64 * 1024
"""An answer of which less is waiting for its client is not worth dropping."""


class House(Protocol):
    """The data listener."""

    @property
    def clients(self) -> Iterable[Any]:
        """Its connections, oldest first; ``relay`` of each is what runs on it."""


class Relief:
    """Call it with each step and its haste, as `MemoryWatch` does."""

    # Mutable state: the cache's own bound on an entry while it is set aside, and counters; written by the steps.
    __slots__ = ("_entry_bytes", "_gate", "_hot", "_house", "closed", "dropped")

    def __init__(self, hot: HotCache, gate: Gate, house: House) -> None:
        self._hot = hot
        self._gate = gate
        self._house = house
        self._entry_bytes: int | None = None
        self.closed = 0
        """Idle connections that were closed."""
        self.dropped = 0
        """Answers that were broken off."""

    def __call__(self, step: Step, haste: float) -> None:
        """``haste`` is 0 where `Step.HURRY` begins and 1 where `Step.REFUSE` does."""
        self._store(step >= Step.STORE_NOTHING)
        self._gate.closed = step >= Step.REFUSE
        if step >= Step.HURRY:
            self._close_idle(haste)
        if step >= Step.PART:
            self._part()
        if step >= Step.DROP:
            self._drop()

    def _store(self, nothing: bool) -> None:
        hot = self._hot
        if not nothing:
            if self._entry_bytes is not None:
                hot.max_entry_bytes, self._entry_bytes = self._entry_bytes, None
            return
        if self._entry_bytes is None:
            self._entry_bytes, hot.max_entry_bytes = hot.max_entry_bytes, 0
        hot.shrink(int(hot.size_bytes * (1 - _CACHE_PER_LOOK)))

    def _close_idle(self, haste: float) -> None:
        idle = [client for client in self._house.clients if client.relay is None]
        for client in idle[: ceil(len(idle) * _PER_LOOK * haste)]:
            client.close_now()
            self.closed += 1

    def _part(self) -> None:
        for client in self._house.clients:
            if client.relay is not None:
                client.relay.close_after = True

    def _drop(self) -> None:
        weights = [(_weigh(client), number, client) for number, client in enumerate(self._house.clients)]
        heavy = [each for each in weights if each[0] > _LIGHT_BYTES]
        for _, _, client in nlargest(ceil(len(heavy) * _PER_LOOK), heavy):
            subscription = client.relay.subscription
            if subscription is not None:
                message = "The proxy is short of memory, and this answer held most of it."
                subscription.eject(ProxyError(Kind.OVERLOADED, message, why="memory", retry_after_s=1.0))
            client.abort()
            self.dropped += 1


def _weigh(client: Any) -> int:
    """Bytes that wait for a client, in its connection's buffer and on the tape it reads."""
    relay, transport = client.relay, client.transport
    if relay is None or transport is None:
        return 0
    waiting: int = transport.get_write_buffer_size()
    subscription = relay.subscription
    if subscription is not None and subscription.paused and subscription.exit is None:
        waiting += subscription.flight.tape.lag_bytes(subscription.position)
    return waiting
