"""Limits and budgets over the wire: what callers are told, in whose words, and what comes back when they leave."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import openai
import pytest

from proxy.access.issuing import Issued
from proxy.config.keys import Budget
from proxy.errors import StoreError
from tests.fakes.gates import run_ticks, wait_until
from tests.scenes.stage import CHAT, MESSAGES, Stage, chat, completion, stream_events

OURS = {"OPENAI_API_KEY": "sk-ours-o", "ANTHROPIC_API_KEY": "sk-ours-a", "MISTRAL_API_KEY": "sk-ours-m"}
VENDORS = [
    ("x-ratelimit-limit-requests", "77777"), ("x-ratelimit-remaining-tokens", "88888"),
    ("anthropic-ratelimit-requests-limit", "66666"), ("ratelimitbysize-remaining", "55555"),
    ("x-request-id", "req-of-the-vendor"), ("openai-processing-ms", "12"),
]  # fmt: skip
OUR_LINES = {f"x-ratelimit-{part}-{of}" for part in ("limit", "remaining", "reset") for of in ("requests", "tokens")}
DIALECTS = {
    "openai": (CHAT, {}),
    "anthropic": (MESSAGES, {"max_tokens": 10}),
    "mistral": ("/mistral/v1/chat/completions", {}),
}


def make_stage(**settings: Any) -> Stage:
    return Stage(env={**OURS, "SAMEFLIGHT_KEY_PEPPER": "a-pepper-for-the-limits"}, **{"auth": "required", **settings})


async def make_key(stage: Stage, *, limits: dict[str, int] | None = None, budget: str = "", **form: Any) -> Issued:
    """A key with limits and a budget such as ``5/day``."""
    fields: dict[str, Any] = {"name": f"k{len(stage.app.vault.ring)}", **form}
    if limits:
        fields["limits"] = limits
    if budget:
        fields["budget"] = budget
    return await stage.app.vault.issuer.create(fields)


def told(response: Any, begins: str = "") -> dict[str, str]:
    """Header lines about limits."""
    words = ("x-ratelimit", "ratelimit", "anthropic-ratelimit")
    lines = [(name.decode().lower(), value.decode()) for name, value in response.headers]
    assert len({name for name, _ in lines if name.startswith(words)}) == sum(n.startswith(words) for n, _ in lines)
    return {name: value for name, value in lines if name.startswith(words)}


async def at_peace(stage: Stage) -> None:
    """Nothing is taken any more."""
    limiter, leases = stage.app.vault.limiter, stage.app.vault.leases
    await wait_until(lambda: not limiter.describe()["running"], "all slots came back")
    assert leases.waiting == 0
    assert leases.reserved_picodollars == 0
    await stage.at_rest()


# -- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_tell_callers_with_limits_of_those_and_not_of_the_vendors(stage: Stage, stream: bool) -> None:
    """Leader, follower and hit, each its own; all else that the vendor said of the call stays with the leader."""
    async with make_stage() as stage:
        team = {"tenant": "acme", "team": "red", "scope": "team"}
        limits = {"requests_per_minute": 100, "tokens_per_minute": 100_000}
        keys = [await make_key(stage, limits=limits, **team), await make_key(stage, limits=limits, **team)]
        body, lines = chat(stream=stream, max_tokens=50), [("x-sameflight-cache", "on")]
        responses = []
        for count, key in enumerate(keys, 1):
            responses.append(await stage.ask(body, key=key.token, headers=lines))
            await stage.attached(count)
        call = await stage.upstream.next_call()
        if stream:
            await call.answer_sse(stream_events("a"), headers=VENDORS)
        else:
            await call.answer_json(completion(), headers=VENDORS)
        for response in responses:
            await response.read_end()
        await stage.settled()
        hit = await (await stage.ask(body, key=keys[0].token, headers=lines)).read_end()
        await at_peace(stage)

        assert "hit" in (hit.header("cache-status") or "")
        for response, left in ((responses[0], "99"), (responses[1], "99"), (hit, "98")):
            lines_told = told(response)
            assert lines_told["x-ratelimit-limit-requests"] == "100"
            assert lines_told["x-ratelimit-remaining-requests"] == left
            assert lines_told["x-ratelimit-limit-tokens"] == "100000"
            assert set(lines_told) == OUR_LINES
        assert [response.header("openai-processing-ms") for response in responses] == ["12", None]
        assert responses[0].header("x-request-id") == "req-of-the-vendor"


async def test_a_caller_without_limits_is_told_what_the_vendor_said() -> None:
    """Nothing is taken away from those whom the proxy does not limit; one that leads a private call included."""
    async with make_stage() as stage:
        plain, limited = await make_key(stage), await make_key(stage, limits={"concurrent": 5})
        private = await make_key(stage, limits={"requests_per_minute": 10})
        answers = []
        for key, path in ((plain, CHAT), (limited, CHAT), (private, "/v1/threads/runs")):
            response = await stage.ask(chat(), key=key.token, path=path)
            await (await stage.upstream.next_call()).answer_json(completion(), headers=VENDORS)
            answers.append(told(await response.read_end()))
        await at_peace(stage)

        assert answers[0] == answers[1] == dict(VENDORS[:4])
        assert answers[2]["x-ratelimit-limit-requests"] == "10"
        assert not {"x-ratelimit-remaining-tokens", "ratelimitbysize-remaining"} & set(answers[2])


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_whoever_asks_too_often_is_told_when_to_come_back_in_its_own_dialect(dialect: str) -> None:
    """429 with the time in seconds and in milliseconds, that trying again is right, and the limits themselves."""
    path, fields = DIALECTS[dialect]
    async with make_stage() as stage:
        key = await make_key(stage, limits={"requests_per_minute": 1})
        served = await stage.ask(chat(**fields), key=key.token, path=path)
        await (await stage.upstream.next_call()).answer_json(completion())
        await served.read_end()
        refused = await (await stage.ask(chat(**fields), key=key.token, path=path)).read_end()
        await at_peace(stage)
        body = refused.json()

        assert refused.status == 429
        assert 1 <= int(refused.header("retry-after") or 0) <= 60
        assert 0 < int(refused.header("retry-after-ms") or 0) <= 60_000
        assert refused.header("x-should-retry") == "true"
        assert told(refused)["x-ratelimit-remaining-requests"] == "0"
        assert told(refused)["x-ratelimit-limit-requests"] == "1"
        if dialect == "anthropic":
            assert (body["type"], body["error"]["type"]) == ("error", "rate_limit_error")
            assert body["request_id"] == refused.header("request-id")
        else:
            inner = body["error"] if dialect == "openai" else body
            assert (inner["code"], inner["type"]) == ("rate_limit_exceeded", "rate_limit_error")
            assert "1 requests per minute" in inner["message"]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_spent_budget_is_402_with_a_clear_code_in_each_dialect(dialect: str) -> None:
    """And nobody is told to try again soon."""
    path, fields = DIALECTS[dialect]
    prices = {"openai": "gpt-4o-mini", "anthropic": "claude-opus-4-1", "mistral": "mistral-medium-latest"}
    async with make_stage() as stage:
        key = await make_key(stage, budget="0.000001/total")
        body = chat(**{"max_tokens": 4000, **fields}) | {"model": prices[dialect], "max_tokens": 4000}
        refused = await (await stage.ask(body, key=key.token, path=path)).read_end()
        await at_peace(stage)
        said = refused.json()

        assert refused.status == 402
        assert refused.header("x-should-retry") == "false"
        assert refused.header("retry-after") is None
        inner = said["error"] if dialect != "mistral" else said
        assert inner["type"] == ("billing_error" if dialect == "anthropic" else "insufficient_quota")
        assert "budget of this key is spent" in inner["message"]
        assert stage.upstream.calls == 0


async def test_the_sdks_see_the_errors_they_know() -> None:
    """RateLimitError with the limits in its response, and a status error of 402 that is not tried again."""
    async with make_stage() as stage:
        key = await make_key(stage, limits={"requests_per_minute": 1})
        poor = await make_key(stage, budget="0.000001/total")
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        messages: Any = [{"role": "user", "content": "hi"}]
        async with openai.AsyncOpenAI(base_url=f"{stage.app.url}/v1", api_key=key.token, max_retries=0) as sdk:
            first = await sdk.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=messages)
            assert first.headers["x-ratelimit-remaining-requests"] == "0"
            with pytest.raises(openai.RateLimitError) as limited:
                await sdk.chat.completions.create(model="gpt-4o-mini", messages=messages)
        assert limited.value.code == "rate_limit_exceeded"
        assert limited.value.response.headers["x-ratelimit-limit-requests"] == "1"
        async with openai.AsyncOpenAI(base_url=f"{stage.app.url}/v1", api_key=poor.token, max_retries=2) as sdk:
            with pytest.raises(openai.APIStatusError) as spent:
                await sdk.chat.completions.create(model="gpt-4o-mini", messages=messages)
        assert (spent.value.status_code, spent.value.code) == (402, "budget_exceeded")
        async with anthropic.AsyncAnthropic(base_url=stage.app.url, api_key=key.token, max_retries=0) as claude:
            with pytest.raises(anthropic.RateLimitError):
                await claude.messages.create(model="claude-opus-4-1", max_tokens=5, messages=messages)
        assert stage.upstream.calls == 1
        await at_peace(stage)


# -- who leaves ------------------------------------------------------------------------------------------------------


async def test_callers_that_leave_free_their_places() -> None:
    """Before the head, in the middle of a stream, and by the end of the answer: the next one gets in each time."""
    async with make_stage(linger_s=0.0) as stage:
        key = await make_key(stage, limits={"concurrent": 2})
        limiter = stage.app.vault.limiter
        for when in ("before", "within", "after"):
            asked = [await stage.ask(chat(f"{when} {n}", stream=True), key=key.token) for n in range(2)]
            calls = [await stage.upstream.next_call() for _ in asked]
            third = await (await stage.ask(chat("third"), key=key.token)).read_end()
            assert (third.status, third.header("retry-after")) == (429, "1")
            assert "2 requests at once" in third.json()["error"]["message"]
            if when == "after":
                for call in calls:
                    await call.answer_sse(stream_events("a"))
            elif when == "within":
                for call in calls:
                    await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
                    await call.send(b'data: {"choices": []}\n\n')
                for response in asked:
                    await response.read_until(b"\n\n")
            for response in asked:
                if when == "after":
                    await response.read_end()
                else:
                    await response._client.close()
            await wait_until(lambda: not limiter.describe()["running"], "both places are free")
        await at_peace(stage)


async def test_a_caller_that_leaves_while_it_waits_for_its_budget_gives_everything_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No call is made, nothing stays reserved or waiting, no row is written, and the next request is served."""
    async with make_stage() as stage:
        key = await make_key(stage, budget="1/total", limits={"concurrent": 1, "requests_per_minute": 10})
        vault, gate, asked = stage.app.vault, asyncio.Event(), []
        lease = vault.store.lease

        async def slow_lease(*args: Any, **options: Any) -> Any:
            asked.append(args)
            await gate.wait()
            return await lease(*args, **options)

        monkeypatch.setattr(vault.store, "lease", slow_lease)
        client = await stage.client()
        await stage.ask(chat(), key=key.token, client=client)
        await wait_until(lambda: vault.leases.waiting == 1 and asked, "the request waits for money")
        await client.close()
        await wait_until(lambda: not vault.leases.waiting and not stage.app.pipeline._waiting, "it waits no more")
        assert vault.limiter.describe()["running"] == 0
        gate.set()
        await run_ticks(20)
        assert stage.upstream.calls == 0
        assert vault.leases.reserved_picodollars == 0
        response = await stage.ask(chat("next"), key=key.token)
        await (await stage.upstream.next_call()).answer_json(completion())
        assert (await response.read_end()).status == 200
        await at_peace(stage)
        await wait_until(lambda: vault.ledger.is_empty, "the rows are in the store")
        assert vault.ledger.new_rows == 1
        spent = 5 * 150_000 + 7 * 600_000
        monkeypatch.setattr(vault.store, "lease", lease)
        budget = Budget(10**12, "total")
        for _ in range(100):
            if await vault.store.spent(f"key:{key.record.id}", budget) == (spent, 0):
                break
            stage.app.vault.leases.tick()
            await run_ticks(20)
        else:
            # What lies idle for a second goes back.
            await wait_until(lambda: vault.leases.free_picodollars == 0, "idle money went back")
        assert (await vault.store.spent(f"key:{key.record.id}", budget))[0] == spent


