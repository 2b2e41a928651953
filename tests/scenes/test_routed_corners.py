"""What else may happen to a request whose model the catalog routes: callers that leave, keys, caches, batches."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from tests.fakes.gates import Gate, wait_until
from tests.fakes.upstream import Call
from tests.scenes.many import PLACEHOLDER, Many, answers, key_of, refusal, text_in, text_of
from tests.scenes.stage import KEY, MESSAGES, OTHER_KEY, chat, completion
from tests.wire.transcripts import HERE, Case

COMPATIBLE = {"kind": "compatible"}
TWO: dict[str, Any] = {"one": COMPATIBLE, "two": COMPATIBLE}
SMART: dict[str, Any] = {"smart": {"targets": ["one/llama", "two/qwen"]}}
PEPPER = "a-pepper-for-the-scenes"


# -- callers that leave ---------------------------------------------------------------------------------------


async def test_when_everybody_leaves_during_an_attempt_nothing_more_is_tried() -> None:
    """The call that nobody waits for is broken off, and no other target hears of the request."""
    gate = Gate("never")
    async with Many(TWO, SMART) as stage:
        async def wait(call: Call) -> None:
            await gate.wait()
            await call.answer_json({}, 500)

        stage.upstreams["one"].respond_with(wait)
        responses = [await stage.ask(chat(model="smart", stream=True), key=PLACEHOLDER) for _ in range(5)]
        await gate.reached()
        await stage.attached(5)
        for client in stage.clients:
            await client.close()
        await wait_until(lambda: stage.upstreams["one"].aborted == 1, "the call was broken off")
        await stage.at_rest()

        assert stage.calls() == {"one": 1}
        assert not any(response.status for response in responses)


async def test_when_everybody_leaves_during_a_second_attempt_it_ends_as_well() -> None:
    """The first target has failed; the second is under way when the last caller goes."""
    gate = Gate("never")
    async with Many(TWO, SMART) as stage:
        async def wait(call: Call) -> None:
            await gate.wait()
            await call.answer_json({}, 500)

        stage.refuse(["one"])
        stage.upstreams["two"].respond_with(wait)
        for _ in range(3):
            await stage.ask(chat(model="smart", stream=True), key=PLACEHOLDER)
        await gate.reached()
        await stage.attached(3)
        for client in stage.clients:
            await client.close()
        await wait_until(lambda: stage.upstreams["two"].aborted == 1, "the call was broken off")
        await stage.at_rest()

        assert stage.calls() == {"one": 1, "two": 1}


async def test_a_throttled_key_gives_way_to_the_next_without_waiting() -> None:
    """The vendor wants one key left alone for a quarter of a minute; the other one was not asked yet."""
    keys = [key_of("one", number) for number in range(2)]
    async with Many({"one": {**COMPATIBLE, "api_keys": keys}}, {"smart": {"targets": ["one/llama"]}}) as stage:
        throttled = refusal(429, "slow down", headers=[("retry-after", "15")])
        well = answers("one")

        def script(call: Call) -> Any:
            return (throttled if stage.upstreams["one"].calls == 1 else well)(call)

        stage.upstreams["one"].respond_with(script)
        response = await stage.say("smart")
        await stage.at_rest()

        assert response.status == 200
        assert sorted(stage.keys_used("one")) == keys


async def test_when_everybody_leaves_during_a_pause_the_target_is_not_asked_again() -> None:
    """The only target wants to be left alone for a quarter of a minute; nobody waits that long."""
    async with Many({"one": COMPATIBLE}, {"smart": {"targets": ["one/llama"]}}) as stage:
        stage.refuse(status=429, message="slow down", headers=[("retry-after", "15")])
        await stage.ask(chat(model="smart", stream=True), key=PLACEHOLDER)
        await wait_until(lambda: stage.upstreams["one"].calls == 1, "the target was asked")
        await stage.clients[-1].close()
        await stage.at_rest()

        assert stage.calls() == {"one": 1}


async def test_the_leader_leaves_and_the_followers_get_the_next_targets_answer() -> None:
    """Who came first has no more right to the attempts than the others."""
    first, second = Gate("the first target"), Gate("the second target")
    async with Many(TWO, SMART) as stage:
        async def fail(call: Call) -> None:
            await first.wait()
            await call.answer_json({"error": {"message": "no"}}, 500)

        async def answer(call: Call) -> None:
            await second.wait()
            await call.answer_json(completion(text_of("two")))

        stage.upstreams["one"].respond_with(fail)
        stage.upstreams["two"].respond_with(answer)
        body = chat(model="smart")
        leader = await stage.client()
        await stage.ask(body, key=PLACEHOLDER, client=leader)
        await first.reached()
        followers = [await stage.ask(body, key=PLACEHOLDER) for _ in range(5)]
        await stage.attached(6)
        first.open()
        await second.reached()
        await leader.close()
        await stage.attached(5)
        second.open()
        texts = {text_in(await response.read_end()) for response in followers}
        await stage.at_rest()

        assert texts == {text_of("two")}
        assert stage.calls() == {"one": 1, "two": 1}


# -- two at once ----------------------------------------------------------------------------------------------


async def test_a_hedged_request_is_answered_by_whoever_begins_first_and_by_nobody_else() -> None:
    """The first target is slow, so the second is asked as well; it answers, and the first call is broken off before
    a byte of it is told."""
    never = Gate("the slow target")
    models = {"smart": {**SMART["smart"], "hedging": {"after_s": 0.05, "most_share": 1.0}}}
    async with Many(TWO, models) as stage:
        async def slow(call: Call) -> None:
            await never.wait()
            await answers("one")(call)  # type: ignore[misc]

        stage.upstreams["one"].respond_with(slow)
        responses = [await stage.ask(chat(model="smart", stream=True), key=PLACEHOLDER) for _ in range(10)]
        texts = {text_in(await response.read_end()) for response in responses}
        await wait_until(lambda: stage.upstreams["one"].aborted == 1, "the slower call was broken off")
        await stage.at_rest()

        assert texts == {text_of("two")}
        assert stage.calls() == {"one": 1, "two": 1}
        assert stage.app.fleet.failover.hedges_started == stage.app.fleet.failover.hedges_won == 1


async def test_a_target_that_is_full_leaves_it_to_the_next() -> None:
    """One place and no line: the second question does not wait for the first to be answered."""
    gate = Gate("the first question")
    providers = {"one": {**COMPATIBLE, "max_in_flight": 1, "max_queue": 0}, "two": COMPATIBLE}
    async with Many(providers, SMART) as stage:
        async def wait(call: Call) -> None:
            await gate.wait()
            await call.answer_json(completion(text_of("one")))

        stage.upstreams["one"].respond_with(wait)
        first = await stage.ask(chat("first", model="smart"), key=PLACEHOLDER)
        await gate.reached()
        second = await stage.say("smart", "second")
        gate.open()
        await first.read_end()
        await stage.at_rest()

        assert text_in(second) == text_of("two")
        assert text_in(first) == text_of("one")


async def test_who_waits_in_line_for_the_only_target_gets_a_place_when_one_comes_free() -> None:
    """One place, a line of ten: all are answered, and never two at a time."""
    most = now = 0

    async def count(call: Call) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        await call.answer_json(completion(text_of("one")))

    providers = {"one": {**COMPATIBLE, "max_in_flight": 1, "max_queue": 10, "queue_s": 5}}
    async with Many(providers, {"smart": {"targets": ["one/llama"]}}) as stage:
        stage.upstreams["one"].respond_with(count)
        asked = [await stage.ask(chat(f"{number}", model="smart"), key=PLACEHOLDER) for number in range(8)]
        statuses = {(await response.read_end()).status for response in asked}
        await stage.at_rest()

        assert statuses == {200}
        assert most == 1
        assert stage.calls() == {"one": 8}


# -- deadlines ------------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_retry_after_beyond_the_callers_patience_is_handed_on_at_once() -> None:
    """Its SDK waits half a second for the next byte, the upstream wants three: waiting could only end in a time-out,
    so the caller hears of the throttling while there is time."""
    patience = [("x-stainless-read-timeout", "0.5")]
    async with Many({"one": COMPATIBLE}, {"smart": {"targets": ["one/llama"]}}) as stage:
        stage.refuse(status=429, message="slow down", headers=[("retry-after", "3")])
        [response] = await stage.crowd(1, chat(model="smart"), headers=patience)
        await stage.settled()

        assert response.status == 429
        assert float(response.header("retry-after") or 0) == 3


@pytest.mark.long
async def test_a_translated_stream_ends_with_its_error_though_the_upstream_keeps_it_open() -> None:
    """The error event is the last thing there is to say; nobody waits for a server that does not hang up."""

    async def fail_and_stay(call: Call) -> None:
        await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
        await call.send((HERE / "anthropic" / "error.sse").read_bytes())

    async with Many({"claude": {"kind": "anthropic"}}, {"smart": {"targets": ["claude/claude-haiku-4-5"]}}) as stage:
        stage.upstreams["claude"].respond_with(fail_and_stay)
        response = await stage.ask(chat(model="smart", stream=True), key=PLACEHOLDER)
        await response.read_until(b'"error"')
        await wait_until(lambda: response.ended or response.truncated, "the answer ended", 1.0)
        await stage.at_rest()


async def test_a_translated_stream_ends_with_its_end_though_the_upstream_keeps_it_open() -> None:
    """The same for an answer that is complete."""

    async def answer_and_stay(call: Call) -> None:
        await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
        await call.send(Case("anthropic", "text").stream)

    async with Many({"claude": {"kind": "anthropic"}}, {"smart": {"targets": ["claude/claude-haiku-4-5"]}}) as stage:
        stage.upstreams["claude"].respond_with(answer_and_stay)
        response = await stage.say("smart", stream=True)

        assert response.ended
        assert response.body.endswith(b"data: [DONE]\n\n")


# -- what lies between ----------------------------------------------------------------------------------------


async def test_callers_read_signs_of_life_while_targets_fail_and_then_the_answer() -> None:
    """A comment is no byte of an answer: the next target may still be tried behind it."""
    gate = Gate("the first target")

    async def fail(call: Call) -> None:
        await gate.wait()
        await call.answer_json({"error": {"message": "no"}}, 500)

    async with Many(TWO, SMART, heartbeat_after_s=0.02, heartbeat_every_s=0.02) as stage:
        stage.upstreams["one"].respond_with(fail)
        response = await stage.ask(chat(model="smart", stream=True), key=PLACEHOLDER)
        await response.read_until(b": keep-alive")
        gate.open()
        await response.read_end()
        await stage.at_rest()

        assert text_in(response) == text_of("two")
        assert response.ended


@pytest.mark.parametrize("events", [[], [b": ping\n\n", "[DONE]"]], ids=["nothing", "only its end"])
async def test_a_stream_without_an_answer_is_none(events: list[object]) -> None:
    """Status 200 and no word: the next target is asked."""
    async with Many(TWO, SMART) as stage:
        stage.upstreams["one"].respond_with(lambda call: call.answer_sse(events))
        response = await stage.say("smart", stream=True)
        await stage.at_rest()

        assert text_in(response) == text_of("two")
        assert stage.calls() == {"one": 1, "two": 1}


@pytest.mark.parametrize("target", ["one/llama", "claude/claude-haiku-4-5"])
async def test_a_body_that_came_encoded_goes_out_as_what_it_is(target: str) -> None:
    """The model's name is inside, so it is decoded; no header says otherwise any more."""
    providers = {"one": COMPATIBLE, "claude": {"kind": "anthropic"}}
    async with Many(providers, {"smart": {"targets": [target]}}) as stage:
        packed = gzip.compress(json.dumps(chat("packed", model="smart")).encode())
        lines = [("content-encoding", "gzip"), ("content-type", "application/json")]
        name = target.partition("/")[0]
        stage.upstreams[name].respond_with(refusal(400))
        await stage.crowd(1, packed, headers=lines)
        await stage.at_rest()
        [call] = stage.upstreams[name].history

        assert call.header("content-encoding") is None
        assert call.json()["messages"][0]["content"] == "packed"


