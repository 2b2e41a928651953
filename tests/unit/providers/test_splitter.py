"""Streams of events, cut into events."""

from __future__ import annotations

import pytest

from proxy.providers import splitter
from proxy.providers.splitter import Splitter, TooLargeError

STREAM = (
    b"\xef\xbb\xbf: hello\n\nevent: a\ndata: 1\n\n\n\ndata:2\ndata: 3\nid: x\nretry: 5\n\n"
    b": c\n\nevent: only\n\ndata\n\n"
)
EVENTS = [("a", b"1"), ("", b"2\n3"), ("", b"")]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_events_are_the_same_for_every_line_end_and_cut(line_end: bytes) -> None:
    """Three kinds of line ends, comments, names without data, and every place to cut."""
    stream = STREAM.replace(b"\n", line_end)
    for at in range(len(stream) + 1):
        cutter = Splitter()
        found = cutter.feed(stream[:at]) + cutter.feed(stream[at:]) + cutter.close()
        assert found == EVENTS, at
    cutter = Splitter()
    single = [event for at in range(len(stream)) for event in cutter.feed(stream[at : at + 1])]
    assert single + cutter.close() == EVENTS


def test_the_last_event_counts_without_its_blank_line() -> None:
    """A terminal event that lacks one byte is still one."""
    cutter = Splitter()

    assert cutter.feed(b"data: a\n\ndata: [DONE]\n") == [("", b"a")]
    assert cutter.close() == [("", b"[DONE]")]
    assert cutter.close() == []


def test_an_event_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, whatever an upstream sends."""
    monkeypatch.setattr(splitter, "MAX_EVENT_BYTES", 100)
    cutter = Splitter()
    cutter.feed(b"data: " + b"x" * 90)

    with pytest.raises(TooLargeError):
        cutter.feed(b"x" * 10)
