"""Every vendor's answers in every caller's dialect."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import orjson
import pytest

from proxy.protocol.events import Cause, End, Event, Fault, Finish, Reason, UsageReport
from proxy.protocol.routes import Dialect, grammar_of
from proxy.protocol.sse import SseScanner
from proxy.protocol.usage import UsageReader, usage_from_body
from proxy.providers.base import Asked, Encoding, Form
from proxy.providers.folding import Answer, Piece, fold
from proxy.providers.kinds import make_providers
from proxy.providers.translation import Decoder, Translation
from tests.wire.transcripts import HERE, Case, all_cases, usage_of

PROVIDERS = make_providers()
ENCODING = Encoding("/", [], b"")
CALLERS = ("openai", "anthropic", "responses", "gemini", "mistral")
CASES = all_cases()
GREETING = 'Grüße, "Welt" \n🌍.'


def translation(caller: str, target: str) -> Translation:
    asked = Asked({"model": "m"}, True, True)
    return Translation(PROVIDERS[caller], PROVIDERS[target], ENCODING, asked)


def decode(decoder: Decoder, stream: bytes, size: int) -> bytes:
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    return b"".join([decoder.feed(piece) for piece in pieces]) + decoder.close()


def events_of_stream(target: str, pieces: list[bytes]) -> list[Event]:
    reader = PROVIDERS[target].reader(ENCODING)
    return [event for piece in pieces for event in reader.feed(piece)] + reader.close()


def said(answer: Answer) -> dict[str, Any]:
    """What an answer says, without how it was cut into pieces."""
    return {
        index: (
            [{**asdict(piece), "parts": meaning(piece)} for piece in choice.pieces],
            choice.finish.reason,
            choice.finish.stop_sequence,
        )
        for index, choice in answer.ordered()
    }


def meaning(piece: Piece) -> Any:
    """Text as it is, arguments as the object they are."""
    return orjson.loads(piece.text or "{}") if piece.kind == "tool" else piece.text


def test_the_corpus_is_seen() -> None:
    """The tests below would hold of an empty list."""
    assert len(CASES) >= 20
    assert {case.target for case in CASES} == set(PROVIDERS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_streamed_answer_says_what_the_whole_one_says(case: Case) -> None:
    """Reading is one vocabulary, whichever way the answer came."""
    streamed = fold(events_of_stream(case.target, [case.stream]))
    whole = fold(PROVIDERS[case.target].events_of(case.whole, ENCODING))

    assert said(streamed) == said(whole)
    assert streamed.head.id == whole.head.id
    assert streamed.head.model == whole.head.model
    assert streamed.usage == whole.usage == usage_of(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_answer_ends_with_one_end_behind_its_finish(case: Case) -> None:
    """Writers may rely on the order of events."""
    events = events_of_stream(case.target, [case.stream])
    kinds = [type(event) for event in events]

    assert kinds.count(End) == 1
    assert kinds[-1] is End
    assert kinds.count(Finish) == 1
    assert all(kind in (Finish, UsageReport, End) for kind in kinds[kinds.index(Finish) :])


@pytest.mark.parametrize("target", ["openai", "anthropic", "gemini", "mistral", "responses"])
def test_a_stream_cut_anywhere_is_read_the_same(target: str) -> None:
    """No read boundary changes what is read, inside a character, an escape or a line end."""
    stream = Case(target, "tools").stream
    expected = events_of_stream(target, [stream])
    step = max(1, len(stream) // 700)

    for at in range(1, len(stream), step):
        assert events_of_stream(target, [stream[:at], stream[at:]]) == expected, at


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_stream_cut_at_every_place_gives_the_same_bytes(case: Case) -> None:
    """The same for all answers, to the last byte of each caller's stream."""
    for caller in ("openai", "anthropic"):
        expected = decode(translation(caller, case.target).decoder(), case.stream, len(case.stream))
        for at in range(1, len(case.stream)):
            decoder = translation(caller, case.target).decoder()
            told = decoder.feed(case.stream[:at]) + decoder.feed(case.stream[at:]) + decoder.close()
            assert told == expected, at


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_callers_stream_does_not_depend_on_the_reads(case: Case) -> None:
    """Byte by byte or in one piece, each caller is sent the same."""
    for caller in CALLERS:
        whole = decode(translation(caller, case.target).decoder(7), case.stream, len(case.stream))
        assert decode(translation(caller, case.target).decoder(7), case.stream, 1) == whole, caller


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_the_caller_reads_is_what_the_upstream_said(case: Case) -> None:
    """Read back in the caller's dialect, stream and whole answer hold the upstream's words, calls and end."""
    meant, meant_reason, sequence = said(fold(PROVIDERS[case.target].events_of(case.whole, ENCODING)))[0]
    for caller in CALLERS:
        decoder = translation(caller, case.target).decoder(7)
        stream = decode(decoder, case.stream, 64)
        whole = translation(caller, case.target).decode_whole(case.whole, 7)

        assert (whole.fault, decoder.fault, decoder.ended) == (None, None, True)
        back = said(fold(events_of_stream(caller, [stream])))
        assert back == said(fold(PROVIDERS[caller].events_of(whole.body, ENCODING))), caller
        pieces, reason, back_sequence = back[0]
        assert content(pieces) == content(meant), caller
        if sequence is None or caller == "anthropic":
            assert (reason, back_sequence) == (meant_reason, sequence), caller
        else:
            assert (reason, back_sequence) == (Reason.STOP, None), caller


