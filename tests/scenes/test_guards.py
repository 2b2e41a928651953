"""Guards of requests and of whole answers, through the real proxy, with a server that the remote ones are."""

from __future__ import annotations

import asyncio
import gzip
import json
import statistics
import time
from typing import Any

import pytest

from tests.fakes.gates import Gate, wait_until
from tests.fakes.upstream import Call
from tests.scenes.guarded import CARD, CARDS, OTHER_CARD, Guarded, guarded
from tests.scenes.many import PLACEHOLDER, text_of
from tests.scenes.stage import CHAT, MESSAGES, as_bytes, chat, completion, delta, stream_events

HOOK: dict[str, Any] = {"kind": "webhook", "timeout_ms": 5_000}
DURING: dict[str, Any] = {**HOOK, "mode": "during"}
BLOCKS = {"action": "block", "reason": "test"}
FIVE = {f"g{number}": DURING for number in range(5)}


def error_of(body: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(body)["error"]
    return error


# -- beside the upstream's call -------------------------------------------------------------------------------


async def test_guards_are_asked_beside_each_other_and_beside_the_upstream() -> None:
    """All five are asked before any has answered, and so is the upstream."""
    async with guarded(FIVE) as stage:
        gate = Gate("the guards")
        stage.guards.gates = dict.fromkeys(FIVE, gate)
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await wait_until(lambda: stage.guards.calls == 5, "all guards were asked")
        gate.open()
        await call.answer_sse(stream_events("hello"))
        await response.read_end()
        await stage.at_rest()

        assert response.body == as_bytes(stream_events("hello"))
        assert stage.guards.asked("g0")[0]["texts"] == ["hi"]
        assert stage.series('guard_results_total{guard="g0",result="passed"}') == 1


async def test_no_byte_is_let_through_before_the_verdict_and_all_of_them_then() -> None:
    """The answer has come; it waits, bounded, until the last guard has spoken."""
    async with guarded({"fast": DURING, "slow": DURING}) as stage:
        gate = stage.guards.gates["slow"] = Gate("the slow guard")
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
        await call.send(as_bytes([delta("one")]))
        await wait_until(lambda: stage.app.guarding.screening.held.bytes > 0, "the gate holds something")
        assert stage.series("guard_held_bytes") > 0
        assert response.status == 0

        gate.open()
        await response.read_until(b"one")
        await call.send(as_bytes([delta("two")]))
        await response.read_until(b"two")
        await call.send(as_bytes(["[DONE]"]))
        await call.end()
        await response.read_end()
        await stage.at_rest()

        assert response.body == as_bytes([delta("one"), delta("two"), "[DONE]"])


async def test_a_verdict_that_is_there_first_costs_the_answer_nothing() -> None:
    """Nothing of the answer is ever held, and no time passes between its arrival and its way out."""
    async with guarded(FIVE) as stage:
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await wait_until(lambda: stage.series("guard_results_total") == 5, "all guards have spoken")
        await call.answer_sse(stream_events("hello"))
        await response.read_end()
        await stage.at_rest()

        (line,) = await stage.access_lines(1)
        assert line["overhead_ms"] < 20
        assert stage.series("guard_upstream_pauses_total") == 0


async def test_a_block_cancels_the_upstreams_call_and_is_told_in_the_callers_dialect() -> None:
    """Chat completions read an error of OpenAI's."""
    async with guarded({"strict": DURING}) as stage:
        stage.guards.says["strict"] = BLOCKS
        gate = stage.guards.gates["strict"] = Gate("the guard")
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
        await call.send(as_bytes([delta("what nobody may read")]))
        gate.open()
        await response.read_end()
        await call.client_gone()
        await stage.at_rest()

        assert response.status == 400
        assert error_of(response.body) == {
            "message": "The request was blocked by the guard 'strict'.",
            "type": "invalid_request_error",
            "param": None,
            "code": "content_policy_violation",
        }
        assert response.header("x-should-retry") == "false"
        assert b"nobody" not in response.body
        (line,) = await stage.access_lines(1)
        assert line["error_type"] == "content_policy_violation"
        assert stage.series('flights_total{ending="blocked"}') == 1


async def test_a_block_before_the_upstream_has_answered_cancels_its_call_as_well() -> None:
    """The model works on, and is told to stop."""
    async with guarded({"strict": DURING}) as stage:
        stage.guards.says["strict"] = BLOCKS
        response = await stage.ask(
            {"model": "claude", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}, path=MESSAGES
        )
        await response.read_end()
        await wait_until(lambda: stage.upstream.aborted == stage.upstream.calls, "the call was cancelled")
        await stage.at_rest()

        assert response.status == 400
        assert json.loads(response.body)["type"] == "error"
        assert error_of(response.body)["type"] == "invalid_request_error"


async def test_the_first_guard_that_blocks_does_not_wait_for_the_others() -> None:
    """The slow one is not asked on."""
    async with guarded({"strict": DURING, "slow": DURING}) as stage:
        stage.guards.says["strict"] = BLOCKS
        gate = stage.guards.gates["slow"] = Gate("never")
        response = await stage.ask(chat())
        await response.read_end()
        await gate.reached()
        await wait_until(lambda: stage.guards.aborted == 1, "the slow guard is left alone")
        await stage.at_rest()

        assert response.status == 400


async def test_an_answer_beyond_the_bound_makes_the_upstream_wait_for_the_verdict() -> None:
    """What is held for a slow guard is bounded; afterwards everything comes, in order."""
    async with guarded({"slow": DURING}) as stage:
        gate = stage.guards.gates["slow"] = Gate("the slow guard")
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
        sent = as_bytes([delta("x" * 64_000)]) * 60
        size = len(sent) // 60
        for at in range(60):
            call.raw(b"%x\r\n%b\r\n" % (size, sent[at * size : (at + 1) * size]))
        await wait_until(lambda: stage.series("guard_upstream_pauses_total") == 1, "the upstream waits")
        assert stage.app.guarding.screening.held.bytes < 1 << 20

        gate.open()
        await call.send(as_bytes(["[DONE]"]))
        await call.end()
        await response.read_end()
        await stage.at_rest()

        assert response.body == sent + as_bytes(["[DONE]"])


async def test_many_followers_of_a_guarded_flight_cost_one_check() -> None:
    """Every one of them gets the answer that was checked once."""
    async with guarded({"hook": DURING}) as stage:
        gate = stage.guards.gates["hook"] = Gate("the guard")
        responses = await stage.ask_many(50, chat(stream=True))
        gate.open()
        call = await stage.upstream.next_call()
        await call.answer_sse(stream_events("hello"))
        for response in responses:
            await response.read_end()
        await stage.at_rest()

        assert {response.body for response in responses} == {as_bytes(stream_events("hello"))}
        assert (stage.guards.calls, stage.upstream.calls) == (1, 1)


async def test_a_blocked_flight_is_blocked_for_all_its_followers() -> None:
    """One check, one cancelled call, and the same error for everybody."""
    async with guarded({"hook": DURING}) as stage:
        gate = stage.guards.gates["hook"] = Gate("the guard")
        stage.guards.says["hook"] = BLOCKS
        responses = await stage.ask_many(20, chat(stream=True))
        await stage.upstream.next_call()
        gate.open()
        for response in responses:
            await response.read_end()
        await wait_until(lambda: stage.upstream.aborted == 1, "the call was cancelled")
        await stage.at_rest()

        assert {response.status for response in responses} == {400}
        assert stage.guards.calls == 1


async def test_when_everybody_leaves_the_guard_is_not_asked_on() -> None:
    """Neither the upstream's call nor the check outlives the callers."""
    async with guarded({"hook": DURING}) as stage:
        gate = stage.guards.gates["hook"] = Gate("never")
        await stage.ask(chat(stream=True))
        await stage.upstream.next_call()
        await gate.reached()
        await stage.clients[-1].close()
        await wait_until(lambda: (stage.guards.aborted, stage.upstream.aborted) == (1, 1), "both calls are cancelled")
        await stage.at_rest()


async def test_a_flag_is_told_in_a_header_and_in_the_log() -> None:
    """The answer is as it was."""
    async with guarded({"watch": {**DURING, "action": "flag"}}) as stage:
        stage.guards.says["watch"] = BLOCKS
        stage.upstream.respond_with(lambda call: call.answer_json(completion("hello")))
        response = await (await stage.ask(chat())).read_end()
        await stage.at_rest()

        assert response.status == 200
        assert response.header("x-sameflight-flagged") == "watch"
        (line,) = await stage.access_lines(1)
        assert line["flagged"] == "watch"


async def test_the_moderation_endpoint_is_asked_with_its_key_and_heeded_by_category() -> None:
    """What it flags elsewhere is not what the operator wants blocked."""
    said = {"kind": "moderation", "mode": "during", "api_key": "the-moderation-key", "categories": ["violence"]}
    async with guarded({"mod": said}) as stage:
        stage.secrets.add("the-moderation-key")
        stage.upstream.respond_with(lambda call: call.answer_json(completion("hello")))
        statuses = []
        for number, category in enumerate(("hate", "violence")):
            result = {"flagged": True, "categories": {category: True}, "category_scores": {category: 0.9}}
            stage.guards.says["mod"] = {"results": [result]}
            statuses.append((await (await stage.ask(chat(f"hi {number}"))).read_end()).status)
        await stage.at_rest()

        assert statuses == [200, 400]
        assert stage.guards.history[0].header("authorization") == "Bearer the-moderation-key"
        assert stage.guards.asked("mod")[0]["input"] == ["hi 0"]


# -- fail modes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["before", "during", "after"])
@pytest.mark.parametrize("fail", ["open", "closed"])
async def test_a_guard_that_hangs_crashes_or_talks_nonsense_follows_its_fail_mode(mode: str, fail: str) -> None:
    """Open: as if it had said nothing. Closed: 503, and nothing of the answer."""
    said = {**HOOK, "mode": mode, "fail": fail}
    hangs = {**said, "timeout_ms": 30, "for": {"routes": ["chat.completions"]}}
    fails = {**said, "for": {"routes": ["completions"]}}
    async with guarded({"hangs": hangs, "fails": fails}) as stage:
        never = stage.guards.gates["hangs"] = Gate("never")
        stage.upstream.respond_with(lambda call: call.answer_json(completion("hello")))
        prompt = {"model": "gpt-4o-mini", "prompt": "hi"}
        other = "/v1/completions"
        for path, body, says in (CHAT, chat(), 0), (other, prompt, 500), (other, prompt, b"<html>"):
            stage.guards.says["fails"] = says
            response = await (await stage.ask(body, path=path)).read_end()
            if fail == "open":
                assert (response.status, response.json()) == (200, completion("hello"))
            else:
                assert response.status == 503
                assert error_of(response.body)["code"] == "guard_unavailable"
                assert b"hello" not in response.body
        never.open()
        await stage.at_rest()

        assert stage.series(f'guard_results_total{{guard="hangs",result="failed_{fail}"}}') == 1
        assert stage.series(f'guard_results_total{{guard="fails",result="failed_{fail}"}}') == 2
        assert stage.series('guard_failures_total{guard="hangs",reason="timeout"}') == 1
        assert stage.series('guard_failures_total{guard="fails",reason="status"}') == 1
        assert stage.series('guard_failures_total{guard="fails",reason="answer"}') == 1


async def test_a_guard_that_answers_too_late_has_not_answered() -> None:
    """Its block comes after its deadline: the answer is out by then, and stays whole."""
    async with guarded({"hook": {**DURING, "fail": "open", "timeout_ms": 30}}) as stage:
        gate = stage.guards.gates["hook"] = Gate("late")
        stage.guards.says["hook"] = BLOCKS
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
        await call.send(as_bytes([delta("one")]))
        await response.read_until(b"one")
        gate.open()
        await call.send(as_bytes(["[DONE]"]))
        await call.end()
        await response.read_end()
        await stage.at_rest()

        assert response.body == as_bytes([delta("one"), "[DONE]"])


async def test_what_the_upstream_does_wrong_while_it_is_held_is_told_after_the_verdict() -> None:
    """The stream breaks off before the guard has spoken: what had come is let through, and then the error."""
    async with guarded({"hook": DURING}) as stage:
        gate = stage.guards.gates["hook"] = Gate("the guard")
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
        await call.send(as_bytes([delta("one")]))
        await wait_until(lambda: stage.app.guarding.screening.held.bytes > 0, "the gate holds something")
        call.reset()
        await wait_until(lambda: not stage.upstream.open_connections, "the call is over")
        gate.open()
        await response.read_end()
        await stage.at_rest()

        assert b"one" in response.body
        assert b"upstream_reset" in response.body


# -- before ---------------------------------------------------------------------------------------------------


async def test_a_request_is_redacted_before_the_upstream_sees_it() -> None:
    """The number of the card stays here; everything else of the body is as it was written."""
    async with guarded({"cards": {**CARDS, "mode": "before", "action": "redact"}}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion("hello")))
        response = await (await stage.ask(chat(f"pay with {CARD} please", temperature=0.5))).read_end()
        await stage.at_rest()

        assert response.status == 200
        sent = stage.upstream.history[0].json()
        assert sent == chat("pay with [CARD] please", temperature=0.5)


