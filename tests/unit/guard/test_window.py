"""Guards over streams: what is found although it is cut in pieces, and what comes out."""

from __future__ import annotations

from itertools import combinations

import orjson
import pytest

from proxy.guard.base import Check, Finding
from proxy.guard.window import Released, Window
from tests.unit.guard.make import make_check
from tests.unit.guard.streams import (
    DIALECTS,
    Write,
    chat,
    chat_arguments,
    messages,
    objects_in,
    repeated_in,
    responses,
    said_in,
)

CARD = "4242 4242 4242 4242"
BEFORE, AFTER = "Pay with ", " today, please."

EACH = pytest.mark.parametrize(("route", "write"), DIALECTS.items(), ids=DIALECTS)


def run(route: str, checks: list[Check], stream: bytes, step: int = 0) -> tuple[bytes, list[Released]]:
    """The stream through a window, whole or in portions; stops where it is blocked."""
    window = Window(route, checks)
    portions = [stream[at : at + step] for at in range(0, len(stream), step)] if step else [stream]
    released = []
    for portion in portions:
        released.append(window.feed(portion))
        if released[-1].blocked or released[-1].failed:
            break
    else:
        released.append(window.end())
    return b"".join(each.data for each in released), released


@EACH
def test_a_card_number_cut_anywhere_into_two_pieces_is_redacted(route: str, write: Write) -> None:
    """Every place of the cut, each piece in an event of its own that comes alone."""
    check = make_check("personal_data", which=("card",))
    text = BEFORE + CARD + AFTER
    for cut in range(len(BEFORE), len(BEFORE) + len(CARD) + 1):
        stream = write([text[:cut], text[cut:]])
        out, released = run(route, [check], stream, step=40)
        assert said_in(out) == "Pay with [CARD] today, please.", cut
        assert [each.kind for one in released for each in one.findings][:1] == ["card"]
        assert b"4242" not in out.replace(b"card 4242424242424242", b"")


@EACH
def test_a_card_number_cut_anywhere_into_three_pieces_is_redacted(route: str, write: Write) -> None:
    """Every pair of places."""
    check = make_check("personal_data", which=("card",))
    for first, second in combinations(range(len(CARD) + 1), 2):
        pieces = [BEFORE + CARD[:first], CARD[first:second], CARD[second:] + AFTER]
        out, _ = run(route, [check], write(pieces))
        assert said_in(out) == "Pay with [CARD] today, please.", (first, second)


@EACH
def test_a_card_number_said_digit_by_digit_blocks_before_any_of_it_went_out(route: str, write: Write) -> None:
    """What stands before may go; not one digit does."""
    check = make_check("personal_data", "block", which=("card",))
    out, released = run(route, [check], write([BEFORE, *CARD, AFTER]), step=100)
    assert released[-1].blocked is not None
    assert released[-1].blocked.kind == "card"
    assert "4" not in said_in(out)
    assert BEFORE.startswith(said_in(out))


@EACH
def test_a_stream_in_which_nothing_is_found_comes_out_byte_for_byte(route: str, write: Write) -> None:
    """Whatever the portions were."""
    checks = [make_check(kind) for kind in ("personal_data", "secrets", "injection")]
    stream = write(["Hello, ", "wörld 4242", " and ", "sk-", " 12 ", "@home", "."])
    for step in (0, 1, 7, 64):
        out, released = run(route, checks, stream, step)
        assert out == stream
        assert not any(each.findings for each in released)


def test_what_a_responses_stream_says_once_more_is_redacted_as_well() -> None:
    """The done events and the whole response; what it echoes of the request is the caller's own."""
    out, _ = run("responses", [make_check("personal_data")], responses([BEFORE + CARD[:9], CARD[9:] + AFTER]))
    assert repeated_in(out) == ["Pay with [CARD] today, please."] * 4
    assert objects_in(out)[-1]["response"]["instructions"] == "card 4242424242424242"


def test_what_is_flagged_only_holds_nothing_and_changes_nothing() -> None:
    """Every byte goes out with the call that brought it."""
    window = Window("chat.completions", [make_check("personal_data", "flag")])
    stream = chat([BEFORE, *CARD, AFTER])
    findings: list[Finding] = []
    for event in stream.split(b"\n\n")[:-1]:
        released = window.feed(event + b"\n\n")
        assert released.data == event + b"\n\n"
        findings += released.findings
    assert [each.kind for each in findings] == ["card"]
    assert window.end().data == b""


