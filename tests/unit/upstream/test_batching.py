"""Embedding requests that become one call: who joins, who gets what, and that nobody is left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from proxy.clock import Clock, Deadlines
from proxy.config.models import Batching
from proxy.errors import Kind, ProxyError, Retry
from proxy.mock.options import MockOptions
from proxy.mock.server import MockUpstream
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.upstream import faults
from proxy.upstream.base import Call, Origin, Over, Patience, Receiver, UpstreamRequest
from proxy.upstream.batching import SPOILED_PAUSE_S, UNSPLIT_PAUSE_S, BatchBounds, Batcher
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, run_ticks, wait_until, within
from tests.fakes.receiver import Recorder
from tests.fakes.transports import WireRig

ORIGIN = Origin("http", "127.0.0.1", 9)
PATIENCE = Patience(5.0, 60.0, 20.0, 300.0)
BATCHING = Batching(most_inputs=16, window_s=0.005)
HEADERS: HeaderList = [(b"authorization", b"Bearer k"), (b"content-type", b"application/json")]
JSON_HEAD: HeaderList = [(b"content-type", b"application/json"), (b"x-request-id", b"r-1")]

Answer = tuple[int, HeaderList, bytes]


def embed(body: bytes, *, odd: Callable[[str], bool] = lambda _: False) -> Answer:
    """A server whose vectors name their inputs; four bytes a token; refuses ``odd`` inputs."""
    given = json.loads(body)["input"]
    inputs = given if isinstance(given, list) else [given]
    if any(odd(text) for text in inputs):
        return 400, JSON_HEAD, b'{"error":{"message":"bad input"}}'
    items = [
        b'{"object":"embedding","index":%d,"embedding":[%b]}' % (place, ", ".join(map(str, text.encode())).encode())
        for place, text in enumerate(inputs)
    ]
    used = sum(len(text.encode()) for text in inputs) // 4
    body = b'{"data":[%b],"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (b",".join(items), used, used)
    return 200, [*JSON_HEAD, (b"content-length", b"%d" % len(body)), (b"etag", b'"e"')], body


class NoControl:
    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Upstream:
    """A transport that answers each request by a function, once its gate is open."""

    def __init__(self) -> None:
        self.requests: list[UpstreamRequest] = []
        self.patiences: list[Patience] = []
        self.gate = Gate("upstream", opened=True)
        self.answer: Callable[[bytes], Answer | Exception] = embed
        self.piece_bytes = 40
        self.cancelled = 0
        self.most_at_once = self.at_once = 0

    async def exchange(self, request: UpstreamRequest, receiver: Receiver, patience: Patience) -> None:
        self.requests.append(request)
        self.patiences.append(patience)
        receiver.on_start(NoControl())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            await self._answer(request, receiver)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1

    async def _answer(self, request: UpstreamRequest, receiver: Receiver) -> None:
        assert isinstance(request.body, bytes)
        answer = self.answer(request.body)
        if isinstance(answer, Exception):
            raise answer
        status, headers, body = answer
        receiver.on_read(ResponseHead(status, headers), b"", False)
        for at in range(0, len(body), self.piece_bytes):
            receiver.on_read(None, body[at : at + self.piece_bytes], False)
            if at + self.piece_bytes < len(body):
                await asyncio.sleep(0)
        receiver.on_read(None, b"", True)

    def start(self, request: UpstreamRequest, receiver: Receiver, patience: Patience, over: Over) -> Call | None:
        raise AssertionError("batches wait for their call")

    async def close(self) -> None: ...

    @property
    def inputs(self) -> list[Any]:
        return [json.loads(request.body)["input"] for request in self.requests if isinstance(request.body, bytes)]


class Timers:
    """The loop's timers in the test's hand: ``fire`` ends every window that is open."""

    def __init__(self) -> None:
        self.armed: dict[Timers.One, Callable[[], None]] = {}
        self.delays_s: list[float] = []

    class One:
        def __init__(self, owner: Timers) -> None:
            self.owner = owner

        def cancel(self) -> None:
            self.owner.armed.pop(self, None)

    def later(self, delay_s: float, call: Callable[[], None]) -> Timers.One:
        timer = Timers.One(self)
        self.armed[timer] = call
        self.delays_s.append(delay_s)
        return timer

    def fire(self) -> None:
        for timer in tuple(self.armed):
            self.armed.pop(timer)()


class Asker:
    """One caller: its request under way."""

    def __init__(self, task: asyncio.Task[None], recorder: Recorder) -> None:
        self.task = task
        self.recorder = recorder

    async def answer(self) -> bytes:
        await within(self.task, "the caller was answered")
        assert self.recorder.ended
        return self.recorder.body

    async def error(self) -> ProxyError:
        with pytest.raises(ProxyError) as caught:
            await within(self.task, "the caller was refused")
        return caught.value

    async def cancel(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


class Rig:
    def __init__(self, clock: FrozenClock, bounds: BatchBounds | None = None) -> None:
        self.clock = clock
        self.deadlines = Deadlines(clock)
        self.timers = Timers()
        self.upstream = Upstream()
        self.sizes: list[float] = []
        self.batcher = Batcher(
            clock,
            self.deadlines,
            self.upstream,
            later=self.timers.later,
            observe_size=self.sizes.append,
            bounds=bounds,
        )

    def ask(
        self,
        given: Any,
        *,
        headers: HeaderList = HEADERS,
        batching: Batching = BATCHING,
        total_s: float = 300.0,
        first_byte_s: float = 60.0,
        **fields: Any,
    ) -> Asker:
        body = given if isinstance(given, bytes) else json.dumps({"input": given, "model": "m", **fields}).encode()
        request = UpstreamRequest(ORIGIN, "POST", "/v1/embeddings", headers, body)
        recorder = Recorder()
        patience = PATIENCE._replace(total_s=total_s, first_byte_s=first_byte_s)
        exchange = self.batcher.exchange(request, recorder, patience, batching)
        return Asker(asyncio.get_running_loop().create_task(exchange), recorder)

    async def gather(self, *given: Any, **options: Any) -> list[Asker]:
        """Callers that wait in batches."""
        askers = [self.ask(one, **options) for one in given]
        await run_ticks(2)
        return askers

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.deadlines.sweep()

    def is_at_rest(self) -> bool:
        """Nothing is held, waited for or armed."""
        holds = set(self.batcher.gauges().values())
        return holds == {0} and not self.timers.armed and not self.deadlines.armed and not self.upstream.at_once

    def outcomes(self) -> tuple[dict[str, float], dict[str, float]]:
        """What was counted of batches and of requests, without zeros."""
        tables = self.batcher.counts.batches(), self.batcher.counts.requests()
        return tuple({key[0]: count for key, count in table.items() if count} for table in tables)  # type: ignore[return-value]


@pytest.fixture
async def rig(frozen_clock: FrozenClock) -> Rig:
    return Rig(frozen_clock)


def alone(text: str) -> dict[str, Any]:
    """What the server says to who asks alone."""
    return json.loads(embed(json.dumps({"input": text}).encode())[2])  # type: ignore[no-any-return]


# -- gathering -----------------------------------------------------------------------------------------------------


async def test_requests_within_a_window_become_one_call_and_each_gets_its_own(rig: Rig) -> None:
    """One body that asks for all; one head, one piece and one end for each, with the right length."""
    texts = ["aaaa", "bbbbbbbb", "cccc"]
    askers = await rig.gather(*texts)
    assert (rig.upstream.requests, rig.batcher.waiting, rig.timers.delays_s) == ([], 3, [0.005])
    rig.timers.fire()

    for text, asker in zip(texts, askers, strict=True):
        assert json.loads(await asker.answer()) == alone(text)
        ((head, body, ended),) = asker.recorder.reads
        assert head is not None
        assert (head.status, head.get(b"x-request-id"), ended) == (200, b"r-1", True)
        assert (head.get(b"content-length"), head.get(b"etag")) == (b"%d" % len(body), b"")
        assert asker.recorder.starts == 1
    assert rig.upstream.inputs == [texts]
    assert (rig.sizes, rig.outcomes(), rig.is_at_rest()) == ([3], ({"split": 1}, {"merged": 3}), True)


async def test_a_full_batch_leaves_at_once_and_a_new_one_gathers(rig: Rig) -> None:
    """Inputs are counted, not requests; what does not fit sends the open batch off and opens the next."""
    batching = Batching(most_inputs=4, window_s=0.005)
    first = await rig.gather("a", ["b", "c", "d"], batching=batching)
    second = await rig.gather("e", batching=batching)
    third = await rig.gather(["f", "g", "h"], "i", batching=batching)
    assert (rig.batcher.waiting, rig.upstream.inputs) == (1, [["a", "b", "c", "d"], ["e", "f", "g", "h"]])
    rig.timers.fire()

    for asker in (*first, *second, *third):
        await asker.answer()
    assert rig.upstream.inputs[2] == "i"
    assert rig.is_at_rest()


async def test_who_fits_no_more_finds_the_next_batch(rig: Rig) -> None:
    """A batch never holds more inputs than it may."""
    askers = await rig.gather("a", "b", ["c", "d", "e"], batching=Batching(most_inputs=4, window_s=0.005))
    rig.timers.fire()

    for asker in askers:
        await asker.answer()
    assert rig.upstream.inputs == [["a", "b"], ["c", "d", "e"]]


async def test_whoever_nobody_joined_asks_alone_byte_for_byte(rig: Rig) -> None:
    """Its bytes, its receiver, its own patience less the wait; the answer flows as it comes."""
    body = b'{ "input" : ["only"],"model":"m" }'
    (asker,) = await rig.gather(body, total_s=9.0)
    rig.clock.advance(0.5)
    rig.timers.fire()

    assert await asker.answer() == embed(body)[2]
    assert len(asker.recorder.reads) > 2
    assert (rig.upstream.requests[0].body, rig.upstream.patiences[0].total_s) == (body, 8.5)
    assert (rig.outcomes(), rig.is_at_rest()) == (({}, {"alone": 1}), True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"model": "n"}),
        ({}, {"dimensions": 8}),
        ({}, {"encoding_format": "base64"}),
        ({}, {"user": "u"}),
        ({}, {"headers": [(b"authorization", b"Bearer other")]}),
    ],
)
async def test_requests_that_differ_beside_their_input_never_meet(
    rig: Rig, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Model, format, dimensions, user and above all the credential."""
    askers = await rig.gather("a", **one) + await rig.gather("b", **other)
    rig.timers.fire()

    for asker in askers:
        await asker.answer()
    assert rig.upstream.inputs == ["a", "b"]


