"""A provider fails, and another one answers: attempts are made once for a flight, whoever waits for it."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from typing import Any

import pytest

from tests.fakes.client import RawResponse
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, wait_until
from tests.fakes.upstream import Call
from tests.scenes.many import (
    PLACEHOLDER,
    Many,
    Script,
    answers,
    key_of,
    refusal,
    text_in,
    text_of,
    unused_url,
)
from tests.scenes.stage import KEY, MESSAGES, chat, completion, delta

CROWD = 100
COMPATIBLE = {"kind": "compatible"}
TWO: dict[str, Any] = {"one": COMPATIBLE, "two": COMPATIBLE}
SMART: dict[str, Any] = {"smart": {"targets": ["one/llama", "two/qwen"]}}
TOO_LONG = refusal(400, "This model's maximum context length is 8192 tokens.", code="context_length_exceeded")


def gated(gate: Gate, script: Script) -> Script:
    """The script, once the gate is open."""

    async def wait(call: Call) -> None:
        await gate.wait()
        done = script(call)
        if done is not None:
            await done

    return wait


async def reset(call: Call) -> None:
    call.reset()


async def close(call: Call) -> None:
    call.close()


async def answer_with_words(call: Call) -> None:
    """What a proxy in front of a provider says that is down."""
    await call.answer(502, [("content-type", "text/html")], b"<h1>Bad Gateway</h1>")


async def error_before_content(call: Call) -> None:
    """A stream that begins as always and then says what went wrong, before a word of the answer."""
    first = delta("")
    first["choices"][0]["delta"] = {"role": "assistant", "content": ""}
    error = {"error": {"message": "the engine died", "type": "server_error", "code": 500}}
    await call.answer_sse([first, error])


async def end_before_content(call: Call) -> None:
    """A stream that begins and breaks off before a word of the answer."""
    first = delta("")
    first["choices"][0]["delta"] = {"role": "assistant", "content": ""}
    await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
    await call.send(b"data: " + json.dumps(first).encode() + b"\n\n")
    call.reset()


FAILURES: dict[str, Script] = {
    "500": refusal(500),
    "429": refusal(429, "slow down", kind="rate_limit_error"),
    "401": refusal(401, "Incorrect API key provided", code="invalid_api_key"),
    "reset": reset,
    "502, no JSON": answer_with_words,
    "503": refusal(503),
    "529": refusal(529),
    "402": refusal(402, "no money left"),
    "403": refusal(403, "not from here"),
    "404": refusal(404, "no such model", code="model_not_found"),
    "closed": close,
}
IN_STREAMS: dict[str, Script] = {"error event": error_before_content, "broken off": end_before_content}


async def gather(
    stage: Many, body: object, gates: list[Gate], count: int = CROWD, **options: Any
) -> list[RawResponse]:
    """So many callers on one flight, an equal share of them arriving while its call stands at each gate; what each of
    them has read in the end."""
    responses = [await stage.ask(body, key=PLACEHOLDER, **options)]
    for number, gate in enumerate(gates, 1):
        await gate.reached()
        share = count * number // len(gates) - len(responses)
        responses += [await stage.ask(body, key=PLACEHOLDER, **options) for _ in range(share)]
        await stage.attached(len(responses))
        gate.open()
    return [await response.read_end() for response in responses]


# -- a crowd over a target that fails -------------------------------------------------------------------------


@pytest.mark.parametrize(("failure", "streams"), [("500", True), ("429", False), ("401", True), ("reset", False)])
async def test_a_crowd_over_a_failing_target_gets_the_next_ones_answer(failure: str, streams: bool) -> None:
    """Each of two targets is called once for the flight, and nobody reads a byte of the first."""
    await _crowd_over(FAILURES[failure], streams)


@pytest.mark.long
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("failure", FAILURES)
async def test_a_crowd_over_any_failure_gets_the_next_targets_answer(failure: str, streams: bool) -> None:
    """The same for all there are, both ways."""
    await _crowd_over(FAILURES[failure], streams)


@pytest.mark.parametrize("failure", IN_STREAMS)
async def test_a_stream_that_fails_before_its_first_word_is_begun_elsewhere(failure: str) -> None:
    """It had status 200 and had begun, but nothing of it was told."""
    await _crowd_over(IN_STREAMS[failure], streams=True)


async def _crowd_over(failure: Script, streams: bool) -> None:
    body = chat(model="smart", stream=streams)
    first, second = Gate("the first target"), Gate("the second target")
    async with Many(TWO, SMART) as stage:
        stage.upstreams["one"].respond_with(gated(first, failure))
        stage.upstreams["two"].respond_with(gated(second, answers("two")))
        responses = await gather(stage, body, [first, second])
        lines = await stage.access_lines(CROWD)
        await stage.at_rest()

        assert stage.calls() == {"one": 1, "two": 1}
        assert {response.status for response in responses} == {200}
        assert {text_in(response) for response in responses} == {text_of("two")}
        assert len({response.body for response in responses}) == 1
        assert all(response.ended for response in responses)
        assert stage.upstreams["one"].history[0].json()["model"] == "llama"
        assert stage.upstreams["two"].history[0].json()["model"] == "qwen"
        assert Counter(line["role"] for line in lines) == {"leader": 1, "follower": CROWD - 1}


@pytest.mark.parametrize("streams", [pytest.param(False, marks=pytest.mark.long), True], ids=["whole", "streamed"])
async def test_a_crowd_over_a_target_that_nobody_listens_at_gets_the_next_ones_answer(streams: bool) -> None:
    """The connection is refused; that costs one attempt and no call."""
    body = chat(model="smart", stream=streams)
    gate = Gate("the second target")
    async with Many({**TWO, "one": {**COMPATIBLE, "base_url": unused_url()}}, SMART) as stage:
        stage.upstreams["two"].respond_with(gated(gate, answers("two")))
        responses = await gather(stage, body, [gate])
        await stage.at_rest()

        assert stage.calls() == {"two": 1}
        assert {text_in(response) for response in responses} == {text_of("two")}
        assert {response.status for response in responses} == {200}


async def test_a_crowd_over_a_target_that_is_slow_to_begin_gets_the_next_ones_answer() -> None:
    """The time to its first byte is limited; the call is given up, and what it would have said is never heard."""
    targets = [{"provider": "one", "model": "llama", "first_byte_s": 0.1}, "two/qwen"]
    body = chat(model="smart", stream=True)
    never, second = Gate("the slow target"), Gate("the second target")
    async with Many(TWO, {"smart": {"targets": targets}}) as stage:
        stage.upstreams["one"].respond_with(gated(never, answers("one")))
        stage.upstreams["two"].respond_with(gated(second, answers("two")))
        responses = await gather(stage, body, [second])
        await wait_until(lambda: stage.upstreams["one"].aborted == 1, "the slow call was given up")
        await stage.at_rest()

        assert stage.calls() == {"one": 1, "two": 1}
        assert {text_in(response) for response in responses} == {text_of("two")}


async def test_a_stream_that_falls_silent_before_its_first_word_is_begun_elsewhere() -> None:
    """Status and headers came in time, and then nothing for as long as a stream may be idle."""

    async def only_a_head(call: Call) -> None:
        await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)

    targets = [{"provider": "one", "model": "llama", "idle_s": 0.1}, "two/qwen"]
    async with Many(TWO, {"smart": {"targets": targets}}) as stage:
        stage.upstreams["one"].respond_with(only_a_head)
        response = await stage.say("smart", stream=True)
        await stage.at_rest()

        assert response.status == 200
        assert text_in(response) == text_of("two")
        assert stage.calls() == {"one": 1, "two": 1}


async def test_a_crowd_over_a_failing_model_of_another_dialect_gets_the_answer_in_its_own() -> None:
    """Anthropic's model is overloaded, Gemini's has no quota, and the third answers in chat completions: callers of
    both dialects read it in theirs."""
    providers = {"claude": {"kind": "anthropic"}, "gem": {"kind": "gemini"}, "vllm": COMPATIBLE}
    targets = ["claude/claude-sonnet-4-5", "gem/gemini-2.5-pro", "vllm/llama"]
    gate = Gate("the third target")
    async with Many(providers, {"smart": {"targets": targets}}) as stage:
        overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        spent = {"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}}
        stage.upstreams["claude"].respond_with(lambda call: call.answer_json(overloaded, 529))
        stage.upstreams["gem"].respond_with(lambda call: call.answer_json(spent, 429))
        stage.upstreams["vllm"].respond_with(gated(gate, answers("vllm")))
        ours = {"model": "smart", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        responses = await gather(stage, ours, [gate], 10, path=MESSAGES)
        await stage.at_rest()

        assert stage.calls() == {"claude": 1, "gem": 1, "vllm": 1}
        assert {response.status for response in responses} == {200}
        assert {response.json()["content"][0]["text"] for response in responses} == {text_of("vllm")}
        assert stage.upstreams["gem"].history[0].path == "/v1beta/models/gemini-2.5-pro:generateContent"


# -- when nothing may be tried again --------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["reset", "error event"])
async def test_nothing_is_tried_elsewhere_once_a_caller_has_read_a_word(ending: str) -> None:
    """The stream breaks behind its first word: everybody reads that word and then an error, and the other target is
    never asked."""
    read = Gate("the callers have read")

    async def break_behind_a_word(call: Call) -> None:
        await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
        await call.send(b"data: " + json.dumps(delta("<one:0>")).encode() + b"\n\n")
        await read.wait()
        if ending == "reset":
            call.reset()
        else:
            await call.send(b'data: {"error": {"message": "the engine died", "type": "server_error"}}\n\n')
            await call.end()

    body = chat(model="smart", stream=True)
    async with Many(TWO, SMART) as stage:
        stage.upstreams["one"].respond_with(break_behind_a_word)
        responses = [await stage.ask(body, key=PLACEHOLDER) for _ in range(10)]
        for response in responses:
            await response.read_until(b"<one:0>")
        read.open()
        for response in responses:
            await response.read_end()
        await stage.settled()

        assert stage.calls() == {"one": 1}
        assert all(b'"error"' in response.events()[-1] for response in responses)
        assert all(b"[DONE]" not in response.body and b"two" not in response.body for response in responses)


REFUSALS: dict[str, Script] = {
    "context length": TOO_LONG,
    "content": refusal(400, "Your request was flagged by our content policy", code="content_filter"),
    "malformed": refusal(400, "'temperature' must be below 2", kind="invalid_request_error"),
    "unprocessable": refusal(422, "'temperature' must be below 2", kind="invalid_request_error"),
}


@pytest.mark.parametrize(
    ("reason", "streams"),
    [("context length", False), ("context length", True), ("content", True), ("malformed", False),
     ("unprocessable", True)],
)
async def test_a_request_that_is_at_fault_itself_is_never_tried_again(reason: str, streams: bool) -> None:
    """Another target would only say the same, at a price; the caller hears what the first one said."""
    body = chat(model="smart", stream=streams)
    gate = Gate("the refusal")
    async with Many(TWO, SMART) as stage:
        stage.upstreams["one"].respond_with(gated(gate, REFUSALS[reason]))
        responses = await gather(stage, body, [gate], 10)
        await stage.at_rest()

        assert stage.calls() == {"one": 1}
        assert {response.status for response in responses} <= {400, 422}
        assert all(response.json()["error"]["message"] for response in responses)


async def test_the_number_of_attempts_is_what_the_model_says() -> None:
    """Three targets fail, two are tried; the caller hears of a failure of the upstream, once."""
    providers = {**TWO, "three": COMPATIBLE}
    models = {"smart": {"targets": ["one/a", "two/b", "three/c"], "attempts": 2}}
    async with Many(providers, models) as stage:
        stage.refuse()
        response = await stage.say("smart")
        await stage.at_rest()

        assert response.status >= 500
        assert response.json()["error"]["message"]
        assert stage.calls() == {"one": 1, "two": 1}


async def test_a_crowd_hears_of_a_failure_everywhere_once_for_all() -> None:
    """With every target down, a hundred callers cost as many calls as one."""
    body = chat(model="smart")
    first, second = Gate("the first target"), Gate("the second target")
    async with Many(TWO, SMART) as stage:
        stage.upstreams["one"].respond_with(gated(first, refusal(500)))
        stage.upstreams["two"].respond_with(gated(second, refusal(500)))
        responses = await gather(stage, body, [first, second])
        await stage.at_rest()

        assert sum(stage.calls().values()) <= 3
        assert {response.status for response in responses} <= {500, 502, 503}


# -- keys -----------------------------------------------------------------------------------------------------


async def test_a_dead_key_is_put_aside_at_once_and_stays_there() -> None:
    """The second key of the provider answers the flight; later flights do not try the dead one again."""
    dead, alive = key_of("one", 1), key_of("one", 2)
    gate = Gate("both keys")

    async def judge(call: Call) -> None:
        await gate.wait()
        if call.header("authorization") == f"Bearer {dead}":
            error = {"error": {"message": f"Incorrect API key provided: {dead}", "code": "invalid_api_key"}}
            await call.answer_json(error, 401)
        else:
            await call.answer_json(completion(text_of("one")))

    providers = {"one": {**COMPATIBLE, "api_keys": [dead, alive]}}
    body = chat(model="smart")
    async with Many(providers, {"smart": {"targets": ["one/llama"]}}) as stage:
        stage.upstreams["one"].respond_with(judge)
        responses = await gather(stage, body, [gate])
        for number in range(5):
            responses.append(await stage.say("smart", f"again {number}"))
        await stage.at_rest()

        assert {response.status for response in responses} == {200}
        used = stage.keys_used("one")
        assert used.count(dead) <= 1
        assert used.count(alive) == 6


async def test_a_dead_key_is_the_operators_trouble_and_no_401_of_the_callers() -> None:
    """With no other key and no other target, the caller is not told to look at a key that is not theirs, and reads
    nothing of what the upstream said about it."""
    async with Many({"one": COMPATIBLE}, {"smart": {"targets": ["one/llama"]}}) as stage:
        stage.refuse(status=401, message=f"Incorrect API key provided: {key_of('one')}", code="invalid_api_key")
        response = await stage.say("smart")
        await stage.at_rest()

        assert response.status == 502
        assert key_of("one").encode() not in response.body
        assert response.json()["error"]["code"] == "upstream_credential"


async def test_a_caller_with_a_credential_of_their_own_is_answered_by_its_provider_alone() -> None:
    """Their key goes to the vendor it belongs to, not to the first target, and the operator's key stays at home."""
    providers: dict[str, Any] = {"one": COMPATIBLE, "openai": {}}
    models = {"smart": {"targets": ["one/llama", "openai/gpt-4o"]}}
    async with Many(providers, models) as stage:
        own = await (await stage.ask(chat(model="smart"), key=KEY)).read_end()
        ours = await stage.say("smart")
        await stage.at_rest()

        assert text_in(own) == text_of("openai")
        assert text_in(ours) == text_of("one")
        assert stage.keys_used("openai") == [KEY]
        assert stage.keys_used("one") == [key_of("one")]
        assert stage.upstreams["openai"].history[0].json()["model"] == "gpt-4o"


