"""Scenes of what a second look at many providers found: credentials, money and waiting first.

A key of the operator's goes to its provider's address alone, and no caller can bring it to a stop; whoever answers is
whom the books name; and nobody waits for what another target would give at once.
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from typing import Any

import pytest

from proxy.accounting.usage import cost_picodollars
from proxy.config.prices import Price
from proxy.failover.attempt import Attempt, Race
from proxy.failover.course import Course
from proxy.failover.direct import Leg
from proxy.failover.sender import Sender
from proxy.policy.plan import Routed
from proxy.protocol.usage import Usage
from proxy.providers.translation import Decoder
from proxy.upstream.outcomes import Outcome
from tests.fakes.client import RawResponse
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, run_ticks, wait_until
from tests.fakes.upstream import Call, ScriptedUpstream, make_event
from tests.scenes.many import PLACEHOLDER, SSE, Many, Script, answers, key_of, refusal, text_in, text_of
from tests.scenes.stage import chat, completion, delta
from tests.scenes.test_keys import PEPPER, make_key

COMPATIBLE = {"kind": "compatible"}
TWO: dict[str, Any] = {"one": COMPATIBLE, "two": COMPATIBLE}
ONE: dict[str, Any] = {"one": COMPATIBLE}
SMART: dict[str, Any] = {"smart": {"targets": ["one/llama", "two/qwen"]}}
ONLY: dict[str, Any] = {"smart": {"targets": ["one/llama"]}}
HEDGED: dict[str, Any] = {
    "smart": {"targets": ["one/llama", "two/qwen"], "hedging": {"after_s": 0.01, "most_share": 1.0}}
}
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
OF_A_REQUEST = (Attempt, Race, Course, Leg)
LAST_CHUNK = b"0\r\n\r\n"


def chunk(*events: object) -> bytes:
    """Events of a stream as one HTTP chunk."""
    data = b"".join(map(make_event, events))
    return b"%x\r\n%b\r\n" % (len(data), data)


def json_answer(status: int, value: object) -> bytes:
    body = json.dumps(value).encode()
    head = b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


async def without_keeping(call: Call) -> None:
    """An answer after which the connection is closed, as some load balancers do it."""
    await call.answer_json(completion(text_of("one")), 200, [("connection", "close")])


def echoing(message: str, member: str) -> Script:
    """An upstream that says ``message`` about a member of the body which it does not like, and answers all else."""

    async def script(call: Call) -> None:
        if member in call.json():
            error = {"message": message, "type": "invalid_request_error", "param": member, "code": None}
            await call.answer_json({"error": error}, 400)
        else:
            await call.answer_json(completion(text_of("one")))

    return script


# -- keys of the operator's -----------------------------------------------------------------------------------


async def test_a_callers_words_repeated_in_a_refusal_do_not_kill_the_operators_key() -> None:
    """Vendors repeat the name of a member they do not know. One that is called like their words about a bad key is
    still the caller's own mistake, and the next caller is answered."""
    async with Many(ONE, ONLY) as stage:
        script = echoing("Unrecognized request argument supplied: invalid api key", "invalid api key")
        stage.upstreams["one"].respond_with(script)
        odd = await stage.say("smart", "odd", **{"invalid api key": 1})
        next_one = await stage.say("smart", "as usual")
        await stage.at_rest()

        assert (odd.status, next_one.status) == (400, 200)


async def test_a_bad_request_about_billing_is_not_taken_for_an_empty_account() -> None:
    """A tool of that name has a bad schema: the caller hears so from the first target, and no other is asked."""
    tool = {"type": "function", "function": {"name": "billing_lookup", "parameters": {"type": "no"}}}
    async with Many(TWO, SMART) as stage:
        script = echoing("Invalid schema for function 'billing_lookup': 'no' is not valid.", "tools")
        stage.upstreams["one"].respond_with(script)
        response = await stage.say("smart", tools=[tool])
        await stage.at_rest()

        assert response.status == 400
        assert stage.calls() == {"one": 1}


