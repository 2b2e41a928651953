"""Scenes of long conversations: what reaches the model, what stands for the rest, and who pays for that."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from proxy.policy.pruning import NOTICE, SUMMARY_HEADING
from tests.fakes.client import RawClient, RawResponse
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, run_ticks, wait_until
from tests.fakes.upstream import Call
from tests.scenes.many import PLACEHOLDER, Many, Script, answers, refusal, text_in, text_of
from tests.scenes.stage import MESSAGES, chat, completion

PEPPER = "a-pepper-for-long-conversations"
PROVIDERS = {"one": {"kind": "compatible"}, "cheap": {"kind": "compatible"}}
MODELS = {"smart": {"targets": ["one/llama"]}, "tiny": {"targets": ["cheap/small"]}}
RULE = {"messages": 4, "block": 4}
SUMMARY = {"model": "tiny", "max_tokens": 40}
NOTES = "The user counts upwards. " * 4


def talk(turns: int, size: int = 80, last: str = "") -> list[dict[str, str]]:
    """Instructions and so many messages, in which the user has the last word."""
    said = [
        {"role": "user" if (turns - at) % 2 else "assistant", "content": f"{at} " + "x" * size} for at in range(turns)
    ]
    said[-1]["content"] = last or said[-1]["content"]
    return [{"role": "system", "content": "be good"}, *said]


def make_stage(summary: Any = None, *, clock: Any = None, **rule: Any) -> Many:
    extra = {"pruning": {**RULE, **rule, **({"summary": summary} if summary is not None else {})}}
    return Many(PROVIDERS, MODELS, extra=extra, clock=clock, env={"SAMEFLIGHT_KEY_PEPPER": PEPPER})


async def say(
    stage: Many, messages: list[dict[str, str]], client: RawClient | None = None, **options: Any
) -> RawResponse:
    """One turn of a conversation, read to its end."""
    options.setdefault("key", PLACEHOLDER)
    response = await stage.ask({"model": "smart", "messages": messages}, client=client, **options)
    return await response.read_end()


def sent(stage: Many, upstream: str = "one") -> list[list[dict[str, Any]]]:
    """The lists of messages that reached an upstream."""
    return [call.json()["messages"] for call in stage.upstreams[upstream].history]


def sums_up(text: str = NOTES, gate: Gate | None = None) -> Script:
    """A cheap model that sums up in these words."""

    async def script(call: Call) -> None:
        if gate is not None:
            await gate.wait()
        await call.answer_json(completion(text, 70, 30))

    return script


async def test_a_conversation_of_a_hundred_turns_never_sends_more_than_its_cap() -> None:
    """At every turn; the question of the moment and the instructions always reach the model; and what it reads begins
    with the same messages for turns on end."""
    async with make_stage(tokens=600, messages=0) as stage:
        client = await stage.client()
        for turn in range(100):
            response = await say(stage, talk(2 * turn + 1), client)
            assert response.status == 200
        bodies = stage.upstreams["one"].history
        lists = sent(stage)
        starts = {messages[1]["content"] for messages in lists}
        await stage.at_rest()

        assert max(len(call.body) // 4 for call in bodies) <= 600
        assert all(messages[0] == {"role": "system", "content": "be good"} for messages in lists)
        assert [messages[-1]["content"].partition(" ")[0] for messages in lists] == [str(2 * at) for at in range(100)]
        assert max(map(len, lists)) < 25
        assert response.header("x-sameflight-pruned") is not None
        assert len(starts) <= 200 // 8, "the cut moves with every eighth message or so"


async def test_the_header_the_log_and_the_books_say_what_fell_out() -> None:
    """Whole and short conversations say nothing of the kind."""
    async with make_stage() as stage:
        short = await say(stage, talk(7))
        long = await say(stage, talk(11))
        lines = await stage.access_lines(2)
        await stage.at_rest()
        [whole, cut] = sent(stage)

        assert short.header("x-sameflight-pruned") is None
        assert len(whole) == 8
        assert (long.header("x-sameflight-pruned") or "").startswith("messages=4; tokens=")
        assert [message["content"].partition(" ")[0] for message in cut[1:]] == [str(at) for at in range(4, 11)]
        assert (lines[1]["pruned_messages"], lines[1]["summarised"]) == (4, False)
        assert lines[1]["pruned_tokens"] > 4 * 80 // 4
        assert "pruned_messages" not in lines[0]
        assert stage.series('policy_saved_tokens_total{policy="pruning"}') == lines[1]["pruned_tokens"]


@pytest.mark.parametrize("word", ["off", "OFF"])
async def test_a_caller_can_keep_a_conversation_whole(word: str) -> None:
    """By a header; the same request without it is cut."""
    async with make_stage() as stage:
        whole = await say(stage, talk(11), headers=[("x-sameflight-prune", word)])
        cut = await say(stage, talk(11))
        await stage.at_rest()

        assert [len(messages) for messages in sent(stage)] == [12, 8]
        assert whole.header("x-sameflight-pruned") is None
        assert cut.header("x-sameflight-pruned") is not None
        assert stage.upstreams["one"].history[0].header("x-sameflight-prune") is None


async def test_conversations_that_differ_only_in_what_falls_out_share_a_flight() -> None:
    """The flight's key is what is sent."""
    gate = Gate("the answer")

    async def wait(call: Call) -> None:
        await gate.wait()
        await answers("one")(call)  # type: ignore[misc]

    async with make_stage() as stage:
        stage.upstreams["one"].respond_with(wait)
        other = talk(11)
        other[1] = {"role": "user", "content": "something else"}
        asked = [
            await stage.ask({"model": "smart", "messages": messages, "temperature": 0}, key=PLACEHOLDER)
            for messages in (talk(11), other)
        ]
        await stage.attached(2)
        gate.open()
        texts = [text_in(await response.read_end()) for response in asked]
        await stage.at_rest()

        assert texts == [text_of("one")] * 2
        assert stage.calls() == {"one": 1}