async def test_names_of_fields_are_a_callers_words_and_no_headers() -> None:
    """Invented ones are cleaned and counted before they are told."""
    said = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "hello"}], "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    fields: dict[str, Any] = {"evil\r\nx-injected: 1": 1, "ü": 2, "a" * 500: 3, **{f"f{n}": n for n in range(200)}}
    async with Many({"claude": {"kind": "anthropic"}}, {"smart": {"targets": ["claude/claude-haiku-4-5"]}}) as stage:
        stage.upstreams["claude"].respond_with(lambda call: call.answer_json(said))
        response = await stage.say("smart", **fields)
        await stage.at_rest()
        told = response.header("x-sameflight-left-out") or ""

        assert response.status == 200
        assert response.header("x-injected") is None
        assert told.startswith("evil??x-injected??1, ?, " + "a" * 100 + ", f0, ")
        assert len(told.split(", ")) <= 64


# -- credentials ----------------------------------------------------------------------------------------------


async def test_a_dead_credential_of_the_callers_own_is_their_401() -> None:
    """Nobody else's key is tried for them, and the vendor's own words about it come through."""
    said = {"error": {"message": "Incorrect API key provided", "type": "invalid_request_error",
                      "code": "invalid_api_key"}}
    providers: dict[str, Any] = {"openai": {}, "one": COMPATIBLE}
    async with Many(providers, {"smart": {"targets": ["openai/gpt-4o", "one/llama"]}}) as stage:
        stage.upstreams["openai"].respond_with(lambda call: call.answer_json(said, 401))
        response = await (await stage.ask(chat(model="smart"), key=KEY)).read_end()
        await stage.at_rest()

        assert response.status == 401
        assert response.json() == said
        assert stage.calls() == {"openai": 1}
        assert stage.keys_used("openai") == [KEY]


