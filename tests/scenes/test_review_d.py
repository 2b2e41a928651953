"""Scenes of policies that meet: what one of them does must not spoil what another one, a limit or a caller needs."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from proxy.policy.turns import MOST_MESSAGES
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate
from tests.fakes.upstream import Call
from tests.scenes.many import PLACEHOLDER, Many, text_in, text_of
from tests.scenes.stage import chat, completion

PEPPER = "a-pepper-for-policies-that-meet"
RESPONSES = "/v1/responses"
HARD = "Analyse the goal, compare both and say why, step by step."
PROVIDERS: dict[str, Any] = {name: {"kind": "compatible"} for name in ("cheap", "strong")}
MODELS: dict[str, Any] = {"small": {"targets": ["cheap/llama"]}, "large": {"targets": ["strong/qwen"]}}
AUTO: dict[str, Any] = {"tiers": {"simple": "small", "complex": "large"}}
PRUNING: dict[str, Any] = {"messages": 4, "block": 4}
SUMMARY: dict[str, Any] = {"model": "small", "max_tokens": 40}
NOTES = "The user counts upwards. " * 4


def house(**extra: Any) -> Many:
    return Many(PROVIDERS, MODELS, extra=extra, env={"SAMEFLIGHT_KEY_PEPPER": PEPPER})


def talk(turns: int, size: int = 80) -> list[dict[str, str]]:
    """So many messages, in which the user has the last word."""
    return [
        {"role": "user" if (turns - at) % 2 else "assistant", "content": f"{at} " + "x" * size} for at in range(turns)
    ]


async def sum_up(call: Call) -> None:
    await call.answer_json(completion(NOTES, 70, 30))


def sent(stage: Many, name: str) -> list[dict[str, Any]]:
    return [call.json() for call in stage.upstreams[name].history]


async def test_a_tool_of_a_type_that_is_no_word_is_the_providers_to_refuse() -> None:
    """Where functions are dropped for simple requests; it is no error of the proxy's."""
    tiers = {"simple": {"model": "small", "drop_tools": True}, "complex": "large"}
    async with house(tiers={"auto": {"tiers": tiers}}) as stage:
        odd: list[object] = [["function"], {"of": "function"}]
        function = {"type": "function", "function": {"name": "f"}}
        responses = [await stage.say("auto", tools=[{"type": kind}, function]) for kind in odd]
        await stage.at_rest()

        assert [response.status for response in responses] == [200, 200]
        assert [body["tools"] for body in sent(stage, "cheap")] == [[{"type": kind}] for kind in odd]


async def test_a_summary_in_mistrals_dialect_is_asked_for_in_its_words() -> None:
    """It refuses fields that it does not know, and bounds answers by another name than OpenAI."""
    providers = {"m": {"kind": "mistral"}}
    models = {"smart": {"targets": ["m/large"]}, "tiny": {"targets": ["m/small"]}}
    extra = {"pruning": {**PRUNING, "summary": {"model": "tiny", "max_tokens": 40}}}
    async with Many(providers, models, extra=extra) as stage:
        stage.upstreams["m"].respond_with(sum_up)
        body = {"model": "smart", "messages": talk(11)}
        path = "/mistral/v1/chat/completions"
        response = await (await stage.ask(body, path=path, key=PLACEHOLDER)).read_end()
        await stage.at_rest()
        [question, _] = sent(stage, "m")

        assert response.status == 200
        assert (question.get("max_tokens"), "max_completion_tokens" in question) == (40, False)


@pytest.mark.long
@pytest.mark.parametrize(
    ("call", "result"),
    [
        ({"type": "shell_call", "call_id": ""}, {"type": "shell_call_output", "call_id": "", "output": []}),
        ({"type": "apply_patch_call", "call_id": ""}, {"type": "apply_patch_call_output", "call_id": ""}),
        ({"type": "mcp_approval_request", "id": ""}, {"type": "mcp_approval_response", "approval_request_id": ""}),
    ],
)
async def test_calls_of_every_kind_stay_with_their_results(call: dict[str, Any], result: dict[str, Any]) -> None:
    """Also where several were made at once, at every place where a cut might lie."""
    calls = [{name: value or f"c{at}" for name, value in call.items()} for at in range(4)]
    results = [{name: f"c{at}" if value == "" else value for name, value in result.items()} for at in range(4)]
    say = {"role": "user", "content": "go on"}
    providers, models = {"r": {"kind": "responses"}}, {"large": {"targets": ["r/gpt"]}}
    async with Many(providers, models, extra={"pruning": {"messages": 4, "block": 1}}) as stage:
        for after in range(8):
            items = [say, *calls, *results, *[say] * (after + 1)]
            await (await stage.ask({"model": "large", "input": items}, path=RESPONSES, key=PLACEHOLDER)).read_end()
        await stage.at_rest()

        assert len(sent(stage, "r")) == 8
        for body in sent(stage, "r"):
            kept = [item for item in body["input"] if "type" in item]
            named = [item.get("call_id") or item.get("id") or item["approval_request_id"] for item in kept]
            assert sorted(named) == sorted(2 * list(dict.fromkeys(named))), kept


