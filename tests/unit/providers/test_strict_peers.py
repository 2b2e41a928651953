"""What the strictest SDKs and servers refuse is not sent to them; each of these was met by one of them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.protocol.events import Cause, End, Event, Fault, Finish, Head, Reason, ToolDelta
from proxy.protocol.message import ResponseHead
from proxy.providers.base import Asked, Encoding, Form
from proxy.providers.kinds import make_providers
from proxy.providers.translation import translate

PROVIDERS = make_providers()
CALLS: list[Event] = [
    Head("1", "m"),
    ToolDelta(0, "call_a", "weather"),
    ToolDelta(1, "call_b", "clock"),
    ToolDelta(0, arguments='{"city":'),
    ToolDelta(0, arguments='"Köln"}'),
]


def chunks_of(caller: str, events: list[Event]) -> list[dict[str, Any]]:
    writer = PROVIDERS[caller].writer(Asked({}, True))
    data = b"".join([writer.write(event) for event in events])
    return [orjson.loads(event[6:]) for event in data.split(b"\n\n") if event.startswith(b"data: {")]


def calls_in(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        call
        for chunk in chunks
        for choice in chunk.get("choices", ())
        for call in choice["delta"].get("tool_calls", ())
    ]


def test_a_call_without_arguments_has_an_empty_object_at_its_end() -> None:
    """OpenAI's callers parse the arguments as JSON; Anthropic's models say nothing where there are none."""
    calls = calls_in(chunks_of("openai", [*CALLS, Finish(Reason.TOOLS), End()]))
    arguments = {slot: "".join([call["function"]["arguments"] for call in calls if call["index"] == slot])
                 for slot in (0, 1)}

    assert arguments == {0: '{"city":"Köln"}', 1: "{}"}


def test_a_call_that_was_cut_short_is_not_made_complete() -> None:
    """Nobody must carry out a call whose arguments were still to come."""
    calls = calls_in(chunks_of("openai", [*CALLS[:3], Finish(Reason.LENGTH), End()]))

    assert [call["function"]["arguments"] for call in calls] == ["", ""]


def test_a_caller_of_mistrals_gets_each_call_in_one_piece() -> None:
    """Its SDK refuses a piece without a name."""
    chunks = chunks_of("mistral", [*CALLS, Finish(Reason.TOOLS), End()])
    calls = calls_in(chunks)

    assert [call["function"] for call in calls] == [
        {"name": "weather", "arguments": '{"city":"Köln"}'},
        {"name": "clock", "arguments": "{}"},
    ]
    assert [call["id"] for call in calls] == ["call_a", "call_b"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_half_a_call_is_not_told_to_a_caller_of_mistrals() -> None:
    """The answer broke off: there is an error, and no call."""
    chunks = chunks_of("mistral", [*CALLS, Fault(Cause.CUT_OFF, "gone")])

    assert calls_in(chunks) == []
    assert chunks[-1]["error"]["message"] == "gone"


def messages_for(target: str, *messages: dict[str, Any]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    fields = {"model": "m", "messages": [{"role": "user", "content": "hi"}, *messages]}
    encoding = translate(PROVIDERS["mistral"], PROVIDERS[target], fields, Form("m")).encoding
    return orjson.loads(encoding.body)["messages"], encoding.reported


@pytest.mark.parametrize("target", ["openai", "compatible"])
def test_what_mistrals_sdk_says_of_every_turn_stays_behind(target: str) -> None:
    """``prefix: false`` asks for nothing, and the name of a result is that of its call: OpenAI refuses the one, Groq
    the other."""
    call = {"id": "call_a", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    sent, reported = messages_for(
        target,
        {"role": "assistant", "content": "", "tool_calls": [call], "prefix": False},
        {"role": "tool", "tool_call_id": "call_a", "name": "clock", "content": "noon"},
    )

    assert "prefix" not in sent[1]
    assert sent[2] == {"role": "tool", "tool_call_id": "call_a", "content": "noon"}
    assert reported == ()


def test_the_beginning_of_an_answer_is_reported_where_it_cannot_be_given() -> None:
    """``prefix: true`` does ask for something."""
    sent, reported = messages_for("openai", {"role": "assistant", "content": "Once", "prefix": True})

    assert sent[-1] == {"role": "assistant", "content": "Once"}
    assert reported == ("messages[].prefix",)


@pytest.mark.parametrize(
    ("status", "cause"), [(503, Cause.OVERLOADED), (504, Cause.TIMED_OUT), (500, Cause.FAILED), (502, Cause.FAILED)]
)
def test_a_status_is_heard_where_the_word_says_less(status: int, cause: Cause) -> None:
    """``server_error`` comes with every status from 500 on."""
    body = orjson.dumps({"error": {"message": "no", "type": "server_error", "code": None}})

    assert PROVIDERS["openai"].classify(ResponseHead(status, []), body).cause is cause


def test_a_server_in_geminis_place_may_say_that_it_calls() -> None:
    """Google itself says ``STOP``."""
    call = {"functionCall": {"name": "clock", "args": {}}}
    body = {"candidates": [{"content": {"parts": [call]}, "finishReason": "FUNCTION_CALL"}]}
    events = PROVIDERS["gemini"].events_of(orjson.dumps(body), Encoding("/", [], b""))

    assert Reason.TOOLS in [event.reason for event in events if isinstance(event, Finish)]