async def test_a_callers_organization_does_not_kill_the_operators_key() -> None:
    """`OpenAI-Organization` belongs to a credential: beside the operator's key a stranger's is answered with 401, by
    which the key would be put aside for everybody."""

    async def judge(call: Call) -> None:
        if call.header("openai-organization"):
            text = "OpenAI-Organization header should match organization for API key"
            await call.answer_json({"error": {"message": text, "code": "mismatched_organization"}}, 401)
        else:
            await call.answer_json(completion(text_of("one")))

    async with Many({"one": {"kind": "openai"}}, ONLY) as stage:
        stage.upstreams["one"].respond_with(judge)
        mine = [("openai-organization", "org-of-somebody")]
        await (await stage.ask(chat("with mine", model="smart"), key=PLACEHOLDER, headers=mine)).read_end()
        response = await stage.say("smart", "as usual")
        await stage.at_rest()

        assert response.status == 200


async def test_a_key_that_came_with_a_reload_never_goes_to_the_address_of_before() -> None:
    """The provider moves to another vendor, with another key, while a flight of the older catalog is to try again:
    that flight may go to the old address, and then with the old key."""
    gate = Gate("the first attempt")
    fresh = key_of("elsewhere")
    async with ScriptedUpstream() as elsewhere, Many(ONE, ONLY) as stage:
        stage.secrets.add(fresh)
        old = stage.upstreams["one"]

        async def fail_once(call: Call) -> None:
            await gate.wait()
            old.respond_with(answers("one"))
            await call.answer_json({"error": {"message": "no"}}, 500)

        old.respond_with(fail_once)
        response = await stage.ask(chat(model="smart"), key=PLACEHOLDER)
        await gate.reached()
        stage._providers["one"] = {**COMPATIBLE, "base_url": elsewhere.url, "api_key": fresh}
        await stage.reload()
        gate.open()
        await response.read_end()
        await stage.at_rest()

        assert fresh not in stage.keys_used("one")


async def test_a_key_whose_time_is_over_is_tried_though_no_connection_is_idle(frozen_clock: FrozenClock) -> None:
    """The only key was dead for a while and is well again, and its connections were closed meanwhile: whoever comes
    first is answered with it."""
    async with Many(ONE, ONLY, clock=frozen_clock) as stage:
        one = stage.upstreams["one"]
        one.respond_with(refusal(401, "Incorrect API key provided", code="invalid_api_key"))
        assert (await stage.say("smart", "while it is dead")).status == 502
        one.respond_with(without_keeping)
        one.close_idle()
        await wait_until(lambda: not one.open_connections, "the connections were closed")
        frozen_clock.advance(301.0)
        statuses = []
        for number in range(3):
            statuses.append((await stage.say("smart", f"when it is well {number}")).status)
            frozen_clock.advance(31.0)
        await stage.at_rest()

        assert statuses == [200, 200, 200]


async def test_keys_take_turns_though_no_connection_is_idle() -> None:
    """Each call needs a connection of its own; the keys go round all the same, and each use counts once."""
    keys = [key_of("one", 1), key_of("one", 2)]
    async with Many({"one": {**COMPATIBLE, "api_keys": keys}}, ONLY) as stage:
        stage.upstreams["one"].respond_with(without_keeping)
        for number in range(6):
            await stage.say("smart", f"question {number}")
        await stage.at_rest()

        assert Counter(stage.keys_used("one")) == dict.fromkeys(keys, 3)
        assert sum(uses for _, _, uses in stage.app.fleet.credentials.uses() if uses) == 6


