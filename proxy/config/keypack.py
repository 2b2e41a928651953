"""Key records as bytes, for the shared level and for the snapshot on disk: MessagePack, read back into checked types.

Whoever stores the bytes where others can write seals them: nothing here proves where bytes come from.
"""

from __future__ import annotations

from typing import Final

import msgspec

from proxy.config.keys import KeyRecord


class SharedKey(msgspec.Struct, frozen=True):
    """One record as a process read it, for the others."""

    record: KeyRecord
    as_of: int
    """Every change up to this version is in it: where the reader of the database stood when it began to read."""
    read_wall: float
    """When it was read, in Unix seconds."""


class KeySnapshot(msgspec.Struct, frozen=True):
    """All records that a process held."""

    database: str
    """Which database they are from; any text that differs between two."""
    version: int
    """Every change up to this one is in it."""
    confirmed_wall: float
    """When the database last said so, in Unix seconds."""
    records: list[KeyRecord]


_ENCODER: Final = msgspec.msgpack.Encoder()
_SHARED: Final = msgspec.msgpack.Decoder(SharedKey)
_SNAPSHOT: Final = msgspec.msgpack.Decoder(KeySnapshot)


def pack(value: SharedKey | KeySnapshot) -> bytes:
    """The bytes of a value."""
    return _ENCODER.encode(value)


def unpack_shared(data: bytes) -> SharedKey:
    """Raises ``ValueError`` for bytes that are no such value."""
    return _SHARED.decode(data)


def unpack_snapshot(data: bytes) -> KeySnapshot:
    """Raises ``ValueError`` for bytes that are no such value."""
    return _SNAPSHOT.decode(data)
