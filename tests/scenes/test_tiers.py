"""Scenes of virtual models: simple questions go to the cheap model and hard ones to the strong one."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.fakes.client import RawResponse
from tests.fakes.gates import Gate
from tests.fakes.upstream import Call
from tests.scenes.many import PLACEHOLDER, Many, text_in, text_of
from tests.scenes.stage import MESSAGES, chat, completion

HARD = "Analyse the goal, compare both and say why, step by step."
PROVIDERS: dict[str, Any] = {name: {"kind": "compatible"} for name in ("cheap", "strong", "tuned")}
MODELS: dict[str, Any] = {
    "small": {"targets": ["cheap/llama"]},
    "large": {"targets": ["strong/qwen"]},
    "ours": {"targets": ["tuned/llama-ours"]},
}
AUTO: dict[str, Any] = {"tiers": {"simple": "small", "complex": "large"}}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d" * 400, "parameters": {}}}


def house(auto: dict[str, Any] | None = None, *, extra: dict[str, Any] | None = None, **options: Any) -> Many:
    return Many(PROVIDERS, MODELS, extra={"tiers": {"auto": auto or AUTO}, **(extra or {})}, **options)


def tier_of(response: RawResponse) -> str:
    return response.header("x-sameflight-tier") or ""


def sent(stage: Many, name: str) -> list[dict[str, Any]]:
    return [call.json() for call in stage.upstreams[name].history]


async def test_simple_and_hard_questions_go_to_their_models() -> None:
    """Under the names that their providers know, in either dialect; why is in the header, the log and the metrics."""
    body = {"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": HARD}]}
    async with house() as stage:
        simple, hard = await stage.say("auto", "hi"), await stage.say("auto", HARD)
        other = await (await stage.ask(body, path=MESSAGES, key=PLACEHOLDER)).read_end()
        lines = await stage.access_lines(3)
        await stage.at_rest()

        assert other.json()["content"][0]["text"] == text_of("strong")
        assert (text_in(simple), text_in(hard)) == (text_of("cheap"), text_of("strong"))
        assert (tier_of(simple), tier_of(hard)) == ("simple; why=none", "complex; why=reasoning")
        assert [body["model"] for name in ("cheap", "strong") for body in sent(stage, name)] == [
            "llama",
            "qwen",
            "qwen",
        ]
        assert [(line["model"], line["tier"], line["tier_why"]) for line in lines[:2]] == [
            ("small", "simple", ""),
            ("large", "complex", "reasoning"),
        ]
        assert stage.series('tier_requests_total{mode="acted",model="auto",tier="complex"}') == 2


async def test_a_hundred_equal_requests_at_once_are_one_choice_and_one_call() -> None:
    """Also when the user's count of messages would change the choice between them."""
    gate = Gate("a hundred are there")
    async with house({**AUTO, "newcomers": {"messages": 3}}) as stage:

        async def wait(call: Call) -> None:
            await gate.wait()
            await call.answer_json(completion(text_of("strong")))

        stage.upstreams["strong"].respond_with(wait)
        asked = await stage.ask_many(100, chat(model="auto", user="u1"), key=PLACEHOLDER)
        gate.open()
        responses = [await response.read_end() for response in asked]
        await stage.at_rest()

        assert {text_in(response) for response in responses} == {text_of("strong")}
        assert {tier_of(response) for response in responses} == {"complex; why=new_user"}
        assert stage.calls() == {"strong": 1}
        assert stage.app.shaper.tiering.memory.reused == 99


async def test_a_user_is_new_for_so_many_different_messages() -> None:
    """Then goes by complexity."""
    async with house({**AUTO, "newcomers": {"messages": 2}}) as stage:
        said = [await stage.say("auto", f"hi {number}", user="u1") for number in range(4)]
        other = await stage.say("auto", "hi 3", user="u2")
        await stage.at_rest()

        assert [tier_of(each).partition(";")[0] for each in said] == ["complex", "complex", "simple", "simple"]
        assert tier_of(other) == "complex; why=new_user"


async def test_a_conversation_keeps_its_tier() -> None:
    """Thanks for a hard answer are not said to another model; words that begin a conversation are said to any."""
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    hard = [*history, {"role": "user", "content": HARD}]
    later = [*hard, {"role": "assistant", "content": "so"}, {"role": "user", "content": "thanks"}]
    async with house() as stage:
        said = []
        for messages, temperature in ((history[:1], 0), (hard, 0), (later, 0), (history[:1], 1)):
            body = {"model": "auto", "messages": messages, "temperature": temperature}
            said += await stage.crowd(1, body)
        await stage.at_rest()

        assert [tier_of(each) for each in said] == [
            "simple; why=none",
            "complex; why=reasoning+depth",
            "complex; why=depth+held",
            "simple; why=none",
        ]