# -- summaries --------------------------------------------------------------------------------------------------


async def test_fifty_turns_with_one_beginning_make_its_summary_once() -> None:
    """Whatever they ask: while it is made all wait for it, and all read it; the fifty-first finds it ready."""
    gate = Gate("the summary")
    async with make_stage(SUMMARY) as stage:
        stage.upstreams["cheap"].respond_with(sums_up(gate=gate))
        asked = [
            await stage.ask({"model": "smart", "messages": talk(11, last=f"question {at}")}, key=PLACEHOLDER)
            for at in range(50)
        ]
        await gate.reached()
        await wait_until(lambda: stage.app.summaries.waited == 49, "all the others wait")
        assert stage.calls() == {"cheap": 1}
        gate.open()
        answered = [await response.read_end() for response in asked]
        late = await say(stage, talk(11, last="one more"))
        await stage.at_rest()

        assert stage.calls() == {"cheap": 1, "one": 51}
        assert {response.header("x-sameflight-pruned") for response in (*answered, late)} == {
            answered[0].header("x-sameflight-pruned")
        }
        assert (late.header("x-sameflight-pruned") or "").endswith("; summary")
        instead = {"role": "user", "content": SUMMARY_HEADING + NOTES.strip()}
        assert [messages[1] for messages in sent(stage)] == [instead] * 51
        assert {messages[-1]["content"] for messages in sent(stage)} == {
            *(f"question {at}" for at in range(50)),
            "one more",
        }
        assert stage.series('summaries_total{result="made"}') == 1
        assert stage.series('summaries_total{result="reused"}') == 1
        assert stage.series("summary_bytes") > len(NOTES)


async def test_a_summary_is_extended_by_what_came_to_it_and_not_made_again() -> None:
    """The second call reads the first summary and the next block, and nothing of the first block."""
    async with make_stage(SUMMARY) as stage:
        stage.upstreams["cheap"].respond_with(sums_up("First they counted to three."))
        await say(stage, talk(11))
        stage.upstreams["cheap"].respond_with(sums_up("They counted to seven."))
        await say(stage, talk(13))
        await say(stage, talk(15))
        await stage.at_rest()
        questions = [messages[1]["content"] for messages in sent(stage, "cheap")]

        assert [messages[1]["content"] for messages in sent(stage)] == [
            SUMMARY_HEADING + "First they counted to three.",
            SUMMARY_HEADING + "They counted to seven.",
            SUMMARY_HEADING + "They counted to seven.",
        ]
        assert len(questions) == 2
        assert all(f": {at} x" in questions[0] for at in range(4))
        assert "First they counted to three." in questions[1]
        assert not any(f": {at} x" in questions[1] for at in range(4))
        assert all(f": {at} x" in questions[1] for at in range(4, 8))


