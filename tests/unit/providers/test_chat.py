"""Servers that speak chat completions in their own ways: Mistral, Azure, and everything compatible."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest

from proxy.protocol.events import Delta, End, Fault, Finish, Head, Reason, Thought, ToolDelta, UsageReport
from proxy.protocol.usage import Usage
from proxy.providers.base import Asked, Encoding, Form, short_id
from proxy.providers.kinds import make_providers
from proxy.providers.translation import translate
from tests.unit.providers.samples import PDF, SCHEMA

Fields = dict[str, Any]
PROVIDERS = make_providers()
ENCODING = Encoding("/", [], b"")
ASK = [{"role": "user", "content": "q"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


def encode(target: str, fields: Fields, *, caller: str = "openai", streams: bool = False) -> Encoding:
    fields = {"messages": ASK, **fields}
    return translate(PROVIDERS[caller], PROVIDERS[target], fields, Form("m"), streams=streams).encoding


def body_of(target: str, fields: Fields, *, caller: str = "openai", streams: bool = False) -> Fields:
    said: Fields = orjson.loads(encode(target, fields, caller=caller, streams=streams).body)
    return said


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"seed": 3}, {"random_seed": 3}),
        ({"random_seed": 3}, {"random_seed": 3}),
        ({"max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"temperature": 1.9}, {"temperature": 1.5}),
        ({"temperature": 1.0}, {"temperature": 1.0}),
        ({"safe_prompt": True}, {"safe_prompt": True}),
        ({"tools": [TOOL], "tool_choice": "required"}, {"tools": [TOOL], "tool_choice": "any"}),
        ({"tools": [TOOL], "parallel_tool_calls": False}, {"tools": [TOOL], "parallel_tool_calls": False}),
        ({"n": 2, "presence_penalty": 0.5}, {"n": 2, "presence_penalty": 0.5}),
        ({"stop": "X"}, {"stop": ["X"]}),
        ({"prompt_mode": "reasoning"}, {"prompt_mode": "reasoning"}),
        ({"stream_options": {"include_usage": True}}, {}),
    ],
)
def test_mistral_is_asked_in_its_own_words(fields: Fields, expected: Fields) -> None:
    """Other names, other ranges, and no word for the options of a stream."""
    assert body_of("mistral", fields) == {"model": "m", "messages": ASK, **expected}


def test_mistral_streams_without_being_asked_for_usage() -> None:
    """It tells it anyway and refuses what it does not know."""
    assert body_of("mistral", {}, streams=True) == {"model": "m", "messages": ASK, "stream": True}
    assert body_of("compatible", {}, streams=True)["stream_options"] == {"include_usage": True}


def test_ids_of_tool_calls_become_nine_letters_for_mistral() -> None:
    """A call and its result keep each other, and Mistral's own ids stay."""
    calls = [
        {"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}}
        for name in ("call_abcdefghijkl", "D681PevKs")
    ]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "r"} for call in calls]
    body = body_of("mistral", {"messages": [*ASK, {"role": "assistant", "tool_calls": calls}, *results]})
    given = [call["id"] for call in body["messages"][1]["tool_calls"]]

    assert given == [short_id("call_abcdefghijkl"), "D681PevKs"]
    assert re.fullmatch("[A-Za-z0-9]{9}", given[0])
    assert [message["tool_call_id"] for message in body["messages"][2:]] == given


def test_short_ids_of_many_calls_differ() -> None:
    """53 bits and more; twenty thousand of them do not meet."""
    assert len({short_id(f"call_{number}") for number in range(20_000)}) == 20_000


def test_thoughts_and_documents_stand_in_the_content_for_mistral() -> None:
    """It has parts for both."""
    document = {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "q"}, document]},
        {"role": "assistant", "content": "a", "reasoning_content": "t"},
        {"role": "user", "content": "q"},
    ]
    said = body_of("mistral", {"messages": messages})["messages"]

    assert said[0]["content"][1] == {
        "type": "document_url",
        "document_url": f"data:application/pdf;base64,{PDF}",
        "document_name": "a.pdf",
    }
    assert said[1]["content"] == [
        {"type": "thinking", "thinking": [{"type": "text", "text": "t"}]},
        {"type": "text", "text": "a"},
    ]