async def test_a_tier_that_the_caller_named_is_not_held() -> None:
    """It was meant for one question."""
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    body = {"model": "auto", "messages": [*history, {"role": "user", "content": "thanks"}]}
    async with house() as stage:
        await stage.crowd(1, chat(model="auto"), headers=[("x-sameflight-tier", "complex")])
        (later,) = await stage.crowd(1, body)
        await stage.at_rest()

        assert tier_of(later) == "simple; why=depth"


async def test_what_tiers_saved_and_would_have_saved_is_counted() -> None:
    """Against the baseline's price; in shadow mode against what was paid."""
    prices = {"llama": {"input": 1, "output": 1}, "qwen": {"input": 11, "output": 11}}
    tiers = {"auto": AUTO, "trial": {**AUTO, "shadow": True}}
    async with house(extra={"tiers": tiers, "prices": prices}) as stage:
        await stage.say("auto", "hi")
        acted = stage.series('policy_saved_usd_total{policy="tier"}')
        await stage.say("trial", "hi")
        await stage.at_rest()
        shadow = stage.series('policy_saved_usd_total{policy="shadow"}')

        assert acted == pytest.approx(12 * 10e-6)
        assert shadow == pytest.approx(12 * 10e-6)


async def test_a_caller_may_name_the_tier_and_hears_which_there_are() -> None:
    """A name that does not exist is refused before anything is asked. Where callers may not name it they are not
    heard."""
    deaf = {**AUTO, "header": False}
    async with house(extra={"tiers": {"auto": AUTO, "deaf": deaf}}) as stage:
        (unheard,) = await stage.crowd(1, chat(model="deaf"), headers=[("x-sameflight-tier", "complex")])
        (best,) = await stage.crowd(1, chat(model="auto"), headers=[("x-sameflight-tier", "Complex")])
        (wrong,) = await stage.crowd(1, chat(model="auto"), headers=[("x-sameflight-tier", "best")])
        (other,) = await stage.crowd(1, chat(model="small"), headers=[("x-sameflight-tier", "best")])
        await stage.at_rest()

        assert (text_in(best), tier_of(best)) == (text_of("strong"), "complex; why=header")
        assert wrong.status == 400
        assert "there are: simple, complex" in wrong.json()["error"]["message"]
        assert (other.status, tier_of(other)) == (200, "")
        assert tier_of(unheard) == "simple; why=none"
        assert stage.calls() == {"strong": 1, "cheap": 2}


async def test_in_shadow_mode_the_baseline_answers_and_the_choice_is_told() -> None:
    """Nothing is acted upon: the functions stay too."""
    tiers = {"simple": {"model": "small", "drop_tools": True}, "complex": "large"}
    async with house({"tiers": tiers, "shadow": True}) as stage:
        response = await stage.say("auto", "hi", tools=[FUNCTION])
        (line,) = await stage.access_lines(1)
        await stage.at_rest()

        assert text_in(response) == text_of("strong")
        assert tier_of(response) == "simple; why=tools; shadow"
        assert sent(stage, "strong")[0]["tools"] == [FUNCTION]
        assert (line["model"], line["tier"], line["tier_shadow"]) == ("large", "simple", True)
        assert stage.series('tier_requests_total{mode="shadow",model="auto",tier="simple"}') == 1


async def test_a_simple_request_loses_its_functions_where_the_tier_says_so() -> None:
    """A hard one keeps them, and so does one that has to call them; two that differ only there share a call."""
    tiers = {"simple": {"model": "small", "drop_tools": True}, "complex": "large"}
    async with house({"tiers": tiers}) as stage:
        simple = await stage.say("auto", "hi", tools=[FUNCTION], tool_choice="auto")
        hard = await stage.say("auto", HARD, tools=[FUNCTION])
        forced = await stage.say("auto", "hi", tools=[FUNCTION], tool_choice="required")
        await stage.at_rest()

        assert {each.status for each in (simple, hard, forced)} == {200}
        first, second = sent(stage, "cheap")
        assert "tools" not in first
        assert "tool_choice" not in first
        assert second["tools"] == [FUNCTION]
        assert sent(stage, "strong")[0]["tools"] == [FUNCTION]
        saved = simple.header("x-sameflight-pruned") or ""
        assert saved.startswith("messages=0; tokens=1")


async def test_a_share_of_the_users_goes_to_the_tuned_model() -> None:
    """Always the same users."""
    tiers = {"simple": {"model": "small", "shares": {"ours": 0.5}}, "complex": "large"}
    async with house({"tiers": tiers}) as stage:
        rounds = [
            [text_in(await stage.say("auto", said, user=f"user {number}")) for number in range(8)]
            for said in ("hi", "hello")
        ]
        await stage.at_rest()

        assert rounds[0] == rounds[1]
        assert set(rounds[0]) == {text_of("cheap"), text_of("tuned")}


