"""What every transport does, on both loops: our own HTTP/1.1 and aiohttp's client behind the same seam.

What only a transport that keeps connections does is in ``unit/upstream/test_client.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from proxy.errors import Kind, ProxyError, Retry
from proxy.upstream.base import UpstreamRequest
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, run_ticks, wait_until
from tests.fakes.receiver import HandFedBody, Recorder
from tests.fakes.transports import CAPS, PATIENCE, Rig, SessionRig, WireRig, cancel, served
from tests.fakes.wire_server import (
    CHUNKED,
    CLOSE,
    DEAF,
    LAST_CHUNK,
    LISTEN,
    READ,
    READ_HEAD,
    RESET,
    Repeat,
    Step,
    Wait,
    WireServer,
    Write,
    answer,
    chunk,
)

ROOMY = CAPS._replace(body_bytes=40 * 1024 * 1024)


@pytest.fixture(params=["wire", "session"])
async def rig(request: pytest.FixtureRequest, frozen_clock: FrozenClock) -> AsyncIterator[Rig]:
    made = WireRig(frozen_clock, caps=ROOMY) if request.param == "wire" else SessionRig(frozen_clock, caps=ROOMY)
    yield made
    await made.transport.close()


async def settles(read: Callable[[], int]) -> None:
    """Until the kernel's buffers are full and the number stands still."""
    seen, still = -1, 0
    while still < 3:
        await run_ticks(500)
        still = still + 1 if read() == seen else 0
        seen = read()


async def answered(rig: Rig, raw: bytes | Sequence[bytes], method: str = "POST", *, ends: bool = False) -> Recorder:
    """What becomes of a raw answer, written in one or more pieces."""
    pieces = [raw] if isinstance(raw, bytes) else raw
    steps: list[Step] = [Write(piece) for piece in pieces]
    async with WireServer(served(*steps, *([CLOSE] if ends else []))) as server:
        return await rig.ask(server.origin, b"" if method in {"GET", "HEAD"} else b"hello", method)


async def refused(rig: Rig, raw: bytes, *, ends: bool = False) -> ProxyError:
    """The failure a raw answer leads to; the connection must be closed and the next request unharmed."""
    timeline = served(Write(raw), *([CLOSE] if ends else []))
    async with WireServer(timeline, [Repeat((READ, Write(answer(b"next"))))]) as server:
        error = await rig.fails(server.origin)
        await server.cut(1)
        assert (await rig.ask(server.origin)).body == b"next"
        assert server.opened == 2
        return error


# -- requests ------------------------------------------------------------------------------------------------------


async def test_request_reaches_the_upstream_with_its_headers_and_only_framing_added(rig: Rig) -> None:
    """The upstream sees the given method, target, headers and body, plus host and content-length."""
    async with WireServer() as server:
        await rig.ask(server.origin, b"body")
        (request,) = server.requests
        assert request.line == b"POST /v1/things?q=%2F HTTP/1.1"
        assert request.body == b"body"
        # Of its own accord a transport may only say that the connection ends.
        assert sorted(pair for pair in request.headers if pair != (b"connection", b"close")) == [
            (b"content-length", b"4"),
            (b"host", server.origin.authority.encode()),
            (b"x-one", b"1"),
            (b"x-two", b"2"),
        ]


async def test_get_without_body_is_sent_without_framing(rig: Rig) -> None:
    """A GET announces no body."""
    async with WireServer() as server:
        await rig.ask(server.origin, b"", "GET")
        assert [name for name, _ in server.requests[0].headers if name.startswith((b"content-", b"transfer-"))] == []


async def test_post_without_body_says_that_its_length_is_zero(rig: Rig) -> None:
    """A POST with an empty body still gets a content-length."""
    async with WireServer() as server:
        await rig.ask(server.origin, b"")
        assert server.requests[0].header(b"content-length") == [b"0"]


async def test_header_with_a_line_break_is_not_sent(rig: Rig) -> None:
    """A value that would become a header of its own fails before a byte leaves."""
    async with WireServer() as server:
        request = UpstreamRequest(server.origin, "POST", "/", [(b"x", b"a\r\ny: b")], b"")
        with pytest.raises(ProxyError) as caught:
            await rig.transport.exchange(request, Recorder(), PATIENCE)
        assert caught.value.kind is Kind.BUG
        assert server.requests == []


