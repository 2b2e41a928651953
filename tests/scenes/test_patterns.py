"""Small messages that rules answer: nobody upstream hears of them, and every SDK reads the answers as a model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from mistralai.client import Mistral

from proxy.config.feature_flags import Flag, Flags
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import wait_until
from tests.scenes.many import PLACEHOLDER, Many
from tests.scenes.stage import CHAT, KEY, MESSAGES, chat
from tests.scenes.test_money import Row, read_rows

PEPPER = "a-pepper-for-the-scenes"
TEXT = "Good morning, Zoë! ☀"
RULES: dict[str, Any] = {
    "morning": {"phrases": ["good morning"], "answers": [TEXT]},
    "thanks": {"phrases": ["thanks"], "answers": ["Gladly."], "first_turn": False},
}
RESPONSES = "/v1/responses"
PATTERN = "sameflight; hit; detail=pattern"
HELLO: Any = [{"role": "user", "content": "GOOD morning!!"}]


def make_stage(rules: dict[str, Any] | None = None, **options: Any) -> Many:
    """A proxy with two rules, in front of upstreams that nobody should need."""
    section = {"patterns": {"time_zone": "UTC", "rules": rules or RULES}}
    return Many({"openai": {}, "anthropic": {}, "mistral": {}}, {}, extra=section, **options)


async def rows_of(stage: Many) -> list[Row]:
    """All usage rows, once they are written."""
    await stage.settled()
    vault = stage.app.vault
    await wait_until(lambda: vault.ledger.is_empty and not vault.spool.running, "all rows are in the store")
    return read_rows(Path(stage.app.settings.state_dir))


def openai_client(stage: Many) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{stage.app.url}/v1", api_key=KEY, max_retries=0)


async def test_the_openai_sdk_reads_whole_answers_and_streams() -> None:
    """Text, end and zero usage, with the id of the request."""
    async with make_stage() as stage:
        client = openai_client(stage)
        raw = await client.chat.completions.with_raw_response.create(model="gpt-4o", messages=HELLO)
        whole = raw.parse()
        chunks = [chunk async for chunk in await client.chat.completions.create(
            model="gpt-4o", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )]  # fmt: skip
        await client.close()
        await stage.at_rest()

        assert whole.choices[0].message.content == TEXT
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None
        assert whole.usage.total_tokens == 0
        assert raw.headers["cache-status"] == PATTERN
        assert raw.headers["x-request-id"] == raw.headers["x-sameflight-request-id"]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
        assert chunks[-1].usage is not None
        assert whole.id != chunks[0].id
        assert stage.calls() == {}


async def test_the_responses_route_has_whole_answers_and_streams() -> None:
    """Where the provider was to keep the response, it is asked: its id has to be good for the next turn."""
    body = {"model": "gpt-5", "input": "Good morning", "store": False}
    async with make_stage() as stage:
        [whole] = await stage.crowd(1, body, path=RESPONSES)
        [streamed] = await stage.crowd(1, {**body, "stream": True}, path=RESPONSES)
        [kept] = await stage.crowd(1, {"model": "gpt-5", "input": "Good morning"}, path=RESPONSES)
        await stage.at_rest()

        last = json.loads(streamed.events()[-1].partition(b"data: ")[2])
        answers = [whole.json(), last["response"]]
        assert [each["output"][0]["content"][0]["text"] for each in answers] == [TEXT, TEXT]
        assert [each["usage"]["total_tokens"] for each in answers] == [0, 0]
        assert [each.header("cache-status") == PATTERN for each in (whole, streamed, kept)] == [True, True, False]
        assert stage.calls() == {"openai": 1}


@pytest.mark.long
async def test_the_openai_sdk_reads_responses_and_its_helpers_put_streams_together() -> None:
    """The helpers hold every event against those before it."""
    asked: dict[str, Any] = {"model": "gpt-5", "input": "Good morning", "store": False}
    async with make_stage() as stage:
        client = openai_client(stage)
        async with client.chat.completions.stream(
            model="gpt-4o", messages=HELLO, stream_options={"include_usage": True}
        ) as events:
            completion = await events.get_final_completion()
        response = await client.responses.create(**asked)
        async with client.responses.stream(**asked) as stream:
            final = await stream.get_final_response()
        await client.close()
        await stage.at_rest()

        assert completion.choices[0].message.content == response.output_text == final.output_text == TEXT
        assert completion.usage is not None
        assert response.usage is not None
        assert completion.usage.total_tokens == response.usage.total_tokens == 0
        assert response.status == final.status == "completed"
        assert stage.calls() == {}


async def test_the_anthropic_sdk_reads_whole_answers_and_streams() -> None:
    """The same for its route."""
    async with make_stage() as stage:
        client = anthropic.AsyncAnthropic(base_url=stage.app.url, api_key=KEY, max_retries=0)
        asked: dict[str, Any] = {"model": "claude-sonnet-4-6", "max_tokens": 100, "messages": HELLO}
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked, system="Be kind.") as events:
            texts = [text async for text in events.text_stream]
            streamed = await events.get_final_message()
        await client.close()
        await stage.at_rest()

        assert [one.content[0].text for one in (whole, streamed)] == [TEXT, TEXT]
        assert "".join(texts) == TEXT
        assert [one.stop_reason for one in (whole, streamed)] == ["end_turn", "end_turn"]
        assert [(one.usage.input_tokens, one.usage.output_tokens) for one in (whole, streamed)] == [(0, 0)] * 2
        assert stage.calls() == {}


async def test_the_mistral_sdk_reads_whole_answers_and_streams() -> None:
    """The same behind its mount."""
    async with make_stage() as stage:
        asked: dict[str, Any] = {"model": "mistral-small-latest", "messages": HELLO}
        async with Mistral(server_url=f"{stage.app.url}/mistral", api_key=KEY) as client:
            whole = await client.chat.complete_async(**asked)
            async with await client.chat.stream_async(**asked) as events:
                chunks = [event.data async for event in events]
        await stage.at_rest()

        assert whole.choices[0].message.content == TEXT
        assert whole.usage.total_tokens == 0
        assert "".join(str(chunk.choices[0].delta.content) for chunk in chunks) == TEXT
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert chunks[-1].usage is not None
        assert stage.calls() == {}


async def test_a_rules_answer_is_marked_logged_counted_and_booked() -> None:
    """As a hit of a rule by name; the row has the role and no cost, and the caller is charged nothing."""
    env = {"SAMEFLIGHT_KEY_PEPPER": PEPPER}
    async with make_stage(env=env, auth="required") as stage:
        issued = await stage.app.vault.issuer.create({"name": "k"})
        response = await (await stage.ask(chat("Good morning"), key=issued.token)).read_end()
        streamed = await (await stage.ask(chat("Good morning", stream=True), key=issued.token)).read_end()
        lines = await stage.access_lines(2)
        rows = await rows_of(stage)

        assert (response.status, response.header("cache-status")) == (200, PATTERN)
        assert response.header("age") is None
        assert streamed.header("cache-status") == PATTERN
        assert streamed.header("content-type") == "text/event-stream; charset=utf-8"
        assert streamed.ended
        told = [(line["role"], line["pattern"], line["outcome"]) for line in lines]
        assert told == [("pattern", "morning", "ok")] * 2
        assert {line["cost_usd"] for line in lines} == {0}
        assert [(row.role, row.status, row.upstream_tokens, row.cost_picodollars) for row in rows] == [
            ("pattern", 200, 0, 0)
        ] * 2
        assert {row.key_id for row in rows} == {issued.record.id}
        assert stage.series('pattern_requests_total{result="answered"}') == 2
        assert stage.series('pattern_answers_total{rule="morning"}') == 2
        assert stage.calls() == {}


async def test_everything_else_reaches_the_model_as_it_came() -> None:
    """Byte for byte, with nothing said of rules; the counters tell why."""
    async with make_stage() as stage:
        body = json.dumps(chat("Good morning, what is 2+2?"), indent=2).encode()
        asked = await stage.crowd(1, body)
        fresh = await stage.crowd(1, chat("Good morning"), headers=[("cache-control", "no-cache")])
        off = await stage.crowd(1, chat("Good morning"), headers=[("x-sameflight-cache", "off")])
        await stage.at_rest()

        assert stage.upstreams["openai"].history[0].body == body
        assert [each.header("cache-status") == PATTERN for [each] in (asked, fresh, off)] == [False] * 3
        assert stage.calls() == {"openai": 3}
        results = ("answered", "passed", "declined")
        assert [stage.series(f'pattern_requests_total{{result="{each}"}}') for each in results] == [0, 1, 2]


async def test_only_the_first_turn_is_answered_where_the_rule_says_so() -> None:
    """And a later one where another does."""

    def later(text: str) -> dict[str, Any]:
        said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        return chat(messages=[*said, {"role": "user", "content": text}])

    async with make_stage() as stage:
        [morning] = await stage.crowd(1, later("Good morning"))
        [thanks] = await stage.crowd(1, later("Thanks!"))
        await stage.at_rest()

        assert morning.header("cache-status") != PATTERN
        assert thanks.json()["choices"][0]["message"]["content"] == "Gladly."
        assert stage.calls() == {"openai": 1}


async def test_the_hour_decides_what_is_said() -> None:
    """The same message, later on the same day."""
    clock = FrozenClock()  # midnight, UTC
    answers = [{"text": "Early!", "hours": "00:00-12:00"}, {"text": "It is {time}.", "hours": "12:00-24:00"}]
    async with make_stage({"r": {"phrases": ["hi"], "answers": answers}}, clock=clock) as stage:
        early = await stage.say("gpt-4o", "hi")
        clock.advance(13 * 3600)
        late = await stage.say("gpt-4o", "hi")
        await stage.at_rest()

        texts = [each.json()["choices"][0]["message"]["content"] for each in (early, late)]
        assert texts == ["Early!", "It is 13:00."]
        assert late.json()["created"] == int(clock.wall())


async def test_a_flag_of_a_percentage_splits_callers_and_one_of_none_turns_rules_off() -> None:
    """Each caller stays on their side; whoever is in at some percentage is in at a higher one."""

    async def answered(stage: Many, percent: float) -> set[int]:
        stage.app.catalogs.use_flags(Flags([Flag("patterns", percent=percent)]))
        client = await stage.client()
        found = set()
        for user in range(40):
            response = await stage.ask(chat("Good morning", user=f"u{user}"), key=PLACEHOLDER, client=client)
            if (await response.read_end()).header("cache-status") == PATTERN:
                found.add(user)
        return found

    async with make_stage() as stage:
        none, some, more, every = [await answered(stage, percent) for percent in (0, 30, 60, 100)]
        again = await answered(stage, 30)
        await stage.at_rest()

        assert (len(none), len(every)) == (0, 40)
        assert 4 <= len(some) <= 20
        assert some == again
        assert some < more < every


async def test_rules_come_and_go_with_the_catalog() -> None:
    """A reload is enough; a bad one changes nothing."""
    async with make_stage() as stage:
        before = await stage.say("gpt-4o", "good morning")
        stage.extra["patterns"]["rules"]["morning"]["answers"] = ["Changed."]
        await stage.reload()
        changed = await stage.say("gpt-4o", "good morning")
        del stage.extra["patterns"]
        await stage.reload()
        gone = await stage.say("gpt-4o", "good morning")
        await stage.at_rest()

        texts = [each.json()["choices"][0]["message"]["content"] for each in (before, changed)]
        assert texts == [TEXT, "Changed."]
        assert gone.header("cache-status") != PATTERN
        assert stage.calls() == {"openai": 1}


async def test_a_key_that_may_not_use_the_model_gets_no_answer_of_a_rule_either() -> None:
    """Rights come before wit."""
    async with make_stage(env={"SAMEFLIGHT_KEY_PEPPER": PEPPER}, auth="required") as stage:
        issued = await stage.app.vault.issuer.create({"name": "k", "models": ["gpt-4o"], "routes": ["messages"]})
        body = {"model": "claude", "max_tokens": 50, "messages": HELLO}
        refused = [
            await (await stage.ask(body, path=path, key=key)).read_end()
            for path, key in ((MESSAGES, issued.token), (CHAT, issued.token), (MESSAGES, "sk-sf-nobody"))
        ]
        await stage.at_rest()

        assert [response.status // 100 for response in refused] == [4, 4, 4]
        assert stage.calls() == {}


@pytest.mark.parametrize("headers", [[], [("idempotency-key", "one")], [("cache-control", "only-if-cached")]])
async def test_headers_that_ask_for_less_work_are_met(headers: list[tuple[str, str]]) -> None:
    """A retry and a caller who takes no call at all are answered by the rule."""
    async with make_stage() as stage:
        answers = [await stage.crowd(1, chat("good morning"), headers=headers) for _ in range(2)]
        await stage.at_rest()

        assert [response.header("cache-status") for [response] in answers] == [PATTERN] * 2
        assert stage.calls() == {}


async def test_a_rule_answers_where_no_provider_has_a_key() -> None:
    """It needs none; what no rule answers is told what is missing."""
    providers: dict[str, Any] = {"house": {"kind": "compatible"}}
    section = {"patterns": {"time_zone": "UTC", "rules": RULES}}
    options: dict[str, Any] = {"extra": section, "openai_api_key": "", "key_pepper": PEPPER, "auth": "required"}
    for models in ({}, {"small": {"targets": ["house/small"]}}):
        async with Many(providers, models, **options) as stage:
            key = (await stage.app.vault.issuer.create({"name": "shop"})).token
            answered = await stage.ask(chat("good morning", model="gpt-4o"), key=key)
            refused = await stage.ask(chat("what is a morning?", model="gpt-4o"), key=key)

            assert (await answered.read_end()).status == 200
            assert (await refused.read_end()).status == 403