async def test_a_dead_credential_of_one_caller_marks_no_key_of_the_operators() -> None:
    """Another caller's request with the operator's key goes to the same target at once."""
    async def judge(call: Call) -> None:
        if key_of("openai") in (call.header("authorization") or ""):
            await call.answer_json(completion(text_of("openai")))
        else:
            await call.answer_json({"error": {"message": "no", "code": "invalid_api_key"}}, 401)

    async with Many({"openai": {}}, {"smart": {"targets": ["openai/gpt-4o"]}}) as stage:
        stage.upstreams["openai"].respond_with(judge)
        for key in (KEY, OTHER_KEY, KEY, OTHER_KEY, KEY, OTHER_KEY):
            assert (await (await stage.ask(chat(model="smart"), key=key)).read_end()).status == 401
        response = await stage.say("smart")
        await stage.at_rest()

        assert text_in(response) == text_of("openai")


async def test_two_callers_with_credentials_of_their_own_never_share() -> None:
    """The same question for the same model, and each is answered with their own credential."""
    gate = Gate("both")
    async with Many({"openai": {}}, {"smart": {"targets": ["openai/gpt-4o"]}}) as stage:
        async def wait(call: Call) -> None:
            await gate.wait()
            await call.answer_json(completion(call.header("authorization") or ""))

        stage.upstreams["openai"].respond_with(wait)
        asked = [await stage.ask(chat(model="smart"), key=key) for key in (KEY, OTHER_KEY)]
        await gate.reached(2)
        gate.open()
        texts = [text_in(await response.read_end()) for response in asked]
        await stage.at_rest()

        assert texts == [f"Bearer {KEY}", f"Bearer {OTHER_KEY}"]