async def test_a_callers_own_credential_goes_in_the_header_that_its_operation_knows() -> None:
    """The OpenAI SDK brings a key of Anthropic's as a bearer. Its chat completion is translated into a message, and
    there Anthropic takes keys in `x-api-key` alone."""
    own = "sk-ant-api03-somebodys-own-key"
    providers = {"anthropic": {"kind": "anthropic"}}
    async with Many(providers, {"smart": {"targets": ["anthropic/claude-sonnet-4-5"]}}) as stage:
        stage.upstreams["anthropic"].respond_with(lambda call: call.answer_json({"error": {}}, 400))
        response = await stage.ask(chat(model="smart"), path="/anthropic/v1/chat/completions", key=own)
        await response.read_end()
        await stage.at_rest()
        (call,) = stage.upstreams["anthropic"].history

        assert call.path == "/v1/messages"
        assert (call.header("x-api-key"), call.header("authorization")) == (own, None)


async def test_a_callers_own_dead_credential_is_their_401_though_it_was_translated() -> None:
    """Nothing is configured that the operator could mend: the caller has to hear whose key it is."""
    providers = {"anthropic": {"kind": "anthropic"}}
    async with Many(providers, {"smart": {"targets": ["anthropic/claude-sonnet-4-5"]}}) as stage:
        dead = {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}
        stage.upstreams["anthropic"].respond_with(lambda call: call.answer_json(dead, 401))
        response = await stage.ask(chat(model="smart"), path="/anthropic/v1/chat/completions", key="sk-ant-own-dead")
        await response.read_end()
        await stage.at_rest()

        assert response.status == 401


async def test_the_operator_hears_of_a_server_that_wants_a_key_and_was_given_none() -> None:
    """The caller is told that it is no fault of theirs; the log says whose it is."""
    async with Many({"one": {**COMPATIBLE, "api_key": ""}}, ONLY) as stage:
        stage.secrets.discard("")
        stage.refuse(status=401, message="a key, please")
        response = await stage.say("smart")
        await stage.access_lines(1)
        events = [json.loads(line)["event"] for line in stage.log_output.getvalue().splitlines()]

        assert response.status == 502
        assert "provider_key_refused" in events


# -- waiting --------------------------------------------------------------------------------------------------


async def test_a_retry_after_beyond_a_callers_patience_is_handed_on_at_once() -> None:
    """The official SDKs wait ten minutes and say so. An upstream that wants half an hour is not worth their while,
    and they know best what to do with a 429."""
    patient = [("x-stainless-read-timeout", "600")]
    async with Many(ONE, ONLY) as stage:
        stage.refuse(status=429, message="slow down", headers=[("retry-after", "1800")])
        response = await stage.ask(chat(model="smart"), key=PLACEHOLDER, headers=patient)
        await response.read_end()
        await stage.at_rest()

        assert response.status == 429
        assert response.header("retry-after") == "1800"


async def test_who_waits_for_a_retry_after_takes_no_retry_from_others() -> None:
    """Three flights wait, for as long as their own provider told them; a fourth one's provider fails, and it is
    answered by the next target all the same."""
    providers = {**TWO, "three": COMPATIBLE}
    models = {**SMART, "throttled": {"targets": ["three/slow"]}}
    async with Many(providers, models) as stage:
        stage.refuse(["three"], 429, message="slow down", headers=[("retry-after", "15")])
        stage.refuse(["one"])
        for number in range(3):
            await stage.ask(chat(f"slow {number}", model="throttled"), key=PLACEHOLDER)
        await stage.upstreams["three"].seen(3)
        throttled = stage.app.fleet.health.targets["three/slow"]
        await wait_until(lambda: not throttled.in_flight, "the three have heard it")
        await run_ticks(20)  # and wait to try again
        response = await stage.say("smart")

        assert (response.status, stage.calls().get("two")) == (200, 1)


async def test_a_target_that_was_told_to_wait_for_is_not_asked_again_in_its_turn() -> None:
    """Both targets ask for more time than there is: each is asked once, and the caller hears when to come back."""
    extra = {"routes": {"chat.completions": {"total_s": 20}}}
    async with Many(TWO, SMART, extra=extra) as stage:
        stage.refuse(status=429, message="slow down", headers=[("retry-after", "30")])
        response = await stage.say("smart")
        await stage.at_rest()

        assert response.status == 429
        assert stage.calls() == {"one": 1, "two": 1}