async def test_texts_and_tokens_never_meet(rig: Rig) -> None:
    """A list holds one sort; ``[1,2]`` is one input among token lists."""
    rig.upstream.answer = lambda body: embed(
        json.dumps({"input": list(map(str, json.loads(body)["input"]))}).encode()
    )
    askers = await rig.gather("a", [1, 2], "b", [[3], [4, 5]])
    rig.timers.fire()

    vectors = [len(json.loads(await asker.answer())["data"]) for asker in askers]
    assert (rig.upstream.inputs, vectors) == ([["a", "b"], [[1, 2], [3], [4, 5]]], [1, 1, 1, 2])


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("", {}),
        (["a"] * 16, {}),
        (b"not json", {}),
        (b'{"input":"a","input":"b"}', {}),
        ("a", {"headers": [(b"content-encoding", b"gzip")]}),
        ("a", {"headers": [(b"idempotency-key", b"i")]}),
        ("x" * 600_000, {}),
        ("a", {"batching": Batching(most_inputs=1, window_s=0.005)}),
        ("a", {"batching": Batching(most_inputs=16, window_s=0.0)}),
    ],
)
async def test_what_cannot_or_need_not_be_merged_is_never_held(rig: Rig, given: Any, options: dict[str, Any]) -> None:
    """Empty, huge, full alone, unreadable, an operation of its own, or batching is off."""
    rig.upstream.answer = lambda body: (200, [], body)
    asker = rig.ask(given, **options)
    await run_ticks(2)
    assert len(rig.upstream.requests) == 1

    assert await asker.answer() == rig.upstream.requests[0].body
    assert (rig.timers.delays_s, rig.outcomes()) == ([], ({}, {"passed": 1}))