async def test_a_credential_of_a_vendor_that_does_not_answer_for_a_model_never_leaves_for_another() -> None:
    """The caller is refused, and nobody is asked."""
    async with Many(TWO, SMART) as stage:
        response = await (await stage.ask(chat(model="smart"), key=KEY)).read_end()
        await stage.at_rest()

        assert 400 <= response.status < 500
        assert stage.calls() == {}
        assert stage.upstream.calls == 0


# -- waiting as the upstream asks -----------------------------------------------------------------------------


async def test_retry_after_is_waited_for_where_the_caller_has_the_time() -> None:
    """The only target asks for 60 ms: it is asked again, once, and not before."""
    loop = asyncio.get_running_loop()
    moments: list[float] = []

    async def throttle_once(call: Call) -> None:
        moments.append(loop.time())
        if len(moments) == 1:
            await call.answer_json({"error": {"message": "slow down"}}, 429, [("retry-after-ms", "60")])
        else:
            await call.answer_json(completion(text_of("one")))

    async with Many({"one": COMPATIBLE}, {"smart": {"targets": ["one/llama"]}}) as stage:
        stage.upstreams["one"].respond_with(throttle_once)
        response = await stage.say("smart")
        await stage.at_rest()

        assert response.status == 200
        assert len(moments) == 2
        assert moments[1] - moments[0] >= 0.06