async def test_a_stream_that_fails_before_its_first_word_is_left_though_it_stays_open() -> None:
    """The error event says it all; whether and when the upstream closes the stream is nobody's concern."""
    closing = Gate("the stream closes")

    async def fail_and_stay(call: Call) -> None:
        await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
        await call.send(b'data: {"error": {"message": "the engine died", "type": "server_error", "code": 500}}\n\n')
        await closing.wait()

    async with Many(TWO, SMART) as stage:
        stage.upstreams["one"].respond_with(fail_and_stay)
        response = await stage.ask(chat(model="smart", stream=True), key=PLACEHOLDER)
        await response.read_end()
        closing.open()
        await stage.at_rest()

        assert text_in(response) == text_of("two")


async def test_a_refusal_that_goes_on_and_on_is_left() -> None:
    """More than enough came to know what it means; the next target is asked instead of waiting for its end."""
    closing = Gate("the refusal ends")

    async def refuse_at_length(call: Call) -> None:
        await call.send_head(500, [("content-type", "text/html")], chunked=True)
        await call.send(b"<p>It is not our fault.</p>" * 20_000)
        await closing.wait()

    async with Many(TWO, SMART) as stage:
        stage.upstreams["one"].respond_with(refuse_at_length)
        response = await stage.ask(chat(model="smart"), key=PLACEHOLDER)
        await response.read_end()
        closing.open()
        await stage.at_rest()

        assert text_in(response) == text_of("two")