async def test_the_merged_body_has_its_bound(frozen_clock: FrozenClock) -> None:
    """A batch leaves rather than grow beyond it."""
    rig = Rig(frozen_clock, BatchBounds(body_bytes=100))
    askers = await rig.gather("a" * 30, "b" * 30, "c" * 30)
    rig.timers.fire()

    for asker in askers:
        await asker.answer()
    assert rig.upstream.inputs == [["a" * 30, "b" * 30], "c" * 30]
    assert all(len(request.body) <= 100 for request in rig.upstream.requests if isinstance(request.body, bytes))


@pytest.mark.parametrize("bounds", [BatchBounds(gathering=1), BatchBounds(waiting=1)])
async def test_without_room_a_request_goes_its_way(frozen_clock: FrozenClock, bounds: BatchBounds) -> None:
    """As many open batches and waiting requests as the bounds say, and no more."""
    rig = Rig(frozen_clock, bounds)
    held = await rig.gather("a")
    passed = await rig.gather("b", model="n")
    assert (rig.batcher.waiting, rig.upstream.inputs) == (1, ["b"])
    rig.timers.fire()

    for asker in (*held, *passed):
        await asker.answer()
    assert rig.is_at_rest()


async def test_a_closed_batcher_lets_everybody_go(rig: Rig) -> None:
    """What has gathered leaves, and nobody is held after it."""
    gathered = await rig.gather("a", "b")
    rig.batcher.close()
    late = await rig.gather("c")

    for asker in (*gathered, *late):
        await asker.answer()
    assert (rig.upstream.inputs, rig.is_at_rest()) == ([["a", "b"], "c"], True)


