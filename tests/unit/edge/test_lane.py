"""The fast lane by itself: what it does without a task, when it gives a connection away, and what it waits for.

What holds for both lanes is tried on both. That they cannot be told apart is the matter of ``tests/property``.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from proxy.edge.body import BodyLimits
from proxy.edge.connection import Connection
from proxy.edge.lane import EARLY_BYTES, Lane
from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from tests.fakes.wire_end import WireEnd
from tests.unit.edge.lanes import LaneRig, is_fast, observe

BODY = b'{"model":"m","messages":[]}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nauthorization: Bearer sk-test\r\ncontent-length: %d\r\n\r\n"
POST = HEAD % len(BODY) + BODY
HEALTH = b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n"
REFUSAL = ProxyError(Kind.INVALID_KEY, "No.")

both = pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])


@pytest.fixture
async def rig() -> LaneRig:
    """A server with the fast lane."""
    return LaneRig(fast=True)


async def begin(rig: LaneRig, *pieces: bytes) -> WireEnd:
    """A connection that has said something."""
    end = rig.connect()
    await rig.settle(2)
    for piece in pieces:
        end.say(piece)
        await rig.settle()
    return end


# -- plain requests ------------------------------------------------------------------------------------------


async def test_a_plain_request_is_answered_in_one_write_without_a_task_or_a_future(
    rig: LaneRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the very call that brings its last byte, and no deadline is armed or cancelled for it."""
    end = rig.connect()
    end.say(POST)
    loop = asyncio.get_running_loop()
    for name in ("create_task", "create_future", "call_soon", "call_at"):
        monkeypatch.setattr(loop, name, None)
    armed = dict(rig.deadlines._slots)
    end.say(POST)
    monkeypatch.undo()

    assert len(end.written) == 2
    assert end.written[1].startswith(b"HTTP/1.1 200 OK\r\n")
    assert rig.deadlines._slots == armed
    assert [each.body for each in rig.pipeline.heard] == [BODY, BODY]
    assert rig.pipeline.accounted == [(200, "ok")] * 2


async def test_the_requests_of_one_client_have_one_head(rig: LaneRig) -> None:
    """Also on another connection, and whatever their lengths; it goes with the last of them."""
    rig.pipeline.silent = True
    ends = [await begin(rig, HEAD % len(body) + body) for body in (BODY, b"{}", b"")]
    heads = {id(exchange.head) for exchange, _ in rig.pipeline.waiting}
    for end in ends:
        end.lose()
    rig.pipeline.waiting.clear()
    gc.collect()

    assert len(heads) == 1
    assert len(rig.server.heads) == 0


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_a_body_in_pieces_is_put_together(rig: LaneRig, size: int) -> None:
    """Without leaving the lane, and served with its last byte."""
    body = b'{"model":"' + b"m" * 3000 + b'"}'
    end = await begin(rig, HEAD % len(body))
    assert (rig.server.running, rig.pipeline.heard) == (1, [])
    for at in range(0, len(body), size):
        end.say(body[at : at + size])

    assert [each.body for each in rig.pipeline.heard] == [body]
    assert is_fast(end)
    assert rig.server.running == 0


async def test_a_body_that_comes_in_one_read_of_its_own_is_not_copied(rig: LaneRig) -> None:
    """Clients that write head and body apart are the usual ones."""
    rig.pipeline.silent = True
    end = await begin(rig, HEAD % len(BODY))
    body = bytes(bytearray(BODY))
    end.say(body)

    assert rig.pipeline.waiting[0][0].body is body


# -- giving away ---------------------------------------------------------------------------------------------

CUT = {
    "plain": POST,
    "plain_twice": POST + POST,
    "chunked": b"POST /v1/embeddings HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "health": HEALTH,
    "plain_and_health": POST + HEALTH,
    "health_and_plain": HEALTH + POST,
    "there_and_back": POST + HEALTH + POST,
    "an_expectation": (HEAD % len(BODY)).replace(b"\r\n\r\n", b"\r\nexpect: 100-continue\r\n\r\n") + BODY,
    "too_large": HEAD % 5000 + b"x" * 20,
    "no_http": POST + b"\x16\x03\x01 nonsense\r\n\r\n",
}