async def test_an_encoded_body_is_read_and_goes_out_in_the_clear() -> None:
    """Guards before and during the call see what gzip hides."""
    async with guarded({"cards": {**CARDS, "mode": "before", "action": "redact"}, "hook": DURING}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion("hello")))
        body = gzip.compress(json.dumps(chat(f"pay with {CARD}")).encode())
        headers = [("content-encoding", "gzip"), ("content-type", "application/json")]
        response = await (await stage.ask(body, headers=headers)).read_end()
        await stage.at_rest()

        assert response.status == 200
        (call,) = stage.upstream.history
        assert call.json() == chat("pay with [CARD]")
        assert call.header("content-encoding") is None
        assert stage.guards.asked("hook")[0]["texts"] == ["pay with [CARD]"]


async def test_requests_that_are_equal_once_redacted_share_a_flight() -> None:
    """Two cards, one question."""
    async with guarded({"cards": {**CARDS, "mode": "before", "action": "redact"}}) as stage:
        one = await stage.ask(chat(f"pay with {CARD}", stream=True))
        call = await stage.upstream.next_call()
        other = await stage.ask(chat(f"pay with {OTHER_CARD}", stream=True))
        await stage.attached(2)
        await call.answer_sse(stream_events("hello"))
        assert (await one.read_end()).body == (await other.read_end()).body
        await stage.at_rest()

        assert stage.upstream.calls == 1


