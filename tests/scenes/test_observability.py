"""What the proxy says about itself: access lines, accounts, headers, metrics, health, and what it never says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from proxy.accounting.report import Report
from proxy.exchange import Exchange
from proxy.flight.flight import Flight
from proxy.pipeline import Pipeline
from proxy.policy.plan import Plan
from proxy.telemetry.series import SERIES
from tests.fakes.client import RawClient, RawResponse
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import wait_until
from tests.fakes.upstream import Call
from tests.scenes.stage import CHAT, KEY, OTHER_KEY, Stage, as_bytes, chat, completion, delta, stream_events

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")
CACHE = ("x-sameflight-cache", "on")
ALONE = ("x-sameflight-share", "off")

# gpt-4o-mini, in picodollars a token.
INPUT, OUTPUT = 150_000, 600_000
SSE = [("content-type", "text/event-stream")]


def dollars(tokens_in: int, tokens_out: int) -> float:
    """What the built-in price makes of so many tokens."""
    return (tokens_in * INPUT + tokens_out * OUTPUT) / 10**12


def usage_chunk(tokens_in: int, tokens_out: int) -> dict[str, Any]:
    """The chunk that reports a stream's usage."""
    total = tokens_in + tokens_out
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": total}
    return {**delta(""), "choices": [], "usage": usage}


def size_of(body: object) -> int:
    return len(json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode())


async def line_of(stage: Stage, response: RawResponse, count: int = 1) -> dict[str, Any]:
    """The access line of a response, once ``count`` lines are there."""
    lines = await stage.access_lines(count)
    return next(line for line in lines if line["request_id"] == response.header("x-sameflight-request-id"))


def plain(line: dict[str, Any]) -> dict[str, Any]:
    """A line without what differs with each run, after a look at its shape."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["ts"])
    assert re.fullmatch(r"req_[0-9a-f]{20}", line["request_id"])
    assert line["key_id"] is None or re.fullmatch(r"[0-9a-f]{12}", line["key_id"])
    return {name: value for name, value in line.items() if name not in ("ts", "request_id", "key_id")}


USUAL: dict[str, Any] = {
    "level": "info",
    "event": "request",
    "upstream_request_id": "",
    "trace_id": None,
    "provider": "openai",
    "route": "chat.completions",
    "model": "gpt-4o-mini",
    "stream": False,
    "status": 200,
    "outcome": "ok",
    "role": "leader",
    "flight_id": 1,
    "cache": None,
    "client_retry_count": 0,
    "queue_ms": 0.0,
    "ttft_ms": 0.0,
    "upstream_ms": 0.0,
    "total_ms": 0.0,
    "overhead_ms": 0.0,
    "bytes_in": size_of(chat()),
    "bytes_out": size_of(completion()),
    "tokens_in": 5,
    "tokens_out": 7,
    "tokens_saved": 0,
    "cost_usd": dollars(5, 7),
    "saved_usd": 0.0,
    "error_type": None,
}

REFUSED: dict[str, Any] = {
    **USUAL,
    "upstream_request_id": None,
    "role": "none",
    "flight_id": None,
    "tokens_in": None,
    "tokens_out": None,
    "cost_usd": 0.0,
}


# -- the access line ------------------------------------------------------------------------------------------


async def test_the_lines_of_a_leader_and_a_follower_say_who_paid_and_who_waited_how_long(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """Each field of both lines, times to the millisecond; the follower's are its own."""
    stage = frozen_stage
    leader = await stage.ask(chat(), headers=[TRACEPARENT])
    call = await stage.upstream.next_call()
    frozen_clock.advance(0.25)
    follower = await stage.ask(chat(), headers=[("x-stainless-retry-count", "2")])
    await stage.attached(2)
    frozen_clock.advance(0.5)
    await call.answer_json(completion(), headers=[("x-request-id", "req-of-the-vendor")])
    for response in (leader, follower):
        await response.read_end()
    lines = [plain(await line_of(stage, response, 2)) for response in (leader, follower)]

    shared = {**USUAL, "upstream_request_id": "req-of-the-vendor"}
    waited = dict.fromkeys(("ttft_ms", "upstream_ms", "total_ms"), 750.0)
    assert lines[0] == {**shared, **waited, "trace_id": TRACE}
    waited = dict.fromkeys(("ttft_ms", "upstream_ms", "total_ms"), 500.0)
    saved = {"cost_usd": 0.0, "saved_usd": dollars(5, 7), "tokens_saved": 12}
    assert lines[1] == {**shared, **waited, **saved, "role": "follower", "client_retry_count": 2}