@pytest.mark.long
async def test_a_long_beginning_that_was_never_seen_is_summed_up_piece_by_piece() -> None:
    """No call is longer than it may be, and each goes on from the one before."""
    async with make_stage({**SUMMARY, "most_input_tokens": 500}) as stage:
        stage.upstreams["cheap"].respond_with(sums_up())
        response = await say(stage, talk(41, 300))
        await stage.at_rest()
        questions = [messages[1]["content"] for messages in sent(stage, "cheap")]

        assert (response.header("x-sameflight-pruned") or "").startswith("messages=36; ")
        assert len(questions) == 6
        assert max(map(len, questions)) < 500 * 4 + len(NOTES) + 200
        assert [NOTES.strip() in question for question in questions] == [False, *[True] * 5]
        assert all(any(f": {at} x" in question for question in questions) for at in range(36))


def read_costs(stage: Many) -> dict[str, tuple[str, int]]:
    """By model the key and the picodollars of its usage row."""
    [path] = Path(stage.app.settings.state_dir).glob("*.db")
    with closing(sqlite3.connect(path)) as plain:
        rows = plain.execute("SELECT model, key_id, cost_picodollars FROM usage WHERE status = 200").fetchall()
    return {model: (key_id, cost) for model, key_id, cost in rows}


async def test_a_summary_is_paid_for_by_the_key_whose_conversation_it_is() -> None:
    """Under its own request id, at the cheap model's price, also by a key that may name the other model only."""
    price = {"input": 1.0, "output": 2.0}
    models = {**MODELS, "tiny": {"targets": [{"provider": "cheap", "model": "small", "price": price}]}}
    extra = {"pruning": {**RULE, "summary": SUMMARY}}
    env = {"SAMEFLIGHT_KEY_PEPPER": PEPPER}
    async with Many(PROVIDERS, models, extra=extra, env=env, auth="required") as stage:
        stage.upstreams["cheap"].respond_with(sums_up())
        form = {"name": "k", "models": ["smart"], "limits": {"requests_per_minute": 1}}
        issued = await stage.app.vault.issuer.create(form)
        first = await say(stage, talk(11), key=issued.token)
        limited = await say(stage, talk(11), key=issued.token)
        refused = await (await stage.ask(chat(model="tiny"), key=issued.token)).read_end()
        lines = await stage.access_lines(4)
        [summary] = [line for line in lines if line["model"] == "tiny" and line["status"] == 200]
        [answer] = [line for line in lines if line["model"] == "smart" and line["status"] == 200]
        await stage.at_rest()
        vault = stage.app.vault
        await wait_until(lambda: vault.ledger.is_empty and not vault.spool.running, "all rows are in the store")
        rows = read_costs(stage)

        assert rows == {"tiny": (issued.record.id, 130_000_000), "smart": (issued.record.id, 0)}
        assert (first.status, limited.status, refused.status) == (200, 429, 403)
        assert (summary["cache"], summary["role"], summary["key_id"]) == ("summary", "leader", issued.record.id)
        assert summary["cost_usd"] == pytest.approx((70 * 1.0 + 30 * 2.0) / 1e6)
        assert summary["request_id"] != answer["request_id"]
        assert answer["summarised"] is True
        assert stage.keys_used("cheap") == ["the-operators-cheap-key-0"]


@pytest.mark.parametrize("on_failure", ["drop", "keep"])
async def test_a_summary_that_fails_leaves_what_the_setting_says(on_failure: str) -> None:
    """The conversation without its beginning, or all of it; the caller is answered either way."""
    async with make_stage({**SUMMARY, "on_failure": on_failure}) as stage:
        stage.upstreams["cheap"].respond_with(refusal(400))
        response = await say(stage, talk(11))
        await stage.at_rest()
        [messages] = sent(stage)

        assert response.status == 200
        if on_failure == "keep":
            assert messages == talk(11)
            assert response.header("x-sameflight-pruned") is None
        else:
            assert messages == [talk(11)[0], *talk(11)[5:]]
            assert (response.header("x-sameflight-pruned") or "").startswith("messages=4; ")
        assert stage.series('summary_failures_total{reason="upstream"}') == 1