async def test_large_body_arrives_whole(rig: Rig) -> None:
    """Three megabytes go through although no buffer on the way holds them."""
    body = bytes(range(256)) * 12_000
    async with WireServer() as server:
        await rig.ask(server.origin, body)
        assert server.requests[0].body == body


async def test_streamed_body_with_length_arrives_whole(rig: Rig) -> None:
    """A body source with a length is sent with content-length."""
    async with WireServer() as server:
        await rig.ask(server.origin, HandFedBody(6).feed(b"abc", b"def", b""))
        assert (server.requests[0].body, server.requests[0].header(b"content-length")) == (b"abcdef", [b"6"])


async def test_streamed_body_without_length_arrives_in_chunks(rig: Rig) -> None:
    """A body source without a length is sent chunked, each piece as it comes."""
    whole = Gate("whole")
    async with WireServer([READ_HEAD, Wait(whole), Write(answer())]) as server:
        body = HandFedBody().feed(b"abc")
        exchange = rig.begin(server.origin, body)
        await whole.reached()
        await wait_until(lambda: server.wires[0].buffer == b"3\r\nabc\r\n", "the first piece came")
        body.feed(b"def", b"")
        await wait_until(lambda: server.wires[0].buffer.endswith(b"3\r\ndef\r\n0\r\n\r\n"), "the rest came")
        whole.open()
        await exchange
        assert server.requests[0].header(b"transfer-encoding") == [b"chunked"]


async def test_streamed_body_shorter_than_announced_fails_the_exchange(rig: Rig) -> None:
    """The upstream never gets a request whose length is a lie; the connection is cut."""
    async with WireServer() as server:
        error = await rig.fails(server.origin, HandFedBody(10).feed(b"abc", b""))
        assert (error.kind, error.why) == (Kind.BAD_REQUEST, "body_length")
        await server.cut(1)
        assert server.requests == []


async def test_streamed_body_longer_than_announced_sends_no_surplus(rig: Rig) -> None:
    """Bytes beyond the announced length, which would be read as the next request, stay here."""
    async with WireServer([DEAF]) as server:
        error = await rig.fails(server.origin, HandFedBody(3).feed(b"abc", b"GET / HTTP/1.1\r\n\r\n", b""))
        assert error.why == "body_length"


async def test_client_that_breaks_off_its_upload_ends_the_exchange_with_its_own_error(rig: Rig) -> None:
    """What the body source raises is what the exchange raises."""
    broken = ProxyError(Kind.CLIENT_GONE, "gone")
    async with WireServer() as server:
        with pytest.raises(ProxyError) as caught:
            await rig.ask(server.origin, HandFedBody().feed(b"abc", broken))
        assert caught.value is broken
        await server.cut(1)


async def test_upload_waits_while_the_upstream_does_not_read(rig: Rig) -> None:
    """A source is asked for more only as fast as the upstream takes it."""
    listens = Gate("listens")
    piece = b"x" * 256 * 1024
    async with WireServer([READ_HEAD, DEAF, Wait(listens), LISTEN, Wait(Gate("never"))]) as server:
        body = HandFedBody(len(piece) * 80)
        body.feed(*[piece] * 80, b"")
        exchange = rig.begin(server.origin, body)
        await listens.reached()
        await settles(lambda: body.reads)
        assert body.reads < 70
        listens.open()
        await wait_until(lambda: body.reads == 81, "the whole body was asked for")
        exchange.cancel()
        await asyncio.gather(exchange, return_exceptions=True)


async def test_answer_that_overtakes_the_upload_is_delivered_and_the_connection_closed(rig: Rig) -> None:
    """A refusal that comes before the body was sent is an answer; what is left of the body never follows it."""
    timeline: list[Step] = [READ_HEAD, Write(answer(b"no", "413 Too Large"))]
    async with WireServer(timeline, [Repeat((READ, Write(answer(b"next"))))]) as server:
        recorder = await rig.ask(server.origin, HandFedBody(100).feed(b"abc"))
        assert (recorder.head.status, recorder.body) == (413, b"no")
        await server.cut(1)
        assert (await rig.ask(server.origin)).body == b"next"


# -- responses -----------------------------------------------------------------------------------------------------


