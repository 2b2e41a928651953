"""Upstreams fail: everybody present shares the failure, nobody asks again, and no broken answer looks whole."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from proxy.flight.flight import Flight
from proxy.upstream.base import Origin
from tests.fakes.client import RawResponse
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, wait_until
from tests.fakes.upstream import Call
from tests.scenes.stage import KEY, MESSAGES, Stage, as_bytes, chat, completion, stream_events

SSE = [("content-type", "text/event-stream")]
JSON = [("content-type", "application/json")]
EVENTS = stream_events("one", "two", "three")
FIRST = as_bytes(EVENTS[:1])
WHOLE = as_bytes(EVENTS)


async def begin(call: Call) -> None:
    await call.send_head(200, SSE, chunked=True)


async def read_all(responses: list[RawResponse]) -> None:
    for response in responses:
        await response.read_end()


def closed_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class HeldConnector:
    """Takes every connection to a port nobody listens on, once `go` was called."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attempts = 0
        self._gate = Gate("connecting")
        self._port = closed_port()
        connector = stage.app.transport.wire._connector
        self._connect = connector.connect
        monkeypatch.setattr(type(connector), "connect", lambda _, *arguments: self._attempt(*arguments))

    async def _attempt(self, origin: Origin, connection: Any) -> None:
        self.attempts += 1
        await self._gate.wait()
        await self._connect(origin._replace(port=self._port), connection)

    def go(self) -> None:
        self._gate.open()


def error_codes(responses: list[RawResponse]) -> set[str]:
    return {response.json()["error"]["code"] for response in responses}


def assert_broken(responses: list[RawResponse], prefix: bytes, code: str) -> None:
    """Everybody has the same prefix and the same last event, and no ending that could pass for a clean one."""
    assert len({response.body for response in responses}) == 1
    assert responses[0].body.startswith(prefix)
    last = json.loads(responses[0].events()[-1].removeprefix(b"data: "))
    assert last["error"]["code"] == code
    assert b"[DONE]" not in responses[0].body[len(prefix) :]
    assert all(response.truncated and not response.ended for response in responses)


# -- no answer at all ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [False, True])
async def test_twenty_callers_of_an_unreachable_upstream_share_one_attempt(streams: bool) -> None:
    """TC080: one connection attempt, twenty answers with ids of their own, and no second herd."""
    async with Stage() as stage:
        stage.upstream.refuse_connections()
        responses = [await stage.ask(chat(stream=streams)) for _ in range(20)]
        await read_all(responses)
        await stage.at_rest()
        lines = await stage.access_lines(20)
        attempts = stage.app.transport.describe()["counts"]

        assert [response.status for response in responses] == [502] * 20
        assert len({response.header("x-sameflight-request-id") for response in responses}) == 20
        assert stage.app.table.started == stage.upstream.connections_made
        assert attempts["stale_retries"] == 0
        assert {line["status"] for line in lines} == {502}