@pytest.mark.parametrize("said", CUT.values(), ids=CUT.keys())
async def test_a_conversation_cut_at_any_byte_is_the_same_on_both_lanes(said: bytes) -> None:
    """TCP has no messages, wherever the connection changes hands."""
    for at in range(1, len(said)):
        pieces = [said[:at], said[at:]]
        later = at % 2 == 0
        fast, slow = await observe(pieces, fast=True, later=later), await observe(pieces, fast=False, later=later)

        assert fast == slow, at
        assert fast.left == 0


async def test_an_odd_request_behind_plain_ones_takes_the_connection_along(rig: LaneRig) -> None:
    """One connection, counted once, and known to the server as what it is now."""
    end = await begin(rig, POST, HEALTH)

    assert end.sent.count(b"HTTP/1.1 200 OK") == 2
    assert not is_fast(end)
    assert rig.server.opened == 1
    [connection] = rig.server.clients
    assert isinstance(connection, Connection)
    end.hang_up()
    await rig.settle()
    assert rig.server.clients == []
    assert rig.deadlines.armed == 0


@pytest.mark.parametrize(
    "odd",
    [
        [HEALTH],
        [HEALTH[:9], HEALTH[9:]],
        [HEALTH, HEALTH],
        [b"DELETE /v1/files/f HTTP/1.1\r\nHost: h\r\n\r\n"],
        [b"GET /v1/models HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n", b"a", b"bc"],
        [POST[:20], POST[20:]],
    ],
    ids=["at_once", "in_two_reads", "twice", "without_a_body", "with_a_body_in_pieces", "a_plain_one_in_two_reads"],
)
async def test_a_connection_comes_back_with_the_next_plain_request(rig: LaneRig, odd: list[bytes]) -> None:
    """A client that asks for the models first is not in the slow lane for good."""
    end = await begin(rig, POST, *odd)
    assert not is_fast(end)
    end.say(POST)
    assert is_fast(end)
    await rig.settle()
    end.say(POST)

    assert [each.body for each in rig.pipeline.heard][-2:] == [BODY, BODY]
    assert end.sent.count(b"HTTP/1.1 200 OK") == 3 + (2 if odd == [HEALTH, HEALTH] else 1)
    assert (rig.server.opened, len(rig.server.clients), rig.server.running) == (1, 1, 0)
    assert len(asyncio.all_tasks()) == 1
    end.hang_up()
    assert rig.deadlines.armed == 0


@pytest.mark.parametrize("ticks", range(12))
async def test_a_client_that_answers_at_once_finds_one_lane_or_the_other(rig: LaneRig, ticks: int) -> None:
    """The next request may come before aiohttp's task has got round to waiting for it."""
    end = await begin(rig, POST)
    end.say(HEALTH)
    await rig.settle(ticks)
    end.say(POST)
    await rig.settle()
    end.say(POST)
    await rig.settle()

    assert end.sent.count(b"HTTP/1.1 200 OK") == 4
    assert (end.closed, rig.server.running, rig.pipeline.bugs) == (False, 0, [])
    end.hang_up()
    await rig.settle()
    assert (rig.server.clients, rig.deadlines.armed) == ([], 0)


