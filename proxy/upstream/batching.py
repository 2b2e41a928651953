"""Embedding requests that come at the same time become one upstream call.

A request waits up to a few milliseconds for others that differ from it in nothing but their inputs; what has gathered
then leaves as one call, and each caller gets its part of the answer as if it had asked alone. Whoever nobody joined
asks alone indeed, bytes untouched. Where one caller's input spoils the call, or its answer cannot be parted, each
asks once for itself, and the group gathers no more for a while.

The window is a timer of the event loop, one for each batch: the wheel of deadlines is too coarse for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Final

from proxy.clock import Clock, Deadlines
from proxy.config.models import Batching
from proxy.errors import ProxyError
from proxy.protocol.embeddings import Portion, merge_portions, read_portion, split_answer
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.upstream import faults
from proxy.upstream.base import Patience, Receiver, Transport, UpstreamRequest
from proxy.upstream.batch import Alone, Batch, BatchBounds, BatchCounts, Group, Member, Outcome, Timer
from proxy.upstream.until import Until

__all__ = ["BatchBounds", "BatchCounts", "Batcher"]

SPOILED_PAUSE_S: Final = 1.0
"""How long a group gathers no batches after an upstream refused one: who sends bad inputs sends more of them."""
UNSPLIT_PAUSE_S: Final = 60.0
"""The same after an answer that could not be parted: it was paid for twice, and the next one would be as well."""
_MOST_PAUSES: Final = 1024
_RESENT_AT_ONCE: Final = 8
"""Of one batch."""
_STEP_BYTES: Final = 256 * 1024
"""So much is handed out before others have their turn in the loop."""

_SPOILED: Final = frozenset((400, 413, 422))
"""Statuses that may be one caller's fault alone."""
_SINGLE: Final = frozenset((b"content-encoding", b"idempotency-key"))
"""Requests with one of these are not merged: unreadable, or an operation of their own."""
_OF_THE_BODY: Final = frozenset(
    b"accept-ranges content-digest content-length content-md5 etag repr-digest trailer transfer-encoding".split()
)
"""What an answer's head says of a body that nobody gets as it was."""

Later = Callable[[float, Callable[[], None]], Timer]