async def test_equal_callers_cost_one_check_of_a_built_in_guard() -> None:
    """The body was looked at once, whoever sends it, and redacted for all of them."""
    async with guarded({"cards": {**CARDS, "mode": "before", "action": "redact"}}) as stage:
        responses = await stage.ask_many(20, chat(f"pay with {CARD}", stream=True))
        call = await stage.upstream.next_call()
        await call.answer_sse(stream_events("hello"))
        for response in responses:
            await response.read_end()
        await stage.at_rest()

        assert stage.series('guard_vetted_total{result="checked"}') == 1
        assert stage.series('guard_vetted_total{result="remembered"}') == 19
        assert stage.upstream.calls == 1


async def test_a_built_in_guard_blocks_before_anything_is_asked() -> None:
    """No call, no flight; and the same again from memory."""
    async with guarded({"cards": {**CARDS, "mode": "before", "action": "block"}}) as stage:
        for _ in range(2):
            response = await (await stage.ask(chat(f"pay with {CARD}"))).read_end()
            assert response.status == 400
            assert error_of(response.body)["code"] == "content_policy_violation"
        await stage.at_rest()

        assert stage.upstream.calls == 0
        assert stage.series('guard_vetted_total{result="checked"}') == 1
        assert stage.series('guard_results_total{guard="cards",result="blocked"}') == 2
        assert CARD.encode() not in stage.log_output.getvalue()