def test_a_begun_answer_is_marked_for_mistral() -> None:
    """Anthropic's callers begin answers; this is how Mistral is told to go on."""
    begun = [*ASK, {"role": "assistant", "content": "a"}]
    said = body_of("mistral", {"messages": begun, "max_tokens": 9}, caller="anthropic")["messages"]

    assert said[-1] == {"role": "assistant", "content": "a", "prefix": True}
    assert encode("openai", {"messages": begun}, caller="anthropic").reported == ("messages[].prefill",)


def test_mistrals_callers_ask_openai_in_its_words() -> None:
    """The other way round."""
    body = body_of(
        "openai",
        {"random_seed": 3, "max_tokens": 5, "tool_choice": "any", "tools": [TOOL], "messages": ASK},
        caller="mistral",
    )

    assert body["seed"] == 3
    assert body["max_completion_tokens"] == 5
    assert body["tool_choice"] == "required"


def chunk(delta: Fields, reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: " + orjson.dumps({"id": "c", "model": "m", "created": 5, "choices": [choice], **more}) + b"\n\n"


def read(*chunks: bytes) -> list[Any]:
    reader = PROVIDERS["compatible"].reader(ENCODING)
    return [event for data in chunks for event in reader.feed(data)] + reader.close()


def call(**members: Any) -> Fields:
    return {"tool_calls": [members]}


DONE = b"data: [DONE]\n\n"


def test_a_server_that_numbers_every_call_zero_is_understood() -> None:
    """A new id is a new call."""
    function = {"name": "f", "arguments": "{}"}
    events = read(
        chunk(call(index=0, id="a", function=function)), chunk(call(index=0, id="b", function=function)), DONE
    )

    assert [event for event in events if isinstance(event, ToolDelta)] == [
        ToolDelta(0, "a", "f", "{}"),
        ToolDelta(1, "b", "f", "{}"),
    ]


def test_a_server_that_repeats_the_id_in_every_piece_is_understood() -> None:
    """The same id is the same call."""
    events = read(
        chunk(call(index=0, id="a", function={"name": "f", "arguments": '{"x"'})),
        chunk(call(index=0, id="a", function={"name": "f", "arguments": ":1}"})),
        DONE,
    )

    assert [event for event in events if isinstance(event, ToolDelta)] == [
        ToolDelta(0, "a", "f", '{"x"'),
        ToolDelta(0, "", "", ":1}"),
    ]


def test_a_call_without_id_or_with_arguments_as_an_object_gets_what_it_lacks() -> None:
    """Callers of every dialect need an id and a text."""
    events = read(chunk(call(function={"name": "f", "arguments": {"x": 1}})), DONE)

    assert [event for event in events if isinstance(event, ToolDelta)] == [ToolDelta(0, "call_c_0_0", "f", '{"x":1}')]


def test_a_server_that_stops_behind_a_call_meant_the_call() -> None:
    """Agents wait for `tool_calls`."""
    events = read(
        chunk(call(index=0, id="a", function={"name": "f", "arguments": "{}"})), chunk({}, "stop"), DONE
    )

    assert Finish(Reason.TOOLS) in events


def test_a_finished_answer_is_complete_without_the_last_line() -> None:
    """Some servers leave `[DONE]` out."""
    assert read(chunk({"content": "a"}), chunk({}, "stop"))[-1] == End()
    assert isinstance(read(chunk({"content": "a"}))[-1], Fault)


@pytest.mark.parametrize("bad", [b"data: {oops\n\n", b"data: 1\n\n", b'data: {"error":"out of memory"}\n\n'])
def test_what_is_no_answer_ends_in_a_fault(bad: bytes) -> None:
    """And nothing behind it is read."""
    events = read(chunk({"content": "a"}), bad, chunk({"content": "b"}), DONE)

    assert isinstance(events[-1], Fault)
    assert Delta("b") not in events


def test_impossible_counts_are_no_usage() -> None:
    """They are neither charged nor credited; the caller of the decoder estimates."""
    events = read(chunk({"content": "a"}, "stop", usage={"prompt_tokens": -1, "completion_tokens": 2}), DONE)

    assert not any(isinstance(event, UsageReport) for event in events)


def test_thoughts_by_any_name_are_thoughts() -> None:
    """Gateways and servers have two names for them."""
    for name in ("reasoning_content", "reasoning"):
        assert Thought("t") in read(chunk({name: "t"}), DONE)


def test_several_choices_keep_their_numbers_and_their_probabilities() -> None:
    """Mistral gives both, and the caller asked for both."""
    logprobs = {"content": [{"token": "a", "logprob": -0.1}]}
    whole = {
        "id": "c",
        "model": "m",
        "created": 5,
        "choices": [
            {"index": 0, "message": {"content": "a"}, "finish_reason": "stop", "logprobs": logprobs},
            {"index": 1, "message": {"content": "b"}, "finish_reason": "length"},
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    events = PROVIDERS["mistral"].events_of(orjson.dumps(whole), ENCODING)
    body = orjson.loads(PROVIDERS["openai"].body_of(events, Asked({}, False)))

    assert [choice["message"]["content"] for choice in body["choices"]] == ["a", "b"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "length"]
    assert body["choices"][0]["logprobs"] == logprobs
    assert body["choices"][1]["logprobs"] is None


def test_a_caller_who_did_not_ask_for_usage_is_not_sent_any() -> None:
    """Its chunks look as if there were no such option; the last chunk and the end come in one piece if it did."""
    usage = UsageReport(Usage(1, 2))
    for wants in (True, False):
        writer = PROVIDERS["openai"].writer(Asked({}, True, wants, 9))
        head = writer.write(Head("c", "m"))
        finish, nothing, end = (writer.write(event) for event in (Finish(Reason.STOP), usage, End()))

        assert (b'"usage"' in head + finish) == wants
        assert nothing == b""
        assert (b'"prompt_tokens":1' in end) == wants
        assert end.endswith(DONE)
        assert b'"created":9' in head


def test_a_limit_beyond_the_model_is_lowered_and_told() -> None:
    """Agents ask for what their own vendor's models give."""
    form = Form("m", most_tokens=100)
    for name in ("anthropic", "mistral", "gemini", "responses"):
        fields = {"messages": ASK, "max_tokens": 32_000}
        encoding = translate(PROVIDERS["openai"], PROVIDERS[name], fields, form).encoding
        assert b":100" in encoding.body
        assert b"32000" not in encoding.body
        assert encoding.reported == ("max_tokens",)


def test_the_name_of_a_speaker_is_not_sent_to_mistral() -> None:
    """It refuses messages that have one."""
    encoding = encode("mistral", {"messages": [{"role": "user", "content": "q", "name": "n", "x": 1}]})

    assert orjson.loads(encoding.body)["messages"] == [{"role": "user", "content": "q", "x": 1}]
    assert encoding.reported == ("messages[].name",)


@pytest.mark.parametrize("target", ["openai", "anthropic", "responses"])
def test_an_end_without_a_beginning_is_a_fault(target: str) -> None:
    """An empty success would be booked, cached and believed."""
    ends = {
        "openai": DONE,
        "anthropic": b'data: {"type":"message_stop"}\n\n',
        "responses": b'data: {"type":"response.completed"}\n\n',
    }
    events = PROVIDERS[target].reader(ENCODING).feed(ends[target])

    assert [type(event) for event in events] == [Fault]


def test_an_end_without_a_reason_is_a_plain_stop() -> None:
    """Some servers say `[DONE]` and nothing else; what they said before it was said."""
    assert read(chunk({"content": "a"}), DONE)[-2:] == [Finish(Reason.STOP), End()]


def test_a_refusal_that_ends_like_an_answer_is_a_refusal_to_anthropics_callers() -> None:
    """OpenAI says `stop` behind one; their SDKs look at the reason alone."""
    asked = Asked({}, True)
    events = read(chunk({"refusal": "no"}), chunk({}, "stop"), DONE)
    writer = PROVIDERS["anthropic"].writer(asked)
    stream = b"".join([writer.write(event) for event in events])

    assert b'"stop_reason":"refusal"' in stream
    assert orjson.loads(PROVIDERS["anthropic"].body_of(events, asked))["stop_reason"] == "refusal"


def test_arguments_of_any_depth_bring_nobody_down() -> None:
    """JSON that is too deep to be written again is text; an event that is, is no event."""
    deep = '{"a":' * 300 + "1" + "}" * 300
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": deep}}]
    result = {"role": "tool", "tool_call_id": "c", "content": "r"}
    messages = [*ASK, {"role": "assistant", "tool_calls": calls}, result]
    for name in ("anthropic", "gemini", "responses", "mistral"):
        assert encode(name, {"messages": messages}).body
    events = read(chunk(call(index=0, id="a", function={"name": "f", "arguments": deep})), chunk({}, "stop"), DONE)
    for name in ("anthropic", "gemini", "responses", "openai"):
        assert deep[:50] in PROVIDERS[name].body_of(events, Asked({}, False)).decode().replace("\\", "")

    assert isinstance(read(b"data: " + deep.encode() + b"\n\n")[-1], Fault)
