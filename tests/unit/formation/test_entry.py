"""What processes tell each other about a flight: nobody else can make it, move it or change it."""

from __future__ import annotations

import pytest

from proxy.errors import Kind, ProxyError
from proxy.formation.bounds import SLICE_BYTES
from proxy.formation.entry import (
    MAX_ENTRY_BYTES,
    Entry,
    Seal,
    read_error,
    read_head,
    read_usage,
    write_error,
    write_head,
    write_usage,
)
from proxy.protocol.message import ResponseHead
from proxy.protocol.usage import Usage

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
TOKEN, OTHER_TOKEN = b"t" * 16, b"u" * 16
SEAL = Seal(b"a secret of sixteen bytes")
ENTRY = Entry(7, {"end": 1}, b"data: [DONE]\n\n")


def test_an_entry_is_read_as_it_was_written() -> None:
    """Number, meta data and bytes."""
    assert SEAL.read(KEY, TOKEN, SEAL.write(KEY, TOKEN, ENTRY)) == ENTRY
    beat = Entry(0, {}, b"")
    assert SEAL.read(KEY, TOKEN, SEAL.write(KEY, TOKEN, beat)) == beat


@pytest.mark.parametrize(
    ("key", "token", "seal"),
    [(OTHER_KEY, TOKEN, SEAL), (KEY, OTHER_TOKEN, SEAL), (KEY, TOKEN, Seal(b"another secret of more"))],
)
def test_an_entry_for_another_flight_or_from_another_group_is_not_believed(
    key: bytes, token: bytes, seal: Seal
) -> None:
    """However authentic it is where it belongs."""
    assert seal.read(key, token, SEAL.write(KEY, TOKEN, ENTRY)) is None


def test_no_changed_byte_is_believed() -> None:
    """Wherever it stands."""
    data = SEAL.write(KEY, TOKEN, ENTRY)
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert SEAL.read(KEY, TOKEN, changed) is None


@pytest.mark.parametrize("data", [b"", b"x", b"\x80\x04poison", b"\0" * 23, None, 5, "text", b"\0" * 400_000])
def test_garbage_is_not_believed(data: object) -> None:
    """Nor looked into, where it is longer than an entry may be."""
    assert SEAL.read(KEY, TOKEN, data) is None
    assert SEAL.token(KEY, data) is None


def test_the_longest_slice_fits_into_an_entry() -> None:
    """Or the other side would not take what this one writes."""
    data = SEAL.write(KEY, TOKEN, Entry(1, {}, b"x" * SLICE_BYTES))
    assert len(data) <= MAX_ENTRY_BYTES
    assert SEAL.read(KEY, TOKEN, data) is not None


def test_a_lease_says_whose_it_is_for_its_key_alone() -> None:
    """A copy under another name is nobody's; nor does an entry pass for a lease."""
    lease = SEAL.lease(KEY, TOKEN)
    assert SEAL.token(KEY, lease) == TOKEN
    assert SEAL.token(OTHER_KEY, lease) is None
    assert SEAL.token(KEY, lease + b"x") is None


def test_a_short_secret_is_refused() -> None:
    """It could be guessed."""
    with pytest.raises(ValueError, match="16 bytes"):
        Seal(b"short")


def test_a_head_is_told_without_the_lines_that_are_not_named() -> None:
    """With the proxy's own lines and whose answer it is."""
    head = ResponseHead(200, [(b"content-type", b"text/event-stream"), (b"set-cookie", b"a=1"), (b"x-a", b"\xe9")])
    told = write_head(head, {b"content-type", b"x-a"}, [(b"x-sameflight-left-out", b"top_k")], "one/llama")
    read, own, target = read_head(told)

    assert (read.status, read.headers) == (200, [(b"content-type", b"text/event-stream"), (b"x-a", b"\xe9")])
    assert (own, target) == ([(b"x-sameflight-left-out", b"top_k")], "one/llama")


def test_an_error_is_told_without_what_is_for_the_operator_alone() -> None:
    """Kind, text, reason and when to come back are the same for everybody."""
    error = ProxyError(Kind.UPSTREAM_TIMEOUT, "Too slow.", detail="10.0.0.1", why="idle", retry_after_s=1.5)
    told = write_error(error)
    read = read_error(told)

    assert (read.kind, read.public, read.why, read.retry_after_s) == (error.kind, "Too slow.", "idle", 1.5)
    assert "10.0.0.1" not in str(told)


def test_usage_is_told_by_name() -> None:
    """A field that another release adds is noticed."""
    usage = Usage(1, 2, 3, 4, 5)
    assert read_usage(write_usage(usage)) == usage
    with pytest.raises(TypeError):
        read_usage({**write_usage(usage), "more": 1})