@pytest.mark.parametrize("on_failure", ["drop", "keep"])
async def test_a_caller_who_wants_no_call_causes_none_for_a_summary_either(on_failure: str) -> None:
    """There is no answer to find then; it is not looked for at an upstream's cost."""
    async with house(pruning={**PRUNING, "summary": {**SUMMARY, "on_failure": on_failure}}) as stage:
        stage.upstreams["cheap"].respond_with(sum_up)
        body = {"model": "large", "messages": talk(11)}
        said = [
            (await stage.crowd(1, body, headers=[header]))[0].status
            for header in (("cache-control", "only-if-cached"), ("x-sameflight-cache", "only"))
        ]
        await stage.at_rest()

        assert said == [504, 504]
        assert stage.calls() == {}


@pytest.mark.long
async def test_what_a_caller_forbids_to_keep_is_not_kept_as_an_answer_to_a_question_about_it() -> None:
    """A summary is asked for under the caller's own wish; the cache, which others may read on a disk, has none."""
    async with house(pruning={**PRUNING, "summary": SUMMARY}) as stage:
        stage.upstreams["cheap"].respond_with(sum_up)
        body = {"model": "large", "messages": talk(11)}
        await stage.crowd(1, body, headers=[("cache-control", "no-store")])
        kept = stage.app.hot.size_bytes
        await stage.at_rest()

        assert stage.calls() == {"cheap": 1, "strong": 1}
        assert kept == 0


async def test_who_is_among_a_percentage_stays_so_in_every_process() -> None:
    """Also where no secret was set and each process made up one of its own."""
    auto = {"tiers": {"simple": {"model": "small", "shares": {"large": 0.5}}}}
    chosen: list[list[str]] = []
    for _ in range(2):
        extra = {"tiers": {"auto": auto}}
        env = {"SAMEFLIGHT_KEY_PEPPER": PEPPER}
        async with Many(PROVIDERS, MODELS, extra=extra, env=env, key_secret="") as stage:
            said = [await stage.say("auto", user=f"u{number}") for number in range(16)]
            chosen.append([text_in(each) for each in said])
            await stage.at_rest()

    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 2


async def test_conversations_that_begin_with_the_same_words_do_not_hold_each_others_tier() -> None:
    """Most begin with hello, and many callers name no user: one hard question is not everybody's."""
    begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    other = [*begun, {"role": "user", "content": "thanks"}]
    hard = [*begun, {"role": "user", "content": HARD}]
    later = [*hard, {"role": "assistant", "content": "so"}, {"role": "user", "content": "thanks"}]
    async with house(tiers={"auto": AUTO}) as stage:
        said = [(await stage.crowd(1, {"model": "auto", "messages": each}))[0] for each in (hard, other, later)]
        await stage.at_rest()

        assert [(each.header("x-sameflight-tier") or "").partition(";")[0] for each in said] == [
            "complex",
            "simple",
            "complex",
        ]


@pytest.mark.long
async def test_a_conversation_keeps_its_tier_while_tools_are_called() -> None:
    """What a tool answered belongs to the question for which it was called."""
    asked = [{"role": "user", "content": HARD}]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "c1", "content": "1"}
    called = [*asked, {"role": "assistant", "tool_calls": [call]}, result]
    after = [*called, {"role": "assistant", "content": "so"}, {"role": "user", "content": "ok"}]
    async with house(tiers={"auto": AUTO}) as stage:
        said = [(await stage.crowd(1, {"model": "auto", "messages": each}))[0] for each in (asked, called, after)]
        await stage.at_rest()

        assert {(each.header("x-sameflight-tier") or "").partition(";")[0] for each in said} == {"complex"}


