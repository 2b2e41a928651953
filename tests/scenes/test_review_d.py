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
    results = [{name: value if value or value == [] else f"c{at}" for name, value in result.items()} for at in range(4)]
    say = {"role": "user", "content": "go on"}
    async with house(pruning={"messages": 4, "block": 1}) as stage:
        for after in range(8):
            items = [say, *calls, *results, *[say] * (after + 1)]
            response = await (
                await stage.ask({"model": "large", "input": items}, path=RESPONSES, key=PLACEHOLDER)
            ).read_end()
            assert response.status == 200, response.body
        await stage.at_rest()

        for body in sent(stage, "strong"):
            kept = [item for item in body["input"] if "type" in item]
            named = [item.get("call_id") or item.get("id") or item["approval_request_id"] for item in kept]
            assert sorted(named) == sorted(2 * list(dict.fromkeys(named))), kept
