"""What survives a journey from one dialect into another and back, for requests and answers of any shape."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import Kind, ProxyError
from proxy.protocol.conversation import Conversation, Media, Text, Thinking, ToolResult, ToolUse
from proxy.protocol.events import (
    Delta,
    End,
    Event,
    Fault,
    Finish,
    Head,
    Reason,
    Thought,
    ToolDelta,
    UsageReport,
)
from proxy.protocol.usage import Usage
from proxy.providers.base import Asked, Encoding, Form
from proxy.providers.folding import fold
from proxy.providers.kinds import make_providers
from proxy.providers.translation import translate
from tests.unit.providers.samples import BASE, SAMPLES
from tests.wire.transcripts import all_cases

Fields = dict[str, Any]
PROVIDERS = make_providers()
ENCODING = Encoding("/", [], b"")
MODELS = {"anthropic": "claude-opus-4-6", "mistral": "m", "gemini": "gemini-2.5-pro", "responses": "gpt-6"}

words = st.text(min_size=1, max_size=20)
names = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,10}", fullmatch=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
arguments = st.dictionaries(names, json_values, max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> list[Fields]:
    """Messages as an OpenAI SDK sends them: instructions, then turns, each call with its result."""
    messages: list[Fields] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(words)})
    for number in range(draw(st.integers(1, 3))):
        content: Any = draw(words)
        if draw(st.booleans()):
            content = [
                {"type": "text", "text": content},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ]
        messages.append({"role": "user", "content": content})
        inputs = draw(st.lists(arguments, max_size=3))
        calls = [
            {
                "id": f"call_{number}_{index}",
                "type": "function",
                "function": {"name": draw(names), "arguments": orjson.dumps(said).decode()},
            }
            for index, said in enumerate(inputs)
        ]
        if calls:
            text = draw(st.none() | words)
            messages.append({"role": "assistant", "content": text, "tool_calls": calls})
            messages += [{"role": "tool", "tool_call_id": call["id"], "content": draw(words)} for call in calls]
        else:
            messages.append({"role": "assistant", "content": draw(words)})
    messages.append({"role": "user", "content": draw(words)})
    return messages


def meaning(conversation: Conversation) -> list[Any]:
    """What is said, by whom, to whom: without ids' spelling and without how texts are grouped."""
    ids: dict[str, int] = {}
    said: list[Any] = []
    for turn in conversation.turns:
        for block in turn.blocks:
            match block:
                case Text(text):
                    said.append((turn.role, "text", text))
                case Media():
                    said.append((turn.role, block.kind, block.media_type, block.data))
                case ToolUse():
                    ids[block.id] = len(ids)
                    said.append(("call", ids[block.id], block.name, orjson.loads(block.arguments or "{}")))
                case ToolResult():
                    texts = [inner.text for inner in block.blocks if isinstance(inner, Text)]
                    said.append(("result", ids[block.id], "".join(texts)))
                case Thinking():
                    said.append(("thought", block.text))
                case _:
                    raise AssertionError(block)
    return said


