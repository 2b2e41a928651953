"""Frames and headers of the spool as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.frame import (
    CLOSE,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    OPEN,
    Opened,
    Scan,
    decode_close,
    decode_open,
    encode,
    encode_tamed,
    lost_record,
    make_frame,
    pack_header,
    parse_header,
)
from tests.fakes.spool import make_record

SALT = 0x5EED


def frames(*payloads: bytes) -> bytes:
    return b"".join(make_frame(CLOSE, payload, SALT) for payload in payloads)


def found(data: bytes, salt: int = SALT) -> list[bytes]:
    return [frame.payload for frame in Scan(data, salt)]


def test_a_record_comes_back_as_it_went_in() -> None:
    """Every field crosses the disk."""
    record = make_record(7, tags="a,b", model="模型")

    assert decode_close(encode(record)) == record


def test_what_follows_the_last_frame_is_zeros_and_the_end() -> None:
    """An unused part of a segment is neither a frame nor a tear."""
    scan = Scan(frames(b"one", b"", b"two") + bytes(100), SALT)

    assert [frame.payload for frame in scan] == [b"one", b"", b"two"]
    assert not scan.torn
    assert scan.end == len(frames(b"one", b"", b"two"))


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), st.data())
def test_a_damaged_byte_costs_its_frame_and_what_follows_and_nothing_before(
    payloads: list[bytes], data: st.DataObject
) -> None:
    """Whatever bit is turned, no frame comes out that was not put in."""
    intact = frames(*payloads)
    at = data.draw(st.integers(0, len(intact) - 1))
    damaged = bytearray(intact)
    damaged[at] ^= data.draw(st.integers(1, 255))

    whole_before = [payload for i, payload in enumerate(payloads) if len(frames(*payloads[: i + 1])) <= at]
    assert found(bytes(damaged) + bytes(64)) == whole_before


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_a_cut_at_any_byte_keeps_every_frame_before_it(payloads: list[bytes], data: st.DataObject) -> None:
    """The rest of a frame is no frame."""
    intact = frames(*payloads)
    at = data.draw(st.integers(0, len(intact)))

    kept = [payload for i, payload in enumerate(payloads) if len(frames(*payloads[: i + 1])) <= at]
    assert found(intact[:at]) == kept
    # With zeros behind it a frame may be whole again that lost nothing but zeros; none comes back that was not there.
    again = found(intact[:at] + bytes(64))
    assert again[: len(kept)] == kept
    assert again == payloads[: len(again)]


def test_a_frame_of_another_segment_is_none_of_this_one() -> None:
    """Blocks that a file system hands out with old content do not come back to life."""
    assert found(frames(b"old news"), SALT + 1) == []


def test_a_length_beyond_the_largest_is_a_tear_and_not_waited_for() -> None:
    """A reader of a live segment would else wait for the rest for ever."""
    scan = Scan(make_frame(CLOSE, bytes(MAX_PAYLOAD_BYTES + 1), SALT)[:1000], SALT)

    assert list(scan) == []
    assert scan.torn


def test_a_header_tells_what_was_put_into_it_and_a_damaged_one_nothing() -> None:
    """The number, the salt, and that nothing was acknowledged yet."""
    header = pack_header(3, SALT)

    assert len(header) == HEADER_BYTES
    parsed = parse_header(header)
    assert parsed is not None
    assert (parsed.number, parsed.salt, parsed.acked, parsed.limit) == (3, SALT, HEADER_BYTES, 0)
    for at in range(28):
        damaged = bytearray(header)
        damaged[at] ^= 1
        assert parse_header(bytes(damaged)) is None
    assert parse_header(header[:-1]) is None


def test_a_record_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    """Fields are added at the end: what a newer process left, an older one can bring home."""
    record = make_record(1)
    fields = [getattr(record, name) for name in record.__struct_fields__]

    assert decode_close(encode([*fields, "something new"])) == record


def test_a_record_of_an_earlier_version_is_read_with_what_it_lacks_left_empty() -> None:
    """A process that was updated brings home what the old one left: rows without policies."""
    record = make_record(1)
    fields = [getattr(record, name) for name in record.__struct_fields__]
    found = decode_close(encode(fields[: record.__struct_fields__.index("tier")]))

    assert found == record
    assert found is not None
    assert (found.tier, found.cache_class, found.pruned_tokens, found.flagged) == ("", "", 0, "")
    assert found.policy_saved_picodollars == found.shadow_saved_picodollars == 0


@pytest.mark.parametrize("payload", [b"", b"\xc1", encode([]), encode({"request_id": "x"}), encode(["id", "time"])])
def test_a_payload_of_an_unknown_shape_is_no_record(payload: bytes) -> None:
    """And no exception either: a checksum says that it is whole, not that it is understood."""
    assert decode_close(payload) is None
    assert decode_open(payload) is None


def test_names_and_numbers_that_cannot_be_written_are_brought_within_bounds() -> None:
    """A caller chooses the model's name, and an upstream the numbers."""
    wild = make_record(1, model="m" * 100_000, tenant="\ud800x", cost_picodollars=1 << 80, upstream_tokens=-(1 << 70))

    tame = decode_close(encode_tamed(wild))

    assert tame is not None
    assert (tame.model, tame.tenant) == ("m" * 256, "?x")
    assert (tame.cost_picodollars, tame.upstream_tokens) == ((1 << 63) - 1, -(1 << 63) + 1)


def test_a_lost_request_is_billed_with_what_was_reserved_for_it() -> None:
    """A crash may cost more than the truth and never less, or budgets could be overspent by crashing."""
    opened = Opened("req_1", 5.0, "key", "acme", "blue", "openai", "chat.completions", "gpt-4o", 100, 4242, True)

    row = lost_record(opened)

    assert (row.request_id, row.at, row.outcome, row.estimated) == ("req_1", 5.0, "lost", True)
    assert (row.cost_picodollars, row.upstream_picodollars, row.input_tokens, row.streams) == (4242, 0, 100, True)
    assert decode_open(encode(opened)) == opened
    assert OPEN != CLOSE