class Batcher:
    """Stands before a transport for requests that may be merged."""

    # Mutable state: _open maps groups to the batch that gathers, _paused to the time until which none does; _calls is
    # the batches under way. waiting counts the members of open batches, held_bytes the answers being received.
    __slots__ = (
        *("_bounds", "_calls", "_clock", "_closed", "_deadlines", "_later", "_loop", "_observe", "_open", "_paused"),
        *("_transport", "counts", "held_bytes", "waiting"),
    )

    def __init__(
        self,
        clock: Clock,
        deadlines: Deadlines,
        transport: Transport,
        *,
        later: Later | None = None,
        observe_size: Callable[[float], None] = lambda _: None,
        bounds: BatchBounds | None = None,
    ) -> None:
        """``later(delay_s, call)`` arms a timer, by default the loop's own; ``observe_size`` is told how many
        requests each departing batch holds."""
        self._clock = clock
        self._deadlines = deadlines
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._later: Later = later or self._loop.call_later
        self._observe = observe_size
        self._bounds = bounds or BatchBounds()
        self._open: dict[Group, Batch] = {}
        self._paused: dict[Group, float] = {}
        self._calls: set[Batch] = set()
        self._closed = False
        self.waiting = 0
        self.held_bytes = 0
        self.counts = BatchCounts()

    # -- the caller's side -------------------------------------------------------------------------------------

    async def exchange(
        self, request: UpstreamRequest, receiver: Receiver, patience: Patience, batching: Batching
    ) -> None:
        """As ``base.Transport.exchange``, for a POST to an embeddings path. The receiver of a merged request gets its
        answer in a single ``on_read``; one of a request that is sent again alone has another ``on_start``."""
        member = self._admit(request, receiver, patience, batching)
        if member is None:
            self.counts.requests_passed += 1
            await self._transport.exchange(request, receiver, patience)
            return
        try:
            outcome = await member.waiter
        except asyncio.CancelledError:
            self._leave(member)
            raise
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            await self._ask_alone(member, request, patience, outcome.again)

    async def _ask_alone(
        self, member: Member, request: UpstreamRequest, patience: Patience, again: asyncio.Semaphore | None
    ) -> None:
        if again is None:
            self.counts.requests_alone += 1
            await self._transport.exchange(request, member.receiver, self._rest(member, patience))
            return
        self.counts.requests_resent += 1
        turn = Until(self._deadlines, member.total_at)
        try:
            async with turn:
                await again.acquire()
        except TimeoutError:
            raise faults.timed_out("total", "waited for its turn to be sent alone") from None
        try:
            await self._transport.exchange(request, member.receiver, self._rest(member, patience))
        finally:
            again.release()

    def _rest(self, member: Member, patience: Patience) -> Patience:
        """What is left of a caller's patience."""
        return patience._replace(total_s=max(member.total_at - self._clock.now(), 0.0))

    # -- gathering ---------------------------------------------------------------------------------------------

    def _admit(
        self, request: UpstreamRequest, receiver: Receiver, patience: Patience, batching: Batching
    ) -> Member | None:
        """A place in a batch; ``None`` if the request is to go its way alone."""
        body = request.body
        if self._closed or batching.window_s <= 0 or type(body) is not bytes or len(body) >= self._bounds.body_bytes:
            return None
        if not _SINGLE.isdisjoint([name for name, _ in request.headers]):
            return None
        portion = read_portion(body)
        if portion is None or portion.inputs >= batching.most_inputs:
            return None
        origin, method, target, headers, _ = request
        group = origin, method, target, tuple(headers), portion.before, portion.after, portion.tokens
        batch = None if self._is_paused(group) else self._find(group, portion, request, patience, batching)
        if batch is None:
            return None
        total_at = self._clock.now() + patience.total_s
        member = Member(batch, portion, receiver, total_at, self._loop.create_future())
        batch.add(member, patience)
        self.waiting += 1
        if batch.inputs >= batching.most_inputs:
            self._depart(batch)
        return member

    def _find(
        self, group: Group, portion: Portion, request: UpstreamRequest, patience: Patience, batching: Batching
    ) -> Batch | None:
        """The group's open batch with room for ``portion``; ``None`` if there is no room anywhere."""
        batch, bounds = self._open.get(group), self._bounds
        if batch is not None:
            if batch.has_room(portion, batching.most_inputs, bounds.body_bytes) and self.waiting < bounds.waiting:
                return batch
            self._depart(batch)
        if len(self._open) >= bounds.gathering or self.waiting >= bounds.waiting:
            return None
        batch = self._open[group] = Batch(group, request, patience, self._take)
        batch.timer = self._later(batching.window_s, lambda: self._depart(batch))
        return batch

    def _is_paused(self, group: Group) -> bool:
        until = self._paused.get(group)
        if until is None:
            return False
        if self._clock.now() < until:
            return True
        del self._paused[group]
        return False

    def _pause(self, group: Group, pause_s: float) -> None:
        self._paused.pop(group, None)
        if len(self._paused) >= _MOST_PAUSES:
            del self._paused[next(iter(self._paused))]  # the oldest
        self._paused[group] = self._clock.now() + pause_s

    def _leave(self, member: Member) -> None:
        """Its caller was cancelled. A call goes on as long as somebody waits for it."""
        batch = member.batch
        if member not in batch.members:
            return
        del batch.members[member]
        self.counts.requests_cancelled += 1
        if batch.sent:
            self._break_off_empty(batch)
            return
        batch.remove(member)
        self.waiting -= 1
        if not batch.members:
            self._close_doors(batch)

    def _close_doors(self, batch: Batch) -> None:
        """Nobody joins any more."""
        if self._open.get(batch.group) is batch:
            del self._open[batch.group]
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None

    # -- the common call ---------------------------------------------------------------------------------------

    def _depart(self, batch: Batch) -> None:
        """The batch is full, or its time is over."""
        self._close_doors(batch)
        self.waiting -= len(batch.members)
        batch.sent = tuple(batch.members)
        self._observe(len(batch.sent))
        if len(batch.sent) == 1:
            self._release(batch, Alone(None))
            return
        self._calls.add(batch)
        batch.expiry = self._deadlines.arm_at(_first_end(batch), lambda: self._expire(batch))
        batch.task = self._loop.create_task(self._carry(batch), name="embedding-batch", context=Context())
        batch.task.add_done_callback(lambda task: self._carried(batch, task))

    async def _carry(self, batch: Batch) -> None:
        body = merge_portions([member.portion for member in batch.sent])
        latest = max(member.total_at for member in batch.sent)
        patience = batch.patience._replace(total_s=max(latest - self._clock.now(), 0.0))
        await self._transport.exchange(batch.request._replace(body=body), batch, patience)
        await self._hand_out(batch)

    def _carried(self, batch: Batch, task: asyncio.Task[None]) -> None:
        """However the call ended, and had it never begun: nobody is left waiting, nothing is left held."""
        self._calls.discard(batch)
        self.held_bytes -= batch.size_bytes
        batch.chunks = []
        if batch.expiry is not None:
            batch.expiry.cancel()
        error = None if task.cancelled() else task.exception()
        if not batch.members:
            return
        if batch.overflowed:
            self._send_each_alone(batch, UNSPLIT_PAUSE_S)
            self.counts.batches_unsplit += 1
            return
        self.counts.batches_failed += 1
        self.counts.requests_failed += len(batch.members)
        self._release(batch, error if isinstance(error, Exception) else faults.draining())

    def _expire(self, batch: Batch) -> float | None:
        """Whoever's time is over leaves the others."""
        now = self._clock.now()
        for member in [member for member in batch.members if member.total_at <= now]:
            self.counts.requests_failed += 1
            self._dismiss(member, faults.timed_out("total"))
        self._break_off_empty(batch)
        return _first_end(batch) if batch.members else None

    def _break_off_empty(self, batch: Batch) -> None:
        if not batch.members and batch.task is not None and not batch.task.done():
            self.counts.batches_cancelled += 1
            batch.task.cancel()

    def _take(self, batch: Batch, size_bytes: int) -> None:
        """More of an answer came. Beyond the bound it is given up: its callers' own answers flow as they come."""
        self.held_bytes += size_bytes
        if self.held_bytes > self._bounds.answer_bytes and batch.task is not None:
            batch.overflowed = True
            batch.task.cancel()

    # -- handing out -------------------------------------------------------------------------------------------

    async def _hand_out(self, batch: Batch) -> None:
        head = batch.head
        if batch.overflowed:
            return  # it ended in the very tick
        if head is None or not batch.ended:
            raise faults.bad_response("no_answer", "the exchange ended without one")
        body = b"".join(batch.chunks)
        batch.chunks = []
        if head.status in _SPOILED:
            self.counts.batches_refused += 1
            self._send_each_alone(batch, SPOILED_PAUSE_S)
        elif not 200 <= head.status < 300:
            self.counts.batches_failed += 1
            self.counts.requests_failed += len(batch.members)
            for member in tuple(batch.members):
                self._deliver(member, head, body)
        else:
            await self._hand_out_parts(batch, head, body)

    async def _hand_out_parts(self, batch: Batch, head: ResponseHead, body: bytes) -> None:
        readable = head.get(b"content-encoding") in (b"", b"identity")
        parts = split_answer(body, [member.portion for member in batch.sent]) if readable else None
        if parts is None:
            self.counts.batches_unsplit += 1
            self._send_each_alone(batch, UNSPLIT_PAUSE_S)
            return
        self.counts.batches_split += 1
        headers = [header for header in head.headers if header[0] not in _OF_THE_BODY]
        step_bytes = 0
        for member, part in zip(batch.sent, parts, strict=True):
            if member in batch.members:
                self.counts.requests_merged += 1
                self._deliver(member, _make_head(head.status, headers, len(part)), part)
            step_bytes += len(part)
            if step_bytes >= _STEP_BYTES and batch.members:
                step_bytes = 0
                await asyncio.sleep(0)

    def _deliver(self, member: Member, head: ResponseHead, body: bytes) -> None:
        try:
            member.receiver.on_read(head, body, True)
        except Exception as error:  # noqa: BLE001 - one receiver's bug is not the others'
            self._dismiss(member, error)
        else:
            self._dismiss(member, None)

    def _send_each_alone(self, batch: Batch, pause_s: float) -> None:
        self._pause(batch.group, pause_s)
        self._release(batch, Alone(asyncio.Semaphore(_RESENT_AT_ONCE)))

    def _release(self, batch: Batch, outcome: Outcome) -> None:
        """The same for everybody who is still there."""
        for member in tuple(batch.members):
            self._dismiss(member, _copy(outcome) if isinstance(outcome, ProxyError) else outcome)

    @staticmethod
    def _dismiss(member: Member, outcome: Outcome) -> None:
        member.batch.members.pop(member, None)
        if not member.waiter.done():
            member.waiter.set_result(outcome)

    # -- the process -------------------------------------------------------------------------------------------

    def gauges(self) -> dict[tuple[str], float]:
        """What batches hold right now."""
        return {
            ("gathering",): len(self._open),
            ("under_way",): len(self._calls),
            ("waiting_requests",): self.waiting,
            ("answer_bytes",): self.held_bytes,
        }

    def close(self) -> None:
        """Whatever has gathered leaves now, and nothing gathers any more; calls under way go on."""
        self._closed = True
        for batch in tuple(self._open.values()):
            self._depart(batch)


def _first_end(batch: Batch) -> float:
    """When the first member's time is over."""
    return min(member.total_at for member in batch.members)


def _make_head(status: int, headers: HeaderList, size_bytes: int) -> ResponseHead:
    return ResponseHead(status, [*headers, (b"content-length", b"%d" % size_bytes)])


def _copy(error: ProxyError) -> ProxyError:
    """One for each caller: each raise would lengthen the other's traceback."""
    return ProxyError(
        error.kind,
        error.public,
        detail=error.detail,
        why=error.why,
        retry=error.retry,
        retry_after_s=error.retry_after_s,
    )
