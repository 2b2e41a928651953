"""Streams whose callers did not ask for their token counts, and an operator who wants to know them."""

from __future__ import annotations

from tests.scenes.stage import Stage, as_bytes, chat, delta

COUNTS = {"id": "c", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}


def marked(text: str) -> dict[str, object]:
    return {**delta(text), "usage": None}


async def test_counts_are_on_the_books_and_not_in_the_answer() -> None:
    """Both callers read the stream of a plain request; the line has the upstream's numbers and no guess."""
    async with Stage(ask_usage=True) as stage:
        responses = await stage.ask_many(2, chat(stream=True))
        call = await stage.upstream.next_call()
        asked = call.json()
        await call.answer_sse([marked("a"), marked("b"), COUNTS, "[DONE]"])
        for response in responses:
            await response.read_end()
        lines = await stage.access_lines(2)

    plain = as_bytes([delta("a"), delta("b"), "[DONE]"])
    assert asked["stream_options"] == {"include_usage": True}
    assert {key: asked[key] for key in asked if key != "stream_options"} == chat(stream=True)
    assert [response.body for response in responses] == [plain] * 2
    assert {(line["tokens_in"], line["tokens_out"]) for line in lines} == {(5, 7)}


async def test_a_caller_that_asks_itself_does_not_meet_one_that_does_not() -> None:
    """Their answers differ, so their calls do."""
    async with Stage(ask_usage=True) as stage:
        one = await stage.ask(chat(stream=True))
        other = await stage.ask({**chat(stream=True), "stream_options": {"include_usage": True}})
        for _ in range(2):
            await (await stage.upstream.next_call()).answer_sse([marked("a"), COUNTS, "[DONE]"])
        for response in (one, other):
            await response.read_end()

    assert stage.upstream.calls == 2
    assert b"usage" not in one.body
    assert other.body.count(b'"usage"') == 2


async def test_without_the_operators_word_nothing_is_added(stage: Stage) -> None:
    """The request is the caller's, byte for byte."""
    response = await stage.ask(chat(stream=True))
    call = await stage.upstream.next_call()
    await call.answer_sse([delta("a"), "[DONE]"])
    await response.read_end()

    assert b"stream_options" not in call.body