async def test_a_bug_in_a_translation_ends_its_flight_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody must hang on a bug, however long the upstream goes on."""

    def stumble(*_: object) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Decoder, "feed", stumble)
    closing = Gate("the stream closes")

    async def begin(call: Call) -> None:
        await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
        await call.send(b'event: message_start\ndata: {"type": "message_start"}\n\n')
        await closing.wait()

    async with Many({"one": {"kind": "anthropic"}}, ONLY) as stage:
        stage.upstreams["one"].respond_with(begin)
        response = await stage.ask(chat(model="smart", stream=True), key=PLACEHOLDER)
        await response.read_end()
        closing.open()
        await stage.settled()

        assert response.status == 500
        assert stage.app.metrics.last_bug


async def test_a_call_that_cannot_begin_leaves_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong between the place at a target and the call: a place that is never left is missing for
    ever."""
    async with Many(ONE, ONLY) as stage:
        assert (await stage.say("smart", "first")).status == 200

        def stumble(*_: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(Sender, "start", stumble)
        assert (await stage.say("smart", "second")).status == 200
        await stage.settled()

        assert stage.app.fleet.health.targets["one/llama"].in_flight == 0


# -- what callers read ----------------------------------------------------------------------------------------


async def test_a_long_refusal_is_a_whole_answer() -> None:
    """What is kept of it is bounded; what the caller gets of it ends as its framing says."""
    async with Many(ONE, ONLY) as stage:
        stage.upstreams["one"].respond_with(refusal(400, "all that is wrong: " + "x" * 300_000))
        response = await stage.say("smart")
        await stage.at_rest()

        assert response.status == 400
        assert response.json()["error"]["message"]


async def test_a_redirect_of_a_target_is_no_answer() -> None:
    """It would tell the caller an address inside, and send its SDK there, which takes an `x-api-key` along."""
    async with Many(TWO, SMART) as stage:
        elsewhere = [("location", "http://inside.example/v1/chat/completions")]
        stage.upstreams["one"].respond_with(lambda call: call.answer(307, elsewhere, b""))
        response = await stage.say("smart")
        await stage.at_rest()

        assert response.status == 200
        assert text_in(response) == text_of("two")


MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 2},
}
MESSAGE_EVENTS: tuple[dict[str, Any], ...] = (
    {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
)


@pytest.mark.parametrize("streams", [False, True], ids=["whole asked", "stream asked"])
async def test_a_translated_answer_has_the_form_that_was_asked_for(streams: bool) -> None:
    """The upstream answers whole where a stream was asked for, or the other way round. What is written anew for the
    caller anyway is written in the form that its SDK reads; it would show nothing of the other one."""

    async def answer_otherwise(call: Call) -> None:
        if streams:
            await call.answer_json(MESSAGE)
        else:
            await call.answer_sse(MESSAGE_EVENTS)

    async with Many({"one": {"kind": "anthropic"}}, ONLY) as stage:
        stage.upstreams["one"].respond_with(answer_otherwise)
        response = await stage.say("smart", stream=streams)
        await stage.at_rest()

        assert (response.header("content-type") or "").startswith(SSE if streams else "application/json")
        assert text_in(response) == "hello"


# -- the health of targets ------------------------------------------------------------------------------------


async def test_a_target_that_fails_within_its_streams_is_ejected_like_any_other() -> None:
    """It says 200 and then, before a word, what went wrong: five times in a row is enough."""

    async def fail_inside(call: Call) -> None:
        await call.answer_sse([{"error": {"message": "the engine died", "type": "server_error", "code": 500}}])

    async with Many(TWO, SMART) as stage:
        stage.upstreams["one"].respond_with(fail_inside)
        for number in range(8):
            assert text_in(await stage.say("smart", f"question {number}", stream=True)) == text_of("two")
        await stage.at_rest()

        assert stage.calls() == {"one": 5, "two": 8}


async def test_one_failed_call_for_many_embeddings_is_one_failure_of_its_target() -> None:
    """Ten requests made that call together. A target is ejected for five failures in a row, not for one."""

    async def embed(call: Call) -> None:
        inputs = call.json()["input"]
        rows = [
            {"object": "embedding", "index": index, "embedding": [1.0]}
            for index in range(len(inputs) if isinstance(inputs, list) else 1)
        ]
        usage = {"prompt_tokens": len(rows), "total_tokens": len(rows)}
        await call.answer_json({"object": "list", "data": rows, "model": "bge", "usage": usage})

    models = {"embed": {"targets": ["one/nomic", "two/bge"], "batching": {"most_inputs": 10, "window_ms": 1000}}}
    async with Many(TWO, models) as stage:
        stage.refuse(["one"])
        stage.upstreams["two"].respond_with(embed)
        asked = [
            await stage.ask({"model": "embed", "input": f"t{number}"}, path="/v1/embeddings", key=PLACEHOLDER)
            for number in range(10)
        ]
        statuses = Counter([(await response.read_end()).status for response in asked])
        await stage.at_rest()

        assert statuses == {200: 10}
        assert stage.upstreams["one"].calls == 1
        assert stage.app.fleet.health.targets["one/nomic"].breaker.opened == 0


@pytest.mark.parametrize("script", [
    refusal(429, "slow down", kind="rate_limit_error", headers=[("retry-after", "60")]),
    refusal(404, "no such model", code="model_not_found"),
    refusal(403, "not from here"),
], ids=["throttled", "unknown model", "forbidden"])  # fmt: skip
async def test_a_target_that_cannot_answer_for_long_does_not_use_up_what_the_others_need(script: Script) -> None:
    """It said so itself, and will say it again. With a second target that is well, everybody is answered, however
    many come: what is known beforehand is no retry."""
    async with Many(TWO, SMART) as stage:
        stage.upstreams["one"].respond_with(script)
        statuses = Counter([(await stage.say("smart", f"question {number}")).status for number in range(40)])
        await stage.at_rest()

        assert statuses == {200: 40}


async def test_a_translated_stream_that_ends_in_an_error_is_a_failure_of_its_target() -> None:
    """As one that is reset at the same place is: nothing may be tried again, but somebody else is to be asked next
    time."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    async with Many({"one": {"kind": "anthropic"}}, ONLY) as stage:
        stage.upstreams["one"].respond_with(lambda call: call.answer_sse([*MESSAGE_EVENTS[:3], error]))
        response = await stage.say("smart", stream=True)
        await stage.at_rest()
        counts = stage.app.fleet.health.targets["one/llama"].counts

        assert b'"error"' in response.body
        assert counts[Outcome.OK] == 0


async def test_a_callers_own_empty_account_takes_no_room_from_others(frozen_clock: FrozenClock) -> None:
    """Somebody's own key is throttled again and again. That says nothing about how many calls the provider bears of
    all the others, who come with the operator's."""
    async with Many(
        {"openai": {"kind": "openai"}}, {"smart": {"targets": ["openai/gpt"]}}, clock=frozen_clock
    ) as stage:
        stage.refuse(status=429, message="slow down", headers=[("retry-after", "3600")])
        for number in range(12):
            response = await stage.ask(chat(f"question {number}", model="smart"), key="sk-somebodys-own-key")
            assert (await response.read_end()).status == 429
            frozen_clock.advance(1.5)
        await stage.at_rest()
        limit = stage.app.fleet.health.targets["openai/gpt"].limit

        assert (limit.cuts, limit.most) == (0, 64)


async def test_names_that_nobody_knows_use_up_no_retries_of_others() -> None:
    """Under a name that ends in a star callers ask for what they like. What no target knows is their own mistake;
    the failure of a target is made good for the next one all the same."""
    models = {"*": {"targets": [{"provider": "one"}, {"provider": "two"}]}}
    unknown = refusal(404, "The model does not exist", code="model_not_found")
    async with Many(TWO, models) as stage:
        for upstream in stage.upstreams.values():
            upstream.respond_with(unknown)
        for number in range(40):
            assert (await stage.say(f"nobody-knows-{number}")).status == 404
        stage.upstreams["one"].respond_with(refusal(500))
        stage.upstreams["two"].respond_with(answers("two"))
        response = await stage.say("llama")
        await stage.at_rest()

        assert response.status == 200


# -- memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.long
async def test_an_attempt_leaves_with_its_answer(streams: bool) -> None:
    """Nothing of a routed request is left for the collector, whose runs hold up everybody's streams."""
    async with Many(ONE, ONLY) as stage:
        for number in range(3):
            await stage.say("smart", f"warm {number}", stream=streams)
        await stage.at_rest()
        gc.collect()
        gc.disable()
        try:
            for number in range(10):
                await stage.say("smart", f"question {number}", stream=streams)
            await stage.at_rest()
            left = Counter([type(each).__name__ for each in gc.get_objects() if type(each) in OF_A_REQUEST])
        finally:
            gc.enable()

        assert left.total() <= len(OF_A_REQUEST), left  # the last one may stand on somebody's frame


# -- two attempts at once -------------------------------------------------------------------------------------


async def ask_both(stage: Many) -> tuple[RawResponse, Call, Call]:
    """A stream whose first target is slow, so that the second one is asked as well; both wait for what to say."""
    for upstream in stage.upstreams.values():
        upstream.respond_with(None)
    response = await stage.ask(chat(model="smart", stream=True), key=PLACEHOLDER)
    first = await stage.upstreams["one"].next_call()
    second = await stage.upstreams["two"].next_call()
    return response, first, second


async def finish(call: Call, *events: object) -> None:
    """The rest of a stream that began raw."""
    call.raw(chunk(*events) + LAST_CHUNK)
    call.done()


async def test_who_fails_beside_the_winner_is_not_whom_the_books_name() -> None:
    """The first target refuses in the very moment in which the second begins to answer: it is the second one's
    answer, and its price."""
    async with Many(TWO, HEDGED) as stage:
        response, first, second = await ask_both(stage)
        first.raw(json_answer(500, {"error": {"message": "no"}}))
        second.raw(SSE_HEAD + chunk(delta("<two:0>")))
        first.done()
        await response.read_until(b"<two:0>")
        await finish(second, delta("<two:1>"), "[DONE]")
        await response.read_end()
        (line,) = await stage.access_lines(1)
        await stage.at_rest()

        assert text_in(response) == "<two:0><two:1>"
        assert line["target"] == "two/qwen"


async def test_who_loses_beside_the_winner_says_nothing_about_its_tokens() -> None:
    """Both begin in the same moment. What the loser counted is no part of the winner's bill."""
    providers = {"one": {"kind": "anthropic"}, "two": COMPATIBLE}
    start = {"type": "message_start", "message": {"id": "m", "role": "assistant", "usage": {"input_tokens": 9999}}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    words = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "<one:0>"}}
    counted = {**completion(), "object": "chat.completion.chunk", "choices": []}
    async with Many(providers, HEDGED) as stage:
        response, first, second = await ask_both(stage)
        second.raw(SSE_HEAD + chunk(delta("<two:0>")))
        first.raw(SSE_HEAD + chunk(*(f"{json.dumps(event)}" for event in (start, block, words))))
        first.done()
        await response.read_until(b"<two:0>")
        await finish(second, counted, "[DONE]")
        await response.read_end()
        (line,) = await stage.access_lines(1)
        await stage.at_rest()

        assert b"<one" not in response.body
        assert (line["tokens_in"], line["tokens_out"]) == (5, 7)


