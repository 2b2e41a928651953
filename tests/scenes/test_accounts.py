"""Who pays: every upstream call is on exactly one account, whoever leaves and however its answer came.

The sums of the access lines and the series of the flights are two sets of books, and they must agree.
"""

from __future__ import annotations

import gzip
import json

import pytest

from proxy.books import Books
from proxy.exchange import Exchange
from tests.scenes.stage import Stage, as_bytes, chat, completion, delta

EVENTS = ("content-type", "text/event-stream")
CHAT_USAGE = {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000}
RESPONSE_USAGE = {"input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500}


async def costs(stage: Stage, count: int) -> list[float]:
    """What each of ``count`` access lines was charged."""
    lines = await stage.access_lines(count)
    await stage.settled()
    return [line.get("cost_usd") or 0.0 for line in lines]


# -- payers that leave -----------------------------------------------------------------------------------------------


async def test_a_payer_that_leaves_in_the_middle_still_pays(stage: Stage) -> None:
    """TC109: the price is known at the flight's end only; the account waits for it."""
    payer, other = await stage.client(), await stage.client()
    first = await stage.ask(chat(stream=True), client=payer)
    await stage.attached(1)
    second = await stage.ask(chat(stream=True), client=other)
    await stage.attached(2)
    call = await stage.upstream.next_call()
    await call.send_head(200, [EVENTS], chunked=True)
    await call.send(as_bytes([delta("a")]))
    await first.read_until(b'"a"')
    await second.read_until(b'"a"')
    await payer.close()
    await stage.attached(1)
    await call.send(as_bytes([{**delta(""), "choices": [], "usage": CHAT_USAGE}, "[DONE]"]))
    await call.end()
    await second.read_end()
    charged = await costs(stage, 2)

    assert sorted(cost > 0 for cost in charged) == [False, True]
    assert sum(charged) == pytest.approx(stage.series("cost_usd_total"))


async def test_a_stream_that_its_only_reader_abandons_is_charged_to_it(stage: Stage) -> None:
    """What the upstream sent until then has its price, estimated."""
    client = await stage.client()
    response = await stage.ask(chat(stream=True), client=client)
    await stage.attached(1)
    call = await stage.upstream.next_call()
    await call.send_head(200, [EVENTS], chunked=True)
    await call.send(as_bytes([delta("a")] * 20))
    await response.read_until(b'"a"')
    await client.close()
    [charged] = await costs(stage, 1)

    assert charged > 0
    assert charged == pytest.approx(stage.series("cost_usd_total"))


# -- usage -----------------------------------------------------------------------------------------------------------


async def test_a_hit_of_the_shared_level_is_booked_as_saved() -> None:
    """The usage is kept with the answer, so that whoever reads it again knows what it would have cost."""
    headers = [("x-sameflight-cache", "on")]
    async with Stage(cache_url="memory://") as stage:
        response = await stage.ask(chat(), headers=headers)
        await (await stage.upstream.next_call()).answer_json(completion())
        await response.read_end()
        await stage.settled()
        stage.app.hot.purge()
        again = await stage.ask(chat(), headers=headers)
        await again.read_end()
        _, hit = await stage.access_lines(2)
        await stage.at_rest()

        assert hit["tokens_saved"] == 12
        assert not hit.get("cost_usd")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_usage_of_a_private_answer_is_read_whatever_the_caller_can_decompress(
    stage: Stage, stream: bool
) -> None:
    """A stored response is nobody else's, yet its account needs a body that can be read."""
    body = {"model": "gpt-4o-mini", "input": "x", "stream": stream}
    response = await stage.ask(body, path="/v1/responses", headers=[("accept-encoding", "gzip, deflate")])
    call = await stage.upstream.next_call()
    if stream:
        event = {"type": "response.completed", "response": {"usage": RESPONSE_USAGE}}
        data, kind = b"event: response.completed\ndata: %b\n\n" % json.dumps(event).encode(), EVENTS
    else:
        whole = {"id": "r", "output": ["x" * 4000], "usage": RESPONSE_USAGE}
        data, kind = json.dumps(whole).encode(), ("content-type", "application/json")
    if "gzip" in (call.header("accept-encoding") or ""):  # as a vendor would
        await call.answer(200, [kind, ("content-encoding", "gzip")], gzip.compress(data))
    else:
        await call.answer(200, [kind], data)
    await response.read_end()
    [line] = await stage.access_lines(1)

    assert (line["tokens_in"], line["tokens_out"]) == (1000, 500)


# -- books that fail -------------------------------------------------------------------------------------------------


def fail_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account of the first exchange raises, all others are booked."""
    account, asked = Books.account, []

    def account_or_fail(self: Books, exchange: Exchange) -> None:
        asked.append(exchange)
        if len(asked) == 1:
            raise RuntimeError("the books are on fire")
        account(self, exchange)

    monkeypatch.setattr(Books, "account", account_or_fail)


@pytest.mark.parametrize("count", [5, 70])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_account_that_fails_costs_a_line_and_no_answer(
    monkeypatch: pytest.MonkeyPatch, count: int, stream: bool
) -> None:
    """The fan-out goes on behind the one whose books failed, in this batch and in the next."""
    async with Stage() as stage:
        responses = await stage.ask_many(count, chat(stream=stream))
        call = await stage.upstream.next_call()
        fail_first(monkeypatch)
        if stream:
            await call.answer_sse([delta("a"), "[DONE]"])
        else:
            await call.answer_json(completion())
        for response in responses:
            await response.read_end()
        lines = await stage.access_lines(count - 1)
        await stage.settled()

        assert [response.ended for response in responses] == [True] * count
        assert len(lines) == count - 1
        assert stage.app.metrics.last_bug != ""


# -- one operation, one account --------------------------------------------------------------------------------------


async def test_followers_by_key_of_what_cannot_be_shared_do_not_do_it_again(stage: Stage) -> None:
    """A second call would do, and charge, one operation twice: they are told to wait instead."""
    responses = await stage.ask_many(3, chat(), headers=[("idempotency-key", "k1")])
    await (await stage.upstream.next_call()).answer(200, [("content-type", "text/html")], b"x")
    statuses = sorted([(await response.read_end()).status for response in responses])

    assert statuses == [200, 409, 409]
    assert stage.upstream.calls == 1


async def test_a_key_names_one_operation_even_for_a_caller_that_wants_it_fresh(stage: Stage) -> None:
    """`no-cache` refuses an older answer; it does not ask to be charged twice."""
    key = ("idempotency-key", "k")
    first = await stage.ask(chat(), headers=[key])
    await stage.attached(1)
    second = await stage.ask(chat(), headers=[key, ("cache-control", "no-cache")])
    await stage.attached(2)
    await (await stage.upstream.next_call()).answer_json(completion())
    await first.read_end()
    await second.read_end()

    assert [first.status, second.status] == [200, 200]
    assert stage.upstream.calls == 1


async def test_a_browser_that_brings_its_own_key_does_not_get_the_operators() -> None:
    """Among the protocols of a WebSocket is where browsers can put one."""
    lines = [
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "realtime, openai-insecure-api-key.sk-callers-own"),
    ]
    async with Stage(openai_api_key="sk-operator-0000000000000000") as stage:
        response = await stage.ask(method="GET", path="/v1/realtime?model=x", headers=lines, key=None)
        call = await stage.upstream.next_call()
        await call.answer(401, [], b"")
        await response.read_end()
        await stage.settled()

        assert call.header("authorization") is None
        assert "openai-insecure-api-key.sk-callers-own" in (call.header("sec-websocket-protocol") or "")


async def test_the_workspace_that_pays_reaches_claude_in_the_other_dialect_too(stage: Stage) -> None:
    """Its OpenAI-compatible routes heed some of its own headers, so two workspaces do not share a call there."""
    path = "/anthropic/v1/chat/completions"
    responses = [
        await stage.ask(chat(), path=path, headers=[("anthropic-workspace-id", name)]) for name in ("one", "two")
    ]
    calls = [await stage.upstream.next_call() for _ in responses]
    for call in calls:
        await call.answer_json(completion())
    for response in responses:
        await response.read_end()

    assert sorted(call.header("anthropic-workspace-id") or "" for call in calls) == ["one", "two"]


async def test_the_limits_of_the_account_are_told_to_the_one_that_leads(stage: Stage) -> None:
    """Mistral's and its gateway's names for them included: a follower would count one call twice."""
    names = ["x-ratelimit-limit-req-minute", "ratelimitbysize-remaining", "x-ratelimitbysize-remaining-minute"]
    names += ["ratelimit", "ratelimit-remaining", "x-kong-upstream-latency"]
    responses = await stage.ask_many(2, chat(), path="/mistral/v1/chat/completions")
    await (await stage.upstream.next_call()).answer_json(completion(), headers=[(name, "5") for name in names])
    for response in responses:
        await response.read_end()
    told = [[name for name in names if response.header(name) is not None] for response in responses]

    assert sorted(told) == [[], names]