async def test_retry_after_beyond_the_callers_deadline_is_handed_on_at_once() -> None:
    """Nobody waits an hour: the caller hears it and may decide."""
    async with Many({"one": COMPATIBLE}, {"smart": {"targets": ["one/llama"]}}) as stage:
        stage.refuse(status=429, message="slow down", headers=[("retry-after", "3600")])
        response = await stage.say("smart")
        await stage.at_rest()

        assert response.status == 429
        assert float(response.header("retry-after") or 0) == 3600
        assert stage.calls() == {"one": 1}


# -- what is seen ---------------------------------------------------------------------------------------------


async def test_the_chosen_target_and_the_attempts_are_told_to_the_caller_and_the_log() -> None:
    """Both in `Server-Timing`, which browsers and SDKs show, and in the access line."""
    async with Many(TWO, SMART) as stage:
        stage.refuse(["one"])
        response = await stage.say("smart")
        [line] = await stage.access_lines(1)
        await stage.at_rest()
        metrics = stage.app.metrics.render(["text/plain"])[0].decode()

        assert line["target"] == "two/qwen"
        assert line["attempts"] == 2
        timing = response.header("server-timing") or ""
        assert "two/qwen" in timing
        assert "attempts" in timing
        assert {"one/llama", "two/qwen"} <= set(re.findall(r'target="([^"]*)"', metrics))