async def test_aliases_and_existing_names_may_be_virtual() -> None:
    """Callers need not change what they ask for."""
    extra = {"aliases": {"gpt-4o": "large", "clever": "auto"}}
    tiers = {"auto": AUTO, "gpt-4o": AUTO, "large": AUTO}
    async with Many(PROVIDERS, MODELS, extra={**extra, "tiers": tiers}) as stage:
        said = {name: text_in(await stage.say(name, "hi")) for name in ("auto", "clever", "gpt-4o", "large")}
        hard = {text_in(await stage.say(name, HARD)) for name in ("auto", "clever", "gpt-4o", "large")}
        names = [
            each["id"]
            for each in (await (await stage.ask(path="/v1/models", method="GET", key=PLACEHOLDER)).read_end()).json()[
                "data"
            ]
        ]
        one = await (await stage.ask(path="/v1/models/auto", method="GET", key=PLACEHOLDER)).read_end()
        await stage.at_rest()

        assert set(said.values()) == {text_of("cheap")}
        assert hard == {text_of("strong")}
        assert sorted(names) == ["auto", "clever", "gpt-4o", "large", "ours", "small"]
        assert one.json()["id"] == "auto"


async def test_a_virtual_model_works_without_any_models_in_the_catalog() -> None:
    """Its tiers' names go to the provider of the path, also from a body that came encoded."""
    providers = {"openai": {"kind": "openai"}}
    async with Many(providers, {}, extra={"tiers": {"auto": AUTO}}) as stage:

        async def answer(call: Call) -> None:
            if call.method == "GET":
                await call.answer_json({"object": "list", "data": [{"id": "gpt-4o", "object": "model"}]})
            else:
                await call.answer_json(completion())

        stage.upstreams["openai"].respond_with(answer)
        packed = gzip.compress(json.dumps(chat(model="auto")).encode())
        (whole,) = await stage.crowd(
            1, packed, headers=[("content-encoding", "gzip"), ("content-type", "application/json")]
        )
        hard = await stage.say("auto", HARD)
        models = [body["model"] for body in sent(stage, "openai")]
        listed = await (await stage.ask(path="/v1/models", method="GET", key=PLACEHOLDER)).read_end()
        await stage.at_rest()

        assert (whole.status, hard.status) == (200, 200)
        assert models == ["small", "large"]
        assert [each["id"] for each in listed.json()["data"]] == ["auto", "gpt-4o"]


async def test_what_is_no_conversation_goes_to_the_baseline() -> None:
    """There is nothing to judge it by."""

    async def answer(call: Call) -> None:
        await call.answer_json({"object": "text_completion", "choices": [{"text": "ok", "index": 0}]})

    async with house() as stage:
        stage.upstreams["strong"].respond_with(answer)
        asked = await stage.ask({"model": "auto", "prompt": "hi"}, path="/v1/completions", key=PLACEHOLDER)
        response = await asked.read_end()
        await stage.at_rest()

        assert (response.status, tier_of(response)) == (200, "")
        assert sent(stage, "strong")[0]["model"] == "qwen"


async def test_switched_off_a_virtual_model_is_its_baseline_and_another_is_itself() -> None:
    """One command turns it back, and nobody's requests fail."""
    flags = {"flags": {"tiers": "off"}}
    tiers = {"tiers": {"auto": {**AUTO, "baseline": "ours"}, "large": AUTO}}
    async with house(extra={**flags, **tiers}) as stage:
        said = [text_in(await stage.say(name, "hi")) for name in ("auto", "large")]
        await stage.at_rest()

        assert said == [text_of("tuned"), text_of("strong")]


async def test_a_key_needs_the_virtual_name_or_the_real_one() -> None:
    """Whoever gives out a virtual model means what stands behind it. It is listed for whoever may use it always."""
    env = {"SAMEFLIGHT_KEY_PEPPER": "a-pepper-for-the-scenes"}
    found = {}
    aliases = {"smart": "auto", "first": "second", "second": "large"}
    extra = {"aliases": aliases, "tiers": {"auto": AUTO, "second": AUTO}}
    async with house(extra=extra, env=env, auth="required") as stage:
        for allowed in (["auto"], ["small"], ["small", "large"], ["ours"]):
            key = (await stage.app.vault.issuer.create({"name": "-".join(allowed), "models": allowed})).token
            simple = await (await stage.ask(chat(model="smart"), key=key)).read_end()
            hard = await (await stage.ask(chat(HARD, model="auto"), key=key)).read_end()
            listed = await (await stage.ask(path="/v1/models/auto", method="GET", key=key)).read_end()
            found[",".join(allowed)] = simple.status, hard.status, listed.status
        key = (await stage.app.vault.issuer.create({"name": "second", "models": ["second"]})).token
        first = await (await stage.ask(chat(model="first"), key=key)).read_end()
        listed = await (await stage.ask(path="/v1/models/first", method="GET", key=key)).read_end()
        await stage.at_rest()

        assert (first.status, listed.status) == (200, 200)
        assert found == {
            "auto": (200, 200, 200),
            "small": (200, 403, 404),
            "small,large": (200, 200, 200),
            "ours": (403, 403, 404),
        }
