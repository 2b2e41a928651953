"""Readers that catch up at the same places share what they read."""

from __future__ import annotations

from proxy.flight.tape import Tape


def make_tape(count: int = 100) -> Tape:
    """Chunks of ten bytes."""
    tape = Tape()
    for number in range(count):
        tape.append(b"%010d" % number)
    return tape


def test_two_readers_of_one_stretch_hold_one_copy_of_it() -> None:
    """A thousand late joiners would otherwise hold a thousand."""
    tape = make_tape()
    first, behind = tape.read(0, 200)
    second, _ = tape.read(0, 200)

    assert second is first
    assert (first, behind) == (b"".join(b"%010d" % number for number in range(20)), 20)


def test_readers_of_different_stretches_get_their_own() -> None:
    """Also if one begins where another did, at another time."""
    tape = make_tape()
    tape.read(90, 1000)
    tape.append(b"%010d" % 100)
    data, behind = tape.read(90, 1000)

    assert (len(data), behind) == (110, 101)
    assert data.endswith(b"%010d" % 100)


def test_what_is_kept_for_others_is_bounded_and_goes_with_the_front() -> None:
    """A few stretches, and none of those that were dropped."""
    tape = make_tape()
    for position in range(50):
        tape.read(position, 100)
    kept = len(tape._joined or {})
    tape.trim(60)
    data, _ = tape.read(60, 100)

    assert kept <= 4
    assert data == b"".join(b"%010d" % number for number in range(60, 70))


def test_a_single_chunk_is_nobodys_copy() -> None:
    """It is the chunk itself."""
    tape = Tape()
    chunks = [b"a" * 100, b"b" * 100, b"c" * 100]
    for chunk in chunks:
        tape.append(chunk)

    assert [tape.read(position, 10)[0] is chunk for position, chunk in enumerate(chunks)] == [True] * 3