async def test_a_remote_guard_before_the_call_is_asked_first_and_once() -> None:
    """The upstream hears nothing until it has allowed the request."""
    async with guarded({"hook": {**HOOK, "mode": "before"}}) as stage:
        gate = stage.guards.gates["hook"] = Gate("the guard")
        responses = await stage.ask_many(5, chat(stream=True))
        await gate.reached()
        assert stage.upstream.calls == 0
        gate.open()
        call = await stage.upstream.next_call()
        await call.answer_sse(stream_events("hello"))
        for response in responses:
            await response.read_end()
        await stage.at_rest()

        assert (stage.guards.calls, stage.upstream.calls) == (1, 1)


async def test_a_long_text_is_looked_at_off_the_loop() -> None:
    """A megabyte of text takes its time in a thread, and is redacted all the same; whoever asks the same waits for
    that one look."""
    async with guarded({"cards": {**CARDS, "mode": "before", "action": "redact", "timeout_ms": 10_000}}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion("hello")))
        body = chat("lorem ipsum " * 20_000 + CARD)
        asking = [await stage.ask(body) for _ in range(3)]
        for response in asking:
            assert (await response.read_end()).status == 200
        await stage.at_rest()

        assert all(call.json()["messages"][0]["content"].endswith("[CARD]") for call in stage.upstream.history)
        assert stage.series('guard_vetted_total{result="checked"}') == 1