@pytest.mark.long
async def test_a_summary_that_hangs_is_waited_for_no_longer_than_is_said_and_then_not_at_all() -> None:
    """After three of them the cheap model has a rest, in which nobody waits; when that is over it is tried again."""
    clock = FrozenClock()
    hang = Gate("nothing")
    async with make_stage({**SUMMARY, "timeout_s": 5.0}, clock=clock) as stage:
        stage.upstreams["cheap"].respond_with(sums_up(gate=hang))
        for count in (1, 2, 3):
            asked = await stage.ask({"model": "smart", "messages": talk(11, 80 + count)}, key=PLACEHOLDER)
            await hang.reached(count)
            clock.advance(5.1)
            stage.app.deadlines.sweep()
            assert (await asked.read_end()).status == 200
            await wait_until(lambda: not stage.app.summaries.making, "it was given up")
            assert stage.app.table.subscribers == 0, "nobody is left on its flight"
        assert (await say(stage, talk(11))).status == 200
        assert stage.calls()["cheap"] == 3
        assert stage.series('summary_failures_total{reason="resting"}') == 1

        clock.advance(11)
        stage.upstreams["cheap"].respond_with(sums_up())
        assert (await say(stage, talk(11))).status == 200
        hang.open()
        await stage.at_rest()
        assert sent(stage)[-1][1]["content"] == SUMMARY_HEADING + NOTES.strip()


@pytest.mark.long
async def test_a_summary_is_finished_for_the_next_turn_though_nobody_waits_any_more() -> None:
    """The caller hangs up while it is made; the next one does not wait."""
    gate = Gate("the summary")
    async with make_stage(SUMMARY) as stage:
        stage.upstreams["cheap"].respond_with(sums_up(gate=gate))
        client = await stage.client()
        await stage.ask({"model": "smart", "messages": talk(11)}, key=PLACEHOLDER, client=client)
        await gate.reached()
        await client.close()
        await stage.access_lines(1)
        gate.open()
        await wait_until(lambda: stage.app.summaries.made == 1, "the summary was made")
        await say(stage, talk(11))
        await stage.at_rest()

        assert stage.calls() == {"cheap": 1, "one": 1}
        assert stage.app.summaries.reused == 1


@pytest.mark.long
async def test_a_process_that_stops_gives_up_its_summaries() -> None:
    """Nothing is left of them, and whoever waits is answered without."""
    gate = Gate("never")
    async with make_stage(SUMMARY) as stage:
        stage.upstreams["cheap"].respond_with(sums_up(gate=gate))
        asked = await stage.ask({"model": "smart", "messages": talk(11)}, key=PLACEHOLDER)
        await gate.reached()
        await stage.app.summaries.close()
        response = await asked.read_end()
        await run_ticks()
        gate.open()
        await stage.at_rest()

        assert response.status == 200
        assert stage.app.summaries.making == 0
        assert stage.app.summaries.failed == {"closed": 1}


# -- the other families -----------------------------------------------------------------------------------------


async def test_a_conversation_in_messages_is_summed_up_in_messages() -> None:
    """System stays apart, tool results stay with their calls, and a user speaks first."""
    said = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "They looked things up."}],
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }  # fmt: skip
    providers = {"one": {"kind": "anthropic"}, "cheap": {"kind": "anthropic"}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "look things up " + "x" * 3_000}]
    for at in range(6):
        use = {"type": "tool_use", "id": f"t{at}", "name": "look", "input": {"at": at}}
        result = {"type": "tool_result", "tool_use_id": f"t{at}", "content": f"found {at} " + "x" * 500}
        messages += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    body = {"model": "smart", "max_tokens": 9, "system": "be good", "messages": messages}
    async with Many(providers, MODELS, extra={"pruning": {**RULE, "summary": SUMMARY}}) as stage:
        for upstream in stage.upstreams.values():
            upstream.respond_with(lambda call: call.answer_json(said))
        lines = [("anthropic-version", "2023-06-01")]
        response = await (await stage.ask(body, path=MESSAGES, key=PLACEHOLDER, headers=lines)).read_end()
        await stage.at_rest()
        [asked] = stage.upstreams["cheap"].history
        [got] = stage.upstreams["one"].history

        assert response.json() == said
        assert asked.json()["max_tokens"] == 40
        assert 'Assistant calls look: {"at":0}' in asked.json()["messages"][0]["content"]
        assert "Tool: found 0 x" in asked.json()["messages"][0]["content"]
        left = got.json()["messages"]
        assert got.json()["system"] == "be good"
        assert left[:2] == [messages[0], {"role": "user", "content": SUMMARY_HEADING + "They looked things up."}]
        assert left[2:] == messages[7:]