async def test_callers_that_meet_before_a_refused_connection_make_one_attempt(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TC080 with the meeting held open: twenty wait for the very connection that is refused."""
    refuse = HeldConnector(stage, monkeypatch)
    responses = await stage.ask_many(20, chat())
    refuse.go()
    await read_all(responses)

    assert [response.status for response in responses] == [502] * 20
    assert error_codes(responses) == {"upstream_unreachable"}
    assert len({response.header("x-sameflight-request-id") for response in responses}) == 20
    assert refuse.attempts == 1
    assert stage.upstream.connections_made == 0
    assert stage.app.table.started == 1
    assert stage.series('upstream_connect_errors_total{reason="refused"}') == 1


async def test_a_reset_before_the_head_is_one_failure_for_all(stage: Stage) -> None:
    """The request may have had its effect, so it is not sent again."""
    responses = await stage.ask_many(20, chat())
    (await stage.upstream.next_call()).reset()
    await read_all(responses)

    assert [response.status for response in responses] == [502] * 20
    assert error_codes(responses) == {"upstream_reset"}
    assert stage.upstream.calls == 1


async def test_a_reused_connection_that_dies_under_a_request_is_replaced_unnoticed(stage: Stage) -> None:
    """TC084: one retry inside the flight, of which the subscribers know nothing; both attempts are counted."""
    warm = await stage.ask(chat("warm"))
    await (await stage.upstream.next_call()).answer_json(completion())
    await warm.read_end()
    responses = await stage.ask_many(5, chat())
    (await stage.upstream.next_call()).reset()
    await (await stage.upstream.next_call()).answer_json(completion("second attempt"))
    await read_all(responses)
    await stage.settled()

    assert {response.body for response in responses} == {responses[0].body}
    assert responses[0].json() == completion("second attempt")
    assert stage.upstream.calls == 3
    assert stage.series("upstream_requests_total") == 3
    assert stage.series("upstream_retries_total") == 1
    assert stage.app.table.started == 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 banana OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 7\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\nzz\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
    ],
    ids=["banner", "status", "lengths", "both framings", "chunk size", "informational flood"],
)
async def test_what_is_no_http_answer_is_a_bad_gateway_for_all(stage: Stage, garbage: bytes) -> None:
    """Nothing of it reaches a caller, and its connection is not used again."""
    responses = await stage.ask_many(3, chat())
    call = await stage.upstream.next_call()
    call.raw(garbage)
    call.done()
    await read_all(responses)

    assert [response.status for response in responses] == [502] * 3
    assert error_codes(responses) == {"upstream_bad_response"}
    assert sum(pool["idle"] for pool in stage.app.transport.describe()["pools"]) == 0
    assert stage.upstream.calls == 1


async def test_an_upstream_that_never_answers_is_a_timeout_for_all(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """By the route's patience, not by any caller's."""
    stage = frozen_stage
    responses = await stage.ask_many(3, chat())
    call = await stage.upstream.next_call()
    frozen_clock.advance(601.0)
    await read_all(responses)
    await call.client_gone()

    assert [response.status for response in responses] == [504] * 3
    assert error_codes(responses) == {"upstream_timeout"}


# -- failures the upstream tells -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 422, 425, 429, 500, 502, 503, 529])
async def test_a_failure_of_the_upstream_is_shared_as_it_is_and_asked_for_anew_by_newcomers(
    stage: Stage, status: int
) -> None:
    """TC081-TC083: one call for those present, one for those that come later; status, body and headers untouched."""
    refused = {"error": {"message": "no", "type": "some_error", "param": None, "code": "c"}}
    for _ in range(2):
        responses = await stage.ask_many(20, chat())
        call = await stage.upstream.next_call()
        await call.answer_json(refused, status=status, headers=[("x-should-retry", "false")])
        await read_all(responses)

        assert [response.status for response in responses] == [status] * 20
        assert all(response.json() == refused for response in responses)
        assert {response.header("x-should-retry") for response in responses} == {"false"}
    assert stage.upstream.calls == 2


async def test_a_shared_refusal_says_when_to_come_back(stage: Stage) -> None:
    """TC081: ``Retry-After`` is the upstream's for the leader, and up to a quarter later for each of the others, so
    that those who were refused together do not come back together."""
    responses = await stage.ask_many(20, chat())
    call = await stage.upstream.next_call()
    await call.answer_json({"error": {}}, status=429, headers=[("retry-after", "2"), ("x-ratelimit-reset", "9")])
    await read_all(responses)

    [leader] = [response for response in responses if response.header("retry-after-ms") is None]
    spread = {int(response.header("retry-after-ms") or 0) for response in responses if response is not leader}
    assert {response.header("retry-after") for response in responses} == {"2"}
    assert len(spread) > 10
    assert 2000 <= min(spread) <= max(spread) <= 2500
    assert stage.upstream.calls == 1


async def test_twenty_waiting_and_twenty_newcomers_make_two_calls_to_a_failing_upstream(stage: Stage) -> None:
    """TC082: a failure does not make a second herd, and the flight of the newcomers is one."""
    responses = await stage.ask_many(20, chat())
    first = await stage.upstream.next_call()
    await first.answer_json({"error": {"message": "boom"}}, status=500)
    await read_all(responses)
    newcomers = await stage.ask_many(20, chat())
    await (await stage.upstream.next_call()).answer_json({"error": {"message": "boom"}}, status=500)
    await read_all(newcomers)

    assert [response.status for response in responses + newcomers] == [500] * 40
    assert stage.upstream.calls == 2
    assert stage.series("flights_total") == 2


async def test_a_refused_stream_is_an_ordinary_error_answer(stage: Stage) -> None:
    """A caller of a stream whose upstream refuses gets the status and JSON, not an event."""
    refused = {"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}
    responses = await stage.ask_many(3, chat(stream=True))
    await (await stage.upstream.next_call()).answer_json(refused, status=429)
    await read_all(responses)

    assert [(response.status, response.json()) for response in responses] == [(429, refused)] * 3
    assert all(response.ended for response in responses)


# -- answers that break off ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_stream_that_breaks_off_between_events_ends_with_an_error_event(stage: Stage, how: str) -> None:
    """TC085: the same prefix for all, no retry, no last chunk."""
    responses = await stage.ask_many(3, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(FIRST)
    for response in responses:
        await response.read_until(FIRST)
    call.reset() if how == "reset" else call.close()
    await read_all(responses)
    lines = await stage.access_lines(3)

    assert_broken(responses, FIRST, "upstream_reset")
    assert {line["outcome"] for line in lines} == {"stream_broken"}
    assert stage.upstream.calls == 1


async def test_a_stream_that_breaks_off_inside_an_event_is_cut_without_a_word(stage: Stage) -> None:
    """TC085: an event of ours in the middle of one of theirs would be garbage."""
    responses = await stage.ask_many(3, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    cut = FIRST + FIRST[:20]
    await call.send(cut)
    for response in responses:
        await response.read_until(cut)
    call.reset()
    await read_all(responses)

    assert {response.body for response in responses} == {cut}
    assert all(response.truncated and not response.ended for response in responses)


async def test_a_joiner_behind_a_broken_stream_gets_a_flight_of_its_own(stage: Stage) -> None:
    """What broke is unmapped with its last byte."""
    [broken] = await stage.ask_many(1, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(FIRST)
    await broken.read_until(FIRST)
    call.reset()
    await broken.read_end()
    later = await stage.ask(chat(stream=True))
    await (await stage.upstream.next_call()).answer_sse(EVENTS)

    assert (await later.read_end()).body == WHOLE


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_whole_answer_shorter_than_its_length_is_a_bad_gateway_for_all(stage: Stage, how: str) -> None:
    """TC086: nothing of it had been sent, so it can still be told as what it is."""
    cached = [("x-sameflight-cache", "on")]
    responses = await stage.ask_many(3, chat(), headers=cached)
    call = await stage.upstream.next_call()
    await call.send_head(200, JSON, content_length=100)
    await call.send(b'{"choices": [' + b" " * 47)
    call.reset() if how == "reset" else call.close()
    await read_all(responses)
    again = await stage.ask(chat(), headers=cached)
    await (await stage.upstream.next_call()).answer_json(completion())
    await again.read_end()

    assert [response.status for response in responses] == [502] * 3
    assert error_codes(responses) == {"upstream_reset"}
    assert again.json() == completion()


async def test_a_long_answer_that_breaks_off_while_it_flows_looks_broken(stage: Stage) -> None:
    """TC086 for an answer too long to be held: short of its length, and the connection is closed."""
    responses = await stage.ask_many(2, chat())
    call = await stage.upstream.next_call()
    await call.send_head(200, JSON, content_length=2_000_000)
    await call.send(b" " * 1_500_000)
    for response in responses:
        await response.read_head()
    call.reset()
    await read_all(responses)

    assert [response.header("content-length") for response in responses] == ["2000000"] * 2
    assert all(response.truncated and len(response.body) < 2_000_000 for response in responses)


async def test_surplus_bytes_behind_an_answer_reach_nobody(stage: Stage) -> None:
    """TC087: the answer is what its length says; what follows could be meant for the next one, so the connection
    goes."""
    responses = await stage.ask_many(3, chat())
    call = await stage.upstream.next_call()
    body = json.dumps(completion()).encode()
    poison = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"
    call.raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
    call.raw(body + poison)
    call.done()
    await read_all(responses)
    again = await stage.ask(chat("next"))
    second = await stage.upstream.next_call()
    await second.answer_json(completion("clean"))
    await again.read_end()

    assert [response.json() for response in responses] == [completion()] * 3
    assert again.json() == completion("clean")
    assert second.connection_id == 2
    assert stage.app.transport.describe()["counts"]["poison_averted"] == 1


async def test_a_broken_chunk_in_a_stream_breaks_it_for_all(stage: Stage) -> None:
    """Framing that cannot be read ends the stream as broken."""
    responses = await stage.ask_many(3, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(FIRST)
    for response in responses:
        await response.read_until(FIRST)
    call.raw(b"not a chunk\r\n")
    call.done()
    await read_all(responses)

    assert_broken(responses, FIRST, "upstream_bad_response")


async def test_a_stream_that_falls_silent_is_ended_by_its_deadline_and_not_by_the_watchdog(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """TC094: the idle time-out is the route's."""
    stage = frozen_stage
    responses = await stage.ask_many(3, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(FIRST)
    for response in responses:
        await response.read_until(FIRST)
    frozen_clock.advance(121.0)
    await read_all(responses)
    await call.client_gone()

    assert_broken(responses, FIRST, "upstream_timeout")
    assert stage.series("flight_watchdog_total") == 0


async def test_an_endless_answer_is_broken_off_at_its_bound() -> None:
    """A shared answer beyond ``max_answer_bytes`` is not kept and not passed on for ever."""
    async with Stage(max_answer_bytes=300_000) as stage:
        responses = await stage.ask_many(2, chat(stream=True))
        call = await stage.upstream.next_call()
        await begin(call)
        filler = b": " + b"x" * 60_000 + b"\n\n"
        for _ in range(6):
            if not call.gone:
                await call.send(filler)
        await read_all(responses)
        await call.client_gone()
        await stage.at_rest()

        assert all(response.truncated for response in responses)
        assert stage.series('flights_total{ending="overrun"}') == 1


# -- in the dialect of the caller ------------------------------------------------------------------------------------


async def test_a_caller_of_claude_gets_failures_in_its_dialect(stage: Stage) -> None:
    """Before the head as JSON, after it as ``event: error``; both carry the request's id."""
    ask = {"model": "claude-sonnet-4-5", "max_tokens": 1, "messages": []}
    key = [("x-api-key", KEY), ("anthropic-version", "2023-06-01")]
    whole = await stage.ask(ask, path=MESSAGES, key=None, headers=key)
    (await stage.upstream.next_call()).reset()
    await whole.read_end()
    stream = await stage.ask({**ask, "stream": True}, path=MESSAGES, key=None, headers=key)
    call = await stage.upstream.next_call()
    await begin(call)
    started = b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'
    await call.send(started)
    await stream.read_until(started)
    call.reset()
    await stream.read_end()
    name, data = stream.events()[-1].split(b"\n", 1)

    assert (whole.status, whole.json()["type"], whole.json()["error"]["type"]) == (502, "error", "api_error")
    assert whole.json()["request_id"] == whole.header("request-id")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: "))["error"]["type"] == "api_error"
    assert stream.truncated


# -- one error for many ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("callers", [1, 30])
async def test_a_shared_error_does_not_collect_frames(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, callers: int
) -> None:
    """TC089: each caller renders its own answer; the traceback is as long for thirty as for one."""
    flights: list[Flight] = []
    forget = stage.app.table._forget
    monkeypatch.setattr(stage.app.table, "_forget", lambda flight: (flights.append(flight), forget(flight)))
    responses = await stage.ask_many(callers, chat())
    (await stage.upstream.next_call()).reset()
    await read_all(responses)
    await stage.settled()
    error = flights[0].error
    assert error is not None
    frames, trace = 0, error.__traceback__
    while trace is not None:
        frames, trace = frames + 1, trace.tb_next

    assert [response.status for response in responses] == [502] * callers
    assert frames <= 6


async def test_a_bug_in_production_is_an_internal_error_for_all_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever goes wrong inside, waiters get an answer, the map is clean, and the process serves on."""
    async with Stage() as stage:

        async def explode(*_: object) -> None:
            raise ZeroDivisionError("sk-secret-detail")

        with monkeypatch.context() as patch:
            patch.setattr(type(stage.app.transport), "exchange", explode)
            response = await stage.ask(chat())
            await response.read_end()
        await stage.settled()
        healthy = await stage.ask(chat())
        await (await stage.upstream.next_call()).answer_json(completion())
        await healthy.read_end()
        await stage.settled()

        assert response.status == 500
        assert b"ZeroDivision" not in response.body
        assert b"sk-secret-detail" not in response.body
        assert healthy.status == 200
        assert len(stage.app.table) == 0
        assert stage.series('bugs_total{where="production"}') == 1


# -- draining --------------------------------------------------------------------------------------------------------


async def test_a_drain_lets_flights_land_within_its_grace(stage: Stage) -> None:
    """TC159: what is in the air when the process is told to stop is delivered whole."""
    streams = await stage.ask_many(3, chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(FIRST)
    for response in streams:
        await response.read_until(FIRST)
    drain = asyncio.ensure_future(stage.app.drain(30.0))
    await wait_until(lambda: stage.app.server.draining, "the drain began")
    await call.send(WHOLE[len(FIRST) :])
    await call.end()
    await read_all(streams)
    await drain

    assert {response.body for response in streams} == {WHOLE}
    assert all(response.ended for response in streams)


async def test_a_drain_without_grace_ends_a_hundred_flights_with_an_error(stage: Stage) -> None:
    """TC159: an error event at a boundary, never a clean end; JSON errors for those without a head; nobody hangs."""
    streams = [await stage.ask(chat(str(number), stream=True)) for number in range(50)]
    waiting = [await stage.ask(chat(str(number))) for number in range(50)]
    await stage.attached(100)
    await stage.upstream.seen(100)
    for call in stage.upstream.history:
        if b'"stream":true' in call.body:
            await begin(call)
            await call.send(FIRST)
    for response in streams:
        await response.read_until(FIRST)
    await stage.app.drain(0.0)
    await read_all(streams + waiting)
    await stage.at_rest()

    assert [response.status for response in waiting] == [503] * 50
    assert error_codes(waiting) == {"draining"}
    assert_broken(streams, FIRST, "draining")
    assert stage.series('flights_total{ending="shutdown"}') == 100


async def test_a_drain_in_the_middle_of_an_event_cuts_without_a_word(stage: Stage) -> None:
    """No event of ours is put into one of theirs, and the stream does not end cleanly."""
    response = await stage.ask(chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await call.send(FIRST[:10])
    await response.read_until(FIRST[:10])
    await stage.app.drain(0.0)
    await response.read_end()

    assert response.body == FIRST[:10]
    assert response.truncated


async def test_idle_and_half_spoken_connections_end_with_the_beginning_of_a_drain(stage: Stage) -> None:
    """Nobody waits on a connection that nobody will read from any more."""
    idle, half = await stage.client(), await stage.client()
    warm = await stage.ask(chat(), client=idle)
    await (await stage.upstream.next_call()).answer_json(completion())
    await warm.read_end()
    await half.send(b"POST /v1/chat/comp")
    flying = await stage.ask(chat(stream=True))
    call = await stage.upstream.next_call()
    await begin(call)
    await flying.read_head()
    drain = asyncio.ensure_future(stage.app.drain(30.0))
    await idle.peer_closed()
    await half.peer_closed()
    await call.send(WHOLE)
    await call.end()
    await drain

    assert (await flying.read_end()).body == WHOLE
    assert flying.ended


async def test_a_request_whose_body_arrives_during_a_drain_is_served_and_its_connection_closed(
    stage: Stage,
) -> None:
    """It was admitted with its head; a new one is not, and the connection says so."""
    client = await stage.client()
    late = client.expect("POST")
    request = client.make_request("POST", "/v1/chat/completions", [("authorization", f"Bearer {KEY}")], chat("late"))
    await client.send(request[:-5])
    await wait_until(lambda: stage.app.server.running == 1, "the late request's head was read")
    drain = asyncio.ensure_future(stage.app.drain(30.0))
    await wait_until(lambda: stage.app.server.draining, "the drain began")
    await client.send(request[-5:])
    await (await stage.upstream.next_call()).answer_json(completion())
    await late.read_end()
    await client.peer_closed()
    await drain

    assert late.json() == completion()
    assert late.header("connection") == "close"
