"""A batch of embedding requests: who is in it, what their common call may take, and what came of all batches.

Decides nothing: `batching` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from proxy.clock import Deadline
from proxy.protocol.embeddings import Portion
from proxy.protocol.message import ResponseHead
from proxy.upstream.base import Control, Origin, Patience, Receiver, UpstreamRequest


class Timer(Protocol):
    """What ``loop.call_later`` returns."""

    def cancel(self) -> None: ...


class BatchBounds(NamedTuple):
    """What batches may take. A request that finds no room is sent alone."""

    body_bytes: int = 512 * 1024
    """Of a merged request. Vendors bound the tokens of a call as well (OpenAI: 300,000 in all)."""
    gathering: int = 1024
    """Batches that gather."""
    waiting: int = 8192
    """Requests in them."""
    answer_bytes: int = 256 * 1024 * 1024
    """Of answers that are being received, over all batches."""


class BatchCounts:
    """What became of requests and of batches; read by metrics."""

    # Plain integers, written by `Batcher` alone.
    __slots__ = (
        "batches_cancelled",
        "batches_failed",
        "batches_refused",
        "batches_split",
        "batches_unsplit",
        "requests_alone",
        "requests_cancelled",
        "requests_failed",
        "requests_merged",
        "requests_passed",
        "requests_resent",
    )

    def __init__(self) -> None:
        self.batches_split = 0
        self.batches_refused = 0
        """The upstream refused the merged request, which may have been one caller's fault."""
        self.batches_unsplit = 0
        """The answer could not be parted."""
        self.batches_failed = 0
        """An error, the upstream's or the way's, that everybody in the batch was told."""
        self.batches_cancelled = 0
        """Nobody was left."""
        self.requests_merged = 0
        """Got their part of a merged answer."""
        self.requests_alone = 0
        """Waited, and nobody joined."""
        self.requests_passed = 0
        """Were never held: not to be merged, large enough alone, paused, or no room."""
        self.requests_resent = 0
        """Were sent once more, alone."""
        self.requests_failed = 0
        self.requests_cancelled = 0

    def batches(self) -> dict[tuple[str], float]:
        """Merged calls by what came of them."""
        return {(n.removeprefix("batches_"),): getattr(self, n) for n in self.__slots__ if n.startswith("batches_")}

    def requests(self) -> dict[tuple[str], float]:
        """Requests by what came of them; a resent one is counted there only."""
        return {(n.removeprefix("requests_"),): getattr(self, n) for n in self.__slots__ if n.startswith("requests_")}


Group = tuple[Origin, str, str, tuple[tuple[bytes, bytes], ...], bytes, bytes, bool]
"""All that a request is but for its inputs: where it goes, with which credential, and what it asks for."""


class Alone(NamedTuple):
    """An outcome: the caller is to ask for itself."""

    again: asyncio.Semaphore | None
    """Bounds how many of one batch do so at once; ``None``: this is its first time."""


Outcome = Alone | Exception | None
"""``None``: its receiver has the answer."""


class Member:
    """One request in a batch. ``waiter`` is done once, by `Batcher`; its caller waits for nothing else."""

    __slots__ = ("batch", "portion", "receiver", "total_at", "waiter")

    def __init__(
        self, batch: Batch, portion: Portion, receiver: Receiver, total_at: float, waiter: asyncio.Future[Outcome]
    ) -> None:
        self.batch = batch
        self.portion = portion
        self.receiver = receiver
        self.total_at = total_at
        self.waiter = waiter


class Batch:
    """Requests of one group; the receiver of their common call."""

    # Mutable state: members is who is still there, in order of arrival (written by the batcher); the rest of the
    # first block grows while the batch gathers; from its departure on `sent` is fixed, and the transport's calls
    # write head, chunks and size_bytes.
    __slots__ = (
        *("group", "inputs", "members", "merged_bytes", "patience", "request", "timer"),
        *("_took", "chunks", "ended", "expiry", "head", "overflowed", "sent", "size_bytes", "task"),
    )

    def __init__(
        self, group: Group, request: UpstreamRequest, patience: Patience, took: Callable[[Batch, int], None]
    ) -> None:
        """``took`` is told of each piece of the answer, in bytes."""
        self._took = took
        self.group = group
        self.request = request
        self.patience = patience
        self.inputs = 0
        self.merged_bytes = len(group[4]) + len(group[5]) + 2
        self.members: dict[Member, None] = {}
        self.timer: Timer | None = None
        self.sent: tuple[Member, ...] = ()
        self.task: asyncio.Task[None] | None = None
        self.expiry: Deadline | None = None
        self.head: ResponseHead | None = None
        self.chunks: list[bytes] = []
        self.size_bytes = 0
        self.ended = False
        self.overflowed = False

    def add(self, member: Member, patience: Patience) -> None:
        self.members[member] = None
        self.inputs += member.portion.inputs
        self.merged_bytes += len(member.portion.piece) + 1
        self.patience = Patience(*map(max, self.patience, patience))

    def remove(self, member: Member) -> None:
        """It left before the batch did."""
        self.inputs -= member.portion.inputs
        self.merged_bytes -= len(member.portion.piece) + 1

    def has_room(self, portion: Portion, most_inputs: int, most_bytes: int) -> bool:
        return self.inputs + portion.inputs <= most_inputs and self.merged_bytes + len(portion.piece) < most_bytes

    # -- calls of the transport --------------------------------------------------------------------------------

    def on_start(self, _control: Control) -> None:
        for member in tuple(self.members):
            member.receiver.on_start(_NO_CONTROL)

    def on_read(self, head: ResponseHead | None, data: bytes, ended: bool) -> None:
        if head is not None:
            self.head = head
        if data and not self.overflowed:
            self.chunks.append(data)
            self.size_bytes += len(data)
            self._took(self, len(data))
        self.ended = ended


class _NoControl:
    """A part of an answer comes in one piece: there is nothing to hold back."""

    __slots__ = ()

    def pause(self) -> None: ...

    def resume(self) -> None: ...


_NO_CONTROL: Final = _NoControl()