async def test_fields_that_have_no_place_at_the_target_are_named_to_everybody() -> None:
    """Nothing is dropped in silence: leader and followers alike read which fields were left out."""
    providers = {"claude": {"kind": "anthropic"}}
    gate = Gate("the target")
    said = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "hello"}], "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    async with Many(providers, {"smart": {"targets": ["claude/claude-sonnet-4-5"]}}) as stage:
        stage.upstreams["claude"].respond_with(gated(gate, lambda call: call.answer_json(said)))
        body = chat(model="smart", seed=7, presence_penalty=0.5)
        responses = await gather(stage, body, [gate], 5)
        await stage.at_rest()

        named = {response.header("x-sameflight-left-out") for response in responses}
        assert named in ({"presence_penalty, seed"}, {"seed, presence_penalty"})
        assert {response.json()["choices"][0]["message"]["content"] for response in responses} == {"hello"}


# -- who is chosen --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["weighted", "round_robin", "sticky"])
async def test_identical_requests_pick_the_same_target(strategy: str) -> None:
    """Also when they come one after the other: the choice follows from what is asked, not from when."""
    targets = [{"provider": name, "model": "m", "weight": 1} for name in ("one", "two", "three")]
    providers = dict.fromkeys(("one", "two", "three"), COMPATIBLE)
    async with Many(providers, {"cheap": {"targets": targets, "strategy": strategy}}) as stage:
        for number in range(40):  # by chance all of them miss a target once in three million times
            texts = {text_in(await stage.say("cheap", f"question {number}")) for _ in range(2)}
            assert len(texts) == 1, f"question {number} was answered by {texts}"
        await stage.at_rest()

        assert sum(stage.calls().values()) == 80
        if strategy == "sticky":
            assert len(stage.calls()) == 1, "all questions are of one caller"
        else:
            assert len(stage.calls()) == 3, "forty questions go to all of three equal targets"