@pytest.mark.parametrize(
    "odd",
    [
        [HEALTH + HEALTH[:9], HEALTH[9:]],
        [b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"],
        [HEALTH.replace(b"host: h", b"host: h\r\nx-one: a\tb")],
        [HEALTH.replace(b"host: h", b"host: h\r\nx-one: " + b"a" * 9000)],
        [b"\r\n" + HEALTH],
        [HEALTH, POST[:-1]],
    ],
    ids=["two_at_once", "chunks", "an_odd_value", "a_long_head", "a_line_break_in_front", "half_a_plain_one"],
)
async def test_a_connection_stays_away_where_the_end_of_its_last_request_is_in_doubt(
    rig: LaneRig, odd: list[bytes]
) -> None:
    """What the other parser may still hold must not be lost or taken for something else."""
    end = await begin(rig, *odd)
    end.say(POST)
    await rig.settle()
    if odd[-1] != POST[:-1]:
        assert not is_fast(end)
        assert rig.pipeline.heard[-1].body == BODY
    assert rig.server.running == 0
    await rig.close()


async def test_a_server_without_fast_lane_has_none() -> None:
    """The setting that turns it off."""
    rig = LaneRig(fast=False)
    end = await begin(rig, POST)

    assert not is_fast(end)
    assert end.sent.startswith(b"HTTP/1.1 200 OK")
    await rig.close()


async def test_what_comes_early_is_bounded_and_served_in_its_turn(rig: LaneRig) -> None:
    """A client that does not wait for its answers is read no further than a bound says."""
    rig.pipeline.silent = True
    end = await begin(rig, POST)
    filler = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 4000\r\n\r\n" + b"x" * 4000
    count = 0
    while end.reading:
        end.say(filler)
        count += 1
    assert EARLY_BYTES < count * len(filler) < EARLY_BYTES + 2 * len(filler)
    assert len(rig.server.deaf) == 1
    assert len(rig.pipeline.heard) == 1
    rig.pipeline.silent = False
    rig.pipeline.answer(*rig.pipeline.waiting.pop())
    await rig.settle(200)

    assert end.reading
    assert len(rig.pipeline.heard) == count + 1
    assert not rig.server.deaf
    await rig.close()


@both
async def test_whoever_does_not_read_is_not_served_the_next_one(fast: bool) -> None:
    """Else the answers to everything it pipelines would wait here."""
    rig = LaneRig(fast=fast)
    rig.pipeline.silent = True
    end = await begin(rig, POST)
    end.stop_taking()
    rig.pipeline.silent = False
    rig.pipeline.answer(*rig.pipeline.waiting.pop())
    end.say(POST)
    await rig.settle()
    assert len(rig.pipeline.heard) == 1
    end.take_again()
    await rig.settle()

    assert len(rig.pipeline.heard) == 2
    assert end.sent.count(b"HTTP/1.1 200 OK") == 2
    await rig.close()


# -- deadlines -----------------------------------------------------------------------------------------------


@both
async def test_a_connection_that_says_nothing_is_closed(fast: bool) -> None:
    """After the time that a head has, and it is counted."""
    rig = LaneRig(fast=fast)
    end = await begin(rig)
    rig.advance(9.9)
    assert not end.closed
    rig.advance(0.2)

    assert end.closed
    assert rig.server.closed_why == {"idle": 1}
    assert end.sent == b""


@pytest.mark.parametrize("since_s", [0.0, 1.0, 4.9, 5.1])
async def test_a_kept_connection_is_closed_when_it_was_idle_for_too_long(rig: LaneRig, since_s: float) -> None:
    """From the end of its last answer, to the tick, wherever the recurring look stood."""
    end = await begin(rig)
    rig.advance(since_s)
    end.say(POST)
    for _ in range(74):
        rig.advance(1.0)
    rig.advance(0.9)
    assert not end.closed
    rig.advance(0.2)

    assert end.closed
    assert rig.server.closed_why == {}


async def test_a_kept_connection_that_is_used_stays(rig: LaneRig) -> None:
    """Each request begins the time anew."""
    end = await begin(rig)
    for _ in range(10):
        end.say(POST)
        rig.advance(60.0)

    assert not end.closed


@both
@pytest.mark.parametrize(("step_s", "size", "why"), [(1.0, 100, "body_rate"), (5.0, 3000, "body_timeout")])
async def test_a_body_that_comes_too_slowly_is_refused(fast: bool, step_s: float, size: int, why: str) -> None:
    """Too few bytes in ten seconds, or not whole after a minute; the rest is thrown away."""
    rig = LaneRig(fast=fast, limits=BodyLimits(max_bytes=1 << 20, min_rate=500, timeout_s=60.0))
    end = await begin(rig, HEAD % 100_000)
    passed_s = 0.0
    while not end.sent:
        end.say(b"x" * size)
        await rig.settle()
        rig.advance(step_s)
        passed_s += step_s
        await rig.settle()

    assert end.sent.startswith(b"HTTP/1.1 408 ")
    assert 0.0 <= passed_s - (10.0 if why == "body_rate" else 60.0) <= step_s
    assert (end.finished, end.closed) == (True, False)
    assert rig.server.running == 0
    end.say(POST)
    await rig.settle()
    rig.advance(5.1)
    await rig.settle()
    assert end.closed
    assert rig.pipeline.heard == []
    await rig.close()


@both
async def test_a_client_that_takes_nothing_for_a_minute_is_cut_off(fast: bool) -> None:
    """Also while nothing runs any more."""
    rig = LaneRig(fast=fast)
    end = await begin(rig, POST)
    end.stop_taking()
    rig.advance(59.9)
    assert not end.closed
    rig.advance(0.2)

    assert end.aborted
    assert rig.server.closed_why == {"write_stall": 1}
    end.lose()
    await rig.close()


# -- refusals ------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("whole", [True, False])
async def test_a_refused_request_is_in_the_way_of_the_next_only_if_its_body_is(fast: bool, whole: bool) -> None:
    """Nobody waits for the body of a request that is refused by its head."""
    rig = LaneRig(fast=fast)
    rig.pipeline.refusal = REFUSAL
    end = await begin(rig, POST if whole else POST[:-5])

    assert end.sent.startswith(b"HTTP/1.1 401 ")
    assert (b"connection: close" in end.sent) is not whole
    assert end.finished is not whole
    assert rig.pipeline.accounted == [(401, "invalid_api_key")]
    end.say(POST)
    await rig.settle()
    assert len(rig.pipeline.accounted) == (2 if whole else 1)
    await rig.close()


@both
async def test_a_bug_is_a_500_and_the_end_of_the_connection(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gets an answer and the books get a line."""
    rig = LaneRig(fast=fast)

    def fail(_: Exchange) -> None:
        raise KeyError("secret-detail")

    monkeypatch.setattr(rig.pipeline, "admit", fail)
    end = await begin(rig, POST)

    assert end.sent.startswith(b"HTTP/1.1 500 ")
    assert b"secret-detail" not in end.sent
    assert end.closed
    assert rig.pipeline.bugs == ["edge: KeyError('secret-detail')"]
    assert rig.server.running == 0
    await rig.close()


# -- admissions that wait ------------------------------------------------------------------------------------


@pytest.fixture
async def answer(rig: LaneRig, monkeypatch: pytest.MonkeyPatch) -> asyncio.Future[None]:
    """What the admissions of the rig wait for."""
    future = asyncio.get_running_loop().create_future()
    admit = rig.pipeline.admit

    def admit_later(exchange: Exchange) -> Any:
        exchange.wait = future
        return admit(exchange)

    monkeypatch.setattr(rig.pipeline, "admit", admit_later)
    return future


@pytest.mark.parametrize("cut", [len(POST), len(POST) - 5, len(POST) - len(BODY)])
async def test_an_admission_that_waits_holds_up_the_reading_and_then_goes_on(
    rig: LaneRig, answer: asyncio.Future[None], cut: int
) -> None:
    """What has come of the body is kept; the rest comes afterwards."""
    end = await begin(rig, POST[:cut])
    assert not end.reading
    assert rig.pipeline.heard == []
    answer.set_result(None)
    await rig.settle()
    assert end.reading
    end.say(POST[cut:]) if cut < len(POST) else None
    assert [each.body for each in rig.pipeline.heard] == [BODY]
    assert end.sent.startswith(b"HTTP/1.1 200 OK")
    assert not rig.server.deaf


@pytest.mark.parametrize(("error", "status"), [(REFUSAL, 401), (KeyError("x"), 500)])
async def test_an_admission_that_fails_late_refuses_the_request(
    rig: LaneRig, answer: asyncio.Future[None], error: Exception, status: int
) -> None:
    """Whether by a refusal or by a fault of ours."""
    end = await begin(rig, POST[:-3])
    answer.set_exception(error)
    await rig.settle()

    assert end.sent.startswith(b"HTTP/1.1 %d " % status)
    assert end.finished
    assert rig.pipeline.heard == []
    assert len(rig.pipeline.accounted) == 1


async def test_a_client_that_leaves_while_its_admission_waits_is_not_served(
    rig: LaneRig, answer: asyncio.Future[None]
) -> None:
    """And what it waited for is left to those who wait for it, too."""
    end = await begin(rig, POST)
    end.lose()
    assert rig.pipeline.accounted == [(0, "client_gone")]
    answer.set_result(None)
    await rig.settle()

    assert rig.pipeline.heard == []
    assert (rig.server.running, rig.deadlines.armed) == (0, 0)


async def test_a_shutdown_does_not_wait_for_an_admission(rig: LaneRig, answer: asyncio.Future[None]) -> None:
    """No task outlives the server."""
    end = await begin(rig, POST)
    await rig.server.shutdown(0.001)

    assert end.closed
    assert len(asyncio.all_tasks()) == 1


# -- farewells -----------------------------------------------------------------------------------------------


@both
async def test_a_drain_closes_idle_connections_and_others_with_their_answer(fast: bool) -> None:
    """A kept connection is no reason to wait."""
    rig = LaneRig(fast=fast)
    rig.pipeline.silent = True
    silent, busy, partial = await begin(rig), await begin(rig, POST), await begin(rig, POST[:-3])
    rig.server.hush()
    assert silent.closed
    assert not busy.closed
    rig.pipeline.answer(*rig.pipeline.waiting.pop())
    partial.say(POST[-3:])
    await rig.settle()
    rig.pipeline.answer(*rig.pipeline.waiting.pop())
    await rig.settle()

    for end in (busy, partial):
        assert b"\r\nconnection: close\r\n" in end.sent
        assert end.closed
    assert rig.server.running == 0


@both
@pytest.mark.parametrize("heeded", [True, False])
async def test_a_client_that_closes_its_half_is_gone_unless_the_operator_says_otherwise(
    fast: bool, heeded: bool
) -> None:
    """With nothing owed to it, it is gone in any case."""
    rig = LaneRig(fast=fast, abort_on_half_close=heeded)
    rig.pipeline.silent = True
    idle, busy = await begin(rig), await begin(rig, POST)

    assert not idle.get_protocol().eof_received()  # type: ignore[attr-defined]
    assert bool(busy.get_protocol().eof_received()) is not heeded  # type: ignore[attr-defined]
    if not heeded:
        rig.pipeline.answer(*rig.pipeline.waiting.pop())
        await rig.settle()
        assert b"\r\nconnection: close\r\n" in busy.sent
        assert busy.closed
    await rig.close()


async def test_a_connection_that_was_given_away_leaves_nothing_behind(rig: LaneRig) -> None:
    """The lane that had it is no more."""
    end = rig.connect()
    lane = end.get_protocol()
    assert isinstance(lane, Lane)
    end.say(HEALTH)
    await rig.settle()

    assert lane.transport is None
    assert lane not in rig.server.clients
    lane.connection_lost(None)
    end.hang_up()
    await rig.settle()
    assert rig.deadlines.armed == 0