# -- leaving -------------------------------------------------------------------------------------------------------


async def test_a_caller_that_leaves_before_the_batch_is_not_asked_for(rig: Rig) -> None:
    """And makes room for another."""
    batching = Batching(most_inputs=3, window_s=0.005)
    first, second = await rig.gather("a", "b", batching=batching)
    await first.cancel()
    third, fourth = await rig.gather("c", "d", batching=batching)

    for asker in (second, third, fourth):
        await asker.answer()
    assert rig.upstream.inputs == [["b", "c", "d"]]
    assert (rig.outcomes()[1], rig.is_at_rest()) == ({"merged": 3, "cancelled": 1}, True)


async def test_a_batch_that_everybody_left_makes_no_call(rig: Rig) -> None:
    """Its timer goes with it, and the next request opens another."""
    askers = await rig.gather("a", "b")
    for asker in askers:
        await asker.cancel()
    assert (rig.is_at_rest(), rig.upstream.requests) == (True, [])

    (late,) = await rig.gather("c")
    rig.timers.fire()
    await late.answer()
    assert rig.upstream.inputs == ["c"]


async def test_a_call_goes_on_for_those_who_stayed(rig: Rig) -> None:
    """Who left gets nothing, the others what is theirs."""
    rig.upstream.gate.close()
    askers = await rig.gather("aaaa", "bbbb", "cccc")
    rig.timers.fire()
    await rig.upstream.gate.reached()
    await askers[0].cancel()
    rig.upstream.gate.open()

    assert json.loads(await askers[1].answer()) == alone("bbbb")
    assert json.loads(await askers[2].answer()) == alone("cccc")
    assert (askers[0].recorder.reads, rig.upstream.cancelled, rig.is_at_rest()) == ([], 0, True)


async def test_a_call_that_nobody_waits_for_is_cancelled(rig: Rig) -> None:
    """The upstream's work ends with the last caller."""
    rig.upstream.gate.close()
    askers = await rig.gather("a", "b")
    rig.timers.fire()
    await rig.upstream.gate.reached()
    for asker in askers:
        await asker.cancel()
    await wait_until(rig.is_at_rest, "the call was broken off")

    assert (rig.upstream.cancelled, rig.outcomes()) == (1, ({"cancelled": 1}, {"cancelled": 2}))


