"""Ways around guards that must not be: each of these once let something pass, or held something for good."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import structlog

from proxy.config.guards import Guard
from proxy.guard import run
from proxy.guard.remote import RemoteGuards
from proxy.guard.run import GuardRunner, Matter
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, wait_until
from tests.fakes.upstream import Call
from tests.scenes.guarded import CARD, CARDS, guarded
from tests.scenes.many import PLACEHOLDER
from tests.scenes.stage import CHAT, MESSAGES, chat, completion, stream_events
from tests.scenes.test_guards import BLOCKS, HOOK, MULTIPART, UPGRADE, error_of
from tests.scenes.test_guards_stream import PATROLS, RESPONSES, SSE, named

BEFORE: dict[str, Any] = {"cards": {**CARDS, "mode": "before"}}
BARE = CARD.replace(" ", "")
JSON = [("content-type", "application/json")]


# -- where a text may hide ------------------------------------------------------------------------------------


HIDDEN: dict[str, tuple[str, dict[str, Any]]] = {
    "behind the beginning of an inline file": (CHAT, chat(f"data: my card is {CARD}")),
    "in the name of who speaks": (
        CHAT, {"model": "m", "messages": [{"role": "user", "name": BARE, "content": "hi"}]},
    ),
    "among the values of a tool's parameter": (
        CHAT,
        chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {"x": {"enum": [CARD]}}}}]),
    ),
    "in the example of a tool": (
        MESSAGES,
        {
            "model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}],
            "tools": [{"name": "f", "input_schema": {"type": "object"}, "input_examples": [{"number": CARD}]}],
        },
    ),
    "in the schema of the answer": (
        RESPONSES,
        {
            "model": "m", "input": "hi",
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {"title": CARD}}},
        },
    ),
    "with spaces that do not break": (CHAT, chat("4111\u00a01111\u202f1111\u00a01111")),
    "with hyphens that do not break": (CHAT, chat("4111\u20111111\u20111111\u20111111")),
    "with nothing to be seen between its digits": (CHAT, chat("\u200b".join(BARE))),
    "in wide digits": (CHAT, chat("".join(chr(ord(digit) + 0xFEE0) for digit in BARE))),
    "in the digits of another script": (CHAT, chat("".join(chr(ord(digit) - 48 + 0x0660) for digit in BARE))),
    "escaped in the result of a tool": (CHAT, chat('{"card": "4111\\u00a01111\\u00a01111\\u00a01111"}')),
    "in digits that are escaped": (CHAT, chat('{"card": "\\u0034111111111111111"}')),
}  # fmt: skip


async def test_a_card_is_found_wherever_the_model_would_read_it() -> None:
    """However it is written and wherever it stands in the request."""
    async with guarded(BEFORE) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        for where, (path, body) in HIDDEN.items():
            response = await (await stage.ask(body, path=path)).read_end()
            assert (where, response.status) == (where, 400)
            assert error_of(response.body)["message"] == "The request was blocked by the guard 'cards'."
        await stage.at_rest()

        assert stage.upstream.calls == 0


async def test_what_is_redacted_in_such_places_leaves_the_rest_as_it_was() -> None:
    """A card that is written oddly goes as a whole, and nothing beside it."""
    redacts = {"cards": {**BEFORE["cards"], "action": "redact"}}
    async with guarded(redacts) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        wide = "".join(chr(ord(digit) + 0xFEE0) for digit in BARE)
        body = chat(f"süß {wide} and 4111\u00a01111\u200b\u00a01111\u00a01111, 词 \u200b ok", user="ann")
        assert (await (await stage.ask(body)).read_end()).status == 200
        await stage.at_rest()

        (call,) = stage.upstream.history
        assert call.json() == chat("süß [CARD] and [CARD], 词 \u200b ok", user="ann")


async def test_a_word_is_found_however_it_is_set() -> None:
    """Wide letters, invisible characters, emphasis and escapes do not make another word of it."""
    async with guarded({"list": {"kind": "words", "words": ["falcon"], "mode": "before"}}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        for text in ("the fal\u200bcon", "ｆａｌｃｏｎ", "_Falcon_", '{"a": "f\\u0061lcon"}', "fal\u00adcon"):
            response = await (await stage.ask(chat(text))).read_end()
            assert (text, response.status) == (text, 400)
        await stage.at_rest()

        assert stage.upstream.calls == 0


async def test_an_oddly_written_card_is_found_in_a_stream_as_well() -> None:
    """Models like spaces and hyphens that do not break."""
    async with guarded({"cards": {**CARDS, "mode": "after", "action": "redact"}}) as stage:
        for pieces in (["4111\u00a01111", "\u00a01111\u00a0", "1111 ok"], ["４１", "１１" * 6, "１１ ok"]):
            events = stream_events("card: ", *pieces)
            stage.upstream.respond_with(lambda call, events=events: call.answer_sse(events))
            response = await (await stage.ask(chat(stream=True))).read_end()
            said = [json.loads(line[6:]) for line in response.body.splitlines() if line.startswith(b"data: {")]
            assert "".join(each["choices"][0]["delta"]["content"] for each in said) == "card: [CARD] ok"
        await stage.at_rest()


@pytest.mark.parametrize("fail", ["open", "closed"])
async def test_a_text_in_tokens_does_not_slip_past_a_guard(fail: str) -> None:
    """Nobody here can read it; so it is let pass only where the guard fails open."""
    async with guarded({"cards": {**BEFORE["cards"], "fail": fail}}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        for path, said in (
            ("/v1/completions", {"prompt": [9906, 1917]}),
            ("/v1/completions", {"prompt": ["hi", [9906, 1917]]}),
            ("/v1/embeddings", {"input": [[9906, 1917]]}),
        ):
            response = await (await stage.ask({"model": "m", **said}, path=path)).read_end()
            assert (said, response.status) == (said, 200 if fail == "open" else 400)
        await stage.at_rest()

        assert stage.upstream.calls == (3 if fail == "open" else 0)


# -- other ways to the same model -----------------------------------------------------------------------------


async def test_another_spelling_of_a_guarded_route_is_no_way_around_its_guard() -> None:
    """Servers differ in what they take for the same path, and in whether they heed the content type."""
    only = {"for": {"routes": ["chat.completions", "messages", "responses"]}}
    async with guarded({"cards": {**BEFORE["cards"], **only}}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        for method, path, headers in (
            ("POST", CHAT, MULTIPART),
            ("POST", CHAT + "/", JSON),
            ("POST", "/v1/Chat/Completions", JSON),
            ("POST", "/openai/v1/chat/completions/", JSON),
            ("PUT", CHAT, JSON),
            ("POST", MESSAGES + "/batches", JSON),
            ("GET", RESPONSES, UPGRADE),
        ):
            body = json.dumps(chat(f"my card is {CARD}")).encode() if method != "GET" else None
            response = await (await stage.ask(body, method=method, path=path, headers=headers)).read_end()
            assert (method, path, response.status) == (method, path, 403)
        await stage.settled()

        assert stage.upstream.calls == 0


async def test_an_answer_that_was_kept_upstream_cannot_be_fetched_past_its_guard() -> None:
    """Its id stands in the events that were let through before it was blocked."""
    async with guarded({"cards": {**CARDS, "mode": "after"}}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json({"output": CARD}))
        for path in ("/v1/responses/resp_1", "/v1/chat/completions/chatcmpl-1", "/v1/files/f/content"):
            response = await (await stage.ask(method="GET", path=path)).read_end()
            assert (path, response.status) == (path, 403)
        await stage.settled()

        assert stage.upstream.calls == 0


async def test_a_guard_of_requests_lets_answers_be_fetched() -> None:
    """It has nothing to look for in them."""
    async with guarded(BEFORE) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json({"id": "resp_1"}))
        response = await (await stage.ask(method="GET", path="/v1/responses/resp_1")).read_end()
        await stage.settled()

        assert response.status == 200


async def test_what_falls_out_of_a_conversation_is_judged_before_it_is_summed_up() -> None:
    """The cheap model reads it instead of the other: a remote guard comes before that as well."""
    extra = {"pruning": {"messages": 4, "block": 4, "summary": {"model": "tiny", "max_tokens": 40}}}
    talk = [{"role": "user" if at % 2 == 0 else "assistant", "content": f"bad {at} " + "x" * 80} for at in range(13)]
    talk[-1]["content"] = "good"
    async with guarded(
        {"hook": {**HOOK, "mode": "before"}},
        providers={"one": {"kind": "compatible"}, "cheap": {"kind": "compatible"}},
        models={"smart": {"targets": ["one/llama"]}, "tiny": {"targets": ["cheap/small"]}},
        extra=extra,
        env={"SAMEFLIGHT_KEY_PEPPER": "a-pepper-for-guarded-summaries"},
    ) as stage:
        stage.guards.says["hook"] = BLOCKS
        response = await stage.ask({"model": "smart", "messages": talk}, key=PLACEHOLDER)
        await response.read_end()
        await stage.at_rest()

        assert response.status == 400
        assert (stage.upstreams["cheap"].calls, stage.upstreams["one"].calls) == (0, 0)


async def test_a_remote_guard_reads_what_a_stream_of_responses_says_only_as_a_whole() -> None:
    """Some servers say calls of tools in no deltas; what was said in deltas is not asked about once more."""
    call_of_tool = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "c",
        "name": "pay",
        "arguments": '{"to": "bad"}',
    }
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    events = [
        {"type": "response.output_text.delta", **place, "delta": "a word"},
        {"type": "response.output_text.done", **place, "text": "a word"},
        {"type": "response.output_item.done", "output_index": 1, "item": call_of_tool},
        {"type": "response.completed", "response": {"id": "resp_1", "object": "response", "output": [call_of_tool]}},
    ]
    async with guarded(PATROLS) as stage:
        stage.upstream.respond_with(lambda call: call.answer_sse([named(event) for event in events]))
        body = {"model": "gpt-4o-mini", "stream": True, "input": "hi"}
        response = await (await stage.ask(body, path=RESPONSES)).read_end()
        await stage.at_rest()

        asked = [text for question in stage.guards.asked("hook") for text in question["texts"]]
        assert response.status == 200
        assert sum('{"to": "bad"}' in text for text in asked) == 1
        assert sum("a word" in text for text in asked) == 1


async def test_an_answer_in_another_shape_than_it_says_is_no_way_past_a_guard() -> None:
    """What can be looked at is, whatever it is called; the rest is not let through."""
    async with guarded({"cards": {**CARDS, "mode": "after", "action": "redact"}}) as stage:
        for kind, body, status in (
            ("text/event-stream", json.dumps(completion(CARD)).encode(), 200),
            ("text/event-stream", f": {CARD}\n\ndata: [DONE]\n\n".encode(), 200),
            ("application/json", json.dumps([CARD]).encode(), 200),
            ("application/json", json.dumps(CARD).encode(), 503),
            ("text/plain", CARD.encode(), 503),
        ):
            head = [("content-type", kind)]
            stage.upstream.respond_with(lambda call, head=head, body=body: call.answer(200, head, body))
            response = await (await stage.ask(chat())).read_end()
            assert (body, response.status) == (body, status)
            assert CARD.encode() not in response.body
        await stage.at_rest()


# -- bounds ---------------------------------------------------------------------------------------------------


async def test_a_look_that_takes_too_long_keeps_its_place_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread cannot be stopped: those that nobody waits for any more are still no more than two at a time."""
    runs = threading.Semaphore(0)
    begun: list[int] = []
    clock = FrozenClock()

    async def post(*_: object) -> tuple[int, bytes]:
        return 500, b""

    def slow(*_: object) -> None:
        begun.append(1)
        runs.acquire()

    monkeypatch.setattr(run, "judge", slow)
    runner = GuardRunner(RemoteGuards(post, clock), clock, structlog.get_logger(), lambda *_: None)
    guard = Guard("cards", "personal_data", "before", timeout_s=0.01)
    matter = Matter("request", (b"x" * 100_000,), "chat.completions", "m", "", "req_1")
    try:
        rulings = [await runner.rule_later([guard], matter) for _ in range(4)]
        assert all(ruling.error is not None and ruling.error.detail == "timeout" for ruling in rulings)
        assert len(begun) == run.SLOW_AT_A_TIME
    finally:
        for _ in range(8):
            runs.release()
    await wait_until(lambda: runner.looking == 0, "the threads are done")