def test_words_that_cannot_become_anything_are_not_held() -> None:
    """A guard for personal data and secrets costs a reader no more than the word that is being said."""
    window = Window("chat.completions", [make_check("personal_data"), make_check("secrets")])
    words = ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    held = []
    for event in chat([word + " " for word in words]).split(b"\n\n")[:-3]:
        window.feed(event + b"\n\n")
        held.append(window.held_bytes)
    assert max(held) < 200


def test_a_number_among_arguments_is_replaced_by_a_text() -> None:
    """Arguments are JSON and stay JSON, inside a string and outside of one."""
    check = make_check("personal_data", which=("card",))
    text = '{"note": "say \\"hi\\"", "card": 4242424242424242, "also": "4242424242424242"}'
    for cut in range(1, len(text)):
        out, _ = run("chat.completions", [check], chat_arguments([text[:cut], text[cut:]]))
        assert orjson.loads(said_in(out)) == {"note": 'say "hi"', "card": "[CARD]", "also": "[CARD]"}


def test_an_escaped_line_end_before_a_key_does_not_hide_it() -> None:
    """In arguments a line end is a backslash and an n, which is no letter of the key."""
    key = "AKIAIOSFODNN7EXAMPLE"
    stream = chat_arguments(['{"a": "x\\n', key[:7], key[7:] + '"}'])
    out, _ = run("chat.completions", [make_check("secrets")], stream)
    assert orjson.loads(said_in(out)) == {"a": "x\n[AWS_KEY]"}


def test_choices_that_come_in_turns_are_texts_of_their_own() -> None:
    """Half a number in one and half in the other is none; a whole number in each is found."""
    halves = CARD[:10], CARD[10:]

    def chunk(index: int, text: str) -> bytes:
        fields = {"choices": [{"index": index, "delta": {"content": text}}]}
        return b"data: " + orjson.dumps(fields) + b"\n\n"

    check = make_check("personal_data")
    apart = chunk(0, halves[0]) + chunk(1, halves[1]) + b"data: [DONE]\n\n"
    assert run("chat.completions", [check], apart)[0] == apart
    both = b"".join(chunk(index, half) for half in halves for index in (0, 1))
    out, _ = run("chat.completions", [check], both, step=30)
    texts = ["".join(c["choices"][0]["delta"]["content"] for c in objects_in(out)[index::2]) for index in (0, 1)]
    assert texts == ["[CARD]", "[CARD]"]


def test_thoughts_and_refusals_are_looked_at_as_well() -> None:
    """Whatever member of a delta says it."""
    check = make_check("personal_data")
    for member in ("reasoning_content", "reasoning", "refusal"):
        fields = [{"choices": [{"index": 0, "delta": {member: half}}]} for half in (CARD[:8], CARD[8:])]
        stream = b"".join(b"data: " + orjson.dumps(each) + b"\n\n" for each in fields)
        out, _ = run("chat.completions", [check], stream)
        assert [each["choices"][0]["delta"][member] for each in objects_in(out)] == ["[CARD]", ""]


def test_the_tokens_beside_a_redacted_text_go_with_it() -> None:
    """Log probabilities say the text again, token by token."""
    delta = {"index": 0, "delta": {"content": CARD}, "logprobs": {"content": [{"token": CARD, "logprob": -0.1}]}}
    out, _ = run("chat.completions", [make_check("personal_data")], b"data: " + orjson.dumps({"choices": [delta]}))
    assert b"4242" not in out
    assert b"[CARD]" in out


def test_pieces_of_mistrals_lists_are_one_text() -> None:
    """Its content may be a list of pieces."""
    fields = [
        {"choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": half}]}}]}
        for half in (CARD[:8], CARD[8:])
    ]
    stream = b"".join(b"data: " + orjson.dumps(each) + b"\n\n" for each in fields)
    out, _ = run("chat.completions", [make_check("personal_data")], stream)
    assert b"[CARD]" in out
    assert b"4242" not in out


