"""Chat completions for Anthropic's models and messages for everybody else's."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.errors import ProxyError
from proxy.protocol.events import Delta, Finish, Reason, ToolDelta
from proxy.providers.base import Encoding, Form
from proxy.providers.kinds import make_providers
from proxy.providers.translation import translate
from tests.unit.providers.samples import PDF, PNG, SCHEMA

Fields = dict[str, Any]
PROVIDERS = make_providers()
CHAT, MESSAGES = PROVIDERS["openai"], PROVIDERS["anthropic"]
NEW, BUDGET, OLD = "claude-opus-4-6", "claude-sonnet-4-5", "claude-3-5-haiku"
PDF_URL = f"data:application/pdf;base64,{PDF}"
ASK = [{"role": "user", "content": "q"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


def encode(fields: Fields, form: Form | None = None, *, streams: bool = False) -> Encoding:
    return translate(CHAT, MESSAGES, {"messages": ASK, **fields}, form or Form(NEW), streams=streams).encoding


def body_of(fields: Fields, form: Form | None = None) -> Fields:
    said: Fields = orjson.loads(encode(fields, form).body)
    return said


def chat_of(fields: Fields, form: Form | None = None) -> tuple[Fields, tuple[str, ...]]:
    """The request for chat completions that a request for messages becomes."""
    fields = {"max_tokens": 100, "messages": ASK, **fields}
    encoding = translate(MESSAGES, CHAT, fields, form or Form("gpt-6")).encoding
    return orjson.loads(encoding.body), encoding.reported


def test_a_plain_question_becomes_a_plain_question() -> None:
    """Nothing is added that was not asked for, but for the limit that the API demands."""
    encoding = encode({})

    assert encoding.path == "/v1/messages"
    assert dict(encoding.headers) == {b"content-type": b"application/json", b"anthropic-version": b"2023-06-01"}
    assert orjson.loads(encoding.body) == {"model": NEW, "max_tokens": 32_000, "messages": ASK}
    assert encoding.reported == ()


def test_a_whole_conversation_with_tools_keeps_its_order_and_its_pairs() -> None:
    """Instructions, pictures, two calls at once, their results and what the user adds to them."""
    body = body_of(
        {
            "messages": [
                {"role": "system", "content": "s1"},
                {"role": "developer", "content": [{"type": "text", "text": "s2", "cache_control": {
                    "type": "ephemeral", "ttl": "1h"}}]},
                {"role": "user", "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                    {"type": "file", "file": {"filename": "a.pdf", "file_data": PDF_URL}},
                ]},
                {"role": "assistant", "content": "ok", "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
                    {"id": "call.2", "type": "function", "function": {"name": "f", "arguments": ""}},
                ]},
                {"role": "tool", "tool_call_id": "call_1", "content": "one"},
                {"role": "tool", "tool_call_id": "call.2", "content": [{"type": "text", "text": "two"}]},
                {"role": "user", "content": "and?"},
            ],
            "tools": [TOOL],
        }
    )

    assert body["system"] == [
        {"type": "text", "text": "s1"},
        {"type": "text", "text": "s2", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ]
    second = body["messages"][1]["content"][2]["id"]
    assert second.startswith("toolu_")
    assert second.isascii()
    assert body["messages"] == [
        {"role": "user", "content": [
            {"type": "text", "text": "look"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            {"type": "document", "title": "a.pdf",
             "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}},
        ]},
        {"role": "assistant", "content": [
            {"type": "text", "text": "ok"},
            {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": second, "name": "f", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": "one"},
            {"type": "tool_result", "tool_use_id": second, "content": "two"},
            {"type": "text", "text": "and?"},
        ]},
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 7}, {"max_tokens": 5}),
        ({"stop": "X"}, {"stop_sequences": ["X"]}),
        ({"stop": ["X", "Y"]}, {"stop_sequences": ["X", "Y"]}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1}, {}),
        ({"temperature": 2}, {"temperature": 1.0}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"top_p": 1}, {}),
        ({"user": "u"}, {"metadata": {"user_id": "u"}}),
        ({"safety_identifier": "u"}, {"metadata": {"user_id": "u"}}),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"stream_options": {"include_usage": True}}, {}),
        ({"n": 1, "logprobs": False, "store": False, "presence_penalty": 0, "logit_bias": {}, "seed": None}, {}),
        ({"tools": []}, {}),
        ({"tool_choice": "none"}, {}),
    ],
)
def test_settings_take_the_words_of_the_messages_api(fields: Fields, expected: Fields) -> None:
    """Values that ask for what happens anyway say nothing, and are not reported either."""
    encoding = encode(fields)
    body = orjson.loads(encoding.body)

    assert {"max_tokens": 32_000, **expected} == {
        name: value for name, value in body.items() if name not in ("model", "messages")
    }
    assert encoding.reported == (("temperature",) if fields.get("temperature") == 2 else ())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"type": "tool", "name": "f"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": False, "tool_choice": "required"},
         {"type": "any", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": False, "tool_choice": "none"}, {"type": "none"}),
        ({"parallel_tool_calls": True}, None),
    ],
)
def test_the_choice_of_tools_is_said_in_one_object(fields: Fields, expected: Fields | None) -> None:
    """Choice and parallelism are two fields there and one here."""
    body = body_of({"tools": [TOOL], **fields})

    assert body.get("tool_choice") == expected
    assert body["tools"] == [{"name": "f", "input_schema": SCHEMA}]


def test_a_narrowed_list_of_tools_is_a_shorter_list() -> None:
    """There is no word for it here."""
    other = {"type": "function", "function": {"name": "g"}}
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}
    body = body_of({"tools": [TOOL, other], "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}})

    assert body["tools"] == [{"name": "g", "input_schema": {"type": "object", "properties": {}}}]
    assert body["tool_choice"] == {"type": "any"}


@pytest.mark.parametrize(
    ("model", "fields", "expected", "reported"),
    [
        (NEW, {"reasoning_effort": "low"},
         {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, ()),
        (NEW, {"reasoning_effort": "minimal", "temperature": 0.3},
         {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, ("temperature",)),
        (NEW, {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}, ()),
        (NEW, {"reasoning_effort": "high", "tools": [TOOL], "tool_choice": "required"},
         {"output_config": {"effort": "high"}}, ()),
        (BUDGET, {"reasoning_effort": "medium"}, {"thinking": {"type": "enabled", "budget_tokens": 8192}}, ()),
        (BUDGET, {"reasoning_effort": "high", "max_tokens": 2000},
         {"thinking": {"type": "enabled", "budget_tokens": 1999}}, ()),
        (BUDGET, {"reasoning_effort": "high", "max_tokens": 500}, {}, ("reasoning_effort",)),
        (BUDGET, {"reasoning_effort": "high", "tools": [TOOL], "tool_choice": "required"}, {},
         ("reasoning_effort",)),
        (OLD, {"reasoning_effort": "high"}, {}, ("reasoning_effort",)),
        (OLD, {"reasoning_effort": "none"}, {}, ()),
        (OLD, {"thinking": {"type": "enabled", "budget_tokens": 1024}},
         {"thinking": {"type": "enabled", "budget_tokens": 1024}}, ()),
    ],
)
def test_an_effort_becomes_what_the_model_understands(
    model: str, fields: Fields, expected: Fields, reported: tuple[str, ...]
) -> None:
    """Models differ in how they are made to think, and none thinks against its own rules."""
    encoding = encode(fields, Form(model))
    body = orjson.loads(encoding.body)

    assert {name: body[name] for name in ("thinking", "output_config") if name in body} == expected
    assert encoding.reported == reported


def test_a_model_that_thinks_by_budget_goes_on_behind_a_call_only_with_its_thought() -> None:
    """The API refuses a conversation whose last call lost the thought that led to it."""
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    result = {"role": "tool", "tool_call_id": "c", "content": "r"}
    signed = [{"type": "thinking", "thinking": "t", "signature": "s"}]
    without = encode(
        {"messages": [*ASK, {"role": "assistant", "tool_calls": calls}, result], "reasoning_effort": "low"},
        Form(BUDGET),
    )
    told = {"role": "assistant", "tool_calls": calls, "thinking_blocks": signed}
    with_it = orjson.loads(encode({"messages": [*ASK, told, result], "reasoning_effort": "low"}, Form(BUDGET)).body)

    assert without.reported == ("reasoning_effort",)
    assert "thinking" not in orjson.loads(without.body)
    assert with_it["thinking"]["type"] == "enabled"
    assert with_it["messages"][1]["content"][0] == signed[0]


@pytest.mark.parametrize(
    ("model", "limit"),
    [(NEW, 32_000), ("claude-opus-4-1", 32_000), ("claude-3-5-sonnet", 8192), ("claude-3-haiku", 4096)],
)
def test_the_limit_that_the_api_demands_fits_the_model(model: str, limit: int) -> None:
    """The operator's limit wins over the model's, and the caller's over both."""
    assert body_of({}, Form(model))["max_tokens"] == limit
    assert body_of({}, Form(model, max_tokens=77))["max_tokens"] == 77
    assert body_of({"max_tokens": 5}, Form(model, max_tokens=77))["max_tokens"] == 5


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "s"}]}, "messages"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
        ({"messages": "q"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "new"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]}]},
         "messages[0].content[0].image_url.url"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {
            "url": "data:image/bmp;base64,AA=="}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages[0].function_call"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": {"type": "new"}}, "tool_choice"),
        ({"response_format": {"type": "new"}}, "response_format"),
        ({"stop": "\n"}, "stop"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_what_has_no_translation_is_refused_by_its_name(fields: Fields, field: str) -> None:
    """The caller learns which field it was, in its own words."""
    with pytest.raises(ProxyError) as refusal:
        encode(fields)

    assert refusal.value.kind.status == 400
    assert refusal.value.public.startswith(f"'{field}'")


def test_names_of_left_out_fields_are_told_once_and_without_indexes() -> None:
    """A thousand messages do not make a thousand names."""
    messages = [{"role": "user", "name": f"n{index}", "content": "q"} for index in range(1000)]
    unknown = {f"x{index}": 1 for index in range(1000)}
    encoding = encode({"messages": messages, "seed": 1, **unknown})

    assert encoding.reported[:3] == ("messages[].name", "seed", "x0")
    assert len(encoding.reported) == 64


# -- JSON output -------------------------------------------------------------------------------------------------

FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}
ANY = {"response_format": {"type": "json_object"}}