async def test_the_line_of_a_stream_tells_its_first_byte_from_its_end(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """Head after 200 ms, first event after 500 ms, end after a second; usage from its last chunk."""
    stage = frozen_stage
    body = chat(stream=True)
    events = [delta("hello"), usage_chunk(40, 2), "[DONE]"]
    response = await stage.ask(body)
    call = await stage.upstream.next_call()
    frozen_clock.advance(0.2)
    await call.send_head(200, SSE, chunked=True)
    await response.read_head()
    frozen_clock.advance(0.3)
    await call.send(as_bytes(events[:1]))
    await response.read_until(b"hello")
    frozen_clock.advance(0.5)
    await call.send(as_bytes(events[1:]))
    await call.end()
    await response.read_end()

    expected = {**USUAL, "stream": True, "ttft_ms": 500.0, "upstream_ms": 200.0, "total_ms": 1000.0}
    expected |= {"bytes_in": size_of(body), "bytes_out": len(as_bytes(events))}
    expected |= {"tokens_in": 40, "tokens_out": 2, "cost_usd": dollars(40, 2)}
    assert plain(await line_of(stage, response)) == expected


async def test_the_wait_for_a_connection_is_queueing_and_not_the_upstreams_time() -> None:
    """With one connection to the upstream, the second request waits for the first."""
    clock = FrozenClock()
    async with Stage(clock=clock, pool_max_connections=1) as stage:
        first = await stage.ask(chat("1"))
        call = await stage.upstream.next_call()
        second = await stage.ask(chat("2"))
        await stage.attached(2)
        clock.advance(0.5)
        await call.answer_json(completion())
        call = await stage.upstream.next_call()
        clock.advance(0.125)
        await call.answer_json(completion())
        for response in (first, second):
            await response.read_end()
        line = plain(await line_of(stage, second, 2))

        times = {"queue_ms": 500.0, "upstream_ms": 125.0, "ttft_ms": 625.0, "total_ms": 625.0, "overhead_ms": 0.0}
        assert {name: line[name] for name in times} == times
        assert second.header("server-timing") == "queue;dur=500.00, upstream;dur=125.00, proxy;dur=0.00"
        await stage.at_rest()


async def test_the_line_of_a_cache_hit_says_what_it_saved(frozen_stage: Stage, frozen_clock: FrozenClock) -> None:
    """No flight, no upstream id, no cost: the price of the call that was not made is what it saved."""
    stage = frozen_stage
    first = await stage.ask(chat(), headers=[CACHE])
    await (await stage.upstream.next_call()).answer_json(completion())
    await first.read_end()
    await stage.settled()
    frozen_clock.advance(10.0)
    hit = await (await stage.ask(chat(), headers=[CACHE])).read_end()

    expected = {**USUAL, "role": "hit", "cache": "hit", "upstream_request_id": None, "flight_id": None}
    expected |= {"cost_usd": 0.0, "saved_usd": dollars(5, 7), "tokens_saved": 12}
    assert plain(await line_of(stage, hit, 2)) == expected
    assert hit.body == first.body


async def test_the_line_of_a_request_that_goes_alone_has_a_flight_and_a_cost(frozen_stage: Stage) -> None:
    """It shares with nobody and is accounted like a leader."""
    stage = frozen_stage
    response = await stage.ask(chat(), headers=[ALONE])
    await (await stage.upstream.next_call()).answer_json(completion())
    await response.read_end()

    assert plain(await line_of(stage, response)) == {**USUAL, "role": "alone"}


async def test_the_line_of_a_client_that_left_says_so(frozen_stage: Stage, frozen_clock: FrozenClock) -> None:
    """The status is the one that was sent, the outcome tells how it went on; what came until then is paid for."""
    stage = frozen_stage
    body = chat(stream=True)
    response = await stage.ask(body)
    call = await stage.upstream.next_call()
    await call.send_head(200, SSE, chunked=True)
    await call.send(as_bytes([delta("hello")]))
    await response.read_until(b"hello")
    frozen_clock.advance(0.75)
    await response._client.reset()
    await call.client_gone()

    expected = {**USUAL, "stream": True, "outcome": "client_gone", "error_type": "client_gone", "total_ms": 750.0}
    expected |= {"bytes_in": size_of(body), "bytes_out": len(as_bytes([delta("hello")]))}
    tokens_in = -(-size_of(body) // 4)
    expected |= {"tokens_in": tokens_in, "tokens_out": 1, "cost_usd": dollars(tokens_in, 1)}
    assert plain(await line_of(stage, response)) == expected


async def test_the_line_of_a_broken_stream_is_a_warning_with_its_reason(frozen_stage: Stage) -> None:
    """What was delivered until then was paid for: it is estimated where the upstream did not say."""
    stage = frozen_stage
    body = chat(stream=True)
    response = await stage.ask(body)
    call = await stage.upstream.next_call()
    await call.send_head(200, SSE, chunked=True)
    await call.send(as_bytes([delta("one"), delta("two")]))
    await response.read_until(b"two")
    call.reset()
    await response.read_end()
    line = plain(await line_of(stage, response))

    tokens_in = -(-size_of(body) // 4)
    expected = {**USUAL, "stream": True, "level": "warning", "outcome": "stream_broken", "error_type": "truncated"}
    expected |= {"bytes_in": size_of(body), "bytes_out": len(response.body)}
    expected |= {"tokens_in": tokens_in, "tokens_out": 2, "cost_usd": dollars(tokens_in, 2)}
    assert line == expected


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "bad_request"), (401, "invalid_api_key"), (413, "request_too_large")]
)
async def test_the_line_of_a_refused_request_names_the_reason(status: int, kind: str) -> None:
    """Refused before there was a plan: nothing is known of model and flight, and nothing was paid."""
    path = "/v1/../secrets" if status == 400 else CHAT
    async with Stage(
        clock=FrozenClock(), max_body_bytes=64, auth="required" if status == 401 else "passthrough"
    ) as stage:
        response = await (await stage.ask(chat("x" * 64), path=path)).read_end()
        line = plain(await line_of(stage, response))

        expected = {**REFUSED, "model": "", "status": status, "outcome": kind, "error_type": kind, "bytes_in": 0}
        if status == 400:
            expected |= {"provider": "none", "route": "none", "error_type": "target"}
        if status == 401:
            expected |= {"error_type": "key_required"}
        assert response.status == status
        assert line == {**expected, "bytes_out": len(response.body)}
        assert stage.upstream.calls == 0


async def test_the_line_of_a_vendors_refusal_is_no_error_of_ours(frozen_stage: Stage) -> None:
    """A 404 of the upstream passes as it is: an outcome of its own, and nothing was paid."""
    stage = frozen_stage
    answer = {"error": {"message": "The model does not exist", "code": "model_not_found"}}
    response = await stage.ask(chat())
    await (await stage.upstream.next_call()).answer_json(answer, status=404)
    await response.read_end()

    expected = {**USUAL, "status": 404, "outcome": "upstream_error", "bytes_out": size_of(answer)}
    expected |= {"tokens_in": None, "tokens_out": None, "cost_usd": 0.0}
    assert plain(await line_of(stage, response)) == expected


async def test_the_line_of_a_websocket_counts_its_messages(frozen_stage: Stage, frozen_clock: FrozenClock) -> None:
    """One line for the whole socket, when it is over."""
    stage = frozen_stage
    client = await stage.client()
    response = client.expect("GET")
    await open_socket(client, path="/v1/realtime?model=gpt-realtime", headers=[("authorization", f"Bearer {KEY}")])
    call = await stage.upstream.next_call(whole=False)
    accept_socket(call)
    await response.read_head()
    frozen_clock.advance(2.0)
    call.raw(b"\x81\x05hello" + b"\x88\x02\x03\xe8")
    await response.read_until(b"\x88\x02\x03\xe8")
    call.done()
    await client.send(b"\x88\x82\0\0\0\0\x03\xe8")
    await client.peer_closed()
    stage.upstream.failures.clear()  # frames are no HTTP to the scripted upstream

    expected = {**REFUSED, "role": "alone", "route": "realtime", "model": "", "status": 101, "bytes_in": 0}
    assert plain(await line_of(stage, response)) == {**expected, "bytes_out": 5, "total_ms": 2000.0}


async def open_socket(client: RawClient, path: str, headers: list[tuple[str, str]]) -> None:
    handshake = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")]
    handshake += [("sec-websocket-key", base64.b64encode(bytes(16)).decode())]
    await client.send(client.make_request("GET", path, [*handshake, *headers]))


def accept_socket(call: Call, *lines: bytes) -> None:
    key = (call.header("sec-websocket-key") or "").encode()
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    head = [b"HTTP/1.1 101 Switching Protocols", b"upgrade: websocket", b"connection: Upgrade"]
    call.raw(b"\r\n".join([*head, b"sec-websocket-accept: " + accept, *lines]) + b"\r\n\r\n")


@pytest.mark.parametrize("trace", ["", "00-short-b7ad6b7169203331-01", "nonsense", "00-" + "0" * 32])
async def test_a_traceparent_that_is_none_gives_no_trace(stage: Stage, trace: str) -> None:
    """A caller's nonsense does not become an id in the log."""
    response = await stage.ask(chat(), headers=[("traceparent", trace)])
    await (await stage.upstream.next_call()).answer_json(completion())
    await response.read_end()

    assert (await line_of(stage, response))["trace_id"] is None