@pytest.mark.parametrize("ending", [b"\n\n", b"\r\n\r\n", b"\r\r"], ids=["lf", "crlf", "cr"])
def test_the_line_ends_of_a_stream_stay_whatever_they_are(ending: bytes) -> None:
    """Also of events that are rewritten, comments and names included."""
    line = ending[: len(ending) // 2]
    data = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}'
    event = b": note" + line + b"event: x" + line + data + ending
    stream = event % b"hello there"
    for step in (0, 1, 3):
        assert run("chat.completions", [make_check("personal_data")], stream * 2, step)[0] == stream * 2
        out, _ = run("chat.completions", [make_check("personal_data")], event % CARD.encode(), step)
        assert out == event % b"[CARD]"


def test_an_event_that_is_no_json_is_looked_at_as_it_stands() -> None:
    """Nobody can tell what its reader makes of it."""
    out, _ = run("chat.completions", [make_check("personal_data")], b'data: {"content": "' + CARD.encode() + b"\n\n")
    assert out == b'data: {"content": "[CARD]\n\n'


def test_a_stream_that_breaks_off_inside_an_event_is_looked_at_to_the_end() -> None:
    """What is left is released by the end, without what is not to be said."""
    check = make_check("personal_data")
    stream = chat(["so: ", CARD])
    out, released = run("chat.completions", [check], stream[: stream.index(b"4242") + 19], step=11)
    assert b"4242" not in out
    assert b"[CARD]" in released[-1].data


def test_more_than_may_be_held_is_a_failure_and_the_end_gives_it_all() -> None:
    """What then becomes of the stream is for the guards' fail modes to say."""
    window = Window("chat.completions", [make_check("secrets")], most_held_bytes=5_000)
    first = chat(["before "]).removesuffix(b"data: [DONE]\n\n")
    assert window.feed(first).failed is False
    rest = b"data: " + b"x" * 6_000
    released = window.feed(rest)
    assert released.failed
    assert released.data + window.end().data in (rest, first + rest)
    assert window.held_bytes == 0


def test_many_texts_at_a_time_are_a_failure() -> None:
    """An upstream that opens one after the other cannot fill the memory."""
    window = Window("messages", [make_check("personal_data")])
    for index in range(2_000):
        delta = {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": "4"}}
        released = window.feed(b"data: " + orjson.dumps(delta) + b"\n\n")
        if released.failed:
            break
    assert released.failed
    assert index < 1_100


def test_an_answer_longer_than_allowed_is_blocked_where_it_becomes_so() -> None:
    """Characters are counted as they come, and what was short enough went out."""
    check = make_check("size", "block", most_characters=20)
    out, released = run("messages", [check], messages(["äöü" * 3, "x" * 11, "y", "z" * 50]), step=60)
    assert released[-1].blocked is not None
    assert released[-1].blocked.kind == "size"
    assert len(said_in(out)) <= 20


def test_a_topic_is_blocked_when_it_was_spoken_of_often_enough() -> None:
    """Twice is nothing, thrice is; the words of the done events do not count again."""
    check = make_check("topics", "block", topics=(("bets", ("odds", "bookmaker")),), threshold=3)
    _, twice = run("responses", [check], responses(["the odds ", "of a book", "maker"]), step=50)
    assert twice[-1].blocked is None
    _, thrice = run("responses", [check], responses(["the odds ", "of a book", "maker, odds", " again"]), step=50)
    assert thrice[-1].blocked is not None


@EACH
def test_an_answer_under_a_schema_is_held_until_it_is_known_to_keep_it(route: str, write: Write) -> None:
    """All of it, because its reader may act on the first half."""
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    check = make_check("schema", "block", schema=orjson.dumps(schema).decode())
    stream = write(['{"a"', ": 1", "}"])
    out, released = run(route, [check], stream, step=50)
    assert out == stream
    assert not released[0].data
    out, released = run(route, [check], write(['{"a"', ': "x"', "}"]), step=50)
    assert out == b""
    assert released[-1].blocked is not None


def test_a_window_keeps_little_of_a_long_stream() -> None:
    """What is decided is forgotten."""
    window = Window("chat.completions", [make_check("personal_data"), make_check("injection")])
    event = chat(["lorem ipsum dolor sit amet, " * 5]).split(b"\n\n")[1] + b"\n\n"
    for _ in range(300):
        window.feed(event)
    (part,) = window._parts.values()
    assert part.size == 300 * 140
    assert len(part._tail) < 2_000
    assert window.held_bytes < 4_000