@given(messages=conversations(), streams=st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_conversation_means_the_same_in_every_dialect_and_back(messages: list[Fields], streams: bool) -> None:
    """Words, pictures, calls, their arguments and results, in order: nothing lost, nothing made up."""
    chat = PROVIDERS["openai"]
    meant = meaning(chat.read_request({"messages": messages}, "m", streams))
    for name, model in MODELS.items():
        target = PROVIDERS[name]
        there = translate(chat, target, {"messages": messages}, Form(model), streams=streams).encoding
        arrived = target.read_request(orjson.loads(there.body), model, streams)
        back = translate(target, chat, orjson.loads(there.body), Form("gpt-6"), streams=streams).encoding

        assert meaning(arrived) == meant, name
        assert meaning(chat.read_request(orjson.loads(back.body), "m", streams)) == meant, name
        assert (there.reported, back.reported) == ((), ()), name


tools = st.lists(
    st.fixed_dictionaries(
        {"name": names},
        optional={"description": words, "parameters": st.just({"type": "object", "properties": {"a": {}}})},
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda tool: tool["name"],
)


@given(
    functions=tools,
    choice=st.sampled_from(["auto", "none", "required", "first"]),
    parallel=st.booleans(),
    stop=st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), min_size=1, max_size=4),
    limit=st.integers(16, 4000),
    temperature=st.sampled_from([0, 0.25, 0.5, 0.75]),
)
@settings(max_examples=25, deadline=None)
def test_settings_come_back_from_anthropic_as_they_went(
    functions: list[Fields], choice: str, parallel: bool, stop: list[str], limit: int, temperature: float
) -> None:
    """Tools, their choice, limits and sampling survive the way there and back."""
    said: Any = {"type": "function", "function": {"name": functions[0]["name"]}} if choice == "first" else choice
    fields = {
        "messages": [{"role": "user", "content": "q"}],
        "tools": [{"type": "function", "function": function} for function in functions],
        "tool_choice": said,
        "parallel_tool_calls": parallel,
        "stop": stop,
        "max_tokens": limit,
        "temperature": temperature,
        "user": "u",
    }
    chat, messages = PROVIDERS["openai"], PROVIDERS["anthropic"]
    there = orjson.loads(translate(chat, messages, fields, Form("claude-opus-4-6")).encoding.body)
    back = orjson.loads(translate(messages, chat, there, Form("gpt-6")).encoding.body)

    assert [tool["function"]["name"] for tool in back["tools"]] == [function["name"] for function in functions]
    for tool, function in zip(back["tools"], functions, strict=True):
        assert tool["function"].get("description") == function.get("description")
        assert tool["function"]["parameters"]["type"] == "object"
    assert back["tool_choice"] == said
    assert back.get("parallel_tool_calls", True) == (parallel or choice == "none")
    assert (back["stop"], back["max_completion_tokens"], back["user"]) == (stop, limit, "u")
    assert back["temperature"] == temperature


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    """The events of one answer, its pieces cut in any way: a thought, text, then calls."""
    events: list[Event] = [Head("x1", "m", 5)]
    events += [Thought(text) for text in draw(st.lists(words, max_size=2))]
    events += [Delta(text) for text in draw(st.lists(words, max_size=4))]
    calls = draw(st.lists(arguments, max_size=3))
    for slot, said in enumerate(calls):
        text = orjson.dumps(said).decode()
        cut = draw(st.integers(0, len(text)))
        events += [ToolDelta(slot, f"call_{slot}", draw(names), text[:cut]), ToolDelta(slot, arguments=text[cut:])]
    reason = Reason.TOOLS if calls else draw(st.sampled_from([Reason.STOP, Reason.LENGTH]))
    given = draw(st.integers(0, 1000))
    cached = draw(st.integers(0, given))
    produced = draw(st.integers(0, 1000))
    usage = Usage(given, produced, cached, 0, draw(st.integers(0, produced)))
    return [*events, Finish(reason), UsageReport(usage), End()]


def content(events: list[Event]) -> Any:
    answer = fold(events)
    choice = answer.choices[0]
    calls = [(piece.id, piece.name, orjson.loads(piece.text or "{}")) for piece in choice.of("tool")]
    return choice.text_of("thought"), choice.text_of("text"), calls, choice.finish.reason, answer.usage