async def test_callers_that_leave_in_the_tick_of_departure_leave_nothing_behind(rig: Rig) -> None:
    """The call has no more than begun."""
    rig.upstream.gate.close()
    askers = await rig.gather("a", "b")
    rig.timers.fire()
    for asker in askers:
        asker.task.cancel()
    await wait_until(rig.is_at_rest, "nothing is left")

    assert [asker.task.cancelled() for asker in askers] == [True, True]
    assert (rig.upstream.cancelled, rig.outcomes()) == (1, ({"cancelled": 1}, {"cancelled": 2}))


@pytest.mark.parametrize("began", [False, True])
async def test_a_cancelled_call_releases_its_callers(rig: Rig, began: bool) -> None:
    """Whoever stops the tasks of a process that ends lets nobody hang, not even before a task's first step."""
    rig.upstream.gate.close()
    askers = await rig.gather("a", "b")
    rig.timers.fire()
    if began:
        await rig.upstream.gate.reached()
    (call,) = [task for task in asyncio.all_tasks() if task.get_name() == "embedding-batch"]
    call.cancel()

    assert [(await asker.error()).kind for asker in askers] == [Kind.DRAINING] * 2
    assert (len(rig.upstream.requests), rig.is_at_rest()) == (int(began), True)


# -- patience ------------------------------------------------------------------------------------------------------


async def test_a_call_has_the_longest_patience_and_each_caller_its_own(rig: Rig) -> None:
    """Whose time is over is told so; the others go on."""
    rig.upstream.gate.close()
    (short,) = await rig.gather("a", total_s=10.0, first_byte_s=50.0)
    (middle,) = await rig.gather("b", total_s=20.0)
    (long,) = await rig.gather("c", total_s=100.0, first_byte_s=7.0)
    rig.clock.advance(0.5)
    rig.timers.fire()
    await rig.upstream.gate.reached()
    assert (rig.upstream.patiences[0].first_byte_s, rig.upstream.patiences[0].total_s) == (60.0, 99.5)
    for asker, seconds in ((short, 9.4), (middle, 9.9)):
        rig.advance(seconds)
        await run_ticks()
        assert not asker.task.done()
        rig.advance(0.2)
        assert ((error := await asker.error()).kind, error.why) == (Kind.UPSTREAM_TIMEOUT, "total")

    rig.upstream.gate.open()
    await long.answer()
    assert (rig.outcomes(), rig.is_at_rest()) == (({"split": 1}, {"merged": 1, "failed": 2}), True)


async def test_a_call_that_outlasts_everybody_is_broken_off(rig: Rig) -> None:
    """The last caller's end is the call's."""
    rig.upstream.gate.close()
    askers = await rig.gather("a", "b", total_s=10.0)
    rig.timers.fire()
    await rig.upstream.gate.reached()
    rig.advance(10.1)

    assert [(await asker.error()).why for asker in askers] == ["total", "total"]
    await wait_until(rig.is_at_rest, "the call was broken off")
    assert rig.upstream.cancelled == 1


async def test_a_large_answer_is_handed_out_in_steps_that_others_may_use(rig: Rig) -> None:
    """Who leaves while the first are served gets nothing any more."""
    large = b"1," * 200_000 + b"1"
    items = [b'{"index":%d,"embedding":[%b]}' % (place, large) for place in range(3)]
    rig.upstream.answer = lambda _: (200, JSON_HEAD, b'{"data":[%b]}' % b",".join(items))
    rig.upstream.piece_bytes = 1 << 20
    askers = await rig.gather("a", "b", "c")
    askers[0].recorder._on_each = lambda _: askers[1].task.cancel()
    rig.timers.fire()

    assert len(await askers[0].answer()) == len(await askers[2].answer()) == len(items[0]) + len(b'{"data":[]}')
    assert (askers[1].task.cancelled(), askers[1].recorder.reads) == (True, [])
    await wait_until(rig.is_at_rest, "nothing is left")
    assert rig.outcomes() == ({"split": 1}, {"merged": 2, "cancelled": 1})


