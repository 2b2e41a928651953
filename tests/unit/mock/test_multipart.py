"""Multipart bodies are counted right wherever they are cut."""

from __future__ import annotations

import pytest

from proxy.mock.multipart import MultipartCounter

_TYPE = b'multipart/form-data; boundary="frontier"'
_BODY = (
    b"preamble is ignored\r\n--frontier\r\n"
    b'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--frontier\r\n'
    b'Content-Disposition: form-data; name="empty"\r\n\r\n\r\n--frontier\r\n'
    b'Content-Disposition: form-data; filename="a b.txt"; name="file"\r\nContent-Type: text/plain\r\n\r\n'
    b"line\r\n--frontie not yet\r\n\r\n--\r\n\r\n--frontier--\r\nepilogue"
)
_FILE = b"line\r\n--frontie not yet\r\n\r\n--\r\n"


@pytest.mark.parametrize("size", [1, 2, 5, 13, 64, 10_000])
def test_parts_are_the_same_for_every_cut(size: int) -> None:
    """Names, file names, sizes and beginnings do not depend on how the bytes arrive."""
    counter = MultipartCounter(_TYPE)
    for at in range(0, len(_BODY), size):
        counter.feed(_BODY[at : at + size])
    assert (counter.ended, counter.broken) == (True, "")
    assert [(part.name, part.filename, part.size_bytes, part.value) for part in counter.parts] == [
        ("purpose", None, 5, b"batch"),
        ("empty", None, 0, b""),
        ("file", "a b.txt", len(_FILE), _FILE),
    ]


def test_body_that_starts_with_its_boundary_is_understood() -> None:
    """There need not be a preamble, and there usually is none."""
    counter = MultipartCounter(b"multipart/form-data; boundary=x")
    counter.feed(b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--')
    part = counter.find("a")
    assert part is not None
    assert (part.value, counter.find("b")) == (b"1", None)


def test_large_part_is_counted_and_not_kept() -> None:
    """Eight megabytes leave a kilobyte behind."""
    counter = MultipartCounter(_TYPE)
    counter.feed(b'--frontier\r\nContent-Disposition: form-data; name="file"\r\n\r\n')
    for _ in range(128):
        counter.feed(b"y" * 65_536)
    counter.feed(b"\r\n--frontier--\r\n")
    assert (counter.parts[0].size_bytes, len(counter.parts[0].value)) == (8 << 20, 1024)
    assert len(counter._rest) < 100


@pytest.mark.parametrize(
    ("content_type", "body", "reason"),
    [
        (b"multipart/form-data", b"--x", "boundary"),
        (_TYPE, b"--frontier\r\n" + b"h" * 20_000, "too long"),
        (_TYPE, b"--frontier\r\n\r\n\r\n" * 102, "too many"),
    ],
)
def test_body_beyond_all_bounds_is_broken(content_type: bytes, body: bytes, reason: str) -> None:
    """What cannot be counted in constant memory is refused."""
    counter = MultipartCounter(content_type)
    counter.feed(body)
    assert reason in counter.broken


def test_body_without_its_last_boundary_has_not_ended() -> None:
    """A truncated upload is told from a whole one."""
    counter = MultipartCounter(_TYPE)
    counter.feed(_BODY[: _BODY.rindex(b"--frontier--")])
    assert (counter.ended, counter.broken) == (False, "")