@pytest.mark.parametrize("fail", ["open", "closed"])
async def test_a_body_that_cannot_be_read_does_not_slip_past_a_guard(fail: str) -> None:
    """An encoding that nobody here can undo: whoever fails open lets it pass, nobody else does."""
    async with guarded({"cards": {**CARDS, "mode": "before", "fail": fail}}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion("hello")))
        headers = [("content-encoding", "lzma"), ("content-type", "application/json")]
        response = await (await stage.ask(b"no json at all", headers=headers)).read_end()
        await stage.at_rest()

        assert response.status == (200 if fail == "open" else 400)
        assert stage.upstream.calls == (fail == "open")


# -- after ----------------------------------------------------------------------------------------------------


async def test_a_whole_answer_is_redacted_and_stays_a_whole_answer() -> None:
    """Its length is that of what is left."""
    async with guarded({"cards": {**CARDS, "mode": "after", "action": "redact"}}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion(f"your card is {CARD}")))
        response = await (await stage.ask(chat())).read_end()
        await stage.at_rest()

        assert response.json() == completion("your card is [CARD]")
        assert response.header("content-length") == str(len(response.body))


async def test_a_clean_answer_passes_byte_for_byte() -> None:
    """What is written oddly stays odd."""
    async with guarded({"cards": {**CARDS, "mode": "after", "action": "redact"}}) as stage:
        odd = json.dumps(completion("hello"), indent=3).encode()
        stage.upstream.respond_with(lambda call: call.answer(200, [("content-type", "application/json")], odd))
        response = await (await stage.ask(chat())).read_end()
        await stage.at_rest()

        assert response.body == odd


async def test_a_blocked_answer_is_paid_for_and_told_to_nobody() -> None:
    """The upstream has done its work, so it is on the books; the caller reads an error."""
    async with guarded({"cards": {**CARDS, "mode": "after"}}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion(f"your card is {CARD}", 11, 13)))
        response = await (await stage.ask(chat())).read_end()
        await stage.at_rest()

        assert response.status == 400
        assert error_of(response.body)["message"] == "The answer was blocked by the guard 'cards'."
        assert stage.series("tokens_total") == 24
        (line,) = await stage.access_lines(1)
        assert (line["tokens_in"], line["tokens_out"]) == (11, 13)
        assert line["cost_usd"] > 0


async def test_a_remote_guard_reads_the_whole_answer_before_anybody_else() -> None:
    """It is told that this is an answer, and of which request."""
    async with guarded({"hook": {**HOOK, "mode": "after"}}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion("hello")))
        gate = stage.guards.gates["hook"] = Gate("the guard")
        response = await stage.ask(chat())
        await gate.reached()
        assert response.status == 0
        gate.open()
        await response.read_end()
        await stage.at_rest()

        assert response.json() == completion("hello")
        (asked,) = stage.guards.asked("hook")
        assert (asked["direction"], asked["texts"], asked["model"]) == ("answer", ["hello"], "gpt-4o-mini")


async def test_an_upstreams_refusal_is_no_answer_to_be_guarded() -> None:
    """The error reaches the caller as the upstream said it."""
    async with guarded({"hook": {**HOOK, "mode": "after"}}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json({"error": {"message": "no"}}, 404))
        response = await (await stage.ask(chat())).read_end()
        await stage.at_rest()

        assert (response.status, response.json()) == (404, {"error": {"message": "no"}})
        assert stage.guards.calls == 0


async def test_only_guarded_answers_are_kept() -> None:
    """A hit has what the guards left, and asks nobody again."""
    guards = {"cards": {**CARDS, "mode": "after", "action": "redact"}, "hook": DURING}
    extra = {"routes": {"chat.completions": {"cache": {"ttl_s": 60}}}}
    async with guarded(guards, extra=extra) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion(f"your card is {CARD}")))
        first = await (await stage.ask(chat(temperature=0, seed=1))).read_end()
        second = await (await stage.ask(chat(temperature=0, seed=1))).read_end()
        await stage.at_rest()

        assert first.json() == second.json() == completion("your card is [CARD]")
        assert "hit" in (second.header("cache-status") or "")
        assert (stage.upstream.calls, stage.guards.calls) == (1, 1)