@pytest.mark.parametrize("strategy", ["round_robin", "least_in_flight"])
async def test_concurrent_identical_requests_are_one_call_whatever_the_strategy(strategy: str) -> None:
    """Who is asked does not part those who ask the same."""
    targets = [{"provider": name, "model": "m", "price": {"input": 1, "output": 1}} for name in ("one", "two")]
    gate = Gate("the target")
    async with Many(TWO, {"cheap": {"targets": targets, "strategy": strategy}}) as stage:
        for name in TWO:
            stage.upstreams[name].respond_with(gated(gate, answers(name)))
        responses = await gather(stage, chat(model="cheap"), [gate], 20)
        await stage.at_rest()

        assert sum(stage.calls().values()) == 1
        assert len({response.body for response in responses}) == 1


async def test_an_alias_and_the_name_it_stands_for_share_one_flight() -> None:
    """The effective request is the same, so one call answers both; each reads the name it asked for or the model's,
    but the same words."""
    gate = Gate("the target")
    async with Many(TWO, SMART, extra={"aliases": {"gpt-4": "smart"}}) as stage:
        stage.upstreams["one"].respond_with(gated(gate, answers("one")))
        by_alias = await stage.ask(chat(model="gpt-4"), key=PLACEHOLDER)
        await gate.reached()
        by_name = await stage.ask(chat(model="smart"), key=PLACEHOLDER)
        await stage.attached(2)
        gate.open()
        texts = {text_in(await response.read_end()) for response in (by_alias, by_name)}
        await stage.at_rest()

        assert stage.calls() == {"one": 1}
        assert texts == {text_of("one")}


async def test_a_model_that_the_catalog_does_not_know_goes_where_its_path_says() -> None:
    """A catalog with models takes nothing away from requests for other models."""
    async with Many(TWO, SMART) as stage:
        stage.upstream.respond_with(answers("vendor"))
        response = await (await stage.ask(chat(model="gpt-4o-mini"), key=KEY)).read_end()
        await stage.at_rest()

        assert text_in(response) == text_of("vendor")
        assert stage.calls() == {}