def test_a_schema_becomes_the_output_format_of_models_that_have_one() -> None:
    """The schema goes as it is."""
    assert body_of(FORMAT)["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("fields", "form", "choice", "names"),
    [
        (ANY, Form(NEW), {"type": "tool", "name": "json_output", "disable_parallel_tool_use": True},
         ["json_output"]),
        (FORMAT, Form(OLD, json_output="tool"),
         {"type": "tool", "name": "json_output", "disable_parallel_tool_use": True}, ["json_output"]),
        ({**ANY, "tools": [TOOL]}, Form(NEW), {"type": "any"}, ["f", "json_output"]),
        ({**ANY, "tools": [TOOL], "tool_choice": "none"}, Form(NEW),
         {"type": "tool", "name": "json_output", "disable_parallel_tool_use": True}, ["json_output"]),
        ({**ANY, "tools": [{"type": "function", "function": {"name": "json_output"}}]}, Form(NEW),
         {"type": "any"}, ["json_output", "json_output_"]),
    ],
)
def test_json_without_an_output_format_is_the_input_of_a_tool(
    fields: Fields, form: Form, choice: Fields, names: list[str]
) -> None:
    """The model must call some tool; beside the caller's own there is one that means the answer."""
    encoding = encode(fields, form)
    body = orjson.loads(encoding.body)

    assert body["tool_choice"] == choice
    assert [tool["name"] for tool in body["tools"]] == names
    assert encoding.json_tool == names[-1]