@pytest.mark.long
@pytest.mark.parametrize("fail", ["open", "closed"])
async def test_an_event_without_end_is_not_held_for_a_remote_guard(fail: str) -> None:
    """It cannot be judged before it is whole; beyond a bound the guard's fail mode says what becomes of it."""
    async with guarded({"hook": {**PATROLS["hook"], "fail": fail}}) as stage:
        rest = Gate("the rest")

        async def answer(call: Call) -> None:
            await call.send_head(200, SSE, chunked=True)
            call.raw(b"%x\r\n%b\r\n" % ((3 << 20) + 6, b"data: " + b"x" * (3 << 20)))
            if fail == "closed":
                await call.client_gone()
                return
            await rest.wait()
            await call.send(b"\n\n")
            await call.end()

        stage.upstream.respond_with(answer)
        response = await stage.ask({**chat(), "stream": True})
        if fail == "open":
            await response.read_until(b"x" * (1 << 20))
        else:
            await response.read_end()
            assert b"could not be checked" in response.body
            assert b"xxx" not in response.body
        rest.open()
        await response.read_end()
        await stage.settled()


async def test_every_caller_that_is_blocked_has_a_line_in_the_log() -> None:
    """The second one is remembered, not looked at again, and the log says that it was refused as well."""
    async with guarded(BEFORE) as stage:
        for key in ("sk-test-the-first-caller-of-all", "sk-test-the-second-caller-of-all"):
            response = await (await stage.ask(chat(CARD), key=key)).read_end()
            assert response.status == 400
        await stage.at_rest()
        await stage.access_lines(2)

        lines = [json.loads(line) for line in stage.log_output.getvalue().splitlines()]
        said = [line for line in lines if line["event"] == "guard_blocked"]
        assert len({line["request_id"] for line in said}) == 2
        assert CARD not in stage.log_output.getvalue().decode()
        assert stage.series('guard_vetted_total{result="checked"}') == 1
        assert stage.series('guard_results_total{guard="cards",result="blocked"}') == 2