async def test_whole_answer_is_delivered_as_it_was_sent(rig: Rig) -> None:
    """Status, repeated headers in order with lower-case names, and the body's bytes."""
    lines = [b"Set-Cookie: a=1", b"X-Mixed-Case: V", b"set-cookie: b=2"]
    recorder = await answered(rig, answer(b"\x00\xff body", "207 Multi", lines))
    assert recorder.head.status == 207
    assert recorder.head.headers == [
        (b"set-cookie", b"a=1"),
        (b"x-mixed-case", b"V"),
        (b"set-cookie", b"b=2"),
        (b"content-length", b"7"),
    ]
    assert (recorder.body, recorder.ended, recorder.starts) == (b"\x00\xff body", True, 1)


async def test_compressed_answer_stays_compressed(rig: Rig) -> None:
    """Nobody decodes a body here; these bytes are no gzip at all."""
    recorder = await answered(rig, answer(b"not gzip", headers=[b"content-encoding: gzip"]))
    assert recorder.body == b"not gzip"


async def test_redirect_is_an_answer_like_any_other(rig: Rig) -> None:
    """A 307 is passed on and its location never visited."""
    recorder = await answered(rig, answer(b"", "307 Elsewhere", [b"location: http://127.0.0.1:1/"]))
    assert (recorder.head.status, recorder.head.get(b"location")) == (307, b"http://127.0.0.1:1/")


async def test_chunked_answer_arrives_without_its_framing(rig: Rig) -> None:
    """Chunks, extensions and trailers are framing; the body is what is between them."""
    raw = CHUNKED + chunk(b"one") + b"3;ext=1\r\ntwo\r\n" + b"0\r\nx-trailer: t\r\n\r\n"
    recorder = await answered(rig, raw)
    assert (recorder.body, recorder.ended) == (b"onetwo", True)
    assert recorder.head.get(b"x-trailer") == b""


async def test_stream_is_delivered_piece_by_piece(rig: Rig) -> None:
    """Each piece is pushed when it arrives, long before the answer ends."""
    second, end = Gate("second"), Gate("end")
    timeline = served(
        Write(CHUNKED + chunk(b"one")), Wait(second), Write(chunk(b"two")), Wait(end), Write(LAST_CHUNK)
    )
    async with WireServer(timeline) as server:
        recorder = Recorder()
        exchange = rig.begin(server.origin, recorder=recorder)
        await recorder.got(3)
        assert (recorder.body, recorder.ended) == (b"one", False)
        second.open()
        await recorder.got(6)
        assert not recorder.ended
        end.open()
        await exchange
        assert (recorder.body, recorder.ended) == (b"onetwo", True)


async def test_answer_without_length_ends_with_the_connection(rig: Rig) -> None:
    """A body that only the end of the connection delimits is complete when that comes."""
    recorder = await answered(rig, b"HTTP/1.1 200 OK\r\n\r\nall of it", ends=True)
    assert (recorder.body, recorder.ended) == (b"all of it", True)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_status_without_body_ends_with_its_head(rig: Rig, status: str) -> None:
    """A 304 may announce the length of a body that does not come."""
    length = b"content-length: 99\r\n" if status.startswith("304") else b""
    recorder = await answered(rig, b"HTTP/1.1 %b\r\n%b\r\n" % (status.encode(), length), "GET")
    assert (recorder.body, recorder.ended) == (b"", True)