async def test_a_bad_request_is_one_though_a_second_target_fails_beside_the_first() -> None:
    """The first target says that the request itself is at fault, the second one is down: the caller hears the first,
    and nobody is asked again."""
    async with Many(TWO, HEDGED) as stage:
        response, first, second = await ask_both(stage)
        second.raw(json_answer(500, {"error": {"message": "down"}}))
        second.done()
        first.raw(json_answer(400, {"error": {"message": "'temperature' must be below 2", "code": None}}))
        first.done()
        stage.refuse()
        await response.read_end()
        await stage.at_rest()

        assert response.status == 400
        assert stage.calls() == {"one": 1, "two": 1}


async def test_a_model_of_one_attempt_is_never_asked_twice() -> None:
    """Attempts are calls in all, those that run beside another one included; so it is for what another proxy of ours
    tries again."""
    slow = Gate("the slow target")
    models = {"smart": {**HEDGED["smart"], "attempts": 1}}
    async with Many(TWO, models) as stage:

        async def answer_late(call: Call) -> None:
            await slow.wait()
            await call.answer_json(completion(text_of("one")))

        stage.upstreams["one"].respond_with(answer_late)
        response = await stage.ask(chat(model="smart"), key=PLACEHOLDER)
        await slow.reached()
        passed = asyncio.Event()
        stage.app.deadlines.arm(0.1, passed.set)  # fires behind that of the hedge
        await passed.wait()
        slow.open()
        await response.read_end()
        await stage.at_rest()

        assert stage.app.fleet.failover.hedges_started == 0
        assert stage.calls() == {"one": 1}


