"""Scenes of policies that meet: what one of them does must not spoil what another one, a limit or a caller needs."""

from __future__ import annotations

import pytest
from typing import Any

from proxy.policy.pruning import SUMMARY_HEADING
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, wait_until
from tests.fakes.upstream import Call
from tests.scenes.many import PLACEHOLDER, Many, answers, refusal, text_in, text_of
from tests.scenes.stage import MESSAGES, chat, completion
from tests.scenes.test_policy_savings import rows_of

PEPPER = "a-pepper-for-policies-that-meet"
RESPONSES = "/v1/responses"
HARD = "Analyse the goal, compare both and say why, step by step."
PROVIDERS: dict[str, Any] = {name: {"kind": "compatible"} for name in ("cheap", "strong")}
MODELS: dict[str, Any] = {"small": {"targets": ["cheap/llama"]}, "large": {"targets": ["strong/qwen"]}}
AUTO: dict[str, Any] = {"tiers": {"simple": "small", "complex": "large"}}
RULES: dict[str, Any] = {"rules": {"hi": {"phrases": ["hi"], "answers": ["Hello there!"]}}}
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


@pytest.mark.parametrize("kind", [["function"], {"of": "function"}])
async def test_a_tool_of_a_type_that_is_no_word_is_the_providers_to_refuse(kind: object) -> None:
    """Where functions are dropped for simple requests; it is no error of the proxy's."""
    tiers = {"simple": {"model": "small", "drop_tools": True}, "complex": "large"}
    async with house(tiers={"auto": {"tiers": tiers}}) as stage:
        response = await stage.say("auto", tools=[{"type": kind}, {"type": "function", "function": {"name": "f"}}])
        await stage.at_rest()

        assert response.status == 200
        assert sent(stage, "cheap")[0]["tools"] == [{"type": kind}]


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
@pytest.mark.parametrize("header", [("cache-control", "only-if-cached"), ("x-sameflight-cache", "only")])
async def test_a_caller_who_wants_no_call_causes_none_for_a_summary_either(
    header: tuple[str, str], on_failure: str
) -> None:
    """There is no answer to find then; it is not looked for at an upstream's cost."""
    async with house(pruning={**PRUNING, "summary": {**SUMMARY, "on_failure": on_failure}}) as stage:
        stage.upstreams["cheap"].respond_with(sum_up)
        body = {"model": "large", "messages": talk(11)}
        [response] = await stage.crowd(1, body, headers=[header])
        await stage.at_rest()

        assert response.status == 504
        assert stage.calls() == {}


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
