"""OpenAI's responses for callers of other dialects, and other models for its callers."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.errors import ProxyError
from proxy.protocol.events import Delta, End, Event, Fault, Finish, Head, Proof, Reason, Thought, ToolDelta
from proxy.providers.base import Asked, Encoding, Form
from proxy.providers.kinds import make_providers
from proxy.providers.translation import translate
from tests.unit.providers.samples import PNG, SCHEMA

Fields = dict[str, Any]
PROVIDERS = make_providers()
ENCODING = Encoding("/", [], b"")
DATA_URL = f"data:image/png;base64,{PNG}"


def encode(fields: Fields, target: str = "openai", form: Form | None = None) -> Encoding:
    return translate(PROVIDERS["responses"], PROVIDERS[target], {"input": "q", **fields}, form or Form("m")).encoding


def test_items_become_messages_that_belong_together() -> None:
    """What one speaker says in a row is one message, calls and results keep each other."""
    items = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "q"},
            {"type": "input_image", "image_url": DATA_URL, "detail": "auto"},
        ]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "a", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "id": "fc_2", "call_id": "c2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        {"role": "user", "content": "next"},
        {"role": "user", "content": "and next"},
    ]
    encoding = encode({"input": items, "instructions": "i", "store": False, "include": [
        "reasoning.encrypted_content"]})

    def call(call_id: str) -> Fields:
        return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}

    assert orjson.loads(encoding.body)["messages"] == [
        {"role": "system", "content": "i"},
        {"role": "system", "content": "d"},
        {"role": "user", "content": [
            {"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": DATA_URL}}]},
        {"role": "assistant", "content": "a", "tool_calls": [call("c1"), call("c2")]},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "user", "content": "next"},
        {"role": "user", "content": "and next"},
    ]
    assert encoding.reported == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_output_tokens": 9}, {"max_completion_tokens": 9}),
        ({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"text": {"verbosity": "low"}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "text"}}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}},
         {"response_format": {"type": "json_schema", "json_schema": {
             "name": "n", "schema": SCHEMA, "strict": True}}}),
        ({"tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}],
          "tool_choice": {"type": "function", "name": "f"}},
         {"tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}],
          "tool_choice": {"type": "function", "function": {"name": "f"}}}),
        ({"background": False, "truncation": "disabled", "metadata": {}, "top_logprobs": 0}, {}),
    ],
)
def test_settings_of_responses_take_the_words_of_chat_completions(fields: Fields, expected: Fields) -> None:
    """Flat there, nested here."""
    ask = {"model": "m", "messages": [{"role": "user", "content": "q"}]}

    assert orjson.loads(encode(fields).body) == {**ask, **expected}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "new"}]}]}, "input[0].content[0].type"),
        ({"previous_response_id": "r"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ],
)
def test_what_lives_at_the_vendors_is_refused(fields: Fields, field: str) -> None:
    """There is no memory to go on from, and no tool to run."""
    if fields == {"input": ""}:
        fields = {"input": None}
    with pytest.raises(ProxyError) as refusal:
        encode(fields)

    assert refusal.value.public.startswith(f"'{field}'")


def test_a_thought_comes_back_to_its_maker_with_its_signature() -> None:
    """What was sent in `encrypted_content` is Anthropic's proof; another vendor's is not taken for one."""
    item = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "t"}]}
    turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]

    def sent(encrypted: str) -> tuple[Any, tuple[str, ...]]:
        items = [turn[0], {**item, "encrypted_content": encrypted}, *turn[1:]]
        encoding = encode({"input": items}, "anthropic", Form("claude-x"))
        return orjson.loads(encoding.body)["messages"][1]["content"], encoding.reported

    assert sent("proof:SIG") == (
        [{"type": "thinking", "thinking": "t", "signature": "SIG"}, {"type": "text", "text": "a"}],
        (),
    )
    assert sent("gAAAA") == ("a", ("input[]",))


CUSTOM = {"type": "custom", "name": "patch", "description": "Edits files.",
          "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"}}


def test_a_tool_that_takes_free_text_is_a_function_of_one_text() -> None:
    """The model is told the grammar in words."""
    items = [
        {"role": "user", "content": "q"},
        {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": 'say "x"'},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
    ]
    body = orjson.loads(encode({"input": items, "tools": [CUSTOM]}).body)
    function = body["tools"][0]["function"]

    assert function["name"] == "patch"
    assert function["parameters"]["required"] == ["input"]
    assert "lark grammar:\nstart: x" in function["description"]
    assert orjson.loads(body["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"input": 'say "x"'}
    assert body["messages"][2]["content"] == "done"


def written(events: list[Event], fields: Fields) -> list[Fields]:
    """The events of a caller's stream, parsed."""
    writer = PROVIDERS["responses"].writer(Asked(fields, True, True, 7))
    stream = b"".join([writer.write(event) for event in events])
    return [orjson.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: ")]


CALL: list[Event] = [
    Head("x", "m"),
    Thought("t"),
    Proof("SIG"),
    Delta("a"),
    Delta("b"),
    ToolDelta(0, "c", "patch", '{"input":'),
    ToolDelta(0, arguments='"text"}'),
    Finish(Reason.TOOLS),
    End(),
]


def test_every_event_of_a_stream_is_numbered_and_every_item_is_closed() -> None:
    """What was added is done, and the last event repeats all of it."""
    told = written(CALL, {"tools": [CUSTOM]})
    added = [event["item"]["id"] for event in told if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]

    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert added == [item["id"] for item in done] == ["rs_x_0", "msg_x_1", "ctc_x_2"]
    assert told[-1]["type"] == "response.completed"
    assert told[-1]["response"]["output"] == done
    assert done[0]["encrypted_content"] == "proof:SIG"
    assert done[1]["content"][0]["text"] == "ab"
    assert told[-1]["response"]["usage"] is None


def test_free_text_is_told_as_free_text() -> None:
    """In one piece, as it stands inside JSON until that is whole; a plain function is told as it comes."""
    custom = written(CALL, {"tools": [CUSTOM]})
    plain = written(CALL, {})

    assert custom[-2]["item"] == {
        "type": "custom_tool_call", "id": "ctc_x_2", "status": "completed", "call_id": "c", "name": "patch",
        "input": "text",
    }
    said = [event["delta"] for event in custom if event["type"] == "response.custom_tool_call_input.delta"]
    assert said == ["text"]
    arguments = [event["delta"] for event in plain if event["type"] == "response.function_call_arguments.delta"]
    assert arguments == ['{"input":', '"text"}']


def test_a_fault_makes_the_sdk_raise_and_nothing_follows() -> None:
    """The members stand at the top and under `error`."""
    fault = PROVIDERS["openai"].events_of(b'{"error":{"message":"m","code":"server_error"}}', ENCODING)[0]
    assert isinstance(fault, Fault)
    told = written([Head("x", "m"), Delta("a"), fault], {})

    assert told[-1]["type"] == "error"
    assert told[-1]["message"] == told[-1]["error"]["message"] == "m"


def test_chat_becomes_items_that_are_not_stored() -> None:
    """The API would keep them for a month; nobody asked for that."""
    fields = {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [
                {"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": DATA_URL}}]},
            {"role": "assistant", "content": "a", "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "r"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        "max_tokens": 50,
        "temperature": 1,
    }
    encoding = translate(PROVIDERS["openai"], PROVIDERS["responses"], fields, Form("gpt-6"), streams=True).encoding

    assert encoding.path == "/v1/responses"
    assert orjson.loads(encoding.body) == {
        "model": "gpt-6",
        "input": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [
                {"type": "input_text", "text": "q"},
                {"type": "input_image", "image_url": DATA_URL, "detail": "auto"},
            ]},
            {"role": "assistant", "content": "a"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "r"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": False}],
        "max_output_tokens": 50,
        "store": False,
        "stream": True,
    }