# -- a catalog under way --------------------------------------------------------------------------------------


async def test_reloads_under_load_drop_nothing() -> None:
    """Twenty catalogs, in turn with either target first, while callers come without pause: each answer is whole and
    from one target, and both have answered in the end."""
    async with Many(TWO, SMART) as stage:
        done = False
        texts: Counter[str] = Counter()
        problems: list[str] = []

        async def caller(name: int) -> None:
            client, number = await stage.client(), 0
            while not done:
                number += 1
                body = chat(f"{name} asks {number}", model="smart", stream=bool(number % 2))
                response = await (await stage.ask(body, key=PLACEHOLDER, client=client)).read_end()
                if response.status == 200 and response.ended:
                    texts[text_in(response)] += 1
                else:
                    problems.append(f"{response.status} {response.body[:200]!r}")

        callers = [asyncio.create_task(caller(name)) for name in range(8)]
        for number in range(20):
            order = ["two/qwen", "one/llama"] if number % 2 == 0 else ["one/llama", "two/qwen"]
            stage.models["smart"] = {"targets": order}
            before = sum(texts.values())
            await stage.reload()
            await wait_until(lambda before=before: sum(texts.values()) >= before + 8 or problems, "some answers")
        done = True
        await asyncio.gather(*callers)
        await stage.at_rest()

        assert problems == []
        assert set(texts) == {text_of("one"), text_of("two")}


async def test_a_flight_that_began_under_an_older_catalog_keeps_its_targets() -> None:
    """The reload takes away the target that would be tried next; the flight tries it all the same."""
    gate = Gate("the first target")
    async with Many(TWO, SMART) as stage:
        stage.upstreams["one"].respond_with(gated(gate, refusal(500)))
        response = await stage.ask(chat(model="smart"), key=PLACEHOLDER)
        await gate.reached()
        stage.models["smart"] = {"targets": ["one/llama"]}
        await stage.reload()
        gate.open()
        await response.read_end()
        await stage.at_rest()

        assert response.status == 200
        assert text_in(response) == text_of("two")


async def test_a_bad_catalog_under_load_changes_nothing() -> None:
    """A model that names a provider which is not there: the old catalog stays, and callers notice nothing."""
    async with Many(TWO, SMART) as stage:
        before = stage.app.catalogs.reload_failures
        stage.models["smart"] = {"targets": ["nobody/llama"]}
        stage._write()
        stage.app.reload()
        await wait_until(lambda: stage.app.catalogs.reload_failures > before, "the reload failed")
        response = await stage.say("smart")
        await stage.at_rest()

        assert text_in(response) == text_of("one")


# -- over time ------------------------------------------------------------------------------------------------


async def test_a_target_that_fails_again_and_again_is_left_alone_until_it_is_well(frozen_clock: FrozenClock) -> None:
    """Five failures in a row open its breaker: then it costs nobody an attempt. Once its ejection is over a single
    request tries it, and finding it well gives it its place back."""
    async with Many(TWO, SMART, clock=frozen_clock) as stage:
        one = stage.upstreams["one"]
        one.respond_with(refusal(500))
        for number in range(12):
            assert text_in(await stage.say("smart", f"while it fails {number}")) == text_of("two")
        assert stage.calls() == {"one": 5, "two": 12}

        one.respond_with(answers("one"))
        for number in range(3):
            assert text_in(await stage.say("smart", f"while it is ejected {number}")) == text_of("two")
        assert one.calls == 5

        await ejection_over(stage, frozen_clock, "one/llama")
        for number in range(5):
            assert text_in(await stage.say("smart", f"when it is well {number}")) == text_of("one")
        await stage.at_rest()
        assert stage.calls() == {"one": 10, "two": 15}


async def test_a_probe_that_fails_costs_one_call(frozen_clock: FrozenClock) -> None:
    """The target is still down when its ejection is over: one flight tries it and is answered by the other, the rest
    do not even try."""
    async with Many(TWO, SMART, clock=frozen_clock) as stage:
        stage.upstreams["one"].respond_with(refusal(500))
        for number in range(6):
            await stage.say("smart", f"while it fails {number}")
        await ejection_over(stage, frozen_clock, "one/llama")
        texts = {text_in(await stage.say("smart", f"later {number}")) for number in range(5)}
        await stage.at_rest()

        assert texts == {text_of("two")}
        assert stage.calls() == {"one": 6, "two": 11}