async def test_a_virtual_key_reaches_every_target_and_is_charged_what_the_answering_one_costs() -> None:
    """Its allowance is asked for by the public name; the price is that of the target that answered, not of the one
    that failed; and the key itself goes to neither."""
    price = {"input": 1_000_000, "output": 0}
    targets = [
        {"provider": "one", "model": "llama", "price": {"input": 7, "output": 7}},
        {"provider": "claude", "model": "claude-sonnet-4-5", "price": price},
    ]
    said = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "hello"}], "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    providers = {"one": COMPATIBLE, "claude": {"kind": "anthropic"}}
    env = {"SAMEFLIGHT_KEY_PEPPER": PEPPER}
    async with Many(providers, {"smart": {"targets": targets}}, env=env, auth="required") as stage:
        issued = await stage.app.vault.issuer.create({"name": "k", "models": ["smart"]})
        token = issued.token
        stage.refuse(["one"])
        stage.upstreams["claude"].respond_with(lambda call: call.answer_json(said))
        response = await (await stage.ask(chat(model="smart"), key=token)).read_end()
        other = await (await stage.ask(chat(model="gpt-4o"), key=token)).read_end()
        line = next(line for line in await stage.access_lines(2) if line["status"] == 200)
        await stage.at_rest()

        assert response.json()["choices"][0]["message"]["content"] == "hello"
        assert other.status == 403
        assert stage.keys_used("claude") == [key_of("claude")]
        assert stage.keys_used("one") == [key_of("one")]
        assert line["cost_usd"] == 3.0
        assert line["key_id"] == issued.record.id


# -- what is kept ---------------------------------------------------------------------------------------------


async def test_a_cached_answer_of_a_translated_model_says_what_was_left_out_as_well() -> None:
    """The second caller asks nobody, and reads the same answer with the same remark."""
    said = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "hello"}], "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    cached = [("x-sameflight-cache", "on"), ("x-sameflight-cache-ttl", "60")]
    async with Many({"claude": {"kind": "anthropic"}}, {"smart": {"targets": ["claude/claude-sonnet-4-5"]}}) as stage:
        stage.upstreams["claude"].respond_with(lambda call: call.answer_json(said))
        body = chat(model="smart", seed=7, temperature=0)
        [first] = await stage.crowd(1, body, headers=cached)
        await stage.settled()
        [second] = await stage.crowd(1, body, headers=cached)
        await stage.settled()

        assert stage.calls() == {"claude": 1}
        assert second.json() == first.json()
        left_out = [response.header("x-sameflight-left-out") for response in (first, second)]
        assert left_out == ["seed", "seed"]