async def test_an_answer_that_was_kept_without_guards_is_none_under_them() -> None:
    """The set of guards is part of the fingerprint, and so of what is found in the cache."""
    extra = {"routes": {"chat.completions": {"cache": {"ttl_s": 60}}}}
    async with guarded({}, extra=extra) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion(f"your card is {CARD}")))
        body = chat(temperature=0, seed=1)
        before = await (await stage.ask(body)).read_end()
        stage.extra["guards"] = {"cards": {**CARDS, "mode": "after", "action": "redact"}}
        await stage.reload()
        after = await (await stage.ask(body)).read_end()
        del stage.extra["guards"]
        await stage.reload()
        again = await (await stage.ask(body)).read_end()
        await stage.at_rest()

        assert before.json() == completion(f"your card is {CARD}")
        assert after.json() == completion("your card is [CARD]")
        assert again.json() == before.json()


async def test_guards_stand_before_and_behind_the_targets_of_a_routed_model() -> None:
    """A translated answer is guarded as the caller reads it; a block cancels the target's call and costs the target
    nothing."""
    guards = {"hook": DURING, "cards": {**CARDS, "mode": "after", "action": "redact"}}
    one = {"one": {"kind": "compatible"}}
    async with guarded(guards, providers=one, models={"smart": {"targets": ["one/llama"]}}) as stage:
        assert (await stage.say("smart")).json()["choices"][0]["message"]["content"] == text_of("one")
        stage.guards.says["hook"] = BLOCKS
        gate = Gate("never")

        async def hang(call: Call) -> None:
            await gate.wait()

        stage.upstreams["one"].respond_with(hang)
        response = await stage.say("smart", "something else")
        await wait_until(lambda: stage.upstreams["one"].aborted == 1, "the target's call was cancelled")
        await stage.at_rest()

        assert response.status == 400
        assert stage.series('target_attempts_total{target="one/llama",outcome="failed"}') == 0
        gate.open()


async def test_a_batch_of_embeddings_leaves_out_whoever_is_blocked() -> None:
    """Each caller's text is judged by itself, and the others of the batch get their vectors."""
    model = {"vectors": {"targets": ["one/small"], "batching": {"window_ms": 50}}}
    guards = {"hook": {**HOOK, "mode": "before"}}
    async with guarded(guards, providers={"one": {"kind": "compatible"}}, models=model) as stage:
        async def judge(call: Call) -> None:
            bad = "bad" in call.json()["texts"][0]
            await call.answer_json(BLOCKS if bad else {"action": "allow"})

        async def embed(call: Call) -> None:
            asked = call.json()["input"]
            texts = [asked] if isinstance(asked, str) else asked
            data = [{"object": "embedding", "index": at, "embedding": [0.5]} for at in range(len(texts))]
            usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
            await call.answer_json({"object": "list", "model": "small", "data": data, "usage": usage})

        stage.guards.respond_with(judge)
        stage.upstreams["one"].respond_with(embed)
        bodies = [{"model": "vectors", "input": text} for text in ("good one", "bad", "good two")]
        responses = [await stage.ask(body, path="/v1/embeddings", key=PLACEHOLDER) for body in bodies]
        statuses = [(await response.read_end()).status for response in responses]
        await stage.at_rest()

        assert statuses == [200, 400, 200]
        sent = [call.json()["input"] for call in stage.upstreams["one"].history]
        assert not any("bad" in str(each) for each in sent)


# -- ways around ----------------------------------------------------------------------------------------------


MULTIPART = [("content-type", "multipart/form-data; boundary=x")]
UPGRADE = [
    *(("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-version", "13")),
    ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
]


async def test_what_a_guard_cannot_look_into_is_refused() -> None:
    """Uploads, WebSockets and whatever is not understood: a way around a guard would make it worthless. Lists of
    models have no text in them."""
    async with guarded({"cards": {**CARDS, "mode": "before"}}) as stage:
        for method, path, headers in (
            ("POST", "/v1/files", MULTIPART),
            ("POST", "/v1/audio/transcriptions", MULTIPART),
            ("POST", "/v1/somewhere/new", [("content-type", "application/json")]),
            ("GET", "/v1/realtime", UPGRADE),
        ):
            body = b"{}" if method == "POST" else None
            response = await (await stage.ask(body, method=method, path=path, headers=headers)).read_end()
            assert (response.status, path) == (403, path)
            assert "cards" in error_of(response.body)["message"]
        assert stage.upstream.calls == 0

        stage.upstream.respond_with(lambda call: call.answer_json({"object": "list", "data": []}))
        response = await (await stage.ask(method="GET", path="/v1/models")).read_end()
        await stage.settled()
        assert response.status == 200