async def test_a_caller_that_leaves_in_the_tick_in_which_its_money_comes_gives_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The budget's answer and the client's departure at the same time, in both orders."""
    async with make_stage() as stage:
        key = await make_key(stage, budget="1/total")
        vault = stage.app.vault
        lease = vault.store.lease
        gate = asyncio.Event()
        asked: list[Any] = []

        async def slow_lease(*args: Any, **options: Any) -> Any:
            got = await lease(*args, **options)
            asked.append(got)
            await gate.wait()
            return got

        monkeypatch.setattr(vault.store, "lease", slow_lease)
        client = await stage.client()
        await stage.ask(chat(), key=key.token, client=client)
        await wait_until(lambda: vault.leases.waiting == 1 and asked, "the request waits for money")
        [connection] = stage.app.server.clients
        gate.set()
        transport: Any = connection.transport
        transport.abort()
        await stage.settled()
        await wait_until(lambda: not stage.app.pipeline._waiting, "nobody waits")
        await client.peer_closed()
        assert vault.leases.reserved_picodollars == 0
        assert vault.spool.running == 0
        await stage.at_rest()


async def test_a_budget_that_cannot_be_asked_about_is_503_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is away: told to try again, charged nothing; afterwards served."""
    async with make_stage(budget_wait_s=0.05) as stage:
        key = await make_key(stage, budget="1/total")
        vault = stage.app.vault

        async def away(*_: object, **__: object) -> Any:
            raise StoreError("unavailable")

        with monkeypatch.context() as patch:
            patch.setattr(vault.store, "lease", away)
            refused = await (await stage.ask(chat(), key=key.token)).read_end()
        assert (refused.status, refused.json()["error"]["code"]) == (503, "budget_unavailable")
        assert (refused.header("retry-after"), refused.header("x-should-retry")) == ("1", "true")
        vault.leases._failures = 0  # a second later
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        assert (await (await stage.ask(chat(), key=key.token)).read_end()).status == 200
        await at_peace(stage)