async def test_answer_to_head_has_the_length_but_no_body(rig: Rig) -> None:
    """The announced body does not come, and is not waited for."""
    recorder = await answered(rig, b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", "HEAD")
    assert (recorder.head.get(b"content-length"), recorder.body, recorder.ended) == (b"99", b"", True)


async def test_informational_responses_are_skipped(rig: Rig) -> None:
    """100 and 103 before the answer are not the answer."""
    raw = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + answer(b"real")
    recorder = await answered(rig, raw)
    assert (len(recorder.heads), recorder.body) == (1, b"real")
    assert recorder.head.get(b"link") == b""


async def test_switching_protocols_is_refused(rig: Rig) -> None:
    """Nobody asked for another protocol, so a 101 is a bad response."""
    raw = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    assert (await refused(rig, raw)).kind is Kind.UPSTREAM_BAD_RESPONSE


BAD_RESPONSES = {
    "tls alert": b"\x15\x03\x01\x00\x02\x02\x0a",
    "not http": b"220 smtp.example ESMTP\r\n",
    "length and chunks": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
    "negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n",
    "nul in a value": b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
    "header bomb": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\ncontent-length: 0\r\n\r\n",
    "too many headers": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 300 + b"content-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("raw", BAD_RESPONSES.values(), ids=BAD_RESPONSES)
async def test_response_with_doubtful_framing_is_refused_and_its_connection_closed(rig: Rig, raw: bytes) -> None:
    """Whatever has no single meaning, or no bound, fails the exchange with nothing delivered."""
    error = await refused(rig, raw)
    assert (error.kind, error.retry) == (Kind.UPSTREAM_BAD_RESPONSE, Retry.NO)


async def test_bad_chunk_size_breaks_the_answer_off(rig: Rig) -> None:
    """Garbage where a chunk should be is never a clean end."""
    error = await refused(rig, CHUNKED + chunk(b"one") + b"zz\r\n")
    assert error.kind in {Kind.UPSTREAM_BAD_RESPONSE, Kind.UPSTREAM_RESET}


async def test_answer_announced_larger_than_the_cap_is_refused(rig: Rig) -> None:
    """The announced length decides before the body is read."""
    error = await refused(rig, b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\nabc")
    assert error.kind is Kind.UPSTREAM_TOO_LARGE


async def test_endless_answer_is_broken_off_at_the_cap(rig: Rig) -> None:
    """A body without announced length is counted."""
    piece = Write(b"x" * 512 * 1024)
    async with WireServer(served(Write(b"HTTP/1.1 200 OK\r\n\r\n"), Repeat((piece,)))) as server:
        recorder = Recorder()
        error = await rig.fails(server.origin, recorder=recorder)
        assert error.kind is Kind.UPSTREAM_TOO_LARGE
        assert len(recorder.body) <= ROOMY.body_bytes
        await server.cut(1)


TRUNCATED = {
    "length": b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
    "chunk": CHUNKED + b"a\r\nabc",
    "last chunk": CHUNKED + chunk(b"abc"),
    "trailer": CHUNKED + chunk(b"abc") + b"0\r\n",
}


@pytest.mark.parametrize("raw", TRUNCATED.values(), ids=TRUNCATED)
async def test_answer_that_stops_short_is_a_broken_one(rig: Rig, raw: bytes) -> None:
    """The end of the connection is no end of a message that announced more."""
    async with WireServer(served(Write(raw), CLOSE)) as server:
        recorder = Recorder()
        error = await rig.fails(server.origin, recorder=recorder)
        assert (error.kind, error.why, error.retry) == (Kind.UPSTREAM_RESET, "truncated", Retry.NO)
        assert recorder.body == b"abc"
        assert not recorder.ended


async def test_reset_in_the_middle_of_a_stream_is_a_broken_answer(rig: Rig) -> None:
    """What was delivered stays delivered, and the exchange fails."""
    goes = Gate("goes")
    async with WireServer(served(Write(CHUNKED + chunk(b"abc")), Wait(goes), RESET)) as server:
        recorder = Recorder()
        exchange = rig.begin(server.origin, recorder=recorder)
        await recorder.got(3)
        goes.open()
        with pytest.raises(ProxyError) as caught:
            await exchange
        assert (caught.value.kind, caught.value.why) == (Kind.UPSTREAM_RESET, "truncated")


# -- connections ---------------------------------------------------------------------------------------------------


async def test_reset_before_the_answer_is_not_retried_on_a_fresh_connection(rig: Rig) -> None:
    """The upstream had the request and may be charging for it: no second sending."""
    async with WireServer(served(RESET), served(Write(answer()))) as server:
        error = await rig.fails(server.origin)
        assert (error.kind, error.why, error.retry) == (Kind.UPSTREAM_RESET, "reset", Retry.NO)
        assert server.opened == 1


async def test_surplus_bytes_after_the_answer_harm_nobody(rig: Rig) -> None:
    """The answer is good, the connection is not: the planted response never meets the next request."""
    poisoned = served(Write(answer(b"one") + answer(b"poison")))
    async with WireServer(poisoned, served(Write(answer(b"two")))) as server:
        assert (await rig.ask(server.origin)).body == b"one"
        await server.cut(1)
        assert (await rig.ask(server.origin)).body == b"two"


async def test_surplus_bytes_that_come_late_harm_nobody(rig: Rig) -> None:
    """A connection that brought bytes after its answer serves nobody else."""
    later, never = Gate("later"), Gate("never")
    poisoned = served(Write(answer(b"one")), Wait(later), Write(answer(b"poison")), Wait(never))
    async with WireServer(poisoned, served(Write(answer(b"two")))) as server:
        await rig.ask(server.origin)
        later.open()
        await wait_until(lambda: never.arrivals or server.wires[0].cut.is_set(), "the surplus was written")
        await run_ticks()
        assert (await rig.ask(server.origin)).body == b"two"


async def test_refused_connection_may_be_tried_again(rig: Rig) -> None:
    """Nothing was sent, so the failure says SAME."""
    server = WireServer()
    async with server:
        origin = server.origin
    error = await rig.fails(origin)
    assert (error.kind, error.why, error.retry) == (Kind.UPSTREAM_UNREACHABLE, "refused", Retry.SAME)


async def test_closed_transport_refuses_new_exchanges_and_lets_running_ones_end(rig: Rig) -> None:
    """Draining loses nothing that is under way."""
    goes = Gate("goes")
    async with WireServer(served(Write(CHUNKED), Wait(goes), Write(chunk(b"end") + LAST_CHUNK))) as server:
        exchange = rig.begin(server.origin)
        await goes.reached()
        await rig.transport.close()
        error = await rig.fails(server.origin)
        assert error.kind is Kind.DRAINING
        goes.open()
        assert (await exchange).body == b"end"
        await server.cut(1)


# -- deadlines -----------------------------------------------------------------------------------------------------


async def timed_out(rig: Rig, exchange: asyncio.Task[Recorder], seconds: float) -> str:
    """The ``why`` of the time-out that comes after ``seconds`` and not a second before."""
    rig.advance(seconds - 1.0)
    await run_ticks()
    assert not exchange.done()
    rig.advance(1.1)
    with pytest.raises(ProxyError) as caught:
        await exchange
    assert caught.value.kind is Kind.UPSTREAM_TIMEOUT
    return caught.value.why


async def test_silent_upstream_runs_into_the_first_byte_deadline(rig: Rig) -> None:
    """No head within first_byte_s closes the connection and says so."""
    never = Gate("never")
    async with WireServer(served(Wait(never))) as server:
        exchange = rig.begin(server.origin)
        await never.reached()
        assert await timed_out(rig, exchange, PATIENCE.first_byte_s) == "first_byte"
        await server.cut(1)


async def test_head_that_is_never_finished_runs_into_the_first_byte_deadline(rig: Rig) -> None:
    """Half a head is no head."""
    never = Gate("never")
    async with WireServer(served(Write(b"HTTP/1.1 200 OK\r\nx:"), Wait(never))) as server:
        exchange = rig.begin(server.origin)
        await never.reached()
        assert await timed_out(rig, exchange, PATIENCE.first_byte_s) == "first_byte"


async def test_stream_that_stalls_runs_into_the_idle_deadline(rig: Rig) -> None:
    """The time between two reads is bounded, counted from the last one."""
    more, never = Gate("more"), Gate("never")
    timeline = served(Write(CHUNKED + chunk(b"a")), Wait(more), Write(chunk(b"b")), Wait(never))
    async with WireServer(timeline) as server:
        recorder = Recorder()
        exchange = rig.begin(server.origin, recorder=recorder)
        await recorder.got(1)
        rig.advance(15.0)
        more.open()
        await recorder.got(2)
        await run_ticks()
        assert await timed_out(rig, exchange, PATIENCE.idle_s) == "idle"
        await server.cut(1)


async def test_stream_that_never_ends_runs_into_the_total_deadline(rig: Rig) -> None:
    """An upstream that keeps talking is cut off at total_s."""
    gates = [Gate(f"piece {number}") for number in range(5)]
    steps = [step for gate in gates for step in (Wait(gate), Write(chunk(b"x")))]
    async with WireServer(served(Write(CHUNKED), *steps)) as server:
        recorder = Recorder()
        exchange = rig.begin(server.origin, recorder=recorder, patience=PATIENCE._replace(total_s=70.0))
        await recorder.got_head()
        for number, gate in enumerate(gates[:4], 1):
            rig.advance(15.0)
            gate.open()
            await recorder.got(number)
        assert await timed_out(rig, exchange, 10.0) == "total"


async def test_upload_that_the_upstream_does_not_take_runs_into_the_idle_deadline(rig: Rig) -> None:
    """The time between two accepted writes is bounded too."""
    never = Gate("never")
    piece = b"x" * 1024 * 1024
    async with WireServer([READ_HEAD, DEAF, Wait(never)]) as server:
        body = HandFedBody().feed(*[piece] * 50, b"")
        exchange = rig.begin(server.origin, body)
        await never.reached()
        await settles(lambda: body.reads)
        assert await timed_out(rig, exchange, PATIENCE.idle_s) == "idle"


# -- back-pressure -------------------------------------------------------------------------------------------------


async def test_paused_receiver_stops_the_upstream_and_resuming_delivers_the_rest(rig: Rig) -> None:
    """While paused at most one more read is delivered, and what the upstream can send is bounded by the kernel."""
    size = 30 * 1024 * 1024
    pieces = [Write(b"x" * 1024 * 1024)] * 30
    done = Gate("done")
    paused_at: list[int] = []

    def pause_once(recorder: Recorder) -> None:
        if not paused_at:
            paused_at.append(len(recorder.reads))
            recorder.pause()

    timeline = served(Write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size), *pieces, Wait(done))
    async with WireServer(timeline) as server:
        recorder = Recorder(pause_once)
        exchange = rig.begin(server.origin, recorder=recorder)
        await wait_until(lambda: paused_at, "the receiver paused")
        await settles(lambda: server.wires[0].step)
        assert len(recorder.reads) <= paused_at[0] + 1
        assert done.arrivals == 0
        rig.advance(100.0)
        await run_ticks()
        assert not exchange.done()
        recorder.resume()
        await exchange
        assert len(recorder.body) == size


async def test_control_of_an_ended_exchange_has_no_power_over_the_next(rig: Rig) -> None:
    """A late pause must not stop somebody else's answer."""
    async with WireServer() as server:
        first = await rig.ask(server.origin)
        second = Recorder(lambda _: first.pause())
        exchange = rig.begin(server.origin, recorder=second)
        await second.started()
        first.pause()
        await exchange
        assert second.ended


# -- cancellation --------------------------------------------------------------------------------------------------


async def test_exchange_cancelled_while_waiting_closes_its_connection_at_once(rig: Rig) -> None:
    """The upstream sees the end of the connection, and the next request gets another one."""
    never = Gate("never")
    async with WireServer(served(Wait(never)), served(Write(answer(b"two")))) as server:
        exchange = rig.begin(server.origin)
        await never.reached()
        await cancel(exchange)
        await server.cut(1)
        assert (await rig.ask(server.origin)).body == b"two"


async def test_exchange_cancelled_in_mid_stream_closes_its_connection_at_once(rig: Rig) -> None:
    """Nothing more is delivered after the cancellation."""
    never = Gate("never")
    async with WireServer(served(Write(CHUNKED + chunk(b"abc")), Wait(never))) as server:
        recorder = Recorder()
        exchange = rig.begin(server.origin, recorder=recorder)
        await recorder.got(3)
        await cancel(exchange)
        await server.cut(1)
        assert not recorder.ended


async def test_exchange_cancelled_while_uploading_closes_its_connection_at_once(rig: Rig) -> None:
    """The source is not asked again."""
    async with WireServer() as server:
        body = HandFedBody().feed(b"abc")
        exchange = rig.begin(server.origin, body)
        await wait_until(lambda: body.reads == 2, "the source was asked for its second piece")
        await cancel(exchange)
        await server.cut(1)
        assert body.reads == 2


async def test_exchange_cancelled_while_paused_closes_its_connection_at_once(rig: Rig) -> None:
    """A receiver that paused and left holds nothing open."""
    never = Gate("never")
    async with WireServer(served(Write(CHUNKED + chunk(b"abc")), Wait(never))) as server:
        recorder = Recorder(lambda recorder: recorder.pause())
        exchange = rig.begin(server.origin, recorder=recorder)
        await recorder.got_head()
        await cancel(exchange)
        await server.cut(1)


async def test_exchange_cancelled_before_it_began_sends_nothing(rig: Rig) -> None:
    """A cancellation in the first tick leaves no connection behind."""
    async with WireServer() as server:
        exchange = rig.begin(server.origin)
        await cancel(exchange)
        await run_ticks()
        assert server.requests == []