# -- money ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("usage", [Usage(100_000, 10), Usage(10, 100_000)], ids=["much read", "much written"])
def test_what_is_reserved_does_for_whichever_target_answers(usage: Usage) -> None:
    """One target is dear in reading and the other in writing: the reservation is as dear as the dearer of both."""
    prices = {"one/a": Price(input=10.0, output=1.0), "two/b": Price(input=1.0, output=2.0)}
    routed = Routed(None, "smart", (), prices, [], False, 3)  # type: ignore[arg-type]

    assert cost_picodollars(usage, routed.dearest) >= max(cost_picodollars(usage, each) for each in prices.values())


async def test_a_budget_is_not_spent_at_a_target_without_a_price() -> None:
    """The operator refuses models under a budget whose price is not known. A second target without a price would be
    the way around it, for nothing, as soon as the first one fails."""
    models = {"smart": {"targets": [{"provider": "one", "model": "a", "price": {"input": 1}}, "two/unheard-of"]}}
    env = {"SAMEFLIGHT_KEY_PEPPER": PEPPER}
    async with Many(TWO, models, env=env, auth="required", budget_unpriced="refuse") as stage:
        stage.refuse(["one"])
        issued = await make_key(stage, tenant="acme", budget="1/total")
        response = await stage.ask(chat(model="smart"), key=issued.token)
        await response.read_end()
        await stage.at_rest()

        assert response.status != 200
        assert "two" not in stage.calls()