async def test_the_level_of_the_log_decides_which_lines_are_written() -> None:
    """At warning, requests that went well are silent and failures are not."""
    async with Stage(log_level="warning") as stage:
        good, bad = await stage.ask(chat("good")), await stage.ask(chat("bad"))
        for call in [await stage.upstream.next_call() for _ in range(2)]:
            if b"good" in call.body:
                await call.answer_json(completion())
            else:
                call.reset()
        for response in (good, bad):
            await response.read_end()
        lines = await stage.access_lines(1)

        assert [(line["level"], line["outcome"]) for line in lines] == [("warning", "upstream_failed")]
        await stage.at_rest()


# -- the account ----------------------------------------------------------------------------------------------


async def test_one_call_with_a_leader_and_nine_followers_is_paid_once(stage: Stage) -> None:
    """TC108 (`first`), TC114: the sum over all lines is the price of one call, and nine calls were saved."""
    responses = await stage.ask_many(10, chat())
    await (await stage.upstream.next_call()).answer_json(completion(prompt_tokens=1000, completion_tokens=100))
    for response in responses:
        await response.read_end()
    lines = await stage.access_lines(10)
    price = dollars(1000, 100)

    assert sorted(line["cost_usd"] for line in lines) == [0.0] * 9 + [price]
    assert sorted(line["saved_usd"] for line in lines) == [0.0] + [price] * 9
    assert sum(line["tokens_saved"] for line in lines) == 9 * 1100
    assert stage.series("collapse_saved_total") == 9
    assert stage.series("cost_usd_total") == price
    assert stage.series("saved_usd_total") == pytest.approx(9 * price, rel=1e-12)
    assert stage.series("tokens_total") == 1100
    assert stage.series("tokens_saved_total") == 9 * 1100


async def test_a_payer_that_leaves_after_the_head_leaves_its_bill_to_nobody(stage: Stage) -> None:
    """TC109: it was the payer when the head came and stays it; the call is on the books once."""
    leader, *followers = await stage.ask_many(3, chat(stream=True))
    call = await stage.upstream.next_call()
    await call.send_head(200, SSE, chunked=True)
    await call.send(as_bytes([delta("a")]))
    await leader.read_until(b'"a"')
    await leader._client.reset()
    await stage.attached(2)
    await call.send(as_bytes([usage_chunk(10, 20), "[DONE]"]))
    await call.end()
    for follower in followers:
        await follower.read_end()
    lines = {line["request_id"]: line for line in await stage.access_lines(3)}
    stayed = [lines[follower.header("x-sameflight-request-id") or ""] for follower in followers]

    assert [(line["cost_usd"], line["saved_usd"]) for line in stayed] == [(0.0, dollars(10, 20))] * 2
    assert stage.series("cost_usd_total") == dollars(10, 20)


async def test_when_the_leader_leaves_before_the_head_the_next_in_line_pays(stage: Stage) -> None:
    """The payer is fixed when the head comes: the earliest that is attached then."""
    leader, second, third = await stage.ask_many(3, chat())
    call = await stage.upstream.next_call()
    await leader._client.reset()
    await stage.attached(2)
    await call.answer_json(completion())
    for response in (second, third):
        await response.read_end()
    lines = {line["request_id"]: line for line in await stage.access_lines(3)}
    costs = [lines[each.header("x-sameflight-request-id") or ""]["cost_usd"] for each in (second, third)]

    assert costs == [dollars(5, 7), 0.0]
    assert sum(line["cost_usd"] for line in lines.values()) == stage.series("cost_usd_total") == dollars(5, 7)


async def test_a_call_that_everybody_left_before_its_head_is_on_the_books(stage: Stage) -> None:
    """TC110: an answer that came for nobody was paid for all the same; no caller's line has it, the metrics have."""
    responses = await stage.ask_many(2, chat())
    call = await stage.upstream.next_call()
    for response in responses:
        await response._client.reset()
    await stage.attached(0)
    await call.answer_json(completion())
    await stage.settled()
    lines = await stage.access_lines(2)

    assert [line["cost_usd"] for line in lines] == [0.0, 0.0]
    assert stage.series("cost_usd_total") == dollars(5, 7)
    assert stage.series('linger_total{result="finished"}') == 1