@given(events=answers(), cuts=st.lists(st.integers(1, 400), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_an_answer_written_and_read_in_any_portions_is_the_same_answer(events: list[Event], cuts: list[int]) -> None:
    """Every writer's stream is understood by the reader of its dialect, and so is its whole body."""
    meant = content(events)
    asked = Asked({}, True, True, 5)
    for name in ("openai", "anthropic", "responses", "gemini", "mistral"):
        provider = PROVIDERS[name]
        writer, reader = provider.writer(asked), provider.reader(ENCODING)
        stream = b"".join([writer.write(event) for event in events])
        read: list[Event] = []
        at = 0
        while at < len(stream):
            size = cuts[at % len(cuts)]
            read += reader.feed(stream[at : at + size])
            at += size
        read += reader.close()

        assert content(read) == meant, name
        assert content(provider.events_of(provider.body_of(events, asked), ENCODING)) == meant, name
        assert isinstance(read[-1], End)


@given(data=st.binary(max_size=300), cut=st.integers(0, 300), name=st.sampled_from(sorted(PROVIDERS)))
@settings(max_examples=100, deadline=None)
def test_no_bytes_of_an_upstream_bring_a_reader_down(data: bytes, cut: int, name: str) -> None:
    """Garbage ends in a fault, never in an exception or in an end."""
    reader = PROVIDERS[name].reader(ENCODING)
    events = reader.feed(data[:cut]) + reader.feed(data[cut:]) + reader.close()

    assert not any(isinstance(event, End) for event in events)
    assert len(events) == 1


odd = st.sampled_from(
    [None, True, False, 0, -1, 1.5, "", "x", "text", [], [1], [None], ["x"], {}, {"type": "x"}, {"text": 1}, [[{}]],
     [{}]]
)


@st.composite
def spoilt(draw: st.DrawFn, document: Any) -> Any:
    """The document with one value, however deep, replaced by another of any type, or one member gone."""
    if not isinstance(document, (dict, list)) or not document or draw(st.integers(0, 5)) == 0:
        return draw(odd)
    keys: list[Any] = list(document) if isinstance(document, dict) else list(range(len(document)))
    key = draw(st.sampled_from(keys))
    copy: Any = dict(document) if isinstance(document, dict) else list(document)
    if isinstance(copy, dict) and draw(st.integers(0, 7)) == 0:
        del copy[key]
    else:
        copy[key] = draw(spoilt(document[key]))
    return copy


CASES = all_cases()


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_no_spoilt_answer_brings_a_reader_down(data: st.DataObject) -> None:
    """An upstream's mistake, anywhere in its answer, is never an exception of ours, for no caller."""
    case = data.draw(st.sampled_from(CASES))
    lines = [line for line in case.stream.splitlines() if line.startswith(b"data: {")]
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = b"data: " + orjson.dumps(data.draw(spoilt(orjson.loads(lines[at][6:]))))
    provider = PROVIDERS[case.target]
    reader = provider.reader(ENCODING)
    events = reader.feed(b"\n\n".join(lines) + b"\n\n") + reader.close()
    whole = provider.events_of(orjson.dumps(data.draw(spoilt(orjson.loads(case.whole)))), ENCODING)

    assert isinstance(events[-1], (End, Fault))
    assert isinstance(whole[-1], (End, Fault))
    for name in ("openai", "anthropic", "responses", "gemini"):
        caller = PROVIDERS[name]
        writer = caller.writer(Asked({}, True))
        assert all(isinstance(writer.write(event), bytes) for event in events)
        assert caller.body_of(whole, Asked({}, False))


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_no_spoilt_request_is_more_than_refused(data: st.DataObject) -> None:
    """A caller's mistake, anywhere in its request, is a 400 that names a field, never a bug."""
    caller, field = data.draw(st.sampled_from(sorted(SAMPLES)))
    fields = data.draw(spoilt({**BASE[caller], **SAMPLES[caller, field]}))
    if not isinstance(fields, dict):
        return
    for target in ("openai", "anthropic", "mistral", "gemini", "responses"):
        try:
            encoding = translate(PROVIDERS[caller], PROVIDERS[target], fields, Form("m")).encoding
        except ProxyError as error:
            refused = error
        else:
            assert type(orjson.loads(encoding.body)) is dict
            continue
        assert refused.kind is Kind.BAD_REQUEST
        assert refused.public.startswith("'")
