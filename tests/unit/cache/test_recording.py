"""Recordings and their encoding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.recording import Codec, Recording

SECRET = b"a secret of the whole cluster"
KEY = bytes(range(32))


def recording(*chunks: bytes, **options: object) -> Recording:
    values = {"stored_at": 100.0, "stored_wall": 5000.0, "ttl_s": 60.0, **options}
    return Recording(200, [(b"content-type", b"application/json")], chunks, **values)


def facts(one: Recording) -> tuple[object, ...]:
    return (
        one.status,
        one.headers,
        one.chunks,
        one.stored_wall,
        one.ttl_s,
        one.swr_s,
        one.sie_s,
        one.streams,
        one.report,
        one.size_bytes,
    )


def test_body_of_a_whole_answer_is_joined_once_and_kept_in_one_piece():
    """Asking twice gives the same object, and the pieces are not kept beside it."""
    one = recording(b"ab", b"", b"cd")
    body = one.body
    assert body == b"abcd"
    assert one.body is body
    assert one.chunks == (b"abcd",)


def test_body_of_a_stream_leaves_the_event_boundaries_alone():
    """A stream can be replayed in the pieces in which it came, also after its body was asked for."""
    one = recording(b"data: 1\n\n", b"data: 2\n\n", streams=True)
    assert one.body == b"data: 1\n\ndata: 2\n\n"
    assert one.chunks == (b"data: 1\n\n", b"data: 2\n\n")


def test_recording_without_chunks_has_an_empty_body():
    """An empty answer is an answer."""
    assert recording().body == b""


def test_head_is_rendered_once_and_says_how_long_the_body_is():
    """A hit sends ready bytes; followers of the same entry share them."""
    one = recording(b"ab", b"cde")
    assert one.head is one.head
    assert (one.head.status, one.head.length, one.head.streams) == (200, 5, False)
    assert one.head.block == b"content-type: application/json\r\n"


@given(
    status=st.integers(200, 599),
    headers=st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40)), max_size=6),
    chunks=st.lists(st.binary(max_size=50), max_size=8).map(tuple),
    streams=st.booleans(),
    report=st.none() | st.dictionaries(st.text(max_size=5), st.integers(0, 10**9), max_size=3),
    times=st.tuples(*[st.floats(0, 1e6)] * 3),
)
def test_any_recording_comes_back_from_its_encoding_as_it_was(status, headers, chunks, streams, report, times):
    """Every byte of headers and body, the boundaries and the report survive."""
    ttl_s, swr_s, sie_s = times
    one = Recording(
        status,
        headers,
        chunks,
        stored_at=7.0,
        stored_wall=1e9,
        ttl_s=ttl_s,
        swr_s=swr_s,
        sie_s=sie_s,
        streams=streams,
        report=report,
    )
    codec = Codec(SECRET)
    back = codec.decode(KEY, codec.encode(KEY, one), now=7.0, wall=1e9)
    assert back is not None
    assert facts(back) == facts(one)
    assert back.stored_at == 7.0


def test_recording_read_by_another_process_keeps_its_age():
    """The monotonic clocks differ; the age follows the wall clock."""
    codec = Codec(SECRET)
    back = codec.decode(KEY, codec.encode(KEY, recording(b"x")), now=9.0, wall=5025.0)
    assert back.age_s(9.0) == 25.0


def test_recording_from_a_clock_that_is_ahead_is_of_age_nought():
    """A future time stamp must not give an entry a longer life than its own."""
    codec = Codec(SECRET)
    back = codec.decode(KEY, codec.encode(KEY, recording(b"x")), now=9.0, wall=4000.0)
    assert (back.age_s(9.0), back.stored_at) == (0.0, 9.0)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_changed_bit_anywhere_makes_an_encoding_worthless(at, bit):
    """Prefix, version, hash, lengths, meta data and body are all covered."""
    codec = Codec(SECRET)
    data = bytearray(codec.encode(KEY, recording(b"hello", b"world")))
    data[at % len(data)] ^= 1 << bit
    assert codec.decode(KEY, bytes(data), 100.0, 5000.0) is None


@given(data=st.binary(max_size=200))
def test_garbage_is_no_recording(data):
    """Bytes that were not made by this codec read as nothing, with our prefix in front of them as well."""
    codec = Codec(SECRET)
    assert codec.decode(KEY, data, 100.0, 5000.0) is None
    assert codec.decode(KEY, b"SFRC\x01" + data, 100.0, 5000.0) is None


@pytest.mark.parametrize("value", ["text", 5, bytearray(b"x" * 100), {"status": 200}])
def test_value_of_another_type_is_no_recording(value):
    """A backend may hand back what another program stored."""
    assert Codec(SECRET).decode(KEY, value, 100.0, 5000.0) is None


def test_encoding_moved_under_another_key_is_no_recording():
    """Who can write to the cache cannot serve one question's answer to another."""
    codec = Codec(SECRET)
    data = codec.encode(KEY, recording(b"mine"))
    assert codec.decode(KEY, data, 100.0, 5000.0) is not None
    assert codec.decode(KEY[::-1], data, 100.0, 5000.0) is None


def test_encoding_under_another_secret_is_no_recording():
    """The secret is what makes a recording ours."""
    data = Codec(b"somebody else's secret").encode(KEY, recording(b"x"))
    assert Codec(SECRET).decode(KEY, data, 100.0, 5000.0) is None


def test_encoding_of_another_version_is_no_recording(monkeypatch):
    """Another version is refused even though its hash is right for it."""
    monkeypatch.setattr("proxy.cache.recording._PREFIX", b"SFRC\x02")
    data = Codec(SECRET).encode(KEY, recording(b"x"))
    monkeypatch.undo()
    assert Codec(SECRET).decode(KEY, data, 100.0, 5000.0) is None


def test_report_that_cannot_be_unpacked_makes_a_miss():
    """Another release may have written a report of another shape; the answer is fetched anew."""
    old = Codec(SECRET)
    new = Codec(SECRET, unpack_report=lambda packed: packed["tokens"])
    data = old.encode(KEY, recording(b"x", report={"other": 1}))
    assert new.decode(KEY, data, 100.0, 5000.0) is None


def test_report_goes_through_its_own_packing():
    """What the cache keeps opaque is packed and unpacked by whoever knows it."""
    codec = Codec(SECRET, pack_report=list, unpack_report=tuple)
    back = codec.decode(KEY, codec.encode(KEY, recording(b"x", report=(1, 2))), 100.0, 5000.0)
    assert back.report == (1, 2)


def test_recording_larger_than_the_codec_allows_is_neither_written_nor_read():
    """The bound holds in both directions, so that a huge value costs no hash."""
    data = Codec(SECRET).encode(KEY, recording(b"x" * 5000))
    small = Codec(SECRET, max_bytes=4000)
    assert small.encode(KEY, recording(b"x" * 5000)) is None
    assert small.decode(KEY, data, 100.0, 5000.0) is None


def test_headers_that_grow_by_escaping_do_not_pass_the_bound():
    """Bytes that JSON has to escape count as long as they become."""
    one = Recording(200, [(b"x", b"\x01" * 2000)], (), stored_at=0.0, stored_wall=0.0, ttl_s=1.0)
    assert Codec(SECRET, max_bytes=6 * 2000).encode(KEY, one) is None
    assert Codec(SECRET, max_bytes=6 * 2000 + 500).encode(KEY, one) is not None


def test_short_secret_is_refused():
    """A secret that can be guessed would be no protection."""
    with pytest.raises(ValueError, match="16 bytes"):
        Codec(b"short")