async def test_a_name_that_ends_in_a_star_hands_the_callers_name_on() -> None:
    """`claude-*` at one provider, each model under its own name; the longest name that fits wins."""
    models = {
        "claude-*": {"targets": [{"provider": "one"}]},
        "claude-opus-*": {"targets": ["two/qwen"]},
    }
    async with Many(TWO, models) as stage:
        plain = await stage.say("claude-haiku-4-5")
        longer = await stage.say("claude-opus-4-6")
        await stage.at_rest()

        assert (text_in(plain), text_in(longer)) == (text_of("one"), text_of("two"))
        assert stage.upstreams["one"].history[0].json()["model"] == "claude-haiku-4-5"
        assert stage.upstreams["two"].history[0].json()["model"] == "qwen"


async def test_parameters_of_a_target_are_added_where_the_caller_said_nothing() -> None:
    """Both in the caller's own dialect and in another one; what the caller says wins."""
    extra = {"temperature": 0.25, "top_k": 5}
    models = {
        "same": {"targets": [{"provider": "one", "model": "m", "parameters": extra}]},
        "other": {"targets": [{"provider": "claude", "model": "claude-haiku-4-5", "parameters": extra}]},
    }
    providers = {"one": COMPATIBLE, "claude": {"kind": "anthropic"}}
    async with Many(providers, models) as stage:
        stage.upstreams["claude"].respond_with(refusal(400))
        for model in models:
            await stage.say(model)
            await stage.say(model, temperature=0.5)
        await stage.say("other", temperature=1)
        await stage.at_rest()

        for name in ("one", "claude"):
            sent = [call.json() for call in stage.upstreams[name].history]
            assert [(body["temperature"], body["top_k"]) for body in sent[:2]] == [(0.25, 5), (0.5, 5)]
        assert "temperature" not in sent[2], "1 is what this vendor takes where nothing is said"


async def test_a_request_that_another_proxy_of_ours_tries_again_is_tried_once_here() -> None:
    """Two in a row would multiply attempts otherwise; and the second attempt here says that it is one."""
    async with Many(TWO, SMART) as stage:
        stage.refuse()
        [again] = await stage.crowd(1, chat("again", model="smart"), headers=[("x-sameflight-attempt", "2")])
        assert stage.calls() == {"one": 1}
        stage.upstreams["two"].respond_with(answers("two"))
        await stage.say("smart")
        await stage.at_rest()

        assert again.status >= 500
        marks = [upstream.history[-1].header("x-sameflight-attempt") for upstream in stage.upstreams.values()]
        assert marks == [None, "2"]


async def test_counting_tokens_for_a_model_of_another_vendor_is_refused_by_name() -> None:
    """It has no translation; the caller reads that, in their dialect, and nobody is asked."""
    body = {"model": "smart", "messages": [{"role": "user", "content": "hi"}]}
    async with Many(TWO, SMART) as stage:
        response = await stage.ask(body, path=f"{MESSAGES}/count_tokens", key=PLACEHOLDER)
        await response.read_end()
        await stage.at_rest()

        assert response.status == 400
        assert response.json()["type"] == "error"
        assert stage.calls() == {}


# -- embeddings -----------------------------------------------------------------------------------------------


def vector_of(text: str) -> list[float]:
    """One that only this text has."""
    return [float(ord(letter)) + 0.5 for letter in text.ljust(4)[:4]]


async def embed(call: Call) -> None:
    asked = call.json()
    inputs = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    data = [{"object": "embedding", "index": at, "embedding": vector_of(text)} for at, text in enumerate(inputs)]
    usage = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
    await call.answer_json({"object": "list", "model": asked["model"], "data": data, "usage": usage})


async def test_a_batch_whose_target_fails_is_asked_of_the_next() -> None:
    """Together or alone, each caller gets its own vector from the second target."""
    models = {
        "embed": {"targets": ["one/nomic", "two/bge"], "batching": {"most_inputs": 16, "window_ms": 50}},
    }
    async with Many(TWO, models) as stage:
        stage.refuse(["one"])
        stage.upstreams["two"].respond_with(embed)
        texts = [f"t{number}" for number in range(10)]
        asked = [
            await stage.ask({"model": "embed", "input": text}, path="/v1/embeddings", key=PLACEHOLDER)
            for text in texts
        ]
        answered = [await response.read_end() for response in asked]
        await stage.at_rest()

        assert [response.status for response in answered] == [200] * 10
        assert [response.json()["data"][0]["embedding"] for response in answered] == [*map(vector_of, texts)]
        assert stage.upstreams["one"].calls <= 3
