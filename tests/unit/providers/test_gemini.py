"""Gemini's generateContent for callers of other dialects, and other models for its callers."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.errors import ProxyError
from proxy.protocol.events import Declined, End, Fault, Finish, Reason, ToolDelta, UsageReport
from proxy.protocol.usage import Usage
from proxy.providers.base import Encoding, Form
from proxy.providers.gemini import read_path
from proxy.providers.kinds import make_providers
from proxy.providers.schema import from_openapi, is_strict
from proxy.providers.translation import translate
from tests.unit.providers.samples import PNG, SCHEMA

Fields = dict[str, Any]
PROVIDERS = make_providers()
ENCODING = Encoding("/", [], b"")
ASK = [{"role": "user", "content": "q"}]
NEW, BUDGET, OLD = "gemini-3-pro", "gemini-2.5-flash", "gemini-2.0-flash"


def encode(fields: Fields, model: str = BUDGET, *, streams: bool = False) -> Encoding:
    fields = {"messages": ASK, **fields}
    return translate(PROVIDERS["openai"], PROVIDERS["gemini"], fields, Form(model), streams=streams).encoding


def test_a_conversation_with_tools_becomes_contents() -> None:
    """Results find the names of their functions, and Gemini's newest models get a proof for each first call."""
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    signed = {"google": {"thought_signature": "SIG"}}
    fields = {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [
                {"type": "text", "text": "q"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "image_url", "image_url": {"url": "https://e.example/a.jpg"}},
            ]},
            {"role": "assistant", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "a", "content": '{"t": 20}'},
            {"role": "tool", "tool_call_id": "b", "content": "noon"},
            {"role": "assistant", "tool_calls": [{**calls[0], "id": "c", "extra_content": signed}]},
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    }
    encoding = encode(fields, NEW)

    assert orjson.loads(encoding.body) == {
        "systemInstruction": {"parts": [{"text": "s"}]},
        "contents": [
            {"role": "user", "parts": [
                {"text": "q"},
                {"inlineData": {"mimeType": "image/png", "data": PNG}},
                {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://e.example/a.jpg"}},
            ]},
            {"role": "model", "parts": [
                {"functionCall": {"id": "a", "name": "f", "args": {"x": 1}},
                 "thoughtSignature": "skip_thought_signature_validator"},
                {"functionCall": {"id": "b", "name": "g", "args": {}}},
            ]},
            {"role": "user", "parts": [
                {"functionResponse": {"id": "a", "name": "f", "response": {"t": 20}}},
                {"functionResponse": {"id": "b", "name": "g", "response": {"result": "noon"}}},
            ]},
            {"role": "model", "parts": [
                {"functionCall": {"id": "c", "name": "f", "args": {"x": 1}}, "thoughtSignature": "SIG"},
            ]},
            {"role": "user", "parts": [
                {"functionResponse": {"id": "c", "name": "f", "response": {"result": "x"}}},
            ]},
        ],
        "tools": [{"functionDeclarations": [{"name": "f", "description": "d", "parametersJsonSchema": SCHEMA}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
    }
    assert encoding.reported == ()


@pytest.mark.parametrize(
    ("model", "fields", "config", "reported"),
    [
        (BUDGET, {"max_tokens": 5, "stop": "X", "seed": 1, "top_k": 2, "n": 2},
         {"maxOutputTokens": 5, "stopSequences": ["X"], "seed": 1, "topK": 2, "candidateCount": 2}, ()),
        (BUDGET, {"reasoning_effort": "none"}, {"thinkingConfig": {"thinkingBudget": 0}}, ()),
        (BUDGET, {"reasoning_effort": "medium"}, {"thinkingConfig": {"thinkingBudget": 8192}}, ()),
        (NEW, {"reasoning_effort": "low"}, {"thinkingConfig": {"thinkingLevel": "low"}}, ()),
        (NEW, {"reasoning_effort": "high"}, {"thinkingConfig": {"thinkingLevel": "high"}}, ()),
        (OLD, {"reasoning_effort": "high"}, None, ("reasoning_effort",)),
        (BUDGET, {"thinking": {"type": "enabled", "budget_tokens": 3000}},
         {"thinkingConfig": {"includeThoughts": True, "thinkingBudget": 3000}}, ()),
        (BUDGET, {"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}, ()),
        (BUDGET, {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
         {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA}, ()),
    ],
)
def test_settings_become_the_generation_config(
    model: str, fields: Fields, config: Fields | None, reported: tuple[str, ...]
) -> None:
    """Efforts are budgets, levels or nothing, as the model has it."""
    encoding = encode(fields, model)

    assert orjson.loads(encoding.body).get("generationConfig") == config
    assert encoding.reported == reported


def test_the_path_tells_model_and_stream() -> None:
    """And is read the same way from a caller."""
    assert encode({}, "a/b").path == "/v1beta/models/a%2Fb:generateContent"
    assert encode({}, "a", streams=True).path == "/v1beta/models/a:streamGenerateContent?alt=sse"
    assert read_path("/v1beta/models/a%2Fb:generateContent") == ("a/b", False)
    assert read_path("/v1beta/models/gemini-3-pro:streamGenerateContent") == ("gemini-3-pro", True)
    assert read_path("/v1beta/models/gemini-3-pro:countTokens") is None
    assert read_path("/v1beta/models") is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "r"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://e.example/picture"}}]}]}, "messages[0].content[0]"),
        ({"stop": list("abcdef")}, "stop"),
        ({"messages": [{"role": "system", "content": "s"}]}, "messages"),
    ],
)
def test_what_gemini_has_no_place_for_is_refused(fields: Fields, field: str) -> None:
    """A result without its call, a picture without a type, too many stops, nothing but instructions."""
    with pytest.raises(ProxyError) as refusal:
        encode(fields)

    assert refusal.value.public.startswith(f"'{field}'")


def test_geminis_callers_reach_anthropic_in_either_spelling() -> None:
    """The API takes its members in two ways; ids that it leaves out are made up and kept together."""
    fields = {
        "system_instruction": {"parts": [{"text": "s"}]},
        "contents": [
            {"parts": [{"text": "q"}, {"inline_data": {"mime_type": "image/png", "data": PNG}}]},
            {"role": "model", "parts": [
                {"functionCall": {"name": "f", "args": {"x": 1}}},
                {"functionCall": {"name": "f", "args": {"x": 2}}},
            ]},
            {"role": "user", "parts": [
                {"functionResponse": {"name": "f", "response": {"output": "one"}}},
                {"functionResponse": {"name": "f", "response": {"error": "two"}}},
            ]},
        ],
        "tools": [{"function_declarations": [{"name": "f", "parameters": {
            "type": "OBJECT", "properties": {"x": {"type": "INTEGER", "nullable": True}}}}]}],
        "tool_config": {"function_calling_config": {"mode": "ANY"}},
        "generation_config": {"max_output_tokens": 50, "stop_sequences": ["X"], "temperature": 0.5},
    }
    encoding = translate(PROVIDERS["gemini"], PROVIDERS["anthropic"], fields, Form("claude-x")).encoding

    assert orjson.loads(encoding.body) == {
        "model": "claude-x",
        "max_tokens": 50,
        "system": "s",
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "q"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            ]},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "call_0", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "call_1", "name": "f", "input": {"x": 2}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "call_0", "content": "one"},
                {"type": "tool_result", "tool_use_id": "call_1", "content": "two", "is_error": True},
            ]},
        ],
        "tools": [{"name": "f", "input_schema": {
            "type": "object", "properties": {"x": {"type": ["integer", "null"]}}}}],
        "tool_choice": {"type": "any"},
        "temperature": 0.5,
        "stop_sequences": ["X"],
    }
    assert encoding.reported == ()


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        ({"promptTokenCount": 10, "candidatesTokenCount": 5}, Usage(10, 5)),
        ({"promptTokenCount": 10, "candidatesTokenCount": 5, "thoughtsTokenCount": 7, "cachedContentTokenCount": 4,
          "toolUsePromptTokenCount": 3}, Usage(13, 12, 4, 0, 7)),
        ({"promptTokenCount": 10, "cachedContentTokenCount": 11}, None),
        ({"promptTokenCount": -1}, None),
        ({"promptTokenCount": "9"}, None),
        (None, None),
    ],
)
def test_thoughts_and_tools_count_as_they_are_charged(said: Fields | None, usage: Usage | None) -> None:
    """Thoughts stand beside the answer here and inside it elsewhere."""
    body = {"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}], "usageMetadata": said}
    events = PROVIDERS["gemini"].events_of(orjson.dumps(body), ENCODING)

    assert [event.usage for event in events if isinstance(event, UsageReport)] == ([usage] if usage else [])


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("STOP", Reason.STOP), ("MAX_TOKENS", Reason.LENGTH), ("SAFETY", Reason.FILTERED),
        ("RECITATION", Reason.FILTERED), ("MALFORMED_FUNCTION_CALL", Reason.BROKEN), ("NEW", Reason.BROKEN),
    ],
)
def test_reasons_to_end_are_understood(word: str, reason: Reason) -> None:
    """An unknown one is not taken for success."""
    body = {"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": word}]}

    assert Finish(reason) in PROVIDERS["gemini"].events_of(orjson.dumps(body), ENCODING)


