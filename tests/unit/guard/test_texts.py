"""The texts of whole bodies, and how they are put back."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.guard.base import merge_findings, redact
from proxy.guard.texts import put_back, read_answer, read_request
from proxy.protocol.call import Call, parse_call
from proxy.protocol.routes import Route, Shape
from tests.unit.guard.make import make_check

ROUTE = Route("chat.completions", Shape.WHOLE_OR_STREAM)
CARD = "4242 4242 4242 4242"

REQUESTS: dict[str, dict[str, Any]] = {
    "chat": {
        "model": "m-4242424242424242",
        "user": "ann",
        "messages": [
            {"role": "system", "content": f"s {CARD}"},
            {"role": "user", "content": [{"type": "text", "text": f"u {CARD}"}, {"type": "image_url", "image_url": {
                "url": "data:image/png;base64,4242424242424242"}}]},
            {"role": "assistant", "tool_calls": [{"id": "4242424242424242", "type": "function", "function": {
                "name": "pay", "arguments": '{"card": 4242424242424242, "at": "4242424242424242"}'}}]},
            {"role": "tool", "tool_call_id": "4242424242424242", "content": f"t {CARD}"},
        ],
        "tools": [{"type": "function", "function": {"name": "n", "description": f"d {CARD}", "parameters": {
            "enum": ["4242424242424242"]}}}],
    },
    "messages": {
        "model": "m", "max_tokens": 4242424242424242, "system": [{"type": "text", "text": f"s {CARD}"}],
        "messages": [
            {"role": "user", "content": f"u {CARD}"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": f"th {CARD}", "signature": "4242424242424242"},
                {"type": "tool_use", "id": "t1", "name": "pay", "input": {"name": CARD, "id": 4242424242424242}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": f"r {CARD}"}]},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": f"d {CARD}"}}]},
        ],
    },
    "responses": {
        "model": "m", "instructions": f"s {CARD}", "text": {"format": {"type": "text"}},
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": f"u {CARD}"}]},
            {"type": "function_call", "call_id": "c", "name": "pay", "arguments": '{"card":"4242424242424242"}'},
            {"type": "function_call_output", "call_id": "c", "output": f"o {CARD}"},
        ],
    },
    "embeddings": {"model": "m", "input": [f"a {CARD}", "b"]},
    "embedding": {"model": "m", "input": f"a {CARD}"},
    "completions": {"model": "m", "prompt": [f"p {CARD}"], "suffix": CARD},
    "unknown": {"model": "m", "query": CARD, "documents": [{"body": {"words": [CARD]}}]},
}  # fmt: skip


def call_of(name: str) -> Call:
    return parse_call(ROUTE, orjson.dumps(REQUESTS[name]))


@pytest.mark.parametrize("name", REQUESTS)
def test_every_text_of_a_request_is_redacted_and_nothing_else_changes(name: str) -> None:
    """Instructions, results and arguments of tools, what describes them, and prompts; not models, ids, pictures."""
    check = make_check("personal_data", which=("card",))
    call = call_of(name)
    texts = read_request(call, ROUTE)
    redacted = [redact(text, merge_findings(check.look(text))) for _, text in texts]
    before = orjson.loads(call.body)
    call.edit(put_back(call, redacted))
    after = orjson.loads(call.body)

    left = "4242 4242" in call.body.decode()
    assert not left
    wanted = orjson.loads(orjson.dumps(before).replace(CARD.encode(), b"[CARD]"))
    if name == "chat":
        call_made = wanted["messages"][2]["tool_calls"][0]["function"]
        call_made["arguments"] = '{"card": "[CARD]", "at": "[CARD]"}'
        wanted["tools"][0]["function"]["parameters"]["enum"] = ["[CARD]"]
    elif name == "messages":
        wanted["messages"][1]["content"][1]["input"]["id"] = "[CARD]"
    elif name == "responses":
        wanted["input"][1]["arguments"] = '{"card":"[CARD]"}'
    assert after == wanted


def test_members_without_a_finding_stay_byte_for_byte() -> None:
    """Only what has changed is written anew."""
    messages = b'"messages":[{"role":"user", "content":"hi"}]'
    body = b'{"model":"m", "temperature":1.50, ' + messages + b', "prompt":"4242424242424242"}'
    call = parse_call(ROUTE, body)
    texts: list[bytes] = [text for _, text in read_request(call, ROUTE)]
    assert put_back(call, texts) == {}
    members = put_back(call, [text.replace(b"4242424242424242", b"x") for text in texts])
    assert members == {"prompt": "x"}
    call.edit(members)
    assert call.body == body.replace(b"4242424242424242", b"x")


def test_putting_back_leaves_what_was_parsed_alone() -> None:
    """The call's members are shared with readers."""
    call = call_of("chat")
    fields = orjson.dumps(call.fields)
    put_back(call, [b"x" for _ in read_request(call, ROUTE)])
    assert orjson.dumps(call.fields) == fields


def test_a_whole_answer_is_redacted_with_the_tokens_beside_it() -> None:
    """Content, thought, refusal and arguments; the rest stays."""
    message = {"role": "assistant", "content": f"c {CARD}", "reasoning_content": CARD, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"arguments": '{"card": 4242424242424242}'}}]}  # fmt: skip
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": [{"token": CARD}]}}
    body = orjson.dumps({"id": "4242424242424242", "model": "m", "choices": [choice], "usage": {"total_tokens": 3}})
    answer = read_answer(body, ROUTE)
    assert answer is not None
    check = make_check("personal_data")
    found = {at: merge_findings(check.look(text)) for at, (_, text) in enumerate(answer.texts)}
    fields = orjson.loads(answer.redact({at: each for at, each in found.items() if each}))

    said = fields["choices"][0]["message"]
    assert (said["content"], said["reasoning_content"]) == ("c [CARD]", "[CARD]")
    assert said["tool_calls"][0]["function"]["arguments"] == '{"card": "[CARD]"}'
    assert fields["choices"][0]["logprobs"] is None
    assert fields["id"] == "4242424242424242"
    assert fields["usage"] == {"total_tokens": 3}


def test_what_a_response_repeats_of_the_request_is_not_its_answer() -> None:
    """A guard for answers must not find the caller's own instructions."""
    item = {"type": "message", "content": [{"type": "output_text", "text": "hi"}]}
    body = orjson.dumps({"object": "response", "instructions": CARD, "output": [item], "text": {"format": {}}})
    answer = read_answer(body, ROUTE)
    assert answer is not None
    assert [text for _, text in answer.texts] == [b"hi"]
    assert [text.kind for _, text in answer.texts] == ["text"]


def test_a_body_that_is_no_json_has_no_texts() -> None:
    """Whoever asked decides what that means."""
    assert read_answer(b"<html>", ROUTE) is None


def test_only_what_the_model_says_has_to_keep_the_schema() -> None:
    """Not its thoughts, nor what it tells a tool."""
    schema = make_check("schema", "block", schema='{"type":"object","required":["a"]}')
    message = {"content": '{"a":1}', "reasoning_content": "hm", "refusal": None}
    answer = read_answer(orjson.dumps({"choices": [{"message": message}]}), ROUTE)
    assert answer is not None
    assert [schema.look(text) for _, text in answer.texts] == [[], []]
    assert schema.look(answer.texts[1][1].replace(b"hm", b"{}")) != []