def test_the_call_of_that_tool_is_read_as_the_text_of_the_answer() -> None:
    """Streamed and whole, and the answer ends as any other."""
    encoding = encode(ANY)
    block = {"type": "tool_use", "id": "toolu_1", "name": "json_output", "input": {"a": 1}}
    whole = {"id": "msg", "model": "m", "content": [block], "stop_reason": "tool_use", "usage": {}}
    start = {"type": "content_block_start", "index": 0, "content_block": {**block, "input": {}}}
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": part}}
        for part in ('{"a"', ":1}")
    ]
    end = [{"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {}}, {"type": "message_stop"}]
    stream = b"".join([b"data: %b\n\n" % orjson.dumps(event) for event in (start, *deltas, *end)])
    events = MESSAGES.events_of(orjson.dumps(whole), encoding)
    streamed = MESSAGES.reader(encoding).feed(stream)

    assert [event.text for event in events if isinstance(event, Delta)] == ['{"a":1}']
    assert [event.text for event in streamed if isinstance(event, Delta)] == ['{"a"', ":1}"]
    for told in (events, streamed):
        assert not any(isinstance(event, ToolDelta) for event in told)
        assert [event.reason for event in told if isinstance(event, Finish)] == [Reason.STOP]


# -- messages for other models -----------------------------------------------------------------------------------


def test_messages_become_chat_completions_with_their_tools_and_results() -> None:
    """Blocks of one turn part into the messages that the other API has for them."""
    body, reported = chat_of(
        {
            "system": [{"type": "text", "text": "s1"}, {"type": "text", "text": "s2"}],
            "messages": [
                {"role": "user", "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}},
                ]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "t", "signature": "s"},
                    {"type": "text", "text": "ok"},
                    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
                    {"type": "tool_use", "id": "toolu_2", "name": "f", "input": {"INVALID_JSON": "{a"}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "one"},
                    {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True, "content": [
                        {"type": "text", "text": "two"},
                        {"type": "image", "source": {"type": "url", "url": "https://e.example/x"}},
                    ]},
                    {"type": "text", "text": "and?"},
                ]},
            ],
            "tools": [{"name": "f", "input_schema": SCHEMA, "description": "d"}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "stop_sequences": ["X"],
            "metadata": {"user_id": "u"},
            "top_k": 5,
        }
    )

    assert body == {
        "model": "gpt-6",
        "max_completion_tokens": 100,
        "messages": [
            {"role": "system", "content": "s1\n\ns2"},
            {"role": "user", "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "text", "text": "d"},
            ]},
            {"role": "assistant", "content": "ok", "tool_calls": [
                {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                {"id": "toolu_2", "type": "function", "function": {"name": "f", "arguments": "{a"}},
            ]},
            {"role": "tool", "tool_call_id": "toolu_1", "content": "one"},
            {"role": "tool", "tool_call_id": "toolu_2", "content": "two"},
            {"role": "user", "content": [
                {"type": "text", "text": "Attached to the result of the tool call toolu_2:"},
                {"type": "image_url", "image_url": {"url": "https://e.example/x"}},
                {"type": "text", "text": "and?"},
            ]},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "stop": ["X"],
        "user": "u",
    }
    assert reported == ("messages[].content[]", "messages[].content[].is_error", "top_k")


@pytest.mark.parametrize(
    ("fields", "form", "name", "value"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, Form("gpt-6"), "reasoning_effort", "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9000}}, Form("gpt-6"), "reasoning_effort", "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 30_000}}, Form("gpt-6"), "reasoning_effort", "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, Form("gpt-6"),
         "reasoning_effort", "high"),
        ({"thinking": {"type": "adaptive"}}, Form("gpt-6"), "reasoning_effort", None),
        ({"thinking": {"type": "disabled"}}, Form("gpt-6"), "reasoning_effort", None),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, Form("gpt-4o"), "reasoning_effort", None),
        ({"temperature": 1}, Form("gpt-6"), "temperature", None),
        ({"temperature": 0.7}, Form("gpt-6"), "temperature", 0.7),
        ({"service_tier": "standard_only"}, Form("gpt-6"), "service_tier", "default"),
        ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, Form("gpt-6"),
         "response_format", {"type": "json_schema", "json_schema": {
             "name": "answer", "schema": SCHEMA, "strict": True}}),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}, Form("gpt-6"),
         "response_format", {"type": "json_schema", "json_schema": {
             "name": "answer", "schema": {"type": "object"}, "strict": False}}),
    ],
)
def test_settings_of_messages_take_the_words_of_chat_completions(
    fields: Fields, form: Form, name: str, value: Any
) -> None:
    """A budget is an effort, a default is silence, a schema is strict where it can be."""
    body, _ = chat_of(fields, form)

    assert body.get(name) == value


