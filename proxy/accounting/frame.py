"""How usage records lie in a spool segment: a header of the segment, then frames one behind the other.

A frame is ``crc32 u32 | size << 4 | kind u32 | payload`` in little-endian order, the payload in msgpack as an array.
The checksum covers payload, size, kind and the segment's salt, so a frame that was torn, that belongs to another
segment or whose length was damaged is not taken for one. A frame of eight zero bytes is the end: segments are made of
zeros. Fields of payloads may be added at their end, with a default, and never change their place: a new version of
the program reads what an old one left behind, and the other way round.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from proxy.accounting.record import UsageRecord

OPEN: Final = 1
"""A request was admitted; the payload is an `Opened`."""
CLOSE: Final = 2
"""A request is over; the payload is a `UsageRecord`."""

PREFIX: Final = struct.Struct("<II")
PREFIX_BYTES: Final = PREFIX.size
MAX_PAYLOAD_BYTES: Final = 16 * 1024
_KIND_BITS: Final = 4

HEADER_BYTES: Final = 64
ACKED_AT: Final = 32
"""Where the header holds the offset up to which everything is in the store."""
LIMIT_AT: Final = 40
"""Where it holds the offset at which the segment was cut off, 0 for none."""
OFFSET: Final = struct.Struct("<Q")
_STATIC: Final = struct.Struct("<8sIIQ")
_CHECK: Final = struct.Struct("<I")
_MAGIC: Final = b"sfspool\x01"
_VERSION: Final = 1

_MAX_TEXT: Final = 256
_MAX_INT: Final = (1 << 63) - 1

encode: Final = msgspec.msgpack.Encoder().encode


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a request when it is admitted."""

    request_id: str
    at: float
    """Unix seconds."""
    key_id: str
    tenant: str
    team: str
    provider: str
    route: str
    model: str
    input_tokens: int = 0
    """Estimated."""
    reserved_picodollars: int = 0
    """Taken out of budgets for it."""
    streams: bool = False
    tags: str = ""


class Header(NamedTuple):
    """The head of a segment."""

    number: int
    salt: int
    acked: int
    limit: int


class Frame(NamedTuple):
    """One frame, found intact."""

    kind: int
    payload: bytes
    end: int
    """Offset behind it, from the start of what was scanned."""


_decode_open: Final = msgspec.msgpack.Decoder(Opened).decode
_decode_close: Final = msgspec.msgpack.Decoder(UsageRecord).decode


def pack_header(number: int, salt: int) -> bytes:
    """The header of a new segment."""
    static = _STATIC.pack(_MAGIC, _VERSION, salt, number)
    return (static + _CHECK.pack(crc32(static))).ljust(ACKED_AT, b"\0") + OFFSET.pack(HEADER_BYTES) + bytes(24)


def parse_header(data: bytes) -> Header | None:
    """``None`` for what is no header of ours or is damaged."""
    if len(data) < HEADER_BYTES:
        return None
    magic, version, salt, number = _STATIC.unpack_from(data)
    (check,) = _CHECK.unpack_from(data, _STATIC.size)
    if magic != _MAGIC or version != _VERSION or check != crc32(data[: _STATIC.size]):
        return None
    return Header(number, salt, OFFSET.unpack_from(data, ACKED_AT)[0], OFFSET.unpack_from(data, LIMIT_AT)[0])


def make_frame(kind: int, payload: bytes, salt: int) -> bytes:
    word = len(payload) << _KIND_BITS | kind
    return PREFIX.pack(crc32(payload, salt ^ word), word) + payload


class Scan:
    """Reads frames out of ``data``, which begins at a frame. Iterate once."""

    # Written while iterating: `end` is the offset behind the last intact frame, `torn` says why it stopped there.
    __slots__ = ("_data", "_salt", "end", "torn")

    def __init__(self, data: bytes, salt: int) -> None:
        self._data = data
        self._salt = salt
        self.end = 0
        self.torn = False
        """What follows is neither a frame nor the end; with less than a frame of data left it is unknown which."""

    def __iter__(self) -> Iterator[Frame]:
        data, salt, last = self._data, self._salt, len(self._data) - PREFIX_BYTES
        at = 0
        while at <= last:
            check, word = PREFIX.unpack_from(data, at)
            size = word >> _KIND_BITS
            if not word and not check:
                return
            if size > MAX_PAYLOAD_BYTES:
                self.torn = True
                return
            end = at + PREFIX_BYTES + size
            if end > len(data):
                return
            payload = data[at + PREFIX_BYTES : end]
            if crc32(payload, salt ^ word) != check:
                self.torn = True
                return
            at = self.end = end
            yield Frame(word & 0xF, payload, end)


def decode_open(payload: bytes) -> Opened | None:
    """``None`` for a payload of a shape that this version does not know."""
    try:
        return _decode_open(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def decode_close(payload: bytes) -> UsageRecord | None:
    """``None`` for a payload of a shape that this version does not know."""
    try:
        return _decode_close(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def encode_tamed(record: msgspec.Struct) -> bytes:
    """Encode what cannot be encoded as it is or would be too long: names that callers chose are cut to 256 characters
    and stripped of lone surrogates, numbers are brought within 64 bits."""
    return encode(type(record)(**{name: _tame(getattr(record, name)) for name in record.__struct_fields__}))


def _tame(value: object) -> object:
    if isinstance(value, str):
        return value[:_MAX_TEXT].encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-_MAX_INT, min(_MAX_INT, value))
    return value


def lost_record(opened: Opened) -> UsageRecord:
    """The row of a request whose process died: billed with what was reserved for it, which is the most it can have
    cost; what the upstream charged is not known and stays out."""
    return UsageRecord(
        request_id=opened.request_id,
        at=opened.at,
        key_id=opened.key_id,
        tenant=opened.tenant,
        team=opened.team,
        provider=opened.provider,
        route=opened.route,
        model=opened.model,
        role="none",
        outcome="lost",
        status=0,
        streams=opened.streams,
        estimated=True,
        input_tokens=opened.input_tokens,
        output_tokens=0,
        cached_input_tokens=0,
        upstream_tokens=0,
        saved_tokens=0,
        cost_picodollars=opened.reserved_picodollars,
        upstream_picodollars=0,
        saved_picodollars=0,
        first_byte_ms=0.0,
        total_ms=0.0,
        overhead_ms=0.0,
        flight_id=0,
        tags=opened.tags,
    )