async def test_a_conversation_in_responses_is_cut_in_front_of_a_thought_and_summed_up_in_responses() -> None:
    """Answered by chat models: the summary's request is translated like any other."""
    items: list[dict[str, Any]] = [{"role": "user", "content": "x" * 3_000}, {"role": "assistant", "content": "so"}]
    for at in range(5):
        items += [
            {"role": "user", "content": f"look {at}"},
            {"type": "function_call", "call_id": f"c{at}", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": f"c{at}", "output": f"found {at}"},
        ]
    body = {"model": "smart", "instructions": "be good", "input": items}
    async with make_stage(SUMMARY) as stage:
        stage.upstreams["cheap"].respond_with(sums_up())
        response = await (await stage.ask(body, path="/v1/responses", key=PLACEHOLDER)).read_end()
        await stage.at_rest()
        [messages] = sent(stage)

        assert response.json()["object"] == "response"
        assert (response.header("x-sameflight-pruned") or "").endswith("; summary")
        assert messages[0]["content"] == "be good"
        assert messages[1]["content"] == SUMMARY_HEADING + NOTES.strip()
        calls = [call["id"] for message in messages for call in message.get("tool_calls") or ()]
        assert calls == [message["tool_call_id"] for message in messages if message["role"] == "tool"]
        assert calls


@pytest.mark.long
async def test_an_answer_to_nobody_gets_a_notice_in_front() -> None:
    """Of a conversation that the model began and in which no user has spoken yet."""
    said = [{"role": "assistant", "content": f"monologue {at}"} for at in range(11)]
    async with make_stage() as stage:
        await say(stage, said)
        await stage.at_rest()
        [messages] = sent(stage)

        assert messages == [{"role": "user", "content": NOTICE}, *said[4:]]


# -- slimming ---------------------------------------------------------------------------------------------------


async def test_slimmed_prompts_share_a_flight_with_those_that_were_slim_already() -> None:
    """Replaced by hash or text, without examples, without blanks; everything else as the caller wrote it."""
    rules = {
        "prompts": [{"replace": "You are a very, very helpful assistant.", "by": "Help."}],
        "drop": [{"begin": "<examples>", "end": "</examples>"}],
        "squeeze": True,
    }
    async with Many(PROVIDERS, MODELS, extra={"slimming": rules}) as stage:
        for text in (
            "You are a very, very helpful assistant.",
            "Be   good.  \n\n\n\n<examples>\nQ: 1\n</examples>\nNow.",
        ):
            user = {"role": "user", "content": "two  blanks"}
            await say(stage, [{"role": "system", "content": text}, user])
        lines = await stage.access_lines(2)
        await stage.at_rest()

        assert sent(stage) == [
            [{"role": "system", "content": "Help."}, user],
            [{"role": "system", "content": "Be good.\n\nNow."}, user],
        ]
        assert [line["slimmed_tokens"] > 5 for line in lines] == [True, True]


# -- guards ------------------------------------------------------------------------------------------------------


async def test_guards_look_at_what_falls_out_beside_the_call_that_sums_it_up() -> None:
    """A word that is said only there is not carried on by a summary; the caller is answered without one."""
    guard = {"kind": "words", "mode": "during", "words": ["forbidden"]}
    extra = {"pruning": {**RULE, "summary": SUMMARY}, "guards": {"taboo": guard}}
    said = talk(11)
    said[1]["content"] += " forbidden"
    async with Many(PROVIDERS, MODELS, extra=extra) as stage:
        stage.upstreams["cheap"].respond_with(sums_up())
        response = await say(stage, said)
        [summary, answer] = await stage.access_lines(2)
        await stage.at_rest()

        assert response.status == 200
        assert sent(stage) == [[said[0], *said[5:]]]
        assert (summary["model"], summary["status"], answer["summarised"]) == ("tiny", 400, False)
        assert stage.series('summary_failures_total{reason="blocked"}') == 1