async def test_a_summary_is_no_request_of_its_callers_and_takes_no_place_of_theirs() -> None:
    """One request a minute and one at a time are the caller's; one that waits in vain for its summary, which is being
    made still, is answered all the same."""
    clock, hang = FrozenClock(), Gate("the summary")

    async def wait(call: Call) -> None:
        await hang.wait()
        await sum_up(call)

    extra = {"pruning": {**PRUNING, "summary": {**SUMMARY, "timeout_s": 5.0, "most_input_tokens": 500}}}
    env = {"SAMEFLIGHT_KEY_PEPPER": PEPPER}
    async with Many(PROVIDERS, MODELS, extra=extra, env=env, clock=clock) as stage:
        stage.upstreams["cheap"].respond_with(wait)
        limits = {"requests_per_minute": 1, "concurrent": 1}
        issued = await stage.app.vault.issuer.create({"name": "k", "limits": limits})
        asked = await stage.ask({"model": "large", "messages": talk(11)}, key=issued.token)
        await hang.reached()
        clock.advance(5.1)
        stage.app.deadlines.sweep()
        first = await asked.read_end()
        second = await (await stage.ask({"model": "large", "messages": talk(3)}, key=issued.token)).read_end()
        hang.open()
        await stage.at_rest()
        [account] = stage.app.vault.limiter._accounts.values()

        assert (first.status, second.status) == (200, 429)
        assert account.running == 0


@pytest.mark.long
async def test_a_rules_answer_needs_no_room_in_a_budget() -> None:
    """A virtual model has no price and an answer by rule needs none, though calls without a price are refused."""
    rules = {"rules": {"hi": {"phrases": ["hi"], "answers": ["Hello there!"]}}}
    extra = {"tiers": {"auto": AUTO}, "patterns": rules}
    env = {"SAMEFLIGHT_KEY_PEPPER": PEPPER}
    async with Many(PROVIDERS, MODELS, extra=extra, env=env, budget_unpriced="refuse") as stage:
        issued = await stage.app.vault.issuer.create({"name": "k", "budget": "1/month"})
        hi = await (await stage.ask(chat("hi", model="auto"), key=issued.token)).read_end()
        other = await (await stage.ask(chat("so", model="auto"), key=issued.token)).read_end()
        await stage.at_rest()

        assert (hi.status, text_in(hi)) == (200, "Hello there!")
        assert other.status == 402


async def test_equal_requests_are_one_call_whatever_is_made_of_them_and_however_they_came() -> None:
    """With every policy on: some compressed, some with white space that goes, all before the first summary."""
    gate = Gate("all are there")

    async def wait(call: Call) -> None:
        await gate.wait()
        await call.answer_json(completion(text_of("strong")))

    slim = {"model": "auto", "messages": [{"role": "system", "content": "be  good  "}, *talk(11)]}
    slim["messages"][-1] = {"role": "user", "content": HARD}
    plain = json.dumps(slim).encode()
    tidy = plain.replace(b"be  good  ", b"be good")
    extra = {"tiers": {"auto": {**AUTO, "newcomers": {"messages": 1}}}, "slimming": {"squeeze": True}}
    extra |= {"pruning": {**PRUNING, "summary": SUMMARY}, "cache_classes": {}, "flags": {"tiers": "99%"}}
    async with house(**extra) as stage:
        stage.upstreams["cheap"].respond_with(sum_up)
        stage.upstreams["strong"].respond_with(wait)
        asked = []
        for body, encoding in (
            (plain, ""),
            (gzip.compress(plain), "gzip"),
            (tidy, ""),
            (gzip.compress(tidy), "gzip"),
        ):
            headers = [("content-type", "application/json"), *([("content-encoding", encoding)] if encoding else [])]
            asked += [await stage.ask(body, headers=headers, key=PLACEHOLDER) for _ in range(3)]
        await stage.attached(12)
        gate.open()
        responses = [await response.read_end() for response in asked]
        await stage.at_rest()

        assert {text_in(response) for response in responses} == {text_of("strong")}
        assert stage.calls() == {"cheap": 1, "strong": 1}


@pytest.mark.long
async def test_a_list_of_more_messages_than_anybody_says_is_not_judged() -> None:
    """It goes to the baseline as it came, and holds nobody up."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}] * (MOST_MESSAGES + 1)}
    async with house(tiers={"auto": AUTO}, pruning=PRUNING) as stage:
        [response] = await stage.crowd(1, body)
        await stage.at_rest()

        assert (response.status, text_in(response)) == (200, text_of("strong"))
        assert sent(stage, "strong")[0]["messages"] == body["messages"]