# -- answers that are none -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_one_bad_input_is_its_callers_alone(rig: Rig, status: int) -> None:
    """Each asks once for itself, a few at a time, and the group gathers no more for a moment."""
    batching = Batching(most_inputs=30, window_s=0.005)
    refusal = (status, JSON_HEAD, b"no")
    rig.upstream.answer = lambda body: refusal if b"bad" in body else embed(body)
    texts = [f"good{number:04}" for number in range(19)] + ["bad"]
    askers = await rig.gather(*texts, batching=batching)
    rig.timers.fire()

    for text, asker in zip(texts, askers, strict=True):
        body = await asker.answer()
        assert asker.recorder.head.status == (200 if text != "bad" else status)
        assert body == b"no" if text == "bad" else json.loads(body) == alone(text)
    assert (len(rig.upstream.requests), rig.upstream.most_at_once) == (21, 8)
    assert (rig.outcomes(), rig.is_at_rest()) == (({"refused": 1}, {"resent": 20}), True)

    (early,) = await rig.gather("e", batching=batching)
    await early.answer()
    rig.clock.advance(SPOILED_PAUSE_S)
    askers = await rig.gather("f", "g", batching=batching)
    rig.timers.fire()
    for asker in askers:
        await asker.answer()
    assert rig.upstream.inputs[21:] == ["e", ["f", "g"]]


@pytest.mark.parametrize(
    "answer",
    [
        (200, JSON_HEAD, b'{"data":[{"index":0}]}'),
        (200, JSON_HEAD, b"<html>"),
        (204, [], b""),
        (200, [(b"content-encoding", b"gzip")], embed(b'{"input":["a","b"]}')[2]),
    ],
)
async def test_an_answer_that_cannot_be_parted_is_asked_for_again_by_each(rig: Rig, answer: Answer) -> None:
    """It was paid for twice: the group gathers no more for a longer while."""
    rig.upstream.answer = lambda body: answer if b"[" in body else embed(body)
    askers = await rig.gather("a", "b")
    rig.timers.fire()

    assert [json.loads(await asker.answer()) for asker in askers] == [alone("a"), alone("b")]
    assert (rig.upstream.inputs, rig.outcomes()) == ([["a", "b"], "a", "b"], ({"unsplit": 1}, {"resent": 2}))
    rig.clock.advance(UNSPLIT_PAUSE_S - 1)
    (asker,) = await rig.gather("c")
    await asker.answer()
    assert (rig.outcomes()[1], rig.is_at_rest()) == ({"resent": 2, "passed": 1}, True)


@pytest.mark.parametrize("status", [401, 402, 403, 404, 429, 500, 503, 529])
async def test_a_refusal_that_is_nobodys_own_goes_to_all_as_it_is(rig: Rig, status: int) -> None:
    """Whoever decides on attempts decides for each; nothing is sent again here."""
    rig.upstream.answer = lambda _: (status, [(b"retry-after", b"3")], b"no")
    askers = await rig.gather("a", "b")
    rig.timers.fire()

    for asker in askers:
        assert await asker.answer() == b"no"
        assert (asker.recorder.head.status, asker.recorder.head.get(b"retry-after")) == (status, b"3")
    assert (len(rig.upstream.requests), rig.outcomes()) == (1, ({"failed": 1}, {"failed": 2}))
    assert rig.is_at_rest()


async def test_an_error_on_the_way_goes_to_all_each_with_its_own_copy(rig: Rig) -> None:
    """With all that the decision on another attempt needs."""
    rig.upstream.answer = lambda _: faults.unreachable("refused", "at the door")
    askers = await rig.gather("a", "b")
    rig.timers.fire()

    one, other = [await asker.error() for asker in askers]
    assert one is not other
    for error in (one, other):
        said = (error.kind, error.why, error.detail, error.retry, error.retry_after_s)
        assert said == (Kind.UPSTREAM_UNREACHABLE, "refused", "at the door", Retry.SAME, None)
    assert rig.is_at_rest()


async def test_a_bug_on_the_way_lets_nobody_hang(rig: Rig) -> None:
    """It comes out where it can be booked."""
    rig.upstream.answer = lambda _: RuntimeError("unforeseen")
    askers = await rig.gather("a", "b")
    rig.timers.fire()

    for asker in askers:
        with pytest.raises(RuntimeError, match="unforeseen"):
            await within(asker.task, "the caller was told")
    assert rig.is_at_rest()