@pytest.mark.parametrize("said", [{"fail": "open"}, {"for": {"routes": ["chat.completions"]}}])
async def test_a_guard_that_is_not_meant_for_uploads_lets_them_be(said: dict[str, Any]) -> None:
    """One that fails open, or that names its routes."""
    async with guarded({"cards": {**CARDS, "mode": "before", **said}}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json({"id": "file_1"}))
        response = await (await stage.ask(b"--x--", path="/v1/files", headers=MULTIPART)).read_end()
        await stage.at_rest()

        assert response.status == 200


# -- the price ------------------------------------------------------------------------------------------------


def take_time(stage: Guarded, *, guard_s: float, upstream_s: float) -> None:
    """Let guards and upstream take their time."""
    loop = asyncio.get_running_loop()

    async def wait(seconds: float) -> None:
        turn = loop.create_future()
        loop.call_later(seconds, turn.set_result, None)
        await turn

    async def judge(call: Call) -> None:
        await wait(guard_s)
        await call.answer_json({"action": "allow"})

    async def answer(call: Call) -> None:
        await wait(upstream_s)
        await call.answer_sse(stream_events("hello"))

    stage.guards.respond_with(judge)
    stage.upstream.respond_with(answer)


async def first_byte_s(stage: Guarded, number: int) -> float:
    """Seconds to the first byte of one more request; the connection is there already."""
    client = stage.clients[0] if stage.clients else await stage.client()
    began_at = time.perf_counter()
    response = await stage.ask(chat(f"hi {number}", stream=True), client=client)
    await response.read_head()
    took_s = time.perf_counter() - began_at
    await response.read_end()
    return took_s


@pytest.mark.long
async def test_five_guards_of_20_ms_add_less_than_a_millisecond_to_a_first_byte_at_300_ms() -> None:
    """Measured in turn with the same without guards; so that a busy machine does not decide, either the medians or
    the shortest times may show it."""
    async with guarded({}) as plain, guarded(FIVE) as stage:
        for each in (plain, stage):
            take_time(each, guard_s=0.02, upstream_s=0.3)
        pairs = [(await first_byte_s(plain, number), await first_byte_s(stage, number)) for number in range(25)]
        assert stage.guards.calls == 125
    bare, under_guard = zip(*pairs[1:], strict=True)  # the first ones open the connections
    added_s = min(statistics.median(under_guard) - statistics.median(bare), min(under_guard) - min(bare))

    assert added_s <= 0.001, f"{added_s * 1e3:.2f} ms were added"


@pytest.mark.long
async def test_a_block_reaches_the_upstream_within_50_ms() -> None:
    """From the guard's answer to the closed connection, at the end of the call's sockets."""
    async with guarded({"strict": DURING}) as stage:
        stage.guards.says["strict"] = BLOCKS
        times = []
        for number in range(20):
            gate = stage.guards.gates["strict"] = Gate("the guard")
            response = await stage.ask(chat(f"hi {number}", stream=True))
            call = await stage.upstream.next_call()
            await gate.reached()
            began_at = time.perf_counter()
            gate.open()
            await call.client_gone()
            times.append(time.perf_counter() - began_at)
            await response.read_end()
        await stage.at_rest()

    assert statistics.median(times) <= 0.05
    assert min(times) <= 0.02


@pytest.mark.long
async def test_a_thousand_followers_of_a_guarded_flight_cost_one_check() -> None:
    """And one call."""
    async with guarded({"hook": DURING}) as stage:
        gate = stage.guards.gates["hook"] = Gate("the guard")
        responses = await stage.ask_many(1_000, chat(stream=True))
        gate.open()
        call = await stage.upstream.next_call()
        await call.answer_sse(stream_events("hello"))
        for response in responses:
            await response.read_end()
        await stage.at_rest()

        assert {response.body for response in responses} == {as_bytes(stream_events("hello"))}
        assert (stage.guards.calls, stage.upstream.calls) == (1, 1)