async def ejection_over(stage: Many, clock: FrozenClock, target: str) -> None:
    """Let so much time pass that a first ejection is over, whatever its jitter."""
    clock.advance(60.0)
    health = stage.app.fleet.health
    await wait_until(lambda: health.snapshot.views[target].probe, f"a probe is welcome at {target}")


UNHURRIED: dict[str, Any] = {"shed_after_ms": 0}
"""The callers run in the proxy's own loop and delay it, which must not count as its overload."""


async def later(seconds: float) -> None:
    """A slow upstream takes its time; nobody synchronises by it."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    loop.call_later(seconds, over.set_result, None)
    await over


def failing(name: str, share: float, failure: Script, *, seconds: float = 0.0) -> Script:
    """Fails an even ``share`` of its calls, and answers the others after ``seconds``."""
    debt = 0.0

    async def script(call: Call) -> None:
        nonlocal debt
        debt += share
        fails = debt >= 1.0
        debt -= fails
        if seconds:
            await later(seconds)
        done = (failure if fails else answers(name))(call)
        if done is not None:
            await done

    return script


async def rush(stage: Many, requests: int, callers: int = 24) -> Counter[str]:
    """Different questions without pause, half of them streamed; how often each answer was read, and each status that
    is none."""
    heard: Counter[str] = Counter()

    async def caller(name: int) -> None:
        client = await stage.client()
        for number in range(name, requests, callers):
            body = chat(f"question {number}", model="smart", stream=bool(number % 2))
            response = await (await stage.ask(body, key=PLACEHOLDER, client=client)).read_end()
            heard[text_in(response) if response.status == 200 and response.ended else str(response.status)] += 1

    await asyncio.gather(*[caller(name) for name in range(callers)])
    return heard


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("strategy", "least"),
    [("weighted", 0.999), ("round_robin", 0.999), ("least_in_flight", 0.999), ("lowest_latency", 0.999),
     ("ordered", 0.99)],
)
async def test_three_targets_one_failing_one_slow_one_dead_are_as_good_as_one_that_is_well(
    strategy: str, least: float
) -> None:
    """One fails every tenth call, one takes 30 ms, at one nobody listens: of 3,000 different questions 99.9 % are
    answered, each by one target alone, and the upstreams get 10 % more calls at the most. Where all go to the failing
    one first they would need the whole budget of retries, and some find it spent."""
    requests = 3_000
    providers = {"shaky": COMPATIBLE, "slow": COMPATIBLE, "dead": {**COMPATIBLE, "base_url": unused_url()}}
    models = {"smart": {"targets": ["shaky/a", "slow/b", "dead/c"], "strategy": strategy}}
    async with Many(providers, models, **UNHURRIED) as stage:
        stage.upstreams["shaky"].respond_with(failing("shaky", 0.1, refusal(500)))
        stage.upstreams["slow"].respond_with(failing("slow", 0.0, refusal(500), seconds=0.03))
        heard = await rush(stage, requests)
        await stage.at_rest()

        good = heard[text_of("shaky")] + heard[text_of("slow")]
        assert good >= least * requests, heard
        assert sum(stage.calls().values()) <= 1.10 * requests, stage.calls()
        assert set(heard) <= {text_of("shaky"), text_of("slow"), "500", "502", "503"}


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
async def test_retries_never_add_a_fifth_to_the_load_however_much_fails(share: float) -> None:
    """Both targets of a model fail alike: whatever the share, the upstreams get 20 % more calls at the most, and
    callers hear of every failure that no retry made good."""
    requests = 2_000
    models = {"smart": {"targets": ["one/a", "two/b"], "strategy": "weighted"}}
    async with Many(TWO, models, **UNHURRIED) as stage:
        for name in TWO:
            stage.upstreams[name].respond_with(failing(name, share, refusal(500)))
        heard = await rush(stage, requests)
        await stage.at_rest()

        good = heard[text_of("one")] + heard[text_of("two")]
        assert sum(heard.values()) == requests
        assert sum(stage.calls().values()) <= 1.20 * requests, stage.calls()
        assert good >= (1 - share) * requests - 1 or share > 0.25, heard
        if share == 0.0:
            assert stage.calls().keys() == TWO.keys()
            assert sum(stage.calls().values()) == good == requests