async def test_a_receivers_bug_is_not_the_others(rig: Rig) -> None:
    """Each part is handed over by itself."""
    askers = await rig.gather("aaaa", "bbbb")

    def fail(_: Recorder) -> None:
        raise RuntimeError("unforeseen")

    askers[0].recorder._on_each = fail
    rig.timers.fire()

    assert json.loads(await askers[1].answer()) == alone("bbbb")
    with pytest.raises(RuntimeError, match="unforeseen"):
        await within(askers[0].task, "the caller was told")
    assert rig.is_at_rest()


@pytest.mark.parametrize("piece_bytes", [40, 100_000])
async def test_answers_beyond_the_bound_are_given_up_and_asked_for_alone(
    frozen_clock: FrozenClock, piece_bytes: int
) -> None:
    """Merged answers have to be held whole; single ones flow. In one piece or in many."""
    rig = Rig(frozen_clock, BatchBounds(answer_bytes=300))
    rig.upstream.piece_bytes = piece_bytes
    askers = await rig.gather("a" * 100, "b" * 100)
    rig.timers.fire()

    assert [json.loads(await asker.answer()) for asker in askers] == [alone("a" * 100), alone("b" * 100)]
    await wait_until(rig.is_at_rest, "the merged call was broken off")
    assert rig.outcomes() == ({"unsplit": 1}, {"resent": 2})


async def test_a_caller_whose_turn_does_not_come_runs_out_of_time(rig: Rig) -> None:
    """Those who ask once more wait for each other, but no longer than their patience."""
    rig.upstream.answer = lambda body: (400, [], b"no")
    askers = await rig.gather(*[f"t{number}" for number in range(9)], total_s=10.0)
    rig.timers.fire()
    await wait_until(lambda: rig.upstream.requests, "the merged call was made")
    rig.upstream.gate.close()
    await rig.upstream.gate.reached(9)
    rig.advance(10.1)

    assert (await askers[8].error()).why == "total"
    rig.upstream.gate.open()
    for asker in askers[:8]:
        await asker.answer()
    assert rig.is_at_rest()


# -- over the wire -------------------------------------------------------------------------------------------------


async def ask_all(mock: MockUpstream, texts: list[str], batching: Batching) -> tuple[list[bytes], Batcher, int]:
    """Concurrent requests over our own HTTP to the built-in upstream; (bodies, batcher, upstream calls)."""
    wire = WireRig(FrozenClock())
    batcher = Batcher(Clock(), wire.deadlines, wire.transport)
    origin = Origin("http", "127.0.0.1", mock.port)
    mock.calls = 0

    async def ask(text: str) -> bytes:
        body = json.dumps({"input": text, "model": "text-embedding-3-small", "encoding_format": "float"}).encode()
        recorder = Recorder()
        request = UpstreamRequest(origin, "POST", "/v1/embeddings", HEADERS, body)
        await batcher.exchange(request, recorder, PATIENCE, batching)
        assert recorder.head.status == 200
        assert int(recorder.head.get(b"content-length")) == len(recorder.body)
        return recorder.body

    bodies = await within(asyncio.gather(*map(ask, texts)), "everybody was answered")
    await wire.transport.close()
    return bodies, batcher, mock.calls


@pytest.mark.parametrize(("most_inputs", "calls"), [(8, 8), (16, 4), (2048, 1)])
async def test_sixty_four_concurrent_requests_make_a_few_calls(most_inputs: int, calls: int) -> None:
    """Each gets the vectors it would have got alone, byte for byte, and what they cost."""
    texts = [f"{number:04}" * (1 + number % 7) for number in range(64)]
    async with MockUpstream(MockOptions(repeatable=True)) as mock:
        merged, batcher, made = await ask_all(mock, texts, Batching(most_inputs, window_s=0.01))
        single, _, needed = await ask_all(mock, texts, Batching(1, window_s=0.01))

    assert (made, needed) == (calls, 64)
    assert batcher.counts.requests_merged == 64
    for own, expected in zip(merged, single, strict=True):
        start, end = expected.index(b'"data":['), expected.index(b'],"model"')
        assert own[own.index(b'"data":[') : own.index(b'],"model"')] == expected[start:end]
        assert json.loads(own)["usage"] == json.loads(expected)["usage"]
    assert set(batcher.gauges().values()) == {0}
