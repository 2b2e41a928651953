"""The tape: any reader at any position sees the bytes from there on, once and in order."""

import pytest

from proxy.flight.tape import Tape


def tape_of(*chunks: bytes) -> Tape:
    tape = Tape()
    for chunk in chunks:
        tape.append(chunk)
    return tape


def read_all(tape: Tape, position: int, limit_bytes: int) -> bytes:
    body = b""
    while True:
        data, after = tape.read(position, limit_bytes)
        assert (after > position) == bool(data)
        if not data:
            return body
        body, position = body + data, after


def test_empty_tape_gives_nothing_and_keeps_the_position():
    """A reader at the end of an empty tape stays there."""
    assert Tape().read(0, 100) == (b"", 0)


def test_reader_at_the_live_edge_gets_the_very_object_that_was_appended():
    """Nothing is copied for a reader that keeps up."""
    chunk = b"x" * 1_000
    tape = tape_of(b"a", chunk)
    data, position = tape.read(1, 1)
    assert data is chunk
    assert position == 2


def test_read_takes_whole_chunks_up_to_the_limit():
    """The limit counts bytes from the reader's own position, and a chunk is never cut."""
    tape = tape_of(b"aa", b"bbb", b"cccc", b"d")
    assert tape.read(0, 5) == (b"aabbb", 2)
    assert tape.read(0, 8) == (b"aabbb", 2)
    assert tape.read(0, 9) == (b"aabbbcccc", 3)
    assert tape.read(1, 7) == (b"bbbcccc", 3)


def test_chunk_above_the_limit_is_still_read():
    """A reader makes progress whatever the size of a chunk."""
    assert tape_of(b"aaaa", b"b").read(0, 1) == (b"aaaa", 1)


def test_positions_count_from_the_first_chunk_after_trimming():
    """Trimming drops bytes but moves no reader."""
    tape = tape_of(b"aa", b"bbb", b"c")
    assert tape.trim(1) == 2
    assert (tape.base, tape.end, tape.total_bytes, tape.retained_bytes) == (1, 3, 6, 4)
    assert tape.read(1, 100) == (b"bbbc", 3)
    tape.append(b"dd")
    assert tape.read(2, 100) == (b"cdd", 4)
    assert tape.read(3, 100) == (b"dd", 4)


def test_limit_holds_on_a_trimmed_tape():
    """The offset of the first retained chunk is known although its predecessors are gone."""
    tape = tape_of(b"aa", b"bbb", b"cc", b"dddd")
    tape.trim(1)
    assert tape.read(1, 5) == (b"bbbcc", 3)


def test_trim_frees_each_byte_once():
    """Trimming at or behind the base frees nothing, and the sum of what was freed is the whole answer."""
    tape = tape_of(b"aa", b"bbb", b"c")
    assert [tape.trim(position) for position in (0, 2, 2, 1, 3, 3)] == [0, 5, 0, 0, 1, 0]
    assert tape.retained_bytes == 0
    assert tape.read(3, 10) == (b"", 3)


def test_lag_is_what_a_reader_has_still_to_take():
    """At the start it is everything, at the end nothing, also behind a trimmed front."""
    tape = tape_of(b"aa", b"bbb", b"c")
    assert [tape.lag_bytes(position) for position in range(4)] == [6, 4, 1, 0]
    tape.trim(2)
    assert [tape.lag_bytes(position) for position in (2, 3)] == [1, 0]


def test_reader_in_front_of_the_tape_is_a_bug_that_shows():
    """What was dropped is never silently skipped."""
    tape = tape_of(b"a", b"b")
    tape.trim(1)
    with pytest.raises(AssertionError, match="in front of the tape"):
        tape.read(0, 10)


def test_whole_answer_is_available_until_something_was_trimmed():
    """The cache gets every chunk, or an error instead of a truncated answer."""
    tape = tape_of(b"a", b"b")
    assert tape.chunks() == (b"a", b"b")
    tape.trim(1)
    with pytest.raises(AssertionError, match="no longer the whole answer"):
        tape.chunks()


@pytest.mark.parametrize("limit_bytes", [1, 7, 64, 10_000])
def test_every_start_position_reads_the_rest_of_the_answer(limit_bytes):
    """TC066 on the tape itself: 300 chunks of mixed sizes from every position."""
    chunks = [bytes([number % 251]) * (1 + number * 7 % 13) for number in range(300)]
    tape = tape_of(*chunks)
    for position in range(301):
        assert read_all(tape, position, limit_bytes) == b"".join(chunks[position:])
