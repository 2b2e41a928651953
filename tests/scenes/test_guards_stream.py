"""Guards of streamed answers, through the real proxy, in three dialects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.gates import Gate, wait_until
from tests.fakes.upstream import Call
from tests.fakes.valkey import ValkeyServer
from tests.scenes.guarded import CARD, CARDS, guarded
from tests.scenes.stage import CHAT, MESSAGES, as_bytes, chat, delta, stream_events
from tests.scenes.test_cross_process import together

REDACTS: dict[str, Any] = {"cards": {**CARDS, "mode": "after", "action": "redact"}}
BLOCKED: dict[str, Any] = {"cards": {**CARDS, "mode": "after"}}
PATROLS: dict[str, Any] = {"hook": {"kind": "webhook", "mode": "after", "timeout_ms": 5_000}}
RESPONSES = "/v1/responses"
PIECES = ["your card: ", CARD[:3], CARD[3:11], CARD[11:], " is fine"]
SSE = [("content-type", "text/event-stream")]


def named(event: dict[str, Any]) -> bytes:
    """An event of a dialect that names its events."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def messages_stream(*texts: str) -> list[object]:
    """In Anthropic's shape."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": []}
    usage = {"input_tokens": 5, "output_tokens": 1}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}} for text in texts
    ]
    events = [
        {"type": "message_start", "message": {**message, "usage": usage}},
        block,
        *deltas,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    return [named(event) for event in events]


def responses_stream(*texts: str) -> list[object]:
    """In the shape of Responses, which says everything thrice."""
    whole = "".join(texts)
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": whole, "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    usage = {"input_tokens": 5, "output_tokens": 9, "total_tokens": 14}
    done = {"id": "resp_1", "object": "response", "status": "completed", "output": [item], "usage": usage}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": "resp_1", "object": "response", "output": []}},
        *({"type": "response.output_text.delta", **place, "delta": text} for text in texts),
        {"type": "response.output_text.done", **place, "text": whole},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": done},
    ]
    return [named(event) for event in events]


DIALECTS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "chat": (CHAT, chat(stream=True), stream_events),
    "messages": (
        MESSAGES,
        {"model": "claude", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "hi"}]},
        messages_stream,
    ),
    "responses": (RESPONSES, {"model": "gpt-4o-mini", "stream": True, "input": "hi"}, responses_stream),
}


async def test_a_card_that_is_split_over_events_reaches_nobody_in_any_dialect() -> None:
    """Neither in the deltas nor where the dialect says the whole text again; everything else does."""
    async with guarded(REDACTS) as stage:
        for path, body, stream in DIALECTS.values():
            stage.upstream.respond_with(lambda call, stream=stream: call.answer_sse(stream(*PIECES)))
            response = await (await stage.ask(body, path=path)).read_end()
            text = response.body.decode()
            assert response.status == 200
            assert "[CARD]" in text
            assert "4111" not in text
            assert "1111" not in text
            assert "your card: " in text
            assert " is fine" in text
        await stage.at_rest()

        assert stage.series('guard_results_total{guard="cards",result="redacted"}') == 3


async def test_a_clean_stream_passes_byte_for_byte_in_any_dialect() -> None:
    """Guards leave no trace where there is nothing to find."""
    async with guarded(REDACTS) as stage:
        for path, body, stream in DIALECTS.values():
            events = stream("nothing ", "to see ", "here: 4111")
            stage.upstream.respond_with(lambda call, events=events: call.answer_sse(events))
            response = await (await stage.ask(body, path=path)).read_end()
            assert response.body == as_bytes(events)
        await stage.at_rest()


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_block_in_a_stream_ends_it_with_an_error_and_cancels_the_call(dialect: str) -> None:
    """What was clean has been read by then; the call has its price."""
    path, body, stream = DIALECTS[dialect]
    async with guarded(BLOCKED) as stage:
        gate = Gate("never")
        events = [*stream("a clean beginning of the answer. ", *PIECES)]
        at = next(index for index, event in enumerate(events) if "is fine" in str(event))

        async def answer(call: Call) -> None:
            await call.send_head(200, SSE, chunked=True)
            await call.send(as_bytes(events[: at + 1]))
            await gate.wait()

        stage.upstream.respond_with(answer)
        response = await (await stage.ask(body, path=path)).read_end()
        await wait_until(lambda: stage.upstream.aborted == 1, "the call was cancelled")
        await stage.at_rest()

        text = response.body.decode()
        assert response.status == 200
        assert "a clean beginning" in text
        assert "4111" not in text
        assert "blocked by the guard" in text
        assert "content_policy_violation" in text or dialect == "messages"
        assert not text.rstrip().endswith("[DONE]")
        assert stage.series("tokens_total") > 0
        (line,) = await stage.access_lines(1)
        assert line["error_type"] == "content_policy_violation"


async def test_text_that_could_be_no_card_is_not_kept_waiting() -> None:
    """Each word is read as it comes, before the next is sent."""
    async with guarded(REDACTS) as stage:
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await call.send_head(200, SSE, chunked=True)
        for word in ("one ", "two ", "three "):
            await call.send(as_bytes([delta(word)]))
            await response.read_until(word.encode())
        await call.send(as_bytes(["[DONE]"]))
        await call.end()
        await response.read_end()
        await stage.at_rest()


@pytest.mark.parametrize("guards", [REDACTS, {**REDACTS, **PATROLS}])
async def test_a_stream_that_breaks_off_gives_what_was_kept_waiting(guards: dict[str, Any]) -> None:
    """The beginning of what might have been a card was none."""
    async with guarded(guards) as stage:
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await call.send_head(200, SSE, chunked=True)
        await call.send(as_bytes([delta("so far "), delta("4111 11")]))
        await response.read_until(b"so far")
        call.reset()
        await response.read_end()
        await stage.at_rest()

        assert b"4111 11" in response.body
        assert b"upstream_reset" in response.body


async def test_a_request_that_is_judged_beside_the_call_and_its_stream_afterwards() -> None:
    """The gate and the windows, one behind the other."""
    guards = {"hook": {**PATROLS["hook"], "mode": "during"}, **REDACTS}
    async with guarded(guards) as stage:
        gate = stage.guards.gates["hook"] = Gate("the guard")
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await call.answer_sse(stream_events(*PIECES))
        await wait_until(lambda: stage.app.guarding.screening.held.bytes > 0, "the gate holds something")
        gate.open()
        await response.read_end()
        await stage.at_rest()

        assert b"[CARD]" in response.body
        assert b"4111" not in response.body
        assert response.body.endswith(b"data: [DONE]\n\n")


# -- remote guards on a stream --------------------------------------------------------------------------------


async def test_a_remote_guard_reads_a_stream_in_portions_that_overlap() -> None:
    """Every portion begins with the end of the one before, so that nothing is cut in two; every byte comes out."""
    words = ["".join(f"w{number}-{index} " for index in range(90)) for number in range(4)]
    async with guarded(PATROLS) as stage:
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await call.send_head(200, SSE, chunked=True)
        for number, word in enumerate(words):
            await call.send(as_bytes([delta(word)]))
            await response.read_until(f"w{number}-89".encode())
        await call.send(as_bytes(["[DONE]"]))
        await call.end()
        await response.read_end()
        await stage.at_rest()

        assert response.body == as_bytes(stream_events(*words))
        asked = [question["texts"][0] for question in stage.guards.asked("hook")]
        assert len(asked) == 4
        assert asked[0] == words[0]
        assert all(text.endswith(word) for text, word in zip(asked, words, strict=True))
        assert all(len(text) == len(word) + 200 for text, word in zip(asked[1:], words[1:], strict=True))


async def test_nothing_of_a_portion_is_read_before_the_remote_guard_has_allowed_it() -> None:
    """The head may go; the text waits."""
    async with guarded(PATROLS) as stage:
        gate = stage.guards.gates["hook"] = Gate("the guard")
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await call.answer_sse(stream_events("x" * 500))
        await gate.reached()
        assert b"xxx" not in response.body
        gate.open()
        await response.read_end()
        await stage.at_rest()

        assert response.body == as_bytes(stream_events("x" * 500))


async def test_a_remote_guard_ends_a_stream_with_an_error() -> None:
    """What it has not allowed is read by nobody."""
    async with guarded(PATROLS) as stage:
        async def judge(call: Call) -> None:
            await call.answer_json({"action": "block" if "bad" in call.json()["texts"][0] else "allow"})

        stage.guards.respond_with(judge)
        response = await stage.ask(chat(stream=True))
        call = await stage.upstream.next_call()
        await call.send_head(200, SSE, chunked=True)
        await call.send(as_bytes([delta("good " * 100)]))
        await response.read_until(b"good")
        await call.send(as_bytes([delta("bad " * 100)]))
        await response.read_end()
        await call.client_gone()
        await stage.at_rest()

        assert b"bad" not in response.body
        assert b"blocked by the guard" in response.body


async def test_built_in_guards_redact_before_a_remote_one_reads() -> None:
    """The card is in neither place."""
    async with guarded({**REDACTS, **PATROLS}) as stage:
        stage.upstream.respond_with(lambda call: call.answer_sse(stream_events(*PIECES)))
        response = await (await stage.ask(chat(stream=True))).read_end()
        await stage.at_rest()

        assert b"[CARD]" in response.body
        assert b"4111" not in response.body
        assert response.body.endswith(b"data: [DONE]\n\n")
        assert "[CARD]" in stage.guards.asked("hook")[-1]["texts"][0]
        assert "4111" not in str(stage.guards.asked("hook"))


# -- other processes ------------------------------------------------------------------------------------------


async def test_followers_in_another_process_get_what_the_guards_left(private_valkey: ValkeyServer) -> None:
    """One call, one check, and no card beyond the process that made the call."""
    guards = {"hook": {**PATROLS["hook"], "mode": "during"}, **REDACTS}
    words = together(private_valkey)
    async with guarded(guards, **words) as one:
        urls = {f"{name}_upstream": one.upstream.url for name in ("openai", "anthropic", "mistral")}
        server = {"hook": {**guards["hook"], "url": f"{one.guards.url}/hook"}, **REDACTS}
        async with guarded(server, **words, **urls) as other:
            for stage in (one, other):
                formation = stage.app.formation
                assert formation is not None
                await wait_until(lambda formation=formation: formation.listener.connected, "the proxy listens")
            gate = one.guards.gates["hook"] = Gate("the guard")
            first = await one.ask(chat(stream=True))
            await gate.reached()
            second = await other.ask(chat(stream=True))
            formation = other.app.formation
            await wait_until(lambda: formation.wings == 1, "the other process follows")  # type: ignore[union-attr]
            call = await one.upstream.next_call()
            gate.open()
            await call.answer_sse(stream_events(*PIECES))
            bodies = {(await response.read_end()).body for response in (first, second)}
            await other.at_rest()
        await one.at_rest()

        (body,) = bodies
        assert b"[CARD]" in body
        assert b"4111" not in body
        assert (one.upstream.calls, one.guards.calls) == (1, 1)