async def test_an_upstream_that_reports_no_usage_is_estimated_once(stage: Stage) -> None:
    """TC111: one estimate for the flight, from its bytes, and marked as one."""
    answer = {name: value for name, value in completion().items() if name != "usage"}
    responses = await stage.ask_many(3, chat())
    await (await stage.upstream.next_call()).answer_json(answer)
    for response in responses:
        await response.read_end()
    lines = await stage.access_lines(3)
    tokens_in, tokens_out = -(-size_of(chat()) // 4), -(-size_of(answer) // 4)

    assert {(line["tokens_in"], line["tokens_out"]) for line in lines} == {(tokens_in, tokens_out)}
    assert sum(line["cost_usd"] for line in lines) == dollars(tokens_in, tokens_out)
    assert stage.series('tokens_total{direction="input",model="gpt-4o-mini",source="estimated"}') == tokens_in
    assert stage.series('tokens_total{direction="output",model="gpt-4o-mini",source="estimated"}') == tokens_out
    assert stage.series("cost_usd_total") == dollars(tokens_in, tokens_out)


class Flown(NamedTuple):
    """One flight as it was booked."""

    picodollars: int
    payer_stayed: bool


async def test_over_a_random_run_every_call_is_paid_exactly_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """TC170: with failures, leavers, hits and followers, the lines and the metrics add up to the upstream's bill."""
    dice = random.Random(170)
    async with Stage(linger_s=0) as stage:
        billed: list[int] = []
        unpaid: list[int] = []
        flown = type(stage.app.books).flown

        def see(books: Any, flight: Flight, report: Report) -> None:
            flown(books, flight, report)
            if report.usage is not None and report.attempts:
                price = report.usage.input_tokens * INPUT + report.usage.output_tokens * OUTPUT
                billed.append(price)
                if not flight.is_paid:
                    unpaid.append(price)

        monkeypatch.setattr(type(stage.app.books), "flown", see)
        for number in range(120):
            await one_round(stage, dice, number)
        await stage.at_rest()
        asked = len(stage.clients)
        lines = await stage.access_lines(asked)
        bill = sum(billed) / 10**12

        assert len(lines) == asked
        assert len(billed) >= 30
        assert {line["outcome"] for line in lines} >= {"ok", "client_gone", "stream_broken", "upstream_failed"}
        assert {line["role"] for line in lines} == {"leader", "follower", "hit", "alone"}
        assert stage.series("cost_usd_total") == pytest.approx(bill, rel=1e-9)
        assert sum(line["cost_usd"] for line in lines) == pytest.approx(bill - sum(unpaid) / 10**12, rel=1e-9)
        assert sum(line["saved_usd"] for line in lines) == pytest.approx(stage.series("saved_usd_total"), rel=1e-9)
        assert sum(line["tokens_saved"] for line in lines) == stage.series("tokens_saved_total")
        assert all(not (line["cost_usd"] and line["saved_usd"]) for line in lines)
        paying = [line["flight_id"] for line in lines if line["cost_usd"]]
        assert len(paying) == len(set(paying)), "two lines paid for one flight"
        followed = [line for line in lines if line["role"] == "follower"]
        assert stage.series("collapse_saved_total") == len(followed)


async def one_round(stage: Stage, dice: random.Random, number: int) -> None:
    """Some callers ask for the same; the upstream answers in one of many ways; some of them leave."""
    streams = dice.random() < 0.5
    headers = dice.choice([[], [], [CACHE], [CACHE], [ALONE]])
    body = chat(str(number // 8) if headers == [CACHE] else f"n{number}", **({"stream": True} if streams else {}))
    before, calls = stage.app.table.subscribers, stage.upstream.calls
    count = 1 if headers == [ALONE] else dice.randint(1, 5)
    responses = [await stage.ask(body, headers=headers) for _ in range(count)]
    table = stage.app.table
    await wait_until(
        lambda: table.subscribers > before or all(response.status for response in responses), "a flight or hits"
    )
    if table.subscribers:
        await stage.attached(before + len(responses))
        await wait_until(lambda: stage.upstream.calls > calls, "the call was made")
        await one_answer(stage, dice, await stage.upstream.next_call(), responses, streams=streams)
    for response in responses:
        if not response._client.peer_ended:
            await response.read_end()


async def one_answer(
    stage: Stage, dice: random.Random, call: Call, responses: list[RawResponse], *, streams: bool
) -> None:
    leavers = [response for response in responses if dice.random() < 0.3]
    early = dice.random() < 0.5
    tokens = dice.randint(1, 1000), dice.randint(1, 1000)
    if early and await leave(call, leavers, responses):
        return
    how = dice.choice(["good", "good", "good", "no usage", "refused", "reset"])
    if how == "reset" and not streams:
        await break_off(stage, call, next(response for response in responses if not response._client.peer_ended))
        return
    if how == "refused":
        await call.answer_json({"error": {"message": "no"}}, status=400)
        return
    if not streams:
        answer = completion("x", *tokens)
        if how == "no usage":
            del answer["usage"]
        await call.answer_json(answer)
        return
    await call.send_head(200, SSE, chunked=True)
    await call.send(as_bytes([delta("begun")]))
    staying = [response for response in responses if not response._client.peer_ended]
    for response in staying:
        await response.read_until(b"begun")
    if not early and await leave(call, leavers, responses):
        return
    if how == "reset":
        call.reset()
        return
    await call.send(as_bytes([*([] if how == "no usage" else [usage_chunk(*tokens)]), "[DONE]"]))
    await call.end()


async def leave(call: Call, leavers: list[RawResponse], responses: list[RawResponse]) -> bool:
    """Whether nobody is left, in which case the upstream has been told."""
    for response in leavers:
        await response._client.reset()
    if len(leavers) < len(responses):
        return False
    await call.client_gone()
    return True


async def break_off(stage: Stage, call: Call, response: RawResponse) -> None:
    """Reset the connection, and again if the request is repeated because that connection had been used before."""
    call.reset()
    await wait_until(lambda: response.status or stage.upstream.waiting, "an answer or another attempt")
    if stage.upstream.waiting:
        (await stage.upstream.next_call()).reset()


# -- response headers -----------------------------------------------------------------------------------------


def said(response: RawResponse) -> dict[str, str | None]:
    """What an answer says of the way it went."""
    assert re.fullmatch(r"req_[0-9a-f]{20}", response.header("x-sameflight-request-id") or "")
    names = ("cache-status", "age", "x-response-time", "server-timing")
    for name in (*names[1:], "x-sameflight-request-id", "date", "content-type"):
        assert len(response.header_values(name)) <= 1, f"{name} stands there twice"
    # A list to which every cache on the way adds itself (RFC 9211, 2): ours is the last.
    caches = response.header_values("cache-status")
    return {name: response.header(name) for name in names} | {"cache-status": caches[-1] if caches else None}


def timing(queue: float, upstream: float, proxy: float) -> str:
    return f"queue;dur={queue:.2f}, upstream;dur={upstream:.2f}, proxy;dur={proxy:.2f}"


async def test_every_kind_of_answer_says_how_it_came_about(frozen_stage: Stage, frozen_clock: FrozenClock) -> None:
    """TC105, TC107: leader, follower, hit with its age, alone, and an error of ours."""
    stage = frozen_stage
    leader, follower = await stage.ask_many(2, chat(), headers=[CACHE])
    call = await stage.upstream.next_call()
    frozen_clock.advance(0.125)
    await call.answer_json(completion(), headers=[("age", "77"), ("cache-status", "vendor; hit")])
    for response in (leader, follower):
        await response.read_end()
    await stage.settled()
    frozen_clock.advance(10.0)
    hit = await (await stage.ask(chat(), headers=[CACHE])).read_end()
    alone = await stage.ask(chat(), headers=[ALONE])
    await (await stage.upstream.next_call()).answer_json(completion())
    await alone.read_end()
    refused = await (await stage.ask(b"{")).read_end()

    took = {"x-response-time": "125.0ms", "server-timing": timing(0, 125, 0)}
    at_once = {"x-response-time": "0.0ms", "server-timing": timing(0, 0, 0)}
    found = re.fullmatch(r"sameflight; hit; ttl=(\d+)", said(hit)["cache-status"] or "")
    assert found
    assert 260 <= int(found[1]) <= 320
    assert said(hit) == {**at_once, "age": "10", "cache-status": found[0]}
    assert said(alone) == {**at_once, "age": None, "cache-status": "sameflight; fwd=bypass"}
    assert said(refused) == {**at_once, "age": None, "cache-status": None}
    # How old the answer was when it came is the vendor's word on the one call that was made.
    assert said(leader) == {**took, "age": "77", "cache-status": "sameflight; fwd=miss; stored"}
    assert said(follower) == {**took, "age": None, "cache-status": "sameflight; fwd=miss; collapsed; stored"}


async def test_every_response_has_its_own_request_id_and_all_share_the_vendors(stage: Stage) -> None:
    """TC104: five callers, five ids of ours, one of the upstream's."""
    responses = await stage.ask_many(5, chat())
    call = await stage.upstream.next_call()
    await call.answer_json(completion(), headers=[("x-request-id", "req-of-the-vendor")])
    for response in responses:
        await response.read_end()

    assert len({response.header("x-sameflight-request-id") for response in responses}) == 5
    assert {response.header("x-request-id") for response in responses} == {"req-of-the-vendor"}


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
async def test_the_vendors_rate_limits_reach_the_leader_alone(stage: Stage, streams: bool) -> None:
    """TC106: they describe the one call that was made, and nobody else has made one."""
    limits = [
        ("x-ratelimit-remaining-requests", "41"),
        ("anthropic-ratelimit-tokens-remaining", "9"),
        ("openai-processing-ms", "12"),
    ]
    leader, follower = await stage.ask_many(2, chat(stream=streams))
    call = await stage.upstream.next_call()
    if streams:
        await call.answer_sse(stream_events("hi"), headers=[*limits, ("retry-after", "3")])
    else:
        await call.answer_json(completion(), headers=[*limits, ("retry-after", "3")])
    for response in (leader, follower):
        await response.read_end()

    assert [leader.header(name) for name, _ in limits] == ["41", "9", "12"]
    assert [follower.header(name) for name, _ in limits] == [None] * 3
    assert [response.header("retry-after") for response in (leader, follower)] == ["3", "3"]


async def test_what_happens_before_the_parser_understands_anything_has_a_request_id_too(stage: Stage) -> None:
    """Bytes that are no request are answered with an id that can be asked for."""
    client = await stage.client()
    response = client.expect()
    await client.send(b"NONSENSE\r\n\r\n")
    await response.read_end()

    assert response.status == 400
    assert re.fullmatch(r"req_[0-9a-f]{20}", response.header("x-sameflight-request-id") or "")
    assert stage.series('rejections_total{reason="not_http"}') == 1


# -- the admin port -------------------------------------------------------------------------------------------


async def admin(stage: Stage, path: str, method: str = "GET", **headers: str) -> RawResponse:
    client = await RawClient.connect_url(stage.app.admin_url)
    async with client:
        return await client.request(method, path, list(headers.items()))


async def test_flights_shows_what_is_in_the_air_and_no_more_than_a_prefix_of_its_key(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """State, callers, bytes and age; the key is a fingerprint of what was asked, so eight digits are enough."""
    stage = frozen_stage
    before = (await admin(stage, "/flights")).json()
    responses = await stage.ask_many(3, chat(stream=True))
    call = await stage.upstream.next_call()
    frozen_clock.advance(1.5)
    opening = (await admin(stage, "/flights")).json()
    await call.send_head(200, SSE, chunked=True)
    await call.send(as_bytes([delta("hello")]))
    for response in responses:
        await response.read_until(b"hello")
    streaming = (await admin(stage, "/flights")).json()
    await call.send(as_bytes(["[DONE]"]))
    await call.end()
    for response in responses:
        await response.read_end()
    await stage.settled()
    after = (await admin(stage, "/flights")).json()

    size = len(as_bytes([delta("hello")]))
    (flight,) = opening["flights"]
    assert re.fullmatch(r"[0-9a-f]{8}", flight.pop("key"))
    nothing = {"paused": 0, "bytes": 0, "retained_bytes": 0, "ending": None}
    assert flight == {**nothing, "flight": 1, "state": "OPENING", "subscribers": 3, "age_s": 1.5}
    (flight,) = streaming["flights"]
    assert (flight["state"], flight["bytes"], flight["retained_bytes"]) == ("STREAMING", size, size)
    assert [(view["flights"], view["keys"], view["retained_bytes"]) for view in (before, after)] == [([], 0, 0)] * 2
    (pool,) = streaming["upstream"]["pools"]
    assert (pool["busy"], pool["idle"]) == (1, 0)


@pytest.mark.parametrize("path", ["/livez", "/health/liveliness", "/health/liveness", "/startupz"])
async def test_alive_and_started_are_true_from_the_start_to_the_end_of_a_drain(stage: Stage, path: str) -> None:
    """A process that drains is alive: nobody may kill it for that."""
    serving = await admin(stage, path)
    await stage.app.drain(0.0)
    draining = await admin(stage, path)

    assert (serving.status, draining.status) == (200, 200)
    assert serving.json()["status"] == draining.json()["status"] == "ok"
    assert serving.header("cache-control") == "no-store"


@pytest.mark.parametrize("path", ["/readyz", "/health", "/health/readiness"])
async def test_a_drain_takes_the_process_out_of_service_at_once(stage: Stage, path: str) -> None:
    """Ready says "I accept"; it stops being true before the first stream has ended."""
    response = await stage.ask(chat(stream=True))
    call = await stage.upstream.next_call()
    await call.send_head(200, SSE, chunked=True)
    await response.read_head()
    serving = await admin(stage, path)
    drain = asyncio.ensure_future(stage.app.drain(5.0))
    await wait_until(lambda: stage.app.phase == "draining", "the drain began")
    draining = await admin(stage, path)
    await call.send(as_bytes(stream_events("x")))
    await call.end()
    await response.read_end()
    await drain

    assert (serving.status, serving.json()) == (200, {"status": "ok", "phase": "serving"})
    assert (draining.status, draining.json()) == (503, {"status": "unavailable", "phase": "draining"})
    assert response.ended


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/metrics", "/flights"])
async def test_head_answers_like_get_without_a_body_and_nothing_else_is_taken(stage: Stage, path: str) -> None:
    """Load balancers probe with HEAD; nothing on this port changes anything."""
    got, head, post = [await admin(stage, path, method) for method in ("GET", "HEAD", "POST")]

    assert (got.status, head.status, post.status) == (200, 200, 405)
    assert head.header("content-type") == got.header("content-type")
    assert head.body == b""
    assert got.body


async def test_an_unknown_page_names_those_that_there_are(stage: Stage) -> None:
    """A person at a shell finds the way; the data port's paths are not here."""
    response = await admin(stage, "/v1/models")

    assert response.status == 404
    assert {"/livez", "/readyz", "/startupz", "/metrics", "/flights"} <= set(response.json()["pages"])


async def test_probes_on_the_data_port_are_no_traffic(stage: Stage) -> None:
    """A load balancer that sees only the data port can ask there, and fills neither log nor metrics."""
    answers = [await (await stage.ask(None, path="/health", method=each)).read_end() for each in ("GET", "HEAD")]

    assert [answer.status for answer in answers] == [200, 200]
    assert stage.series("requests_total") == 0
    assert stage._lines() == []


# -- metrics --------------------------------------------------------------------------------------------------

_SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="[^"\\\n]*",?)*)\})? (\S+)')
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\\n]*)"')

Labels = frozenset[tuple[str, str]]


class Exposed:
    """One family of the exposition."""

    def __init__(self, name: str, about: str) -> None:
        self.name = name
        self.help = about
        self.type = ""
        self.samples: dict[tuple[str, Labels], float] = {}


def parse_exposition(text: str) -> dict[str, Exposed]:
    """Prometheus' text format, version 0.0.4, read strictly: HELP, TYPE and samples of a family stand together, no
    sample twice, histograms cumulative with `+Inf` equal to the count. Raises ``AssertionError``."""
    assert text.endswith("\n")
    families: dict[str, Exposed] = {}
    family = Exposed("", "")
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if line.startswith("# HELP "):
            name, _, about = rest.removeprefix("HELP ").partition(" ")
            assert name not in families, f"{name} comes twice"
            assert about, f"{name} says nothing"
            family = families[name] = Exposed(name, about)
        elif line.startswith("# TYPE "):
            name, _, family.type = rest.removeprefix("TYPE ").partition(" ")
            assert name == family.name, f"TYPE of {name} under {family.name}"
            assert family.type in ("counter", "gauge", "histogram")
        else:
            assert kind != "#", f"a comment of another kind: {line!r}"
            found = _SAMPLE.fullmatch(line)
            assert found, f"no sample: {line!r}"
            suffix = found[1].removeprefix(family.name)
            assert found[1].startswith(family.name), f"{found[1]} under {family.name}"
            assert suffix in (("_bucket", "_count", "_sum") if family.type == "histogram" else ("",)), line
            pairs = _LABEL.findall(found[2] or "")
            labels = frozenset(pairs)
            assert len(labels) == len({name for name, _ in pairs}) == len(pairs), f"a label twice: {line!r}"
            assert (suffix, labels) not in family.samples, f"a sample twice: {line!r}"
            family.samples[suffix, labels] = float(found[3])
    for each in families.values():
        check_histogram(each)
    return families


def check_histogram(family: Exposed) -> None:
    counts = {labels: value for (suffix, labels), value in family.samples.items() if suffix == "_count"}
    for labels, count in counts.items():
        buckets = {
            float(dict(each)["le"]): value
            for (suffix, each), value in family.samples.items()
            if suffix == "_bucket" and labels == {pair for pair in each if pair[0] != "le"}
        }
        values = [buckets[bound] for bound in sorted(buckets)]
        assert values == sorted(values), f"{family.name} is not cumulative"
        assert buckets[float("inf")] == count, f"{family.name}: +Inf is not its count"
        assert ("_sum", labels) in family.samples


async def scrape(stage: Stage) -> dict[str, Exposed]:
    response = await admin(stage, "/metrics", accept="text/plain; version=0.0.4")
    assert response.status == 200
    assert (response.header("content-type") or "").startswith("text/plain; version=0.0.4")
    return parse_exposition(response.body.decode())


async def read_series(stage: Stage) -> dict[str, float]:
    """Every sample that is no histogram's part but its count, by a name as one would write it; zeros left out."""
    values = {}
    for family in (await scrape(stage)).values():
        for (suffix, labels), value in family.samples.items():
            if suffix in ("", "_count") and value and family.name.startswith("sameflight_"):
                text = ",".join(f"{name}={label}" for name, label in sorted(labels) if name != "provider")
                values[f"{family.name.removeprefix('sameflight_')}{suffix}" + (f"[{text}]" if text else "")] = value
    return values


# What moves by itself, or says what is there rather than what happened.
_RESTLESS = (
    *("event_loop_lag", "build_info", "connections[", "upstream_connections", "config_last", "queue_delay", "tasks"),
    *("keys_", "spool_", "usage_", "store_state", "budget_usd", "flags_age", "flags_reads"),
)


class Watch:
    """What the series gained since the watch began."""

    def __init__(self, stage: Stage, before: dict[str, float]) -> None:
        self._stage = stage
        self._before = before

    @classmethod
    async def begin(cls, stage: Stage) -> Watch:
        return cls(stage, await read_series(stage))

    async def gained(self) -> dict[str, float]:
        now = await read_series(self._stage)
        gains = {name: now.get(name, 0.0) - self._before.get(name, 0.0) for name in now.keys() | self._before.keys()}
        return {name: gain for name, gain in gains.items() if gain and not name.startswith(_RESTLESS)}


async def test_every_series_of_the_table_is_exposed_with_its_type_labels_and_meaning(stage: Stage) -> None:
    """Neither more nor less than README lists, in a text that a strict reader takes."""
    stage.upstream.respond_with(lambda call: call.answer_sse(stream_events("hi")))
    for headers in ([], [CACHE], [CACHE], [ALONE]):
        await (await stage.ask(chat(stream=True), headers=headers)).read_end()
        await stage.settled()
    families = await scrape(stage)

    assert {name: (family.type, family.help) for name, family in families.items()} == {
        row.name: (row.type, row.help) for row in SERIES
    }
    for row in SERIES:
        for suffix, labels in families[row.name].samples:
            extra = {"le"} if suffix == "_bucket" else set()
            assert {name for name, _ in labels} == set(row.labels) | extra, row.name
    assert families["sameflight_build_info"].samples
    assert all(name.startswith(("sameflight_", "process_")) for name in families)


async def test_labels_that_callers_make_up_can_neither_break_the_text_nor_grow_it(stage: Stage) -> None:
    """A model's name is a label only once an upstream answered for it, and then without quotes and line ends."""
    for number in range(20):
        response = await stage.ask(chat(model=f'evil"}}\n{number} 1\n'))
        await (await stage.upstream.next_call()).answer_json({"error": "no"}, status=404)
        await response.read_end()
    response = await stage.ask(chat(model='quoted"\\\nmodel'))
    await (await stage.upstream.next_call()).answer_json(completion())
    await response.read_end()
    families = await scrape(stage)
    models = {dict(labels)["model"] for _, labels in families["sameflight_requests_total"].samples}

    assert models == {"other", "quoted___model"}


LEADER = "model=gpt-4o-mini,outcome=ok,route=chat.completions,status=200"


async def test_what_a_leader_and_a_follower_move(stage: Stage) -> None:
    """Every series that gained, and no other."""
    watch = await Watch.begin(stage)
    responses = await stage.ask_many(2, chat())
    up = await read_series(stage)
    await (await stage.upstream.next_call()).answer_json(completion())
    for response in responses:
        await response.read_end()
    gained = await watch.gained()

    assert (up["flights_in_air"], up["flight_subscribers"]) == (1, 2)
    assert gained == pytest.approx(
        {
            f"requests_total[{LEADER}]": 2,
            "request_duration_seconds_count[route=chat.completions]": 2,
            "time_to_first_token_seconds_count[route=chat.completions]": 2,
            "overhead_seconds_count[route=chat.completions]": 2,
            "upstream_requests_total[why=flight]": 1,
            "upstream_duration_seconds_count": 1,
            "flights_total[ending=ok]": 1,
            "coalesce_followers_count": 1,
            "joins_total[state=OPENING]": 1,
            "collapse_saved_total": 1,
            "tokens_total[direction=input,model=gpt-4o-mini,source=upstream]": 5,
            "tokens_total[direction=output,model=gpt-4o-mini,source=upstream]": 7,
            "tokens_saved_total[direction=input,model=gpt-4o-mini]": 5,
            "tokens_saved_total[direction=output,model=gpt-4o-mini]": 7,
            "cost_usd_total[model=gpt-4o-mini]": dollars(5, 7),
            "saved_usd_total[model=gpt-4o-mini]": dollars(5, 7),
        }
    )


async def test_what_a_cache_hit_moves(stage: Stage) -> None:
    """No flight, no upstream call, no cost: a look-up that succeeded and what it saved."""
    first = await stage.ask(chat(), headers=[CACHE])
    await (await stage.upstream.next_call()).answer_json(completion())
    await first.read_end()
    await stage.settled()
    watch = await Watch.begin(stage)
    await (await stage.ask(chat(), headers=[CACHE])).read_end()
    gained = await watch.gained()

    assert stage.series('cache_bytes{cache="hot"}') == stage.app.hot.size_bytes > 0
    assert gained == pytest.approx(
        {
            f"requests_total[{LEADER}]": 1,
            "request_duration_seconds_count[route=chat.completions]": 1,
            "time_to_first_token_seconds_count[route=chat.completions]": 1,
            "overhead_seconds_count[route=chat.completions]": 1,
            "cache_hits_total[cache=hot]": 1,
            "tokens_saved_total[direction=input,model=gpt-4o-mini]": 5,
            "tokens_saved_total[direction=output,model=gpt-4o-mini]": 7,
            "saved_usd_total[model=gpt-4o-mini]": dollars(5, 7),
        }
    )


async def test_what_a_failure_of_the_upstream_moves(stage: Stage) -> None:
    """One failed flight, one failed request; nothing was delivered, so nothing was paid."""
    watch = await Watch.begin(stage)
    response = await stage.ask(chat())
    call = await stage.upstream.next_call()
    call.reset()
    await response.read_end()
    gained = await watch.gained()

    assert response.status == 502
    failed = "model=other,outcome=upstream_failed,route=chat.completions,status=502"
    assert gained == {
        f"requests_total[{failed}]": 1,
        "request_duration_seconds_count[route=chat.completions]": 1,
        "time_to_first_token_seconds_count[route=chat.completions]": 1,
        "overhead_seconds_count[route=chat.completions]": 1,
        "upstream_requests_total[why=flight]": 1,
        "upstream_duration_seconds_count": 1,
        "flights_total[ending=fault]": 1,
        "coalesce_followers_count": 1,
    }


async def test_what_an_upstream_that_cannot_be_reached_moves(stage: Stage) -> None:
    """Nothing was sent: no upstream call, but a connection that failed, by reason."""
    await stage.upstream.close()
    watch = await Watch.begin(stage)
    response = await (await stage.ask(chat())).read_end()
    gained = await watch.gained()

    assert response.status == 502
    connecting = {name: value for name, value in gained.items() if name.startswith("upstream_")}
    assert connecting == {"upstream_connect_errors_total[reason=refused]": 1}


async def test_what_a_linger_moves(frozen_stage: Stage, frozen_clock: FrozenClock) -> None:
    """One call goes on without callers and is joined, another one is given up."""
    stage = frozen_stage
    watch = await Watch.begin(stage)
    (gone,) = await stage.ask_many(1, chat())
    call = await stage.upstream.next_call()
    await gone._client.reset()
    await stage.attached(0)
    (retry,) = await stage.ask_many(1, chat())
    await call.answer_json(completion())
    await retry.read_end()
    (gone,) = await stage.ask_many(1, chat("other"))
    call = await stage.upstream.next_call()
    await gone._client.reset()
    await stage.attached(0)
    frozen_clock.advance(3.1)
    await call.client_gone()
    await stage.settled()
    gained = await watch.gained()

    expected = {
        "linger_total[result=joined]": 1,
        "linger_total[result=cancelled]": 1,
        "joins_total[state=LINGERING]": 1,
        "flights_total[ending=ok]": 1,
        "flights_total[ending=abandoned]": 1,
        "requests_total[model=other,outcome=client_gone,route=chat.completions,status=0]": 1,
        f"requests_total[{LEADER}]": 1,
        f"requests_total[{LEADER}]".replace("=ok", "=client_gone").replace("=200", "=0"): 1,
    }
    assert {name: gained.get(name) for name in expected} == expected


async def test_a_stream_in_the_air_and_one_that_its_client_left_are_counted(stage: Stage) -> None:
    """The gauge rises with the head and falls with the end; who ended a stream early is told apart."""
    left, cut = await stage.ask(chat("1", stream=True)), await stage.ask(chat("2", stream=True))
    before = stage.series("streams_inflight")
    calls = [await stage.upstream.next_call() for _ in range(2)]
    for call in calls:
        await call.send_head(200, SSE, chunked=True)
        await call.send(as_bytes([delta("begun")]))
    for response in (left, cut):
        await response.read_until(b"begun")
    during = stage.series("streams_inflight")
    of_left, of_cut = sorted(calls, key=lambda call: call.json()["messages"][0]["content"])
    await left._client.reset()
    await of_left.client_gone()
    of_cut.reset()
    await cut.read_end()
    await stage.settled()

    assert (before, during, stage.series("streams_inflight")) == (0, 2, 0)
    assert stage.series('streams_truncated_total{side="client"}') == 1
    assert stage.series('streams_truncated_total{side="upstream"}') == 1


async def test_what_a_caller_that_reads_nothing_moves() -> None:
    """A caller detached for not reading is counted as such, and its connection as closed."""
    clock = FrozenClock()
    async with Stage(clock=clock, write_stall_s=10.0) as stage:
        client = await stage.client(receive_buffer_bytes=2048)
        response = await stage.ask(chat(stream=True), client=client)
        other = await stage.ask(chat(stream=True))
        await stage.attached(2)
        call = await stage.upstream.next_call()
        client.pause()
        await call.send_head(200, SSE, chunked=True)
        piece = as_bytes([delta("x" * 60_000)])
        sent = 0
        while not any(flight.paused for flight in stage.app.table.live):
            await call.send(piece)
            sent += 1
            assert sent < 500, "the caller that does not read was never felt"
        clock.advance(10.1)
        await stage.attached(1)
        await call.send(as_bytes(["[DONE]"]))
        await call.end()
        await other.read_end()
        client.resume()
        await response.read_end()
        await stage.settled()

        assert other.ended
        assert not response.ended
        assert stage.series('detached_total{reason="stall"}') == 1


async def test_what_an_answer_that_cannot_be_shared_moves(stage: Stage) -> None:
    """The first keeps it, the others are released to calls of their own, and the next one does not wait in vain."""
    responses = await stage.ask_many(3, chat())
    call = await stage.upstream.next_call()
    await call.answer_json(completion("first"), headers=[("vary", "*")])
    for _ in range(2):
        await (await stage.upstream.next_call()).answer_json(completion("own"), headers=[("vary", "*")])
    for response in responses:
        await response.read_end()

    assert stage.series('released_total{reason="unshareable"}') == 2
    assert stage.series("pass_markers") == 1
    assert stage.series("upstream_requests_total") == 3


async def test_what_refused_requests_and_requests_that_do_not_share_move(stage: Stage) -> None:
    """Each by its reason."""
    await (await stage.ask(b"{")).read_end()
    await (await stage.ask(chat(), path="/v1/../secrets")).read_end()
    response = await stage.ask(chat(), headers=[ALONE])
    await (await stage.upstream.next_call()).answer_json(completion())
    await response.read_end()
    response = await stage.ask(chat(store=True))
    await (await stage.upstream.next_call()).answer_json(completion())
    await response.read_end()

    assert stage.series('rejections_total{reason="invalid_json"}') == 1
    assert stage.series('rejections_total{reason="bad_request"}') == 1
    assert stage.series('coalesce_bypass_total{reason="asked"}') == 1
    assert stage.series('coalesce_bypass_total{reason="effects"}') == 1
    assert stage.series('upstream_requests_total{provider="openai",why="pass"}') == 2


async def test_a_bug_is_counted_and_named_and_the_caller_learns_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception nobody foresaw: a 500 without a word of code, a counter that should be 0, a line in the log."""
    async with Stage() as stage:

        def fail(self: Pipeline, exchange: Exchange) -> Plan:
            raise RuntimeError("the inner workings")

        monkeypatch.setattr(Pipeline, "plan", fail)
        response = await (await stage.ask(chat())).read_end()
        await wait_until(lambda: b"the inner workings" in stage.log_output.getvalue(), "the bug was logged")

        assert response.status == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert b"inner" not in response.body
        assert stage.series('bugs_total{where="pipeline"}') == 1


# -- slow requests --------------------------------------------------------------------------------------------


async def test_a_request_that_spends_long_inside_the_proxy_is_logged_with_its_breakdown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whose fault a delay is: 150 ms of planning are ours, the upstream's 250 ms are not."""
    clock = FrozenClock()
    async with Stage(clock=clock, slow_overhead_ms=100) as stage:
        plan = Pipeline.plan

        def plan_slowly(self: Pipeline, exchange: Exchange) -> Plan:
            if b"slow" in bytes(exchange.body):  # type: ignore[arg-type]
                clock.advance(0.15)
            return plan(self, exchange)

        monkeypatch.setattr(Pipeline, "plan", plan_slowly)
        responses = []
        for text in ("slow", "fast"):
            responses.append(await stage.ask(chat(text)))
            call = await stage.upstream.next_call()
            clock.advance(0.25)
            await call.answer_json(completion())
            await responses[-1].read_end()
        slow, fast = [await line_of(stage, response, 2) for response in responses]
        events = [json.loads(line) for line in stage.log_output.getvalue().splitlines()]
        (event,) = [event for event in events if event["event"] == "slow_request"]

        assert (slow["overhead_ms"], slow["upstream_ms"], slow["total_ms"]) == (150.0, 250.0, 400.0)
        assert (fast["overhead_ms"], fast["upstream_ms"], fast["total_ms"]) == (0.0, 250.0, 250.0)
        assert {name: value for name, value in event.items() if name != "ts"} == {
            "level": "warning",
            "event": "slow_request",
            "request_id": slow["request_id"],
            "overhead_ms": 150.0,
            "queue_ms": 0.0,
            "upstream_ms": 250.0,
            "total_ms": 400.0,
            "body_bytes": size_of(chat("slow")),
            "role": "leader",
        }
        assert stage.series("overhead_seconds_sum") == pytest.approx(0.15)


# -- secrets --------------------------------------------------------------------------------------------------

MARK = "c4n4ry"


class Told:
    """Everything that came out of the proxy but the answers it relayed."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def hear(self, response: RawResponse, *, ours: bool) -> None:
        """The head of an answer, and its body where the proxy wrote it itself."""
        for name, value in response.headers:
            self.pieces.append(name + b": " + value)
        if ours:
            self.pieces.append(response.body)


@pytest.fixture
async def talkative_stage() -> AsyncIterator[Stage]:
    """A stage that logs whatever it can, and holds secrets of its own."""
    settings = {"log_level": "debug", "slow_overhead_ms": 0, "key_secret": f"{MARK}-key-secret"}
    env = {"OPENAI_API_KEY": f"sk-{MARK}-of-the-operator", "ANTHROPIC_API_KEY": f"sk-ant-{MARK}-operator"}
    async with Stage(env=env, max_body_bytes=4096, **settings) as stage:
        yield stage
        await stage.settled()


async def test_no_secret_leaves_through_log_metrics_flights_errors_or_headers(talkative_stage: Stage) -> None:
    """TC142: marked credentials, bodies, queries, cookies and names, through every kind of ending, at level debug."""
    stage, told, dice = talkative_stage, Told(), random.Random(142)
    for number in range(80):
        await one_secret_round(stage, dice, told, number)
    client = await stage.client()
    response = client.expect("GET")
    await open_socket(
        client,
        path=f"/v1/realtime?api_key={MARK}-query",
        headers=[("sec-websocket-protocol", f"realtime, openai-insecure-api-key.sk-{MARK}-in-a-protocol")],
    )
    call = await stage.upstream.next_call(whole=False)
    await call.answer_json({"error": "no"}, status=401)
    told.hear(await response.read_end(), ours=True)
    for page in ("/metrics", "/flights"):
        told.pieces.append((await admin(stage, page)).body)
    await stage.settled()
    lines = await stage.access_lines(80)
    told.pieces.append(stage.log_output.getvalue())
    found = [piece for piece in told.pieces if MARK.encode() in piece]

    assert found == []
    assert {line["outcome"] for line in lines} >= {"ok", "client_gone", "upstream_failed", "request_too_large"}
    assert {line["outcome"] for line in lines} >= {"invalid_json", "stream_broken", "ambiguous_credential"}
    assert stage.app.metrics.last_bug == ""


async def one_secret_round(stage: Stage, dice: random.Random, told: Told, number: int) -> None:
    """One request full of marks, and one of many ways for it to end."""
    how = dice.choice(["ok", "ok", "reset", "leave", "stream", "broken", "large", "json", "credentials", "unknown"])
    key = dice.choice([f"sk-{MARK}-{number}", f"{MARK}{number}", f"sf-{MARK}", "dummy"])
    body: object = chat(f"{MARK} is my secret {number}", stream=how in ("leave", "stream", "broken"), user=MARK)
    headers = [
        ("cookie", f"session={MARK}"),
        ("x-forwarded-for", f"10.0.0.1, {MARK}"),
        (f"x-{MARK}-name", "1"),
        ("traceparent", f"00-{MARK}-{MARK}-01"),
        ("idempotency-key", f"{MARK}-{number}") if number % 3 == 0 else ("x-api-version", MARK),
    ]
    path = CHAT + f"?key={MARK}-in-the-query"
    if how == "large":
        body = chat(MARK * 1000)
    elif how == "json":
        body = f'{{"model": "gpt-4o-mini", "messages": "{MARK}", {MARK}'.encode()
    elif how == "credentials":
        headers += [("authorization", f"Bearer {MARK}-second")]
    elif how == "unknown":
        path = f"/v1/../{MARK}"
    response = await stage.ask(body, path=path, headers=headers, key=key)
    await wait_until(lambda: response.status or stage.upstream.waiting, "a call or a refusal")
    if not stage.upstream.waiting:
        told.hear(await response.read_end(), ours=True)
        return
    call = await stage.upstream.next_call()
    told.pieces.append((await admin(stage, "/flights")).body)
    if how == "reset":
        await break_off(stage, call, response)
        told.hear(await response.read_end(), ours=True)
    elif how in ("leave", "stream", "broken"):
        await call.send_head(200, SSE, chunked=True)
        await call.send(as_bytes([delta("begun")]))
        await response.read_until(b"begun")
        if how == "leave":
            await response._client.reset()
            await call.client_gone()
        elif how == "broken":
            call.reset()
            told.hear(await response.read_end(), ours=True)
        else:
            await call.send(as_bytes(["[DONE]"]))
            await call.end()
            told.hear(await response.read_end(), ours=False)
    else:
        await call.answer_json(completion(MARK))
        told.hear(await response.read_end(), ours=False)


async def test_a_secret_in_the_place_of_a_models_name_is_masked_in_the_log(stage: Stage) -> None:
    """People paste keys into the wrong field; the line keeps the kind of thing it was."""
    response = await stage.ask(chat(model=f"sk-proj-{MARK}{MARK}"), key=OTHER_KEY)
    await (await stage.upstream.next_call()).answer_json({"error": {"message": "no such model"}}, status=404)
    await response.read_end()
    line = await line_of(stage, response)

    assert line["model"] == "sk-…"
    assert MARK.encode() not in (await admin(stage, "/metrics")).body
