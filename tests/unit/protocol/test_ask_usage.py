"""Counts that were asked for on a caller's behalf, and are not seen by it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from proxy.protocol.ask_usage import UsageFilter, ask, is_askable
from proxy.protocol.call import parse_call
from proxy.protocol.message import make_request_head
from proxy.protocol.routes import locate

ROUTE = locate(make_request_head("POST", "/v1/chat/completions", [])).route
PLAIN = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
MARKED = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a"}}],"usage":null}\n\n'
COUNTS = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}\n\n'
DONE = b"data: [DONE]\n\n"
ASKED = MARKED + MARKED + COUNTS + DONE
UNASKED = PLAIN + PLAIN + DONE


def read(stream: bytes, *cuts: int) -> bytes:
    """What a caller reads of a stream that came in these portions."""
    filter_ = UsageFilter()
    edges = [0, *cuts, len(stream)]
    seen = b"".join(filter_.feed(stream[one:other]) for one, other in pairwise(edges))
    return seen + filter_.rest()


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_caller_reads_what_it_would_have_read_however_the_stream_is_cut(end: bytes) -> None:
    """Every cut into two reads, and one byte at a time."""
    asked, unasked = ASKED.replace(b"\n", end), UNASKED.replace(b"\n", end)

    assert {read(asked, cut) for cut in range(len(asked) + 1)} == {unasked}
    assert read(asked, *range(1, len(asked))) == unasked


@pytest.mark.parametrize(
    "stream",
    [
        PLAIN + DONE,
        b": ping\n\n" + PLAIN,
        b'data: {"choices":[{"delta":{"content":"say \\",\\"usage\\":null"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":1}}\n\n',
        b'data: {"error":{"message":"\\"usage\\" exceeded"}}\n\n',
        b'data: no json "usage"\n\n',
        b"data: cut in the mid",
    ],
)
def test_what_is_no_count_passes_byte_for_byte(stream: bytes) -> None:
    """Counts beside choices, text that speaks of usage, errors, comments, and an event that never ends."""
    assert {read(stream, cut) for cut in range(len(stream) + 1)} == {stream}


def test_an_event_without_end_is_not_held_for_ever() -> None:
    """Beyond a megabyte everything passes, and nothing is lost."""
    long = b"data: " + b"x" * (1 << 20) + b"yyyy"

    assert read(long + ASKED, 1000, len(long)) == long + ASKED


@pytest.mark.parametrize("body", [b'{"model":"m","stream":true}', b' {"model":"m","stream":true , "n":1 } \n'])
def test_the_option_is_the_last_member_and_nothing_else_changes(body: bytes) -> None:
    """One object, all that was said before in front."""
    fields = json.loads(ask(body))

    assert fields.pop("stream_options") == {"include_usage": True}
    assert fields == json.loads(body)
    assert ask(body).startswith(body.rstrip()[:-1])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"m","stream":true}', True),
        (b'{"model":"m"}', False),
        (b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}', False),
        (b'{"model":"m","stream":true,"stream_options":null}', False),
    ],
)
def test_only_a_stream_that_says_nothing_of_its_options_is_asked_for_more(body: bytes, expected: bool) -> None:
    """Whoever says something has decided for itself."""
    assert is_askable(parse_call(ROUTE, body)) is expected