def test_cache_marks_go_where_a_target_has_a_word_for_them() -> None:
    """OpenAI's newer models and gateways have; a server that would stumble is told nothing, and the caller is."""
    marked = {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}
    plain, reported = chat_of(marked)
    breakpoints, none = chat_of(marked, Form("gpt-6", cache_markers="breakpoint"))
    gateway, _ = chat_of(marked, Form("x", cache_markers="cache_control"))

    assert plain["messages"][0]["content"] == "s"
    assert reported == ("system[].cache_control",)
    assert none == ()
    assert breakpoints["messages"][0]["content"][0]["prompt_cache_breakpoint"] == {"mode": "explicit", "ttl": "12h"}
    assert gateway["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}


def test_more_stop_sequences_than_the_target_takes_are_refused() -> None:
    """To leave one out would let the answer run on."""
    with pytest.raises(ProxyError, match="'stop_sequences' has more than 4"):
        chat_of({"stop_sequences": list("abcde")})


def test_a_stream_asks_for_its_usage() -> None:
    """The caller's dialect always tells it, so the target must."""
    fields = {"max_tokens": 9, "messages": ASK, "stream": True}
    body = orjson.loads(translate(MESSAGES, CHAT, fields, Form("gpt-6"), streams=True).encoding.body)

    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


def test_names_that_a_caller_invents_are_fit_for_a_header() -> None:
    """They are told in one; neither a line end nor a megabyte gets into it."""
    encoding = encode({"a\r\nset-cookie: x": 1, "é,": 1, "z" * 1000: 1})

    assert encoding.reported == ("a??set-cookie??x", "??", "z" * 100)


def test_a_refusal_does_not_repeat_a_callers_megabyte() -> None:
    """The word that was not understood is told as far as it helps."""
    with pytest.raises(ProxyError) as refusal:
        encode({"messages": [{"role": "user", "content": [{"type": "x" * 100_000}]}]})

    assert len(refusal.value.public) < 300