def content(pieces: list[dict[str, Any]]) -> list[Any]:
    """Words, thoughts and calls. Only two dialects tell a refusal from other text, so it counts as text."""
    texts = "".join([piece["parts"] for piece in pieces if piece["kind"] in ("text", "declined")])
    thoughts = "".join([piece["parts"] for piece in pieces if piece["kind"] == "thought"])
    calls = [(piece["id"], piece["name"], piece["parts"]) for piece in pieces if piece["kind"] == "tool"]
    return [texts, thoughts, calls]


READ_BY = (
    ("openai", Dialect.OPENAI, "chat.completions"),
    ("anthropic", Dialect.ANTHROPIC, "messages"),
    ("responses", Dialect.OPENAI, "responses"),
    ("mistral", Dialect.MISTRAL, "chat.completions"),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_callers_bytes_tell_the_cost_as_the_upstream_did(case: Case) -> None:
    """Whoever reads usage from the answer that was sent, stream or whole, books what the upstream charges."""
    expected = usage_of(case)
    for caller, dialect, route in READ_BY:
        decoder = translation(caller, case.target).decoder()
        scanner, reader = SseScanner(grammar_of(route)), UsageReader(dialect, route)
        for event in scanner.feed(decode(decoder, case.stream, 100)):
            reader.feed(event)
        whole = translation(caller, case.target).decode_whole(case.whole)

        assert reader.usage() == expected, caller
        assert (scanner.terminal, scanner.error) == (True, None), caller
        assert usage_from_body(dialect, route, whole.body) == expected, caller
        assert decoder.usage == whole.usage == expected, caller


@pytest.mark.parametrize("target", ["openai", "anthropic", "gemini", "responses"])
def test_text_arrives_letter_for_letter(target: str) -> None:
    """Quotes, line ends and characters beyond the basic plane survive every pair of dialects."""
    for caller in CALLERS:
        stream = decode(translation(caller, target).decoder(), Case(target, "text").stream, 5)
        answer = fold(events_of_stream(caller, [stream]))
        assert answer.choices[0].text_of("text") == GREETING
        assert answer.choices[0].finish.reason is Reason.STOP


def parsed(stream: bytes) -> list[tuple[str, Any]]:
    """Name and data of each event of a stream of ours."""
    events = []
    for text in stream.removesuffix(b"\n\n").split(b"\n\n"):
        *name, data = text.split(b"\n")
        said = data.removeprefix(b"data: ")
        events.append(
            (b"".join(name).removeprefix(b"event: ").decode(), None if said == b"[DONE]" else orjson.loads(said))
        )
    return events


@pytest.mark.parametrize("case", CASES, ids=str)
def test_blocks_of_a_message_are_begun_filled_and_closed_one_after_the_other(case: Case) -> None:
    """Clients act on a block when it is closed, and drop events whose name is not their type."""
    told = parsed(decode(translation("anthropic", case.target).decoder(), case.stream, 50))
    names = [name for name, _ in told]
    blocks = [(name, data["index"]) for name, data in told if name.startswith("content_block")]
    order = list(dict.fromkeys(index for _, index in blocks))

    assert [data["type"] for _, data in told] == names
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    assert order == list(range(len(order)))
    for index in order:
        inside = [name for name, at in blocks if at == index]
        assert inside[0] == "content_block_start"
        assert inside[-1] == "content_block_stop"
        assert set(inside[1:-1]) <= {"content_block_delta"}
    assert [at for _, at in blocks] == sorted(at for _, at in blocks)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_chunks_of_a_completion_share_one_head_and_begin_with_the_role(case: Case) -> None:
    """Clients merge them by id and index."""
    told = [data for _, data in parsed(decode(translation("openai", case.target).decoder(7), case.stream, 50))]
    *chunks, done = told
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]

    assert done is None
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert [at for at, choice in enumerate(choices) if "role" in choice["delta"]] == [0]
    assert [at for at, choice in enumerate(choices) if choice["finish_reason"]] == [len(choices) - 1]
    assert [call["index"] for call in calls if "id" in call] == sorted({call["index"] for call in calls})
    assert [bool(chunk["usage"]) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["choices"] == []


FINISHES = re.compile(rb'finish_?[rR]eason":"|"message_delta"|response\.(?:completed|incomplete)|blockReason')


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_stream_that_breaks_off_never_looks_complete(case: Case) -> None:
    """Without the upstream's end the caller is told of a fault, and of no end."""
    finish = FINISHES.search(case.stream)
    assert finish is not None
    front = case.stream[: finish.start()]
    begun = max(front.rfind(b"\n\n"), front.rfind(b"\n\r\n"))
    for half in (front[: begun + 2], front):
        for caller in CALLERS:
            decoder = translation(caller, case.target).decoder()
            told = decode(decoder, half, 100)

            assert decoder.fault is not None, caller
            assert decoder.fault.cause is Cause.CUT_OFF
            assert FINISHES.search(told) is None
            assert b"[DONE]" not in told
            assert b"error" in told


@pytest.mark.parametrize("target", ["openai", "anthropic", "gemini", "responses"])
@pytest.mark.parametrize("caller", CALLERS)
def test_a_fault_in_a_stream_is_the_last_thing_a_caller_reads(target: str, caller: str) -> None:
    """What was said before it is told; the fault keeps its kind; nothing follows."""
    stream = (HERE / target / "error.sse").read_bytes()
    decoder = translation(caller, target).decoder()
    told = decode(decoder, stream, 30)
    back = events_of_stream(caller, [told])

    assert decoder.ended
    assert decoder.has_content
    assert decoder.fault is not None
    assert decoder.fault.cause is (Cause.OVERLOADED if target in ("anthropic", "gemini") else Cause.FAILED)
    assert fold(back).choices[0].text_of("text") == "par"
    assert isinstance(back[-1], Fault)
    assert back[-1].message == decoder.fault.message
    assert decoder.feed(stream) == b""


def test_a_fault_before_any_content_can_still_be_tried_elsewhere() -> None:
    """The decoder says whether anything of the answer itself was told."""
    decoder = translation("openai", "anthropic").decoder()
    head, _, _ = Case("anthropic", "text").stream.partition(b"event: content_block_delta")
    decoder.feed(head)
    decoder.feed(b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Full"}}\n\n')

    assert decoder.fault is not None
    assert not decoder.has_content


def test_an_encoding_without_model_specialities_suits_all_readers() -> None:
    """The tests above read with an encoding of their own; a real one reads the same."""
    conversation = PROVIDERS["openai"].read_request({"messages": [{"role": "user", "content": "q"}]}, "m", True)
    encoding = PROVIDERS["anthropic"].write_request(conversation, Form("claude-opus-4-6"))
    reader = PROVIDERS["anthropic"].reader(encoding)
    stream = Case("anthropic", "tools").stream

    assert reader.feed(stream) + reader.close() == events_of_stream("anthropic", [stream])