def test_a_blocked_prompt_is_a_refusal_and_no_empty_success() -> None:
    """There is no candidate then, only a reason."""
    events = PROVIDERS["gemini"].events_of(b'{"promptFeedback":{"blockReason":"SAFETY"}}', ENCODING)

    assert events[1:] == [Declined("The prompt was blocked: SAFETY."), Finish(Reason.FILTERED), End()]


def test_an_answer_without_candidates_is_no_answer() -> None:
    """It is told as a fault, whole or streamed."""
    events = PROVIDERS["gemini"].events_of(b"{}", ENCODING)

    assert isinstance(events[-1], Fault)


def test_calls_are_told_whole_to_geminis_callers() -> None:
    """The dialect has no pieces of them; each call comes when the next thing begins."""
    writer = PROVIDERS["gemini"].writer(translate(
        PROVIDERS["gemini"], PROVIDERS["openai"], {"contents": [{"parts": [{"text": "q"}]}]}, Form("m")
    )._asked)
    first = [writer.write(ToolDelta(0, "a", "f", '{"x"')), writer.write(ToolDelta(0, arguments=":1}"))]
    second = writer.write(ToolDelta(1, "b", "g", ""))
    last = writer.write(Finish(Reason.TOOLS))

    assert first == [b"", b""]
    assert b'"functionCall":{"id":"a","name":"f","args":{"x":1}}' in second
    assert b'"functionCall":{"id":"b","name":"g","args":{}}' in last


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (SCHEMA, True),
        ({"type": "object", "properties": {}, "additionalProperties": False}, True),
        ({"type": "object"}, False),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, False),
        ({**SCHEMA, "properties": {"a": {"type": "array", "items": {"type": "object"}}}}, False),
        ({**SCHEMA, "$defs": {"d": {"type": "object"}}}, False),
        ({"anyOf": [SCHEMA, {"type": "string"}]}, True),
        (True, True),
    ],
)
def test_a_schema_is_strict_if_every_object_is_closed_and_complete(schema: Any, strict: bool) -> None:
    """OpenAI refuses `strict` for any other."""
    assert is_strict(schema) is strict


def test_openapi_types_become_json_schema_at_every_depth() -> None:
    """Also where a property has the name of a keyword."""
    said = {"type": "OBJECT", "propertyOrdering": ["type"], "properties": {
        "type": {"type": "STRING", "enum": ["A"], "nullable": True},
        "items": {"type": "ARRAY", "items": {"type": "NUMBER"}},
    }}

    assert from_openapi(said) == {"type": "object", "properties": {
        "type": {"type": ["string", "null"], "enum": ["A"]},
        "items": {"type": "array", "items": {"type": "number"}},
    }}
